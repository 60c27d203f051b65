//! A cluster over [ZeroMQ](https://zeromq.org).
//!
//! ```no_run
//! use entity_sync_bus::{Clock, Health, Join, Member, cluster_config};
//! use entity_sync_zmq::{ZmqConfig, zmq};
//! # use entity_sync_core::Node;
//!
//! # fn join(node: Node, clock: Clock) -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = ZmqConfig::default();
//! config.bind = vec!["tcp://*:5555".parse()?];
//! config.allow_unauthenticated = true; // nobody but the cluster's nodes can reach this network
//! config.peers = vec!["tcp://10.0.0.1:5555".parse()?, "tcp://10.0.0.2:5555".parse()?];
//! let member = Box::new(zmq(config, cluster_config())).join(node, clock, Health::default())?;
//! # Ok(())
//! # }
//! ```
//!
//! [`zmq()`] runs a [`ZmqBus`] on a thread of its own; an event loop of yours can drive one itself. [`Broker`] is a forwarder
//! for nodes that can't or shall not all connect to each other.
//!
//! Anyone who reaches a socket is believed, unless the cluster has a [secret](entity_sync_bus::ClusterConfig::secret) or the
//! sockets have [`Curve`]. Without `Curve`, sockets bind only to loopback addresses and `ipc://`, as libzmq keeps all that a
//! peer subscribes to, without a limit: see [`ZmqConfig::allow_unauthenticated`].

//! # Which libzmq
//!
//! The crate `zmq-sys` builds a libzmq of its own, without CURVE. To link the system's, which has it on Debian and others,
//! install its development files (`libzmq3-dev`) and have your `.cargo/config.toml` say:
//!
//! ```toml
//! [target.x86_64-unknown-linux-gnu.zmq]
//! rustc-link-lib = ["zmq"]
//! ```

#![forbid(unsafe_code)]

/// Its examples are tested with this crate's.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/zeromq.md")]
mod page {}

mod broker;
mod bus;
mod config;
mod curve;
mod endpoint;
mod envelope;
mod error;
mod links;
mod monitor;
mod names;
mod places;
mod sockets;
mod thread;
mod view;
mod zap;

pub use broker::{Broker, BrokerConfig, BrokerCounts};
pub use bus::{Turn, ZmqBus};
pub use config::{BrokerEndpoints, Lookup, ZmqConfig};
pub use curve::{BadKey, Curve, CurveKeyPair, CurvePublicKey, CurveSecretKey, CurveServer};
pub use endpoint::{BadEndpoint, DnsName, Endpoint};
pub use error::{BindError, ZmqError};
pub use thread::{Zmq, zmq};
pub use view::{ZmqStatus, ZmqView};
