//! [`Status`]: what goes on, for whoever wants to know. [`Shared`]: what the connections share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use entity_sync_bus::{LogLimit, PlainInbox, Receipt};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::Config;
use crate::error::{Answer, SessionError};

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
    /// Whether all topics are heard of, from every nsqd.
    pub fn is_connected(&self) -> bool {
        let total = self.0.total.load(Ordering::Relaxed);
        total != NOT_STARTED && self.0.subscribed.load(Ordering::Relaxed) == total
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
    /// Some subscription was made, which is a good moment to try to publish again.
    pub(crate) any_reached: Notify,
    /// Topics times nsqds.
    total: AtomicUsize,
    subscribed: AtomicUsize,
    unfit: LogLimit,
}

const NOT_STARTED: usize = usize::MAX;

pub(crate) struct Nsqd {
    pub(crate) address: String,
    /// How many topics it is heard of.
    pub(crate) subscribed: AtomicUsize,
    pub(crate) is_publishing: AtomicBool,
    /// How many subscriptions were made here so far: when one was, others that wait should try as well.
    pub(crate) reached: watch::Sender<u64>,
    last_failure: Mutex<Option<String>>,
    failures: LogLimit,
    complaints: LogLimit,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) published: AtomicU64,
    confirmed: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
    pub(crate) received: AtomicU64,
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
            reached: watch::Sender::new(0),
            last_failure: Mutex::default(),
            failures: LogLimit::default(),
            complaints: LogLimit::default(),
        });
        Self {
            nsqds: nsqds.collect(),
            config,
            identity,
            counters: Counters::default(),
            any_reached: Notify::new(),
            total: AtomicUsize::new(NOT_STARTED),
            subscribed: AtomicUsize::new(0),
            unfit: LogLimit::default(),
        }
    }

    /// So many topics are to be heard of, all of them from every nsqd.
    pub(crate) fn start(&self, topics: usize, inbox: &PlainInbox) {
        self.total.store(topics * self.nsqds.len(), Ordering::Relaxed);
        if topics == 0 {
            inbox.connected();
        }
    }

    /// A topic is heard of at an nsqd until this is dropped.
    ///
    /// All of this happens on one thread, so that the inbox is told in the order in which it happens.
    pub(crate) fn subscribed<'a>(&'a self, nsqd: &'a Nsqd, inbox: &'a PlainInbox) -> Subscribed<'a> {
        nsqd.subscribed.fetch_add(1, Ordering::Relaxed);
        // Before the inbox is told: what it makes the caller publish again should find the producer trying.
        nsqd.reached.send_modify(|it| *it += 1);
        self.any_reached.notify_one();
        if self.subscribed.fetch_add(1, Ordering::Relaxed) + 1 == self.total.load(Ordering::Relaxed) {
            inbox.connected();
        }
        Subscribed {
            shared: self,
            nsqd,
            inbox,
        }
    }

    /// A connection could not be had, or has ended unasked.
    pub(crate) fn failed(&self, nsqd: &Nsqd, doing: &dyn fmt::Display, error: &SessionError) {
        add(&self.counters.failures);
        if error.is_violation() {
            add(&self.counters.violations);
        }
        if let SessionError::Answer(_) = error {
            add(&self.counters.errors);
        }
        if let Some(more) = nsqd.failures.happened() {
            tracing::warn!(
                nsqd = nsqd.address,
                "{doing}: {error}; it is tried again ({more} more like it)"
            );
        }
        *nsqd.last_failure.lock() = Some(format!("{doing}: {error}"));
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
            tracing::warn!(topic, "a message can't be published: {why} ({more} more like it)");
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
        self.nsqd.subscribed.fetch_sub(1, Ordering::Relaxed);
        if self.shared.subscribed.fetch_sub(1, Ordering::Relaxed) == self.shared.total.load(Ordering::Relaxed) {
            self.inbox.disconnected();
        }
    }
}

/// A receipt that is counted, whichever way it ends.
pub(crate) struct Owed {
    receipt: Option<Receipt>,
    shared: Arc<Shared>,
}

impl Owed {
    pub(crate) fn new(receipt: Receipt, shared: Arc<Shared>) -> Self {
        add(&shared.counters.published);
        let receipt = Some(receipt);
        Self { receipt, shared }
    }

    /// nsqd has the message.
    pub(crate) fn confirm(mut self) {
        if let Some(receipt) = self.receipt.take() {
            add(&self.shared.counters.confirmed);
            receipt.confirm();
        }
    }

    /// nsqd will never take it.
    pub(crate) fn refuse(mut self) {
        if let Some(receipt) = self.receipt.take() {
            add(&self.shared.counters.refused);
            receipt.refuse();
        }
    }

    /// nsqd doesn't take it now.
    pub(crate) fn send_back(mut self) {
        add(&self.shared.counters.refused);
        self.receipt = None;
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if self.receipt.is_some() {
            add(&self.shared.counters.dropped);
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
