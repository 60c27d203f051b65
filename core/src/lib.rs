//! The sans-IO core of Entity Sync.
//!
//! An application keeps its state where it likes. Clients hold WebSocket connections and subscribe to *entities*. When the
//! application says that one changed ([`Node::notify`]), every client that is subscribed to it is pushed rows of a read
//! that began after that call.
//!
//! This crate decides everything and does nothing: it has no socket, thread, clock or source of randomness. A driver
//! feeds it [`Input`]s and acts on its [`Output`]s, in three steps a turn:
//!
//! 1. feed what happened;
//! 2. take outputs until there are none;
//! 3. sleep until the next event, the waker, or the time-out it asks for.
//!
//! With one thread, that is a [`Core`]:
//!
//! ```
//! use entity_sync_core::{Config, Core, CoreOutput, EntityKey, Input, Output, Rows, Seed, Sent, Timestamp};
//!
//! let mut core = Core::new(Config::new(Seed(1, 2)), std::task::Waker::noop().clone());
//! let now = Timestamp::START; // from your clock
//!
//! // Your loop accepted a socket and received bytes from it.
//! let conn = core.open(now)?;
//! let mut request = *b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
//!     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
//! core.handle(now, Input::Received { conn, bytes: &mut request });
//!
//! // Your application changed something.
//! core.notify(now, &EntityKey::new("items", "100")?)?;
//!
//! while let Some(output) = core.poll_output(now) {
//!     match output {
//!         CoreOutput::Read(request, reply) => {
//!             // Answer at once, or keep the reply and answer when your store has.
//!             reply.send(now, Ok(Rows::one(format!("{:?}", request.key))))?;
//!         }
//!         CoreOutput::Shard(Output::Broadcast(broadcast)) => broadcast.for_each(|_conn, _chunk| Sent::All),
//!         CoreOutput::Shard(Output::Flush(flush)) => flush.write(|_conn, chunks| {
//!             assert!(chunks[0].as_slice().starts_with(b"HTTP/1.1 101 "));
//!             Sent::All
//!         }),
//!         CoreOutput::Shard(_) => {} // Shutdown and Close your socket
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! With several threads it is a [`Node`] and one [`Shard`] for each; `entity-sync-mio` is a driver of that kind.

#![forbid(unsafe_code)]

mod admission;
mod client;
pub mod cluster;
mod config;
mod core;
mod counters;
mod entity;
mod flights;
mod frame;
mod hash;
mod incident;
mod key;
mod latency;
mod log_quota;
#[cfg(all(test, loom))]
mod models;
mod node;
mod outbox;
mod patience;
mod resolve;
mod shard;
mod slots;
mod subscriptions;
mod sync;
mod time;
mod totals;
pub mod wire;
mod ws;

pub use admission::{Opening, Refused};
pub use bytes::Bytes;
pub use client::{
    Client, ClientId, Incoming, InvalidCloseCode, KeptMessage, OnMessage, PassThrough, Payload, Selector, SendError,
};
pub use config::{Config, HttpDate, LIMITS_FIELD};
pub use core::{Core, CoreOutput};
pub use counters::{Counter, NodeCounters, NodeCounts, ShardCounters, ShardCounts};
pub use entity::{AudienceOf, AudienceRule, Delivery, Entities, EntityOptions};
pub use frame::{RowError, Rows};
pub use hash::Seed;
pub use incident::{Incident, Misdeed, OnIncident, OnRefusedUpgrade};
pub use key::{EntityKey, KeyTooLong, MAX_KEY_BYTES};
pub use latency::{LATENCY_BOUNDS, LatencyCounts};
pub use log_quota::LogQuota;
pub use node::{Node, UnknownEntity, Wakes};
pub use outbox::Chunk;
pub use resolve::{Audience, ReadError, Reply, Request, Resolve};
pub use shard::{Broadcast, ConnId, DrainOptions, Flush, Input, Output, Sent, Shard};
pub use time::Timestamp;
pub use ws::{HeaderFields, Hosts, Origins, Refusal, UpgradeRules, asks_for_snapshots};
