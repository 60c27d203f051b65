//! What the pieces of the core cost, through its public interface and without a socket: every write is an answer in
//! memory.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed benchmark")]

use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use entity_sync_core::{
    Bytes, Config, ConnId, EntityKey, Input, Node, Output, Reply, Request, Resolve, Rows, Seed, Sent, Shard, Timestamp,
};

const NOW: Timestamp = Timestamp::START;
const UPGRADE: &[u8] = b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const RECEIVERS: usize = 10_000;
/// What one connection may have by default: tables with more keys need more connections.
const KEYS_PER_CONNECTION: usize = 1_000;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    messages(&mut criterion);
    keys(&mut criterion);
    pushes(&mut criterion);
    frames(&mut criterion);
    outbox(&mut criterion);
    criterion.final_summary();
}

/// A client's bytes: the upgrade, and a subscription and its end.
fn messages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("message");
    group.bench_function("upgrade", |bencher| {
        // The timers keep an entry for every connection until its time comes, so time has to pass.
        let mut bench = Bench::new();
        bencher.iter(|| {
            bench.now = bench.now + Duration::from_millis(1);
            let conn = bench.connect();
            let now = bench.now;
            bench.shard.handle(now, Input::Closed { conn });
            bench.shard.handle_timeout(now);
            bench.act();
        });
    });
    group.bench_function("subscribe+unsubscribe/first of its key", |bencher| {
        let mut bench = Bench::new();
        let conn = bench.connect();
        let messages = Messages::of("100");
        bencher.iter(|| bench.come_and_go(conn, &messages));
    });
    group.bench_function("subscribe+unsubscribe/one of many", |bencher| {
        let mut bench = Bench::new();
        let messages = Messages::of("100");
        for _ in 0..RECEIVERS {
            let conn = bench.connect();
            bench.receive(conn, &messages.subscribe);
        }
        let conn = bench.connect();
        bencher.iter(|| bench.come_and_go(conn, &messages));
    });
    group.finish();
}

/// Subscription tables of growing size. Each subscription is of a key that nobody has, and of another one each time.
fn keys(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("subscribe+unsubscribe with keys present");
    let newcomers: Vec<_> = (0..4096).map(|id| Messages::of(&format!("new{id}"))).collect();
    for present in [1_000, 100_000, 1_000_000] {
        // Filled when the benchmark runs, so that others can be chosen without waiting for it; and once, as criterion
        // calls this more than once.
        let mut filled = None;
        group.bench_function(BenchmarkId::from_parameter(present), |bencher| {
            let (bench, conn) = filled.get_or_insert_with(|| {
                let mut bench = Bench::new();
                let mut conn = bench.connect();
                for id in 0..present {
                    if id % KEYS_PER_CONNECTION == 0 {
                        conn = bench.connect();
                    }
                    bench.receive(conn, &Messages::of(&id.to_string()).subscribe);
                }
                let conn = bench.connect();
                assert_eq!(bench.shard.subscriptions(), present);
                (bench, conn)
            });
            let mut all = newcomers.iter().cycle();
            bencher.iter(|| {
                if let Some(messages) = all.next() {
                    bench.come_and_go(*conn, messages);
                }
            });
        });
    }
    group.finish();
}

/// From the notify to the driver's write, for few and for many.
fn pushes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("push");
    push(&mut group, "whole way, one subscriber", 1, usize::MAX);
    push(&mut group, "walk of 10000, all take it", RECEIVERS, usize::MAX);
    push(&mut group, "walk of 10000, every tenth is busy", RECEIVERS, 10);
    group.finish();
}

/// Every `busy`-th receiver can't take the rows at first; it becomes writable afterwards and is flushed.
fn push(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, receivers: usize, busy: usize) {
    group.throughput(Throughput::Elements(receivers as u64));
    group.bench_function(name, |bencher| {
        let mut bench = Bench::new();
        let subscribe = Messages::of("100").subscribe;
        for _ in 0..receivers {
            let conn = bench.connect();
            bench.receive(conn, &subscribe);
        }
        let key = EntityKey::new("items", "100").unwrap();
        let mut waiting = Vec::new();
        bencher.iter(|| {
            bench.node.notify(NOW, &key).unwrap();
            let mut at = 0;
            bench.act_with(|conn| {
                at += 1;
                if at % busy == 0 {
                    waiting.push(conn);
                    return Sent::Busy;
                }
                Sent::All
            });
            assert_eq!(at, receivers);
            for conn in waiting.drain(..) {
                bench.shard.handle(NOW, Input::Writable { conn });
            }
            bench.act();
        });
    });
}

/// An answer becomes frames: the only copy of its payload.
fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("Reply::send");
    for (name, len) in [("100 B", 100), ("16 KiB", 16 * 1024), ("1 MiB", 1024 * 1024)] {
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            let mut bench = Bench::new();
            let conn = bench.connect();
            bench.receive(conn, &Messages::of("100").subscribe);
            let key = EntityKey::new("items", "100").unwrap();
            let row = Bytes::from(vec![b'x'; len]);
            // Timed by hand: a reply can be sent once and needs a notify before it. The two looks at the clock count.
            bencher.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                for _ in 0..iterations {
                    bench.resolver.keep();
                    bench.node.notify(NOW, &key).unwrap();
                    let reply = bench.resolver.kept().unwrap();
                    let rows = Rows::one(row.clone());
                    let began = Instant::now();
                    reply.send(NOW, Ok(rows)).unwrap();
                    spent += began.elapsed();
                    bench.act();
                }
                spent
            });
        });
    }
    group.finish();
}

/// A connection that doesn't read: what waits for it, and how it gets it once it does.
fn outbox(criterion: &mut Criterion) {
    const KEYS: usize = 64;
    let stuck = || {
        let mut bench = Bench::new();
        let conn = bench.connect();
        let keys: Vec<_> = (0..KEYS)
            .map(|id| EntityKey::new("items", &id.to_string()).unwrap())
            .collect();
        for id in 0..KEYS {
            bench.receive(conn, &Messages::of(&id.to_string()).subscribe);
        }
        (bench, conn, keys)
    };
    let mut group = criterion.benchmark_group("outbox");
    group.bench_function("one of 64 queued groups replaced", |bencher| {
        let (mut bench, _, keys) = stuck();
        for key in &keys {
            bench.node.notify(NOW, key).unwrap();
            bench.act_with(|_| Sent::Busy);
        }
        let mut all = keys.iter().cycle();
        bencher.iter(|| {
            if let Some(key) = all.next() {
                bench.node.notify(NOW, key).unwrap();
                bench.act_with(|_| Sent::Busy);
            }
        });
        assert!(bench.shard.counters().conflated.get() > 0);
    });
    group.throughput(Throughput::Elements(KEYS as u64));
    group.bench_function("64 groups queued and written in one", |bencher| {
        let (mut bench, _, keys) = stuck();
        bencher.iter(|| {
            for key in &keys {
                bench.node.notify(NOW, key).unwrap();
            }
            bench.act();
        });
    });
    group.finish();
}

/// A node, its only shard and a driver without sockets.
struct Bench {
    node: Node,
    shard: Shard,
    resolver: Arc<Resolver>,
    now: Timestamp,
    /// Bytes to be unmasked in place, as in a driver's read buffer.
    buffer: Vec<u8>,
}

/// Answers at once, or keeps the reply if it is told to.
struct Resolver {
    row: Bytes,
    state: Mutex<State>,
}

enum State {
    Answering,
    Keeping,
    Kept(Reply),
}

impl Bench {
    fn new() -> Self {
        let resolver = Arc::new(Resolver {
            row: vec![b'x'; 100].into(),
            state: Mutex::new(State::Answering),
        });
        let config = Config::new(Seed(1, 2));
        let (node, mut shards) = Node::new(config, resolver.clone(), vec![Waker::noop().clone()]);
        Self {
            node,
            shard: shards.remove(0),
            resolver,
            now: NOW,
            buffer: Vec::new(),
        }
    }

    /// An upgraded connection.
    fn connect(&mut self) -> ConnId {
        let conn = self.shard.open(self.now).unwrap();
        self.receive(conn, UPGRADE);
        self.act();
        conn
    }

    fn receive(&mut self, conn: ConnId, bytes: &[u8]) {
        self.buffer.clear();
        self.buffer.extend_from_slice(bytes);
        let bytes = &mut self.buffer[..];
        self.shard.handle(self.now, Input::Received { conn, bytes });
    }

    fn come_and_go(&mut self, conn: ConnId, messages: &Messages) {
        self.receive(conn, &messages.subscribe);
        self.receive(conn, &messages.unsubscribe);
    }

    fn act(&mut self) {
        self.act_with(|_| Sent::All);
    }

    /// Does what the shard says; `write` answers for broadcasts, and flushes are always taken.
    fn act_with(&mut self, mut write: impl FnMut(ConnId) -> Sent) {
        while let Some(output) = self.shard.poll_output(self.now) {
            match output {
                Output::Broadcast(broadcast) => broadcast.for_each(|conn, chunk| {
                    black_box(chunk.as_slice());
                    write(conn)
                }),
                Output::Flush(flush) => flush.write(|_, chunks| {
                    black_box(chunks);
                    Sent::All
                }),
                Output::Resume(_) | Output::Shutdown(_) | Output::Close(_) => {}
            }
        }
    }
}

impl Resolver {
    fn keep(&self) {
        *self.state.lock().unwrap() = State::Keeping;
    }

    fn kept(&self) -> Option<Reply> {
        match std::mem::replace(&mut *self.state.lock().unwrap(), State::Answering) {
            State::Kept(reply) => Some(reply),
            State::Answering | State::Keeping => None,
        }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, _: Request, reply: Reply) {
        let mut state = self.state.lock().unwrap();
        if matches!(*state, State::Keeping) {
            *state = State::Kept(reply);
            return;
        }
        drop(state);
        reply.send(NOW, Ok(Rows::one(self.row.clone()))).unwrap();
    }
}

/// Masked frames for one key.
struct Messages {
    subscribe: Vec<u8>,
    unsubscribe: Vec<u8>,
}

impl Messages {
    fn of(id: &str) -> Self {
        let [subscribe, unsubscribe] = ["subscribe", "unsubscribe"].map(|action| {
            masked(&format!(
                r#"{{"action":"{action}","body":{{"entity":"items","id":"{id}"}}}}"#
            ))
        });
        Self { subscribe, unsubscribe }
    }
}

/// A short text frame, as a client sends it.
fn masked(text: &str) -> Vec<u8> {
    assert!(text.len() < 126);
    let mask = [0xa5, 0x17, 0x5a, 0xc3];
    let mut frame = vec![0x81, 0x80 | text.len() as u8];
    frame.extend(mask);
    frame.extend(
        text.bytes()
            .zip(mask.into_iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}
