//! [`Outgoing`]: the keys that were notified on this node and that the bus has not taken yet.
//!
//! A set, so that however often a key changes while the bus is busy, it is told of once; in lanes with a lock each, so that
//! threads which notify don't wait for each other.

use std::task::Waker;

use hashbrown::HashMap;

use super::interest::Interest;
use crate::hash::Seed;
use crate::key::EntityKey;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, lock};

/// As many as there are bits in [`Outgoing::dirty`]. The model checker needs but one.
pub(crate) const LANES: u32 = if cfg!(loom) { 1 } else { 64 };

/// Keys that may wait in one lane. Beyond, only the fact that something in their buckets has changed is kept.
const MAX_LANE_KEYS: usize = 16 * 1024;

/// Bytes of keys that may wait in one lane: keys may be long.
const MAX_LANE_BYTES: usize = 4 * 1024 * 1024;

pub(crate) struct Outgoing {
    lanes: Box<[Mutex<Lane>]>,
    /// A bit for each lane that holds something.
    dirty: AtomicU64,
    /// The lane that is looked at first. Only the bus's thread uses it.
    turn: std::sync::atomic::AtomicU32,
    /// The bus's thread will look without being woken.
    pending: AtomicBool,
    /// The bus brings this node its own notifies too, so that they are not to be applied when they are made.
    echoes: AtomicBool,
    /// There is no bus any more, and nobody takes what is added.
    is_closed: AtomicBool,
    /// Changes may have been missed, and those whom that concerns have not been looked for yet.
    has_doubts: AtomicBool,
    waker: Waker,
    interest: Option<Interest>,
}

/// A part of the keys.
pub(crate) struct Lane {
    /// With each, whether this node has applied all its notifies.
    pub(crate) keys: HashMap<EntityKey, bool, Seed>,
    /// Keys whose notifies are counted: as often as they were notified.
    pub(crate) counted: Vec<(EntityKey, bool)>,
    /// Buckets, of the most that there can be, of keys for which there was no room.
    pub(crate) crowded_out: Vec<u32>,
    /// Bytes of all keys.
    bytes: usize,
}

impl Outgoing {
    pub(crate) fn new(seed: Seed, waker: Waker) -> Self {
        Self {
            interest: None,
            lanes: (0..LANES).map(|_| Mutex::new(Lane::new(seed))).collect(),
            dirty: AtomicU64::new(0),
            turn: Default::default(),
            pending: AtomicBool::new(false),
            echoes: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            has_doubts: AtomicBool::new(false),
            waker,
        }
    }

    /// With a bus that hears only of some of so many buckets.
    pub(crate) fn by_interest(mut self, buckets: u32) -> Self {
        self.interest = Some(Interest::new(buckets));
        self
    }

    pub(crate) fn interest(&self) -> Option<&Interest> {
        self.interest.as_ref()
    }

    /// There is one flight more. Says whether the bus is to be woken.
    pub(super) fn has_flight(&self, key: &EntityKey) -> bool {
        let interest = self.interest.as_ref();
        interest.is_some_and(|it| it.add(key.bucket(it.buckets())))
    }

    pub(super) fn has_flight_no_more(&self, key: &EntityKey) {
        if let Some(interest) = &self.interest {
            interest.remove(key.bucket(interest.buckets()));
        }
    }

    /// A key was notified. `is_applied` says that this node's clients are owed a read for it already. Says whether the bus
    /// will be told: if not, it is the caller who has to see to them.
    pub(crate) fn add(&self, key: &EntityKey, is_counted: bool, is_applied: bool) -> bool {
        let number = key.bucket(LANES);
        let was_empty;
        {
            let mut lane = lock(&self.lanes[number as usize]);
            if self.is_closed.load(Ordering::SeqCst) {
                return false;
            }
            was_empty = lane.is_empty();
            if lane.len() >= MAX_LANE_KEYS || lane.bytes >= MAX_LANE_BYTES {
                lane.crowd_out(key);
            } else if is_counted {
                lane.bytes += key.len();
                lane.counted.push((key.clone(), is_applied));
            } else if let Some(all_applied) = lane.keys.get_mut(key) {
                *all_applied &= is_applied;
            } else {
                lane.bytes += key.len();
                lane.keys.insert(key.clone(), is_applied);
            }
        }
        // Whoever found it empty says that it isn't: a lane is taken only after that, and with all that is in it by then.
        if was_empty {
            self.dirty.fetch_or(1 << number, Ordering::SeqCst);
            self.wake();
        }
        true
    }

    /// The bus is gone.
    pub(crate) fn close(&self) {
        self.set_echoes(false);
        self.set_doubts(false);
        self.is_closed.store(true, Ordering::SeqCst);
        for lane in &self.lanes {
            // Who adds to it later sees that it is closed.
            *lock(lane) = Lane::new(Seed(0, 0));
        }
    }

    pub(super) fn has_doubts(&self) -> bool {
        self.has_doubts.load(Ordering::SeqCst)
    }

    pub(super) fn set_doubts(&self, has_doubts: bool) {
        self.has_doubts.store(has_doubts, Ordering::SeqCst);
    }

    /// There is more, and whoever asked has not taken all.
    pub(crate) fn call_again(&self) {
        self.waker.wake_by_ref();
    }

    pub(crate) fn wake(&self) {
        if !self.pending.swap(true, Ordering::SeqCst) {
            self.waker.wake_by_ref();
        }
    }

    /// Moves one lane's keys into an empty one. As long as this says that there were any, the bus is not woken for more.
    ///
    /// The flag is cleared only after all lanes were seen clean, and that is looked at once more afterwards: see
    /// [`Port::take`](super::port::Port::take).
    pub(crate) fn take(&self, into: &mut Lane) -> bool {
        self.move_one(into) || {
            self.pending.swap(false, Ordering::SeqCst);
            self.move_one(into)
        }
    }

    fn move_one(&self, into: &mut Lane) -> bool {
        debug_assert!(into.is_empty());
        loop {
            let dirty = self.dirty.load(Ordering::SeqCst);
            if dirty == 0 {
                return false;
            }
            // In turns, or keys that change all the time would hold up those of other lanes.
            let turn = self.turn.load(Ordering::Relaxed);
            let number = (turn + dirty.rotate_right(turn).trailing_zeros()) % u64::BITS;
            self.turn.store(number + 1, Ordering::Relaxed);
            // Before the lane is looked at: what is added afterwards sets the bit again.
            self.dirty.fetch_and(!(1 << number), Ordering::SeqCst);
            std::mem::swap(&mut *lock(&self.lanes[number as usize]), into);
            if !into.is_empty() {
                return true;
            }
        }
    }

    pub(super) fn echoes(&self) -> bool {
        self.echoes.load(Ordering::SeqCst)
    }

    pub(crate) fn set_echoes(&self, echoes: bool) {
        self.echoes.store(echoes, Ordering::SeqCst);
    }
}

impl Lane {
    pub(crate) fn new(seed: Seed) -> Self {
        Self {
            keys: HashMap::with_hasher(seed),
            counted: Vec::new(),
            crowded_out: Vec::new(),
            bytes: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.counted.is_empty() && self.crowded_out.is_empty()
    }

    fn len(&self) -> usize {
        self.keys.len() + self.counted.len()
    }

    /// The bucket stands for all its keys, however many buckets the cluster has.
    fn crowd_out(&mut self, key: &EntityKey) {
        let bucket = key.bucket(crate::cluster::MAX_BUCKETS);
        if !self.crowded_out.contains(&bucket) {
            self.crowded_out.push(bucket);
        }
    }

    /// Gives the buckets of keys for which there was no room, of a cluster with so many.
    pub(crate) fn drain_crowded_out(&mut self, buckets: u32) -> impl Iterator<Item = u32> {
        // Both are powers of two.
        self.crowded_out.drain(..).map(move |bucket| bucket % buckets)
    }

    /// Takes the keys, with whether they are counted, and whether they are applied.
    pub(crate) fn drain_keys(&mut self) -> impl Iterator<Item = (EntityKey, bool, bool)> {
        self.bytes = 0;
        let keys = self.keys.drain().map(|(key, is_applied)| (key, false, is_applied));
        let counted = self.counted.drain(..);
        keys.chain(counted.map(|(key, is_applied)| (key, true, is_applied)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: usize) -> EntityKey {
        EntityKey::new("items", &id.to_string()).expect("short")
    }

    fn take_all(outgoing: &Outgoing) -> Vec<Lane> {
        let mut lanes = Vec::new();
        loop {
            let mut lane = Lane::new(Seed(1, 2));
            if !outgoing.take(&mut lane) {
                return lanes;
            }
            lanes.push(lane);
        }
    }

    #[test]
    fn a_key_is_told_of_once_unless_it_is_counted() {
        let outgoing = Outgoing::new(Seed(1, 2), Waker::noop().clone());
        for _ in 0..3 {
            outgoing.add(&key(1), false, true);
            outgoing.add(&key(2), true, true);
        }
        let lanes = take_all(&outgoing);
        let keys: usize = lanes.iter().map(|it| it.keys.len()).sum();
        let counted: usize = lanes.iter().map(|it| it.counted.len()).sum();
        assert_eq!((keys, counted), (1, 3));
        assert!(take_all(&outgoing).is_empty());
    }

    #[test]
    fn one_lane_that_changes_all_the_time_holds_up_no_other() {
        let outgoing = Outgoing::new(Seed(1, 2), Waker::noop().clone());
        let of_lane = |lane| (0..).map(key).find(|key| key.bucket(LANES) == lane).expect("one");
        for (busy, other) in [(0, 63), (63, 0), (5, 4)].map(|(a, b)| (of_lane(a), of_lane(b))) {
            outgoing.add(&other, false, true);
            let is_taken = (0..3).any(|_| {
                outgoing.add(&busy, false, true);
                let mut lane = Lane::new(Seed(1, 2));
                outgoing.take(&mut lane) && lane.keys.contains_key(&other)
            });
            assert!(is_taken, "{other:?} waits behind {busy:?}");
            take_all(&outgoing);
        }
    }

    #[test]
    fn it_is_bounded_and_forgets_no_bucket() {
        let outgoing = Outgoing::new(Seed(1, 2), Waker::noop().clone());
        let of_one_lane = (0..).map(key).filter(|key| key.bucket(LANES) == 0);
        let keys: Vec<_> = of_one_lane.take(MAX_LANE_KEYS + 2_000).collect();
        for key in &keys {
            outgoing.add(key, false, true);
        }
        let lanes = take_all(&outgoing);
        let buckets = crate::cluster::MAX_BUCKETS;
        let known: std::collections::BTreeSet<_> = lanes
            .iter()
            .flat_map(|lane| {
                let of_keys = lane.keys.keys().map(|key| key.bucket(buckets));
                of_keys.chain(lane.crowded_out.iter().copied())
            })
            .collect();
        assert!(keys.iter().all(|key| known.contains(&key.bucket(buckets))));
        assert_eq!(lanes.iter().map(|it| it.keys.len()).sum::<usize>(), MAX_LANE_KEYS);
        let crowded_out: usize = lanes.iter().map(|it| it.crowded_out.len()).sum();
        assert!((1..=buckets as usize).contains(&crowded_out), "{crowded_out}");
    }

    #[test]
    fn long_keys_are_bounded_by_their_bytes() {
        let outgoing = Outgoing::new(Seed(1, 2), Waker::noop().clone());
        let long = "x".repeat(60_000);
        let keys = (0..).map(|id| EntityKey::new("items", &format!("{id}{long}")).expect("short enough"));
        let of_one_lane = keys.filter(|key| key.bucket(LANES) == 0);
        of_one_lane.take(200).for_each(|key| {
            outgoing.add(&key, false, true);
        });
        let mut lane = Lane::new(Seed(1, 2));
        assert!(outgoing.take(&mut lane));
        let bytes: usize = lane.keys.keys().map(EntityKey::len).sum();
        assert!((MAX_LANE_BYTES..MAX_LANE_BYTES + 100_000).contains(&bytes), "{bytes}");
        assert!(!lane.crowded_out.is_empty());
        assert_eq!(lane.drain_keys().count(), bytes / 60_000);
        assert_eq!(lane.bytes, 0);
    }
}
