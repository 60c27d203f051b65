//! The first milestone: the smallest driver, `core/examples/std_net.rs`, and real clients.

#[path = "../core/examples/std_net.rs"]
mod std_net;

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use entity_sync_core::{Audience, Config, EntityKey, Reply, Request, Rows, Seed, Timestamp};
use entity_sync_tests::{Client, PATIENCE};

/// The example's server, with its reads in the test's hands.
struct Server {
    address: SocketAddr,
    changes: Sender<EntityKey>,
    reads: Receiver<(Request, Reply)>,
    start: Instant,
    thread: JoinHandle<()>,
}

impl Server {
    fn start(config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (changes, changed) = channel();
        let (resolve, reads) = channel();
        let start = Instant::now();
        let thread = std::thread::spawn(move || {
            let clock = || Timestamp::after_start(start.elapsed());
            let hand_over = |request, reply| resolve.send((request, reply)).unwrap();
            std_net::serve(&listener, clock, config, &changed, hand_over).unwrap();
        });
        Self {
            address,
            changes,
            reads,
            start,
            thread,
        }
    }

    fn change(&self, id: &str) {
        self.changes.send(key(id)).unwrap();
    }

    fn next_read(&self) -> (Request, Reply) {
        self.reads.recv_timeout(PATIENCE).unwrap()
    }

    fn answer(&self, reply: Reply, row: &str) {
        let now = Timestamp::after_start(self.start.elapsed());
        reply.send(now, Ok(Rows::one(row.to_owned()))).unwrap();
    }

    fn stop(self) {
        drop((self.changes, self.reads));
        self.thread.join().unwrap();
    }
}

fn key(id: &str) -> EntityKey {
    EntityKey::new("items", id).unwrap()
}

fn secret(secret: &str) -> Audience {
    Audience::Secret(secret.into())
}

#[test]
fn upgrade_subscribe_push_and_a_secret_that_changes_in_the_middle_of_a_read() {
    let server = Server::start(Config::new(Seed(1, 2)));
    let mut client = Client::connect(server.address);
    client.subscribe("items", "100");
    client.sync();

    server.change("100");
    let (request, reply) = server.next_read();
    assert_eq!((&request.key, &request.audience), (&key("100"), &secret("")));
    server.answer(reply, "first");
    assert_eq!(client.row(), "first");

    server.change("100");
    let (_, of_nobody) = server.next_read();
    client.secret("s3cr3t");
    client.sync();
    let (request, of_secret) = server.next_read();
    assert_eq!((&request.key, &request.audience), (&key("100"), &secret("s3cr3t")));
    server.answer(of_nobody, "for nobody");
    assert_eq!(client.sync(), Vec::<String>::new(), "rows of the old secret");
    server.answer(of_secret, "for the secret");
    assert_eq!(client.row(), "for the secret");

    drop(client);
    server.stop();
}

#[test]
fn a_slow_client_is_conflated_and_ends_with_the_newest_rows() {
    const KEYS: usize = 10;
    const ROUNDS: usize = 100;
    let mut config = Config::new(Seed(1, 2));
    config.max_outbox_bytes = 64 * 1024;
    let server = Server::start(config);
    let mut fast = Client::connect(server.address);
    let mut slow = Client::connect(server.address);
    for id in 0..KEYS {
        fast.subscribe("items", &id.to_string());
        slow.subscribe("items", &id.to_string());
    }
    fast.sync();
    slow.sync();

    // From here on, reads are answered with what is stored, whoever caused them.
    let rows = Arc::new(Mutex::new(vec![String::new(); KEYS]));
    let Server {
        changes,
        reads,
        start,
        thread,
        ..
    } = server;
    let stored = rows.clone();
    let resolver = std::thread::spawn(move || {
        let mut count = 0;
        while let Ok((request, reply)) = reads.recv() {
            let id: usize = request.key.id().parse().unwrap();
            let row = stored.lock().unwrap()[id].clone();
            let now = Timestamp::after_start(start.elapsed());
            reply.send(now, Ok(Rows::one(row))).unwrap();
            count += 1;
        }
        count
    });

    // 64 KiB a row and 1,000 rows are more than any socket's buffers. The slow client reads nothing of it.
    let row = |round: usize, id: usize| format!("{round} {id} {}", "x".repeat(64 * 1024));
    for round in 0..ROUNDS {
        for id in 0..KEYS {
            rows.lock().unwrap()[id] = row(round, id);
            changes.send(key(&id.to_string())).unwrap();
            assert_eq!(fast.row(), row(round, id));
        }
    }
    // Now it reads: far fewer rows than there were, and the newest of every key.
    let mut newest = [0; KEYS];
    let mut received = 0;
    while newest.iter().any(|&round| round < ROUNDS - 1) {
        let row = slow.row();
        let mut parts = row.split(' ');
        let round: usize = parts.next().unwrap().parse().unwrap();
        let id: usize = parts.next().unwrap().parse().unwrap();
        assert!(newest[id] <= round, "key {id}: round {round} after {}", newest[id]);
        newest[id] = round;
        received += 1;
    }
    assert!(received < ROUNDS * KEYS / 2, "{received} rows were not conflated");

    drop((fast, slow, changes));
    thread.join().unwrap();
    let reads = resolver.join().unwrap();
    // One for each change, and a few for what was withheld from the slow client.
    assert!(reads < ROUNDS * KEYS + 5 * KEYS, "{reads} reads");
}
