//! [`Connections`]: how many connections the API has, and has refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the connections of the API. It can be read from any thread.
#[derive(Debug, Default)]
pub struct Connections {
    open: AtomicU64,
    refused: AtomicU64,
    gave_way: AtomicU64,
}

/// One that is open until this is dropped.
#[derive(Debug)]
pub(super) struct Open(Arc<Connections>);

impl Connections {
    /// How many are open now, with those that are only answered that there are too many.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// How many were answered that there are too many.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// How many were closed for others, as they had nothing to do.
    pub fn closed_for_others(&self) -> u64 {
        self.gave_way.load(Ordering::Relaxed)
    }

    /// All by name, with what they say.
    pub(crate) fn numbers(&self) -> [(&'static str, &'static str, u64); 3] {
        [
            ("api_connections", "Connections to the API.", self.open()),
            (
                "api_refused_connections",
                "Connections to the API that were answered that there are too many.",
                self.refused(),
            ),
            (
                "api_idle_connections_closed",
                "Connections to the API that had nothing to do and were closed for others.",
                self.closed_for_others(),
            ),
        ]
    }

    pub(super) fn opened(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }

    pub(super) fn gave_way(&self) {
        self.gave_way.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
