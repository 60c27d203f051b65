//! [`Broker`]: forwards what nodes publish to all that are connected to it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use entity_sync_bus::{Health, LogLimit};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::config::{ZmqConfig, check_local};
use crate::curve::{CurveServer, check_curve};
use crate::endpoint::Endpoint;
use crate::error::ZmqError;
use crate::monitor::{Event, Monitor};
use crate::sockets::{self, Purpose, Security};
use crate::zap::Doorman;

const WAKER: Token = Token(0);
const SOCKET: Token = Token(1);

/// Messages that are forwarded one way before the other way has its turn.
const BUDGET: usize = 256;

/// After an error of the system's, before it is asked again.
const PAUSE: Duration = Duration::from_millis(10);

/// Where a [`Broker`] binds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BrokerConfig {
    /// Where nodes publish.
    pub frontend: Endpoint,
    /// Where nodes hear.
    pub backend: Endpoint,
    /// Encrypts connections, and admits only whom it lists.
    pub curve: Option<CurveServer>,
    /// As [`ZmqConfig::allow_unauthenticated`], for both sides.
    pub allow_unauthenticated: bool,
    /// Messages that wait for one receiver which doesn't take them. More are dropped, which it notices.
    pub send_queue: u32,
    /// Where a thread that dies is reported.
    pub health: Health,
}

/// A forwarder on a thread of its own: an XSUB socket where nodes publish, and an XPUB socket where they hear.
///
/// It keeps nothing, so that it may be killed and started again; and several may be used at once
/// ([`ZmqConfig::brokers`](crate::ZmqConfig::brokers)). Dropping it stops it.
#[derive(Debug)]
pub struct Broker {
    frontend: String,
    backend: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What a [`Broker`] has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerCounts {
    /// Messages that were given to the backend.
    pub forwarded: u64,
    /// Subscriptions that were given to the frontend: those of several nodes for the same topic count once.
    pub subscriptions: u64,
    /// What nodes of a cluster don't send: messages of several parts, or something else than subscriptions.
    pub dropped: u64,
}

struct Shared {
    waker: mio::Waker,
    is_stopping: AtomicBool,
    forwarded: AtomicU64,
    subscriptions: AtomicU64,
    dropped: AtomicU64,
}

impl BrokerConfig {
    /// With defaults for the rest.
    pub fn new(frontend: Endpoint, backend: Endpoint) -> Self {
        Self {
            frontend,
            backend,
            curve: None,
            allow_unauthenticated: false,
            send_queue: ZmqConfig::default().send_queue,
            health: Health::default(),
        }
    }
}

impl Broker {
    /// Binds, and forwards until it is stopped or dropped.
    ///
    /// # Errors
    /// [`ZmqError`]: nothing is left running.
    pub fn start(config: &BrokerConfig) -> Result<Self, ZmqError> {
        config.frontend.check_bind()?;
        config.backend.check_bind()?;
        if config.curve.is_none() && !config.allow_unauthenticated {
            check_local([&config.frontend, &config.backend])?;
        }
        let context = zmq::Context::new();
        let server = config.curve.as_ref();
        if server.is_some() {
            check_curve()?;
        }
        let doorman = server
            .map(|server| Doorman::start(&context, &server.allowed, &config.health))
            .transpose()?;
        let security = || server.map_or(Security::None, Security::Server);
        let options = ZmqConfig {
            send_queue: config.send_queue,
            ..ZmqConfig::default()
        };
        let frontend = sockets::open(&context, zmq::XSUB, Purpose::Subscribe, &options, security())?;
        let backend = sockets::open(&context, zmq::XPUB, Purpose::Publish, &options, security())?;
        // Before they bind, so that nobody is refused unseen.
        let monitors = match server {
            Some(_) => vec![
                Monitor::attach(&context, &frontend, "frontend")?,
                Monitor::attach(&context, &backend, "backend")?,
            ],
            None => Vec::new(),
        };
        let bound_frontend = sockets::bind(&frontend, &config.frontend)?;
        let bound_backend = sockets::bind(&backend, &config.backend)?;
        let poll = Poll::new().map_err(ZmqError::Thread)?;
        let waker = mio::Waker::new(poll.registry(), WAKER).map_err(ZmqError::Thread)?;
        let of_monitors = monitors.iter().map(Monitor::fd).collect::<Result<Vec<_>, _>>()?;
        for fd in [frontend.get_fd()?, backend.get_fd()?].into_iter().chain(of_monitors) {
            poll.registry()
                .register(&mut SourceFd(&fd), SOCKET, Interest::READABLE)
                .map_err(ZmqError::Thread)?;
        }
        let shared = Arc::new(Shared {
            waker,
            is_stopping: AtomicBool::new(false),
            forwarded: AtomicU64::new(0),
            subscriptions: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let forwarder = Forwarder {
            frontend,
            backend,
            monitors,
            refusals: LogLimit::default(),
            _doorman: doorman,
            message: zmq::Message::new(),
            shared: shared.clone(),
        };
        let thread = entity_sync_runtime::spawn("entity-sync brk", &config.health, move || forwarder.run(poll))
            .map_err(ZmqError::Thread)?;
        Ok(Self {
            frontend: bound_frontend,
            backend: bound_backend,
            shared,
            thread: Some(thread),
        })
    }

    /// Where nodes publish, with the port that was taken for port 0.
    pub fn frontend(&self) -> &str {
        &self.frontend
    }

    /// Where nodes hear, with the port that was taken for port 0.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// What it has counted.
    pub fn counts(&self) -> BrokerCounts {
        BrokerCounts {
            forwarded: self.shared.forwarded.load(Ordering::Relaxed),
            subscriptions: self.shared.subscriptions.load(Ordering::Relaxed),
            dropped: self.shared.dropped.load(Ordering::Relaxed),
        }
    }

    /// Whether its thread still runs. It ends by itself only if it panics.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|it| !it.is_finished())
    }

    /// Closes its sockets and waits until they are. What has not been sent is lost, and nodes notice.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        // It fails only if the eventfd is gone, and with it the thread.
        let _ = self.shared.waker.wake();
        if let Some(thread) = self.thread.take() {
            // If it has panicked, it has said so.
            let _ = thread.join();
        }
    }
}

struct Forwarder {
    frontend: zmq::Socket,
    backend: zmq::Socket,
    /// Of both, with CURVE.
    monitors: Vec<Monitor>,
    refusals: LogLimit,
    /// It answers for the sockets above, and so is dropped after them.
    _doorman: Option<Doorman>,
    message: zmq::Message,
    shared: Arc<Shared>,
}

impl Forwarder {
    fn run(mut self, mut poll: Poll) {
        let mut events = Events::with_capacity(4);
        let failures = LogLimit::default();
        while !self.shared.is_stopping.load(Ordering::SeqCst) {
            // Sending to a socket may swallow what its fd was to tell. So none is waited for until both had nothing at all
            // and nothing was sent meanwhile.
            let forwarded = self.forward_messages();
            let subscribed = self.forward_subscriptions();
            self.look_at_refusals();
            if forwarded || subscribed {
                continue;
            }
            match poll.poll(&mut events, None) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    if let Some(skipped) = failures.happened() {
                        tracing::error!(%error, skipped, "the broker can't wait for its sockets");
                    }
                    std::thread::sleep(PAUSE);
                }
                _ => {}
            }
        }
    }

    fn look_at_refusals(&mut self) {
        for monitor in &mut self.monitors {
            while let Some(event) = monitor.next() {
                if let Event::Refused(endpoint) = event
                    && let Some(skipped) = self.refusals.happened()
                {
                    tracing::warn!(endpoint, skipped, "a connection was refused: are the keys right?");
                }
            }
        }
    }

    /// Says whether there were any.
    fn forward_messages(&mut self) -> bool {
        let mut forwarded = 0;
        let mut dropped = 0;
        for _ in 0..BUDGET {
            let Some(is_whole) = receive_whole(&self.frontend, &mut self.message) else {
                break;
            };
            // With one that does not take them, an XPUB socket drops messages, and so never waits.
            let message = std::mem::replace(&mut self.message, zmq::Message::new());
            match is_whole && self.backend.send(message, zmq::DONTWAIT).is_ok() {
                true => forwarded += 1,
                false => dropped += 1,
            }
        }
        self.shared.forwarded.fetch_add(forwarded, Ordering::Relaxed);
        self.shared.dropped.fetch_add(dropped, Ordering::Relaxed);
        forwarded + dropped > 0
    }

    /// Says whether there were any.
    fn forward_subscriptions(&mut self) -> bool {
        let mut subscriptions = 0;
        let mut dropped = 0;
        for _ in 0..BUDGET {
            let Some(is_whole) = receive_whole(&self.backend, &mut self.message) else {
                break;
            };
            // Anything else would go to all who publish.
            let is_subscription = matches!(self.message.first(), Some(0 | 1));
            let message = std::mem::replace(&mut self.message, zmq::Message::new());
            match is_whole && is_subscription && self.frontend.send(message, zmq::DONTWAIT).is_ok() {
                true => subscriptions += 1,
                false => dropped += 1,
            }
        }
        self.shared.subscriptions.fetch_add(subscriptions, Ordering::Relaxed);
        self.shared.dropped.fetch_add(dropped, Ordering::Relaxed);
        subscriptions + dropped > 0
    }
}

/// Receives a message, and says whether it was one of a single part. `None` if there is none.
fn receive_whole(socket: &zmq::Socket, message: &mut zmq::Message) -> Option<bool> {
    let mut is_whole = true;
    loop {
        match socket.recv(message, zmq::DONTWAIT) {
            Ok(()) if message.get_more() => is_whole = false,
            Ok(()) => return Some(is_whole),
            Err(zmq::Error::EINTR) => {}
            Err(_) => return None,
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}
