//! The engine under trouble, on real sockets: slow and hanging resolvers, clients that stop reading, limits, hand-over
//! from another accept loop, and orderly ends.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use entity_sync_mio::{
    Adopted, Audience, AudienceRule, Config, DrainOptions, Entities, EntityKey, EntityOptions, Pool, PoolConfig,
    ReadError, Reply, Request, Rows, Selector, Server,
};
use entity_sync_tests::{Client, PATIENCE, talk, wait_for};

fn config(reactors: usize) -> Config {
    let mut config = Config::new(["127.0.0.1:0".parse().unwrap()]);
    config.reactors = NonZeroUsize::new(reactors).unwrap();
    config
}

fn key(id: &str) -> EntityKey {
    EntityKey::new("items", id).unwrap()
}

fn notify(server: &Server, id: &str) {
    server.handle().notify(&key(id)).unwrap();
}

/// Clients, subscribed to one id each.
fn clients<'a>(server: &Server, ids: impl IntoIterator<Item = &'a str>) -> Vec<Client> {
    let connect = |id| {
        let mut client = Client::connect(server.addresses()[0]);
        client.subscribe("items", id);
        client
    };
    let mut clients: Vec<_> = ids.into_iter().map(connect).collect();
    for client in &mut clients {
        client.sync();
    }
    clients
}

#[test]
fn a_slow_resolver_runs_a_handful_of_times() {
    const READ: Duration = Duration::from_millis(50);
    let state = Arc::new(AtomicU64::new(0));
    let of_resolver = state.clone();
    let pool = Pool::new(PoolConfig::default()).unwrap();
    let resolver = pool.resolver(move |_: &Request| {
        let row = of_resolver.load(Ordering::SeqCst).to_string();
        std::thread::sleep(READ);
        Ok(Rows::one(row))
    });
    let server = Server::start(config(2), resolver).unwrap();
    let mut clients = clients(&server, ["100"; 1000]);
    let began = Instant::now();
    for _ in 0..200 {
        state.fetch_add(1, Ordering::SeqCst);
        notify(&server, "100");
        std::thread::sleep(Duration::from_millis(1));
    }
    for client in &mut clients {
        client.rows_until("200");
    }
    let reads = server.handle().counters().reads.get();
    // As many as fit one after the other, and the one that is owed.
    let most = began.elapsed().as_nanos() / READ.as_nanos() + 2;
    assert!(u128::from(reads) <= most, "{reads} reads");
    println!("200 notifies, 1,000 subscribers of one audience: {reads} reads");
    assert!(reads >= 2);
}

#[test]
fn a_read_that_hangs_for_ever_delays_no_other_key() {
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let pool = Pool::new(PoolConfig {
        threads: 2,
        hung_after: Duration::from_millis(50),
        ..PoolConfig::default()
    })
    .unwrap();
    let resolver = pool.resolver(move |request: &Request| {
        if request.key.id() == "stuck" {
            // Until the test is over.
            let _ = released.lock().unwrap().recv();
            return Err(ReadError::Failed);
        }
        Ok(Rows::one(request.key.id().to_owned()))
    });
    let mut config = config(1);
    config.core.read_time_limit = Duration::from_millis(50);
    config.core.retry_first = Duration::from_millis(5);
    config.core.retry_max = Duration::from_millis(20);
    let mut options = EntityOptions::default();
    options.max_running_reads = 1;
    config.core.entities = Entities::any(options);
    let server = Server::start(config, resolver).unwrap();
    let _stuck = clients(&server, ["stuck"]);
    notify(&server, "stuck");
    wait_for("the read to be given up again and again", || {
        server.handle().counters().timed_out_reads.get() >= 1 && pool.counters().refused >= 3
    });
    // Of the same entity, which may have but one read running.
    let ids: Vec<String> = (0..50).map(|id| id.to_string()).collect();
    let mut others = clients(&server, ids.iter().map(String::as_str));
    for (client, id) in others.iter_mut().zip(&ids) {
        notify(&server, id);
        assert_eq!(client.row(), *id);
    }
    let counters = pool.counters();
    assert_eq!((counters.hung, counters.hung_ever), (1, 1), "{counters:?}");
    drop(release);
}

#[test]
fn a_stuck_client_holds_up_nobody_and_ends_with_the_newest_state_of_a_thousand_keys() {
    const KEYS: usize = 1000;
    const ROUNDS: usize = 4;
    let row = |id: usize, round: usize| format!("{id} {round} {}", "x".repeat(16 * 1024));
    let rounds: Arc<Vec<AtomicU64>> = Arc::new((0..KEYS).map(|_| AtomicU64::new(0)).collect());
    let of_resolver = rounds.clone();
    let mut config = config(1);
    let mut options = EntityOptions::default();
    options.audience = AudienceRule::Public;
    config.core.entities = Entities::any(options);
    let server = Server::start(config, move |request: Request, reply: Reply| {
        let id: usize = request.key.id().parse().unwrap();
        let round = of_resolver[id].load(Ordering::SeqCst) as usize;
        reply.rows(Rows::one(row(id, round))).unwrap();
    })
    .unwrap();
    let address = server.addresses()[0];
    let (mut stuck, mut fast) = (Client::connect(address), Client::connect(address));
    for client in [&mut stuck, &mut fast] {
        for id in 0..KEYS {
            client.subscribe("items", &id.to_string());
        }
        client.sync();
    }
    for round in 1..=ROUNDS {
        for id in 0..KEYS {
            rounds[id].store(round as u64, Ordering::SeqCst);
            notify(&server, &id.to_string());
            // Nobody waits for the one that doesn't read.
            assert_eq!(fast.row(), row(id, round));
        }
    }
    let counts = server.handle().shard_counts();
    // What it costs meanwhile is the simulator's to assert, at each step.
    assert!(counts.dirty_marks > 0, "the outbox was never full");
    // Now it reads, and ends with the newest state of every key.
    let mut newest = HashMap::new();
    while newest.len() < KEYS {
        let text = stuck.row();
        let mut parts = text.split(' ').map(|part| part.parse::<usize>());
        let (id, round) = (parts.next().unwrap().unwrap(), parts.next().unwrap().unwrap());
        assert_eq!(text, row(id, round));
        if round == ROUNDS {
            newest.insert(id, round);
        } else {
            assert!(!newest.contains_key(&id), "an older state of {id} after the newest");
        }
    }
    assert_eq!(server.handle().shard_counts().connections, 2);
}

/// An accept loop that is not ours: it reads the request, and hands the connection over.
fn adopt_from(listener: &TcpListener, server: &Server, is_upgraded: bool, secret: Option<Arc<str>>) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut received = talk(&mut stream, b"\r\n\r\n");
    if is_upgraded {
        let end = received.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
        received.drain(..end);
        // What an HTTP stack would have answered; the key is the one that the test sends.
        stream
            .write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
            )
            .unwrap();
    }
    let mut adopted = Adopted::new(stream);
    (adopted.received, adopted.is_upgraded, adopted.secret) = (received, is_upgraded, secret);
    server.handle().adopt(adopted).unwrap();
}

#[test]
fn connections_accepted_elsewhere_are_served_with_what_was_read_from_them() {
    let mut config = config(2);
    // Nothing of its own.
    config.listen.clear();
    let server = Server::start(config, |_: Request, reply: Reply| {
        reply.rows(Rows::one("row")).unwrap();
    })
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for is_upgraded in [false, true, false, true] {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let subscribe = br#"{"action":"subscribe","body":{"entity":"items","id":"1"}}"#;
        let mut all =
            b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                .to_vec();
        // The frame comes in the same segment, and so is among what was read.
        all.extend([0x81, 0x80 | subscribe.len() as u8, 0, 0, 0, 0]);
        all.extend(subscribe);
        client.write_all(&all).unwrap();
        adopt_from(&listener, &server, is_upgraded, None);
        assert!(talk(&mut client, b"\r\n\r\n").starts_with(b"HTTP/1.1 101 "));
        wait_for("the subscription", || server.handle().shard_counts().subscriptions == 1);
        notify(&server, "1");
        assert_eq!(talk(&mut client, b"row"), b"\x81\x03row");
        drop(client);
        wait_for("the end of the connection", || server.handle().flights() == 0);
    }
    assert_eq!(server.handle().reactor_counts().adopted, 4);
    // A server that has ended gives the connection back.
    let handle = server.handle().clone();
    drop(server);
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let error = handle.adopt(Adopted::new(client)).unwrap_err();
    assert!(error.adopted.stream.peer_addr().is_ok(), "{error}");
}

#[test]
fn whoever_accepts_a_connection_may_say_who_it_is_and_the_client_can_not() {
    let mut config = config(1);
    config.listen.clear();
    let server = Server::start(config, |request: Request, reply: Reply| {
        assert!(
            !format!("{request:?}").contains("alice"),
            "a secret in what may be logged"
        );
        let Audience::Secret(secret) = request.audience else {
            panic!("{request:?}")
        };
        reply.rows(Rows::one(format!("for {secret}"))).unwrap();
    })
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    for (fixed, row) in [(Some("alice"), "for alice"), (Some(""), "for "), (None, "for mallory")] {
        let connecting = std::thread::spawn(move || Client::connect(address));
        adopt_from(&listener, &server, false, fixed.map(Into::into));
        let mut client = connecting.join().unwrap();
        client.secret("mallory");
        client.subscribe("items", "1");
        client.sync();
        notify(&server, "1");
        assert_eq!(client.row(), row);
        drop(client);
        wait_for("the end of the connection", || server.handle().flights() == 0);
    }
    assert_eq!(server.handle().shard_counts().rejected_messages, 2);
}

#[test]
fn draining_says_when_to_come_back_and_takes_its_time() {
    let server = Server::start(config(2), |_: Request, _: Reply| {}).unwrap();
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(server.addresses()[0])).collect();
    clients.iter_mut().for_each(|client| drop(client.sync()));
    let handle = server.handle().clone();
    let mut options = DrainOptions::default();
    options.over = Duration::from_millis(400);
    let draining = std::thread::spawn(move || server.drain(options, Duration::MAX));
    for client in &mut clients {
        let (code, reason) = client.close_frame().unwrap();
        assert_eq!(code, 1012);
        let ms = reason.strip_prefix("retry in ").and_then(|it| it.strip_suffix(" ms"));
        let ms: u64 = ms.unwrap_or_else(|| panic!("{reason:?}")).parse().unwrap();
        assert!(ms < 5000);
    }
    drop(clients);
    draining.join().unwrap();
    assert_eq!(handle.shard_counts().connections, 0);
}

#[test]
fn the_application_drops_and_re_reads_by_secret_key_and_client() {
    let (says, said) = mpsc::channel();
    let says = Mutex::new(says);
    let mut config = config(2);
    config.core.on_message = Some(Arc::new(move |message| {
        says.lock()
            .unwrap()
            .send((message.client(), message.secret().to_owned()))
            .unwrap();
    }));
    let reads = Arc::new(AtomicU64::new(0));
    let counted = reads.clone();
    let server = Server::start(config, move |request: Request, reply: Reply| {
        let number = counted.fetch_add(1, Ordering::SeqCst);
        reply.rows(Rows::one(format!("{} {number}", request.key.id()))).unwrap();
    })
    .unwrap();
    let mut clients: Vec<_> = (0..8).map(|_| Client::connect(server.addresses()[0])).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.secret(if index % 2 == 0 { "even" } else { "odd" });
        client.subscribe("items", "1");
        client.sync();
    }
    let handle = server.handle();
    // One read for all of them, on both reactors.
    handle.reread(&Selector::Secret("even".into()));
    for client in clients.iter_mut().step_by(2) {
        assert!(client.row().starts_with("1 "));
    }
    assert!(reads.load(Ordering::SeqCst) <= 2, "at most one for each reactor");
    for client in clients.iter_mut().skip(1).step_by(2) {
        assert_eq!(client.sync(), Vec::<String>::new());
    }
    // A client that has said something can be answered, and sent away.
    clients[0].send(r#"{"hello":1}"#);
    let (client, secret) = said.recv_timeout(PATIENCE).unwrap();
    assert_eq!(secret, "even");
    client.send_text("hello yourself").unwrap();
    assert_eq!(clients[0].row(), "hello yourself");
    handle.reread(&Selector::Client(client.id()));
    assert!(clients[0].row().starts_with("1 "));
    assert!(client.close(1005, "").is_err(), "no code to be sent");
    client.close(4001, "bye").unwrap();
    assert_eq!(clients[0].close_frame(), Some((4001, "bye".to_owned())));
    // Subscriptions end without a word.
    handle.unsubscribe(&Selector::Secret("odd".into()));
    clients[1].sync();
    notify(&server, "1");
    assert!(clients[2].row().starts_with("1 "));
    wait_for("the others to be unsubscribed", || {
        handle.shard_counts().subscriptions == 3
    });
    assert_eq!(clients[1].sync(), Vec::<String>::new());
    handle.disconnect(&Selector::Key(key("1")), 4002, "").unwrap();
    for client in clients.iter_mut().skip(2).step_by(2) {
        assert_eq!(client.close_frame(), Some((4002, String::new())));
    }
    assert_eq!(clients[3].sync(), Vec::<String>::new(), "it was not subscribed");
}

#[test]
fn refusals_are_dated() {
    let server = Server::start(config(1), |_: Request, _: Reply| {}).unwrap();
    let mut stream = TcpStream::connect(server.addresses()[0]).unwrap();
    stream
        .write_all(b"GET /nope HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let answer = String::from_utf8(talk(&mut stream, b"404 page not found\n")).unwrap();
    let date = answer.lines().find_map(|line| line.strip_prefix("Date: ")).unwrap();
    // Sun, 06 Nov 1994 08:49:37 GMT
    assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
}

#[test]
fn addresses_and_totals_are_limited() {
    let mut config = config(2);
    config.core.max_connections = 3;
    let server = Server::start(config, |_: Request, _: Reply| {}).unwrap();
    let address = server.addresses()[0];
    let is_refused = |address: SocketAddr| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // A refused one ends without a word.
        matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_))
    };
    let mut clients: Vec<_> = (0..3).map(|_| Client::connect(address)).collect();
    assert!(is_refused(address));
    assert_eq!(server.handle().shard_counts().refused_connections, 1);
    // Those that are served stay served, and an end makes room.
    clients.pop();
    wait_for("room", || server.handle().shard_counts().connections == 2);
    clients.push(Client::connect(address));
    clients.iter_mut().for_each(|client| drop(client.sync()));

    let mut config = self::config(2);
    config.core.max_connections_per_address = 2;
    let server = Server::start(config, |_: Request, _: Reply| {}).unwrap();
    let address = server.addresses()[0];
    let clients: Vec<_> = (0..2).map(|_| Client::connect(address)).collect();
    assert!(is_refused(address));
    drop(clients);
    wait_for("room", || server.handle().shard_counts().connections == 0);
    Client::connect(address).sync();
}

#[test]
fn those_that_wait_to_be_accepted_are_served_in_time() {
    let mut config = config(1);
    config.core.max_upgrading = 4;
    config.core.max_accepts_per_second = 200;
    let server = Server::start(config, |_: Request, _: Reply| {}).unwrap();
    let address = server.addresses()[0];
    // These say nothing, and take all places of those that upgrade.
    let mute: Vec<_> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
    wait_for("them to be accepted", || server.handle().shard_counts().opened == 4);
    let threads: Vec<_> = (0..100)
        .map(|_| std::thread::spawn(move || drop(Client::connect(address).sync())))
        .collect();
    wait_for("accepting to pause", || {
        server.handle().reactor_counts().accept_pauses > 0
    });
    assert_eq!(server.handle().shard_counts().opened, 4);
    drop(mute);
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(server.handle().shard_counts().opened, 104);
}
