//! For tests of a bus: an inbox, and what is put into it.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::inbox::{Event, Shared};
use crate::plain::{PlainInbox, Receipt};

/// What a bus told its inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A message has come.
    Message {
        /// Under which topic, if that was said.
        topic: Option<String>,
        /// Its bytes.
        body: Bytes,
    },
    /// The bus is connected.
    Connected,
    /// It is not any more.
    Disconnected,
    /// The receipt of this number was confirmed.
    Confirmed(u64),
    /// The receipt of this number was dropped.
    Dropped(u64),
}

/// Reads what was put into an inbox, in the order in which it was.
pub struct Outlet(Arc<Shared>);

impl Outlet {
    /// What comes next, unless nothing does for as long as `patience`.
    pub fn next(&self, patience: Duration) -> Option<Told> {
        let start = Instant::now();
        loop {
            if let Some(event) = self.0.pop() {
                return Some(event.into());
            }
            if start.elapsed() >= patience {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A receipt for a message that is to be published.
    pub fn receipt(&self, number: u64) -> Receipt {
        Receipt::new(self.0.clone(), number)
    }
}

/// An inbox for a [`PlainBus`](crate::PlainBus).
pub fn plain_inbox() -> (PlainInbox, Outlet) {
    let shared = Arc::new(Shared::new(Waker::noop().clone()));
    (PlainInbox(shared.clone()), Outlet(shared))
}

impl From<Event> for Told {
    fn from(event: Event) -> Self {
        match event {
            Event::Message(topic, body) => Self::Message {
                topic: topic.map(Into::into),
                body,
            },
            Event::Connected(true) => Self::Connected,
            Event::Connected(false) => Self::Disconnected,
            Event::Receipt {
                number,
                is_confirmed: true,
            } => Self::Confirmed(number),
            Event::Receipt { number, .. } => Self::Dropped(number),
        }
    }
}

impl std::fmt::Debug for Outlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Outlet")
    }
}
