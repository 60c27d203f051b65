//! [`Turns`]: a queue whose owners take turns, and in which a crowd holds up nobody else.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Items of several owners, to be taken from two lanes, urgent ones and others: in turn between the lanes, within a lane in
/// turn between the owners, and of one owner in order. Whatever waits, the first urgent item of an owner is taken after at
/// most two items of each other owner.
///
/// ```
/// use entity_sync_runtime::Turns;
///
/// let mut turns = Turns::default();
/// for item in 0..100 {
///     turns.push("crowd", item, false);
/// }
/// turns.push("alone", 100, true);
/// let first: Vec<i32> = std::iter::from_fn(|| turns.pop()).take(2).collect();
/// assert!(first.contains(&100));
/// ```
#[derive(Debug)]
pub struct Turns<K, T> {
    urgent: Lane<K, T>,
    others: Lane<K, T>,
    was_urgent: bool,
    len: usize,
}

#[derive(Debug)]
struct Lane<K, T> {
    by_owner: HashMap<K, VecDeque<T>>,
    /// Owners with items, each once.
    turns: VecDeque<K>,
}

impl<K: Clone + Eq + Hash, T> Turns<K, T> {
    /// Adds an item behind its owner's others of the same lane.
    pub fn push(&mut self, owner: K, item: T, is_urgent: bool) {
        self.len += 1;
        let lane = if is_urgent { &mut self.urgent } else { &mut self.others };
        lane.push(owner, item);
    }

    /// Takes the item whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        self.pop_some(1)?.1.pop()
    }

    /// Takes up to `most` items of the owner whose turn it is, all from one lane. They are never none.
    pub fn pop_some(&mut self, most: usize) -> Option<(K, Vec<T>)> {
        self.was_urgent = !self.urgent.is_empty() && (!self.was_urgent || self.others.is_empty());
        let lane = if self.was_urgent {
            &mut self.urgent
        } else {
            &mut self.others
        };
        let (owner, items) = lane.pop_some(most.max(1))?;
        self.len -= items.len();
        Some((owner, items))
    }

    /// How many items wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<K: Clone + Eq + Hash, T> Lane<K, T> {
    fn push(&mut self, owner: K, item: T) {
        match self.by_owner.get_mut(&owner) {
            Some(items) => items.push_back(item),
            None => {
                self.turns.push_back(owner.clone());
                self.by_owner.insert(owner, VecDeque::from([item]));
            }
        }
    }

    fn pop_some(&mut self, most: usize) -> Option<(K, Vec<T>)> {
        let owner = self.turns.pop_front()?;
        let items = self.by_owner.get_mut(&owner)?;
        let taken = items.drain(..items.len().min(most)).collect();
        if items.is_empty() {
            self.by_owner.remove(&owner);
        } else {
            self.turns.push_back(owner.clone());
        }
        Some((owner, taken))
    }

    fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}

impl<K, T> Default for Turns<K, T> {
    fn default() -> Self {
        Self {
            urgent: Lane::default(),
            others: Lane::default(),
            was_urgent: false,
            len: 0,
        }
    }
}

impl<K, T> Default for Lane<K, T> {
    fn default() -> Self {
        Self {
            by_owner: HashMap::new(),
            turns: VecDeque::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(turns: &mut Turns<char, u32>) -> Vec<u32> {
        std::iter::from_fn(|| turns.pop()).collect()
    }

    #[test]
    fn owners_take_turns_and_each_ones_items_keep_their_order() {
        let mut turns = Turns::default();
        for item in [10, 11, 12] {
            turns.push('a', item, false);
        }
        turns.push('b', 20, false);
        turns.push('b', 21, false);
        turns.push('c', 30, false);
        assert_eq!(turns.len(), 6);
        assert_eq!(all(&mut turns), [10, 20, 30, 11, 21, 12]);
        assert!(turns.is_empty());
    }

    #[test]
    fn urgent_ones_and_others_take_turns() {
        let mut turns = Turns::default();
        for item in 0..4 {
            turns.push('a', item, false);
            turns.push('a', 10 + item, true);
        }
        assert_eq!(all(&mut turns), [10, 0, 11, 1, 12, 2, 13, 3]);
        // One lane alone has all turns.
        for item in 0..3 {
            turns.push('a', item, true);
        }
        assert_eq!(all(&mut turns), [0, 1, 2]);
    }

    #[test]
    fn some_are_of_one_owner_and_one_lane() {
        let mut turns = Turns::default();
        for item in 0..5 {
            turns.push('a', item, false);
        }
        turns.push('a', 9, true);
        turns.push('b', 7, false);
        let mut taken = Vec::new();
        while let Some(some) = turns.pop_some(2) {
            taken.push(some);
        }
        let expected = [
            ('a', vec![9]),
            ('a', vec![0, 1]),
            ('b', vec![7]),
            ('a', vec![2, 3]),
            ('a', vec![4]),
        ];
        assert_eq!(taken, expected);
    }
}
