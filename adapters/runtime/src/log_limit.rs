//! [`LogLimit`]: what may happen often is logged now and then.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use entity_sync_core::{LogQuota, Timestamp};
use parking_lot::Mutex;

/// How often, at most.
const INTERVAL: Duration = Duration::from_secs(10);

/// Lets a line of each kind into the log every ten seconds at most, and counts the others: a [`LogQuota`] for any thread.
///
/// A line that comes all the time must not silence another one that comes once. So they are of different kinds, or have a
/// limit each.
///
/// ```
/// use entity_sync_runtime::LogLimit;
///
/// let limit = LogLimit::default();
/// assert_eq!(limit.happened(), Some(0)); // to be logged
/// assert_eq!(limit.happened(), None); // not now; the next line will say that there was one more
/// assert_eq!(limit.of_kind("bad row"), Some(0)); // another line
/// ```
#[derive(Debug)]
pub struct LogLimit(Mutex<LogQuota<String>>);

impl LogLimit {
    /// One that has logged nothing yet.
    pub const fn new() -> Self {
        Self(Mutex::new(LogQuota::new(1, INTERVAL)))
    }

    /// It has happened. If it is to be logged now: how often it has happened without being logged.
    pub fn happened(&self) -> Option<u64> {
        self.of_kind("")
    }

    /// As [`happened`](Self::happened), where there are several kinds of it, such as one for each server.
    pub fn of_kind(&self, kind: &str) -> Option<u64> {
        self.0.lock().happened(now(), kind)
    }
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::new()
    }
}

fn now() -> Timestamp {
    static START: OnceLock<Instant> = OnceLock::new();
    Timestamp::after_start(START.get_or_init(Instant::now).elapsed())
}
