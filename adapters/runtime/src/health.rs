//! [`Health`]: which parts of a process are in trouble, and how much that matters.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The health of one server and everything it runs: threads, data sources, connections to brokers. Cloning gives another
/// handle to the same.
///
/// ```
/// use entity_sync_runtime::{Health, Severity};
///
/// let health = Health::default();
/// let database = health.part("database");
/// database.report(Severity::NotReady, "connection refused");
/// assert!(!health.is_ready());
/// assert_eq!(health.troubles()[0].to_string(), "database: connection refused");
/// database.recover();
/// assert!(health.is_ready());
/// ```
#[derive(Clone, Default)]
pub struct Health(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    when_dead: Mutex<Vec<WhenDead>>,
}

type WhenDead = Box<dyn Fn(&Trouble) + Send + Sync>;

#[derive(Default)]
struct State {
    next_id: u64,
    troubles: BTreeMap<u64, (Trouble, Instant)>,
    dead_threads: u64,
}

/// How much a trouble matters. Ordered from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It serves clients, but something that an operator should know about is wrong: one of two brokers is down.
    Degraded,
    /// It can't serve new clients correctly for now, and may recover by itself: the database is unreachable.
    NotReady,
    /// It can't recover by itself and should be restarted: a thread has died.
    Dead,
}

/// One part in trouble.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trouble {
    /// Which part, such as `reactor-0`, `postgres` or `nsqd 127.0.0.1:4150`.
    pub part: String,
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong, and what to do about it.
    pub message: String,
    /// How long the part has been in trouble, whatever the messages were meanwhile.
    pub since: Duration,
}

/// One part of a process. It is well until it reports trouble. When dropped, its trouble is forgotten.
pub struct Part {
    health: Health,
    id: u64,
    name: String,
}

impl Health {
    /// A new part of this name. Names need not be unique, but operators will read them.
    pub fn part(&self, name: impl Into<String>) -> Part {
        let mut state = self.0.state.lock();
        state.next_id += 1;
        Part {
            health: self.clone(),
            id: state.next_id,
            name: name.into(),
        }
    }

    /// All parts that are in trouble now, the most severe first, then by name.
    pub fn troubles(&self) -> Vec<Trouble> {
        let state = self.0.state.lock();
        let mut all: Vec<_> = state
            .troubles
            .values()
            .map(|(trouble, since)| Trouble {
                since: since.elapsed(),
                ..trouble.clone()
            })
            .collect();
        all.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.part.cmp(&b.part)));
        all
    }

    /// Whether no part is [`NotReady`](Severity::NotReady) or [`Dead`](Severity::Dead).
    pub fn is_ready(&self) -> bool {
        self.worst() < Some(Severity::NotReady)
    }

    /// Whether no part is [`Dead`](Severity::Dead).
    pub fn is_alive(&self) -> bool {
        self.worst() < Some(Severity::Dead)
    }

    /// How many threads have died of a panic, restarted or not.
    pub fn dead_threads(&self) -> u64 {
        self.0.state.lock().dead_threads
    }

    /// Calls this, on the thread that reports it, each time a part becomes [`Dead`](Severity::Dead): to end the process.
    pub fn when_dead(&self, then: impl Fn(&Trouble) + Send + Sync + 'static) {
        self.0.when_dead.lock().push(Box::new(then));
    }

    pub(crate) fn count_dead_thread(&self) {
        self.0.state.lock().dead_threads += 1;
    }

    fn worst(&self) -> Option<Severity> {
        self.0.state.lock().troubles.values().map(|(it, _)| it.severity).max()
    }
}

impl Part {
    /// This part is in trouble. Replaces what it reported before.
    pub fn report(&self, severity: Severity, message: impl Into<String>) {
        let trouble = Trouble {
            part: self.name.clone(),
            severity,
            message: message.into(),
            since: Duration::ZERO,
        };
        let before = {
            let mut state = self.health.0.state.lock();
            let before = state.troubles.get(&self.id).map(|(it, since)| (it.severity, *since));
            let since = before.map_or_else(Instant::now, |(_, since)| since);
            state.troubles.insert(self.id, (trouble.clone(), since));
            before
        };
        if severity == Severity::Dead && before.is_none_or(|(before, _)| before < Severity::Dead) {
            for then in &*self.health.0.when_dead.lock() {
                then(&trouble);
            }
        }
    }

    /// This part is well again. Says whether it was in trouble.
    pub fn recover(&self) -> bool {
        self.health.0.state.lock().troubles.remove(&self.id).is_some()
    }

    /// Lets go of the part, but keeps its trouble, if it has any, for as long as the [`Health`] exists.
    pub fn keep_trouble(mut self) {
        // No trouble is kept under this number.
        self.id = 0;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.recover();
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Degraded => "degraded",
            Self::NotReady => "not_ready",
            Self::Dead => "dead",
        })
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part, self.message)
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Health").field(&self.troubles()).finish()
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Part").field(&self.name).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_worst_trouble_decides() {
        let health = Health::default();
        let (broker, source) = (health.part("broker"), health.part("a source"));
        assert!(health.is_ready() && health.is_alive());
        broker.report(Severity::Degraded, "down");
        assert!(health.is_ready() && health.is_alive());
        source.report(Severity::NotReady, "wrong password");
        assert!(!health.is_ready() && health.is_alive());
        let parts: Vec<_> = health.troubles().into_iter().map(|it| it.part).collect();
        assert_eq!(parts, ["a source", "broker"]);
        source.report(Severity::Dead, "gone");
        assert!(!health.is_ready() && !health.is_alive());
        drop(source);
        assert!(health.is_ready() && health.is_alive());
        assert!(broker.recover() && !broker.recover());
        assert_eq!(health.troubles(), []);
    }

    #[test]
    fn death_is_told_once_and_outlives_its_part() {
        let health = Health::default();
        let told = Arc::new(AtomicUsize::new(0));
        let counted = told.clone();
        health.when_dead(move |trouble| {
            assert_eq!(trouble.part, "thread");
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let part = health.part("thread");
        part.report(Severity::Dead, "panicked");
        part.report(Severity::Dead, "panicked again");
        part.keep_trouble();
        assert_eq!(told.load(Ordering::SeqCst), 1);
        assert!(!health.is_alive());
    }
}
