//! What must be true of a node's tables whenever nobody is changing them.

use super::{Node, STRIPES};

impl Node {
    /// Panics unless the tables agree with each other. For tests and simulations; it visits everything.
    #[doc(hidden)]
    pub fn assert_consistent(&self) {
        let mut counts = std::collections::BTreeMap::new();
        for number in 0..STRIPES {
            let stripe = self.lock(number);
            assert_eq!(stripe.by_name.len(), stripe.flights.len());
            // Most are, and simulations ask after each step.
            if stripe.by_name.is_empty() && stripe.by_key.is_empty() {
                continue;
            }
            let by_key = stripe.by_key.iter().map(|it| it.flights.len());
            assert_eq!(by_key.sum::<usize>(), stripe.flights.len());
            for (slot, flight) in stripe.flights.iter() {
                assert!(!flight.is_over(), "{slot:?} should be gone");
                assert!(!flight.is_due(), "{slot:?} should be running");
                let of_entity = counts.entry(flight.entity).or_insert((0, 0));
                of_entity.0 += usize::from(flight.runs());
                of_entity.1 += usize::from(flight.turn().is_some());
            }
        }
        let open: u64 = self.0.shard_counters.iter().map(|it| it.connections.get()).sum();
        assert_eq!(self.0.admission.open() as u64, open, "connections that were admitted");
        for (entity, counted) in counts {
            assert_eq!(
                self.0.entities.of(entity).counts(),
                counted,
                "running and waiting of {entity:?}"
            );
            assert!(counted.0 <= self.0.entities.options(entity).max_running_reads.max(1));
        }
    }
}
