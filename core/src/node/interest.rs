//! [`Interest`]: in which buckets there are keys that clients are subscribed to, for a cluster that hears by interest.

use crate::cluster::BucketSet;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, lock};

pub(crate) struct Interest {
    /// Flights by bucket.
    counts: Box<[AtomicU64]>,
    /// Buckets that have got their first flight, or lost their last.
    changed: Mutex<BucketSet>,
    has_changed: AtomicBool,
}

impl Interest {
    pub(crate) fn new(buckets: u32) -> Self {
        Self {
            counts: (0..buckets).map(|_| AtomicU64::new(0)).collect(),
            changed: Mutex::new(BucketSet::none(buckets)),
            has_changed: AtomicBool::new(false),
        }
    }

    pub(crate) fn buckets(&self) -> u32 {
        self.counts.len() as u32
    }

    /// There is one flight more. Says whether the bus is to be woken.
    pub(super) fn add(&self, bucket: u32) -> bool {
        let before = self.counts[bucket as usize].fetch_add(1, Ordering::SeqCst);
        before == 0 && self.change(bucket)
    }

    /// There is one flight less. Nobody is in a hurry to hear of that.
    pub(super) fn remove(&self, bucket: u32) {
        if self.counts[bucket as usize].fetch_sub(1, Ordering::SeqCst) == 1 {
            self.change(bucket);
        }
    }

    fn change(&self, bucket: u32) -> bool {
        lock(&self.changed).insert(bucket);
        // Not a store, which the model checker lets a later swap pass by.
        self.has_changed.swap(true, Ordering::SeqCst);
        true
    }

    pub(crate) fn is_in(&self, bucket: u32) -> bool {
        let count = self.counts.get(bucket as usize);
        count.is_some_and(|it| it.load(Ordering::SeqCst) > 0)
    }

    /// Calls `changed` with each bucket that has changed since the last call.
    pub(crate) fn take_changes(&self, changed: impl FnMut(u32)) {
        if self.has_changed.swap(false, Ordering::SeqCst) {
            let mut buckets = lock(&self.changed);
            buckets.iter().for_each(changed);
            buckets.clear();
        }
    }
}
