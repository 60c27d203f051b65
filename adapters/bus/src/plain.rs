//! [`PlainBus`]: a queue that carries one JSON body for each change, as the Go original's does.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use entity_sync_core::cluster::Outcome;
use entity_sync_runtime::Health;

use crate::inbox::Shared;

/// Carries changes as the Go original sent them: the topic is the entity's name, the body `{"entity":"items","id":"100"}`.
///
/// These messages have no numbers, so nobody can tell that one is missing. What a queue promises is what its nodes get;
/// besides, everything that anyone is subscribed to is read again whenever the connection comes back. While it is
/// connected a node hears of its own changes from the queue, as the original did; what the queue has not confirmed is
/// applied here at once, and published again when that is possible.
///
/// All calls come from one thread, the bus's own, and [`start`](Self::start) comes first. None of them may wait for the
/// network.
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex, PoisonError};
///
/// use entity_sync_bus::{PlainBus, PlainInbox, Receipt};
///
/// /// A queue that only knows one process: who hears of which topic.
/// #[derive(Clone, Default)]
/// struct Memory(Arc<Mutex<HashMap<String, Vec<PlainInbox>>>>);
///
/// impl PlainBus for Memory {
///     fn start(&mut self, topics: &[String], inbox: PlainInbox) {
///         let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
///         for topic in topics {
///             all.entry(topic.clone()).or_default().push(inbox.clone());
///         }
///         inbox.connected();
///     }
///
///     fn publish(&mut self, topic: &str, body: &[u8], receipt: Receipt) {
///         let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
///         for inbox in all.get(topic).into_iter().flatten() {
///             inbox.message(body.to_vec());
///         }
///         receipt.confirm();
///     }
/// }
/// ```
pub trait PlainBus: Send + 'static {
    /// Whether an entity of this name can be a topic. It is asked before the bus is started, so that a bad name is an
    /// error at the start and not later.
    ///
    /// # Errors
    /// [`BadTopic`] says what is wrong with it.
    fn check_topic(&self, topic: &str) -> Result<(), BadTopic> {
        let _ = topic;
        Ok(())
    }

    /// Connects, now or in the background, and goes on trying for as long as it lives. From now on, what is published
    /// under any of these topics by anyone, this node too, is to be put into the inbox.
    fn start(&mut self, topics: &[String], inbox: PlainInbox);

    /// Publishes a body, now or soon, and [confirms](Receipt::confirm) it once the queue has it. A receipt that is dropped
    /// means that it does not have it, and leads to another try.
    fn publish(&mut self, topic: &str, body: &[u8], receipt: Receipt);

    /// This node leaves: sends what was published, for `timeout` at most, and closes within
    /// [`STOP_GRACE`](crate::STOP_GRACE) more.
    fn stop(&mut self, timeout: Duration) {
        let _ = timeout;
    }
}

/// An entity's name that a queue doesn't take as a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadTopic {
    /// The name.
    pub topic: String,
    /// What is wrong with it, and what is allowed.
    pub reason: String,
}

/// Where a [`PlainBus`] puts what it receives. Its methods never block and may be called on any thread.
#[derive(Clone)]
pub struct PlainInbox(pub(crate) Arc<Shared>);

impl PlainInbox {
    /// A message has come, under whichever topic: its body names the entity. When too many wait already it is dropped and
    /// counted, and everything is read again as after a lost connection.
    pub fn message(&self, body: impl Into<Bytes>) {
        self.0.message(body.into());
    }

    /// All topics are heard of, for the first time or again. Where a queue has several servers, any of them will do; call it
    /// again for each that is heard besides, so that what was published there before is read again.
    pub fn connected(&self) {
        self.0.connected(true);
    }

    /// Messages may have been lost on their way here: one of several servers is gone. Everything is read again.
    pub fn missed(&self) {
        self.0.missed();
    }

    /// Some topic is not heard of any more.
    pub fn disconnected(&self) {
        self.0.connected(false);
    }

    /// Where a bus reports what an operator should know: a server that is down, a permission that is missing.
    pub fn health(&self) -> &Health {
        self.0.health()
    }
}

/// What is owed for a body that is to be published. Dropping it says that the queue did not get it.
#[must_use = "a receipt that is dropped says that the queue did not get the message"]
pub struct Receipt {
    inbox: Arc<Shared>,
    number: u64,
    outcome: Outcome,
}

impl Receipt {
    pub(crate) fn new(inbox: Arc<Shared>, number: u64) -> Self {
        Self {
            inbox,
            number,
            outcome: Outcome::Lost,
        }
    }

    /// The queue has it.
    pub fn confirm(mut self) {
        self.outcome = Outcome::Confirmed;
    }

    /// The queue will never take it, whenever it is asked: it is not published again.
    pub fn refuse(mut self) {
        self.outcome = Outcome::Refused;
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.inbox.receipt(self.number, self.outcome);
    }
}

impl fmt::Debug for PlainInbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlainInbox")
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receipt").field(&self.number).finish()
    }
}

impl fmt::Display for BadTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the entity {:?} can't be a topic: {}", self.topic, self.reason)
    }
}

impl std::error::Error for BadTopic {}
