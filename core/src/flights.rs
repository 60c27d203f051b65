//! [`Flight`]: the reads of one audience of one key, at most one running and one more owed (G3).
//!
//! Life of a flight, as the node drives it:
//!
//! ```text
//!            owed, then start                 answered, nothing owed
//!   Idle ───────────────────────▶ Running ───────────────────────────▶ Idle
//!                                 │    ▲ │ answered, owed: Running again, with a new ticket
//!            failed or timed out  │    │ └─┘
//!                                 ▼    │ the backoff has passed
//!                                 Waiting
//! ```
//!
//! When as many reads of the entity run as may, a flight that is due is Queued first, until its turn.

mod owed;

use std::time::Duration;

use smallvec::SmallVec;

use crate::entity::{EntityIndex, EntityOptions};
use crate::frame::Group;
use crate::hash::NameHash;
use crate::key::EntityKey;
use crate::resolve::Audience;
use crate::slots::SlotId;
use crate::subscriptions::TopicId;
use crate::time::Timestamp;
use owed::Owed;

/// The order in which reads of one node began. A subscriber receives only reads with a later ticket than the one that was
/// current when it joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) u64);

/// A flight of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FlightId {
    pub(crate) stripe: u32,
    pub(crate) slot: SlotId,
}

impl FlightId {
    /// No flight.
    pub(crate) const NOWHERE: Self = Self {
        stripe: u32::MAX,
        slot: SlotId {
            index: u32::MAX,
            generation: u32::MAX,
        },
    };
}

pub(crate) struct Flight {
    pub(crate) key: EntityKey,
    pub(crate) audience: Audience,
    pub(crate) entity: EntityIndex,
    pub(crate) hash: NameHash,
    /// A read that only looks whether something has changed is owed.
    owed_silently: bool,
    running_silently: bool,
    /// The running read serves everyone, and this is when they were first told that it is due.
    running_for_all: Option<Timestamp>,
    /// Reads owed to everyone, for notifies.
    owed_to_all: Owed,
    /// Failed reads in a row.
    failures: u32,
    state: State,
    /// The newest read whose rows are for everyone, or are known to everyone.
    began_for_all: Ticket,
    repair: Repair,
    /// Its store may lag behind, so that a silent look proves nothing about what has changed shortly before.
    settles: bool,
    /// One for each shard with subscribers.
    interests: SmallVec<[Interest; 1]>,
    /// The newest rows, until every marked shard has taken them.
    newest: Option<(Ticket, Group)>,
    /// Only where looks are silent: of entities that settle, and all in a cluster.
    settling: Option<Box<Settling>>,
}

/// Where reads wait for their turns: see [`gate`](crate::node). An earlier lane is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// For reads that answer a notify.
    Notified,
    /// For reads that single clients need.
    Asked,
    /// For all others.
    Again,
}

impl Lane {
    pub(crate) const COUNT: usize = 3;
}

/// The place of a flight among those that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) lane: Lane,
    /// The order within the lane. Two flights may have the same.
    pub(crate) number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// Due, but as many reads of its entity are running as may.
    Queued(Turn),
    Running(Ticket),
    Waiting,
}

/// Whether everyone may have missed a change, and is to be read for unless a read for all begins before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repair {
    None,
    /// It stands in a queue of repairs, and needs none any more.
    Queued,
    /// It stands in a queue of repairs.
    Due,
}

impl Repair {
    /// A read for all has begun, or there is nobody to read for.
    fn done(&mut self) {
        if *self == Self::Due {
            *self = Self::Queued;
        }
    }
}

#[derive(Default)]
struct Settling {
    /// When to look again.
    at: Option<Timestamp>,
    /// What everyone was given last: all that joined before that ticket have it, or are owed better.
    given: Option<(Ticket, Fingerprint)>,
}

/// Tells the rows of two reads apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(pub(crate) u128);

/// A shard's interest in a flight.
#[derive(Clone, Copy, Debug)]
struct Interest {
    shard: u32,
    topic: TopicId,
    /// A read is owed to single members of the shard.
    owed: bool,
    /// The running read serves single members of the shard.
    running: bool,
    /// What the shard has been told to take and has not taken yet.
    mark: Option<Scope>,
    /// About how many members the shard's topic has: the logarithm to base 2, or 0 for few.
    weight: u8,
}

/// Which members of a topic a group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those that asked.
    Wanting,
    /// Those that asked, and those that joined at this ticket or later: the others have the same rows.
    Since(Ticket),
    /// All that joined before the read began.
    All,
}

impl Scope {
    /// For whom rows are that take the place of others before a shard has taken those.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::All, _) | (_, Self::All) => Self::All,
            (Self::Since(a), Self::Since(b)) => Self::Since(a.min(b)),
            (Self::Since(ticket), Self::Wanting) | (Self::Wanting, Self::Since(ticket)) => Self::Since(ticket),
            (Self::Wanting, Self::Wanting) => Self::Wanting,
        }
    }
}

/// Rows for a shard to deliver.
pub(crate) struct Delivery {
    pub(crate) topic: TopicId,
    pub(crate) ticket: Ticket,
    pub(crate) group: Group,
    pub(crate) scope: Scope,
    /// It may not take the place of earlier rows.
    pub(crate) every: bool,
}

impl Flight {
    /// `looks` says that reads may only look whether something has changed.
    pub(crate) fn new(
        key: EntityKey,
        audience: Audience,
        hash: NameHash,
        entity: EntityIndex,
        options: &EntityOptions,
        looks: bool,
    ) -> Self {
        Self {
            key,
            audience,
            entity,
            hash,
            owed_silently: false,
            running_silently: false,
            running_for_all: None,
            owed_to_all: match options.delivery {
                crate::entity::Delivery::Latest => Owed::Latest(None),
                crate::entity::Delivery::Every => Owed::Every(Box::default()),
            },
            failures: 0,
            state: State::Idle,
            began_for_all: Ticket(0),
            repair: Repair::None,
            settles: options.settle.is_some(),
            interests: SmallVec::new(),
            newest: None,
            settling: looks.then(Box::default),
        }
    }

    /// From now on, reads may only look whether something has changed.
    pub(crate) fn begin_looking(&mut self) {
        self.settling.get_or_insert_default();
    }

    pub(crate) fn join(&mut self, shard: u32, topic: TopicId) {
        debug_assert!(self.interest(shard).is_none());
        self.interests.push(Interest {
            shard,
            topic,
            owed: false,
            running: false,
            mark: None,
            weight: 0,
        });
    }

    pub(crate) fn leave(&mut self, shard: u32) {
        self.interests.retain(|interest| interest.shard != shard);
        if self.interests.is_empty() {
            self.owed_to_all.clear();
            self.owed_silently = false;
            self.repair.done();
        }
        self.forget_taken();
    }

    /// Nobody is subscribed and no read is running: to be removed. A running read keeps its flight, so that leaving and
    /// joining can't start a second one.
    pub(crate) fn is_over(&self) -> bool {
        self.interests.is_empty() && !self.runs()
    }

    /// There was a notify. Without subscribers it owes nothing.
    pub(crate) fn owe_to_all(&mut self, now: Timestamp) {
        if !self.interests.is_empty() {
            self.owed_to_all.add(now);
        }
    }

    /// Single members of a shard, the earliest of which joined at `joined`, need a read.
    pub(crate) fn owe_to_wanting(&mut self, shard: u32, joined: Ticket) {
        // A running read that they will receive anyway is enough.
        let served = matches!(self.state, State::Running(ticket) if ticket > joined);
        if served && self.running_for_all.is_some() {
            return;
        }
        if let Some(interest) = self.interest_mut(shard) {
            if served {
                interest.running = true;
            } else {
                interest.owed = true;
            }
        }
    }

    /// The store is to be looked at again: its rows may have been old ones.
    fn owe_silently(&mut self) {
        self.owed_silently = !self.interests.is_empty();
    }

    /// A change may have been missed by everyone who was not given a read that began after `since`. Says whether that is
    /// to be put into the queue of repairs.
    pub(crate) fn repair_since(&mut self, since: Ticket) -> bool {
        let is_owed = !self.owed_to_all.is_empty() || (self.owed_silently && !self.settles);
        if self.interests.is_empty() || self.began_for_all > since || is_owed {
            return false;
        }
        std::mem::replace(&mut self.repair, Repair::Due) == Repair::None
    }

    /// Its repair has come up in the queue. Says whether one was still due.
    pub(crate) fn repair(&mut self) -> bool {
        let is_due = std::mem::replace(&mut self.repair, Repair::None) == Repair::Due;
        if is_due {
            self.owe_silently();
        }
        is_due
    }

    /// A shard's topic has about `2^weight` members.
    pub(crate) fn weigh(&mut self, shard: u32, weight: u8) {
        if let Some(interest) = self.interest_mut(shard) {
            interest.weight = weight;
        }
    }

    /// The weight of the shard with the most members.
    pub(crate) fn weight(&self) -> u8 {
        self.interests.iter().map(|it| it.weight).max().unwrap_or_default()
    }

    /// Whether a read can begin now: one is owed and the flight is idle. Where nothing may be skipped, every shard must
    /// have taken the rows before, so that they need no queue.
    pub(crate) fn is_due(&self) -> bool {
        self.state == State::Idle && self.is_owed() && !(self.owed_to_all.is_every() && self.newest.is_some())
    }

    /// It has to wait for its turn, or has been given another one.
    pub(crate) fn queue(&mut self, turn: Turn) {
        debug_assert!(self.is_due() || self.turn().is_some());
        self.state = State::Queued(turn);
    }

    pub(crate) fn turn(&self) -> Option<Turn> {
        match self.state {
            State::Queued(turn) => Some(turn),
            _ => None,
        }
    }

    /// Its turn has come. Says where it waited, if a read is still due.
    pub(crate) fn call_up(&mut self) -> Option<Lane> {
        let lane = self.turn()?.lane;
        self.state = State::Idle;
        self.is_due().then_some(lane)
    }

    pub(crate) fn start(&mut self, ticket: Ticket) {
        debug_assert!(self.is_due());
        self.state = State::Running(ticket);
        self.running_for_all = self.owed_to_all.take();
        self.running_silently = std::mem::take(&mut self.owed_silently);
        if self.running_for_all.is_some() || (self.running_silently && !self.settles) {
            self.began_for_all = ticket;
            self.repair.done();
        }
        for interest in &mut self.interests {
            interest.running = std::mem::take(&mut interest.owed);
        }
    }

    /// The running read looks whether something has changed, and nothing else.
    pub(crate) fn runs_silently(&self) -> bool {
        self.running_silently && self.running_for_all.is_none() && !self.interests.iter().any(|it| it.running)
    }

    pub(crate) fn runs(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    pub(crate) fn is_running(&self, ticket: Ticket) -> bool {
        self.state == State::Running(ticket)
    }

    /// A read is owed for a notify.
    pub(crate) fn is_notified(&self) -> bool {
        !self.owed_to_all.is_empty()
    }

    /// The running read gave `group`. Calls `mark` for each shard that has to be told.
    pub(crate) fn finish(
        &mut self,
        ticket: Ticket,
        group: Group,
        fingerprint: Option<Fingerprint>,
        mut mark: impl FnMut(u32),
    ) -> Finished {
        debug_assert!(self.is_running(ticket));
        self.state = State::Idle;
        self.failures = 0;
        let since = std::mem::take(&mut self.running_for_all);
        let for_all = since.is_some();
        let silently = std::mem::take(&mut self.running_silently);
        let (mut is_unchanged, mut for_wanting) = (false, false);
        let for_everyone = match (for_all, silently) {
            (true, _) => Some(Scope::All),
            (false, true) => Some(match self.given() {
                Some((given, before)) if Some(before) == fingerprint => {
                    is_unchanged = true;
                    Scope::Since(given)
                }
                _ => Scope::All,
            }),
            (false, false) => None,
        };
        if let Some(settling) = &mut self.settling {
            let now = fingerprint.map(|fingerprint| (ticket, fingerprint));
            settling.given = match settling.given {
                _ if for_everyone.is_some() => now,
                // Single members may have been given an older state than the others have.
                given => given.filter(|(_, given)| Some(*given) == fingerprint),
            };
        }
        for interest in &mut self.interests {
            let wanting = std::mem::take(&mut interest.running);
            for_wanting |= wanting;
            let Some(scope) = for_everyone.or(wanting.then_some(Scope::Wanting)) else {
                continue;
            };
            // Whoever has not taken the older rows gets these instead, for the wider of both scopes.
            interest.mark = Some(match interest.mark {
                Some(older) => older.or(scope),
                None => {
                    mark(interest.shard);
                    scope
                }
            });
        }
        self.newest = Some((ticket, group.answering(since)));
        self.forget_taken();
        Finished {
            is_silent: !for_all && !for_wanting,
            is_unchanged,
        }
    }

    /// The running read failed: all that it was for is owed again. Returns how often in a row that happened.
    pub(crate) fn fail(&mut self) -> u32 {
        self.state = State::Waiting;
        self.failures = self.failures.saturating_add(1);
        if let Some(since) = std::mem::take(&mut self.running_for_all)
            && !self.interests.is_empty()
        {
            self.owed_to_all.give_back(since);
        }
        if std::mem::take(&mut self.running_silently) {
            self.owe_silently();
        }
        for interest in &mut self.interests {
            interest.owed |= std::mem::take(&mut interest.running);
        }
        self.failures
    }

    /// The backoff has passed.
    pub(crate) fn resume(&mut self) {
        if self.state == State::Waiting {
            self.state = State::Idle;
        }
    }

    /// Asks to be called by [`Self::settle`] at `at`. Says whether that is to be noted: not if it was already asked.
    pub(crate) fn settle_at(&mut self, at: Timestamp) -> bool {
        let Some(settling) = &mut self.settling else {
            return false;
        };
        settling.at.replace(at).is_none()
    }

    /// The time to look again may have come. Says when to call this again, if it hasn't.
    pub(crate) fn settle(&mut self, now: Timestamp) -> Option<Timestamp> {
        let at = &mut self.settling.as_mut()?.at;
        match *at {
            Some(later) if later > now => return Some(later),
            Some(_) => {
                *at = None;
                self.owe_silently();
            }
            None => {}
        }
        None
    }

    /// Gives a marked shard the newest rows.
    pub(crate) fn take(&mut self, shard: u32) -> Option<Delivery> {
        let (ticket, group) = self.newest.clone()?;
        let every = self.owed_to_all.is_every();
        let interest = self.interest_mut(shard)?;
        let scope = interest.mark.take()?;
        let topic = interest.topic;
        self.forget_taken();
        Some(Delivery {
            topic,
            ticket,
            group,
            scope,
            every,
        })
    }

    /// Whether rows are on their way to this shard: being read, owed, to be looked for later, to be repaired, or
    /// waiting to be taken.
    pub(crate) fn is_busy_for(&self, shard: u32) -> bool {
        let is_settling = self.settling.as_ref().is_some_and(|it| it.at.is_some());
        self.state != State::Idle
            || self.is_owed()
            || is_settling
            || self.repair == Repair::Due
            || self.interest(shard).is_some_and(|it| it.mark.is_some())
    }

    /// The shards with subscribers, and the topic of each.
    pub(crate) fn shards(&self) -> impl Iterator<Item = (u32, TopicId)> {
        self.interests.iter().map(|it| (it.shard, it.topic))
    }

    fn given(&self) -> Option<(Ticket, Fingerprint)> {
        self.settling.as_ref()?.given
    }

    fn is_owed(&self) -> bool {
        !self.owed_to_all.is_empty() || self.owed_silently || self.interests.iter().any(|interest| interest.owed)
    }

    fn forget_taken(&mut self) {
        if self.interests.iter().all(|it| it.mark.is_none()) {
            self.newest = None;
        }
    }

    fn interest(&self, shard: u32) -> Option<&Interest> {
        self.interests.iter().find(|it| it.shard == shard)
    }

    fn interest_mut(&mut self, shard: u32) -> Option<&mut Interest> {
        self.interests.iter_mut().find(|it| it.shard == shard)
    }
}

/// What a finished read was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    /// It was nothing but a look whether something has changed.
    pub(crate) is_silent: bool,
    /// It looked whether something has changed, and found what everyone was given.
    pub(crate) is_unchanged: bool,
}

/// How long to wait after failed reads: doubling from `first` to `max`, half of it by chance, so that many keys which
/// failed together don't come back together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) max: Duration,
}

impl Backoff {
    /// When to try again after the `failures`-th failure in a row (from 1; [`u32::MAX`] waits longest). `chance` is any number.
    pub(crate) fn until(self, now: Timestamp, failures: u32, chance: u64) -> Timestamp {
        let doublings = failures.saturating_sub(1).min(31);
        let delay = self.first.saturating_mul(1 << doublings).min(self.max);
        let half = delay / 2;
        let half_nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        now + (delay - half) + Duration::from_nanos(chance % half_nanos.saturating_add(1))
    }
}

#[cfg(test)]
mod tests;
