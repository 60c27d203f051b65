//! [`Outage`]: one log line when a service goes away, and then ever fewer until it is back.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Between the first line and the second; then twice as long each time.
const FIRST: Duration = Duration::from_secs(10);

/// The longest time between two lines.
const LONGEST: Duration = Duration::from_secs(600);

/// Decides which failures of something that is tried again and again are logged: the first, and then at intervals that
/// double from 10 s to 10 min, until it works again.
///
/// ```
/// use entity_sync_runtime::Outage;
///
/// let outage = Outage::default();
/// assert_eq!(outage.failed(), Some(0)); // to be logged
/// assert_eq!(outage.failed(), None); // not now; the next line will say that there was one more
/// outage.is_over();
/// ```
#[derive(Debug, Default)]
pub struct Outage(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    interval: Duration,
    skipped: u64,
}

impl Outage {
    /// An attempt has failed. If that is to be logged now: how many have failed without being logged.
    pub fn failed(&self) -> Option<u64> {
        self.failed_at(Instant::now())
    }

    /// It works. What comes and goes all the time still leaves 10 s between two lines.
    pub fn is_over(&self) {
        self.0.lock().interval = Duration::ZERO;
    }

    fn failed_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        let interval = state.interval.max(FIRST);
        if state.last.is_some_and(|last| now.duration_since(last) < interval) {
            state.skipped += 1;
            return None;
        }
        state.interval = match state.interval {
            Duration::ZERO => FIRST,
            interval => (2 * interval).min(LONGEST),
        };
        state.last = Some(now);
        Some(std::mem::take(&mut state.skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_rarer_until_it_is_over() {
        let start = Instant::now();
        let outage = Outage::default();
        let logged = |seconds: std::ops::Range<u64>| -> Vec<u64> {
            seconds
                .filter(|&it| outage.failed_at(start + Duration::from_secs(it)).is_some())
                .collect()
        };
        assert_eq!(logged(0..400), [0, 10, 30, 70, 150, 310]);
        assert_eq!(logged(400..3_000), [630, 1_230, 1_830, 2_430]);
        outage.is_over();
        assert_eq!(logged(3_000..3_030), [3_000, 3_010]);
        outage.is_over();
        assert_eq!(logged(3_030..3_031), [3_030]);
        outage.is_over();
        assert_eq!(logged(3_031..3_045), [3_040]);
        assert_eq!(outage.failed_at(start + Duration::from_secs(3_060)), Some(4));
    }
}
