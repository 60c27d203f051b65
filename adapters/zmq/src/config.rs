//! [`ZmqConfig`]: whom a node binds for and connects to, and how patient its sockets are.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::curve::{Curve, check_curve};
use crate::endpoint::{DnsName, Endpoint};
use crate::error::ZmqError;

/// Finds the addresses of a name. It is called on a thread of its own and may block.
pub type Lookup = Arc<dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// How a node is connected to the others: as one of a mesh, in which each binds and connects to all that do, or by
/// forwarders ([`Broker`](crate::Broker)) that each connects to.
#[derive(Clone)]
#[non_exhaustive]
pub struct ZmqConfig {
    /// Where this node publishes for those that connect to it.
    pub bind: Vec<Endpoint>,
    /// Where others do. This node's own address does no harm among them, and a name may have several addresses.
    pub peers: Vec<Endpoint>,
    /// Names whose addresses are all others, such as a headless service: looked up again and again.
    pub peer_names: Vec<DnsName>,
    /// Forwarders, all of which are used at once. What comes twice is ignored, so that with two of them one may fail.
    pub brokers: Vec<BrokerEndpoints>,
    /// Encrypts connections, and admits only whom it lists.
    pub curve: Option<Curve>,
    /// Lets this node bind to addresses that other machines reach, without [`curve`](Self::curve). Only for a network that
    /// nobody but the cluster's nodes can reach: anyone who connects can subscribe to all changes, forge them unless the
    /// cluster has a secret, and grow this process's memory without a limit, since libzmq keeps every subscription.
    pub allow_unauthenticated: bool,
    /// Names are looked up so often: 10 ms to 24 h.
    pub lookup_every: Duration,
    /// An address that a name has no more is disconnected after so long.
    pub keep_vanished: Duration,
    /// How names are looked up, if not by the system.
    pub lookup: Option<Lookup>,
    /// Messages that wait for one receiver which doesn't take them. More are dropped, which it notices.
    pub send_queue: u32,
    /// Messages that wait for this node, by connection. More are left to the sender's queue.
    pub receive_queue: u32,
    /// A connection that is lost, or can't be made, is tried again after so long: 1 ms or more.
    pub reconnect_first: Duration,
    /// And then after twice as long each time, but no longer than this: `reconnect_first` to 1 h.
    pub reconnect_max: Duration,
    /// Each connection is asked for a sign of life so often: 10 ms or more, and less than `dead_after`.
    pub ping_every: Duration,
    /// One that gives none for so long is given up, and made anew: 100 ms to 1 h.
    pub dead_after: Duration,
}

/// The two sides of a forwarder, as nodes reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerEndpoints {
    /// Where nodes publish.
    pub frontend: Endpoint,
    /// Where nodes hear.
    pub backend: Endpoint,
}

impl Default for ZmqConfig {
    fn default() -> Self {
        Self {
            bind: Vec::new(),
            peers: Vec::new(),
            peer_names: Vec::new(),
            brokers: Vec::new(),
            curve: None,
            allow_unauthenticated: false,
            lookup_every: Duration::from_secs(10),
            keep_vanished: Duration::from_secs(60),
            lookup: None,
            send_queue: 10_000,
            receive_queue: 1_000,
            reconnect_first: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(1),
            ping_every: Duration::from_secs(2),
            dead_after: Duration::from_secs(6),
        }
    }
}

impl ZmqConfig {
    pub(crate) fn check(&self) -> Result<(), ZmqError> {
        if self.bind.is_empty() && self.brokers.is_empty() {
            return Err(ZmqError::Deaf);
        }
        self.bind.iter().try_for_each(Endpoint::check_bind)?;
        if self.curve.is_none() && !self.allow_unauthenticated {
            check_local(&self.bind)?;
        }
        let of_brokers = self.brokers.iter().flat_map(|it| [&it.frontend, &it.backend]);
        self.peers
            .iter()
            .chain(of_brokers)
            .try_for_each(Endpoint::check_connect)?;
        self.check_times()?;
        if let Some(curve) = &self.curve {
            check_curve()?;
            if !self.bind.is_empty() && !self.brokers.is_empty() {
                return Err(ZmqError::BindAndBrokers);
            }
            if !self.bind.is_empty() && curve.server.is_none() {
                return Err(ZmqError::NoServerKeys);
            }
        }
        Ok(())
    }

    /// What is too long for libzmq, or too short, it would take for something else, or for never.
    fn check_times(&self) -> Result<(), ZmqError> {
        let check = |name, value: Duration, is_right: bool, allowed| match is_right {
            true => Ok(()),
            false => Err(ZmqError::Time { name, value, allowed }),
        };
        let ms = Duration::from_millis;
        let hour = Duration::from_secs(3600);
        let every = self.lookup_every;
        let is_right = (ms(10)..=24 * hour).contains(&every);
        check("lookup_every", every, is_right, "10 ms to 24 h")?;
        let (first, max) = (self.reconnect_first, self.reconnect_max);
        check("reconnect_max", max, max <= hour, "reconnect_first to 1 h")?;
        let is_right = first >= ms(1) && first <= max;
        check("reconnect_first", first, is_right, "1 ms to reconnect_max")?;
        let (ping, dead) = (self.ping_every, self.dead_after);
        let is_right = (ms(100)..=hour).contains(&dead);
        check("dead_after", dead, is_right, "100 ms to 1 h")?;
        let is_right = ping >= ms(10) && ping < dead;
        check("ping_every", ping, is_right, "10 ms or more, and less than dead_after")
    }
}

/// Whether only this machine reaches all of these. libzmq keeps whatever a peer subscribes to, as much as it sends, before
/// anybody is asked; so who is not authenticated must not reach a socket that binds.
pub(crate) fn check_local<'a>(bind: impl IntoIterator<Item = &'a Endpoint>) -> Result<(), ZmqError> {
    match bind.into_iter().find(|it| !it.is_local()) {
        Some(endpoint) => Err(ZmqError::Unauthenticated {
            endpoint: endpoint.to_string(),
        }),
        None => Ok(()),
    }
}

impl fmt::Debug for ZmqConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZmqConfig")
            .field("bind", &self.bind)
            .field("peers", &self.peers)
            .field("peer_names", &self.peer_names)
            .field("brokers", &self.brokers)
            .field("curve", &self.curve)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_cannot_be_kept_to_are_refused_with_what_is_allowed() {
        let check = |change: &dyn Fn(&mut ZmqConfig)| {
            let mut config = ZmqConfig::default();
            config.bind.extend("ipc:///tmp/socket".parse::<Endpoint>());
            change(&mut config);
            config.check().map_err(|error| error.to_string())
        };
        let ms = Duration::from_millis;
        let hour = Duration::from_secs(3600);
        assert_eq!(check(&|_| {}), Ok(()));
        let said = |change: &dyn Fn(&mut ZmqConfig)| check(change).expect_err("refused");
        assert_eq!(
            said(&|it| it.lookup_every = ms(9)),
            "ZeroMQ's lookup_every can't be 9ms: allowed is 10 ms to 24 h"
        );
        assert!(said(&|it| it.lookup_every = Duration::MAX).contains("10 ms to 24 h"));
        assert_eq!(
            said(&|it| it.reconnect_first = ms(1_001)),
            "ZeroMQ's reconnect_first can't be 1.001s: allowed is 1 ms to reconnect_max"
        );
        assert!(said(&|it| it.reconnect_first = Duration::ZERO).contains("1 ms to reconnect_max"));
        assert_eq!(
            said(&|it| it.reconnect_max = hour + ms(1)),
            "ZeroMQ's reconnect_max can't be 3600.001s: allowed is reconnect_first to 1 h"
        );
        assert_eq!(
            said(&|it| it.dead_after = ms(99)),
            "ZeroMQ's dead_after can't be 99ms: allowed is 100 ms to 1 h"
        );
        assert!(said(&|it| it.dead_after = hour + ms(1)).contains("dead_after"));
        assert_eq!(
            said(&|it| it.ping_every = it.dead_after),
            "ZeroMQ's ping_every can't be 6s: allowed is 10 ms or more, and less than dead_after"
        );
        assert!(said(&|it| it.ping_every = ms(9)).contains("ping_every"));
        let at_the_ends = |it: &mut ZmqConfig| {
            (it.lookup_every, it.reconnect_first, it.reconnect_max) = (ms(10), hour, hour);
            (it.ping_every, it.dead_after) = (hour - ms(1), hour);
        };
        assert_eq!(check(&at_the_ends), Ok(()));
        let at_the_others = |it: &mut ZmqConfig| {
            (it.lookup_every, it.reconnect_first, it.reconnect_max) = (24 * hour, ms(1), ms(1));
            (it.ping_every, it.dead_after) = (ms(10), ms(100));
        };
        assert_eq!(check(&at_the_others), Ok(()));
    }
}
