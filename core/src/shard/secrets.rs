//! [`Secrets`]: secret → dense list of its connections, and back, so that finding those with a secret is no search. Of equal
//! secrets one copy is kept.
//!
//! One walk over a secret's connections may be under way; leaving moves its cursor, so that nobody is skipped, and those who
//! come meanwhile stay behind its end.

use std::sync::Arc;

use hashbrown::HashTable;

use crate::hash::Seed;
use crate::slots::{SlotId, Slots};

pub(super) struct Secrets {
    groups: Slots<Group>,
    /// Indices into `groups`, by secret.
    by_text: HashTable<u32>,
    /// By connection index.
    places: Vec<Place>,
    walk: Option<Walk>,
    seed: Seed,
    bytes: usize,
}

struct Group {
    secret: Arc<str>,
    hash: u64,
    /// Connection indices.
    members: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Place {
    group: u32,
    /// Where the connection stands in the group's list.
    position: u32,
}

/// Members before `cursor` have been visited, those from `end` on came later.
struct Walk {
    group: SlotId,
    cursor: usize,
    end: usize,
}

impl Place {
    const NOWHERE: Self = Self {
        group: u32::MAX,
        position: u32::MAX,
    };
}

impl Secrets {
    #[cfg(test)]
    pub(super) const BYTES_PER_CONNECTION: usize = size_of::<Place>() + size_of::<u32>();

    pub(super) fn new(seed: Seed) -> Self {
        Self {
            groups: Slots::new(),
            by_text: HashTable::new(),
            places: Vec::new(),
            walk: None,
            seed,
            bytes: 0,
        }
    }

    /// Gives a connection a secret, in place of the one it had.
    pub(super) fn set(&mut self, conn: u32, secret: &str) {
        let index = self.find(secret).unwrap_or_else(|| self.insert(secret));
        if self.places.get(conn as usize).is_some_and(|it| it.group == index) {
            return;
        }
        self.remove(conn);
        let Some((_, group)) = self.groups.at_mut(index) else {
            return;
        };
        let position = group.members.len() as u32;
        group.members.push(conn);
        if self.places.len() <= conn as usize {
            self.places.resize(conn as usize + 1, Place::NOWHERE);
        }
        self.places[conn as usize] = Place { group: index, position };
    }

    /// The connection has ended.
    pub(super) fn remove(&mut self, conn: u32) {
        let Some(place) = self.places.get_mut(conn as usize) else {
            return;
        };
        let Place { group: index, position } = std::mem::replace(place, Place::NOWHERE);
        let Some((id, group)) = self.groups.at_mut(index) else {
            return;
        };
        let mut hole = position as usize;
        let places = &mut self.places;
        let mut fill = |members: &mut Vec<u32>, hole: usize, with: usize| {
            if hole != with {
                let moved = members[with];
                members[hole] = moved;
                places[moved as usize].position = hole as u32;
            }
        };
        if let Some(walk) = self.walk.as_mut().filter(|walk| walk.group == id) {
            // The hole is filled with one of its own kind: visited, not yet visited, or late.
            if hole < walk.cursor {
                walk.cursor -= 1;
                fill(&mut group.members, hole, walk.cursor);
                hole = walk.cursor;
            }
            if hole < walk.end {
                walk.end -= 1;
                fill(&mut group.members, hole, walk.end);
                hole = walk.end;
            }
        }
        if let Some(last) = group.members.len().checked_sub(1) {
            fill(&mut group.members, hole, last);
            group.members.pop();
        }
        if group.members.is_empty() {
            let hash = group.hash;
            self.bytes -= group.secret.len();
            if let Ok(entry) = self.by_text.find_entry(hash, |&other| other == index) {
                entry.remove();
            }
            self.groups.remove(id);
        }
    }

    /// The secret of a connection, with its hash. Empty if it sent none.
    pub(super) fn of(&self, conn: u32) -> Option<(&Arc<str>, u64)> {
        let place = self.places.get(conn as usize)?;
        let (_, group) = self.groups.at(place.group)?;
        Some((&group.secret, group.hash))
    }

    /// Whether any connection has this secret, so that another one with it costs no more.
    pub(super) fn is_known(&self, secret: &str) -> bool {
        self.find(secret).is_some()
    }

    /// Bytes of all secrets.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Begins a walk over those who have a secret now.
    pub(super) fn start_walk(&mut self, secret: &str) {
        let found = self.find(secret).and_then(|index| self.groups.at(index));
        self.walk = found.map(|(id, group)| Walk {
            group: id,
            cursor: 0,
            end: group.members.len(),
        });
    }

    /// The index of the next connection of the walk, which is over at `None`.
    pub(super) fn walk_next(&mut self) -> Option<u32> {
        let walk = self.walk.as_mut()?;
        let group = self.groups.get(walk.group);
        match group.filter(|_| walk.cursor < walk.end) {
            Some(group) => {
                walk.cursor += 1;
                group.members.get(walk.cursor - 1).copied()
            }
            None => {
                self.walk = None;
                None
            }
        }
    }

    /// Panics unless both directions agree.
    pub(super) fn assert_consistent(&self, connections: usize) {
        let mut count = 0;
        for (id, group) in self.groups.iter() {
            assert!(!group.members.is_empty(), "a secret that nobody has remains");
            assert_eq!(self.find(&group.secret), Some(id.index));
            for (position, &conn) in group.members.iter().enumerate() {
                let place = self.places[conn as usize];
                assert_eq!((place.group, place.position), (id.index, position as u32));
                count += 1;
            }
        }
        assert_eq!(count, connections, "each connection has one secret");
        assert_eq!(self.by_text.len(), self.groups.len());
        let bytes = self.groups.iter().map(|(_, group)| group.secret.len());
        assert_eq!(bytes.sum::<usize>(), self.bytes);
    }

    fn find(&self, secret: &str) -> Option<u32> {
        let hash = self.seed.hash_of(secret);
        let is_it = |&index: &u32| self.groups.at(index).is_some_and(|(_, it)| &*it.secret == secret);
        self.by_text.find(hash, is_it).copied()
    }

    fn insert(&mut self, secret: &str) -> u32 {
        let hash = self.seed.hash_of(secret);
        let id = self.groups.insert(Group {
            secret: secret.into(),
            hash,
            members: Vec::new(),
        });
        self.bytes += secret.len();
        let groups = &self.groups;
        let rehash = |&index: &u32| groups.at(index).map_or(0, |(_, it)| it.hash);
        self.by_text.insert_unique(hash, id.index, rehash);
        id.index
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    const CONNS: u32 = 8;

    proptest! {
        /// The table beside an obvious one.
        #[test]
        fn a_walk_visits_those_who_were_there_and_stayed(
            ops in prop::collection::vec((0..4u8, 0..CONNS, 0..3usize), 1..60)
        ) {
            let texts = ["", "a", "b"];
            let mut real = Secrets::new(Seed(1, 2));
            let mut oracle = BTreeMap::new();
            // Those still to be visited, and those that may not be.
            let mut walk = None::<(&str, BTreeSet<u32>, BTreeSet<u32>)>;
            for (op, conn, text) in ops {
                let text = texts[text];
                match op {
                    0 if oracle.get(&conn) == Some(&text) => real.set(conn, text),
                    0 => {
                        let left = walk.as_mut().filter(|(of, ..)| oracle.get(&conn) == Some(of));
                        if let Some((_, owed, done)) = left {
                            owed.remove(&conn);
                            done.insert(conn);
                        }
                        if let Some((_, _, done)) = walk.as_mut().filter(|(of, ..)| *of == text) {
                            done.insert(conn);
                        }
                        real.set(conn, text);
                        oracle.insert(conn, text);
                    }
                    1 => {
                        real.remove(conn);
                        oracle.remove(&conn);
                        if let Some((_, owed, _)) = &mut walk {
                            owed.remove(&conn);
                        }
                    }
                    2 if walk.is_none() => {
                        real.start_walk(text);
                        let owed = oracle.iter().filter(|(_, it)| **it == text).map(|(conn, _)| *conn);
                        walk = Some((text, owed.collect(), BTreeSet::new()));
                    }
                    _ => match (real.walk_next(), &mut walk) {
                        (Some(next), Some((of, owed, done))) => {
                            prop_assert_eq!(oracle.get(&next).copied(), Some(*of));
                            prop_assert!(owed.remove(&next), "{} came later, or again", next);
                            done.insert(next);
                        }
                        (None, Some((_, owed, _))) => {
                            prop_assert!(owed.is_empty(), "{:?} were skipped", owed);
                            walk = None;
                        }
                        (found, None) => prop_assert_eq!(found, None),
                    },
                }
                real.assert_consistent(oracle.len());
                for (&conn, &text) in &oracle {
                    prop_assert_eq!(real.of(conn).map(|(secret, _)| &**secret), Some(text));
                }
            }
        }
    }
}
