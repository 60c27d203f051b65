//! [`Waiting`]: keys that a plain queue is to be told of as soon as it takes more.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::deliveries::{Batches, Deliveries};
use crate::hash::Seed;
use crate::key::EntityKey;
use crate::time::Timestamp;

/// Keys of one topic that are to be published, in order.
pub(super) struct Waiting {
    /// How many keys may wait, and how many bytes of them.
    max: usize,
    max_bytes: usize,
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
    /// How often it was lost on its way back from the queue.
    pub(super) losses: u32,
    /// Who waits until the queue has it.
    pub(super) batches: Batches,
    since: Timestamp,
    number: u64,
}

struct Last {
    number: u64,
    is_applied: bool,
    /// Who waits for those that were to wait again, and that it stands for.
    joined: Option<Batches>,
}

/// What became of a key that was to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It waits.
    New,
    /// It waited already.
    Joined,
    /// Too many wait.
    NoRoom,
}

impl Waiting {
    /// With room for so many keys, and so many bytes of them.
    pub(super) fn new(max: usize, max_bytes: usize, seed: Seed) -> Self {
        Self {
            max,
            max_bytes,
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

    /// A key was notified.
    pub(super) fn push(
        &mut self,
        now: Timestamp,
        key: &EntityKey,
        is_counted: bool,
        is_applied: bool,
        deliveries: &mut Deliveries,
    ) -> Pushed {
        if !is_counted
            && let Some(last) = self.uncounted.get(key)
            && (is_applied || !last.is_applied)
        {
            return Pushed::Joined;
        }
        if self.queue.len() >= self.max || self.bytes >= self.max_bytes {
            return Pushed::NoRoom;
        }
        let waiting = self.number(now, key.clone(), is_counted, is_applied, 0, deliveries.add());
        self.queue.push_back(waiting);
        self.pass_applied();
        Pushed::New
    }

    /// The queue does not have a key that is applied: it comes before what was notified later.
    pub(super) fn push_again(
        &mut self,
        now: Timestamp,
        key: EntityKey,
        is_counted: bool,
        losses: u32,
        batches: Batches,
        deliveries: &mut Deliveries,
    ) {
        if !is_counted && let Some(last) = self.uncounted.get_mut(&key) {
            match &mut last.joined {
                None => last.joined = Some(batches),
                Some(joined) => {
                    if let Some(twice) = joined.join(batches) {
                        deliveries.finish(&twice);
                    }
                }
            }
            return;
        }
        let waiting = self.number(now, key, is_counted, true, losses, batches);
        self.queue.push_front(waiting);
        self.applied += 1;
    }

    fn number(
        &mut self,
        since: Timestamp,
        key: EntityKey,
        is_counted: bool,
        is_applied: bool,
        losses: u32,
        batches: Batches,
    ) -> WaitingKey {
        self.last_number += 1;
        self.bytes += key.len();
        let number = self.last_number;
        if !is_counted {
            let last = self.uncounted.entry(key.clone()).or_insert(Last {
                number,
                is_applied,
                joined: None,
            });
            (last.number, last.is_applied) = (number, is_applied);
        }
        WaitingKey {
            key,
            is_counted,
            is_applied,
            losses,
            batches,
            since,
            number,
        }
    }

    pub(super) fn pop(&mut self, deliveries: &mut Deliveries) -> Option<WaitingKey> {
        let mut first = self.queue.pop_front()?;
        self.bytes -= first.key.len();
        self.applied = self.applied.saturating_sub(1);
        self.pass_applied();
        let last = self.uncounted.get(&first.key);
        if last.is_some_and(|it| it.number == first.number)
            && let Some(last) = self.uncounted.remove(&first.key)
            && let Some(joined) = last.joined
            && let Some(twice) = first.batches.join(joined)
        {
            deliveries.finish(&twice);
        }
        Some(first)
    }

    /// The keys that a mark waits for.
    pub(super) fn before(&self, mark: u64) -> impl Iterator<Item = &EntityKey> {
        let is_before = move |it: &&WaitingKey| {
            let last = self.uncounted.get(&it.key).filter(|last| last.number == it.number);
            let joined = last.and_then(|last| last.joined.as_ref());
            it.batches.is_before(mark) || joined.is_some_and(|joined| joined.is_before(mark))
        };
        self.queue.iter().filter(is_before).map(|it| &it.key)
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
        let mut deliveries = Deliveries::new();
        let next = || {
            waiting
                .pop(&mut deliveries)
                .map(|it| (it.key.id().to_owned(), it.is_applied))
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_key_waits_once_and_a_counted_one_as_often_as_it_was_notified() {
        let mut waiting = Waiting::new(4, 1000, Seed(1, 2));
        let mut deliveries = Deliveries::new();
        let mut push = |key, is_counted| waiting.push(Timestamp::START, &key, is_counted, true, &mut deliveries);
        assert_eq!(
            [push(key(1), false), push(key(1), false)],
            [Pushed::New, Pushed::Joined]
        );
        assert_eq!([push(key(2), true), push(key(2), true)], [Pushed::New, Pushed::New]);
        for id in [1, 3] {
            let batches = deliveries.add();
            waiting.push_again(Timestamp::START, key(id), false, 0, batches, &mut deliveries);
        }
        assert_eq!(
            waiting.push(Timestamp::START, &key(4), false, true, &mut deliveries),
            Pushed::NoRoom
        );
        let ids: Vec<_> = pop_all(&mut waiting).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, ["3", "1", "2", "2"]);
        assert!(waiting.uncounted.is_empty());
    }

    #[test]
    fn one_that_is_applied_does_not_hide_one_that_is_not() {
        let at = |ms| Timestamp::START + std::time::Duration::from_millis(ms);
        let mut waiting = Waiting::new(100, 1000, Seed(1, 2));
        let mut deliveries = Deliveries::new();
        waiting.push(at(0), &key(1), false, true, &mut deliveries);
        assert_eq!(waiting.unapplied_since(), None);
        waiting.push(at(1), &key(1), false, false, &mut deliveries);
        waiting.push(at(2), &key(2), false, false, &mut deliveries);
        // It will be applied with the one that waits already.
        waiting.push(at(3), &key(2), false, false, &mut deliveries);
        waiting.push(at(4), &key(3), false, true, &mut deliveries);
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
        waiting.push(at(5), &key(2), false, false, &mut deliveries);
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

    #[test]
    fn whoever_waits_for_a_key_that_is_to_wait_again_waits_for_the_one_that_waits_already() {
        let mut waiting = Waiting::new(100, 1000, Seed(1, 2));
        let mut deliveries = Deliveries::new();
        let lost = deliveries.add();
        let mark = deliveries.mark();
        waiting.push(Timestamp::START, &key(1), false, true, &mut deliveries);
        waiting.push_again(Timestamp::START, key(1), false, 0, lost, &mut deliveries);
        assert_eq!(waiting.before(mark).collect::<Vec<_>>(), [&key(1)]);
        let popped = waiting.pop(&mut deliveries).expect("it waits");
        assert!(!deliveries.is_over(mark) && popped.batches.is_before(mark));
        deliveries.finish(&popped.batches);
        assert!(deliveries.is_over(mark) && waiting.len() == 0);
    }
}
