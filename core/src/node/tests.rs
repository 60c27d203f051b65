mod answers;
mod stories;
mod turns;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicUsize;
use std::task::Wake;
use std::time::Duration;

use super::*;
use crate::entity::Entities;
use crate::flights::Scope;
use crate::frame::{Group, Rows};
use crate::resolve::{ReadError, Reply};
use crate::slots::SlotId;

/// Keeps reads until the test answers them.
#[derive(Default)]
struct Queue(Mutex<VecDeque<(Request, Reply)>>);

impl Resolve for Queue {
    fn resolve(&self, request: Request, reply: Reply) {
        lock(&self.0).push_back((request, reply));
    }
}

impl Queue {
    fn len(&self) -> usize {
        lock(&self.0).len()
    }

    fn pop(&self) -> Option<(Request, Reply)> {
        lock(&self.0).pop_front()
    }

    /// Answers the oldest read with its own text.
    fn answer(&self, now: Timestamp, text: &'static str) {
        let (_, reply) = self.pop().expect("a read");
        reply.send(now, Ok(Rows::one(text))).expect("good rows");
    }

    fn fail(&self, now: Timestamp) {
        let (_, reply) = self.pop().expect("a read");
        reply.send(now, Err(ReadError::Failed)).expect("no rows");
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Woken {
    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

struct Setup {
    node: Node,
    queue: Arc<Queue>,
    /// One for each shard.
    woken: [Arc<Woken>; 2],
    _shards: Vec<Shard>,
}

impl Setup {
    fn new() -> Self {
        Self::with(Config::new(Seed(1, 2)))
    }

    /// So many reads of `items` may run at the same time, and as many of `others`.
    fn gated(max_running_reads: usize) -> Self {
        Self::with(gated(max_running_reads))
    }

    fn with(config: Config) -> Self {
        let queue = Arc::new(Queue::default());
        let woken = [Arc::default(), Arc::default()];
        let wakers = woken.iter().map(|woken: &Arc<Woken>| Waker::from(woken.clone()));
        let (node, _shards) = Node::new(config, queue.clone(), wakers.collect());
        Self {
            node,
            queue,
            woken,
            _shards,
        }
    }

    fn join(&self, shard: u32, id: &str, audience: &Audience) -> FlightId {
        self.node.join_unhashed(shard, topic(shard), &key(id), audience)
    }

    fn join_all(&self, ids: &[&str]) {
        for id in ids {
            self.join(0, id, &Audience::Public);
        }
    }

    /// Reads of `items` that run, and flights that wait for their turn.
    fn counts(&self) -> (usize, usize) {
        counts(&self.node)
    }

    /// What the unanswered reads are of, in the order in which they began.
    fn ids(&self) -> Vec<String> {
        let reads = lock(&self.queue.0);
        reads.iter().map(|(request, _)| request.key.id().to_owned()).collect()
    }

    fn notify_all(&self, ids: &[&str]) {
        for id in ids {
            self.node.notify(at(0), &key(id)).unwrap();
        }
    }

    /// Answers all reads one after the other, and says what they were of.
    fn answer_all(&self) -> Vec<String> {
        let mut order = Vec::new();
        while let Some((request, reply)) = self.queue.pop() {
            self.node.assert_consistent();
            order.push(request.key.id().to_owned());
            reply.send(at(0), Ok(Rows::one("x"))).expect("good rows");
        }
        order
    }

    fn marks(&self, shard: u32) -> Vec<FlightId> {
        let mut inbox = Inbox::default();
        self.node.take_inbox(at(0), shard, &mut inbox);
        inbox.marks.into()
    }

    fn take(&self, shard: u32, flight: FlightId) -> Option<Group> {
        let delivery = self.node.take(at(0), shard, flight)?;
        assert_eq!(delivery.topic, topic(shard));
        assert_eq!(delivery.scope, Scope::All);
        Some(delivery.group)
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        // Replies hold the node, which holds the queue.
        while self.queue.pop().is_some() {}
    }
}

fn gated(max_running_reads: usize) -> Config {
    let mut config = Config::new(Seed(1, 2));
    let options = EntityOptions {
        max_running_reads,
        ..EntityOptions::default()
    };
    config.entities = Entities::none().with("items", options.clone()).with("others", options);
    config
}

fn counts(node: &Node) -> (usize, usize) {
    let entity = node.0.entities.find("items").expect("an entity");
    node.0.entities.of(entity).counts()
}

fn topic(shard: u32) -> TopicId {
    TopicId(SlotId {
        index: shard + 10,
        generation: 3,
    })
}

fn key(id: &str) -> EntityKey {
    EntityKey::new("items", id).unwrap()
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::START + Duration::from_secs(seconds)
}

fn text(group: &Group) -> &str {
    std::str::from_utf8(&group.bytes()[2..]).unwrap()
}

#[test]
fn notifies_during_a_read_cost_one_more_read() {
    let it = Setup::new();
    it.node.notify(at(0), &key("1")).unwrap();
    assert_eq!(it.queue.len(), 0, "nobody is subscribed");
    let flight = it.join(1, "1", &Audience::Public);
    for _ in 0..10 {
        it.node.notify(at(0), &key("1")).unwrap();
        assert_eq!(it.queue.len(), 1);
    }
    it.queue.answer(at(0), "first");
    assert_eq!(it.queue.len(), 1);
    it.queue.answer(at(0), "second");
    assert_eq!(it.queue.len(), 0);
    assert_eq!(it.node.counters().reads.get(), 2);
    // One mark, and the newest rows only.
    assert_eq!(it.marks(1), [flight]);
    assert_eq!(it.take(1, flight).as_ref().map(text), Some("second"));
    assert!(it.take(1, flight).is_none());
    it.node.leave(at(0), 1, flight);
    assert_eq!(it.node.flights(), 0);
}

#[test]
fn a_running_read_survives_leaving_and_joining() {
    let it = Setup::new();
    let flight = it.join(1, "1", &Audience::Public);
    it.node.notify(at(0), &key("1")).unwrap();
    it.node.leave(at(0), 1, flight);
    assert_eq!(it.node.flights(), 1);
    assert_eq!(it.join(1, "1", &Audience::Public), flight);
    it.node.notify(at(0), &key("1")).unwrap();
    assert_eq!(it.queue.len(), 1, "the first one is still running");
    it.queue.answer(at(0), "first");
    assert_eq!(it.queue.len(), 1);
    // With nobody left, the read's end is the flight's.
    it.node.leave(at(0), 1, flight);
    assert_eq!(it.node.flights(), 1);
    it.queue.answer(at(0), "second");
    assert_eq!((it.node.flights(), it.queue.len()), (0, 0));
    assert_eq!(it.node.counters().late_reads.get(), 0);
    it.node.assert_consistent();
}

#[test]
fn a_read_over_its_time_limit_is_given_up_and_its_answer_discarded() {
    let it = Setup::new();
    let flight = it.join(0, "1", &Audience::Public);
    it.node.notify(at(10), &key("1")).unwrap();
    let (_, late) = it.queue.pop().unwrap();
    let limit = it.node.poll_timeout().unwrap();
    assert_eq!(limit.since(at(10)), it.node.config().read_time_limit);
    it.node.handle_timeout(at(14));
    assert_eq!(it.node.counters().timed_out_reads.get(), 0);
    it.node.handle_timeout(limit);
    assert_eq!(it.node.counters().timed_out_reads.get(), 1);
    assert_eq!(it.queue.len(), 0, "it is tried again later");
    let retry = it.node.poll_timeout().unwrap();
    assert!(retry > limit);
    it.node.handle_timeout(retry);
    assert_eq!(it.queue.len(), 1);
    late.send(retry, Ok(Rows::one("late"))).unwrap();
    assert_eq!(it.node.counters().late_reads.get(), 1);
    assert!(it.marks(0).is_empty());
    it.queue.answer(retry, "again");
    assert_eq!(it.marks(0), [flight]);
    assert_eq!(it.take(0, flight).as_ref().map(text), Some("again"));
}

#[test]
fn a_read_given_up_without_subscribers_is_not_tried_again() {
    let it = Setup::new();
    let flight = it.join(0, "1", &Audience::Public);
    it.node.notify(at(0), &key("1")).unwrap();
    it.node.leave(at(0), 0, flight);
    it.node.handle_timeout(at(5));
    assert_eq!(it.node.flights(), 0);
    // Another flight, perhaps in the same slot, is none of the old one's business.
    let other = it.join(0, "1", &Audience::Public);
    assert_ne!(other, flight);
    it.node.handle_timeout(at(60));
    assert_eq!(it.queue.len(), 1);
    it.queue.answer(at(60), "late");
    assert_eq!(it.node.counters().late_reads.get(), 1);
    assert!(it.marks(0).is_empty() && it.take(0, other).is_none());
}

#[test]
fn failed_reads_are_tried_again_at_growing_intervals() {
    let it = Setup::new();
    it.join(0, "1", &Audience::Public);
    let (mut now, mut longest) = (at(0), it.node.config().retry_first);
    it.node.notify(now, &key("1")).unwrap();
    for failures in 1..15 {
        let failed = now;
        // A resolver that forgets to answer has failed too.
        if failures % 2 == 0 {
            it.queue.fail(now);
        } else {
            it.queue.pop();
        }
        assert_eq!(it.node.counters().failed_reads.get(), failures);
        it.node.notify(now, &key("1")).unwrap();
        // The time-out may be too early, as that of a read which ended is not taken back.
        while it.queue.len() == 0 {
            let timeout = it.node.poll_timeout().expect("a read is owed");
            assert!(timeout >= now);
            now = timeout;
            it.node.handle_timeout(now);
        }
        let waited = now.since(failed);
        assert!((longest / 2..=longest).contains(&waited), "{waited:?} after {failures}");
        longest = (longest * 2).min(it.node.config().retry_max);
    }
    it.queue.answer(now, "at last");
    it.node.notify(now, &key("1")).unwrap();
    it.queue.fail(now);
    let retry = it.node.poll_timeout().unwrap();
    assert!(
        retry.since(now) <= it.node.config().retry_first,
        "success starts afresh"
    );
}

#[test]
fn all_audiences_of_a_key_are_read() {
    let it = Setup::new();
    let audiences = [Audience::Public, Audience::Secret("s".into())];
    let flights = audiences.each_ref().map(|audience| it.join(1, "1", audience));
    it.join(1, "2", &Audience::Public);
    it.node.notify(at(0), &key("1")).unwrap();
    assert_eq!(it.queue.len(), 2);
    for text in ["1", "2"] {
        let request = lock(&it.queue.0).front().map(|read| read.0.clone()).unwrap();
        assert_eq!(request.key, key("1"));
        it.queue.answer(at(0), text);
        let read = audiences.iter().position(|it| *it == request.audience).unwrap();
        assert_eq!(it.marks(1), [flights[read]]);
        assert!(it.take(1, flights[1 - read]).is_none());
        assert!(it.take(1, flights[read]).is_some());
    }
    it.node.leave(at(0), 1, flights[0]);
    it.node.notify(at(0), &key("1")).unwrap();
    assert_eq!(it.queue.len(), 1);
}

#[test]
fn wake_ups_are_put_off_until_all_are_answered() {
    let it = Setup::new();
    let flights = ["1", "2", "3"].map(|id| it.join(1, id, &Audience::Public));
    it.notify_all(&["1", "2", "3"]);
    let mut wakes = Wakes::new();
    for _ in 0..2 {
        let (_, reply) = it.queue.pop().unwrap();
        reply.send_with(at(0), Ok(Rows::one("x")), &mut wakes).unwrap();
    }
    // Others rely on it that the shard is about to be woken.
    it.queue.answer(at(0), "x");
    assert_eq!(it.woken[1].get(), 0);
    drop(wakes);
    assert_eq!(it.woken[1].get(), 1);
    assert_eq!(it.marks(1), flights);
}

/// Notes how often the shard had been woken when a read was asked for.
#[derive(Default)]
struct Looks {
    queue: Queue,
    woken: Arc<Woken>,
    at: Mutex<Vec<usize>>,
}

impl Resolve for Looks {
    fn resolve(&self, request: Request, reply: Reply) {
        lock(&self.at).push(self.woken.get());
        self.queue.resolve(request, reply);
    }
}

#[test]
fn a_shard_is_woken_before_the_application_is_asked_for_more() {
    let looks = Arc::new(Looks::default());
    let waker = Waker::from(looks.woken.clone());
    let (node, _) = Node::new(Config::new(Seed(1, 2)), looks.clone(), vec![waker]);
    node.join_unhashed(0, topic(0), &key("1"), &Audience::Public);
    node.notify(at(0), &key("1")).unwrap();
    let before = looks.woken.get();
    node.take_inbox(at(0), 0, &mut Inbox::default());
    node.notify(at(0), &key("1")).unwrap();
    looks.queue.answer(at(0), "x");
    assert_eq!(*lock(&looks.at), [before, before + 1]);
    drop(looks.queue.pop());
}

#[test]
fn a_burst_of_marks_wakes_once() {
    let it = Setup::new();
    let ids = ["1", "2", "3"];
    let flights = ids.map(|id| it.join(1, id, &Audience::Public));
    let read = |id| {
        it.node.notify(at(0), &key(id)).unwrap();
        it.queue.answer(at(0), id);
    };
    read("1");
    read("2");
    read("1");
    assert_eq!(it.woken[1].get(), 1);
    assert_eq!(it.marks(1), flights[..2]);
    // It must look again before it sleeps, so it needs no waking.
    read("3");
    assert_eq!(it.woken[1].get(), 1);
    assert_eq!(it.marks(1), flights[2..]);
    assert!(it.marks(1).is_empty());
    // Rows not yet taken are replaced, under the mark that was given for them.
    read("3");
    assert_eq!(it.woken[1].get(), 1);
    assert_eq!(it.take(1, flights[2]).as_ref().map(text), Some("3"));
    read("3");
    assert_eq!(it.woken[1].get(), 2);
    // The first shard has no marks, and was woken to keep the time of the first read.
    assert_eq!(it.woken[0].get(), 1);
}

const FIVE: [&str; 5] = ["1", "2", "3", "4", "5"];

#[test]
fn a_notify_of_an_unknown_entity_is_an_error() {
    let it = Setup::gated(2);
    let unknown = EntityKey::new("item", "1").unwrap();
    assert_eq!(it.join(0, "1", &Audience::Public).stripe, key("1").bucket(STRIPES));
    assert_eq!(
        it.node.join_unhashed(0, topic(0), &unknown, &Audience::Public),
        FlightId::NOWHERE
    );
    let error = it.node.notify(at(0), &unknown).unwrap_err();
    assert_eq!(error.key, unknown);
    assert!(error.to_string().contains("item"));
    let counts = it.node.counters().snapshot();
    assert_eq!((counts.notifies, counts.unknown_entities, counts.reads), (1, 1, 0));
    assert_eq!(it.node.flights(), 1);
}

#[test]
fn a_dropped_reply_fails_at_the_latest_time_that_is_known() {
    let it = Setup::new();
    it.join(0, "1", &Audience::Public);
    it.node.notify(at(0), &key("1")).unwrap();
    // Anyone may tell the time, also of something else.
    it.node.notify(at(3), &key("2")).unwrap();
    drop(it.queue.pop());
    let first = it.node.config().retry_first;
    it.node.handle_timeout(at(3) + (first / 2 - Duration::from_nanos(1)));
    assert_eq!(it.queue.len(), 0);
    let retry = it.node.poll_timeout().unwrap();
    assert!((first / 2..=first).contains(&retry.since(at(3))), "{retry:?}");
    it.node.handle_timeout(retry);
    assert_eq!(it.queue.len(), 1);
}
