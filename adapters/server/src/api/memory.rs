//! [`Memory`]: how many bytes of requests and answers the API may hold, all connections together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// What the API may hold.
#[derive(Debug)]
pub(super) struct Memory {
    limit: usize,
    held: AtomicUsize,
}

/// Bytes that are held until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Memory {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            held: AtomicUsize::new(0),
        })
    }

    /// Nothing yet.
    pub(super) fn hold(self: &Arc<Self>) -> Held {
        Held {
            memory: self.clone(),
            bytes: 0,
        }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Held {
    /// So many more, if there is room: otherwise nothing changes.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let held = &self.memory.held;
        if held.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > self.memory.limit {
            held.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.bytes += bytes;
        true
    }

    /// All of it is gone.
    pub(super) fn release(&mut self) {
        self.memory
            .held
            .fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }

    /// A body that is held until the last of it was sent.
    pub(super) fn with(self, body: Vec<u8>) -> Bytes {
        Bytes::from_owner(Body { body, _held: self })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

struct Body {
    body: Vec<u8>,
    _held: Held,
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// A sixteenth of the memory that this process may have, and 64 MiB at least.
pub(super) fn default_limit() -> usize {
    let all = entity_sync_mio::memory_bytes().unwrap_or_default();
    (all / 16).max(64 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_held_no_more() {
        let memory = Memory::new(100);
        let mut one = memory.hold();
        assert!(one.grow(60) && one.grow(40) && !one.grow(1));
        let mut other = memory.hold();
        assert!(!other.grow(1) && !other.grow(usize::MAX));
        let body = one.with(b"abc".to_vec());
        let part = body.slice(..1);
        drop(body);
        assert!(!other.grow(1));
        drop(part);
        assert!(other.grow(100));
        drop(other);
        assert_eq!(memory.held(), 0);
        assert!(default_limit() >= 64 << 20);
    }
}
