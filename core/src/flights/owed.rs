//! [`Owed`]: the notifies that no read has begun for yet, and when they came.

use std::collections::VecDeque;

use crate::time::Timestamp;

/// Times of a backlog that are told apart, at most.
const MAX_TIMES: usize = 1024;

pub(super) enum Owed {
    /// One read answers all. When the first of them came.
    Latest(Option<Timestamp>),
    /// Each is answered by a read of its own. When they came, and how many at about that time.
    #[expect(
        clippy::box_collection,
        reason = "most flights are of the other kind and are to stay small"
    )]
    Every(Box<VecDeque<(Timestamp, u32)>>),
}

impl Owed {
    pub(super) fn is_every(&self) -> bool {
        matches!(self, Self::Every(_))
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Latest(first) => first.is_none(),
            Self::Every(times) => times.is_empty(),
        }
    }

    /// Reads that are owed.
    #[cfg(test)]
    pub(super) fn len(&self) -> u32 {
        match self {
            Self::Latest(first) => u32::from(first.is_some()),
            Self::Every(times) => times.iter().map(|(_, count)| count).sum(),
        }
    }

    pub(super) fn clear(&mut self) {
        match self {
            Self::Latest(first) => *first = None,
            Self::Every(times) => times.clear(),
        }
    }

    /// A notify came.
    pub(super) fn add(&mut self, now: Timestamp) {
        match self {
            Self::Latest(first) => *first = Some(first.unwrap_or(now)),
            Self::Every(times) => {
                let is_full = times.len() >= MAX_TIMES;
                match times.back_mut().filter(|(at, _)| is_full || *at == now) {
                    Some((_, count)) => *count = count.saturating_add(1),
                    None => times.push_back((now, 1)),
                }
            }
        }
    }

    /// A read begins. Gives the time of the first notify that it answers, if there is one.
    pub(super) fn take(&mut self) -> Option<Timestamp> {
        match self {
            Self::Latest(first) => first.take(),
            Self::Every(times) => {
                let (at, count) = times.front_mut()?;
                let at = *at;
                *count -= 1;
                if *count == 0 {
                    times.pop_front();
                }
                Some(at)
            }
        }
    }

    /// The read failed, so that what it was to answer is owed again.
    pub(super) fn give_back(&mut self, since: Timestamp) {
        match self {
            Self::Latest(first) => *first = Some(since),
            Self::Every(times) => times.push_front((since, 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::START + Duration::from_millis(ms)
    }

    #[test]
    fn one_read_answers_all_from_the_first_on() {
        let mut owed = Owed::Latest(None);
        owed.add(at(1));
        owed.add(at(2));
        assert_eq!((owed.take(), owed.take()), (Some(at(1)), None));
        owed.add(at(3));
        owed.give_back(at(1));
        assert_eq!(owed.take(), Some(at(1)));
    }

    #[test]
    fn each_is_answered_and_a_long_backlog_keeps_its_number() {
        let mut owed = Owed::Every(Box::default());
        let count = MAX_TIMES as u64 + 100;
        for ms in 0..count {
            owed.add(at(ms));
        }
        assert_eq!(owed.take(), Some(at(0)));
        owed.give_back(at(0));
        let times: Vec<_> = std::iter::from_fn(|| owed.take()).collect();
        assert_eq!(times.len() as u64, count);
        assert!(times.is_sorted() && times[7] == at(7));
    }
}
