//! [`Undelivered`]: what a bus does not have yet; [`HandedOver`], what it has; and [`Flush`], somebody who waits for it.

use std::fmt;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use entity_sync_core::EntityKey;
use entity_sync_core::cluster::ClusterView;

/// Changes that were notified on this node, and of which the other nodes have perhaps not been told.
///
/// This node's own clients are pushed them all the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Undelivered {
    /// The keys that a plain bus has not confirmed, each as often as it was to be told of.
    pub keys: Vec<EntityKey>,
    /// Messages whose keys are not known any more: those of a numbered bus that was not connected, and those for which
    /// there was no room.
    pub others: u64,
    /// The bus's thread has ended, or does not answer. Nobody knows what the bus has.
    pub is_unknown: bool,
}

/// How much of what a numbered cluster says its bus was given: for drivers of a
/// [`Cluster`](entity_sync_core::cluster::Cluster) of their own.
#[derive(Debug, Default)]
pub struct HandedOver {
    /// How often the bus was connected and given all that there was to say.
    times: u64,
    /// How much had been said by then. The others learn of it from digests, whatever became of it.
    published: u64,
}

/// Somebody who waits until the bus has everything that was notified before.
pub(crate) struct Flush {
    by: Instant,
    answer: SyncSender<Result<(), Undelivered>>,
    mark: Option<u64>,
}

impl Undelivered {
    /// So many messages, of which nobody knows the keys any more.
    pub fn messages(count: u64) -> Self {
        Self {
            others: count,
            ..Self::default()
        }
    }

    pub(crate) fn unknown() -> Self {
        Self {
            is_unknown: true,
            ..Self::default()
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.others == 0 && !self.is_unknown
    }
}

impl HandedOver {
    /// The bus is connected, and was given all that there is to say.
    pub fn all(&mut self, view: &ClusterView) {
        self.times += 1;
        self.published = view.counters().published.get();
    }

    /// How much was said that nobody can have heard.
    pub fn missing(&self, view: &ClusterView) -> u64 {
        view.counters().published.get().saturating_sub(self.published)
    }

    /// A mark behind what was notified so far.
    pub fn mark(&self) -> u64 {
        self.times
    }

    /// What was notified before a mark and the bus was not given.
    ///
    /// # Errors
    /// [`Undelivered`].
    pub fn look(&self, mark: u64, view: &ClusterView) -> Result<(), Undelivered> {
        match self.missing(view) {
            0 if self.times > mark => Ok(()),
            missing => Err(Undelivered::messages(missing)),
        }
    }
}

impl Flush {
    pub(crate) fn new(by: Instant, answer: SyncSender<Result<(), Undelivered>>) -> Self {
        let mark = None;
        Self { by, answer, mark }
    }

    pub(crate) fn time_left(&self) -> Duration {
        self.by.saturating_duration_since(Instant::now())
    }

    /// The mark behind all that it waits for, which is set when it is first looked at.
    pub(crate) fn mark(&mut self, set: impl FnOnce() -> u64) -> u64 {
        *self.mark.get_or_insert_with(set)
    }

    /// Whoever waits is told. One who has gone already does not mind.
    pub(crate) fn answer(&self, answer: Result<(), Undelivered>) {
        let _ = self.answer.try_send(answer);
    }
}

impl fmt::Display for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_unknown {
            return f.write_str("the bus does not answer: nobody knows which changes the other nodes were told of");
        }
        let count = self.keys.len() as u64 + self.others;
        write!(
            f,
            "the bus has not confirmed {count} changes in time: other nodes may not know of them; is it reachable?"
        )?;
        if let Some(first) = self.keys.first() {
            write!(f, " (one of them is {:?} {:?})", first.entity(), first.id())?;
        }
        Ok(())
    }
}

impl std::error::Error for Undelivered {}
