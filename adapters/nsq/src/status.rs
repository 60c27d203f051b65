//! [`Status`]: what goes on, for whoever wants to know. [`Shared`]: what the connections share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use entity_sync_bus::{LogLimit, Part, PlainInbox, Severity};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::Config;
use crate::error::{Answer, SessionError};
use crate::tag::Seen;

/// What an [`Nsq`](crate::Nsq) does and has done, from any thread and for as long as you like. Cheap to clone.
#[derive(Clone)]
pub struct Status(pub(crate) Arc<Shared>);

/// What was counted since the start.
///
/// Once everything is settled, `published` is `confirmed` + `refused` + `dropped`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Messages that were to be published.
    pub published: u64,
    /// Messages that nsqd has.
    pub confirmed: u64,
    /// Messages that nsqd has refused, or would have.
    pub refused: u64,
    /// Messages that nsqd may not have: there was no connection, it was lost before the answer, or too many waited.
    pub dropped: u64,
    /// Messages received and put into the inbox.
    pub received: u64,
    /// Messages that had come before, from another nsqd or the same one.
    pub repeated: u64,
    /// Messages that an nsqd did not get because it was down for too long. Nodes that hear only it miss them.
    pub not_kept: u64,
    /// Connections that were made anew after one of the same kind was lost.
    pub reconnects: u64,
    /// Connections that could not be had, or were lost.
    pub failures: u64,
    /// Errors that nsqd answered with, of all kinds.
    pub errors: u64,
    /// Connections ended because what came was not NSQ's protocol, or not what was asked; they are among `failures`.
    pub violations: u64,
}

/// What goes on with one nsqd.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NsqdStatus {
    /// Its address, as given.
    pub address: String,
    /// How many topics this node hears of from it.
    pub subscribed: usize,
    /// This node publishes to it.
    pub is_publishing: bool,
    /// What went wrong last. It stays when all is well again.
    pub last_failure: Option<String>,
}

impl Status {
    /// Whether all topics are heard of, from one nsqd at least.
    pub fn is_connected(&self) -> bool {
        self.0.nsqds.iter().any(|it| self.0.is_heard(it))
    }

    /// What goes on with each nsqd, in the order in which they were given.
    pub fn nsqds(&self) -> Vec<NsqdStatus> {
        self.0
            .nsqds
            .iter()
            .map(|nsqd| NsqdStatus {
                address: nsqd.address.clone(),
                subscribed: nsqd.subscribed.load(Ordering::Relaxed),
                is_publishing: nsqd.is_publishing.load(Ordering::Relaxed),
                last_failure: nsqd.last_failure.lock().clone(),
            })
            .collect()
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        let it = &self.0.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            published: get(&it.published),
            confirmed: get(&it.confirmed),
            refused: get(&it.refused),
            dropped: get(&it.dropped),
            received: get(&it.received),
            repeated: get(&it.repeated),
            not_kept: get(&it.not_kept),
            reconnects: get(&it.reconnects),
            failures: get(&it.failures),
            errors: get(&it.errors),
            violations: get(&it.violations),
        }
    }
}

/// What the connections share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    /// What connections say of themselves.
    pub(crate) identity: Vec<u8>,
    pub(crate) nsqds: Vec<Nsqd>,
    pub(crate) counters: Counters,
    topics: AtomicUsize,
    /// With several nsqds, what has come from any of them.
    seen: Option<Mutex<Seen>>,
    unfit: LogLimit,
}

const NOT_STARTED: usize = usize::MAX;

pub(crate) struct Nsqd {
    pub(crate) address: String,
    /// How many topics it is heard of.
    pub(crate) subscribed: AtomicUsize,
    pub(crate) is_publishing: AtomicBool,
    /// The next message that it takes ends its trouble.
    is_refusing: AtomicBool,
    /// How many subscriptions were made here so far: when one was, others that wait should try as well.
    pub(crate) reached: watch::Sender<u64>,
    last_failure: Mutex<Option<String>>,
    trouble: Mutex<Trouble>,
    failures: LogLimit,
    complaints: LogLimit,
}

/// What is wrong with an nsqd now.
#[derive(Default)]
struct Trouble {
    /// Where it is reported.
    part: Option<Part>,
    hearing: Option<String>,
    publishing: Option<String>,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) published: AtomicU64,
    pub(crate) confirmed: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) repeated: AtomicU64,
    pub(crate) not_kept: AtomicU64,
    pub(crate) reconnects: AtomicU64,
    failures: AtomicU64,
    errors: AtomicU64,
    violations: AtomicU64,
}

impl Shared {
    pub(crate) fn new(config: Config, identity: Vec<u8>) -> Self {
        let nsqds = config.nsqd.iter().map(|address| Nsqd {
            address: address.clone(),
            subscribed: AtomicUsize::new(0),
            is_publishing: AtomicBool::new(false),
            is_refusing: AtomicBool::new(false),
            reached: watch::Sender::new(0),
            last_failure: Mutex::default(),
            trouble: Mutex::default(),
            failures: LogLimit::default(),
            complaints: LogLimit::default(),
        });
        Self {
            nsqds: nsqds.collect(),
            seen: (config.nsqd.len() > 1).then(Mutex::default),
            config,
            identity,
            counters: Counters::default(),
            topics: AtomicUsize::new(NOT_STARTED),
            unfit: LogLimit::default(),
        }
    }

    /// So many topics are to be heard of.
    pub(crate) fn start(&self, topics: usize, inbox: &PlainInbox) {
        for nsqd in &self.nsqds {
            nsqd.trouble.lock().part = Some(inbox.health().part(format!("nsqd {}", nsqd.address)));
        }
        self.topics.store(topics, Ordering::Relaxed);
        if topics == 0 {
            inbox.connected();
        }
    }

    /// Whether all topics are heard of at this nsqd.
    fn is_heard(&self, nsqd: &Nsqd) -> bool {
        nsqd.subscribed.load(Ordering::Relaxed) == self.topics.load(Ordering::Relaxed)
    }

    /// A topic is heard of at an nsqd until this is dropped.
    ///
    /// All of this happens on one thread, so that the inbox is told in the order in which it happens.
    pub(crate) fn subscribed<'a>(&'a self, nsqd: &'a Nsqd, inbox: &'a PlainInbox) -> Subscribed<'a> {
        nsqd.subscribed.fetch_add(1, Ordering::Relaxed);
        // Before the inbox is told: what it makes the caller publish again should find the producer trying.
        nsqd.reached.send_modify(|it| *it += 1);
        if self.is_heard(nsqd) {
            if nsqd.trouble.lock().hearing.take().is_some() {
                tracing::info!(nsqd = nsqd.address, "subscribed to all topics at this nsqd again");
            }
            self.report();
            inbox.connected();
        }
        Subscribed {
            shared: self,
            nsqd,
            inbox,
        }
    }

    /// Whether a message has come from another nsqd before.
    pub(crate) fn has_seen(&self, body: &[u8]) -> bool {
        self.seen.as_ref().is_some_and(|seen| seen.lock().has(body))
    }

    /// A topic is not heard of: the connection could not be had, or has ended unasked.
    pub(crate) fn cannot_hear(&self, nsqd: &Nsqd, topic: &str, error: &SessionError) {
        let what = format!("topic {topic:?}: {error}");
        self.failed(nsqd, &what, error);
        nsqd.trouble.lock().hearing = Some(what);
        self.report();
    }

    /// Nothing can be published: the connection could not be had, or has ended unasked.
    pub(crate) fn cannot_publish(&self, nsqd: &Nsqd, error: &SessionError) {
        let what = format!("publishing: {error}");
        self.failed(nsqd, &what, error);
        // One message that it doesn't take is no trouble of the nsqd's.
        if !matches!(error, SessionError::Refused(_)) {
            let is_refusing = matches!(error, SessionError::Answer(_));
            nsqd.is_refusing.store(is_refusing, Ordering::Relaxed);
            nsqd.trouble.lock().publishing = Some(what);
            self.report();
        }
    }

    /// There is a connection to publish on. An nsqd that has refused messages is to take one before it is well.
    pub(crate) fn publishes(&self, nsqd: &Nsqd) {
        if !nsqd.is_refusing.load(Ordering::Relaxed) && nsqd.trouble.lock().publishing.take().is_some() {
            self.report();
        }
    }

    /// nsqd has taken a message.
    pub(crate) fn has_published(&self, nsqd: &Nsqd) {
        if nsqd.is_refusing.swap(false, Ordering::Relaxed) {
            nsqd.trouble.lock().publishing = None;
            self.report();
        }
    }

    /// Tells the node's health of the nsqds that are in trouble. It is no worse than degraded while one of them is heard.
    fn report(&self) {
        let severity = match self.nsqds.iter().any(|it| self.is_heard(it)) {
            true => Severity::Degraded,
            false => Severity::NotReady,
        };
        for nsqd in &self.nsqds {
            let trouble = nsqd.trouble.lock();
            let Some(part) = &trouble.part else {
                continue;
            };
            match trouble.hearing.as_ref().or(trouble.publishing.as_ref()) {
                Some(what) => part.report(severity, what.clone()),
                None => _ = part.recover(),
            }
        }
    }

    fn failed(&self, nsqd: &Nsqd, what: &str, error: &SessionError) {
        add(&self.counters.failures);
        if error.is_violation() {
            add(&self.counters.violations);
        }
        if matches!(error, SessionError::Answer(_) | SessionError::Refused(_)) {
            add(&self.counters.errors);
        }
        if let Some(more) = nsqd.failures.happened() {
            tracing::warn!(nsqd = nsqd.address, "{what}; connecting again ({more} more like it)");
        }
        *nsqd.last_failure.lock() = Some(what.to_owned());
    }

    /// nsqd has answered with an error that doesn't end the connection.
    pub(crate) fn complained(&self, nsqd: &Nsqd, doing: &dyn fmt::Display, answer: &Answer) {
        add(&self.counters.errors);
        if let Some(more) = nsqd.complaints.happened() {
            tracing::warn!(nsqd = nsqd.address, "{doing}: {answer} ({more} more like it)");
        }
        *nsqd.last_failure.lock() = Some(format!("{doing}: {answer}"));
    }

    /// A message is not sent because nsqd would not take it.
    pub(crate) fn unfit(&self, topic: &str, why: &dyn fmt::Display) {
        if let Some(more) = self.unfit.happened() {
            tracing::warn!(
                topic,
                "a message can't be published, and is not tried again: {why} ({more} more like it)"
            );
        }
    }
}

pub(crate) struct Subscribed<'a> {
    shared: &'a Shared,
    nsqd: &'a Nsqd,
    inbox: &'a PlainInbox,
}

impl Drop for Subscribed<'_> {
    fn drop(&mut self) {
        let was_heard = self.shared.is_heard(self.nsqd);
        self.nsqd.subscribed.fetch_sub(1, Ordering::Relaxed);
        if was_heard {
            match self.shared.nsqds.iter().any(|it| self.shared.is_heard(it)) {
                // What waited there for this node is gone.
                true => self.inbox.missed(),
                false => self.inbox.disconnected(),
            }
        }
    }
}

pub(crate) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Status")
            .field("nsqds", &self.nsqds())
            .field("counts", &self.counts())
            .finish()
    }
}
