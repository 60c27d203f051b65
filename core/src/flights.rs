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

use std::time::Duration;

use smallvec::SmallVec;

use crate::frame::Group;
use crate::key::EntityKey;
use crate::resolve::Audience;
use crate::slots::SlotId;
use crate::subscriptions::TopicId;
use crate::time::Timestamp;

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
    state: State,
    /// Failed reads in a row.
    failures: u32,
    /// A read is owed to everyone: there was a notify.
    owed_to_all: bool,
    /// The running read serves everyone.
    running_for_all: bool,
    /// One for each shard with subscribers.
    interests: SmallVec<[Interest; 1]>,
    /// The newest rows, until every marked shard has taken them.
    newest: Option<(Ticket, Group)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Running(Ticket),
    Waiting,
}

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
}

/// Which members of a topic a group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// Those that asked.
    Wanting,
    /// All that joined before the read began.
    All,
}

/// Rows for a shard to deliver.
pub(crate) struct Delivery {
    pub(crate) topic: TopicId,
    pub(crate) ticket: Ticket,
    pub(crate) group: Group,
    pub(crate) scope: Scope,
}

impl Flight {
    pub(crate) fn new(key: EntityKey, audience: Audience) -> Self {
        Self {
            key,
            audience,
            state: State::Idle,
            failures: 0,
            owed_to_all: false,
            running_for_all: false,
            interests: SmallVec::new(),
            newest: None,
        }
    }

    pub(crate) fn join(&mut self, shard: u32, topic: TopicId) {
        debug_assert!(self.interest(shard).is_none());
        self.interests.push(Interest {
            shard,
            topic,
            owed: false,
            running: false,
            mark: None,
        });
    }

    pub(crate) fn leave(&mut self, shard: u32) {
        self.interests.retain(|interest| interest.shard != shard);
        if self.interests.is_empty() {
            self.owed_to_all = false;
        }
        self.forget_taken();
    }

    /// Nobody is subscribed and no read is running: to be removed. A running read keeps its flight, so that leaving and
    /// joining can't start a second one.
    pub(crate) fn is_over(&self) -> bool {
        self.interests.is_empty() && !matches!(self.state, State::Running(_))
    }

    /// There was a notify. Without subscribers it owes nothing.
    pub(crate) fn owe_to_all(&mut self) {
        if !self.interests.is_empty() {
            self.owed_to_all = true;
        }
    }

    /// Single members of a shard, the earliest of which joined at `joined`, need a read.
    pub(crate) fn owe_to_wanting(&mut self, shard: u32, joined: Ticket) {
        // A running read that they will receive anyway is enough.
        let served = matches!(self.state, State::Running(ticket) if ticket > joined);
        if served && self.running_for_all {
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

    /// Whether a read can begin now: one is owed and the flight is idle.
    pub(crate) fn is_due(&self) -> bool {
        self.state == State::Idle && self.is_owed()
    }

    pub(crate) fn start(&mut self, ticket: Ticket) {
        debug_assert!(self.is_due());
        self.state = State::Running(ticket);
        self.running_for_all = std::mem::take(&mut self.owed_to_all);
        for interest in &mut self.interests {
            interest.running = std::mem::take(&mut interest.owed);
        }
    }

    pub(crate) fn is_running(&self, ticket: Ticket) -> bool {
        self.state == State::Running(ticket)
    }

    /// The running read gave `group`. Calls `mark` for each shard that has to be told.
    pub(crate) fn finish(&mut self, ticket: Ticket, group: Group, mut mark: impl FnMut(u32)) {
        debug_assert!(self.is_running(ticket));
        self.state = State::Idle;
        self.failures = 0;
        let for_all = std::mem::take(&mut self.running_for_all);
        for interest in &mut self.interests {
            let wanting = std::mem::take(&mut interest.running);
            let scope = match (for_all, wanting) {
                (true, _) => Scope::All,
                (false, true) => Scope::Wanting,
                (false, false) => continue,
            };
            if interest.mark.is_none() {
                mark(interest.shard);
            }
            // Whoever has not taken the older rows gets these instead, for the wider of both scopes.
            interest.mark = interest.mark.max(Some(scope));
        }
        self.newest = Some((ticket, group));
        self.forget_taken();
    }

    /// The running read failed: all that it was for is owed again. Returns how often in a row that happened.
    pub(crate) fn fail(&mut self) -> u32 {
        self.state = State::Waiting;
        self.failures = self.failures.saturating_add(1);
        self.owed_to_all |= std::mem::take(&mut self.running_for_all);
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

    /// Gives a marked shard the newest rows.
    pub(crate) fn take(&mut self, shard: u32) -> Option<Delivery> {
        let (ticket, group) = self.newest.clone()?;
        let interest = self.interest_mut(shard)?;
        let scope = interest.mark.take()?;
        let topic = interest.topic;
        self.forget_taken();
        Some(Delivery {
            topic,
            ticket,
            group,
            scope,
        })
    }

    /// Whether rows are on their way to this shard: being read, owed, or waiting to be taken.
    pub(crate) fn is_busy_for(&self, shard: u32) -> bool {
        self.state != State::Idle || self.is_owed() || self.interest(shard).is_some_and(|it| it.mark.is_some())
    }

    fn is_owed(&self) -> bool {
        self.owed_to_all || self.interests.iter().any(|interest| interest.owed)
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

/// How long to wait after failed reads: doubling from `first` to `max`, half of it by chance, so that many keys which
/// failed together don't come back together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) max: Duration,
}

impl Backoff {
    /// When to try again after the `failures`-th failure in a row (from 1). `chance` is any number.
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
