//! What is counted, for operators and tests.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows, and can be read from any thread.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The number so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}

/// What a [`Node`](crate::Node) has counted.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct NodeCounters {
    /// Calls of notify.
    pub notifies: Counter,
    /// Reads begun.
    pub reads: Counter,
    /// Reads that were answered with an error, or with rows that can't be sent.
    pub failed_reads: Counter,
    /// Reads given up at their time limit.
    pub timed_out_reads: Counter,
    /// Answers that came after their read had been given up; they were discarded.
    pub late_reads: Counter,
}

/// What a [`Shard`](crate::Shard) has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardCounters {
    /// Connections opened.
    pub opened: u64,
    /// Connections ended, for whatever reason.
    pub closed: u64,
    /// Connections refused because of `max_connections`.
    pub refused_connections: u64,
    /// HTTP requests that were not a good upgrade.
    pub refused_upgrades: u64,
    /// Client messages that were rejected: not JSON, wrong types, unknown actions, or without an action.
    pub rejected_messages: u64,
    /// Subscriptions refused because of `max_subscriptions` or `max_key_bytes`.
    pub refused_subscriptions: u64,
    /// Connections closed because the peer violated the WebSocket protocol.
    pub violations: u64,
    /// Connections closed because the peer was silent for too long, or did not finish its upgrade.
    pub dead_peers: u64,
    /// Inputs for connections that no longer exist, as when a taken write ends after its connection, and ends of writes
    /// that were not taken.
    pub stale_inputs: u64,
    /// Groups given to connections, whether written at once or queued.
    pub deliveries: u64,
    /// Queued groups that were replaced by newer ones.
    pub conflated: u64,
    /// Groups withheld because an outbox was full; the key is read again for that connection later.
    pub dirty_marks: u64,
    /// Reads asked for by single connections: after dirty marks and changed secrets.
    pub targeted_reads: u64,
}

impl std::ops::AddAssign for ShardCounters {
    fn add_assign(&mut self, other: Self) {
        self.opened += other.opened;
        self.closed += other.closed;
        self.refused_connections += other.refused_connections;
        self.refused_upgrades += other.refused_upgrades;
        self.rejected_messages += other.rejected_messages;
        self.refused_subscriptions += other.refused_subscriptions;
        self.violations += other.violations;
        self.dead_peers += other.dead_peers;
        self.stale_inputs += other.stale_inputs;
        self.deliveries += other.deliveries;
        self.conflated += other.conflated;
        self.dirty_marks += other.dirty_marks;
        self.targeted_reads += other.targeted_reads;
    }
}
