//! Any story of joins, notifies, answers and failures: every notify is answered by a later read.

use proptest::prelude::*;

use super::*;

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
                let join = || (node.join_unhashed(shard, topic(shard), &key, &audience), None);
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
        let (marks, wakes) = (self.it.marks(shard), self.it.woken[shard as usize].get());
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
        for (wakes, rest) in self.it.woken.iter().zip(self.rest) {
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
