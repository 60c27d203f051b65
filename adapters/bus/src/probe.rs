//! [`Probe`]: stands in for a node, in tests of a bus.

use std::fmt;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;

use crate::bus::Inbox;
use crate::inbox::{Event, Shared};

/// Stands in for a node in tests of a [`Bus`](crate::Bus): what the bus has put into its inbox comes out here, in order.
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
    /// [`Inbox::message`].
    Message(Bytes),
}

impl Probe {
    /// Nothing has been told yet.
    pub fn new() -> Self {
        Self(Arc::new(Shared::new(Waker::noop().clone())))
    }

    /// The inbox to start a bus with.
    pub fn inbox(&self) -> Inbox {
        Inbox(self.0.clone())
    }

    /// What was told next, if anything was.
    #[allow(clippy::should_implement_trait, reason = "None is not the end")]
    pub fn next(&self) -> Option<Told> {
        loop {
            match self.0.pop()? {
                Event::Connected(true) => return Some(Told::Connected),
                Event::Connected(false) => return Some(Told::Disconnected),
                Event::Message(message) => return Some(Told::Message(message)),
                Event::Receipt { .. } => {}
            }
        }
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
