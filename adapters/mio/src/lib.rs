//! Entity Sync on epoll: one reactor per thread, each with its own listener, connections and
//! [`Shard`](entity_sync_core::Shard).
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use entity_sync_mio::{Config, EntityKey, Reply, Request, Rows, Server};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let server = Server::start(Config::new(["127.0.0.1:8080".parse()?]), |request: Request, reply: Reply| {
//!         // Read request.key from your store; errors are retried.
//!         let _ = reply.rows(Rows::one(r#"{"name":"bicycle"}"#));
//!     })?;
//!     // Whenever your application changes something, on any thread:
//!     server.handle().notify(&EntityKey::new("items", "100")?)?;
//!     std::io::stdin().read_line(&mut String::new())?; // it runs until you press Enter
//!     server.shutdown(Duration::from_secs(5));
//!     Ok(())
//! }
//! ```

mod adopt;
mod clock;
mod error;
mod files;
mod guest;
mod heard;
mod listener;
mod memory;
mod pool;
mod reactor;
mod refused;
mod resolver;
mod sockets;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

pub use entity_sync_core::{
    Audience, AudienceRule, Client, ClientId, Delivery, DrainOptions, Entities, EntityKey, EntityOptions, Hosts,
    Incident, Incoming, InvalidCloseCode, KeptMessage, LATENCY_BOUNDS, LatencyCounts, Misdeed, NodeCounters,
    NodeCounts, Origins, PassThrough, Payload, ReadError, Refusal, Request, RowError, Rows, Seed, Selector, SendError,
    ShardCounts, UnknownEntity, asks_for_snapshots,
};
use entity_sync_core::{Node, Timestamp};
pub use entity_sync_runtime::{Health, Part, Severity, Trouble};

pub use adopt::{AdoptError, AdoptFailure, Adopted};
use clock::Clock;
pub use error::StartError;
pub use files::raise_file_limit;
pub use guest::Guest;
use guest::{GuestWaker, Place};
use listener::{is_only_v6, listen, overlap};
pub use memory::memory_bytes;
pub use pool::{Pool, PoolConfig, PoolCounters};
use reactor::{Reactor, ReactorCounters};
pub use refused::Refused;
use resolver::Clocked;
pub use resolver::{Reply, Resolver};

/// What a [`Server`] listens to and how it behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses for WebSocket clients. Port 0 takes a free one, see [`Server::addresses`]. None at all serves only
    /// connections that are [adopted](Handle::adopt). `[::]` takes callers of IPv4 too, unless an address of IPv4 with the
    /// same port is also listed.
    pub listen: Vec<SocketAddr>,
    /// Threads that serve connections.
    pub reactors: NonZeroUsize,
    /// Shards without a reactor, for event loops of yours: see [`Handle::take_guest`].
    pub guest_shards: usize,
    /// Files that connections leave to the rest of the process (a store, an API, logs): `core.max_connections` is
    /// lowered to what the limit on open files allows beyond them. Half of the limit is reserved at most. See
    /// [`raise_file_limit`].
    pub reserved_files: usize,
    /// Where the server and what belongs to it report trouble: threads that have died, sources that can't be read.
    pub health: Health,
    /// Limits and policies.
    pub core: entity_sync_core::Config,
}

impl Config {
    /// One reactor per core of the machine, and the core's defaults with a random seed. What all clients together may make
    /// the node keep is a quarter of the memory for subscriptions, and a sixteenth each for secrets and for messages that
    /// have not come whole.
    pub fn new(listen: impl IntoIterator<Item = SocketAddr>) -> Self {
        let mut core = entity_sync_core::Config::new(random_seed());
        if let Some(memory) = memory_bytes() {
            core.max_total_subscription_bytes = memory / 4;
            core.max_total_secret_bytes = memory / 16;
            core.max_total_input_bytes = memory / 16;
        }
        core.http_date = Some(Arc::new(|| httpdate::fmt_http_date(SystemTime::now())));
        Self {
            listen: listen.into_iter().collect(),
            reactors: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            guest_shards: 1,
            reserved_files: 64,
            health: Health::default(),
            core,
        }
    }
}

/// Settles [`Hosts::Auto`]. What only this machine can reach is only called by names of this machine, unless a proxy is in front
/// of it, and then pages have origins of their own.
fn trust_local_names(config: &mut Config) {
    let is_local = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
    let rules = &mut config.core.upgrade;
    if rules.hosts == Hosts::Auto
        && rules.origins == Origins::Same
        && !config.listen.is_empty()
        && config.listen.iter().all(is_local)
    {
        rules.hosts = Hosts::Named(Vec::new());
    }
}

/// A running set of reactors. Dropping it stops them at once; [`drain`](Self::drain) is kinder.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    handle: Handle,
    reactors: Vec<ReactorThread>,
}

/// A way to a running server, from any thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    node: Node,
    clock: Clock,
    doors: Arc<[Door]>,
    next_door: Arc<AtomicUsize>,
    places: Arc<[Arc<Place>]>,
    stop: Arc<Stop>,
    health: Health,
}

/// What other threads know of a reactor.
#[derive(Debug)]
struct Door {
    inbox: Arc<adopt::Inbox>,
    waker: Arc<ReactorWaker>,
    counters: Arc<ReactorCounters>,
}

/// What the reactors have counted, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReactorCounts {
    /// Connections accepted from listeners.
    pub accepted: u64,
    /// Connections adopted.
    pub adopted: u64,
    /// Times that accepting had to wait because the process or the system was out of files or memory.
    pub out_of_files: u64,
    /// Times that accepting had to wait because of `max_upgrading` or `max_accepts_per_second`.
    pub accept_pauses: u64,
    /// Turns of the event loops.
    pub turns: u64,
}

/// How the reactors learn that it is time to go.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    requested: AtomicBool,
    /// How to end connections, and when to drop what is still connected. Without it, that is at once.
    drain: std::sync::OnceLock<(DrainOptions, Instant)>,
}

#[derive(Debug)]
struct ReactorThread {
    waker: Arc<ReactorWaker>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct ReactorWaker(mio::Waker);

impl Server {
    /// Listens, and serves clients until it is shut down or dropped.
    ///
    /// # Errors
    /// [`StartError`]: nothing is left running.
    pub fn start(mut config: Config, resolver: impl Resolver + 'static) -> Result<Self, StartError> {
        let count = config.reactors.get();
        trust_local_names(&mut config);
        config.core.on_refused_upgrade.get_or_insert_with(|| {
            Arc::new(|client, reason| {
                tracing::debug!(%client, reason = reason.name(), status = reason.status(), "upgrade refused");
            })
        });
        let mut addresses = Vec::new();
        let mut listeners: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
        if let Some((address, included)) = overlap(&config.listen) {
            return Err(StartError::ListenTwice { address, included });
        }
        for &address in &config.listen {
            let only_v6 = is_only_v6(address, &config.listen);
            let (bound, sockets) =
                listen(address, only_v6, count).map_err(|source| StartError::Listen { address, source })?;
            addresses.push(bound);
            for (of_reactor, socket) in listeners.iter_mut().zip(sockets) {
                of_reactor.push(socket);
            }
        }
        let mut polls = Vec::new();
        let mut wakers = Vec::new();
        for _ in 0..count {
            let poll = mio::Poll::new().map_err(StartError::Reactor)?;
            let waker = mio::Waker::new(poll.registry(), reactor::WAKER).map_err(StartError::Reactor)?;
            polls.push(poll);
            wakers.push(Arc::new(ReactorWaker(waker)));
        }
        // What the server itself needs is open by now.
        let files = files::files_left(config.reserved_files);
        if files == 0 {
            return Err(StartError::NoFiles);
        }
        config.core.max_connections = config.core.max_connections.min(files);
        let clock = Clock::start();
        let guest_wakers: Vec<Arc<GuestWaker>> = (0..config.guest_shards).map(|_| Arc::default()).collect();
        let of_reactors = wakers.iter().cloned().map(Waker::from);
        let of_guests = guest_wakers.iter().cloned().map(Waker::from);
        let (node, mut shards) = Node::new(
            config.core,
            Arc::new(Clocked { resolver, clock }),
            of_reactors.chain(of_guests).collect(),
        );
        let guest_shards = shards.split_off(count).into_iter().zip(guest_wakers);
        let stop: Arc<Stop> = Arc::default();
        let doors = wakers.iter().map(|waker| Door {
            inbox: Arc::default(),
            waker: waker.clone(),
            counters: Arc::default(),
        });
        let doors: Arc<[Door]> = doors.collect();
        let mut server = Self {
            addresses,
            handle: Handle {
                node,
                clock,
                doors: doors.clone(),
                next_door: Arc::default(),
                places: guest_shards
                    .map(|(shard, waker)| Arc::new(Place::new(shard, waker)))
                    .collect(),
                stop: stop.clone(),
                health: config.health.clone(),
            },
            reactors: Vec::new(),
        };
        let parts = shards.into_iter().zip(polls).zip(listeners).zip(wakers);
        for (index, (((shard, poll), listeners), waker)) in parts.enumerate() {
            let door = &doors[index];
            let (inbox, counters) = (door.inbox.clone(), door.counters.clone());
            let reactor = Reactor::new(shard, poll, listeners, inbox, counters, clock, stop.clone())
                .map_err(StartError::Reactor)?;
            let thread = entity_sync_runtime::spawn(format!("reactor-{index}"), &config.health, move || reactor.run())
                .map_err(StartError::Reactor)?;
            server.reactors.push(ReactorThread {
                waker,
                thread: Some(thread),
            });
        }
        Ok(server)
    }

    /// Where it listens, with the ports that were taken for port 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The way to it.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Stops accepting, ends connections as `options` say, sends each what it has queued before its close frame, and
    /// waits for them to leave, for `timeout` at most.
    pub fn drain(self, options: DrainOptions, timeout: Duration) {
        let now = Instant::now();
        // What can't be told as a moment is for ever.
        let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(1 << 32));
        // Set once, as this takes the server.
        let _ = self.handle.stop.drain.set((options, deadline));
        drop(self);
    }

    /// As [`drain`](Self::drain) with close code 1001, going away, for all at once.
    pub fn shutdown(self, timeout: Duration) {
        let mut options = DrainOptions::default();
        options.code = 1001;
        options.retry_within = Duration::ZERO;
        self.drain(options, timeout);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stop = &self.handle.stop;
        stop.requested.store(true, Ordering::SeqCst);
        for reactor in &self.reactors {
            reactor.waker.wake_by_ref();
        }
        for place in &*self.handle.places {
            place.wake();
        }
        for reactor in &mut self.reactors {
            if let Some(thread) = reactor.thread.take() {
                // A reactor that panicked has said so on standard error.
                let _ = thread.join();
            }
        }
        // Guests that are not driven any more can't be waited for, but for as long as was said.
        let deadline = self.handle.stop.deadline();
        for place in &*self.handle.places {
            place.wait(deadline);
        }
    }
}

impl Handle {
    /// The entity changed: every subscriber is pushed rows of a read that begins after this call. Never blocks for long,
    /// and does nothing if nobody is subscribed.
    ///
    /// # Errors
    /// [`UnknownEntity`] if entities are registered and this is none of them.
    pub fn notify(&self, key: &EntityKey) -> Result<(), UnknownEntity> {
        let span = tracing::trace_span!("notify", entity = key.entity(), id = key.id());
        let _entered = span.enter();
        tracing::trace!("notified");
        self.node.notify(self.clock.now(), key)
    }

    /// As [`notify`](Self::notify) for each of them, or for none if one is of an unknown entity.
    ///
    /// # Errors
    /// [`UnknownEntity`], of the first such key: nothing was done.
    pub fn notify_many<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a EntityKey, IntoIter: Clone>,
    ) -> Result<(), UnknownEntity> {
        let keys = keys.into_iter();
        if let Some(key) = keys.clone().find(|key| !self.is_entity(key.entity())) {
            return self.notify(key);
        }
        keys.clone().try_for_each(|key| self.notify(key))
    }

    /// Counts an upgrade request that was refused by an HTTP stack in front of [`adopt`](Self::adopt).
    pub fn count_refused_upgrade(&self, reason: Refusal) {
        self.node.count_refused_upgrade(reason);
    }

    /// Whether there is an entity of this name.
    pub fn is_entity(&self, name: &str) -> bool {
        self.node.is_entity(name)
    }

    /// Reads again whatever anyone is subscribed to: after a gap in what tells of changes, such as a connection to a
    /// database that was lost for a while.
    pub fn reread_all(&self) {
        self.node.reread_all(self.clock.now());
    }

    /// Reads again for those whom `selector` names, as when what they may see has changed.
    pub fn reread(&self, selector: &Selector) {
        self.node.reread(self.clock.now(), selector);
    }

    /// Ends subscriptions of those whom `selector` names, as if they had unsubscribed.
    pub fn unsubscribe(&self, selector: &Selector) {
        self.node.unsubscribe(selector);
    }

    /// Ends the connections of those whom `selector` names, with a close frame behind what they have queued.
    ///
    /// # Errors
    /// [`InvalidCloseCode`]: nothing was done.
    pub fn disconnect(&self, selector: &Selector, code: u16, reason: &str) -> Result<(), InvalidCloseCode> {
        self.node.disconnect(selector, code, reason)
    }

    /// A way to one client, whether it is still there or not.
    pub fn client(&self, id: ClientId) -> Client {
        self.node.client(id)
    }

    /// Gives a connection that was accepted elsewhere to one of the reactors, in turn: how an HTTP stack of yours serves
    /// clients here. It counts against the limits as if it had been accepted, and over them it is dropped.
    ///
    /// # Errors
    /// [`AdoptError`], with the connection in it.
    pub fn adopt(&self, mut adopted: Adopted) -> Result<(), AdoptError> {
        let first = self.next_door.fetch_add(1, Ordering::Relaxed);
        for number in 0..self.doors.len() {
            let door = &self.doors[first.wrapping_add(number) % self.doors.len()];
            match door.inbox.push(adopted) {
                Ok(()) => {
                    door.waker.wake_by_ref();
                    return Ok(());
                }
                // Its reactor has died; another one may go on.
                Err(error) if matches!(error.reason, AdoptFailure::Stopped) => {
                    adopted = error.adopted;
                }
                Err(error) => return Err(error),
            }
        }
        Err(AdoptError {
            adopted,
            reason: AdoptFailure::Stopped,
        })
    }

    /// A shard for an event loop of yours, for connections that can't be [adopted](Self::adopt) because they are more than
    /// a socket. `None` if all [`guest_shards`](Config::guest_shards) are taken, or the server is being shut down.
    pub fn take_guest(&self) -> Option<Guest> {
        self.places.iter().find_map(|it| it.take(self.clock, &self.stop))
    }

    /// Whether another connection would be served, as of now: there are fewer than `max_connections`, and the server is
    /// not being shut down.
    pub fn has_room(&self) -> bool {
        !self.stop.is_requested() && self.node.has_room()
    }

    /// The node whose shards the reactors drive, as for a bus that makes it one of a cluster.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Which of the server's parts are in trouble: its threads, and what reports to it besides.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Tells the time that the reactors go by: what goes with [`node`](Self::node).
    pub fn clock(&self) -> impl Fn() -> Timestamp + Send + Sync + 'static {
        let clock = self.clock;
        move || clock.now()
    }

    /// How many audiences of entities have subscribers or a running read.
    pub fn flights(&self) -> usize {
        self.node.flights()
    }

    /// What the node counts.
    pub fn counters(&self) -> &NodeCounters {
        self.node.counters()
    }

    /// What the shards have counted, all together.
    pub fn shard_counts(&self) -> ShardCounts {
        let mut sum = ShardCounts::default();
        self.node.shard_counters().for_each(|it| sum += it.snapshot());
        sum
    }

    /// How long pushes have taken, from notify to written.
    pub fn latency(&self) -> LatencyCounts {
        self.node.latency()
    }

    /// What the reactors have counted, all together.
    pub fn reactor_counts(&self) -> ReactorCounts {
        let mut sum = ReactorCounts::default();
        self.doors.iter().for_each(|door| door.counters.add_to(&mut sum));
        sum
    }

    /// The limits and policies in force, with `max_connections` as far as there are files for it.
    pub fn config(&self) -> &entity_sync_core::Config {
        self.node.config()
    }
}

impl Stop {
    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// How to end connections, while there is time for it.
    pub(crate) fn drain(&self) -> Option<DrainOptions> {
        self.drain.get().map(|&(options, _)| options)
    }

    pub(crate) fn time_left(&self) -> Duration {
        self.deadline().saturating_duration_since(Instant::now())
    }

    fn deadline(&self) -> Instant {
        self.drain.get().map_or_else(Instant::now, |&(_, deadline)| deadline)
    }
}

impl Wake for ReactorWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // It fails only if the eventfd is gone, and with it the reactor.
        let _ = self.0.wake();
    }
}

/// Core has no entropy of its own.
fn random_seed() -> Seed {
    let half = || {
        getrandom::u64().unwrap_or_else(|_| {
            // Without the kernel's entropy, what the standard library could get.
            use std::hash::{BuildHasher, Hasher};
            std::hash::RandomState::new().build_hasher().finish()
        })
    };
    Seed(half(), half())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_this_machine_reaches_is_called_by_its_names() {
        let hosts = |listen: &[&str], change: fn(&mut Config)| {
            let mut config = Config::new(listen.iter().map(|it| it.parse().expect("an address")));
            change(&mut config);
            trust_local_names(&mut config);
            config.core.upgrade.hosts
        };
        let named = Hosts::Named(Vec::new());
        assert_eq!(hosts(&["127.0.0.1:0", "[::1]:0"], |_| {}), named);
        assert_eq!(hosts(&["[::ffff:127.0.0.1]:0"], |_| {}), named);
        for listen in [&["127.0.0.1:0", "0.0.0.0:0"][..], &["192.0.2.1:0"], &[]] {
            assert_eq!(hosts(listen, |_| {}), Hosts::Auto, "{listen:?}");
        }
        assert_eq!(
            hosts(&["127.0.0.1:0"], |it| it.core.upgrade.origins = Origins::Any),
            Hosts::Auto
        );
        assert_eq!(
            hosts(&["127.0.0.1:0"], |it| it.core.upgrade.hosts = Hosts::Any),
            Hosts::Any
        );
    }
}
