//! [`Patience`]: the clock by which others are judged. It stands still while this process does.

use std::time::Duration;

use crate::time::Timestamp;

/// Deadlines for what others do are kept in *patient time*: real time without that in which nobody looked, because the
/// process was stopped, its machine was suspended, or its thread was held up. What others did meanwhile may still wait
/// to be read, and what they were to be asked meanwhile was not asked.
///
/// So nobody is judged by that time, and deadlines stay as far apart as they were.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// Real time that doesn't count.
    skipped: Duration,
    /// A delay up to this is usual, and counts.
    tolerance: Duration,
    /// The last deadline that was missed.
    missed: Option<Timestamp>,
}

impl Patience {
    /// For deadlines of which the shortest is `shortest` long.
    pub(crate) fn new(shortest: Duration) -> Self {
        Self {
            skipped: Duration::ZERO,
            tolerance: shortest / 8,
            missed: None,
        }
    }

    /// The patient time of `now`.
    pub(crate) fn at(&self, now: Timestamp) -> Timestamp {
        Timestamp::START + now.since(Timestamp::START + self.skipped)
    }

    /// The real time of a deadline in patient time, if nothing is skipped before.
    pub(crate) fn real(&self, deadline: Timestamp) -> Timestamp {
        deadline + self.skipped
    }

    /// Time has gone on from `before` to `now` without anything in between. `next` gives the earliest deadline: one that
    /// was missed by much shows that nobody looked. A driver that sleeps until then has missed nothing.
    pub(crate) fn pass(&mut self, before: Timestamp, now: Timestamp, next: impl FnOnce() -> Option<Timestamp>) {
        if now.since(before) <= self.tolerance {
            return;
        }
        let (before, now) = (self.at(before), self.at(now));
        let Some(next) = next().filter(|&next| now.since(next) > self.tolerance) else {
            return;
        };
        let goes_on_at = if self.missed.replace(next) == Some(next) {
            // It was granted its time before. A driver that is always late gets on all the same.
            next.max(before) + self.tolerance
        } else {
            // A moment before it, so that there is one to read in what has arrived.
            Timestamp::START + next.since(Timestamp::START + self.tolerance)
        };
        self.skipped += now.since(goes_on_at.max(before));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::START + Duration::from_millis(ms)
    }

    #[test]
    fn time_stands_still_from_a_missed_deadline_on() {
        let mut patience = Patience::new(Duration::from_millis(800));
        // A long sleep, and a little late.
        patience.pass(at(0), at(5_000), || None);
        patience.pass(at(5_000), at(8_000), || Some(at(8_000)));
        patience.pass(at(8_000), at(8_100), || Some(at(8_000)));
        patience.pass(at(8_100), at(9_100), || Some(at(9_000)));
        assert_eq!(patience.at(at(9_100)), at(9_100));
        // Four seconds in which nobody looked.
        patience.pass(at(9_100), at(14_000), || Some(at(10_000)));
        assert_eq!(patience.at(at(14_000)), at(9_900));
        assert_eq!(patience.real(at(10_500)), at(14_600));
        // Again, though nothing was done about it: it is not put off for ever.
        patience.pass(at(14_000), at(16_000), || Some(at(10_000)));
        assert_eq!(patience.at(at(16_000)), at(10_100));
        // One that is handled late, though nobody has slept since.
        patience.pass(at(16_000), at(16_050), || Some(at(10_000)));
        patience.pass(at(16_050), at(16_100), || Some(at(10_000)));
        assert_eq!(patience.at(at(16_100)), at(10_200));
        // It never goes back.
        patience.pass(at(16_100), at(17_100), || Some(at(10_001)));
        assert_eq!(patience.at(at(17_100)), at(10_200));
    }
}
