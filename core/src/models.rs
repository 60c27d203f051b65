//! Models of what threads do to each other, checked over all interleavings with loom:
//! `RUSTFLAGS='--cfg loom' cargo test -p entity-sync-core --lib models`.
//!
//! Loom gives threads turns only where they meet at its own locks and atomics. What a model compares must be ordered by
//! those too, or orders are left out in silence.
//!
//! Each model was seen to fail when the code it is about is broken. `tests/simulation/src/bin/planted/bugs.rs` does the starred
//! ones again in CI:
//!
//! - `no_wake_up_is_lost`: the flag cleared after the last look; no second look (*); the shard woken before the push.
//! - `nobody_is_woken_twice`: every mark wakes (*).
//! - `the_newest_rows_are_taken_in_order`: the rows looked at under one lock and the mark taken under another; older rows
//!   kept while a mark waits; the mark left when it is taken.
//! - `a_…_subscription_…`: joining without a ticket; a running read counts for a notify; the last one that leaves forgets
//!   the read that runs; nobody marked.
//! - `a_change_of_secret_…`: the old topic looked at before the new one is joined (*), or before the ticket is drawn.
//! - `a_reread_against_a_notify`: the caller's ticket ignored; no read asked for.
//! - `nothing_that_is_notified_is_lost_to_the_bus`: the flag not cleared, or cleared after the last look; no second look (*);
//!   a lane's mark cleared after the lane is emptied.
//! - `a_notify_against_the_bus`: the bus woken before the key is there.
//! - `a_subscription_against_the_bus`: topics looked at only before the flag is cleared (*).
//! - `reads_…_take_turns`: a place that is not handed on; a limit of two (*); room looked for under one lock and taken
//!   under another (*); the same between finding none and waiting.
//!
//! No model fails when these are broken:
//!
//! - A ticket drawn before the topic is joined, in `subscribe` and `change_secret`: more reads count, and all of them began
//!   after the client had asked.
//! - `Flight::finish` marks a shard that is marked: it looks once in vain. The tests of `flights` find that.
//! - `change_secret` doesn't revoke: what is queued is the shard's alone. The simulator finds that.
#![allow(
    clippy::unwrap_used,
    reason = "a test, which clippy doesn't see behind the other condition"
)]

mod bus;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};

use loom::sync::atomic::{AtomicU64, Ordering::SeqCst};
use loom::thread;

use crate::entity::{Entities, EntityOptions};
use crate::flights::FlightId;
use crate::node::{Inbox, Port, STRIPES, Wakes};
use crate::{
    Audience, Config, ConnId, EntityKey, Input, Node, Output, Reply, Request, Resolve, Rows, Seed, Selector, Sent,
    Shard, Timestamp,
};

const NOW: Timestamp = Timestamp::START;
const UPGRADE: &[u8] = b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = None;
    builder.check(model);
}

/// The application's store, whose state is the number of its last event. Events are counted by the model checker's atomic:
/// their order is what the models ask about, and it must try them all. The locks may be the standard library's, as one
/// thread runs at a time, and none gives way while it holds one.
#[derive(Default)]
struct Store {
    events: AtomicU64,
    reads: Mutex<Vec<(u64, Request, Reply)>>,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    names: BTreeSet<(String, String)>,
    most: usize,
}

impl Store {
    /// The number of a new event.
    fn event(&self) -> u64 {
        self.events.fetch_add(1, SeqCst) + 1
    }

    fn answer_next(&self) -> bool {
        let next = self.reads.lock().unwrap().pop();
        let Some((began, request, reply)) = next else {
            return false;
        };
        self.running.lock().unwrap().names.remove(&name_of(&request));
        let row = format!("{} {} {began}", request.key.id(), name_of(&request).1);
        reply.send(NOW, Ok(Rows::one(row))).unwrap();
        true
    }
}

impl Resolve for Store {
    fn resolve(&self, request: Request, reply: Reply) {
        {
            let mut running = self.running.lock().unwrap();
            let name = name_of(&request);
            // What this panics with is caught, and the lock that it poisons fails the model.
            assert!(running.names.insert(name), "G3: two reads of a name at once");
            running.most = running.most.max(running.names.len());
        }
        let began = self.event();
        self.reads.lock().unwrap().push((began, request, reply));
    }
}

fn name_of(request: &Request) -> (String, String) {
    let Audience::Secret(secret) = &request.audience else {
        panic!("an audience that nobody configured");
    };
    (request.key.id().to_owned(), format!("<{secret}>"))
}

/// A node with one shard, and what its connections have received.
struct World {
    store: Arc<Store>,
    node: Node,
    shard: Shard,
    received: Vec<(ConnId, Row)>,
}

#[derive(Clone, Debug)]
struct Row {
    key: String,
    audience: String,
    began: u64,
}

impl World {
    fn new(config: Config) -> Self {
        let store = Arc::<Store>::default();
        let (node, mut shards) = Node::new(config, store.clone(), vec![Waker::noop().clone()]);
        Self {
            store,
            node,
            shard: shards.remove(0),
            received: Vec::new(),
        }
    }

    fn connect(&mut self) -> ConnId {
        let conn = self.shard.open(NOW).unwrap();
        let bytes = &mut UPGRADE.to_vec();
        self.shard.handle(NOW, Input::Received { conn, bytes });
        self.poll();
        conn
    }

    fn say(&mut self, conn: ConnId, text: &str) {
        let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
        frame.extend(text.as_bytes());
        let bytes = &mut frame;
        self.shard.handle(NOW, Input::Received { conn, bytes });
    }

    fn subscribe(&mut self, conn: ConnId, id: &str) {
        self.say(
            conn,
            &format!(r#"{{"action":"subscribe","body":{{"entity":"e","id":"{id}"}}}}"#),
        );
    }

    fn poll(&mut self) {
        let Self { shard, received, .. } = self;
        while let Some(output) = shard.poll_output(NOW) {
            let mut see = |conn, bytes: &[u8]| {
                if let Some(text) = bytes.strip_prefix(b"\x81") {
                    let mut parts = std::str::from_utf8(&text[1..]).unwrap().split(' ').map(str::to_owned);
                    let row = Row {
                        key: parts.next().unwrap(),
                        audience: parts.next().unwrap(),
                        began: parts.next().unwrap().parse().unwrap(),
                    };
                    received.push((conn, row));
                }
                Sent::All
            };
            match output {
                Output::Broadcast(broadcast) => broadcast.for_each(|conn, chunk| see(conn, chunk.as_slice())),
                Output::Flush(flush) => flush.write(|conn, chunks| {
                    for chunk in chunks {
                        see(conn, chunk.as_slice());
                    }
                    Sent::All
                }),
                Output::Resume(_) | Output::Shutdown(_) | Output::Close(_) => panic!("nobody leaves"),
            }
        }
    }

    /// All threads are done: answers and delivers until nothing happens any more.
    fn settle(&mut self) {
        loop {
            self.poll();
            if !self.store.answer_next() {
                break;
            }
        }
        self.node.assert_consistent();
        self.shard.assert_consistent();
    }

    fn rows_of(&self, conn: ConnId) -> impl Iterator<Item = &Row> {
        self.received
            .iter()
            .filter(move |(of, _)| *of == conn)
            .map(|(_, row)| row)
    }

    fn has_row_after(&self, conn: ConnId, key: &str, event: u64) -> bool {
        self.rows_of(conn).any(|row| row.key == key && row.began > event)
    }
}

fn key(id: &str) -> EntityKey {
    EntityKey::new("e", id).unwrap()
}

/// Another key than `key("1")`, of the same entity, under another lock.
fn key_elsewhere() -> EntityKey {
    let mut keys = (2..).map(|id: u32| key(&id.to_string()));
    keys.find(|it| it.bucket(STRIPES) != key("1").bucket(STRIPES)).unwrap()
}

fn config() -> Config {
    Config::new(Seed(1, 2))
}

/// Wakes nobody, but remembers. The model checker's flag, so that threads take turns around it too.
#[derive(Default)]
struct Woken(AtomicU64);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// The wake-up flag: whatever is in the inbox when the shard sleeps, it was woken for.
#[test]
fn no_wake_up_is_lost() {
    check(|| {
        let woken = Arc::<Woken>::default();
        let port = Arc::new(Port::new(Waker::from(woken.clone())));
        // Between its mark and its wake-up, the other may rely on it.
        let producers: Vec<_> = (0..2)
            .map(|_| {
                let port = port.clone();
                thread::spawn(move || port.mark(FlightId::NOWHERE, Some(&mut Wakes::new())))
            })
            .collect();
        // A turn of the shard: it looks until there is nothing, and sleeps.
        let mut inbox = Inbox::default();
        woken.0.store(0, SeqCst);
        loop {
            port.take(&mut inbox);
            if inbox.is_empty() {
                break;
            }
            inbox = Inbox::default();
        }
        for producer in producers {
            producer.join().unwrap();
        }
        let was_woken = woken.0.load(SeqCst) > 0;
        port.take(&mut inbox);
        assert!(was_woken || inbox.is_empty(), "it sleeps, and there is something to do");
    });
}

/// A shard that has been woken and has not looked yet is not woken again.
#[test]
fn nobody_is_woken_twice() {
    check(|| {
        let woken = Arc::<Woken>::default();
        let port = Arc::new(Port::new(Waker::from(woken.clone())));
        let producer = thread::spawn({
            let port = port.clone();
            move || port.mark(FlightId::NOWHERE, None)
        });
        port.mark(FlightId::NOWHERE, None);
        producer.join().unwrap();
        assert_eq!(woken.0.load(SeqCst), 1);
    });
}

/// The hand-over slot: the newest rows come, in order, and none twice.
#[test]
fn the_newest_rows_are_taken_in_order() {
    check(|| {
        let mut world = World::new(config());
        let conn = world.connect();
        world.subscribe(conn, "1");
        world.node.notify(NOW, &key("1")).unwrap();
        // Owed while the first one runs.
        world.node.notify(NOW, &key("1")).unwrap();
        let store = world.store.clone();
        let answers = thread::spawn(move || while store.answer_next() {});
        world.poll();
        answers.join().unwrap();
        world.settle();
        let began: Vec<u64> = world.rows_of(conn).map(|row| row.began).collect();
        assert!(began == [1, 2] || began == [2], "{began:?}");
    });
}

/// What another client of the shard does while one subscribes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Other {
    Nothing,
    /// It is subscribed, and a read is under way.
    Stays,
    /// Likewise, and it leaves before the one subscribes: the last one goes, and a first one comes.
    LeavesBefore,
    LeavesAfter,
}

fn subscribe_against_notify(does: Other) {
    check(move || {
        let mut world = World::new(config());
        let (conn, other) = (world.connect(), world.connect());
        if does != Other::Nothing {
            world.subscribe(other, "1");
            world.node.notify(NOW, &key("1")).unwrap();
        }
        let (node, store) = (world.node.clone(), world.store.clone());
        let notifier = thread::spawn(move || {
            let event = store.event();
            node.notify(NOW, &key("1")).unwrap();
            store.answer_next();
            event
        });
        let leave = r#"{"action":"unsubscribe","body":{"entity":"e","id":"1"}}"#;
        if does == Other::LeavesBefore {
            world.say(other, leave);
        }
        let asked = world.store.event();
        world.subscribe(conn, "1");
        let subscribed = world.store.event();
        if does == Other::LeavesAfter {
            world.say(other, leave);
        }
        let event = notifier.join().unwrap();
        world.settle();
        assert!(
            event < subscribed || world.has_row_after(conn, "1", event),
            "G1: the notify is lost"
        );
        assert!(
            world.rows_of(conn).all(|row| row.began > asked),
            "rows of a read that began before it joined"
        );
        assert!(
            does != Other::Stays || world.has_row_after(other, "1", event),
            "G1: lost to the other"
        );
    });
}

#[test]
fn a_first_subscription_against_a_notify() {
    subscribe_against_notify(Other::Nothing);
}

#[test]
fn a_further_subscription_against_a_notify() {
    subscribe_against_notify(Other::Stays);
}

#[test]
fn a_subscription_against_a_notify_after_the_last_one_left() {
    subscribe_against_notify(Other::LeavesBefore);
}

#[test]
fn a_subscription_against_a_notify_while_another_leaves() {
    subscribe_against_notify(Other::LeavesAfter);
}

/// A change of secret against a notify: the rows come under one secret or the other, and never under the old one after
/// the change.
fn change_secret_against_notify(is_reading: bool) {
    check(move || {
        let mut world = World::new(config());
        let conn = world.connect();
        world.say(conn, r#"{"action":"secret","body":"a"}"#);
        world.subscribe(conn, "1");
        if is_reading {
            world.node.notify(NOW, &key("1")).unwrap();
        }
        let (node, store) = (world.node.clone(), world.store.clone());
        let notifier = thread::spawn(move || {
            let event = store.event();
            node.notify(NOW, &key("1")).unwrap();
            if is_reading {
                store.answer_next();
            }
            event
        });
        world.say(conn, r#"{"action":"secret","body":"b"}"#);
        let event = notifier.join().unwrap();
        world.settle();
        assert!(world.has_row_after(conn, "1", event), "G1: the notify is lost");
        assert!(
            world.rows_of(conn).all(|row| row.audience == "<b>"),
            "G6: rows of the old secret"
        );
    });
}

#[test]
fn a_change_of_secret_against_a_notify() {
    change_secret_against_notify(false);
}

#[test]
fn a_change_of_secret_against_a_notify_while_a_read_runs() {
    change_secret_against_notify(true);
}

/// A reread by secret, with a read under way that must not count, against the shard and its answers.
#[test]
fn a_reread_against_a_notify() {
    check(|| {
        let mut world = World::new(config());
        let conn = world.connect();
        world.say(conn, r#"{"action":"secret","body":"a"}"#);
        world.subscribe(conn, "1");
        let (node, store) = (world.node.clone(), world.store.clone());
        let rereader = thread::spawn(move || {
            let event = store.event();
            node.reread(NOW, &Selector::Secret("a".into()));
            event
        });
        world.node.notify(NOW, &key("1")).unwrap();
        world.poll();
        world.store.answer_next();
        let event = rereader.join().unwrap();
        world.settle();
        assert!(world.has_row_after(conn, "1", event), "the reread is lost");
    });
}

/// Two keys of an entity of which one read may run at a time.
#[test]
fn reads_take_turns() {
    check(|| {
        let mut config = config();
        let options = EntityOptions {
            max_running_reads: 1,
            ..EntityOptions::default()
        };
        config.entities = Entities::none().with("e", options);
        let mut world = World::new(config);
        let conn = world.connect();
        world.subscribe(conn, "1");
        let elsewhere = key_elsewhere();
        world.subscribe(conn, elsewhere.id());
        let (node, store) = (world.node.clone(), world.store.clone());
        let notifier = thread::spawn(move || {
            node.notify(NOW, &key("1")).unwrap();
            // A read takes a while.
            thread::yield_now();
            store.answer_next();
        });
        world.node.notify(NOW, &elsewhere).unwrap();
        thread::yield_now();
        world.store.answer_next();
        notifier.join().unwrap();
        world.settle();
        assert!(
            world.has_row_after(conn, "1", 0) && world.has_row_after(conn, elsewhere.id(), 0),
            "a read never began"
        );
        assert_eq!(world.store.running.lock().unwrap().most, 1);
    });
}

/// Likewise, with two that notify while a third answers.
#[test]
fn reads_that_others_answer_take_turns() {
    check(|| {
        let mut config = config();
        let options = EntityOptions {
            max_running_reads: 1,
            ..EntityOptions::default()
        };
        config.entities = Entities::none().with("e", options);
        let mut world = World::new(config);
        let conn = world.connect();
        world.subscribe(conn, "1");
        let elsewhere = key_elsewhere();
        world.subscribe(conn, elsewhere.id());
        let node = world.node.clone();
        let notifier = thread::spawn(move || {
            node.notify(NOW, &key("1")).unwrap();
        });
        let store = world.store.clone();
        let answers = thread::spawn(move || {
            thread::yield_now();
            store.answer_next();
        });
        world.node.notify(NOW, &elsewhere).unwrap();
        notifier.join().unwrap();
        answers.join().unwrap();
        world.settle();
        assert!(
            world.has_row_after(conn, "1", 0) && world.has_row_after(conn, elsewhere.id(), 0),
            "a read never began"
        );
        assert_eq!(world.store.running.lock().unwrap().most, 1);
    });
}
