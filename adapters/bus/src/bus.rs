//! [`Bus`]: what carries messages between nodes, and the [`Inbox`] it puts them in.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use entity_sync_runtime::Health;

use crate::inbox::Shared;

/// What a bus may take to stop besides the time that it is given for what waits to be sent. A node that leaves waits for
/// twice as long, and then leaves the bus to itself.
pub const STOP_GRACE: Duration = Duration::from_millis(100);

/// Carries messages under topics between the nodes of a cluster. It may lose, repeat and reorder them: nodes notice, and
/// read again what they have missed.
///
/// All calls come from one thread, the bus's own, and [`start`](Self::start) comes first. None of them may wait for the
/// network: while a bus waits, this node tells and hears of no change, although clients are served all the same.
///
/// A bus that only knows one process, as a complete example:
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex, PoisonError};
///
/// use entity_sync_bus::{Bus, Inbox, NotSent};
///
/// /// Who hears of which topic.
/// #[derive(Clone, Default)]
/// struct Memory(Arc<Mutex<HashMap<String, Vec<Inbox>>>>);
///
/// struct MemoryBus {
///     memory: Memory,
///     inbox: Option<Inbox>,
/// }
///
/// impl Bus for MemoryBus {
///     fn start(&mut self, inbox: Inbox) {
///         inbox.connected();
///         self.inbox = Some(inbox);
///     }
///
///     fn subscribe(&mut self, topic: &str) {
///         let mut topics = self.memory.0.lock().unwrap_or_else(PoisonError::into_inner);
///         topics.entry(topic.to_owned()).or_default().extend(self.inbox.clone());
///     }
///
///     fn publish(&mut self, topic: &str, message: &[u8]) -> Result<(), NotSent> {
///         let topics = self.memory.0.lock().unwrap_or_else(PoisonError::into_inner);
///         for inbox in topics.get(topic).into_iter().flatten() {
///             inbox.message(message.to_vec());
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait Bus: Send + 'static {
    /// Connects, now or in the background, and goes on trying for as long as it lives. What happens is told to the inbox,
    /// which may be cloned and used on any thread.
    fn start(&mut self, inbox: Inbox);

    /// From now on, what is published under `topic` is to be put into the inbox, whether this node or another one
    /// published it. It is called before the bus is connected, too, and once per topic: a bus that connects again
    /// subscribes again.
    fn subscribe(&mut self, topic: &str);

    /// The topic is of no interest any more. What comes nevertheless is ignored.
    fn unsubscribe(&mut self, topic: &str) {
        let _ = topic;
    }

    /// Hands a message over, to be sent soon.
    ///
    /// # Errors
    /// [`NotSent`]: it is dropped. There is no need to try again; the other nodes will notice.
    fn publish(&mut self, topic: &str, message: &[u8]) -> Result<(), NotSent>;

    /// This node leaves: sends what was published, for `timeout` at most, and closes within [`STOP_GRACE`] more.
    fn stop(&mut self, timeout: Duration) {
        let _ = timeout;
    }
}

/// A message can't be sent now: there is no connection, or no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSent;

/// Where a [`Bus`] puts what it receives. Its methods never block and may be called on any thread.
#[derive(Clone)]
pub struct Inbox(pub(crate) Arc<Shared>);

impl Inbox {
    /// A message has come. When too many wait already it is dropped and counted; nodes notice.
    pub fn message(&self, message: impl Into<Bytes>) {
        self.0.message(message.into());
    }

    /// The bus is connected, for the first time or again. The node is ready once its own next message has come back, too: a bus
    /// that is connected and brings nothing back is reported as deaf.
    pub fn connected(&self) {
        self.0.connected(true);
    }

    /// The bus has lost its connection. Nobody who is silent meanwhile is taken for dead.
    pub fn disconnected(&self) {
        self.0.connected(false);
    }

    /// Where a bus reports what an operator should know: a server that is down, a permission that is missing.
    pub fn health(&self) -> &Health {
        self.0.health()
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inbox")
    }
}

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the message can't be sent now")
    }
}

impl std::error::Error for NotSent {}
