use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::frame::{RowLimits, Rows};

const SHARDS: u32 = 3;

#[derive(Clone, Copy, Debug)]
enum Op {
    Join(u32),
    Leave(u32),
    Notify,
    /// A member that joined so many tickets ago wants a read.
    Want(u32, u64),
    Start,
    Finish,
    Fail,
    Resume,
    Take(u32),
}

fn op() -> impl Strategy<Value = Op> {
    let shard = 0..SHARDS;
    prop_oneof![
        4 => shard.clone().prop_map(Op::Join),
        2 => shard.clone().prop_map(Op::Leave),
        4 => Just(Op::Notify),
        4 => (shard.clone(), 0..3u64).prop_map(|(shard, ago)| Op::Want(shard, ago)),
        6 => Just(Op::Start),
        4 => Just(Op::Finish),
        1 => Just(Op::Fail),
        2 => Just(Op::Resume),
        4 => shard.prop_map(Op::Take),
    ]
}

/// A group that tells its read.
fn group(ticket: Ticket) -> Group {
    let limits = RowLimits { rows: 1, bytes: 1000 };
    Group::build(&Rows::one(ticket.0.to_string()), limits).unwrap()
}

/// What one shard is owed, and what it was told to take.
struct Side {
    topic: TopicId,
    /// Everyone needs a read with a later ticket than this.
    all: Option<Ticket>,
    /// Some member needs one.
    wanting: Option<Ticket>,
    /// It was told to take, and has not.
    is_marked: bool,
    /// Among the reads that it was told of is one for everyone.
    for_all: bool,
}

/// A flight, driven as the node does it, beside what its shards are owed.
struct Story {
    flight: Flight,
    sides: BTreeMap<u32, Side>,
    running: Option<Ticket>,
    is_waiting: bool,
    failures: u32,
    /// There was a notify and no read has begun since, or it failed.
    notified: bool,
    running_for_all: bool,
    newest: Ticket,
    /// The one drawn last. Other flights draw too.
    ticket: Ticket,
    topics: u32,
}

impl Story {
    fn new(ticket: Ticket) -> Self {
        let key = EntityKey::new("items", "1").unwrap();
        Self {
            flight: Flight::new(key, Audience::Public, EntityIndex::default(), &EntityOptions::default()),
            sides: BTreeMap::new(),
            running: None,
            is_waiting: false,
            failures: 0,
            notified: false,
            running_for_all: false,
            newest: Ticket(0),
            ticket,
            topics: 0,
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Join(shard) => self.join(shard),
            Op::Leave(shard) => {
                self.sides.remove(&shard);
                self.notified &= !self.sides.is_empty();
                self.flight.leave(shard);
            }
            Op::Notify => {
                self.flight.owe_to_all();
                self.notified = !self.sides.is_empty();
                for side in self.sides.values_mut() {
                    side.all = Some(self.ticket);
                }
            }
            Op::Want(shard, ago) => {
                let joined = Ticket(self.ticket.0 - ago);
                self.flight.owe_to_wanting(shard, joined);
                if let Some(side) = self.sides.get_mut(&shard) {
                    side.wanting = side.wanting.max(Some(joined));
                }
            }
            Op::Start => self.start(),
            Op::Finish => self.finish(),
            Op::Fail => {
                if self.running.take().is_some() {
                    self.failures += 1;
                    assert_eq!(self.flight.fail(), self.failures);
                    self.is_waiting = true;
                    self.notified |= self.running_for_all;
                }
            }
            Op::Resume => {
                self.flight.resume();
                self.is_waiting = false;
            }
            Op::Take(shard) => self.take(shard),
        }
        assert_eq!(self.flight.is_over(), self.sides.is_empty() && self.running.is_none());
        if self.flight.is_over() {
            *self = Self::new(self.ticket);
        }
    }

    fn join(&mut self, shard: u32) {
        self.topics += 1;
        let topic = TopicId(SlotId {
            index: self.topics,
            generation: 0,
        });
        if let std::collections::btree_map::Entry::Vacant(entry) = self.sides.entry(shard) {
            self.flight.join(shard, topic);
            entry.insert(Side {
                topic,
                all: None,
                wanting: None,
                is_marked: false,
                for_all: false,
            });
        }
    }

    fn start(&mut self) {
        self.ticket.0 += 1;
        if !self.flight.is_due() {
            return;
        }
        self.flight.start(self.ticket);
        assert!(!self.is_waiting, "the backoff has not passed");
        assert_eq!(self.running.replace(self.ticket), None, "two reads at a time");
        self.running_for_all = std::mem::take(&mut self.notified);
    }

    fn finish(&mut self) {
        let Some(ticket) = self.running.take() else {
            return;
        };
        let mut told = Vec::new();
        self.flight
            .finish(ticket, group(ticket), None, |shard| told.push(shard));
        (self.newest, self.failures) = (ticket, 0);
        for shard in told {
            let side = self.sides.get_mut(&shard).unwrap();
            assert!(!std::mem::replace(&mut side.is_marked, true), "{shard} is told twice");
        }
        for side in self.sides.values_mut() {
            let is_asked_for = side.wanting.is_some_and(|joined| joined < ticket);
            assert!(side.is_marked || !(self.running_for_all || is_asked_for));
            side.for_all |= self.running_for_all;
        }
    }

    fn take(&mut self, shard: u32) {
        let delivery = self.flight.take(shard);
        let side = self.sides.get_mut(&shard).filter(|side| side.is_marked);
        assert_eq!(delivery.is_some(), side.is_some());
        let (Some(delivery), Some(side)) = (delivery, side) else {
            return;
        };
        assert_eq!((delivery.ticket, delivery.topic), (self.newest, side.topic));
        assert_eq!(delivery.group.bytes(), group(self.newest).bytes());
        assert_eq!(delivery.scope == Scope::All, side.for_all);
        side.wanting = side.wanting.filter(|&joined| joined >= delivery.ticket);
        if side.for_all {
            side.all = side.all.filter(|&notified| notified >= delivery.ticket);
        }
        (side.is_marked, side.for_all) = (false, false);
    }

    fn check(&self) {
        assert_eq!(self.flight.is_running(self.ticket), self.running == Some(self.ticket));
        let is_idle = self.running.is_none() && !self.is_waiting;
        assert!(is_idle || !self.flight.is_due());
        assert!(self.flight.is_due() || !(is_idle && self.notified));
        let is_any_marked = self.sides.values().any(|side| side.is_marked);
        assert_eq!(
            self.flight.newest.is_some(),
            is_any_marked,
            "rows are lost or kept for nobody"
        );
        for (&shard, side) in &self.sides {
            let is_owed = side.all.is_some() || side.wanting.is_some();
            assert!(self.flight.is_busy_for(shard) || !is_owed, "{shard} is forgotten");
        }
    }

    /// What runs is finished, and one more read must do for all that is owed (G3).
    fn settle(&mut self) {
        for op in [Op::Finish, Op::Resume, Op::Start, Op::Finish] {
            self.apply(op);
            self.check();
        }
        for shard in 0..SHARDS {
            self.apply(Op::Take(shard));
            self.check();
        }
        assert!(!self.flight.is_due());
        for (&shard, side) in &self.sides {
            assert_eq!(
                (side.all, side.wanting),
                (None, None),
                "{shard} did not get what it was owed"
            );
            assert!(!self.flight.is_busy_for(shard));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_is_owed_is_delivered_by_a_later_read(ops in prop::collection::vec(op(), 1..60)) {
        let mut story = Story::new(Ticket(2));
        for op in ops {
            story.apply(op);
            story.check();
        }
        story.settle();
    }
}

#[test]
fn backoff_doubles_up_to_its_limit() {
    let backoff = Backoff {
        first: Duration::from_millis(100),
        max: Duration::from_secs(30),
    };
    let wait = |failures, chance| {
        backoff
            .until(Timestamp::START, failures, chance)
            .since(Timestamp::START)
    };
    assert_eq!(wait(1, 0), Duration::from_millis(50));
    assert_eq!(wait(2, 0), Duration::from_millis(100));
    assert_eq!(wait(u32::MAX, 0), Duration::from_secs(15));
    for failures in 1..50 {
        let longest = (0..100)
            .map(|i| wait(failures, u64::wrapping_mul(i, 0x9e37_79b9_7f4a_7c15)))
            .max();
        assert!(longest <= Some(Duration::from_secs(30)));
    }
}
