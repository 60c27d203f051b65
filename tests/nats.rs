//! The NATS bus on a real server: what reaches whom, and what goes wrong with servers.

mod rights;
mod secured;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use entity_sync_bus::{Bus, NotSent, Probe, Told};
use entity_sync_nats::{Nats, NatsAuth, NatsConfig, NatsStatus};
use entity_sync_tests::nats::Nats as Server;
use entity_sync_tests::{PATIENCE, talk, wait_for};

/// A bus, and what it tells.
struct Node {
    bus: Nats,
    status: NatsStatus,
    probe: Probe,
}

impl Node {
    /// Not yet connected, perhaps.
    fn start(config: &NatsConfig, topics: &[&str]) -> Self {
        let mut bus = Nats::new(config).unwrap();
        let status = bus.status();
        let probe = Probe::new();
        bus.start(probe.inbox());
        for topic in topics {
            bus.subscribe(topic);
        }
        Self { bus, status, probe }
    }

    /// Connected, and it hears of these topics.
    fn connect(config: &NatsConfig, topics: &[&str]) -> Self {
        let mut node = Self::start(config, topics);
        assert_eq!(node.told(), Told::Connected);
        node.settle();
        node
    }

    fn told(&self) -> Told {
        let mut told = None;
        wait_for("the bus to tell something", || {
            told = self.probe.next();
            told.is_some()
        });
        told.unwrap()
    }

    fn message(&self) -> String {
        match self.told() {
            Told::Message(message) => String::from_utf8(message.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn publish(&mut self, topic: &str, message: &str) -> Result<(), NotSent> {
        self.bus.publish(topic, message.as_bytes())
    }

    /// Waits until the server knows of all subscriptions: it has, when something published after them has come back.
    fn settle(&mut self) {
        self.bus.subscribe("settle");
        self.publish("settle", "settled").unwrap();
        assert_eq!(self.message(), "settled");
        self.bus.unsubscribe("settle");
    }

    /// Waits until the connection was found to be lost, if `after`, or the first one was made.
    fn waits_for(&self, expected: &Told) {
        wait_for("the connection to come or go", || {
            loop {
                match self.probe.next() {
                    Some(told) if told == *expected => return true,
                    Some(_) => {}
                    None => return false,
                }
            }
        });
    }

    /// It doesn't come in, and says why.
    fn fails_with(&self, reason: &str) {
        let said = || self.status.last_error().unwrap_or_default();
        wait_for("an error", || said().contains(reason));
        let errors = self.status.counts().errors;
        wait_for("another attempt", || self.status.counts().errors > errors + 1);
        assert!(!self.status.is_connected() && !self.status.was_connected());
        assert_eq!(self.probe.next(), None);
    }
}

fn to(server: &Server) -> NatsConfig {
    NatsConfig::new([server.url()])
}

fn with_auth(server: &Server, auth: NatsAuth) -> NatsConfig {
    let mut config = to(server);
    config.auth = auth;
    config
}

/// Whether a message of one reaches the other. It is tried again, as the other may not have come back yet.
fn reaches(from: &mut Node, to: &Node, topic: &str) {
    wait_for("a message to arrive", || {
        let _ = from.publish(topic, "again");
        thread::sleep(Duration::from_millis(5));
        std::iter::from_fn(|| to.probe.next()).any(|it| it == Told::Message("again".into()))
    });
}

#[test]
fn messages_reach_those_who_subscribe_in_order() {
    let Some(server) = Server::start() else { return };
    let mut a = Node::connect(&to(&server), &["shop.all", "shop.0033"]);
    let b = Node::connect(&to(&server), &["shop.all"]);
    let c = Node::connect(&to(&server), &["shop", "shop.0034", "shop.all.more", "other.all"]);
    for i in 0..1000 {
        a.publish("shop.0033", &format!("bucket {i}")).unwrap();
        a.publish("shop.all", &format!("all {i}")).unwrap();
    }
    a.publish("other.all", "last").unwrap();
    let mut heard = [Vec::new(), Vec::new()];
    for _ in 0..2000 {
        let message = a.message();
        heard[usize::from(message.starts_with("all"))].push(message);
    }
    // Of one topic in order; of several, as they come.
    for (i, (bucket, all)) in heard[0].iter().zip(&heard[1]).enumerate() {
        assert_eq!(*bucket, format!("bucket {i}"));
        assert_eq!(*all, format!("all {i}"));
        assert_eq!(b.message(), format!("all {i}"));
    }
    assert_eq!((heard[0].len(), heard[1].len()), (1000, 1000));
    assert_eq!(c.message(), "last");
    assert_eq!((a.probe.next(), b.probe.next(), c.probe.next()), (None, None, None));
    let counts = a.status.counts();
    assert_eq!((counts.published, counts.received), (2002, 2001), "with what settled");
    assert_eq!((counts.not_sent, counts.errors, counts.slow), (0, 0, 0));
    assert_eq!((b.status.counts().received, c.status.counts().received), (1001, 2));
}

#[test]
fn bytes_are_as_they_were() {
    let Some(server) = Server::start() else { return };
    let mut node = Node::connect(&to(&server), &["a"]);
    let large: Vec<u8> = (0..64 * 1024).map(|i| (i % 251) as u8).collect();
    for message in [&b""[..], b"\r\n", b"\0\xff", &large] {
        node.bus.publish("a", message).unwrap();
        assert_eq!(node.told(), Told::Message(message.to_vec().into()));
    }
}

#[test]
fn unsubscribed_and_subscribed_again() {
    let Some(server) = Server::start() else { return };
    let mut a = Node::connect(&to(&server), &["a", "b"]);
    let mut b = Node::connect(&to(&server), &[]);
    b.publish("a", "1").unwrap();
    assert_eq!(a.message(), "1");
    a.bus.unsubscribe("a");
    a.bus.unsubscribe("never subscribed");
    wait_for("a to be heard no more", || {
        b.publish("a", "2").unwrap();
        b.publish("b", "then").unwrap();
        let first = a.message();
        first == "then" || a.message() != "then"
    });
    let received = a.status.counts().received;
    b.publish("a", "3").unwrap();
    b.publish("b", "4").unwrap();
    assert_eq!(a.message(), "4");
    assert_eq!(a.status.counts().received, received + 1, "the server sends it no more");
    a.bus.subscribe("a");
    a.settle();
    b.publish("a", "5").unwrap();
    assert_eq!(a.message(), "5");
}

#[test]
fn a_server_may_come_later() {
    let Some(mut server) = Server::prepare() else { return };
    // More topics than async-nats keeps before it is connected, most of them of no interest by then.
    let topics: Vec<_> = (0..2000).map(|i| format!("a.{i}")).collect();
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    let mut node = Node::start(&to(&server), &topics);
    for topic in &topics[..1999] {
        node.bus.unsubscribe(topic);
    }
    node.fails_with("refused");
    assert_eq!(node.publish("a.1999", "too early"), Err(NotSent));
    server.resume();
    assert_eq!(node.told(), Told::Connected);
    assert!(node.status.is_connected() && node.status.was_connected());
    assert_eq!(node.status.last_error(), None);
    node.settle();
    node.publish("a.0", "nobody hears this").unwrap();
    node.publish("a.1999", "now").unwrap();
    assert_eq!(node.message(), "now");
    assert_eq!(node.status.counts().reconnects, 0);
}

#[test]
fn a_server_is_killed_and_comes_back() {
    let Some(mut server) = Server::start() else { return };
    let mut a = Node::connect(&to(&server), &["a", "b"]);
    let mut b = Node::connect(&to(&server), &["a", "b"]);
    for round in 1..=3 {
        server.kill();
        a.waits_for(&Told::Disconnected);
        b.waits_for(&Told::Disconnected);
        assert!(!a.status.is_connected() && a.status.was_connected());
        let before = a.status.counts();
        let large = "x".repeat(64 * 1024);
        for _ in 0..1000 {
            assert_eq!(a.publish("a", &large), Err(NotSent));
        }
        assert_eq!(a.status.counts().not_sent, before.not_sent + 1000);
        // What becomes of interest while there is no server.
        a.bus.unsubscribe("b");
        a.bus.subscribe(&format!("c.{round}"));
        wait_for("the reason", || {
            a.status.last_error().is_some_and(|it| it.contains("refused"))
        });
        server.resume();
        assert_eq!(a.told(), Told::Connected);
        assert_eq!(b.told(), Told::Connected);
        reaches(&mut b, &a, "a");
        reaches(&mut a, &b, "a");
        reaches(&mut b, &a, &format!("c.{round}"));
        assert_eq!(a.status.counts().reconnects, round);
        a.bus.subscribe("b");
        reaches(&mut b, &a, "b");
    }
}

#[test]
fn what_was_published_to_a_lost_connection_does_not_pile_up() {
    let Some(mut server) = Server::start() else { return };
    let mut a = Node::connect(&to(&server), &["a"]);
    // It takes nothing any more, and says nothing.
    server.signal("STOP");
    let message = "x".repeat(64 * 1024);
    let (mut accepted, mut refused, mut refused_in_a_row) = (0, 0, 0);
    while refused_in_a_row < 50 && accepted < 10_000 {
        if a.publish("a", &message).is_ok() {
            (accepted, refused_in_a_row) = (accepted + 1, 0);
        } else {
            (refused, refused_in_a_row) = (refused + 1, refused_in_a_row + 1);
            thread::sleep(Duration::from_millis(2));
        }
    }
    assert!(accepted < 10_000, "{accepted} messages of 64 KiB");
    // It is found to be dead, although no connection was closed.
    a.waits_for(&Told::Disconnected);
    // What waited is dropped; the rest is with the system, or async-nats.
    wait_for("what waited to be dropped", || {
        let counts = a.status.counts();
        // With what settled.
        counts.not_sent > refused + 100 && counts.published + counts.not_sent == 1 + accepted + refused
    });
    server.kill();
    server.resume();
    assert_eq!(a.told(), Told::Connected);
    a.publish("a", "new").unwrap();
    let mut stale = 0;
    while a.message() != "new" {
        stale += 1;
    }
    assert!(stale <= 300, "{stale} of {accepted}");
}

#[test]
fn too_large_messages() {
    let Some(server) = Server::start_with("max_payload: 1000") else {
        return;
    };
    let mut node = Node::connect(&to(&server), &["a"]);
    assert_eq!(node.publish("a", &"x".repeat(1001)), Err(NotSent));
    assert_eq!(node.publish("a", &"x".repeat(100_000)), Err(NotSent));
    node.publish("a", &"x".repeat(1000)).unwrap();
    assert_eq!(node.message().len(), 1000);
    let counts = node.status.counts();
    assert_eq!((counts.not_sent, counts.errors, counts.reconnects), (2, 0, 0));
}

#[test]
fn what_is_no_subject_goes_nowhere() {
    let Some(server) = Server::start() else { return };
    let mut node = Node::connect(&to(&server), &["*", ">", "a b", "a\r\nPING"]);
    for topic in ["*", ">", "a b", "a\r\nPING", "", "a..b"] {
        assert_eq!(node.publish(topic, "1"), Err(NotSent));
    }
    node.publish("a", "nobody hears this").unwrap();
    node.settle();
    assert_eq!(node.status.counts().errors, 0);
}

#[test]
fn stop_sends_what_was_published() {
    let Some(server) = Server::start() else { return };
    for _ in 0..5 {
        let reader = Node::connect(&to(&server), &["a"]);
        // It hears of it, too: what comes in meanwhile must not keep what goes out from arriving.
        let mut writer = Node::connect(&to(&server), &["a"]);
        let mut accepted = 0;
        let text = "x".repeat(1000);
        while accepted < 10_000 && writer.publish("a", &format!("{accepted} {text}")).is_ok() {
            accepted += 1;
        }
        writer.bus.stop(PATIENCE);
        assert_eq!(writer.publish("a", "late"), Err(NotSent));
        assert!(!writer.status.is_connected());
        assert_eq!(writer.status.counts().published, accepted + 1, "with what settled");
        for i in 0..accepted {
            assert_eq!(reader.message(), format!("{i} {text}"));
        }
    }
}

#[test]
fn stop_takes_no_longer_than_it_may() {
    let Some(mut server) = Server::start() else { return };
    let mut node = Node::connect(&to(&server), &["a"]);
    server.signal("STOP");
    for _ in 0..1000 {
        let _ = node.publish("a", &"x".repeat(64 * 1024));
    }
    let start = Instant::now();
    node.bus.stop(Duration::from_millis(300));
    assert!(start.elapsed() < PATIENCE / 2);
    server.kill();
    server.resume();

    // Not connected: there is nothing to wait for.
    let mut node = Node::connect(&to(&server), &["a"]);
    server.kill();
    node.waits_for(&Told::Disconnected);
    let start = Instant::now();
    node.bus.stop(PATIENCE * 10);
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn what_the_server_forbids_is_said_and_counted() {
    let permissions = "permissions { publish: [\"a\", \"settle\"], subscribe: [\"a\", \"settle\"] }";
    let config = format!("authorization {{ users: [ {{ user: ann, password: pw, {permissions} }} ] }}");
    let Some(server) = Server::start_with(&config) else {
        return;
    };
    let auth = NatsAuth::UserPassword {
        user: "ann".to_owned(),
        password: "pw".to_owned(),
    };
    let reader = Node::connect(&with_auth(&server, auth.clone()), &["a"]);
    let mut node = Node::connect(&with_auth(&server, auth), &["a"]);
    node.publish("b", "1").unwrap();
    wait_for("an error", || node.status.counts().errors == 1);
    let said = node.status.last_error().unwrap();
    assert!(said.contains("Permissions Violation for Publish to \"b\""), "{said}");
    node.bus.subscribe("c");
    wait_for("another error", || node.status.counts().errors == 2);
    // All else goes on.
    node.publish("a", "2").unwrap();
    assert_eq!(node.message(), "2");
    // It can't say here-and-back with a subject of its own, and yet is soon gone, and all is there.
    for i in 0..1000 {
        node.publish("a", &i.to_string()).unwrap();
    }
    let start = Instant::now();
    node.bus.stop(PATIENCE * 10);
    assert!(start.elapsed() < PATIENCE);
    assert_eq!(reader.message(), "2");
    for i in 0..1000 {
        assert_eq!(reader.message(), i.to_string());
    }
}

#[test]
fn a_server_that_is_about_to_close_is_left_for_another() {
    // It would close connections only after minutes.
    let lame = "lame_duck_duration: \"20m\"\nlame_duck_grace_period: \"10m\"";
    let Some(first) = Server::start_with(lame) else { return };
    let Some(mut second) = Server::prepare() else { return };
    let mut config = NatsConfig::new([first.url(), second.url()]);
    config.only_these_servers = true;
    let mut node = Node::connect(&config, &["a"]);
    second.resume();
    let mut other = Node::connect(&to(&second), &["a"]);
    first.signal("USR2");
    assert_eq!(node.told(), Told::Disconnected);
    assert_eq!(node.told(), Told::Connected);
    reaches(&mut other, &node, "a");
    reaches(&mut node, &other, "a");
    assert_eq!(node.status.counts().reconnects, 1);

    // If there is no other, it is stayed with.
    let alone = Server::start_with(lame).unwrap();
    let mut node = Node::connect(&to(&alone), &["a"]);
    alone.signal("USR2");
    thread::sleep(Duration::from_millis(1500));
    node.publish("a", "1").unwrap();
    assert_eq!(node.message(), "1");
    assert_eq!(node.status.counts().reconnects, 0);
}

/// Something that speaks the protocol until it doesn't.
struct Scripted(TcpListener);

impl Scripted {
    /// The next connection, up to its first subscription.
    fn accept(&self) -> TcpStream {
        let (mut stream, _) = self.0.accept().unwrap();
        stream.write_all(b"INFO {\"max_payload\":1000}\r\n").unwrap();
        talk(&mut stream, b"PING\r\n");
        stream.write_all(b"PONG\r\n").unwrap();
        talk(&mut stream, b"SUB a 1\r\n");
        stream
    }
}

#[test]
fn bad_answers_are_survived() {
    let server = Scripted(TcpListener::bind("127.0.0.1:0").unwrap());
    let url = format!("nats://{}", server.0.local_addr().unwrap());
    let node = Node::start(&NatsConfig::new([url]), &["a"]);
    // On the first two async-nats panics.
    for bad in [
        "-ERR\r\n",
        "-ERR\r\n",
        "MSG a\r\n",
        "\0\r\n",
        "INFO {\r\n",
        "MSG a 1 x\r\n",
    ] {
        let mut stream = server.accept();
        assert_eq!(node.told(), Told::Connected);
        stream
            .write_all(b"MSG a 1 4\r\ngood\r\nMSG other 7 4\r\nlost\r\n")
            .unwrap();
        assert_eq!(node.message(), "good");
        stream.write_all(bad.as_bytes()).unwrap();
        assert_eq!(node.told(), Told::Disconnected);
    }
    // Instead of a greeting.
    for bad in ["-ERR\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", ""] {
        let (mut stream, _) = server.0.accept().unwrap();
        stream.write_all(bad.as_bytes()).unwrap();
    }
    let _stream = server.accept();
    assert_eq!(node.told(), Told::Connected);
    assert_eq!(node.status.counts().reconnects, 6);
}

/// Messages come faster for a while than they should ever be. `--nocapture` shows how fast that is.
#[test]
fn a_flood_is_taken() {
    const COUNT: u64 = 1_500_000;
    // Or else the server might find that we are slow, where this machine is.
    let Some(server) = Server::start_with("max_pending: 1GB") else {
        return;
    };
    let mut writer = Node::connect(&to(&server), &[]);
    let reader = Node::connect(&to(&server), &["shop.0033"]);
    let start = Instant::now();
    for _ in 0..COUNT {
        while writer.bus.publish("shop.0033", &[7; 40]).is_err() {
            thread::sleep(Duration::from_micros(200));
        }
    }
    wait_for("all to arrive", || {
        while reader.probe.next().is_some() {}
        let counts = reader.status.counts();
        assert_eq!(counts.slow, 0, "{counts:?}");
        counts.received == COUNT + 1
    });
    let seconds = start.elapsed().as_secs_f64();
    println!("{COUNT} messages of 40 bytes: {:.0} a second", COUNT as f64 / seconds);
}
