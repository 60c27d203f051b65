//! [`Limits`]: the flags that say how much is too much.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::Args;
use entity_sync_core::{Config, MAX_KEY_BYTES};

use crate::api;

/// How much is too much. Defaults are core's.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections at the same time [default: as many as the limit on open files allows]
    #[arg(long, env = "ENTITY_SYNC_MAX_CONNECTIONS", value_name = "N", value_parser = at_least_one, help_heading = "Limits")]
    max_connections: Option<usize>,

    /// Connections from one address at the same time [default: no limit]
    ///
    /// Behind a proxy, all clients have its address.
    #[arg(long, env = "ENTITY_SYNC_MAX_CONNECTIONS_PER_ADDRESS", value_name = "N", value_parser = at_least_one, help_heading = "Limits")]
    max_connections_per_address: Option<usize>,

    /// New connections in a second; the others wait [default: no limit]
    #[arg(long, env = "ENTITY_SYNC_MAX_ACCEPTS_PER_SECOND", value_name = "N", value_parser = at_least_one, help_heading = "Limits")]
    max_accepts_per_second: Option<usize>,

    /// Connections to the API at the same time [default: 1024]
    ///
    /// Beyond that, the connection that has been idle longest is closed. If all are busy, new connections get 503 for
    /// anything but health checks. A low limit on open files (ulimit -n) may lower this number.
    #[arg(long, env = "ENTITY_SYNC_API_CONNECTIONS", value_name = "N", value_parser = at_least_one, help_heading = "Limits")]
    api_connections: Option<usize>,

    /// Subscriptions of one connection [default: 1000]
    #[arg(long, env = "ENTITY_SYNC_MAX_SUBSCRIPTIONS", value_name = "N", value_parser = at_least_one, help_heading = "Limits")]
    max_subscriptions: Option<usize>,

    /// Bytes of a key (entity and id together), for subscriptions and for the API [default: 1024]
    #[arg(long, env = "ENTITY_SYNC_MAX_KEY_BYTES", value_name = "N", value_parser = key_bytes, help_heading = "Limits")]
    max_key_bytes: Option<usize>,

    /// Bytes of a client's upgrade request, cookies included [default: 65536]
    #[arg(long, env = "ENTITY_SYNC_MAX_UPGRADE_REQUEST_BYTES", value_name = "N", value_parser = at_least_one, help_heading = "Limits")]
    max_upgrade_request_bytes: Option<usize>,

    /// Bytes of requests to the API and its answers that are held at the same time [default: a sixteenth of the memory]
    ///
    /// Beyond, requests are answered with 503 and Retry-After.
    #[arg(long, env = "ENTITY_SYNC_MAX_API_BYTES", value_name = "N", value_parser = at_least_one, help_heading = "Limits")]
    max_api_bytes: Option<usize>,

    /// Bytes that the subscriptions of all clients may cost [default: a quarter of the memory]
    ///
    /// Once half of them are used, each connection may have an even share of the other half; more is refused.
    #[arg(long, env = "ENTITY_SYNC_MAX_TOTAL_SUBSCRIPTION_BYTES", value_name = "N", value_parser = at_least_one, help_heading = "Limits")]
    max_total_subscription_bytes: Option<usize>,

    /// Bytes that the secrets of all clients may have together [default: a sixteenth of the memory]
    ///
    /// Shared out like subscriptions; a client that sends more is disconnected with code 1013.
    #[arg(long, env = "ENTITY_SYNC_MAX_TOTAL_SECRET_BYTES", value_name = "N", value_parser = at_least_one, help_heading = "Limits")]
    max_total_secret_bytes: Option<usize>,

    /// Bytes of incomplete messages of all clients [default: a sixteenth of the memory]
    ///
    /// Shared out like subscriptions; a client that sends more is disconnected with code 1013.
    #[arg(long, env = "ENTITY_SYNC_MAX_TOTAL_INPUT_BYTES", value_name = "N", value_parser = at_least_one, help_heading = "Limits")]
    max_total_input_bytes: Option<usize>,

    /// Times that a client may change its secret in 10 seconds [default: 10]
    ///
    /// Beyond, nothing is read from it for a while.
    #[arg(long, env = "ENTITY_SYNC_MAX_SECRET_CHANGES", value_name = "N", value_parser = at_least_one, help_heading = "Limits")]
    max_secret_changes: Option<usize>,

    /// Bytes of memory queued for a client that reads too slowly [default: 1048576]
    ///
    /// Beyond that, states are skipped and the newest is sent later; with --delivery every, the client is disconnected.
    #[arg(long, env = "ENTITY_SYNC_MAX_OUTBOX_BYTES", value_name = "N", value_parser = at_least_one, help_heading = "Limits")]
    max_outbox_bytes: Option<usize>,

    /// Seconds that a read may take until it is tried again [default: 5]
    #[arg(long, env = "ENTITY_SYNC_READ_TIME_LIMIT", value_name = "SECONDS", value_parser = seconds, help_heading = "Limits")]
    read_time_limit: Option<Duration>,

    /// Seconds between pings to each client [default: 25]
    #[arg(long, env = "ENTITY_SYNC_PING_INTERVAL", value_name = "SECONDS", value_parser = seconds, help_heading = "Limits")]
    ping_interval: Option<Duration>,

    /// Seconds of silence after which a client is considered gone and disconnected [default: 60]
    #[arg(long, env = "ENTITY_SYNC_DEAD_AFTER", value_name = "SECONDS", value_parser = seconds, help_heading = "Limits")]
    dead_after: Option<Duration>,
}

impl Limits {
    /// Those of the API.
    pub fn of_api(&self) -> api::Limits {
        let mut limits = api::Limits::default();
        if let Some(given) = self.api_connections {
            limits.max_connections = given;
        }
        if let Some(given) = self.max_key_bytes {
            limits.max_key_bytes = given;
        }
        if let Some(given) = self.max_api_bytes {
            limits.max_bytes = given;
        }
        limits
    }

    /// Sets those that were given.
    pub fn apply(&self, config: &mut Config) {
        fn set<T>(to: &mut T, given: Option<T>) {
            if let Some(given) = given {
                *to = given;
            }
        }
        set(&mut config.max_connections, self.max_connections);
        set(
            &mut config.max_connections_per_address,
            self.max_connections_per_address,
        );
        let accepts = self
            .max_accepts_per_second
            .map(|it| u32::try_from(it).unwrap_or(u32::MAX));
        set(&mut config.max_accepts_per_second, accepts);
        set(&mut config.max_subscriptions, self.max_subscriptions);
        set(&mut config.max_key_bytes, self.max_key_bytes);
        set(&mut config.upgrade.max_request_bytes, self.max_upgrade_request_bytes);
        set(
            &mut config.max_total_subscription_bytes,
            self.max_total_subscription_bytes,
        );
        set(&mut config.max_total_secret_bytes, self.max_total_secret_bytes);
        set(&mut config.max_total_input_bytes, self.max_total_input_bytes);
        let changes = self.max_secret_changes.map(|it| u32::try_from(it).unwrap_or(u32::MAX));
        set(&mut config.max_secret_changes, changes);
        set(&mut config.max_outbox_bytes, self.max_outbox_bytes);
        set(&mut config.read_time_limit, self.read_time_limit);
        set(&mut config.ping_interval, self.ping_interval);
        set(&mut config.dead_after, self.dead_after);
    }

    /// Whether the silence that is allowed leaves time for a ping and its answer.
    pub(super) fn leave_time_for_pings(&self) -> bool {
        let mut config = Config::new(entity_sync_core::Seed(0, 0));
        self.apply(&mut config);
        config.ping_interval < config.dead_after
    }
}

fn at_least_one(given: &str) -> Result<usize, &'static str> {
    given
        .parse()
        .ok()
        .filter(|&it| it > 0)
        .ok_or("write a whole number of at least 1")
}

fn key_bytes(given: &str) -> Result<usize, String> {
    let bytes = given.parse().ok().filter(|it| (1..=MAX_KEY_BYTES).contains(it));
    bytes.ok_or_else(|| format!("write a whole number from 1 to {MAX_KEY_BYTES}"))
}

fn seconds(given: &str) -> Result<Duration, &'static str> {
    duration(given, 1.0, 0.01..=86_400.0).ok_or("write a number of seconds from 0.01 to 86400")
}

/// A number of units of so many seconds each, within a range of seconds.
pub(super) fn duration(given: &str, unit_secs: f64, range: RangeInclusive<f64>) -> Option<Duration> {
    let seconds = given.parse::<f64>().ok()? * unit_secs;
    range.contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}
