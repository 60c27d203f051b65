//! [`ZmqView`]: how a node is connected, for operators, readable on any thread.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::links::LinkCounts;

/// How a node is connected. It is kept up to date for as long as the bus lives.
#[derive(Debug, Default)]
pub struct ZmqView {
    addresses: OnceLock<Vec<String>>,
    peers: AtomicU64,
    connected_peers: AtomicU64,
    brokers: AtomicU64,
    connected_brokers: AtomicU64,
    refused: AtomicU64,
    failed_lookups: AtomicU64,
}

/// What a [`ZmqView`] shows at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ZmqStatus {
    /// Addresses of peers that this node connects to, its own perhaps among them.
    pub peers: u64,
    /// How many of them it is connected to.
    pub connected_peers: u64,
    /// Brokers that it uses.
    pub brokers: u64,
    /// How many of them it is connected to, with both sides.
    pub connected_brokers: u64,
    /// Connections that a peer or broker did not admit, and that this node did not: other keys of CURVE, or none.
    pub refused: u64,
    /// Lookups of names that failed.
    pub failed_lookups: u64,
}

impl ZmqView {
    /// How it is now.
    pub fn status(&self) -> ZmqStatus {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ZmqStatus {
            peers: get(&self.peers),
            connected_peers: get(&self.connected_peers),
            brokers: get(&self.brokers),
            connected_brokers: get(&self.connected_brokers),
            refused: get(&self.refused),
            failed_lookups: get(&self.failed_lookups),
        }
    }

    /// Where it is bound, with the ports that were taken for port 0.
    pub fn addresses(&self) -> &[String] {
        self.addresses.get().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn set_addresses(&self, addresses: Vec<String>) {
        let _ = self.addresses.set(addresses);
    }

    pub(crate) fn show(&self, counts: LinkCounts) {
        self.peers.store(counts.peers, Ordering::Relaxed);
        self.connected_peers.store(counts.connected_peers, Ordering::Relaxed);
        self.brokers.store(counts.brokers, Ordering::Relaxed);
        self.connected_brokers
            .store(counts.connected_brokers, Ordering::Relaxed);
    }

    pub(crate) fn add_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_failed_lookup(&self) {
        self.failed_lookups.fetch_add(1, Ordering::Relaxed);
    }
}
