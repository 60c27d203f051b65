//! [`Config`]: limits and policies. Every driver has them from here, so that none invents its own.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::hash::Seed;
use crate::key::EntityKey;
use crate::resolve::Audience;
use crate::ws::UpgradeRules;

/// Chooses the audience of a key for a client with a secret.
pub type AudienceOf = Arc<dyn Fn(&EntityKey, &str) -> Audience + Send + Sync>;

/// Limits and policies of a node and its shards.
#[derive(Clone)]
#[non_exhaustive]
pub struct Config {
    /// Secret randomness for hash tables and jitter, drawn by the embedder when the process starts.
    pub seed: Seed,
    /// Paths, origins and the length of upgrade requests.
    pub upgrade: UpgradeRules,
    /// Which subscribers share a read; by default those with the same secret. Must always give the same answer for the
    /// same arguments.
    pub audience_of: AudienceOf,
    /// Open connections per shard.
    pub max_connections: usize,
    /// Length of one message from a client, in bytes.
    pub max_message_bytes: usize,
    /// Subscriptions of one connection. Further ones are refused and counted.
    pub max_subscriptions: usize,
    /// Length of a key that a client may subscribe to, entity and id together, in bytes. Longer ones are refused and
    /// counted: with `max_subscriptions` it bounds what a connection's subscriptions cost.
    pub max_key_bytes: usize,
    /// Unsent frames of one connection, in bytes. Beyond it only a mark per key is kept. One larger group may go alone.
    pub max_outbox_bytes: usize,
    /// Rows of one read.
    pub max_rows_per_read: usize,
    /// Payload of one read, in bytes.
    pub max_read_bytes: usize,
    /// A read that takes longer is given up and tried again.
    pub read_time_limit: Duration,
    /// The pause after a read's first failure; it doubles with each one, and half of it is jitter.
    pub retry_first: Duration,
    /// The longest pause between failed reads.
    pub retry_max: Duration,
    /// Pings go out at this interval.
    pub ping_interval: Duration,
    /// A peer that shows no sign of life for so long is dead.
    pub dead_after: Duration,
    /// A peer has so long to finish its upgrade request.
    pub upgrade_time_limit: Duration,
    /// A peer has so long to take the rest and close its side after a close frame.
    pub close_time_limit: Duration,
    /// The most members that one [`Broadcast`](crate::Broadcast) visits, so that a large audience doesn't hold up a
    /// driver's turn.
    pub broadcast_budget: usize,
}

impl Config {
    /// The defaults, with the embedder's `seed`.
    pub fn new(seed: Seed) -> Self {
        Self {
            seed,
            upgrade: UpgradeRules::default(),
            audience_of: Arc::new(|_, secret| Audience::Secret(secret.into())),
            max_connections: 1_000_000,
            max_message_bytes: 64 * 1024,
            max_subscriptions: 1_000,
            max_key_bytes: 1_024,
            max_outbox_bytes: 1024 * 1024,
            max_rows_per_read: 1_000,
            max_read_bytes: 16 * 1024 * 1024,
            read_time_limit: Duration::from_secs(5),
            retry_first: Duration::from_millis(100),
            retry_max: Duration::from_secs(30),
            ping_interval: Duration::from_secs(25),
            dead_after: Duration::from_secs(60),
            upgrade_time_limit: Duration::from_secs(10),
            close_time_limit: Duration::from_secs(5),
            broadcast_budget: 1_024,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("upgrade", &self.upgrade)
            .field("max_connections", &self.max_connections)
            .field("max_subscriptions", &self.max_subscriptions)
            .field("max_outbox_bytes", &self.max_outbox_bytes)
            .finish_non_exhaustive()
    }
}
