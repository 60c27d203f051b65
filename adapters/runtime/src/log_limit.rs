//! [`LogLimit`]: what may happen often is logged now and then.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How often, at most.
const INTERVAL: Duration = Duration::from_secs(10);

/// Lets a line into the log every ten seconds at most, and counts the others. One of these serves one kind of line:
/// otherwise a line that comes all the time would silence another one that comes once.
///
/// ```
/// use entity_sync_runtime::LogLimit;
///
/// let limit = LogLimit::default();
/// assert_eq!(limit.happened(), Some(0)); // to be logged
/// assert_eq!(limit.happened(), None); // not now; the next line will say that there was one more
/// ```
#[derive(Debug, Default)]
pub struct LogLimit(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    skipped: u64,
}

impl LogLimit {
    /// It has happened. If it is to be logged now: how often it has happened without being logged.
    pub fn happened(&self) -> Option<u64> {
        self.happened_at(Instant::now())
    }

    fn happened_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        if state.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            state.skipped += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_it_has_not_said() {
        let start = Instant::now();
        let limit = LogLimit::default();
        let said = [0, 1, 9, 10, 21].map(|it| limit.happened_at(start + Duration::from_secs(it)));
        assert_eq!(said, [Some(0), None, None, Some(2), Some(0)]);
    }
}
