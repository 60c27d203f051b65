mod looks;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::frame::{RowLimits, Rows};

const SHARDS: u32 = 3;

/// After how many seconds the store is looked at again.
const SETTLE: u64 = 3;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// Another member joins on this shard.
    Join(u32),
    /// All members on this shard leave.
    Leave(u32),
    Notify,
    /// One of the shard's members wants a read; perhaps reads that have begun already are not good enough.
    Want(u32, usize, bool),
    /// If one is due: it begins.
    Start,
    /// One begins if it is due, and gives a state.
    Read(u8),
    /// If one is due: it has to wait for its turn.
    Queue,
    /// The flight's turn has come, if it waits for it.
    CallUp,
    /// The read gives one of a few states.
    Finish(u8),
    Fail,
    Resume,
    Take(u32),
    /// So many seconds pass.
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let shard = 0..SHARDS;
    prop_oneof![
        4 => shard.clone().prop_map(Op::Join),
        2 => shard.clone().prop_map(Op::Leave),
        4 => Just(Op::Notify),
        4 => (shard.clone(), 0..3usize, any::<bool>()).prop_map(|(shard, which, afresh)| Op::Want(shard, which, afresh)),
        6 => Just(Op::Start),
        4 => (0..2u8).prop_map(Op::Read),
        2 => Just(Op::Queue),
        3 => Just(Op::CallUp),
        5 => (0..2u8).prop_map(Op::Finish),
        2 => Just(Op::Fail),
        2 => Just(Op::Resume),
        6 => shard.prop_map(Op::Take),
        4 => (1..=SETTLE).prop_map(Op::Wait),
    ]
}

/// The flight's entity.
#[derive(Clone, Copy, Debug)]
struct Kind {
    every: bool,
    settles: bool,
}

fn kind() -> impl Strategy<Value = Kind> {
    any::<(bool, bool)>().prop_map(|(every, settles)| Kind { every, settles })
}

/// A group that tells its read and the state that it found.
fn group(ticket: Ticket, state: u8) -> Group {
    let limits = RowLimits { rows: 1, bytes: 1000 };
    Group::build(&Rows::one(format!("{} {state}", ticket.0)), limits).unwrap()
}

/// A member of a shard's topic, as the shard keeps it.
struct Member {
    joined: Ticket,
    wants: bool,
    /// The state that it was given last.
    has: Option<u8>,
}

/// What one shard is owed, and what it was told to take.
struct Side {
    topic: TopicId,
    /// Those that it has.
    members: Vec<Member>,
    /// Everyone needs a read with a later ticket than this.
    all: Option<Ticket>,
    /// Some member needs one.
    wanting: Option<Ticket>,
    /// For whom the reads were that it was told of and has not taken. Empty if it was not told.
    told: Vec<Scope>,
    /// Reads for notifies that have finished since it joined.
    pushes: u32,
    /// Those of them that it has taken.
    taken: u32,
}

/// A flight, driven as the node does it, beside what its shards are owed.
struct Story {
    flight: Flight,
    kind: Kind,
    sides: BTreeMap<u32, Side>,
    running: Option<Ticket>,
    is_waiting: bool,
    turn: Option<Turn>,
    turns: u64,
    failures: u32,
    /// Notifies that no read has begun for, or it failed. One at most if states may be skipped.
    notified: u32,
    running_for_all: bool,
    /// Members have wanted something since the last read began, or it failed.
    wanted: bool,
    running_wanted: bool,
    /// The store is to be looked at again, or is being.
    owed_silently: bool,
    running_silently: bool,
    /// When to look at it.
    look_at: Option<Timestamp>,
    /// When the node will come back for that.
    alarm: Option<Timestamp>,
    /// The read that gave everyone its state last, unless single members were given another one since.
    given: Option<(Ticket, u8)>,
    /// The last read that gave something, and its state.
    newest: (Ticket, u8),
    /// The last read that gave everyone its state. Where the store is to settle, none that gave single members another
    /// state stays the last.
    for_everyone: (Ticket, u8),
    /// The one drawn last. Other flights draw too.
    ticket: Ticket,
    now: Timestamp,
    topics: u32,
}

impl Story {
    fn new(kind: Kind, ticket: Ticket, now: Timestamp) -> Self {
        let key = EntityKey::new("items", "1").unwrap();
        let options = EntityOptions {
            delivery: match kind.every {
                true => crate::entity::Delivery::Every,
                false => crate::entity::Delivery::Latest,
            },
            settle: kind.settles.then_some(Duration::from_secs(SETTLE)),
            ..EntityOptions::default()
        };
        Self {
            flight: Flight::new(
                key,
                Audience::Public,
                crate::hash::NameHash { key: 0, name: 0 },
                EntityIndex::default(),
                &options,
                options.settle.is_some(),
            ),
            kind,
            sides: BTreeMap::new(),
            running: None,
            is_waiting: false,
            turn: None,
            turns: 0,
            failures: 0,
            notified: 0,
            running_for_all: false,
            wanted: false,
            running_wanted: false,
            owed_silently: false,
            running_silently: false,
            look_at: None,
            alarm: None,
            given: None,
            newest: (Ticket(0), 0),
            for_everyone: (Ticket(0), 0),
            ticket,
            now,
            topics: 0,
        }
    }

    fn play(kind: Kind, ops: impl IntoIterator<Item = Op>) -> Self {
        let mut story = Self::new(kind, Ticket(2), Timestamp::START);
        for op in ops {
            story.apply(op);
            story.check();
        }
        story
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Join(shard) => self.join(shard),
            Op::Leave(shard) => {
                self.sides.remove(&shard);
                if self.sides.is_empty() {
                    (self.notified, self.owed_silently) = (0, false);
                }
                self.flight.leave(shard);
            }
            Op::Notify => {
                self.flight.owe_to_all(Timestamp::START);
                self.notify();
                for side in self.sides.values_mut() {
                    side.all = Some(self.ticket);
                }
            }
            Op::Want(shard, which, afresh) => self.want(shard, which, afresh),
            Op::Start => {
                // Other flights draw too.
                self.ticket.0 += 1;
                if self.flight.is_due() {
                    self.start();
                }
            }
            Op::Read(state) => {
                self.apply(Op::Start);
                self.apply(Op::Finish(state));
            }
            Op::Queue => {
                if self.flight.is_due() {
                    assert!(self.running.is_none() && !self.is_waiting && self.turn.is_none());
                    self.turns += 1;
                    let turn = Turn {
                        lane: [Lane::Notified, Lane::Asked, Lane::Again][(self.turns % 3) as usize],
                        number: self.turns,
                    };
                    self.flight.queue(turn);
                    self.turn = Some(turn);
                }
            }
            Op::CallUp => {
                let waited = self.turn.take();
                let has_waited = waited.is_some();
                let called = self.flight.call_up();
                assert!(called.is_none() || called == waited.map(|it| it.lane));
                let begins = called.is_some();
                assert!(has_waited || !begins, "it was not its turn");
                assert!(begins || !has_waited || self.notified == 0, "its turn is lost");
                if begins {
                    self.start();
                }
            }
            Op::Finish(state) => self.finish(state),
            Op::Fail => {
                if self.running.take().is_some() {
                    self.failures += 1;
                    assert_eq!(self.flight.fail(), self.failures);
                    self.is_waiting = true;
                    self.wanted |= self.running_wanted;
                    if self.running_for_all {
                        self.notify();
                    }
                    self.owed_silently |= self.running_silently && !self.sides.is_empty();
                }
            }
            Op::Resume => {
                self.flight.resume();
                self.is_waiting = false;
            }
            Op::Take(shard) => self.take(shard),
            Op::Wait(seconds) => self.wait(seconds),
        }
        assert_eq!(self.flight.is_over(), self.sides.is_empty() && self.running.is_none());
        if self.flight.is_over() {
            *self = Self::new(self.kind, self.ticket, self.now);
        }
    }

    fn join(&mut self, shard: u32) {
        let side = self.sides.entry(shard).or_insert_with(|| {
            self.topics += 1;
            let topic = TopicId(SlotId {
                index: self.topics,
                generation: 0,
            });
            self.flight.join(shard, topic);
            Side {
                topic,
                members: Vec::new(),
                all: None,
                wanting: None,
                told: Vec::new(),
                pushes: 0,
                taken: 0,
            }
        });
        side.members.push(Member {
            joined: self.ticket,
            wants: false,
            has: None,
        });
    }

    /// Everyone is owed a read more, if there is anyone.
    fn notify(&mut self) {
        self.notified = match (self.sides.is_empty(), self.kind.every) {
            (true, _) => 0,
            (false, true) => self.notified + 1,
            (false, false) => 1,
        };
    }

    fn want(&mut self, shard: u32, which: usize, afresh: bool) {
        let Some(side) = self.sides.get_mut(&shard) else {
            return self.flight.owe_to_wanting(shard, self.ticket);
        };
        let which = which % side.members.len();
        let member = &mut side.members[which];
        member.wants = true;
        if afresh {
            member.joined = self.ticket;
        }
        side.wanting = side.wanting.max(Some(member.joined));
        self.flight.owe_to_wanting(shard, member.joined);
        (self.wanted, self.running_wanted) = (true, true);
    }

    fn start(&mut self) {
        assert!(!self.is_waiting, "the backoff has not passed");
        assert_eq!(self.turn, None, "its turn has not come");
        assert_eq!(self.running, None, "two reads at a time");
        let is_any_marked = self.sides.values().any(|side| !side.told.is_empty());
        assert!(!(self.kind.every && is_any_marked), "rows would need a queue");
        assert!(self.notified > 0 || self.wanted || self.owed_silently, "for nobody");
        self.ticket.0 += 1;
        self.flight.start(self.ticket);
        self.running = Some(self.ticket);
        self.running_for_all = self.notified > 0;
        self.notified = self.notified.saturating_sub(1);
        self.running_wanted = std::mem::take(&mut self.wanted);
        self.running_silently = std::mem::take(&mut self.owed_silently);
        let is_wanted = self.running_for_all || !self.running_silently;
        assert!(!(is_wanted && self.flight.runs_silently()));
        assert!(self.flight.runs_silently() || is_wanted || self.running_wanted);
    }

    fn finish(&mut self, state: u8) {
        let Some(ticket) = self.running.take() else {
            return;
        };
        let mut told = Vec::new();
        let fingerprint = self.kind.settles.then_some(Fingerprint(state.into()));
        let finished = self
            .flight
            .finish(ticket, group(ticket, state), fingerprint, |shard| told.push(shard));
        (self.newest, self.failures) = ((ticket, state), 0);
        let is_same = self.given.is_some_and(|(_, before)| before == state);
        let is_for_everyone = self.running_for_all || self.running_silently;
        let scope = match self.given {
            Some((given, _)) if is_same && !self.running_for_all => Scope::Since(given),
            _ => Scope::All,
        };
        let is_wanted = self.sides.values().any(|side| {
            let is_asked_for = side.wanting.is_some_and(|joined| joined < ticket);
            is_asked_for && side.told.is_empty()
        });
        assert!(!(finished.is_silent && (self.running_for_all || is_wanted)));
        assert!(finished.is_silent || self.running_for_all || self.running_wanted);
        assert_eq!(
            finished.is_unchanged,
            self.running_silently && !self.running_for_all && is_same
        );
        for (shard, side) in &mut self.sides {
            let is_told = told.contains(shard);
            let is_asked_for = side.wanting.is_some_and(|joined| joined < ticket);
            let was_marked = !side.told.is_empty();
            assert!(!(is_told && was_marked), "{shard} is told twice");
            assert!(is_told || was_marked || !(is_for_everyone || is_asked_for));
            if is_for_everyone {
                side.told.push(scope);
            } else if is_told || was_marked {
                side.told.push(Scope::Wanting);
            }
            side.pushes += u32::from(self.running_for_all);
        }
        if is_for_everyone {
            self.given = Some((ticket, state));
            self.for_everyone = (ticket, state);
        } else if !is_same {
            self.given = None;
        }
        if self.kind.settles && !finished.is_silent {
            let at = self.now + Duration::from_secs(SETTLE);
            let is_new = self.flight.settle_at(at);
            assert_eq!(is_new, self.look_at.is_none());
            self.look_at = Some(at);
            if is_new {
                self.alarm = Some(at);
            }
        }
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
        if self.alarm.is_none_or(|at| at > self.now) {
            return;
        }
        self.alarm = self.flight.settle(self.now);
        match self.look_at {
            Some(at) if at > self.now => assert_eq!(self.alarm, Some(at), "it looks too early"),
            _ => {
                assert_eq!(self.alarm, None);
                self.look_at = None;
                self.owed_silently = !self.sides.is_empty();
            }
        }
    }

    fn take(&mut self, shard: u32) {
        let delivery = self.flight.take(shard);
        let side = self.sides.get_mut(&shard).filter(|side| !side.told.is_empty());
        assert_eq!(delivery.is_some(), side.is_some());
        let (Some(delivery), Some(side)) = (delivery, side) else {
            return;
        };
        let (newest, state) = self.newest;
        assert_eq!((delivery.ticket, delivery.topic), (newest, side.topic));
        assert_eq!(delivery.group.bytes(), group(newest, state).bytes());
        assert_eq!(delivery.every, self.kind.every);
        // What took the place of others is for all that those were for.
        let since = side.told.iter().filter_map(|scope| match scope {
            Scope::Since(ticket) => Some(*ticket),
            _ => None,
        });
        let scope = match since.min() {
            _ if side.told.contains(&Scope::All) => Scope::All,
            Some(ticket) => Scope::Since(ticket),
            None => Scope::Wanting,
        };
        assert_eq!(delivery.scope, scope);
        assert!(!self.kind.every || side.told.len() == 1, "rows were skipped");
        for member in &mut side.members {
            let is_for_it = match scope {
                Scope::All => true,
                Scope::Since(ticket) => member.wants || member.joined >= ticket,
                Scope::Wanting => member.wants,
            };
            if is_for_it && member.joined < delivery.ticket {
                (member.wants, member.has) = (false, Some(state));
            }
        }
        side.wanting = side.wanting.filter(|&joined| joined >= delivery.ticket);
        if scope == Scope::All {
            side.all = side.all.filter(|&notified| notified >= delivery.ticket);
        }
        side.told.clear();
        side.taken = side.pushes;
    }

    fn check(&self) {
        assert_eq!(self.flight.is_running(self.ticket), self.running == Some(self.ticket));
        assert_eq!(self.flight.runs(), self.running.is_some());
        assert_eq!(self.flight.turn(), self.turn);
        assert_eq!(self.flight.owed_to_all.len(), self.notified);
        let is_any_marked = self.sides.values().any(|side| !side.told.is_empty());
        let is_idle = self.running.is_none() && !self.is_waiting && self.turn.is_none();
        let may_begin = is_idle && !(self.kind.every && is_any_marked);
        assert!(may_begin || !self.flight.is_due());
        let is_owed = self.notified > 0 || self.owed_silently;
        assert!(self.flight.is_due() || !(may_begin && is_owed));
        assert_eq!(
            self.flight.newest.is_some(),
            is_any_marked,
            "rows are lost or kept for nobody"
        );
        for (&shard, side) in &self.sides {
            let is_owed = side.all.is_some() || side.wanting.is_some() || self.look_at.is_some();
            assert!(self.flight.is_busy_for(shard) || !is_owed, "{shard} is forgotten");
            assert!(side.pushes - side.taken <= 1 || !self.kind.every);
        }
    }

    fn take_all(&mut self) {
        for shard in 0..SHARDS {
            self.apply(Op::Take(shard));
            self.check();
        }
    }

    /// What runs is finished, and one more read must do for all that is owed (G3); or for each notify, one. Where the
    /// store is to settle, one more looks at it.
    fn settle(&mut self) {
        let mut state = 0;
        let mut read = |story: &mut Self| {
            for op in [Op::Resume, Op::Queue, Op::CallUp] {
                story.apply(op);
                story.check();
            }
            state = 1 - state;
            story.apply(Op::Finish(state));
            story.check();
            story.take_all();
        };
        for op in [Op::CallUp, Op::Finish(0)] {
            self.apply(op);
            self.check();
        }
        self.take_all();
        for _ in 0..self.notified.max(1) {
            read(self);
        }
        assert!(!self.flight.is_due());
        if self.kind.settles {
            self.apply(Op::Wait(SETTLE));
            read(self);
            assert!(!self.flight.is_due());
            assert_eq!((self.look_at, self.alarm), (None, None));
        }
        for (&shard, side) in &self.sides {
            assert_eq!(
                (side.all, side.wanting, side.pushes),
                (None, None, side.taken),
                "{shard} did not get what it was owed"
            );
            assert!(!self.flight.is_busy_for(shard));
            let (read, state) = self.for_everyone;
            let joined_before = side.members.iter().filter(|it| it.joined < read);
            for member in joined_before.filter(|_| self.kind.settles) {
                assert!(!member.wants);
                assert_eq!(member.has, Some(state), "{shard} shows an old state");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_is_owed_is_delivered_by_a_later_read(kind in kind(), ops in prop::collection::vec(op(), 1..100)) {
        Story::play(kind, ops).settle();
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
