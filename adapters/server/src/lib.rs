//! Entity Sync, ready to run: the server in one call, and the `entity-sync` binary.
//!
//! - [`EntitySync::builder`] is the whole set-up for an application that embeds it; see [`builder`].
//!
//! The rest is what the binary is made of. An application that needs none of it does without SQLite, clap and an HTTP server:
//! `entity-sync = { version = "…", default-features = false }`.
#![cfg_attr(
    feature = "binary",
    doc = "
- [`store`] keeps entities in a SQLite file and says which keys changed, after the change is safe on disk.
- [`api`] is HTTP around it: write, read and delete entities, and notify of changes made elsewhere.
- [`client`] are the commands that talk to a server which runs.
- [`resolver`] reads entities that are kept elsewhere: over HTTP, or from PostgreSQL.
- [`args`] is the command line, and [`serve`] runs what it asks for.
"
)]

#[cfg(feature = "binary")]
pub mod api;
#[cfg(feature = "binary")]
pub mod args;
#[cfg(feature = "binary")]
pub mod broker;
pub mod builder;
#[cfg(feature = "binary")]
pub mod client;
#[cfg(feature = "binary")]
pub mod cluster;
#[cfg(feature = "binary")]
mod death;
#[cfg(feature = "binary")]
mod files;
#[cfg(feature = "binary")]
mod greeting;
#[cfg(feature = "binary")]
pub mod keys;
#[cfg(feature = "binary")]
pub mod log;
#[cfg(feature = "binary")]
pub mod metrics;
#[cfg(feature = "binary")]
mod readers;
#[cfg(feature = "binary")]
pub mod resolver;
#[cfg(feature = "binary")]
pub mod serve;
#[cfg(feature = "binary")]
mod signals;
#[cfg(feature = "binary")]
pub mod store;
pub mod values;

pub use builder::{BuildError, Builder, Entity, EntitySync};
pub use entity_sync_bus::Undelivered;
pub use entity_sync_mio::{
    Audience, AudienceRule, Client, ClientId, Config, Delivery, DrainOptions, EntityKey, Handle, Health, Incident,
    Incoming, InvalidCloseCode, KeptMessage, Payload, Pool, PoolConfig, ReadError, Reply, Request, Resolver, RowError,
    Rows, Selector, SendError, Severity, StartError, Trouble, UnknownEntity,
};

/// The programs of the README and of the page for those who come from Go compile.
#[cfg(all(doctest, feature = "binary"))]
mod pages {
    #[doc = include_str!("../../../README.md")]
    struct Readme;
    #[doc = include_str!("../../../docs/migrating.md")]
    struct Migrating;
    #[doc = include_str!("../../../docs/cluster.md")]
    struct Cluster;
}
