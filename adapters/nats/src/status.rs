//! [`NatsStatus`]: how it goes, for whoever asks.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

/// How it goes, on any thread and for as long as one likes. Cheap to clone.
#[derive(Clone, Default)]
pub struct NatsStatus(Arc<Counters>);

/// Since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NatsCounts {
    /// Messages on their way to the server. Those of the last moment before a connection was lost may not have arrived.
    pub published: u64,
    /// Messages dropped: there was no connection, or no room, or they were too large.
    pub not_sent: u64,
    /// Messages received, this node's own among them.
    pub received: u64,
    /// At least so many times messages were dropped because they came faster than they could be taken.
    pub slow: u64,
    /// Connections after the first one.
    pub reconnects: u64,
    /// Attempts to connect that failed, and errors that the server has told.
    pub errors: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) published: AtomicU64,
    pub(crate) not_sent: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) slow: AtomicU64,
    pub(crate) connects: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) is_connected: AtomicBool,
    last_error: Mutex<Option<String>>,
}

impl NatsStatus {
    /// Whether there is a connection now. One that was cut off without a word counts until it is noticed, which takes a
    /// few seconds.
    pub fn is_connected(&self) -> bool {
        self.0.is_connected.load(Ordering::Relaxed)
    }

    /// Whether there ever was a connection.
    pub fn was_connected(&self) -> bool {
        self.0.connects.load(Ordering::Relaxed) > 0
    }

    /// What was counted since the start.
    pub fn counts(&self) -> NatsCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NatsCounts {
            published: of(&self.0.published),
            not_sent: of(&self.0.not_sent),
            received: of(&self.0.received),
            slow: of(&self.0.slow),
            reconnects: of(&self.0.connects).saturating_sub(1),
            errors: of(&self.0.errors),
        }
    }

    /// Why there is no connection, or what the server has said no to since it was made. It shows no secrets.
    pub fn last_error(&self) -> Option<String> {
        self.0.last_error.lock().clone()
    }

    pub(crate) fn set_last_error(&self, last_error: Option<String>) {
        *self.0.last_error.lock() = last_error;
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.0
    }
}

pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl fmt::Debug for NatsStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsStatus")
            .field("is_connected", &self.is_connected())
            .field("last_error", &self.last_error())
            .field("counts", &self.counts())
            .finish()
    }
}
