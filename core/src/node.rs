//! [`Node`]: what the shards of one process share. Callable from any thread, with short locks.
//!
//! A lock is taken once per notify, per first and last subscription of a shard, and per finished read and shard that takes
//! it; never per delivery. No user code runs under a lock.

mod port;
mod stripe;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use smallvec::SmallVec;

use crate::config::Config;
use crate::counters::NodeCounters;
use crate::flights::{Backoff, Delivery, Flight, FlightId, Ticket};
use crate::frame::{Group, RowError, RowLimits, Rows};
use crate::hash::Seed;
use crate::key::EntityKey;
use crate::resolve::{Audience, ReadError, Reply, Request, Resolve};
use crate::shard::Shard;
use crate::slots::SlotId;
use crate::subscriptions::TopicId;
use crate::time::Timestamp;
use port::Port;
use stripe::Stripe;

const STRIPES: u32 = 64;

/// No deadline, in [`Inner::deadline`].
const NEVER: u64 = u64::MAX;

/// One process of a cluster: its flights, and the way to its shards. Cloning gives another handle to the same node.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    config: Config,
    resolver: Arc<dyn Resolve>,
    stripes: Box<[Mutex<Stripe>]>,
    /// The ticket of the read that began last.
    ticket: AtomicU64,
    /// The earliest moment at which a flight needs [`Node::handle_timeout`], in nanoseconds. May be too early.
    deadline: AtomicU64,
    ports: Box<[Port]>,
    counters: NodeCounters,
}

/// A read that has begun in the books and is handed to the resolver once the lock is released.
struct Start {
    flight: FlightId,
    ticket: Ticket,
    request: Request,
}

type Starts = SmallVec<[Start; 2]>;

impl Node {
    /// Makes a node and its shards, one for each waker. A waker is called when its shard has outputs that it didn't
    /// cause itself; [`Waker::noop`] serves an embedder that polls anyway.
    ///
    /// The first shard also keeps the node's time: it must be driven for as long as the node is used.
    pub fn new(config: Config, resolver: Arc<dyn Resolve>, wakers: Vec<Waker>) -> (Self, Vec<Shard>) {
        let seed = config.seed;
        let shards = wakers.len() as u32;
        let node = Self(Arc::new(Inner {
            config,
            resolver,
            stripes: (0..STRIPES).map(|_| Mutex::new(Stripe::new())).collect(),
            ticket: AtomicU64::new(0),
            deadline: AtomicU64::new(NEVER),
            ports: wakers.into_iter().map(Port::new).collect(),
            counters: NodeCounters::default(),
        }));
        let shards = (0..shards).map(|index| Shard::new(node.clone(), index, seed)).collect();
        (node, shards)
    }

    /// The entity changed: every subscriber is owed rows of a read that begins after this call (G1).
    ///
    /// Cheap and never blocks on anything but a short lock. Nothing happens if nobody is subscribed.
    pub fn notify(&self, now: Timestamp, key: &EntityKey) {
        self.0.counters.notifies.add(1);
        let mut starts = Starts::new();
        {
            let (number, mut stripe) = self.stripe_of(key);
            let stripe = &mut *stripe;
            let hash = self.seed().hash_of(key);
            let Some(audiences) = stripe.by_key.find(hash, |it| it.key == *key) else {
                return;
            };
            for &index in &audiences.flights {
                if let Some((slot, flight)) = stripe.flights.at_mut(index) {
                    flight.owe_to_all();
                    let id = FlightId { stripe: number, slot };
                    self.start_if_due(now, id, flight, &mut stripe.limits, &mut starts);
                }
            }
        }
        self.hand_over(now, starts);
    }

    /// What happened so far.
    pub fn counters(&self) -> &NodeCounters {
        &self.0.counters
    }

    /// The limits and policies of this node.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// The number of audiences that have subscribers or a running read.
    pub fn flights(&self) -> usize {
        (0..STRIPES).map(|number| self.lock(number).flights.len()).sum()
    }

    /// Panics unless the tables agree with each other. For tests and simulations; it visits everything.
    #[doc(hidden)]
    pub fn assert_consistent(&self) {
        for number in 0..STRIPES {
            let stripe = self.lock(number);
            assert_eq!(stripe.by_name.len(), stripe.flights.len());
            let by_key = stripe.by_key.iter().map(|it| it.flights.len());
            assert_eq!(by_key.sum::<usize>(), stripe.flights.len());
            for (slot, flight) in stripe.flights.iter() {
                assert!(!flight.is_over(), "{slot:?} should be gone");
                assert!(!flight.is_due(), "{slot:?} should be running");
            }
        }
    }

    /// The ticket of the read that began last. Whoever joins now receives later ones.
    ///
    /// Why a subscription needs no lock for this: a read's ticket is drawn before its resolver is called. If this load
    /// misses the draw, the read begins after the joining and is delivered. If it sees it, the read is withheld, and a
    /// notify that comes after the joining finds a flight that is running and owes another read.
    pub(crate) fn current_ticket(&self) -> Ticket {
        Ticket(self.0.ticket.load(Ordering::SeqCst))
    }

    /// A shard's first subscription of a topic. A notify that looked the key up before this is answered to others; one
    /// that looks it up later finds this shard.
    pub(crate) fn join(&self, shard: u32, topic: TopicId, key: &EntityKey, audience: &Audience) -> FlightId {
        let (number, mut stripe) = self.stripe_of(key);
        let index = stripe.find_or_insert(self.seed(), key, audience);
        let mut id = FlightId::NOWHERE;
        if let Some((slot, flight)) = stripe.flights.at_mut(index) {
            flight.join(shard, topic);
            id = FlightId { stripe: number, slot };
        }
        id
    }

    /// A shard's last subscription of a topic is gone.
    pub(crate) fn leave(&self, shard: u32, flight: FlightId) {
        let mut stripe = self.lock(flight.stripe);
        if let Some(it) = stripe.flights.get_mut(flight.slot) {
            it.leave(shard);
            stripe.remove_if_over(self.seed(), flight.slot);
        }
    }

    /// Members of a shard, which joined at `joined` or before, need a read of their own.
    pub(crate) fn want(&self, now: Timestamp, shard: u32, flight: FlightId, joined: Ticket) {
        let mut starts = Starts::new();
        {
            let mut stripe = self.lock(flight.stripe);
            let stripe = &mut *stripe;
            if let Some(it) = stripe.flights.get_mut(flight.slot) {
                it.owe_to_wanting(shard, joined);
                self.start_if_due(now, flight, it, &mut stripe.limits, &mut starts);
            }
        }
        self.hand_over(now, starts);
    }

    /// Whether rows are being read for a shard, owed to it, or waiting for it.
    pub(crate) fn is_busy(&self, shard: u32, flight: FlightId) -> bool {
        let stripe = self.lock(flight.stripe);
        stripe.flights.get(flight.slot).is_some_and(|it| it.is_busy_for(shard))
    }

    /// The newest rows of a flight that is marked for this shard.
    pub(crate) fn take(&self, shard: u32, flight: FlightId) -> Option<Delivery> {
        let mut stripe = self.lock(flight.stripe);
        stripe.flights.get_mut(flight.slot)?.take(shard)
    }

    /// Moves the marks of a shard to the end of `batch`. As long as this gives any, the shard is not woken for more.
    pub(crate) fn take_marks(&self, shard: u32, batch: &mut VecDeque<FlightId>) {
        if let Some(port) = self.0.ports.get(shard as usize) {
            port.take_marks(batch);
        }
    }

    /// A read has been answered.
    pub(crate) fn finish(
        &self,
        now: Timestamp,
        flight: FlightId,
        ticket: Ticket,
        result: Result<Rows, ReadError>,
    ) -> Result<(), RowError> {
        let limits = RowLimits {
            rows: self.0.config.max_rows_per_read,
            bytes: self.0.config.max_read_bytes.min(u32::MAX as usize),
        };
        // Frames are built before the lock is taken. An answer that turns out to be late was built for nothing; that is rare.
        let group = match result {
            Ok(rows) => Group::build(&rows, limits).map_err(ReadError::BadRows),
            Err(error) => Err(error),
        };
        let bad_rows = match &group {
            Err(ReadError::BadRows(error)) => Err(*error),
            _ => Ok(()),
        };
        let mut starts = Starts::new();
        let mut marked = SmallVec::<[u32; 8]>::new();
        {
            let mut guard = self.lock(flight.stripe);
            let stripe = &mut *guard;
            let Some(it) = stripe.flights.get_mut(flight.slot).filter(|it| it.is_running(ticket)) else {
                self.0.counters.late_reads.add(1);
                return bad_rows;
            };
            match group {
                Ok(group) => {
                    it.finish(ticket, group, |shard| marked.push(shard));
                    self.start_if_due(now, flight, it, &mut stripe.limits, &mut starts);
                }
                Err(_) => {
                    self.0.counters.failed_reads.add(1);
                    self.retry_later(now, flight.slot, it, &mut stripe.retries);
                }
            }
            stripe.remove_if_over(self.seed(), flight.slot);
            stripe.forget_ended_limits();
        }
        for shard in marked {
            if let Some(port) = self.0.ports.get(shard as usize) {
                port.mark(flight);
            }
        }
        self.hand_over(now, starts);
        bad_rows
    }

    /// When the first shard has to call [`Self::handle_timeout`].
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        let deadline = self.0.deadline.load(Ordering::SeqCst);
        (deadline != NEVER).then_some(Timestamp::from_nanos(deadline))
    }

    /// Gives up reads that are over their time limit and begins those whose backoff has passed.
    pub(crate) fn handle_timeout(&self, now: Timestamp) {
        if self.poll_timeout().is_none_or(|deadline| deadline > now) {
            return;
        }
        // Cleared before the stripes are looked at: a deadline that is set meanwhile stays.
        self.0.deadline.store(NEVER, Ordering::SeqCst);
        let mut starts = Starts::new();
        for number in 0..STRIPES {
            let mut guard = self.lock(number);
            let stripe = &mut *guard;
            while let Some(&(limit, slot, ticket)) = stripe.limits.front() {
                let running = stripe.flights.get_mut(slot).filter(|it| it.is_running(ticket));
                match running {
                    Some(_) if limit > now => break,
                    Some(flight) => {
                        self.0.counters.timed_out_reads.add(1);
                        self.retry_later(now, slot, flight, &mut stripe.retries);
                        stripe.limits.pop_front();
                        stripe.remove_if_over(self.seed(), slot);
                    }
                    None => {
                        stripe.limits.pop_front();
                    }
                }
            }
            while let Some(&Reverse((at, slot))) = stripe.retries.peek() {
                if at > now {
                    break;
                }
                stripe.retries.pop();
                if let Some(flight) = stripe.flights.get_mut(slot) {
                    flight.resume();
                    let id = FlightId { stripe: number, slot };
                    self.start_if_due(now, id, flight, &mut stripe.limits, &mut starts);
                }
            }
            let next_limit = stripe.limits.front().map(|&(limit, ..)| limit);
            let next_retry = stripe.retries.peek().map(|&Reverse((at, _))| at);
            if let Some(next) = next_limit.into_iter().chain(next_retry).min() {
                self.0.deadline.fetch_min(next.as_nanos(), Ordering::SeqCst);
            }
        }
        self.hand_over(now, starts);
    }

    fn start_if_due(
        &self,
        now: Timestamp,
        id: FlightId,
        flight: &mut Flight,
        limits: &mut VecDeque<(Timestamp, SlotId, Ticket)>,
        starts: &mut Starts,
    ) {
        if !flight.is_due() {
            return;
        }
        let ticket = Ticket(self.0.ticket.fetch_add(1, Ordering::SeqCst) + 1);
        flight.start(ticket);
        let limit = now + self.0.config.read_time_limit;
        limits.push_back((limit, id.slot, ticket));
        self.wake_by(limit);
        starts.push(Start {
            flight: id,
            ticket,
            request: Request {
                key: flight.key.clone(),
                audience: flight.audience.clone(),
            },
        });
    }

    fn retry_later(
        &self,
        now: Timestamp,
        slot: SlotId,
        flight: &mut Flight,
        retries: &mut BinaryHeap<Reverse<(Timestamp, SlotId)>>,
    ) {
        let failures = flight.fail();
        let backoff = Backoff {
            first: self.0.config.retry_first,
            max: self.0.config.retry_max,
        };
        let chance = self.seed().hash_of(&(slot, failures));
        let until = backoff.until(now, failures, chance);
        retries.push(Reverse((until, slot)));
        self.wake_by(until);
    }

    /// Calls the resolver for reads that have begun in the books. No lock is held: it may answer at once.
    fn hand_over(&self, now: Timestamp, starts: Starts) {
        for start in starts {
            self.0.counters.reads.add(1);
            let reply = Reply::new(self.clone(), start.flight, start.ticket, now);
            self.0.resolver.resolve(start.request, reply);
        }
    }

    /// Sees to it that the first shard calls [`Self::handle_timeout`] at `deadline` or before.
    fn wake_by(&self, deadline: Timestamp) {
        let deadline = deadline.as_nanos();
        if self.0.deadline.fetch_min(deadline, Ordering::SeqCst) > deadline
            && let Some(port) = self.0.ports.first()
        {
            port.wake();
        }
    }

    fn stripe_of(&self, key: &EntityKey) -> (u32, MutexGuard<'_, Stripe>) {
        let number = key.bucket(STRIPES);
        (number, self.lock(number))
    }

    fn lock(&self, stripe: u32) -> MutexGuard<'_, Stripe> {
        // Of NOWHERE there is no stripe; any other serves, as its slot is in none of them.
        lock(&self.0.stripes[(stripe % STRIPES) as usize])
    }

    fn seed(&self) -> Seed {
        self.0.config.seed
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("shards", &self.0.ports.len())
            .finish_non_exhaustive()
    }
}

/// A poisoned lock is taken all the same: nothing under these locks panics half way through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
