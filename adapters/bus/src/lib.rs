//! A cluster over a queue of yours.
//!
//! [`Bus`] carries the cluster's own messages, which are numbered: whatever the queue loses, nodes notice and read again.
//! [`PlainBus`] carries one JSON body for each change, as the Go original did.

#![allow(dead_code, reason = "the threads that serve buses come next")]

mod bus;
mod inbox;
mod plain;
#[cfg(feature = "testing")]
pub mod testing;

pub use bus::{Bus, Inbox, NotSent};
pub use bytes::Bytes;
pub use plain::{BadTopic, PlainBus, PlainInbox, Receipt};
