//! [`Shared`]: what waits for a bus's thread, put there by any other.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;

use bytes::Bytes;
use crossbeam_queue::SegQueue;
use entity_sync_core::cluster::Outcome;
use entity_sync_runtime::Health;

/// Bytes of messages that may wait; one more is let in when there are fewer.
const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;

/// What a message costs besides its bytes, about.
const MESSAGE_OVERHEAD: usize = 64;

/// What waits for a bus's thread. It has no lock, so that whoever puts something in never waits.
pub(crate) struct Shared {
    events: SegQueue<Event>,
    waiting_bytes: AtomicUsize,
    dropped: AtomicU64,
    /// The thread will look without being woken.
    pending: AtomicBool,
    waker: Waker,
    health: Health,
}

pub(crate) enum Event {
    Message(Bytes),
    Connected(bool),
    Missed,
    Receipt { number: u64, outcome: Outcome },
}

impl Shared {
    pub(crate) fn new(waker: Waker, health: Health) -> Self {
        Self {
            events: SegQueue::new(),
            waiting_bytes: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            pending: AtomicBool::new(false),
            waker,
            health,
        }
    }

    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    pub(crate) fn message(&self, message: Bytes) {
        if self.waiting_bytes.load(Ordering::Relaxed) >= MAX_WAITING_BYTES {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return self.wake();
        }
        self.waiting_bytes
            .fetch_add(message.len() + MESSAGE_OVERHEAD, Ordering::Relaxed);
        self.push(Event::Message(message));
    }

    pub(crate) fn connected(&self, is_connected: bool) {
        self.push(Event::Connected(is_connected));
    }

    pub(crate) fn missed(&self) {
        self.push(Event::Missed);
    }

    pub(crate) fn receipt(&self, number: u64, outcome: Outcome) {
        self.push(Event::Receipt { number, outcome });
    }

    fn push(&self, event: Event) {
        self.events.push(event);
        self.wake();
    }

    fn wake(&self) {
        if !self.pending.swap(true, Ordering::SeqCst) {
            self.waker.wake_by_ref();
        }
    }

    /// The next event. After `None` the thread is woken for the next one.
    ///
    /// The flag is cleared only after the queue was seen empty, which is looked at once more afterwards: whoever pushes
    /// does so before it swaps the flag, so that one of both sees the other. It is swapped here too, so that what was dropped
    /// before is seen as well.
    pub(crate) fn pop(&self) -> Option<Event> {
        let event = self.events.pop().or_else(|| {
            self.pending.swap(false, Ordering::SeqCst);
            self.events.pop()
        })?;
        if let Event::Message(message) = &event {
            self.waiting_bytes
                .fetch_sub(message.len() + MESSAGE_OVERHEAD, Ordering::Relaxed);
        }
        Some(event)
    }

    /// Messages dropped since this was last asked.
    pub(crate) fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_says_what_was_dropped() {
        let shared = Shared::new(Waker::noop().clone(), Health::default());
        let message = Bytes::from(vec![0; MAX_WAITING_BYTES / 4]);
        for _ in 0..6 {
            shared.message(message.clone());
        }
        shared.connected(false);
        assert_eq!((shared.take_dropped(), shared.take_dropped()), (2, 0));
        let events: Vec<_> = std::iter::from_fn(|| shared.pop()).collect();
        assert_eq!(events.len(), 5);
        assert!(matches!(events[4], Event::Connected(false)));
        shared.message(message);
        assert_eq!(shared.take_dropped(), 0);
    }
}
