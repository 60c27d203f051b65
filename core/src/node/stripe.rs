//! [`Stripe`]: the tables of a part of the flights.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::flights::{Flight, Ticket};
use crate::hash::NameHash;
use crate::key::EntityKey;
use crate::resolve::Audience;
use crate::slots::{SlotId, Slots};
use crate::time::Timestamp;

/// A part of the flights, by hash of the key: all flights of a key are in one stripe.
pub(super) struct Stripe {
    pub(super) flights: Slots<Flight>,
    /// By (key, audience).
    pub(super) by_name: HashTable<u32>,
    pub(super) by_key: HashTable<Audiences>,
    /// Running reads in order of their time limits, which are all of one length. Ended ones are dropped when they come up.
    pub(super) limits: VecDeque<(Timestamp, SlotId, Ticket)>,
    /// When flights want to be looked at again: failed ones, and those whose store is to have settled.
    pub(super) alarms: BinaryHeap<Reverse<(Timestamp, SlotId, Alarm)>>,
}

/// Why a flight wants to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Alarm {
    /// The backoff after a failed read has passed.
    Retry,
    /// The store should have settled.
    Settle,
}

/// The flights of one key.
pub(super) struct Audiences {
    pub(super) key: EntityKey,
    pub(super) hash: u64,
    pub(super) flights: SmallVec<[u32; 2]>,
}

impl Stripe {
    pub(super) fn new() -> Self {
        Self {
            flights: Slots::new(),
            by_name: HashTable::new(),
            by_key: HashTable::new(),
            limits: VecDeque::new(),
            alarms: BinaryHeap::new(),
        }
    }

    pub(super) fn find_or_insert(
        &mut self,
        hash: NameHash,
        key: &EntityKey,
        audience: &Audience,
        new: impl FnOnce() -> Flight,
    ) -> u32 {
        let Self {
            flights,
            by_name,
            by_key,
            ..
        } = self;
        let found = by_name.find(hash.name, |&index| {
            let flight = flights.at(index).map(|(_, it)| it);
            flight.is_some_and(|it| it.hash == hash && it.key == *key && it.audience == *audience)
        });
        if let Some(&index) = found {
            return index;
        }
        let slot = flights.insert(new());
        by_name.insert_unique(hash.name, slot.index, |&index| {
            flights.at(index).map_or(0, |(_, it)| it.hash.name)
        });
        by_key
            .entry(hash.key, |it| it.key == *key, |it| it.hash)
            .or_insert_with(|| Audiences {
                key: key.clone(),
                hash: hash.key,
                flights: SmallVec::new(),
            })
            .get_mut()
            .flights
            .push(slot.index);
        slot.index
    }

    /// Keeps `limits` from growing to all reads of a whole time limit.
    pub(super) fn forget_ended_limits(&mut self) {
        while let Some(&(_, slot, ticket)) = self.limits.front() {
            if self.flights.get(slot).is_some_and(|it| it.is_running(ticket)) {
                break;
            }
            self.limits.pop_front();
        }
    }

    pub(super) fn remove_if_over(&mut self, slot: SlotId) -> Option<Flight> {
        if !self.flights.get(slot).is_some_and(Flight::is_over) {
            return None;
        }
        let flight = self.flights.remove(slot)?;
        if let Ok(entry) = self.by_name.find_entry(flight.hash.name, |&index| index == slot.index) {
            entry.remove();
        }
        if let Ok(mut entry) = self.by_key.find_entry(flight.hash.key, |it| it.key == flight.key) {
            entry.get_mut().flights.retain(|&mut index| index != slot.index);
            if entry.get().flights.is_empty() {
                entry.remove();
            }
        }
        Some(flight)
    }
}
