//! [`Repairs`]: what may have been missed and is to be read again, at a pace that the store bears.

use std::collections::VecDeque;
use std::time::Duration;

use super::buckets::BucketSet;
use crate::flights::{FlightId, Ticket};
use crate::hash::Seed;
use crate::node::Node;
use crate::time::Timestamp;

/// Repairs are begun about so often.
const TURN: Duration = Duration::from_millis(10);

/// Audiences are looked for so often: it means to look at most of them, and what may have been missed gathers meanwhile.
const WALK: Duration = Duration::from_millis(100);

/// Of those that turn out not to need it, so many are looked at for each one that is repaired.
const LOOKS: u64 = 64;

/// Audiences with up to `2^0 .. 2^31` members on a shard.
const WEIGHTS: usize = 32;

/// Repairs at least so many keys per second.
const MIN_RATE: u32 = 100;

pub(super) struct Repairs {
    /// Buckets whose keys have not been looked for yet.
    buckets: BucketSet,
    /// Reads that began after this one need no repair.
    since: Ticket,
    /// Audiences to be read again, by weight.
    queues: Box<[VecDeque<FlightId>]>,
    /// When to begin the next ones, if there are any.
    next: Option<Timestamp>,
    /// When some were begun last.
    last: Timestamp,
    /// When audiences may be looked for again.
    next_walk: Timestamp,
    seed: Seed,
}

impl Repairs {
    pub(super) fn new(buckets: u32, seed: Seed) -> Self {
        Self {
            buckets: BucketSet::none(buckets),
            since: Ticket::default(),
            queues: (0..WEIGHTS).map(|_| VecDeque::new()).collect(),
            next: None,
            last: Timestamp::START,
            next_walk: Timestamp::START,
            seed,
        }
    }

    /// Whoever is subscribed to a key of this bucket, and is not given a read that begins from now on, may have missed a
    /// change.
    pub(super) fn add(&mut self, now: Timestamp, bucket: u32, node: &Node) {
        self.buckets.insert(bucket);
        self.begin_soon(now, node.doubt());
    }

    /// As [`Self::add`], for all buckets.
    pub(super) fn add_all(&mut self, now: Timestamp, node: &Node) {
        self.buckets.insert_all();
        self.begin_soon(now, node.doubt());
    }

    fn begin_soon(&mut self, now: Timestamp, since: Ticket) {
        // The later one asks for more.
        self.since = self.since.max(since);
        if self.next.is_none() {
            // Peers that noticed the same don't all read at the same moment.
            let chance = self.seed.hash_of(&(now, since.0)) % (5 * TURN.as_micros() as u64);
            self.next = Some(now + Duration::from_micros(chance));
            self.last = now;
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Timestamp> {
        self.next
    }

    /// How many audiences wait.
    pub(super) fn len(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }

    /// Begins as many repairs as `rate`, of keys per second over all nodes, allows one of `nodes`. Returns how many.
    pub(super) fn handle_timeout(&mut self, now: Timestamp, node: &Node, rate: u32, nodes: usize) -> u64 {
        if self.next.is_none_or(|next| next > now) {
            return 0;
        }
        if !self.buckets.is_empty() && self.next_walk <= now {
            self.next_walk = now + WALK;
            let queues = &mut self.queues;
            node.repair_since(&self.buckets, self.since, |weight, flight| {
                queues[usize::from(weight).min(WEIGHTS - 1)].push_back(flight);
            });
            self.buckets.clear();
            self.since = Ticket::default();
        }
        let rate = u64::from((rate / nodes.max(1) as u32).max(MIN_RATE));
        // What a thread that was held up has missed is not made up for at once.
        let time = now.since(self.last).clamp(TURN, 10 * TURN);
        let mut left = (rate * time.as_micros() as u64).div_ceil(1_000_000);
        self.last = now;
        let mut begun = 0;
        let mut looks = LOOKS * left;
        // Those with the most subscribers first.
        for queue in self.queues.iter_mut().rev() {
            while left > 0
                && looks > 0
                && let Some(flight) = queue.pop_front()
            {
                looks -= 1;
                // One that is not necessary any more costs the store nothing.
                if node.repair(now, flight) {
                    left -= 1;
                    begun += 1;
                }
            }
            if queue.is_empty() {
                // As large as the largest gap for ever would be a waste.
                *queue = VecDeque::new();
            }
        }
        let next_walk = (!self.buckets.is_empty()).then_some(self.next_walk);
        let next_turn = (self.len() > 0).then_some(now + TURN);
        self.next = next_walk.into_iter().chain(next_turn).min();
        begun
    }
}
