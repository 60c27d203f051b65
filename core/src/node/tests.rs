use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::task::Wake;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::flights::Scope;

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
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Wakes {
    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

struct Setup {
    node: Node,
    queue: Arc<Queue>,
    /// One for each shard.
    wakes: [Arc<Wakes>; 2],
}

impl Setup {
    fn new() -> Self {
        let queue = Arc::new(Queue::default());
        let wakes = [Arc::default(), Arc::default()];
        let wakers = wakes.iter().map(|wakes: &Arc<Wakes>| Waker::from(wakes.clone()));
        let (node, _) = Node::new(Config::new(Seed(1, 2)), queue.clone(), wakers.collect());
        Self { node, queue, wakes }
    }

    fn join(&self, shard: u32, id: &str, audience: &Audience) -> FlightId {
        self.node.join(shard, topic(shard), &key(id), audience)
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
    assert_eq!(it.wakes[1].get(), 1);
    assert_eq!(it.marks(1), flights[..2]);
    // It must look again before it sleeps, so it needs no waking.
    read("3");
    assert_eq!(it.wakes[1].get(), 1);
    assert_eq!(it.marks(1), flights[2..]);
    assert!(it.marks(1).is_empty());
    // Rows not yet taken are replaced, under the mark that was given for them.
    read("3");
    assert_eq!(it.wakes[1].get(), 1);
    assert_eq!(it.take(1, flights[2]).as_ref().map(text), Some("3"));
    read("3");
    assert_eq!(it.wakes[1].get(), 2);
    // The first shard has no marks, and was woken to keep the time of the first read.
    assert_eq!(it.wakes[0].get(), 1);
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Join(u32, usize),
    Leave(u32, usize),
    Notify(usize),
    /// Answers any of the reads, well or with a failure.
    Answer(usize, bool),
    Take(u32),
    Wait,
}

fn op() -> impl Strategy<Value = Op> {
    let (shard, name) = (0..2u32, 0..4usize);
    prop_oneof![
        3 => (shard.clone(), name.clone()).prop_map(|(shard, name)| Op::Join(shard, name)),
        2 => (shard.clone(), name.clone()).prop_map(|(shard, name)| Op::Leave(shard, name)),
        4 => name.prop_map(Op::Notify),
        4 => (any::<usize>(), prop::bool::weighted(0.7))
            .prop_map(|(which, good)| Op::Answer(which, good)),
        3 => shard.prop_map(Op::Take),
        2 => Just(Op::Wait),
    ]
}

/// A node beside what its shards are owed. Of four names, two each are audiences of one key.
struct Story {
    it: Setup,
    now: Timestamp,
    reads: Vec<(Timestamp, Request, Reply)>,
    late: u64,
    /// By shard and name; with the ticket after which a read is owed.
    joined: BTreeMap<(u32, usize), (FlightId, Option<Ticket>)>,
    /// How often each shard had been woken when it last found no marks.
    rest: [usize; 2],
}

impl Story {
    fn apply(&mut self, op: Op) {
        let node = &self.it.node;
        match op {
            Op::Join(shard, name) => {
                let (key, audience) = name_of(name);
                let join = || (node.join(shard, topic(shard), &key, &audience), None);
                self.joined.entry((shard, name)).or_insert_with(join);
            }
            Op::Leave(shard, name) => {
                if let Some((flight, _)) = self.joined.remove(&(shard, name)) {
                    node.leave(at(0), shard, flight);
                }
            }
            Op::Notify(name) => {
                let ticket = node.current_ticket();
                node.notify(self.now, &name_of(name).0).unwrap();
                let of_key = self.joined.iter_mut().filter(|((_, other), _)| other / 2 == name / 2);
                of_key.for_each(|(_, (_, owed))| *owed = Some(ticket));
            }
            Op::Answer(which, good) if !self.reads.is_empty() => {
                let (begun, _, reply) = self.reads.swap_remove(which % self.reads.len());
                self.late += u64::from(self.is_given_up(begun));
                let rows = if good {
                    Ok(Rows::one("x"))
                } else {
                    Err(ReadError::Failed)
                };
                reply.send(self.now, rows).unwrap();
            }
            Op::Answer(..) => {}
            Op::Take(shard) => self.take(shard),
            Op::Wait => {
                self.now = node.poll_timeout().unwrap_or(self.now).max(self.now);
                node.handle_timeout(self.now);
            }
        }
        while let Some((request, reply)) = self.it.queue.pop() {
            self.reads.push((self.now, request, reply));
        }
        self.check();
    }

    fn take(&mut self, shard: u32) {
        let (marks, wakes) = (self.it.marks(shard), self.it.wakes[shard as usize].get());
        let rest = &mut self.rest[shard as usize];
        assert!(marks.is_empty() || wakes > *rest, "marked and not woken");
        if marks.is_empty() {
            *rest = wakes;
        }
        for flight in marks {
            let Some(delivery) = self.it.node.take(self.now, shard, flight) else {
                continue;
            };
            let mut joined = self.joined.iter_mut();
            let joined = joined.find(|(of, it)| of.0 == shard && it.0 == flight);
            let (_, (_, owed)) = joined.expect("rows for nobody");
            *owed = owed.filter(|&notified| notified >= delivery.ticket);
        }
    }

    fn is_given_up(&self, begun: Timestamp) -> bool {
        begun + self.it.node.config().read_time_limit <= self.now
    }

    fn check(&self) {
        let node = &self.it.node;
        node.assert_consistent();
        for name in 0..4 {
            let (key, audience) = name_of(name);
            let its = |read: &Request| (&read.key, &read.audience) == (&key, &audience);
            let running = self
                .reads
                .iter()
                .filter(|(begun, read, _)| its(read) && !self.is_given_up(*begun));
            assert!(running.count() <= 1, "{key:?} is read twice at a time");
        }
        assert_eq!(node.counters().late_reads.get(), self.late);
        for (wakes, rest) in self.it.wakes.iter().zip(self.rest) {
            assert!(wakes.get() - rest <= 1, "woken twice");
        }
    }
}

fn name_of(name: usize) -> (EntityKey, Audience) {
    let audience = [Audience::Public, Audience::Named("a".into())][name % 2].clone();
    (key(["1", "2"][name / 2]), audience)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn every_notify_is_answered_by_a_later_read(ops in prop::collection::vec(op(), 1..80)) {
        let mut story = Story {
            it: Setup::new(),
            now: at(0),
            reads: Vec::new(),
            late: 0,
            joined: BTreeMap::new(),
            rest: [0; 2],
        };
        for op in ops {
            story.apply(op);
        }
        // Backoffs pass and what is read is answered, until nothing is on its way.
        while story.it.node.poll_timeout().is_some() || !story.reads.is_empty() {
            while !story.reads.is_empty() {
                story.apply(Op::Answer(0, true));
            }
            story.apply(Op::Wait);
        }
        for (shard, name) in story.joined.keys().copied().collect::<Vec<_>>() {
            story.apply(Op::Take(shard));
            prop_assert_eq!(story.joined[&(shard, name)].1, None);
            story.apply(Op::Leave(shard, name));
        }
        prop_assert_eq!(story.it.node.flights(), 0);
    }
}
