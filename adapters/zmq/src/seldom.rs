//! [`Seldom`]: what may happen often is logged now and then.

use std::time::Duration;

use entity_sync_core::Timestamp;

const EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Seldom {
    last: Option<Timestamp>,
    skipped: u64,
}

impl Seldom {
    /// It has happened: says how often it has without a word, if it is time for one.
    pub(crate) fn happened(&mut self, now: Timestamp) -> Option<u64> {
        if self.last.is_some_and(|last| now.since(last) < EVERY) {
            self.skipped += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_it_has_not_said() {
        let at = |seconds| Timestamp::START + Duration::from_secs(seconds);
        let mut seldom = Seldom::default();
        let said: Vec<_> = [0, 1, 9, 10, 21].map(|it| seldom.happened(at(it))).into();
        assert_eq!(said, [Some(0), None, None, Some(2), Some(0)]);
    }
}
