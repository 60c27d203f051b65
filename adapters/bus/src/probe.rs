//! [`Probe`]: stands in for a node, in tests of a bus.

use std::fmt;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use entity_sync_core::cluster::Outcome;
use entity_sync_runtime::Health;

use crate::bus::Inbox;
use crate::inbox::{Event, Shared};
use crate::plain::{PlainInbox, Receipt};

/// Stands in for a node in tests of a [`Bus`](crate::Bus) or a [`PlainBus`](crate::PlainBus): what the bus has put into its
/// inbox comes out here, in order.
///
/// ```
/// use entity_sync_bus::{Probe, Told};
///
/// let probe = Probe::new();
/// let inbox = probe.inbox(); // for Bus::start
/// inbox.connected();
/// inbox.message(&b"hello"[..]);
/// assert_eq!(probe.next(), Some(Told::Connected));
/// assert_eq!(probe.next(), Some(Told::Message("hello".into())));
/// assert_eq!(probe.next(), None);
/// ```
pub struct Probe(Arc<Shared>);

/// What a bus has told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// [`Inbox::connected`].
    Connected,
    /// [`Inbox::disconnected`].
    Disconnected,
    /// [`PlainInbox::missed`].
    Missed,
    /// [`Inbox::message`].
    Message(Bytes),
    /// What became of the message with this number.
    Receipt(u64, Outcome),
}

impl Probe {
    /// Nothing has been told yet.
    pub fn new() -> Self {
        Self(Arc::new(Shared::new(Waker::noop().clone(), Health::default())))
    }

    /// The inbox to start a bus with.
    pub fn inbox(&self) -> Inbox {
        Inbox(self.0.clone())
    }

    /// The inbox to start a plain bus with.
    pub fn plain_inbox(&self) -> PlainInbox {
        PlainInbox(self.0.clone())
    }

    /// A receipt for what is to be published.
    pub fn receipt(&self, number: u64) -> Receipt {
        Receipt::new(self.0.clone(), number)
    }

    /// What was told next, if anything was.
    #[allow(clippy::should_implement_trait, reason = "None is not the end")]
    pub fn next(&self) -> Option<Told> {
        Some(match self.0.pop()? {
            Event::Connected(true) => Told::Connected,
            Event::Connected(false) => Told::Disconnected,
            Event::Missed => Told::Missed,
            Event::Message(message) => Told::Message(message),
            Event::Receipt { number, outcome } => Told::Receipt(number, outcome),
        })
    }

    /// Messages that were dropped since this was last asked, because too many waited.
    pub fn take_dropped(&self) -> u64 {
        self.0.take_dropped()
    }
}

impl Default for Probe {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Probe")
    }
}
