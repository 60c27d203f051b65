//! What every driver and bus of Entity Sync needs.
//!
//! - [`Health`] knows which parts of a process are in trouble, for health checks, metrics and logs.
//! - [`spawn`] starts a thread whose death is noticed, [`supervise`] wraps a task in the same way; [`spawn_restarting`] and
//!   [`restart`] begin again what loses nothing by it.
//! - [`Turns`] is a queue in which a crowd holds up nobody else.
//! - [`LogLimit`] keeps a log line that repeats from filling the log, and [`Outage`] those of attempts that fail.

mod health;
mod log_limit;
mod outage;
mod supervise;
mod turns;

pub use health::{Health, Part, Severity, Trouble};
pub use log_limit::LogLimit;
pub use outage::Outage;
pub use supervise::{restart, spawn, spawn_restarting, supervise};
pub use turns::Turns;
