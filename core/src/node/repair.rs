//! What a cluster asks of a [`Node`]: notifies that come from other nodes, and repairs.

use std::sync::Arc;

use super::gate::Why;
use super::outgoing::Outgoing;
use super::stripe::Alarm;
use super::{Node, STRIPES, Starts};
use crate::cluster::{BucketSet, JoinError};
use crate::flights::{FlightId, Ticket};
use crate::key::KeyRef;
use crate::time::Timestamp;

impl Node {
    /// From now on, what is notified here goes out over a bus, too.
    pub(crate) fn attach_bus(&self, outgoing: Outgoing) -> Result<Arc<Outgoing>, JoinError> {
        let outgoing = Arc::new(outgoing);
        // All of them: a flight that comes later finds the bus, and one that has gone before is not counted.
        let mut stripes: Vec<_> = (0..STRIPES).map(|number| self.lock(number)).collect();
        for (_, flight) in stripes.iter_mut().flat_map(|it| it.flights.iter_mut()) {
            flight.begin_looking();
            outgoing.has_flight(&flight.key);
        }
        let attached = self.0.outgoing.set(outgoing.clone());
        attached.map(|()| outgoing).map_err(|_| JoinError::HasBus)
    }

    pub(super) fn outgoing(&self) -> Option<&Arc<Outgoing>> {
        self.0.outgoing.get()
    }

    /// Another node was notified.
    pub(crate) fn hear(&self, now: Timestamp, key: KeyRef<'_>) {
        self.owe_to_all(now, key);
    }

    /// Changes may have been missed by everyone who is not given a read that began after the ticket that this gives. Until
    /// [`Self::repair_since`] has looked for them, whoever moves to another audience is read for: what it would have been
    /// owed, nobody has noted down yet.
    pub(crate) fn doubt(&self) -> Ticket {
        if let Some(outgoing) = self.outgoing() {
            // First: who has moved without seeing it accepts every read that began after the ticket.
            outgoing.set_doubts(true);
        }
        self.current_ticket()
    }

    /// Everyone who is subscribed to a key of these buckets may have missed a change, unless they are given rows of a read
    /// that began after `since`. Calls `found` with each audience for which [`Self::repair`] is to be called, and its weight.
    pub(crate) fn repair_since(&self, buckets: &BucketSet, since: Ticket, mut found: impl FnMut(u8, FlightId)) {
        for number in 0..STRIPES {
            if !buckets.meets(number, STRIPES) {
                continue;
            }
            let mut stripe = self.lock(number);
            for (slot, flight) in stripe.flights.iter_mut() {
                if buckets.contains(flight.key.bucket(buckets.count())) && flight.repair_since(since) {
                    found(flight.weight(), FlightId { stripe: number, slot });
                }
            }
        }
        if let Some(outgoing) = self.outgoing() {
            outgoing.set_doubts(false);
        }
    }

    /// Begins a read for those who may have missed a change; it is silent if there was none. Says whether it was still
    /// necessary.
    pub(crate) fn repair(&self, now: Timestamp, id: FlightId) -> bool {
        let mut settle = None;
        let is_due = self.change(now, id, |it| {
            let is_due = it.repair();
            let wait = self.0.entities.options(it.entity).settle.filter(|_| is_due);
            settle = wait.map(|wait| now + wait).filter(|&at| it.settle_at(at));
            is_due
        });
        if let Some(at) = settle {
            // The store may show this read an old state, as it may any other.
            let alarms = &mut self.lock(id.stripe).alarms;
            self.set_alarm(at, id.slot, Alarm::Settle, alarms);
        }
        is_due.unwrap_or_default()
    }

    /// A shard's topic has about `2^weight` members, which matters only where something is repaired. What a bus that comes
    /// later finds weighs nothing until it changes.
    pub(crate) fn weigh(&self, shard: u32, flight: FlightId, weight: u8) {
        if self.outgoing().is_some()
            && let Some(flight) = self.lock(flight.stripe).flights.get_mut(flight.slot)
        {
            flight.weigh(shard, weight);
        }
    }

    /// Begins reads for all audiences of a key.
    pub(super) fn owe_to_all(&self, now: Timestamp, key: KeyRef<'_>) {
        let mut starts = Starts::new();
        {
            let number = key.bucket(STRIPES);
            let mut guard = self.lock(number);
            let stripe = &mut *guard;
            let hash = self.seed().hash_of(&key);
            let Some(audiences) = stripe.by_key.find(hash, |it| it.key == key) else {
                return;
            };
            for &index in &audiences.flights {
                if let Some((slot, flight)) = stripe.flights.at_mut(index) {
                    flight.owe_to_all(now);
                    let id = FlightId { stripe: number, slot };
                    self.start_if_due(now, id, flight, Why::Notified, &mut stripe.limits, &mut starts);
                }
            }
        }
        self.hand_over(now, starts);
    }
}
