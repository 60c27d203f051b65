//! WIP
mod hash;
mod key;

pub use hash::Seed;
pub use key::{EntityKey, KeyTooLong, MAX_KEY_BYTES};
