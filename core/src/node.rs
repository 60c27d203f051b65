//! [`Node`]: what the shards of one process share. Callable from any thread, with short locks.
//!
//! A lock is taken once per notify, per first and last subscription of a shard, and per finished read and shard that takes
//! it; never per delivery. No user code runs under a lock.

mod consistency;
mod gate;
mod interest;
mod outgoing;
mod port;
mod reads;
mod repair;
mod stripe;
mod wakes;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use smallvec::SmallVec;

use crate::admission::Admission;
use crate::client::{Client, ClientId, Command, InvalidCloseCode, Selector, SendError, Whose, checked_close_frame};
use crate::config::Config;
use crate::counters::{NodeCounters, ShardCounters};
use crate::entity::Delivery::Every;
use crate::entity::{EntityOptions, Registry};
use crate::flights::{Delivery, Flight, FlightId, Ticket};
use crate::hash::{NameHash, Seed};
use crate::key::EntityKey;
use crate::latency::{Histogram, LatencyCounts};
use crate::resolve::{Audience, ReadId, Request, Resolve};
use crate::shard::Shard;
use crate::subscriptions::TopicId;
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering, lock};
use crate::time::Timestamp;
use crate::totals::Totals;
use crate::ws::Refusal;
use gate::{Gate, Why};
pub(crate) use interest::Interest;
pub(crate) use outgoing::{LANES, Lane, Outgoing};
pub(crate) use port::Inbox;
#[cfg(test)]
pub(crate) use port::MESSAGE_BYTES;
#[cfg(loom)]
pub(crate) use port::Port;
#[cfg(not(loom))]
use port::Port;
use stripe::Stripe;
pub use wakes::Wakes;

/// Parts of the tables with a lock each. The model checker needs but two, so that keys meet at their entity's gate only.
pub(crate) const STRIPES: u32 = if cfg!(loom) { 2 } else { 64 };

/// No deadline, in [`Inner::deadline`].
const NEVER: u64 = u64::MAX;

/// Answers that lead to reads that are answered at once, that lead to … so many may stand on one stack.
const MAX_DEPTH: u32 = 16;

/// One process of a cluster: its flights, and the way to its shards. Cloning gives another handle to the same node.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    config: Config,
    resolver: Arc<dyn Resolve>,
    entities: Registry<Gate>,
    admission: Admission,
    totals: Totals,
    stripes: Box<[Mutex<Stripe>]>,
    /// The ticket of the read that began last.
    ticket: AtomicU64,
    /// The earliest moment at which a flight needs [`Node::handle_timeout`], in nanoseconds. May be too early.
    deadline: AtomicU64,
    /// The latest time that anyone told, in nanoseconds, for those who can't tell it.
    clock: std::sync::atomic::AtomicU64,
    ports: Box<[Port]>,
    /// Where notifies go to other nodes, in a cluster.
    outgoing: OnceLock<Arc<Outgoing>>,
    counters: NodeCounters,
    shard_counters: Box<[Arc<ShardCounters>]>,
    latencies: Box<[Arc<Histogram>]>,
}

/// A read that has begun in the books and is handed to the resolver once the lock is released.
pub(crate) struct Start {
    read: ReadId,
    request: Request,
}

type Starts = SmallVec<[Start; 2]>;

/// An entity that is not registered: see [`Entities::none`](crate::Entities::none).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownEntity {
    /// What was notified.
    pub key: EntityKey,
}

impl Node {
    /// Makes a node and its shards, one for each waker. A waker is called when its shard has outputs that it didn't
    /// cause itself; [`Waker::noop`] serves an embedder that polls anyway.
    ///
    /// The first shard that has not been dropped also keeps the node's time: it must be driven for as long as the node is used.
    pub fn new(config: Config, resolver: Arc<dyn Resolve>, wakers: Vec<Waker>) -> (Self, Vec<Shard>) {
        let seed = config.seed;
        let shards = wakers.len() as u32;
        let node = Self(Arc::new(Inner {
            resolver,
            entities: Registry::new(&config.entities),
            admission: Admission::new(seed),
            totals: Totals::default(),
            config,
            stripes: (0..STRIPES).map(|_| Mutex::new(Stripe::new())).collect(),
            ticket: AtomicU64::new(0),
            deadline: AtomicU64::new(NEVER),
            clock: Default::default(),
            ports: wakers.into_iter().map(Port::new).collect(),
            outgoing: OnceLock::new(),
            counters: NodeCounters::default(),
            shard_counters: (0..shards).map(|_| Arc::default()).collect(),
            latencies: (0..shards).map(|_| Arc::default()).collect(),
        }));
        let shards = (0..shards).map(|index| Shard::new(node.clone(), index, seed)).collect();
        (node, shards)
    }

    /// The entity changed: every subscriber is owed rows of a read that begins after this call (G1).
    ///
    /// Cheap and never blocks on anything but a short lock. Nothing happens if nobody is subscribed. In a
    /// [cluster](crate::cluster) the other nodes hear of it too, and with a [`PlainCluster`](crate::cluster::PlainCluster)
    /// this one when they do.
    ///
    /// # Errors
    /// [`UnknownEntity`] if entities are registered and this is none of them.
    pub fn notify(&self, now: Timestamp, key: &EntityKey) -> Result<(), UnknownEntity> {
        self.0.counters.notifies.add(1);
        self.set_clock(now);
        let Some(entity) = self.0.entities.find(key.entity()) else {
            self.0.counters.unknown_entities.add(1);
            return Err(UnknownEntity { key: key.clone() });
        };
        let outgoing = self.outgoing();
        let is_applied = !outgoing.is_some_and(|it| it.echoes());
        if is_applied {
            self.owe_to_all(now, key.as_ref());
        }
        if let Some(outgoing) = outgoing {
            let is_counted = self.0.entities.options(entity).delivery == Every;
            if !outgoing.add(key, is_counted, is_applied) && !is_applied {
                self.owe_to_all(now, key.as_ref());
            }
        }
        Ok(())
    }

    /// Reads again for those whom `selector` names, as when what they may see has changed: they are owed rows of reads
    /// that begin after this call.
    ///
    /// By secret or client, they get nothing any more of reads that began before: with
    /// [`Delivery::Every`](crate::Delivery::Every) that may be fewer pushes than there were notifies. By secret, each
    /// shard visits only the connections that have it, some at a time.
    pub fn reread(&self, now: Timestamp, selector: &Selector) {
        match selector {
            Selector::Key(key) => self.owe_to_all(now, key.as_ref()),
            _ => {
                // One ticket for all whom this concerns, so that they share a read.
                let ticket = self.current_ticket();
                self.command_all(selector, |whose| Command::Reread(whose, ticket));
            }
        }
    }

    /// Reads again whatever anyone is subscribed to: after a gap in what tells of changes, such as a connection to a
    /// database or a queue that was lost for a while.
    ///
    /// As many reads run at once as each entity's `max_running_reads` allows; the others wait for their turns, and those of
    /// keys that are notified meanwhile need not wait for all of them.
    pub fn reread_all(&self, now: Timestamp) {
        self.set_clock(now);
        for number in 0..STRIPES {
            let mut starts = Starts::new();
            {
                let mut guard = self.lock(number);
                let stripe = &mut *guard;
                for (slot, flight) in stripe.flights.iter_mut() {
                    flight.owe_to_all(now);
                    let id = FlightId { stripe: number, slot };
                    self.start_if_due(now, id, flight, Why::Again, &mut stripe.limits, &mut starts);
                }
            }
            // A stripe at a time, so that notifies of others need not wait for all.
            self.hand_over(now, starts);
        }
    }

    /// Whether there is an entity of this name.
    pub fn is_entity(&self, name: &str) -> bool {
        self.0.entities.find(name).is_some()
    }

    /// The names of all entities; `None` if any name is one.
    pub fn entity_names(&self) -> Option<impl Iterator<Item = &str>> {
        self.0.entities.names()
    }

    /// Ends subscriptions of those whom `selector` names, as if they had unsubscribed. They are not told; they may
    /// subscribe again.
    pub fn unsubscribe(&self, selector: &Selector) {
        self.command_all(selector, Command::Unsubscribe);
    }

    /// Ends the connections of those whom `selector` names: they are sent what they have queued, and then a close frame.
    ///
    /// # Errors
    /// [`InvalidCloseCode`]: nothing was done.
    pub fn disconnect(&self, selector: &Selector, code: u16, reason: &str) -> Result<(), InvalidCloseCode> {
        let frame = checked_close_frame(code, reason)?;
        self.command_all(selector, |whose| Command::Close {
            whose,
            frame: frame.clone(),
        });
        Ok(())
    }

    /// A way to one client, whether it is still there or not.
    pub fn client(&self, id: ClientId) -> Client {
        Client::new(self.clone(), id)
    }

    /// What happened so far.
    pub fn counters(&self) -> &NodeCounters {
        &self.0.counters
    }

    /// What happened on each shard so far, to be read on any thread.
    pub fn shard_counters(&self) -> impl Iterator<Item = &ShardCounters> {
        self.0.shard_counters.iter().map(|it| &**it)
    }

    /// How long pushes have taken, on all shards together.
    pub fn latency(&self) -> LatencyCounts {
        let mut sum = LatencyCounts::default();
        self.0.latencies.iter().for_each(|it| sum += it.snapshot());
        sum
    }

    /// The limits and policies of this node.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// An upgrade request was refused. For drivers whose HTTP stack answers; a shard counts its own.
    pub fn count_refused_upgrade(&self, reason: Refusal) {
        let counters = &self.0.counters;
        let counter = match reason {
            Refusal::BadRequest => &counters.refused_upgrades_bad_request,
            Refusal::Forbidden => &counters.refused_upgrades_origin,
            Refusal::UntrustedHost => &counters.refused_upgrades_host,
            Refusal::NotFound => &counters.refused_upgrades_path,
            Refusal::MethodNotAllowed => &counters.refused_upgrades_method,
            Refusal::HeadersTooLong => &counters.refused_upgrades_too_long,
            Refusal::Tls => &counters.refused_upgrades_tls,
            Refusal::Full => &counters.refused_upgrades_full,
            Refusal::NotUpgradable => &counters.refused_upgrades_not_upgradable,
        };
        counter.add(1);
    }

    /// How many shards share its limits.
    pub(crate) fn shard_count(&self) -> usize {
        self.0.ports.len()
    }

    /// Whether another connection would not be too many for `max_connections`, as of now.
    pub fn has_room(&self) -> bool {
        self.0.admission.open() < self.0.config.max_connections
    }

    /// The number of audiences that have subscribers or a running read.
    pub fn flights(&self) -> usize {
        (0..STRIPES).map(|number| self.lock(number).flights.len()).sum()
    }

    /// Whether reads wait to be handed to the resolver by the shard that keeps the time. For simulations.
    #[doc(hidden)]
    pub fn has_waiting_reads(&self) -> bool {
        self.timekeeper().is_some_and(Port::has_starts)
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
    pub(crate) fn join(
        &self,
        shard: u32,
        topic: TopicId,
        key: &EntityKey,
        audience: &Audience,
        hash: NameHash,
    ) -> FlightId {
        let Some(entity) = self.0.entities.find(key.entity()) else {
            return FlightId::NOWHERE;
        };
        let mut is_new_interest = false;
        let mut id = FlightId::NOWHERE;
        {
            let (number, mut stripe) = self.stripe_of(key);
            let index = stripe.find_or_insert(hash, key, audience, || {
                let options = self.0.entities.options(entity);
                let outgoing = self.outgoing();
                is_new_interest = outgoing.is_some_and(|it| it.has_flight(key));
                let looks = self.looks(options);
                Flight::new(key.clone(), audience.clone(), hash, entity, options, looks)
            });
            if let Some((slot, flight)) = stripe.flights.at_mut(index) {
                flight.join(shard, topic);
                id = FlightId { stripe: number, slot };
            }
        }
        if is_new_interest && let Some(outgoing) = self.outgoing() {
            outgoing.wake();
        }
        id
    }

    #[cfg(test)]
    fn join_unhashed(&self, shard: u32, topic: TopicId, key: &EntityKey, audience: &Audience) -> FlightId {
        let hash = NameHash::of(self.seed(), key, audience);
        self.join(shard, topic, key, audience, hash)
    }

    /// A shard's last subscription of a topic is gone.
    pub(crate) fn leave(&self, now: Timestamp, shard: u32, flight: FlightId) {
        self.change(now, flight, |it| it.leave(shard));
    }

    /// Members of a shard, which joined at `joined` or before, need a read of their own: `client`, or several.
    pub(crate) fn want(&self, now: Timestamp, shard: u32, flight: FlightId, joined: Ticket, client: Option<ClientId>) {
        self.change_for(now, flight, client, |it| it.owe_to_wanting(shard, joined));
    }

    /// Whether rows are being read for a shard, owed to it, or waiting for it; or nobody knows yet.
    pub(crate) fn is_busy(&self, shard: u32, flight: FlightId) -> bool {
        // In this order: the doubts of a cluster end when it has noted down in the flights whom they concern.
        if self.outgoing().is_some_and(|it| it.has_doubts()) {
            return true;
        }
        let stripe = self.lock(flight.stripe);
        stripe.flights.get(flight.slot).is_some_and(|it| it.is_busy_for(shard))
    }

    /// The newest rows of a flight that is marked for this shard.
    pub(crate) fn take(&self, now: Timestamp, shard: u32, flight: FlightId) -> Option<Delivery> {
        self.change(now, flight, |it| it.take(shard)).flatten()
    }

    /// Moves what waits for a shard into its inbox, in which only commands may be left. Says whether there was anything; as long as there was, the
    /// shard is not woken for more, and must ask again.
    pub(crate) fn take_inbox(&self, now: Timestamp, shard: u32, inbox: &mut Inbox) -> bool {
        let port = self.0.ports.get(shard as usize);
        let any = port.is_some_and(|it| it.take(inbox));
        // Those that waited too long have been given up. The others begin on a fresh stack.
        let starts = inbox.starts.drain(..).filter_map(|mut start| {
            start.read.depth = 0;
            let ReadId { flight, ticket, .. } = start.read;
            let stripe = self.lock(flight.stripe);
            let flight = stripe.flights.get(flight.slot);
            flight.is_some_and(|it| it.is_running(ticket)).then_some(start)
        });
        self.hand_over(now, starts);
        any
    }

    /// Whether this shard is the one that calls [`Self::handle_timeout`] and begins reads on a fresh stack: the first that has not
    /// been dropped.
    pub(crate) fn is_timekeeper(&self, shard: u32) -> bool {
        let earlier = self.0.ports.iter().take(shard as usize);
        earlier.into_iter().all(Port::is_gone)
    }

    fn timekeeper(&self) -> Option<&Port> {
        self.0.ports.iter().find(|it| !it.is_gone())
    }

    /// A shard is dropped. What it had still to do for the node is for the next timekeeper.
    ///
    /// Whoever sets a deadline looks for the timekeeper afterwards. If that finds this shard, it was not gone yet, and the
    /// wake-up below comes later.
    pub(crate) fn retire(&self, shard: u32) {
        let Some(port) = self.0.ports.get(shard as usize) else {
            return;
        };
        self.start_later(port.retire());
        if let Some(next) = self.timekeeper() {
            next.wake();
        }
    }

    /// Leaves reads to the timekeeper. Without any shard nobody is subscribed, and they are dropped.
    fn start_later(&self, mut starts: Starts) {
        while !starts.is_empty()
            && let Some(port) = self.timekeeper()
        {
            port.start(&mut starts);
        }
    }

    /// Whether the application wants something done on a shard that it has not taken yet, other than messages sent.
    pub(crate) fn has_orders(&self, shard: u32) -> bool {
        let port = self.0.ports.get(shard as usize);
        port.is_some_and(Port::has_orders)
    }

    /// Leaves a command for a shard.
    pub(crate) fn command(&self, shard: u32, command: Command) -> Result<(), SendError> {
        match self.0.ports.get(shard as usize) {
            Some(port) => port.command(command, self.0.config.max_handover_bytes),
            None => Ok(()),
        }
    }

    /// Whether reads of an entity may only look whether something has changed.
    fn looks(&self, options: &EntityOptions) -> bool {
        options.settle.is_some() || self.outgoing().is_some()
    }

    /// `None` for an entity that is not registered.
    pub(crate) fn options_of(&self, key: &EntityKey) -> Option<&EntityOptions> {
        let entity = self.0.entities.find(key.entity())?;
        Some(self.0.entities.options(entity))
    }

    pub(crate) fn totals(&self) -> &Totals {
        &self.0.totals
    }

    pub(crate) fn admission(&self) -> &Admission {
        &self.0.admission
    }

    pub(crate) fn latency_of(&self, shard: u32) -> Arc<Histogram> {
        let of_shard = self.0.latencies.get(shard as usize);
        of_shard.cloned().unwrap_or_default()
    }

    pub(crate) fn counters_of(&self, shard: u32) -> Arc<ShardCounters> {
        let of_shard = self.0.shard_counters.get(shard as usize);
        of_shard.cloned().unwrap_or_default()
    }

    /// The latest time that anyone told.
    pub(crate) fn clock(&self) -> Timestamp {
        Timestamp::from_nanos(self.0.clock.load(Ordering::Relaxed))
    }

    fn set_clock(&self, now: Timestamp) {
        // Most calls come within a moment of another one.
        if self.clock() < now {
            self.0.clock.fetch_max(now.as_nanos(), Ordering::Relaxed);
        }
    }

    /// Changes a flight, and begins its next read if that makes one due.
    fn change<T>(&self, now: Timestamp, id: FlightId, change: impl FnOnce(&mut Flight) -> T) -> Option<T> {
        self.change_for(now, id, None, change)
    }

    /// The same, for a client that needs that read.
    fn change_for<T>(
        &self,
        now: Timestamp,
        id: FlightId,
        client: Option<ClientId>,
        change: impl FnOnce(&mut Flight) -> T,
    ) -> Option<T> {
        let mut starts = Starts::new();
        let result;
        {
            let mut guard = self.lock(id.stripe);
            let stripe = &mut *guard;
            let flight = stripe.flights.get_mut(id.slot)?;
            result = change(flight);
            let why = match client {
                Some(client) => Why::Asked(client),
                // One that waits already does so where it should.
                None if flight.is_notified() && flight.turn().is_none() => Why::Notified,
                None => Why::Again,
            };
            self.start_if_due(now, id, flight, why, &mut stripe.limits, &mut starts);
            self.remove_if_over(stripe, id);
        }
        self.hand_over(now, starts);
        Some(result)
    }

    /// Leaves a command for every shard that a selector concerns.
    fn command_all(&self, selector: &Selector, command: impl Fn(Whose) -> Command) {
        let mut of_shards = SmallVec::<[(u32, Whose); 8]>::new();
        match selector {
            Selector::Client(id) => of_shards.push((id.shard, Whose::Conn(id.conn))),
            Selector::Secret(secret) => {
                let shards = (0..).zip(&self.0.shard_counters);
                // An idle shard need not look. Whom the application has heard of is counted already.
                let busy = shards.filter(|(_, counters)| counters.connections.get() > 0);
                of_shards.extend(busy.map(|(shard, _)| (shard, Whose::Secret(secret.clone()))));
            }
            Selector::Key(key) => {
                let (_, stripe) = self.stripe_of(key);
                let hash = self.seed().hash_of(key);
                let audiences = stripe.by_key.find(hash, |it| it.key == *key);
                let flights = audiences.into_iter().flat_map(|it| &it.flights);
                let flights = flights.filter_map(|&index| stripe.flights.at(index));
                let topics = flights.flat_map(|(_, flight)| flight.shards());
                of_shards.extend(topics.map(|(shard, topic)| (shard, Whose::Topic(topic))));
            }
        }
        for (shard, whose) in of_shards {
            // Only messages are refused.
            let _ = self.command(shard, command(whose));
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

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("shards", &self.0.ports.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for UnknownEntity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no registered entity: register it, or correct the name",
            self.key.entity()
        )
    }
}

impl std::error::Error for UnknownEntity {}

#[cfg(test)]
mod tests;
