//! [`Config`]: limits and policies. Every driver has them from here, so that none invents its own.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::client::{OnMessage, PassThrough};
use crate::entity::Entities;
use crate::hash::Seed;
use crate::incident::{OnIncident, OnRefusedUpgrade};
use crate::ws::UpgradeRules;

/// A header field by which a client asks for the limits that its subscriptions have. Clients of protocol v1 don't send it, and
/// are answered as ever.
pub const LIMITS_FIELD: &str = "Entity-Sync-Limits";

/// Gives the present date as HTTP writes it, such as `Sun, 06 Nov 1994 08:49:37 GMT`.
pub type HttpDate = Arc<dyn Fn() -> String + Send + Sync>;

/// Limits and policies of a node and its shards.
#[derive(Clone)]
#[non_exhaustive]
pub struct Config {
    /// Secret randomness for hash tables and jitter, drawn by the embedder when the process starts.
    pub seed: Seed,
    /// Paths, origins and the length of upgrade requests.
    pub upgrade: UpgradeRules,
    /// Fills the `Date` field of refusals; without it they have none. Core has no clock of day.
    pub http_date: Option<HttpDate>,
    /// Which entities there are, and how each is read and delivered.
    pub entities: Entities,
    /// What becomes of messages that are the application's; without it they are counted and dropped.
    pub on_message: Option<OnMessage>,
    /// Which messages those are.
    pub pass_through: PassThrough,
    /// What is done with clients' misdeeds, besides counting them: written to a log, usually.
    pub on_incident: Option<OnIncident>,
    /// What is done with each refused upgrade request, besides counting it: written to a log, usually.
    pub on_refused_upgrade: Option<OnRefusedUpgrade>,
    /// How many of each kind of incident a shard tells in one second.
    pub max_incidents_per_second: u32,
    /// Open connections, on all shards together.
    pub max_connections: usize,
    /// Open connections from one IPv4 address or IPv6 /64, on all shards together. `usize::MAX`, the default, is no
    /// limit, since many clients may be behind one proxy.
    pub max_connections_per_address: usize,
    /// Connections that have not finished their upgrade; each shard has an equal part. Beyond it the oldest ends for a newer
    /// one, once it has had a second, and until then none is accepted.
    pub max_upgrading: usize,
    /// Of those, the ones from one IPv4 address or IPv6 /64, once half of all places are taken; each shard has an equal part, and
    /// at least 256 of it. Beyond it the address's own oldest ends, once it has had a second, and until then the newest.
    pub max_upgrading_per_address: usize,
    /// Bytes of unfinished upgrade requests; each shard has an equal part. Beyond it the oldest ends that holds any, of the
    /// address that sends more if there is one.
    pub max_upgrade_bytes: usize,
    /// Connections accepted per second, after a burst of as many. 0 is no limit.
    pub max_accepts_per_second: u32,
    /// Length of one message from a client, in bytes.
    pub max_message_bytes: usize,
    /// How often a client may change its secret in each `secret_window`. Beyond it, the client isn't read from until some
    /// of its changes are that long ago, since each moves all its subscriptions. 0 is no limit.
    pub max_secret_changes: u32,
    /// See `max_secret_changes`.
    pub secret_window: Duration,
    /// Subscriptions of one connection. Further ones are refused and counted.
    pub max_subscriptions: usize,
    /// Length of a key that a client may subscribe to, entity and id together, in bytes. Longer ones are refused and
    /// counted: with `max_subscriptions` it bounds what a connection's subscriptions cost.
    pub max_key_bytes: usize,
    /// What all subscriptions cost, on all shards together, in bytes as far as they can be counted. Half of it is for who
    /// comes first, and the other half is shared out evenly among the connections that are open: further subscriptions are
    /// refused and counted.
    pub max_total_subscription_bytes: usize,
    /// Secrets of all clients, equal ones of a shard counted once, in bytes. Shared out like subscriptions; a client whose
    /// secret is too much is closed with code 1013 and counted.
    pub max_total_secret_bytes: usize,
    /// What has been received of all clients and waits: beginnings of messages and of upgrade requests, and what lies behind
    /// `work_budget`. In bytes, and shared out like subscriptions; a client for whose bytes there is no room is closed with
    /// code 1013 and counted.
    pub max_total_input_bytes: usize,
    /// Memory that unsent frames of one connection hold, in bytes: some 300 for each group of rows, and 150 for each message,
    /// besides what is in them. Beyond it only a mark per key is kept. One larger group may go alone.
    pub max_outbox_bytes: usize,
    /// Memory that messages of the application hold which one shard has not taken yet, in bytes. One larger message may go
    /// alone.
    pub max_handover_bytes: usize,
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
    /// Pings go out at this interval, or twice within `dead_after` if that is more often. Each connection has a phase of its
    /// own, so that those which came together are not pinged together.
    pub ping_interval: Duration,
    /// A peer that shows no sign of life for so long is dead. As with all times that peers are given, time in which the
    /// process stood still doesn't count.
    pub dead_after: Duration,
    /// A peer has so long to finish its upgrade request.
    pub upgrade_time_limit: Duration,
    /// A peer has so long to take the rest and close its side after a close frame.
    pub close_time_limit: Duration,
    /// The most work that one connection may cause at once by what it sends, in units of about a short message. What it
    /// sends beyond waits for its next turn, and it isn't read from until then, so that it holds up nobody else. What the
    /// application wants done with many connections is done in such portions, too.
    pub work_budget: usize,
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
            http_date: None,
            entities: Entities::default(),
            on_message: None,
            pass_through: PassThrough::default(),
            on_incident: None,
            on_refused_upgrade: None,
            max_incidents_per_second: 10,
            max_connections: 1_000_000,
            max_connections_per_address: usize::MAX,
            max_upgrading: 4_096,
            max_upgrading_per_address: 1_024,
            max_upgrade_bytes: 32 * 1024 * 1024,
            max_accepts_per_second: 0,
            max_message_bytes: 64 * 1024,
            max_secret_changes: 10,
            secret_window: Duration::from_secs(10),
            max_subscriptions: 1_000,
            max_key_bytes: 1_024,
            max_total_subscription_bytes: 1024 * 1024 * 1024,
            max_total_secret_bytes: 256 * 1024 * 1024,
            max_total_input_bytes: 256 * 1024 * 1024,
            max_outbox_bytes: 1024 * 1024,
            max_handover_bytes: 64 * 1024 * 1024,
            max_rows_per_read: 1_000,
            max_read_bytes: 16 * 1024 * 1024,
            read_time_limit: Duration::from_secs(5),
            retry_first: Duration::from_millis(100),
            retry_max: Duration::from_secs(30),
            ping_interval: Duration::from_secs(25),
            dead_after: Duration::from_secs(60),
            upgrade_time_limit: Duration::from_secs(10),
            close_time_limit: Duration::from_secs(5),
            work_budget: 256,
            broadcast_budget: 1_024,
        }
    }
}

impl Config {
    /// What a client is told that asks with the header field [`LIMITS_FIELD`] of its upgrade request, as the value of the same
    /// field of the response: `subscriptions=1000, key-bytes=1024`.
    pub fn limits_told(&self) -> String {
        format!(
            "subscriptions={}, key-bytes={}",
            self.max_subscriptions, self.max_key_bytes
        )
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
