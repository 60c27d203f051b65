//! The mio adapter, on real sockets.

use std::collections::HashMap;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use entity_sync_mio::{
    Config, Entities, EntityKey, EntityOptions, ReadError, Reply, Request, Rows, Server, StartError,
};
use entity_sync_tests::{Client, talk, wait_for};

/// A server whose resolver looks into a map.
struct World {
    server: Server,
    rows: Arc<Mutex<HashMap<String, String>>>,
    reads: Arc<AtomicU64>,
}

impl World {
    fn start(reactors: usize) -> Self {
        Self::start_with(config(reactors))
    }

    fn start_with(config: Config) -> Self {
        let rows = Arc::new(Mutex::new(HashMap::<String, String>::new()));
        let reads = Arc::new(AtomicU64::new(0));
        let (of_resolver, counted) = (rows.clone(), reads.clone());
        let server = Server::start(config, move |request: Request, reply: Reply| {
            counted.fetch_add(1, Ordering::SeqCst);
            let row = of_resolver.lock().unwrap().get(request.key.id()).cloned();
            reply.rows(row.into_iter().collect::<Rows>()).unwrap();
        })
        .unwrap();
        Self { server, rows, reads }
    }

    fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
    }

    fn put(&self, id: &str, row: &str) {
        self.rows.lock().unwrap().insert(id.to_owned(), row.to_owned());
        self.server
            .handle()
            .notify(&EntityKey::new("items", id).unwrap())
            .unwrap();
    }
}

fn config(reactors: usize) -> Config {
    let mut config = Config::new(["127.0.0.1:0".parse().unwrap()]);
    config.reactors = NonZeroUsize::new(reactors).unwrap();
    config
}

#[test]
fn a_thousand_clients_on_two_reactors_see_every_put() {
    let world = World::start(2);
    let mut clients: Vec<_> = (0..1000).map(|_| Client::connect(world.address())).collect();
    for client in &mut clients {
        client.subscribe("items", "100");
    }
    for client in &mut clients {
        client.sync();
    }
    for round in 0..10 {
        let row = format!(r#"{{"round":{round}}}"#);
        world.put("100", &row);
        for client in &mut clients {
            assert_eq!(client.row(), row);
        }
    }
    assert_eq!(world.reads.load(Ordering::SeqCst), 10, "one read serves all");

    // As fast as it goes, states in between may be skipped, the last one never.
    for round in 10..1000 {
        world.put("100", &format!(r#"{{"round":{round}}}"#));
    }
    for client in &mut clients {
        client.rows_until(r#"{"round":999}"#);
    }
}

#[test]
fn a_client_that_stops_reading_holds_up_nobody() {
    let world = World::start(1);
    let mut stuck = Client::connect(world.address());
    let mut fast = Client::connect(world.address());
    for client in [&mut stuck, &mut fast] {
        client.subscribe("items", "big");
        client.sync();
    }
    let row = |round: usize| format!("{round} {}", "x".repeat(64 * 1024));
    for round in 0..300 {
        world.put("big", &row(round));
        assert_eq!(fast.row(), row(round));
    }
    let received = stuck.rows_until(&row(299));
    assert!(received < 300, "all {received} rows were kept for it");
}

#[test]
fn failing_reads_are_tried_again_until_one_succeeds() {
    let attempts = Arc::new(AtomicU64::new(0));
    let counted = attempts.clone();
    let mut config = config(1);
    config.core.retry_first = Duration::from_millis(10);
    let server = Server::start(config, move |_: Request, reply: Reply| {
        match counted.fetch_add(1, Ordering::SeqCst) {
            0 => reply.fail(ReadError::Failed),
            1 => drop(reply),
            2 => assert!(reply.rows(Rows::one(&b"\xff"[..])).is_err()),
            // Never answered: the time limit of 5 s would be too long for a test, so it is shorter above.
            _ => reply.rows(Rows::one("at last")).unwrap(),
        }
    })
    .unwrap();
    let mut client = Client::connect(server.addresses()[0]);
    client.subscribe("items", "1");
    client.sync();
    server.handle().notify(&EntityKey::new("items", "1").unwrap()).unwrap();
    assert_eq!(client.row(), "at last");
    assert_eq!(attempts.load(Ordering::SeqCst), 4);
    assert_eq!(server.handle().counters().failed_reads.get(), 3);
}

#[test]
fn reads_that_are_answered_together_are_all_answered() {
    let keys: Vec<_> = (0..200)
        .map(|id: u32| EntityKey::new("items", &id.to_string()).unwrap())
        .collect();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kept = asked.clone();
    let mut config = config(2);
    let mut options = EntityOptions::default();
    options.max_running_reads = keys.len();
    config.core.entities = Entities::any(options);
    let server = Server::start(config, move |request: Request, reply: Reply| {
        kept.lock().unwrap().push((request, reply));
    })
    .unwrap();
    let mut clients = [(); 4].map(|()| Client::connect(server.addresses()[0]));
    for client in &mut clients {
        for key in &keys {
            client.subscribe("items", key.id());
        }
        client.sync();
    }
    server.handle().notify_many(&keys).unwrap();
    let asked = std::mem::take(&mut *asked.lock().unwrap());
    assert_eq!(asked.len(), 200);
    // Every tenth fails, and what can't be sent is no worse.
    Reply::answer_all(asked.into_iter().map(|(request, reply)| {
        let id = request.key.id().to_owned();
        let rows = match id.as_bytes() {
            [.., b'0'] => Err(ReadError::Failed),
            [.., b'5'] => Ok(Rows::one(&b"\xff"[..])),
            _ => Ok(Rows::one(id)),
        };
        (reply, rows)
    }));
    for client in &mut clients {
        let mut rows: Vec<u32> = (0..160).map(|_| client.row().parse().unwrap()).collect();
        rows.sort_unstable();
        assert!(rows.into_iter().eq((0..200).filter(|id| id % 5 != 0)));
    }
    assert_eq!(server.handle().counters().failed_reads.get(), 40);
}

#[test]
fn a_read_that_hangs_is_given_up_and_its_late_answer_discarded() {
    let (send, held) = std::sync::mpsc::channel();
    let mut config = config(1);
    config.core.read_time_limit = Duration::from_millis(50);
    config.core.retry_first = Duration::from_millis(10);
    let server = Server::start(config, move |request: Request, reply: Reply| {
        // The first read hangs.
        let _ = send.send((request, reply));
    })
    .unwrap();
    let mut client = Client::connect(server.addresses()[0]);
    client.subscribe("items", "1");
    client.sync();
    server.handle().notify(&EntityKey::new("items", "1").unwrap()).unwrap();
    let (_, first) = held.recv().unwrap();
    let (_, second) = held.recv().unwrap();
    first.rows(Rows::one("late")).unwrap();
    second.rows(Rows::one("in time")).unwrap();
    // The second may have been given up in its turn on a slow machine; its successors say the same.
    let answers = std::thread::spawn(move || {
        while let Ok((_, reply)) = held.recv() {
            reply.rows(Rows::one("in time")).unwrap();
        }
    });
    assert_eq!(client.row(), "in time");
    assert!(server.handle().counters().late_reads.get() >= 1);
    drop(client);
    drop(server);
    answers.join().unwrap();
}

#[test]
fn silent_peers_are_pinged_and_then_cut_off() {
    let mut config = config(1);
    config.core.ping_interval = Duration::from_millis(50);
    config.core.dead_after = Duration::from_millis(200);
    config.core.upgrade_time_limit = Duration::from_millis(200);
    let world = World::start_with(config);
    // One that never sends a request, one that stops in the middle of it, one that doesn't answer pings.
    let mut mute = TcpStream::connect(world.address()).unwrap();
    assert_eq!(talk(&mut mute, b"\0never\0"), b"");
    let mut half = TcpStream::connect(world.address()).unwrap();
    half.write_all(b"GET /ws/entity-sync/ HTTP/1.1\r\nHost:").unwrap();
    assert_eq!(talk(&mut half, b"\0never\0"), b"");
    let mut deaf = Client::connect(world.address());
    let received = talk(deaf.stream(), b"\0never\0");
    assert!(received.starts_with(b"\x89\x00"), "{received:?}");
    assert!(received.iter().all(|byte| [0x89, 0].contains(byte)), "{received:?}");
    // A client that reads, and so answers pings, stays.
    let mut alive = Client::connect(world.address());
    alive.subscribe("items", "1");
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(25));
        alive.sync();
    }
    world.put("1", "still there");
    assert_eq!(alive.row(), "still there");
}

#[test]
fn shutting_down_says_goodbye() {
    let world = World::start(2);
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(world.address())).collect();
    for client in &mut clients {
        client.subscribe("items", "1");
        client.sync();
    }
    let address = world.address();
    let World { server, .. } = world;
    let goodbye = std::thread::spawn(move || server.shutdown(Duration::from_secs(20)));
    for client in &mut clients {
        assert_eq!(client.close_code(), Some(1001));
    }
    drop(clients);
    goodbye.join().unwrap();
    assert!(TcpStream::connect(address).is_err(), "it still listens");
}

#[test]
fn an_address_in_use_is_a_clear_error() {
    let world = World::start(2);
    for reactors in [1, 2] {
        let mut config = config(reactors);
        config.listen = vec![world.address()];
        let error = Server::start(config, |_: Request, _: Reply| {}).unwrap_err();
        assert!(matches!(error, StartError::Listen { .. }));
        let text = error.to_string();
        assert!(text.contains("another program already uses this port"), "{text}");
    }
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let world = World::start(1);
    for round in 0..20 {
        let mut clients: Vec<_> = (0..50).map(|_| Client::connect(world.address())).collect();
        for (index, client) in clients.iter_mut().enumerate() {
            client.subscribe("items", &index.to_string());
            client.subscribe("items", "all");
            if index % 3 == 0 {
                client.secret(&format!("{round}"));
            }
        }
        world.put("all", "x");
    }
    wait_for("all flights to be forgotten", || world.server.handle().flights() == 0);
}

#[test]
fn subscriptions_beyond_the_limits_are_refused_and_the_connection_stays() {
    let mut config = config(1);
    config.core.max_subscriptions = 3;
    let world = World::start_with(config);
    let mut client = Client::connect(world.address());
    let long = "x".repeat(2000);
    for id in [long.as_str(), "1", "2", "3", "4"] {
        client.subscribe("items", id);
    }
    client.sync();
    for id in [long.as_str(), "4", "1"] {
        world.put(id, id);
    }
    assert_eq!(client.row(), "1");
    assert_eq!(client.sync(), Vec::<String>::new());
    // What it gives up makes room.
    client.unsubscribe("items", "1");
    client.subscribe("items", "4");
    client.sync();
    world.put("1", "1 again");
    world.put("4", "4 at last");
    assert_eq!(client.row(), "4 at last");
}

#[test]
fn a_ping_behind_many_bad_requests_costs_nobody_the_upgrade() {
    let world = World::start(1);
    let mut stream = TcpStream::connect(world.address()).unwrap();
    let mut all = b"GET /nope HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(20);
    all.extend_from_slice(
        b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\x89\x80\0\0\0\0",
    );
    stream.write_all(&all).unwrap();
    let answer = talk(&mut stream, b"\x8a\x00");
    let upgraded = answer.windows(13).position(|it| it == b"HTTP/1.1 101 ");
    let refused = answer.windows(13).filter(|it| *it == b"HTTP/1.1 404 ").count();
    assert!(
        upgraded.is_some() && refused == 20,
        "{}",
        String::from_utf8_lossy(&answer)
    );
    assert!(answer.ends_with(b"\r\n\r\n\x8a\x00"));
}

/// Each push that answers a notify is in the histogram once, whichever way it was written; a snapshot is not.
#[test]
fn latencies_of_pushes_are_counted() {
    let mut config = Config::new(["127.0.0.1:0".parse().unwrap()]);
    config.reactors = std::num::NonZeroUsize::MIN;
    let mut options = entity_sync_mio::EntityOptions::default();
    options.snapshot = true;
    config.core.entities = entity_sync_mio::Entities::any(options);
    let server = Server::start(config, |request: Request, reply: Reply| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        reply.rows(Rows::one(request.key.id().to_owned())).unwrap();
    })
    .unwrap();
    let mut clients: Vec<_> = (0..10).map(|_| Client::connect(server.addresses()[0])).collect();
    for client in &mut clients {
        client.subscribe("items", "1");
        client.subscribe("items", "2");
        client.rows_until("2");
        client.sync();
    }
    assert_eq!(server.handle().latency().count(), 0);
    let keys = ["1", "2"].map(|id| EntityKey::new("items", id).unwrap());
    // Alone they are broadcast, together they are queued and flushed.
    server.handle().notify(&keys[0]).unwrap();
    for client in &mut clients {
        assert_eq!(client.row(), "1");
        client.sync();
    }
    let alone = server.handle().latency();
    assert_eq!(alone.count(), 10);
    assert_eq!(alone.buckets[..3], [0; 3], "a read takes 1 ms: {alone:?}");
    assert!(alone.sum >= std::time::Duration::from_millis(10));
    server.handle().notify_many(&keys).unwrap();
    for client in &mut clients {
        client.rows_until("2");
        client.sync();
    }
    assert_eq!(server.handle().latency().count(), 30);
}
