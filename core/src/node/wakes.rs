//! [`Wakes`]: wake-ups that are put off, so that many answers cost one.

use std::fmt;
use std::task::Waker;

use smallvec::SmallVec;

/// Shards that have something to do and are still to be woken, which happens when this is dropped.
///
/// To wake a shard costs a system call and, often, a switch of threads: it would take the rows of one answer, sleep again
/// and be woken for the next. Whoever answers many reads at once passes the same `Wakes` to all of them
/// ([`Reply::send_with`](crate::Reply::send_with)).
///
/// Until then nobody else wakes these shards either, so it must be dropped soon: after some dozens of answers, not after
/// something that blocks, such as a resolver that an answer asks for the next read. It must not be leaked.
#[derive(Default)]
#[must_use = "the shards are woken when it is dropped"]
pub struct Wakes(SmallVec<[Waker; 4]>);

impl Wakes {
    /// Nobody, so far.
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn add(&mut self, waker: &Waker) {
        self.0.push(waker.clone());
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        for waker in self.0.drain(..) {
            waker.wake();
        }
    }
}

impl fmt::Debug for Wakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wakes").field("shards", &self.0.len()).finish()
    }
}
