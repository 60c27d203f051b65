//! One node with two shards on threads of their own, as in a driver with a reactor per core. This thread notifies, and
//! a fourth one reads the store.
//!
//! | core says | this driver | a reactor |
//! | --- | --- | --- |
//! | `Broadcast`, `Flush` | appends to the client's bytes, [`Sent::All`] | `send`, `writev` |
//! | `Shutdown`, `Close` | don't come: nobody leaves | `shutdown`, `close` |
//! | the shard's waker | a token in the channel that its thread sleeps on | writes to an eventfd |
//! | [`Resolve::resolve`] | sends the read to the fourth thread | the same, to a pool |
//!
//! What lies between the threads is bounded: however often a key changes during a read, one more read is owed, and a
//! shard that lags behind gets the newest rows instead of a queue of them.
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    clippy::print_stdout,
    reason = "a driver does what core may not"
)]
#![allow(unreachable_pub, clippy::duplicate_mod, reason = "tests include this as a module")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::task::{Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use entity_sync_core::{Chunk, ConnId, Input, Node, Output, Reply, Request, Resolve, Rows, Sent, Shard, Timestamp};

/// On each shard.
const CLIENTS: usize = 20;
const CHANGES: u64 = 2_000;
/// A read takes as long as so many changes.
const CHANGES_PER_READ: u64 = 20;
/// Nothing here takes nearly so long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// The bytes that reached each client.
type Sockets = BTreeMap<ConnId, Vec<u8>>;

/// Has room for one token: a wake-up before the sleep is not lost, and more of them count as one.
struct Alarm(SyncSender<()>);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        let _ = self.0.try_send(());
    }
}

struct ReadElsewhere(Sender<(Request, Reply)>);

impl Resolve for ReadElsewhere {
    fn resolve(&self, request: Request, reply: Reply) {
        // If nobody reads any more, the reply is dropped, which fails the read.
        let _ = self.0.send((request, reply));
    }
}

/// What the threads share besides the node.
struct Shared {
    start: Instant,
    /// The store: one row, which is this number.
    version: AtomicU64,
    /// How many shards have clients without the last row.
    behind: AtomicU64,
}

impl Shared {
    fn now(&self) -> Timestamp {
        assert!(self.start.elapsed() < PATIENCE, "it hangs");
        Timestamp::after_start(self.start.elapsed())
    }

    /// Answers reads until the last handle to the node is gone, and the node's resolver with it. Counts them.
    fn read(&self, requests: &Receiver<(Request, Reply)>) -> u64 {
        let answer = |(_, reply): (_, Reply)| {
            let version = self.version.load(SeqCst);
            self.wait_until(|| self.version.load(SeqCst) >= CHANGES.min(version + CHANGES_PER_READ));
            reply
                .send(self.now(), Ok(Rows::one(version.to_string())))
                .expect("a good row");
        };
        requests.iter().map(answer).count() as u64
    }

    fn drive(&self, mut shard: Shard, alarm: &Receiver<()>) -> Sockets {
        let mut sockets = Sockets::new();
        let (mut is_behind, last) = (true, CHANGES.to_string());
        while self.behind.load(SeqCst) > 0 {
            let now = self.now();
            // 1. Feed what happened: nothing but time, as no client says anything here.
            shard.handle_timeout(now);
            // 2. Do what it says.
            while let Some(output) = shard.poll_output(now) {
                let mut write = |conn, chunks: &[Chunk<'_>]| {
                    let received = sockets.entry(conn).or_default();
                    chunks.iter().for_each(|chunk| received.extend(chunk.as_slice()));
                    Sent::All
                };
                match output {
                    Output::Broadcast(broadcast) => broadcast.for_each(|conn, chunk| write(conn, &[chunk])),
                    Output::Flush(flush) => flush.write(write),
                    Output::Resume(_) => {}
                    Output::Shutdown(conn) | Output::Close(conn) => panic!("{conn:?} is sent away"),
                }
            }
            if is_behind && sockets.values().all(|received| received.ends_with(last.as_bytes())) {
                is_behind = false;
                self.behind.fetch_sub(1, SeqCst);
            }
            // 3. Sleep. Whatever came for this shard since poll_output gave None has set off the alarm.
            let limit = shard.poll_timeout().map_or(PATIENCE, |at| at.since(now));
            let _ = alarm.recv_timeout(limit.min(PATIENCE));
        }
        sockets
    }

    fn wait_until(&self, condition: impl Fn() -> bool) {
        while !condition() {
            self.now();
            thread::sleep(Duration::from_micros(10));
        }
    }
}

/// Plays the scenario, checks what each client received, and tells what was counted.
pub fn run() -> String {
    let shared = &Shared {
        start: Instant::now(),
        version: AtomicU64::new(0),
        behind: AtomicU64::new(2),
    };
    let ((alarm_0, slept_0), (alarm_1, slept_1)) = (sync_channel(1), sync_channel(1));
    let wakers = [alarm_0, alarm_1].map(|alarm| Waker::from(Arc::new(Alarm(alarm))));
    let (resolver, requests) = channel();
    let mut config = support::config();
    // A wake-up that gets lost is to show, so no time limit may make up for it.
    config.read_time_limit = 2 * PATIENCE;
    config.ping_interval = 2 * PATIENCE;
    config.upgrade_time_limit = 2 * PATIENCE;
    let (node, shards) = Node::new(config, Arc::new(ReadElsewhere(resolver)), wakers.to_vec());
    let (reads, clients) = thread::scope(|scope| {
        let reader = scope.spawn(move || shared.read(&requests));
        let start = |(mut shard, alarm): (Shard, _)| {
            // All subscribe before the first change: nobody is told what changed before.
            for _ in 0..CLIENTS {
                let conn = shard.open(shared.now()).expect("fewer than the limit");
                let bytes = &mut [support::UPGRADE, &support::subscribe("100")].concat();
                shard.handle(shared.now(), Input::Received { conn, bytes });
            }
            scope.spawn(move || shared.drive(shard, &alarm))
        };
        let drivers: Vec<_> = shards.into_iter().zip([slept_0, slept_1]).map(start).collect();
        for version in 1..=CHANGES {
            shared.version.store(version, SeqCst);
            let _ = node.notify(shared.now(), &support::key("100"));
            // Long enough for others to see some of the versions.
            thread::yield_now();
        }
        shared.wait_until(|| shared.behind.load(SeqCst) == 0);
        wakers.iter().for_each(Waker::wake_by_ref);
        let clients = drivers.into_iter().map(|it| it.join().expect("a driver"));
        let clients: Vec<Sockets> = clients.collect();
        // The shards are gone. With this last handle the node goes, and its end of the channel that the reader waits for.
        drop(node);
        (reader.join().expect("the reader"), clients)
    });
    // Reads that began before the last change began so many changes apart. Then one may begin between the change and
    // its notify, to which another is owed.
    let most = CHANGES / CHANGES_PER_READ + 2;
    assert!(reads <= most, "{CHANGES} notifies cost {reads} reads, more than {most}");
    let mut deliveries = 0;
    for received in clients.iter().flat_map(Sockets::values) {
        let rows = support::rows(received);
        let versions: Vec<u64> = rows.iter().map(|row| row.parse().expect("a version")).collect();
        assert!(versions.is_sorted(), "older rows came after newer ones: {versions:?}");
        assert_eq!(versions.last(), Some(&CHANGES), "a client isn't up to date");
        assert!(rows.len() as u64 <= reads, "{reads} reads made {} rows", rows.len());
        deliveries += rows.len();
    }
    format!("{CHANGES} notifies, {reads} reads, {deliveries} deliveries to 2 × {CLIENTS} clients")
}

#[allow(dead_code, reason = "tests use run alone")]
fn main() {
    println!("two shards: {}", run());
}
