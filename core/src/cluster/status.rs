//! [`ClusterView`]: what happens in a cluster, for operators, readable on any thread.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::peers::{Peer, State};
use super::{ClusterConfig, Epoch, Hearing, NodeId};
use crate::counters::{Counter, counters};
use crate::time::Timestamp;

counters! {
    /// What a node counts as one of a cluster.
    ClusterCounters,
    /// What a node has counted as one of a cluster, at one moment.
    ClusterCounts {
        /// Buckets told of in messages, or messages, that were given to the bus.
        published,
        /// Digests given to the bus, each part of a long one.
        digests_sent,
        /// Messages of changes from other nodes.
        messages,
        /// Keys that other nodes were notified of.
        keys,
        /// Sections that said that anything in their bucket may have changed.
        whole_buckets,
        /// Digests from other nodes.
        digests,
        /// Messages of this node that the bus brought back to it.
        echoes,
        /// Messages that came before.
        repeated,
        /// Messages that were missing, and given up: the keys of their bucket were read again.
        gaps,
        /// Times that everything was read again: a peer was lost, it is time for the slow sweep, or a plain bus came back.
        sweeps,
        /// Reads begun because a change may have been missed.
        repairs,
        /// Nodes heard of for the first time.
        new_peers,
        /// Nodes that came back under another epoch.
        restarted_peers,
        /// Nodes that were silent for too long.
        lost_peers,
        /// Messages of nodes, or of runs of them, that have sent no digest yet.
        strangers,
        /// Messages of an earlier run of a node that runs: late, repeated, or replayed.
        old_epochs,
        /// Digests older than one that has come before.
        old_digests,
        /// Messages of another node or an earlier run that has this node's id. Give each node an id of its own.
        namesakes,
        /// Digests of nodes with other rules: the number of buckets, or interest. They are not heard.
        mismatched,
        /// Digests of nodes beyond `max_peers`. They are not heard.
        too_many_peers,
        /// Messages without a good proof that they are of this cluster.
        forged,
        /// Messages of another version of the protocol.
        other_versions,
        /// Messages that are none.
        malformed,
        /// Messages dropped because too many were waiting for the bus's thread.
        overflowed,
        /// Messages that a plain bus has confirmed.
        confirmed,
        /// Messages that a plain bus did not get, or did not confirm in time. They were applied here, and are published again.
        unconfirmed,
        /// Messages that a plain bus confirmed and did not bring back in time. They were read again here, and published again.
        unechoed,
        /// Keys that a plain bus could not be told of, because too many were waiting. Only other nodes miss them.
        untold,
    }
}

/// What happens in a cluster, as of now or as of the last heartbeat.
#[derive(Debug)]
pub struct ClusterView {
    identity: Option<Identity>,
    counters: Arc<ClusterCounters>,
    is_connected: AtomicBool,
    has_been_connected: AtomicBool,
    hearing: Mutex<Hearing>,
    shown: Mutex<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    peers: Vec<PeerStatus>,
    waiting_repairs: usize,
}

/// What a [`ClusterView`] shows at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClusterStatus {
    /// Who this node is to the others. On a plain queue, nobody in particular.
    pub identity: Option<Identity>,
    /// Whether the bus is connected, as far as it tells.
    pub is_connected: bool,
    /// Whether it has ever been.
    pub has_been_connected: bool,
    /// Whether this node hears itself.
    pub hearing: Hearing,
    /// The other nodes, as of the last heartbeat.
    pub peers: Vec<PeerStatus>,
    /// Reads that wait for their turn because a change may have been missed, as of the last heartbeat.
    pub waiting_repairs: usize,
    /// What was counted.
    pub counts: ClusterCounts,
}

/// Who a node is in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// This run of it.
    pub epoch: Epoch,
    /// What people call it.
    pub name: String,
}

impl Identity {
    pub(super) fn of(config: &ClusterConfig) -> Self {
        Self {
            node: config.node,
            epoch: config.epoch,
            name: config.name.clone(),
        }
    }
}

/// What is known of another node.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerStatus {
    /// Which.
    pub node: NodeId,
    /// The run of it.
    pub epoch: Epoch,
    /// What people call it.
    pub name: String,
    /// Whether it lives.
    pub state: PeerState,
    /// How long ago its last digest had come.
    pub heard_ago: Duration,
    /// Buckets that it has published to.
    pub used_buckets: usize,
    /// Messages of changes that have come from it.
    pub messages: u64,
    /// How far this node is behind: messages that it has sent and that have not come, nor been given up.
    pub missing: u64,
    /// How often messages were given up.
    pub gaps: u64,
}

/// Whether a peer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerState {
    /// It is heard.
    Alive,
    /// It has been silent for too long.
    Lost,
    /// It has said goodbye.
    Left,
}

impl PeerState {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Lost => "lost",
            Self::Left => "left",
        }
    }
}

impl ClusterView {
    pub(super) fn new(identity: Option<Identity>, hearing: Hearing, counters: Arc<ClusterCounters>) -> Self {
        Self {
            identity,
            counters,
            is_connected: AtomicBool::new(false),
            has_been_connected: AtomicBool::new(false),
            hearing: Mutex::new(hearing),
            shown: Mutex::default(),
        }
    }

    /// What happens now.
    pub fn status(&self) -> ClusterStatus {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        ClusterStatus {
            identity: self.identity.clone(),
            is_connected: self.is_connected(),
            has_been_connected: self.has_been_connected(),
            hearing: self.hearing(),
            peers: shown.peers.clone(),
            waiting_repairs: shown.waiting_repairs,
            counts: self.counters.snapshot(),
        }
    }

    /// Whether the bus is connected, as far as it tells.
    pub fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    /// Whether the bus has ever been connected.
    pub fn has_been_connected(&self) -> bool {
        self.has_been_connected.load(Ordering::Relaxed)
    }

    /// Whether this node hears itself.
    pub fn hearing(&self) -> Hearing {
        *self.hearing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is counted. Whoever carries messages may add what it had to drop.
    pub fn counters(&self) -> &ClusterCounters {
        &self.counters
    }

    /// Messages had to be dropped on their way to the cluster's thread.
    pub fn add_overflowed(&self, messages: u64) {
        self.counters.overflowed.add(messages);
    }

    /// Messages came that could not even be handed to the cluster.
    pub fn add_malformed(&self, messages: u64) {
        self.counters.malformed.add(messages);
    }

    pub(super) fn set_connected(&self, is_connected: bool) {
        self.is_connected.store(is_connected, Ordering::Relaxed);
        if is_connected {
            self.has_been_connected.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn set_hearing(&self, hearing: Hearing) {
        *self.hearing.lock().unwrap_or_else(PoisonError::into_inner) = hearing;
    }

    pub(super) fn show(&self, now: Timestamp, peers: &BTreeMap<NodeId, Peer>, waiting_repairs: usize) {
        let status = |(&node, peer): (&NodeId, &Peer)| PeerStatus {
            node,
            epoch: peer.epoch,
            name: peer.name.clone(),
            state: match peer.state {
                State::Alive => PeerState::Alive,
                State::Lost => PeerState::Lost,
                State::Left => PeerState::Left,
            },
            heard_ago: now.since(peer.heard),
            used_buckets: peer.used_buckets().count(),
            messages: peer.messages,
            missing: peer.missing(),
            gaps: peer.gaps,
        };
        let peers = peers.iter().map(status).collect();
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Shown { peers, waiting_repairs };
    }
}
