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
    /// Names are looked up so often.
    pub lookup_every: Duration,
    /// An address that a name has no more is disconnected after so long.
    pub keep_vanished: Duration,
    /// How names are looked up, if not by the system.
    pub lookup: Option<Lookup>,
    /// Messages that wait for one receiver which doesn't take them. More are dropped, which it notices.
    pub send_queue: u32,
    /// Messages that wait for this node, by connection. More are left to the sender's queue.
    pub receive_queue: u32,
    /// A connection that is lost, or can't be made, is tried again after so long.
    pub reconnect_first: Duration,
    /// And then after twice as long each time, but no longer than this.
    pub reconnect_max: Duration,
    /// Each connection is asked for a sign of life so often.
    pub ping_every: Duration,
    /// One that gives none for so long is given up, and made anew.
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
        let of_brokers = self.brokers.iter().flat_map(|it| [&it.frontend, &it.backend]);
        self.peers
            .iter()
            .chain(of_brokers)
            .try_for_each(Endpoint::check_connect)?;
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
