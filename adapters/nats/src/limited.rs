//! [`Limited`]: something is logged now and then, however often it happens.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How often, at most.
const INTERVAL: Duration = Duration::from_secs(10);

/// Something is logged now and then, however often it happens.
#[derive(Default)]
pub(crate) struct Limited(Mutex<State>);

#[derive(Default)]
struct State {
    last: Option<Instant>,
    unsaid: u64,
}

impl Limited {
    /// It has happened. If it is to be logged now: how often it happened before without being logged.
    pub(crate) fn happened(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        if state.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            state.unsaid += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_in_a_while() {
        let limited = Limited::default();
        let start = Instant::now();
        assert_eq!(limited.happened(start), Some(0));
        assert_eq!(limited.happened(start), None);
        assert_eq!(limited.happened(start + INTERVAL / 2), None);
        assert_eq!(limited.happened(start + INTERVAL), Some(2));
        assert_eq!(limited.happened(start + INTERVAL), None);
        assert_eq!(limited.happened(start + INTERVAL * 3), Some(1));
    }
}
