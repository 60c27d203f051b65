//! A cluster over a queue of yours.
//!
//! [`Bus`] carries the cluster's own messages, which are numbered: whatever the queue loses, nodes notice and read again.
//! [`PlainBus`] carries one JSON body for each change, as the Go original did.
//!
//! ```
//! use std::sync::Arc;
//!
//! use entity_sync_bus::{Bus, Clock, Health, Join, Member, cluster_config, numbered};
//! # use entity_sync_bus::{StartError};
//! # use entity_sync_core::Node;
//!
//! # fn join(node: Node, clock: Clock, queue: impl Bus) -> Result<(), StartError> {
//! let mut config = cluster_config();
//! config.prefix = "shop".to_owned(); // keeps applications on one queue apart
//! let member = Box::new(numbered(queue, config)).join(node, clock, Health::default())?;
//! println!("{:?}", member.view().status());
//! # Ok(())
//! # }
//! ```
//!
//! With `entity-sync`'s builder, it is `EntitySync::builder().bus(numbered(queue, config))`.

mod bus;
mod bus_health;
mod delivery;
mod driver;
mod inbox;
mod member;
mod none_to_spare;
mod numbered;
mod plain;
mod plain_cluster;
mod probe;
#[cfg(test)]
mod tests;
mod thread;

pub use bus::{Bus, Inbox, NotSent, STOP_GRACE};
pub use bus_health::BusHealth;
pub use bytes::Bytes;
pub use delivery::{HandedOver, Undelivered};
pub use entity_sync_core::cluster::{
    ClusterConfig, ClusterConfigError, ClusterCounts, ClusterEvent, ClusterSecret, ClusterStatus, ClusterView, Epoch,
    Hearing, JoinError, NodeId, Outcome, PeerState, PeerStatus, PlainConfig, ShortSecret,
};
pub use entity_sync_runtime::{Health, LogLimit, Outage, Part, Severity, Trouble};
pub use member::{Clock, Join, Member, StartError, cluster_config};
pub use none_to_spare::NoneToSpare;

pub use numbered::{Numbered, log_events, numbered};
pub use plain::{BadTopic, PlainBus, PlainInbox, Receipt};
pub use plain_cluster::{Plain, plain};
pub use probe::{Probe, Told};
pub use thread::{BusThread, Driven, Next};
