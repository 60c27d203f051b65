//! [`Waiting`]: keys that a plain queue is to be told of as soon as it takes more.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::hash::Seed;
use crate::key::EntityKey;
use crate::time::Timestamp;

/// Keys that may wait.
const MAX_KEYS: usize = 1024 * 1024;

/// Bytes of keys that may wait: keys may be long.
const MAX_BYTES: usize = 256 * 1024 * 1024;

pub(super) struct Waiting {
    queue: VecDeque<WaitingKey>,
    /// So many at the front are applied; the one behind them, if there is one, is not.
    applied: usize,
    /// Of keys that wait once at most, the last that waits.
    uncounted: HashMap<EntityKey, Last, Seed>,
    last_number: u64,
    /// Bytes of the keys in `queue`.
    bytes: usize,
}

pub(super) struct WaitingKey {
    pub(super) key: EntityKey,
    pub(super) is_counted: bool,
    /// This node's clients are owed a read for it.
    pub(super) is_applied: bool,
    since: Timestamp,
    number: u64,
}

struct Last {
    number: u64,
    is_applied: bool,
}

impl Waiting {
    pub(super) fn new(seed: Seed) -> Self {
        Self {
            queue: VecDeque::new(),
            applied: 0,
            uncounted: HashMap::with_hasher(seed),
            last_number: 0,
            bytes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// A key was notified. Says whether it will be told of: not if too many wait.
    pub(super) fn push(&mut self, now: Timestamp, key: &EntityKey, is_counted: bool, is_applied: bool) -> bool {
        if !is_counted
            && let Some(last) = self.uncounted.get(key)
            && (is_applied || !last.is_applied)
        {
            return true;
        }
        if self.queue.len() >= MAX_KEYS || self.bytes >= MAX_BYTES {
            return false;
        }
        let waiting = self.number(now, key.clone(), is_counted, is_applied);
        self.queue.push_back(waiting);
        self.pass_applied();
        true
    }

    /// The queue has refused a key that is applied: it comes before what was notified later.
    pub(super) fn push_again(&mut self, now: Timestamp, key: EntityKey, is_counted: bool) {
        if is_counted || !self.uncounted.contains_key(&key) {
            let waiting = self.number(now, key, is_counted, true);
            self.queue.push_front(waiting);
            self.applied += 1;
        }
    }

    fn number(&mut self, since: Timestamp, key: EntityKey, is_counted: bool, is_applied: bool) -> WaitingKey {
        self.last_number += 1;
        self.bytes += key.len();
        let number = self.last_number;
        if !is_counted {
            self.uncounted.insert(key.clone(), Last { number, is_applied });
        }
        WaitingKey {
            key,
            is_counted,
            is_applied,
            since,
            number,
        }
    }

    pub(super) fn pop(&mut self) -> Option<WaitingKey> {
        let first = self.queue.pop_front()?;
        self.bytes -= first.key.len();
        self.applied = self.applied.saturating_sub(1);
        self.pass_applied();
        if self
            .uncounted
            .get(&first.key)
            .is_some_and(|it| it.number == first.number)
        {
            self.uncounted.remove(&first.key);
        }
        Some(first)
    }

    /// Since when the first one waits that is not applied.
    pub(super) fn unapplied_since(&self) -> Option<Timestamp> {
        self.queue.get(self.applied).map(|it| it.since)
    }

    /// Applies those that are not and have waited so long that they are due. Returns how many they were.
    pub(super) fn apply(&mut self, is_due: impl Fn(Timestamp) -> bool, mut apply: impl FnMut(&EntityKey)) -> u64 {
        let mut count = 0;
        while let Some(waiting) = self.queue.get_mut(self.applied).filter(|it| is_due(it.since)) {
            waiting.is_applied = true;
            apply(&waiting.key);
            count += 1;
            if let Some(last) = self.uncounted.get_mut(&waiting.key) {
                last.is_applied |= last.number == waiting.number;
            }
            self.pass_applied();
        }
        count
    }

    fn pass_applied(&mut self) {
        while self.queue.get(self.applied).is_some_and(|it| it.is_applied) {
            self.applied += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u32) -> EntityKey {
        EntityKey::new("items", &id.to_string()).expect("short")
    }

    fn pop_all(waiting: &mut Waiting) -> Vec<(String, bool)> {
        let next = || waiting.pop().map(|it| (it.key.id().to_owned(), it.is_applied));
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_key_waits_once_and_a_counted_one_as_often_as_it_was_notified() {
        let mut waiting = Waiting::new(Seed(1, 2));
        for _ in 0..2 {
            assert!(waiting.push(Timestamp::START, &key(1), false, true));
            assert!(waiting.push(Timestamp::START, &key(2), true, true));
        }
        waiting.push_again(Timestamp::START, key(1), false);
        waiting.push_again(Timestamp::START, key(3), false);
        let ids: Vec<_> = pop_all(&mut waiting).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, ["3", "1", "2", "2"]);
        assert!(waiting.uncounted.is_empty());
    }

    #[test]
    fn one_that_is_applied_does_not_hide_one_that_is_not() {
        let at = |ms| Timestamp::START + std::time::Duration::from_millis(ms);
        let mut waiting = Waiting::new(Seed(1, 2));
        waiting.push(at(0), &key(1), false, true);
        assert_eq!(waiting.unapplied_since(), None);
        waiting.push(at(1), &key(1), false, false);
        waiting.push(at(2), &key(2), false, false);
        // It will be applied with the one that waits already.
        waiting.push(at(3), &key(2), false, false);
        waiting.push(at(4), &key(3), false, true);
        assert_eq!(waiting.unapplied_since(), Some(at(1)));
        let mut applied = Vec::new();
        assert_eq!(
            waiting.apply(|since| since <= at(1), |key| applied.push(key.id().to_owned())),
            1
        );
        assert_eq!(waiting.unapplied_since(), Some(at(2)));
        assert_eq!(waiting.apply(|_| true, |key| applied.push(key.id().to_owned())), 1);
        assert_eq!(applied, ["1", "2"]);
        assert_eq!(waiting.unapplied_since(), None);
        waiting.push(at(5), &key(2), false, false);
        assert_eq!(waiting.unapplied_since(), Some(at(5)));
        let popped = pop_all(&mut waiting);
        let popped: Vec<_> = popped
            .iter()
            .map(|(id, is_applied)| (id.as_str(), *is_applied))
            .collect();
        assert_eq!(
            popped,
            [("1", true), ("1", true), ("2", true), ("3", true), ("2", false)]
        );
        assert_eq!((waiting.applied, waiting.uncounted.len(), waiting.bytes), (0, 0, 0));
    }
}
