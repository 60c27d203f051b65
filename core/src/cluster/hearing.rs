//! [`Listening`]: whether the bus brings this node its own digests, and so very likely those of others.

use std::time::Duration;

use super::ClusterConfig;
use crate::time::Timestamp;

/// Whether a node hears what it publishes itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hearing {
    /// The bus does not bring nodes their own messages, so nothing is known: see
    /// [`ClusterConfig::hears_itself`](super::ClusterConfig::hears_itself).
    #[default]
    NotExpected,
    /// The bus is not connected, or was a moment ago: the first digest has yet to come back.
    Waiting,
    /// It does.
    Hears,
    /// The bus is connected and brings nothing back. The node can't publish, can't hear, or neither.
    Deaf,
}

pub(super) struct Listening {
    hearing: Hearing,
    /// A digest is to come back within this.
    patience: Duration,
    /// When one has come last, or was first asked for.
    since: Timestamp,
    /// Digests up to this number prove nothing: they were sent over an earlier connection.
    after: u64,
    is_connected: bool,
}

impl Listening {
    pub(super) fn new(config: &ClusterConfig, now: Timestamp) -> Self {
        Self {
            hearing: match config.hears_itself {
                true => Hearing::Waiting,
                false => Hearing::NotExpected,
            },
            patience: config.heartbeat * config.lost_after_heartbeats,
            since: now,
            after: 0,
            is_connected: false,
        }
    }

    pub(super) fn hearing(&self) -> Hearing {
        self.hearing
    }

    /// The bus is connected, or not any more. `last` is the number of this node's last digest.
    pub(super) fn connected(&mut self, now: Timestamp, is_connected: bool, last: u64) {
        self.is_connected = is_connected;
        self.after = last;
        self.since = now;
        if self.hearing != Hearing::NotExpected {
            self.hearing = Hearing::Waiting;
        }
    }

    /// For so long nothing could be heard, whatever the bus has brought.
    pub(super) fn grant(&mut self, now: Timestamp, time: Duration) {
        self.since = self.since + time.min(now.since(self.since));
    }

    /// A digest of this node has come back.
    pub(super) fn heard(&mut self, now: Timestamp, number: u64) {
        if number > self.after && self.is_connected && self.hearing != Hearing::NotExpected {
            self.since = now;
            self.hearing = Hearing::Hears;
        }
    }

    /// Says whether the node is deaf from now on.
    pub(super) fn handle_timeout(&mut self, now: Timestamp) -> bool {
        let is_waiting = matches!(self.hearing, Hearing::Waiting | Hearing::Hears);
        let is_deaf = self.is_connected && is_waiting && now.since(self.since) >= self.patience;
        if is_deaf {
            self.hearing = Hearing::Deaf;
        }
        is_deaf
    }
}
