//! Entity Sync on epoll: one reactor per thread, each with its own listener, connections and
//! [`Shard`](entity_sync_core::Shard).
//!
//! ```no_run
//! use entity_sync_mio::{Config, EntityKey, Reply, Request, Rows, Server};
//!
//! let server = Server::start(Config::new(["127.0.0.1:8080".parse()?]), |request: Request, reply: Reply| {
//!     // Read request.key from your store; errors are retried.
//!     let _ = reply.rows(Rows::one(r#"{"id":"100"}"#));
//! })?;
//! // Whenever your application changes something, on any thread:
//! server.handle().notify(&EntityKey::new("items", "100")?);
//! # server.shutdown(std::time::Duration::from_secs(5));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod clock;
mod listener;
mod pool;
mod reactor;
mod resolver;
mod sockets;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use entity_sync_core::Node;
pub use entity_sync_core::{Audience, EntityKey, NodeCounters, Origins, ReadError, Request, RowError, Rows, Seed};

use clock::Clock;
use listener::listen;
pub use pool::{Pool, PoolConfig, PoolCounters};
use reactor::Reactor;
use resolver::Clocked;
pub use resolver::{Reply, Resolver};

/// What a [`Server`] listens to and how it behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses for WebSocket clients. Port 0 takes a free one, see [`Server::addresses`].
    pub listen: Vec<SocketAddr>,
    /// Threads that serve connections.
    pub reactors: NonZeroUsize,
    /// Limits and policies.
    pub core: entity_sync_core::Config,
}

impl Config {
    /// One reactor per core of the machine, and the core's defaults with a random seed.
    pub fn new(listen: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self {
            listen: listen.into_iter().collect(),
            reactors: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            core: entity_sync_core::Config::new(random_seed()),
        }
    }
}

/// A running set of reactors. Dropping it stops them at once; [`shutdown`](Self::shutdown) is kinder.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    handle: Handle,
    stop: Arc<Stop>,
    reactors: Vec<ReactorThread>,
}

/// Notifies a running server, from any thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    node: Node,
    clock: Clock,
}

/// Why a server did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// No address to listen to was given.
    NoAddress,
    /// An address can't be listened to.
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A reactor could not be set up: out of files, memory or threads.
    Reactor(io::Error),
}

/// How the reactors learn that it is time to go.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    requested: AtomicBool,
    /// When to drop what is still connected. `None` is at once.
    deadline: std::sync::OnceLock<Instant>,
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
    pub fn start(config: Config, resolver: impl Resolver + 'static) -> Result<Self, StartError> {
        if config.listen.is_empty() {
            return Err(StartError::NoAddress);
        }
        let count = config.reactors.get();
        let mut addresses = Vec::new();
        let mut listeners: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
        for &address in &config.listen {
            let (bound, sockets) = listen(address, count).map_err(|source| StartError::Listen { address, source })?;
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
        let clock = Clock::start();
        let (node, shards) = Node::new(
            config.core,
            Arc::new(Clocked { resolver, clock }),
            wakers.iter().cloned().map(Waker::from).collect(),
        );
        let mut server = Self {
            addresses,
            handle: Handle { node, clock },
            stop: Arc::default(),
            reactors: Vec::new(),
        };
        let parts = shards.into_iter().zip(polls).zip(listeners).zip(wakers);
        for (index, (((shard, poll), listeners), waker)) in parts.enumerate() {
            let reactor =
                Reactor::new(shard, poll, listeners, clock, server.stop.clone()).map_err(StartError::Reactor)?;
            let thread = std::thread::Builder::new()
                .name(format!("reactor-{index}"))
                .spawn(move || reactor.run())
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

    /// The way to notify it.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Stops accepting, sends what is queued and a close frame (1001) to each client, and waits for them to leave, for
    /// `timeout` at most.
    pub fn shutdown(self, timeout: Duration) {
        // Set once, as this takes the server.
        let _ = self.stop.deadline.set(Instant::now() + timeout);
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.requested.store(true, Ordering::SeqCst);
        for reactor in &self.reactors {
            reactor.waker.wake_by_ref();
        }
        for reactor in &mut self.reactors {
            if let Some(thread) = reactor.thread.take() {
                // A reactor that panicked has said so on standard error.
                let _ = thread.join();
            }
        }
    }
}

impl Handle {
    /// The entity changed: every subscriber is pushed rows of a read that begins after this call. Never blocks for long,
    /// and does nothing if nobody is subscribed.
    pub fn notify(&self, key: &EntityKey) {
        self.node.notify(self.clock.now(), key);
    }

    /// How many audiences of entities have subscribers or a running read.
    pub fn flights(&self) -> usize {
        self.node.flights()
    }

    /// What the node has counted.
    pub fn counters(&self) -> &NodeCounters {
        self.node.counters()
    }
}

impl Stop {
    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    pub(crate) fn time_left(&self) -> Duration {
        self.deadline.get().map_or(Duration::ZERO, |deadline| {
            deadline.saturating_duration_since(Instant::now())
        })
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

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress => f.write_str("no address to listen to; give at least one"),
            Self::Listen { address, source } if source.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "can't listen to {address}: another program does already; stop it or choose another port"
            ),
            Self::Listen { address, source } => write!(f, "can't listen to {address}: {source}"),
            Self::Reactor(source) => write!(f, "can't set up a reactor: {source}"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoAddress => None,
            Self::Listen { source, .. } | Self::Reactor(source) => Some(source),
        }
    }
}

/// The README's programs compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
