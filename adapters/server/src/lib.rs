//! Entity Sync, ready to run: the embedded store, the HTTP API and the command line of the `entity-sync` binary.
//!
//! - [`store`] keeps entities in a SQLite file and says which keys changed, after the change is safe on disk.
//! - [`api`] is HTTP around it: write, read and delete entities, and notify of changes made elsewhere.
//! - [`args`] is the command line, and [`serve`] runs what it asks for.

pub mod api;
pub mod args;
pub mod serve;
pub mod store;
