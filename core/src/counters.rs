//! What is counted, for operators and tests: written where it happens, readable from any thread without a lock.

use std::ops::AddAssign;
// Not the model checker's: what is counted decides nothing.
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that can be read from any thread. Most only grow.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// As [`Self::add`], for a counter that only one thread writes: no locked instruction on the way of every delivery.
    pub(crate) fn add_alone(&self, n: u64) {
        self.set(self.get().wrapping_add(n));
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
}

/// Declares a set of counters and its snapshot, field by field, so that nothing is counted and then not shown.
macro_rules! counters {
    (
        $(#[$live_doc:meta])* $live:ident,
        $(#[$snapshot_doc:meta])* $snapshot:ident {
            $($(#[doc = $doc:expr])+ $field:ident),+ $(,)?
        }
    ) => {
        $(#[$live_doc])*
        #[derive(Debug, Default)]
        #[non_exhaustive]
        pub struct $live {
            $($(#[doc = $doc])+ pub $field: Counter,)+
        }

        $(#[$snapshot_doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $snapshot {
            $($(#[doc = $doc])+ pub $field: u64,)+
        }

        impl $live {
            /// All numbers as they are now, one after the other.
            pub fn snapshot(&self) -> $snapshot {
                $snapshot { $($field: self.$field.get(),)+ }
            }
        }

        impl $snapshot {
            /// Each number with its name and what it says, as for a metrics page.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($field), concat!($($doc),+).trim_ascii(), self.$field),)+].into_iter()
            }
        }

        impl AddAssign for $snapshot {
            fn add_assign(&mut self, other: Self) {
                $(self.$field += other.$field;)+
            }
        }
    };
}
pub(crate) use counters;

counters! {
    /// What a [`Node`](crate::Node) counts.
    NodeCounters,
    /// What a [`Node`](crate::Node) has counted at one moment.
    NodeCounts {
        /// Calls of notify.
        notifies,
        /// Calls of notify for entities that are not registered.
        unknown_entities,
        /// Reads begun.
        reads,
        /// Reads that were answered with an error that may pass, or with rows that can't be sent.
        failed_reads,
        /// Reads answered with `Denied`.
        denied_reads,
        /// Reads answered with `NotFound`.
        not_found_reads,
        /// Reads given up at their time limit.
        timed_out_reads,
        /// Answers that came after their read had been given up; they were discarded.
        late_reads,
        /// Calls of the resolver that panicked.
        resolver_panics,
        /// Calls of `on_message` for messages that were kept for later that panicked.
        message_panics,
        /// Reads that had to wait, because as many of their entity were running as may.
        queued_reads,
        /// Reads begun only to look whether something has changed: the store may have settled, or a change been missed.
        silent_reads,
        /// Of those, the ones that found what had been delivered already.
        silent_unchanged,
        /// Upgrade requests refused: not good HTTP/1.1, or not a good upgrade.
        refused_upgrades_bad_request,
        /// Upgrade requests refused: a web page of another origin.
        refused_upgrades_origin,
        /// Upgrade requests refused: the name in Host is not trusted.
        refused_upgrades_host,
        /// Upgrade requests refused: nothing is at the path.
        refused_upgrades_path,
        /// Upgrade requests refused: another method than GET.
        refused_upgrades_method,
        /// Upgrade requests refused: the header block is too long.
        refused_upgrades_too_long,
        /// Upgrade requests refused: TLS at a plain port.
        refused_upgrades_tls,
        /// Upgrade requests refused: no room for another connection.
        refused_upgrades_full,
        /// Upgrade requests refused: the HTTP stack can't give the connection away.
        refused_upgrades_not_upgradable,
    }
}

counters! {
    /// What a [`Shard`](crate::Shard) counts. One thread writes them.
    ShardCounters,
    /// What a [`Shard`](crate::Shard) has counted at one moment.
    ShardCounts {
        /// Connections that are open now.
        connections,
        /// Subscriptions that there are now.
        subscriptions,
        /// Bytes that subscriptions cost now, as far as they can be counted.
        subscription_bytes,
        /// Bytes of clients' secrets now.
        secret_bytes,
        /// Bytes received now that wait for the rest of their message, or for their connection's next turn.
        input_bytes,
        /// Connections opened.
        opened,
        /// Connections ended, for whatever reason.
        closed,
        /// Connections refused: too many, too many from one address, or the shard is draining.
        refused_connections,
        /// HTTP requests that were not a good upgrade.
        refused_upgrades,
        /// Connections closed before their upgrade, since newer ones needed their place.
        displaced_upgrades,
        /// Client messages taken in, good and bad.
        messages,
        /// Client messages that were rejected: not JSON, wrong types, unknown actions, or nobody to pass them to.
        rejected_messages,
        /// Client messages passed to the application.
        passed_messages,
        /// Calls of the application's handlers that panicked: of messages, of incidents, of audiences and of the date.
        handler_panics,
        /// Subscriptions refused: too many of this client or of all, too long a key, or an entity that is not registered.
        refused_subscriptions,
        /// Connections closed because the peer violated the WebSocket protocol.
        violations,
        /// Connections closed because there was no room for what they sent: secrets, or messages not yet whole.
        refused_input,
        /// Connections dropped because the peer was silent for too long, did not finish its upgrade, or did not end after a
        /// close frame.
        dead_peers,
        /// Connections closed because they fell behind with what can't be skipped: every notify of an entity with
        /// `Delivery::Every`, or messages of the application.
        fallen_behind,
        /// Inputs for connections that no longer exist, as when a taken write ends after its connection, and ends of
        /// writes that were not taken.
        stale_inputs,
        /// Secrets put in force in place of others. One that another follows at once is skipped.
        secret_changes,
        /// Times that reading from a connection was stopped for a while, as it sent more than its share.
        read_pauses,
        /// Groups given to connections, whether written at once or queued. Not those without rows, those withheld, and those
        /// whose socket failed.
        deliveries,
        /// Bytes of the groups given to connections.
        delivered_bytes,
        /// Queued groups that were replaced by newer ones.
        conflated,
        /// Groups withheld because an outbox was full; the key is read again for that connection later.
        dirty_marks,
        /// Reads asked for by single connections: snapshots, after dirty marks, changed secrets, or at the
        /// application's wish.
        targeted_reads,
        /// Messages of the application queued for connections.
        sent_messages,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_name_and_a_meaning() {
        let counters = ShardCounters::default();
        counters.conflated.add_alone(2);
        let mut sum = counters.snapshot();
        sum += counters.snapshot();
        assert_eq!(sum.conflated, 4);
        let found = sum.iter().find(|(name, ..)| *name == "conflated");
        assert_eq!(
            found,
            Some(("conflated", "Queued groups that were replaced by newer ones.", 4))
        );
    }
}
