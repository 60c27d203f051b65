//! [`LogQuota`]: what may happen often goes into a log now and then.

use std::borrow::Borrow;
use std::time::Duration;

use crate::time::Timestamp;

/// Kinds that have a share of their own. All others have one together, so that whoever chooses the names of kinds does not
/// choose how much memory or log they take.
const MAX_KINDS: usize = 64;

/// Lets what happens into a log so many times in an interval and counts the rest. Each kind has its own share, so that one
/// which comes all the time does not silence another.
///
/// ```
/// use std::time::Duration;
/// use entity_sync_core::{LogQuota, Timestamp};
///
/// let mut quota = LogQuota::<String>::new(1, Duration::from_secs(10));
/// let at = |s| Timestamp::after_start(Duration::from_secs(s));
/// assert_eq!(quota.happened(at(0), "no route"), Some(0)); // to be logged
/// assert_eq!(quota.happened(at(1), "no route"), None);
/// assert_eq!(quota.happened(at(2), "no password"), Some(0));
/// assert_eq!(quota.happened(at(10), "no route"), Some(1)); // and one was not
/// ```
#[derive(Debug)]
pub struct LogQuota<K> {
    times: u32,
    interval: Duration,
    kinds: Vec<(K, Share)>,
    others: Share,
}

#[derive(Debug, Default)]
struct Share {
    /// When the present interval began; `None` before the first.
    since: Option<Timestamp>,
    told: u32,
    untold: u64,
}

impl<K> LogQuota<K> {
    /// Each kind is let in this many times in an interval. 0 is never.
    pub const fn new(times: u32, interval: Duration) -> Self {
        Self {
            times,
            interval,
            kinds: Vec::new(),
            others: Share {
                since: None,
                told: 0,
                untold: 0,
            },
        }
    }

    /// It has happened. If it is to be logged now: how often this kind has happened since it was logged last.
    pub fn happened<Q>(&mut self, now: Timestamp, kind: &Q) -> Option<u64>
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        let place = self.kinds.iter().position(|(it, _)| it.borrow() == kind);
        let place = place.unwrap_or_else(|| {
            if self.kinds.len() < MAX_KINDS {
                self.kinds.push((kind.to_owned(), Share::default()));
            }
            self.kinds.len() - 1
        });
        let share = match self.kinds.get_mut(place) {
            Some((it, share)) if (*it).borrow() == kind => share,
            _ => &mut self.others,
        };
        if share.since.is_none_or(|since| now.since(since) >= self.interval) {
            (share.since, share.told) = (Some(now), 0);
        }
        if share.told >= self.times {
            share.untold = share.untold.saturating_add(1);
            return None;
        }
        share.told += 1;
        Some(std::mem::take(&mut share.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::START + Duration::from_millis(ms)
    }

    #[test]
    fn so_many_in_an_interval_and_the_rest_is_counted() {
        let mut quota = LogQuota::<u8>::new(2, Duration::from_secs(1));
        let said = [10, 20, 30, 999, 1500, 1500, 1501].map(|ms| quota.happened(at(ms), &1));
        assert_eq!(said, [Some(0), Some(0), None, None, Some(2), Some(0), None]);
        assert_eq!(LogQuota::<u8>::new(0, Duration::ZERO).happened(at(9999), &1), None);
    }

    #[test]
    fn a_kind_that_comes_all_the_time_silences_no_other() {
        let mut quota = LogQuota::<u8>::new(1, Duration::from_secs(1));
        for ms in 0..500 {
            quota.happened(at(ms), &1);
        }
        assert_eq!(quota.happened(at(500), &2), Some(0));
        assert_eq!(quota.happened(at(1000), &1), Some(499));
    }

    #[test]
    fn kinds_beyond_reason_share_one() {
        let mut quota = LogQuota::<String>::new(1, Duration::from_secs(1));
        let said = (0..1000).filter_map(|it: u32| quota.happened(at(0), it.to_string().as_str()));
        assert_eq!(said.count(), MAX_KINDS + 1);
        assert_eq!(quota.kinds.len(), MAX_KINDS);
        assert_eq!(quota.happened(at(0), "0"), None);
        assert_eq!(
            quota.happened(at(1000), "yet another"),
            Some((1000 - MAX_KINDS - 1) as u64)
        );
    }
}
