//! The nodes of a cluster tell each other of changes over NATS: [`Nats`] is a [`Bus`](entity_sync_bus::Bus).
//!
//! A topic is a subject, as it is, and a message is a message of core NATS: no JetStream, nothing is stored. What is
//! published while there is no connection is dropped, not kept: it would only be old news later, and the cluster's
//! protocol finds what is missing by itself.
//!
//! What happens is logged at a limited rate under the target `entity_sync_nats`. async-nats logs each event and each
//! attempt that is refused besides, without a limit, under `async_nats`: better left out.
//!
//! ```no_run
//! use entity_sync_nats::{Nats, NatsConfig};
//!
//! # fn main() -> Result<(), entity_sync_nats::NatsError> {
//! let mut config = NatsConfig::new(["nats://10.0.0.1:4222", "nats://10.0.0.2:4222"]);
//! config.name = Some("shop, node 1".to_owned());
//! let bus = Nats::new(&config)?; // nothing is connected yet, and a server that is down is no error
//! let status = bus.status();
//! # Ok(())
//! # }
//! ```

mod bus;
mod config;
mod error;
mod link;
mod options;
mod outgoing;
mod rights;
mod status;

pub use bus::{Nats, check_topic};
pub use config::{ClientCertificate, NatsAuth, NatsConfig, NatsTls, without_user};
pub use error::NatsError;
pub use status::{NatsCounts, NatsStatus};
