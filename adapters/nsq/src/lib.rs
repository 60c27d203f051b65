//! Nodes of Entity Sync over [NSQ](https://nsq.io), in one cluster with nodes of the Go original if there are any.
//!
//! [`Nsq`] is a [`PlainBus`]: the topic is the entity's name, the body the original's JSON.
//!
//! ```no_run
//! use entity_sync_nsq::{Config, Nsq};
//!
//! let nsq = Nsq::new(Config::new(["127.0.0.1:4150"]))?;
//! let status = nsq.status();
//! // Hand `nsq` to the server; `status` tells what goes on with each nsqd.
//! # Ok::<(), entity_sync_nsq::StartError>(())
//! ```
//!
//! # On the wire
//!
//! For each entity and nsqd there is one connection that subscribes to a channel of its own, `<random uuid>#ephemeral`, so
//! that every node is given every message. Another connection is made for the first message that is published, and kept.
//! Nodes of either kind can't tell each other apart, but nsqd can: connections introduce themselves as `entity-sync/…`
//! instead of `go-nsq/1.0.7`, and a channel's uuid is new for each connection, not only for each process. (nsqd may take a
//! connection for alive that is not. With the same name for its successor, some messages would be given to the dead one
//! until that is noticed.)
//!
//! # What NSQ promises, and what it doesn't
//!
//! - A message that nsqd has confirmed is given to every channel that exists then, perhaps more than once and perhaps not
//!   in order; neither matters, since messages only say what to read.
//! - An ephemeral channel ends with its connection, and what waited in it is lost. So whatever is subscribed to is read
//!   again when all topics are heard of again; until then the bus counts as disconnected. While it is, a node's own
//!   changes are done locally and published again.
//! - An ephemeral channel holds 10,000 messages (`--mem-queue-size`), and nsqd drops what comes on top **without telling**.
//!   So a node has at most so many messages of a topic on their way (`PlainConfig::max_unechoed`), and what nsqd has
//!   confirmed and not brought back to it within 5 s is read again and published again. What the channel of *another* node
//!   drops, or one of the original's, nobody can know: only `PlainConfig::sweep_every` finds that.
//! - A node of the original applies nothing until nsqd sends it, and after nsqd restarts it hears nothing for about 60 s.
//!   nsqd keeps messages for the first channel of a topic only, and ours are back sooner. So what a node hears in the 65 s
//!   after its return, it publishes again once those of the original are back. They read nothing again by themselves.
//! - Several nsqds: each message is published to all that can be reached, and every entity is heard of at each of them. The
//!   bus is connected while one of them is heard. What the others did not get while they were down, they are given when they
//!   are back, 10,000 messages at most. Such messages have a tag more than those of the original, by which a node that hears
//!   several nsqds takes each once. An nsqd that is gone for good should be taken off the list. nsqlookupd is not asked.
//!
//! TLS, AUTH and compression are not supported; nsqds that insist on them are reported as such.
//!
//! # Why a client of its own
//!
//! `tokio-nsq` 0.14, of 2023, panics when an nsqd is gone for 15 minutes, sets aside whatever a frame's length claims, takes
//! the harmless `E_FIN_FAILED` for fatal, doesn't tell when a topic is heard of again, and brings rustls 0.19 and hyper 0.14.
//! What a node needs is eight commands and three frames, and the moment when all topics are heard of again decides here
//! whether updates are lost.

mod backoff;
mod consumer;
mod error;
mod link;
mod owed;
mod producer;
mod run;
mod status;
mod tag;
pub mod wire;

use std::fmt;
use std::io;
use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use entity_sync_bus::{BadTopic, NoneToSpare, PlainBus, PlainInbox, Receipt, STOP_GRACE};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use owed::Owed;
use producer::{MAX_WAITING, Publish};
use run::{Start, Stop};
use status::Shared;
pub use status::{Counts, NsqdStatus, Status};
use tag::Tags;
use wire::Topic;

/// Where nsqd is, and how to deal with it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Addresses of nsqds' TCP ports, `host:4150` or `tcp://host:4150`. Names are resolved again for each connection.
    pub nsqd: Vec<String>,
    /// How often nsqd shows that it is there, in whole milliseconds from 1 s to 60 s. After two intervals in which nothing
    /// came, a connection is given up. By default 30 s, as the original.
    pub heartbeat: Duration,
    /// How long nsqd may take to accept a connection, to answer, and to take anything of what is sent to it. By default 5 s.
    pub timeout: Duration,
    /// How long to wait, at first and at most, until a connection is tried again. By default 100 ms and 30 s.
    pub backoff: RangeInclusive<Duration>,
    /// The longest body of a message. By default 1 MiB, as nsqd's `--max-msg-size`.
    pub max_message_bytes: usize,
    /// How many messages nsqd may send before the first is dealt with, for each entity. By default 200: with 1, as the
    /// original takes them, each costs a round trip, and in a burst nsqd drops what its channel does not hold.
    pub max_in_flight: NonZeroU16,
}

impl Config {
    /// These nsqds, and the defaults.
    pub fn new(nsqd: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            nsqd: nsqd.into_iter().map(Into::into).collect(),
            heartbeat: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            backoff: Duration::from_millis(100)..=Duration::from_secs(30),
            max_message_bytes: 1024 * 1024,
            max_in_flight: NonZeroU16::MIN.saturating_add(199),
        }
    }
}

/// A bus over NSQ. Its connections live on a thread of their own, and end with it.
pub struct Nsq {
    shared: Arc<Shared>,
    /// Of messages for several nsqds.
    tags: Tags,
    /// `None` once it is stopped.
    thread: Option<Thread>,
}

/// The ways to the thread.
struct Thread {
    start: Option<oneshot::Sender<Start>>,
    /// Of each nsqd.
    waiting: Vec<mpsc::Sender<Publish>>,
    stop: watch::Sender<Option<Instant>>,
    /// Is closed at its end.
    ended: std::sync::mpsc::Receiver<()>,
}

/// Why there is no bus.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// No nsqd was named.
    NoAddress,
    /// An address that is none, or is there twice.
    Address {
        /// The address.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A setting that can't be.
    Setting {
        /// Its name.
        name: &'static str,
        /// What is allowed.
        allowed: &'static str,
    },
    /// The system has no thread or no event queue to spare.
    System(io::Error),
}

/// What connections say of themselves, in the original's order.
#[derive(Serialize)]
struct Identity<'a> {
    client_id: &'a str,
    deflate: bool,
    deflate_level: u8,
    feature_negotiation: bool,
    heartbeat_interval: u64,
    hostname: &'a str,
    long_id: &'a str,
    msg_timeout: u32,
    output_buffer_size: i32,
    output_buffer_timeout: i32,
    sample_rate: u8,
    short_id: &'a str,
    snappy: bool,
    tls_v1: bool,
    user_agent: &'a str,
}

impl Nsq {
    /// A bus that connects once it is [started](PlainBus::start).
    ///
    /// # Errors
    /// [`StartError`] if the configuration can't be right, or the system has no thread to spare. An nsqd that can't be
    /// reached is no error: it is tried again.
    pub fn new(config: Config) -> Result<Self, StartError> {
        let config = config.check()?;
        let identity = identity(&hostname(), config.heartbeat, USER_AGENT);
        let shared = Arc::new(Shared::new(config, identity));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            // For names, of which hanging look-ups must not fill the process with threads.
            .max_blocking_threads(8)
            .build()
            .map_err(StartError::System)?;
        let (start, started) = oneshot::channel();
        let channels = shared.nsqds.iter().map(|_| mpsc::channel(MAX_WAITING));
        let (waiting, to_publish) = channels.collect::<(Vec<_>, Vec<_>)>();
        let (stop, stopped) = watch::channel(None);
        let (end, ended) = std::sync::mpsc::channel();
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("entity-sync-nsq".into())
            .spawn(move || {
                runtime.block_on(run::run(of_thread, started, to_publish, Stop(stopped)));
                // A name that is still being resolved is not waited for.
                runtime.shutdown_background();
                drop(end);
            })
            .map_err(StartError::System)?;
        let start = Some(start);
        let thread = Some(Thread {
            start,
            waiting,
            stop,
            ended,
        });
        let tags = Tags::new(consumer::random());
        Ok(Self { shared, tags, thread })
    }

    /// What goes on.
    pub fn status(&self) -> Status {
        Status(self.shared.clone())
    }
}

impl PlainBus for Nsq {
    fn check_topic(&self, topic: &str) -> Result<(), BadTopic> {
        let bad = |why: wire::NameError| BadTopic {
            topic: topic.into(),
            reason: why.to_string(),
        };
        Topic::new(topic).map(|_| ()).map_err(bad)
    }

    fn start(&mut self, topics: &[String], inbox: PlainInbox) {
        if let Some(start) = self.thread.as_mut().and_then(|it| it.start.take()) {
            let topics = topics.to_vec();
            // It fails only if the thread has ended, and then so has the process, nearly.
            let _ = start.send(Start { topics, inbox });
        }
    }

    fn publish(&mut self, topic: &str, body: &[u8], receipt: Receipt) {
        let owed = Arc::new(Owed::new(receipt, self.shared.clone()));
        let topic = match Topic::new(topic) {
            Ok(topic) => topic,
            Err(why) => {
                self.shared.unfit(topic, &why);
                return owed.refuse(true);
            }
        };
        let is_one_of_several = self.shared.nsqds.len() > 1;
        let tagged = is_one_of_several.then(|| self.tags.tag(body)).flatten();
        let sent = tagged.as_deref().unwrap_or(body);
        if sent.is_empty() || sent.len() > self.shared.config.max_message_bytes {
            let max = self.shared.config.max_message_bytes;
            self.shared.unfit(
                topic.as_str(),
                &format_args!("its body has {} bytes, and NSQ takes 1 to {max}", sent.len()),
            );
            return owed.refuse(true);
        }
        let command = |body: &[u8]| {
            let mut command = Vec::with_capacity(topic.as_str().len() + body.len() + 9);
            wire::publish(&mut command, &topic, body);
            Arc::<[u8]>::from(command)
        };
        let publish = Publish {
            command: command(sent),
            kind: if tagged.is_some() {
                command(body)
            } else {
                Arc::default()
            },
            owed: Some(owed),
        };
        let all = self.thread.iter().flat_map(|it| &it.waiting);
        let refusing = all.filter(|it| it.try_send(publish.clone()).is_err()).count();
        // Where there is no room anywhere, the receipt is dropped, and it is published again.
        if refusing < self.shared.nsqds.len() {
            (self.shared.counters.not_kept).fetch_add(refusing as u64, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn stop(&mut self, timeout: Duration) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        let Thread {
            start,
            waiting,
            stop,
            ended,
        } = thread;
        let deadline = Instant::now().checked_add(timeout);
        stop.send_replace(deadline.or_else(|| Instant::now().checked_add(FOREVER)));
        drop((start, waiting));
        // A little longer than the thread gives itself.
        let _ = ended.recv_timeout(timeout.min(FOREVER) + STOP_GRACE);
    }
}

/// Longer than anybody waits.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const USER_AGENT: &str = concat!("entity-sync/", env!("CARGO_PKG_VERSION"));

impl Config {
    /// The same, with plain addresses.
    fn check(mut self) -> Result<Self, StartError> {
        for address in &mut self.nsqd {
            if let Some(plain) = address.strip_prefix("tcp://") {
                *address = plain.to_owned();
            }
        }
        if self.nsqd.is_empty() {
            return Err(StartError::NoAddress);
        }
        for (number, address) in self.nsqd.iter().enumerate() {
            let bad = |reason| {
                let address = address.clone();
                Err(StartError::Address { address, reason })
            };
            match address.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|it| it > 0) => {}
                _ => return bad("it should be a host and a port, such as 127.0.0.1:4150"),
            }
            if self.nsqd[..number].contains(address) {
                return bad("it is there twice: name each nsqd once");
            }
        }
        let setting = |name, is_right, allowed| {
            if is_right {
                Ok(())
            } else {
                Err(StartError::Setting { name, allowed })
            }
        };
        let second = Duration::from_secs(1);
        let heartbeats = second..=60 * second;
        setting("heartbeat", heartbeats.contains(&self.heartbeat), "1 s to 60 s")?;
        let timeouts = Duration::from_millis(1)..=3_600 * second;
        setting("timeout", timeouts.contains(&self.timeout), "1 ms to 1 h")?;
        let (first, last) = (*self.backoff.start(), *self.backoff.end());
        let is_right = first >= Duration::from_millis(1) && first <= last && last <= 3_600 * second;
        setting("backoff", is_right, "1 ms to 1 h, first the shorter wait")?;
        let sizes = 64..=64 * 1024 * 1024;
        setting(
            "max_message_bytes",
            sizes.contains(&self.max_message_bytes),
            "64 bytes to 64 MiB",
        )?;
        Ok(self)
    }
}

/// The machine's name, as the original asks for it.
fn hostname() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

fn identity(hostname: &str, heartbeat: Duration, user_agent: &str) -> Vec<u8> {
    let short = hostname.split('.').next().unwrap_or_default();
    let identity = Identity {
        client_id: short,
        deflate: false,
        deflate_level: 6,
        feature_negotiation: true,
        heartbeat_interval: u64::try_from(heartbeat.as_millis()).unwrap_or(u64::MAX),
        hostname,
        long_id: hostname,
        msg_timeout: 0,
        // None: with several messages in flight, nsqd would hold back a lone one for as long as this.
        output_buffer_size: -1,
        output_buffer_timeout: -1,
        sample_rate: 0,
        short_id: short,
        snappy: false,
        tls_v1: false,
        user_agent,
    };
    // Nothing in it can fail to be JSON; nsqd would say so.
    serde_json::to_vec(&identity).unwrap_or_default()
}

impl fmt::Debug for Nsq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nsq").field("status", &self.status()).finish()
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress => f.write_str("no nsqd is named; give the address of one, such as 127.0.0.1:4150"),
            Self::Address { address, reason } => write!(f, "{address:?} is no address of an nsqd: {reason}"),
            Self::Setting { name, allowed } => write!(f, "NSQ's {name} is out of range; allowed is {allowed}"),
            Self::System(error) => NoneToSpare { whom: "NSQ", error }.fmt(f),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System(error) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
