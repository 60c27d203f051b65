//! [`Backoff`]: how long to wait until a connection is tried again.

use std::ops::RangeInclusive;
use std::time::Duration;

/// A connection that was of use for this many times the wait that would come next has proved itself: it begins anew.
const PROOF: u32 = 10;

/// Waits that double, each shortened at random by up to a half, so that not all nodes come back in the same moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    bounds: RangeInclusive<Duration>,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(bounds: RangeInclusive<Duration>) -> Self {
        let next = *bounds.start();
        Self { bounds, next }
    }

    /// How long to wait after a connection that was of use for `lived`, which is zero if there was none.
    ///
    /// An nsqd that accepts connections only to close them is not tried again and again in quick succession, each time
    /// making this node read everything anew.
    pub(crate) fn wait(&mut self, lived: Duration) -> Duration {
        if lived >= self.next.saturating_mul(PROOF) {
            self.next = *self.bounds.start();
        }
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(*self.bounds.end());
        wait.mul_f64(1.0 - fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn waits_double_up_to_the_longest_with_jitter() {
        let mut backoff = Backoff::new(100 * MS..=30_000 * MS);
        let mut expected = 100;
        for _ in 0..20 {
            let wait = backoff.wait(Duration::ZERO);
            assert!(wait <= expected * MS && wait >= expected * MS / 2, "{wait:?}");
            expected = (2 * expected).min(30_000);
        }
        let waits: Vec<_> = (0..50).map(|_| backoff.wait(Duration::ZERO)).collect();
        assert!(waits.iter().any(|it| *it != waits[0]), "no jitter");
    }

    #[test]
    fn a_connection_that_was_of_use_starts_anew_and_one_that_ends_at_once_does_not() {
        let mut backoff = Backoff::new(100 * MS..=30_000 * MS);
        for _ in 0..5 {
            let _ = backoff.wait(5 * MS);
        }
        assert!(backoff.wait(5 * MS) >= 1_600 * MS);
        assert!(backoff.wait(3_600_000 * MS) <= 100 * MS);
    }
}
