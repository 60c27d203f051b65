//! [`Port`]: the hand-over from the node to one shard, and the wake-up.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use super::lock;
use crate::flights::FlightId;

/// Where the node leaves marks for one shard.
pub(super) struct Port {
    /// At most one mark per flight: the flight itself knows that it is marked.
    marks: Mutex<Vec<FlightId>>,
    /// The shard will look at `marks` without being woken.
    pending: AtomicBool,
    waker: Waker,
}

impl Port {
    pub(super) fn new(waker: Waker) -> Self {
        Self {
            marks: Mutex::new(Vec::new()),
            pending: AtomicBool::new(false),
            waker,
        }
    }

    /// Leaves a mark, and wakes the shard unless it will look anyway.
    pub(super) fn mark(&self, flight: FlightId) {
        lock(&self.marks).push(flight);
        self.wake();
    }

    pub(super) fn wake(&self) {
        if !self.pending.swap(true, Ordering::SeqCst) {
            self.waker.wake_by_ref();
        }
    }

    /// Moves all marks to the end of `batch`. As long as this gives any, the shard is not woken for more.
    ///
    /// The flag is cleared only after `marks` was seen empty, and `marks` is looked at once more afterwards: a producer
    /// pushes first and swaps the flag then, so either this second look sees its mark, or it sees the flag cleared and
    /// wakes.
    pub(super) fn take_marks(&self, batch: &mut VecDeque<FlightId>) {
        if !self.move_marks(batch) {
            self.pending.swap(false, Ordering::SeqCst);
            self.move_marks(batch);
        }
    }

    /// Says whether there were any.
    fn move_marks(&self, batch: &mut VecDeque<FlightId>) -> bool {
        let mut marks = lock(&self.marks);
        let any = !marks.is_empty();
        batch.extend(marks.drain(..));
        any
    }
}
