//! [`Port`]: the hand-over from the node to one shard, and the wake-up.

use std::collections::VecDeque;
use std::task::Waker;

use super::{Start, Starts, Wakes};
use crate::client::{Command, SendError};
use crate::flights::FlightId;
use crate::sync::{AtomicBool, Mutex, Ordering, lock};

/// Where the node leaves what one shard is to do.
pub(crate) struct Port {
    inbox: Mutex<Inbox>,
    /// The shard will look at the inbox without being woken, or somebody is about to wake it.
    pending: AtomicBool,
    /// The shard was dropped. Set under the inbox's lock.
    is_gone: AtomicBool,
    /// Something that the application wants done waits, other than messages to be sent. Not the model checker's: who
    /// must see it has come after it by other means.
    has_orders: std::sync::atomic::AtomicBool,
    waker: Waker,
}

/// What waits for a shard.
#[derive(Default)]
pub(crate) struct Inbox {
    /// Flights whose newest rows are to be taken. At most one mark per flight: the flight itself knows that it is marked.
    pub(crate) marks: VecDeque<FlightId>,
    /// What the application wants done, in its order.
    pub(crate) commands: VecDeque<Command>,
    /// Among the commands are others than messages to be sent.
    pub(crate) has_orders: bool,
    /// Reads to be handed to the resolver from a fresh stack.
    pub(super) starts: Vec<Start>,
    /// Memory that messages among the commands hold.
    message_bytes: usize,
}

/// What a message holds besides its frame: its place in a queue that may be half empty, and an allocation's own.
pub(crate) const MESSAGE_BYTES: usize = 2 * size_of::<Command>() + 48;

impl Port {
    pub(crate) fn new(waker: Waker) -> Self {
        Self {
            inbox: Mutex::new(Inbox::default()),
            pending: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            has_orders: Default::default(),
            waker,
        }
    }

    /// Leaves a mark, and wakes the shard unless it will look anyway: now, or when `put_off` is dropped.
    pub(crate) fn mark(&self, flight: FlightId, put_off: Option<&mut Wakes>) {
        lock(&self.inbox).marks.push_back(flight);
        match put_off {
            None => self.wake(),
            Some(wakes) if self.is_asleep() => wakes.add(&self.waker),
            Some(_) => {}
        }
    }

    /// Leaves a command and wakes the shard, unless it is a message and `limit` bytes of those wait already.
    pub(super) fn command(&self, command: Command, limit: usize) -> Result<(), SendError> {
        {
            let mut inbox = lock(&self.inbox);
            if self.is_gone() {
                return Ok(());
            }
            if let Command::Send { frame, .. } = &command {
                let waiting = inbox.message_bytes;
                let held = MESSAGE_BYTES + frame.len();
                if waiting > 0 && waiting + held > limit {
                    return Err(SendError::Full);
                }
                inbox.message_bytes += held;
            } else {
                inbox.has_orders = true;
                self.has_orders.store(true, Ordering::Relaxed);
            }
            inbox.commands.push_back(command);
        }
        self.wake();
        Ok(())
    }

    /// Leaves reads to be begun, unless the shard is gone: then they stay where they are.
    pub(super) fn start(&self, starts: &mut Starts) {
        {
            let mut inbox = lock(&self.inbox);
            if self.is_gone() {
                return;
            }
            inbox.starts.extend(starts.drain(..));
        }
        self.wake();
    }

    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::SeqCst)
    }

    /// The shard is dropped: nothing is left here any more. Gives the reads that were.
    pub(super) fn retire(&self) -> Starts {
        let mut inbox = lock(&self.inbox);
        self.is_gone.store(true, Ordering::SeqCst);
        std::mem::take(&mut *inbox).starts.into()
    }

    pub(super) fn has_starts(&self) -> bool {
        !lock(&self.inbox).starts.is_empty()
    }

    /// Whether the shard has orders to take before it acts on what its clients say.
    pub(super) fn has_orders(&self) -> bool {
        self.has_orders.load(Ordering::Relaxed)
    }

    pub(super) fn wake(&self) {
        if self.is_asleep() {
            self.waker.wake_by_ref();
        }
    }

    /// Whoever is told so must wake the shard: from now on nobody else will.
    fn is_asleep(&self) -> bool {
        !self.pending.swap(true, Ordering::SeqCst)
    }

    /// Moves everything into an inbox without marks. Commands stay for as long as there are others left in it, so that
    /// those count against the limit. As long as this gives anything, the shard is not woken for more.
    ///
    /// The flag is cleared only after the inbox was seen empty, and that is looked at once more afterwards: a producer
    /// pushes first and swaps the flag then, so either this second look sees what it pushed, or it sees the flag cleared
    /// and wakes.
    pub(crate) fn take(&self, into: &mut Inbox) -> bool {
        if self.move_all(into) {
            return true;
        }
        self.pending.swap(false, Ordering::SeqCst);
        self.move_all(into)
    }

    /// Says whether there was anything.
    fn move_all(&self, into: &mut Inbox) -> bool {
        debug_assert!(into.marks.is_empty() && into.starts.is_empty());
        let mut inbox = lock(&self.inbox);
        // The tables change places, so that neither side has to allocate again.
        std::mem::swap(&mut inbox.marks, &mut into.marks);
        std::mem::swap(&mut inbox.starts, &mut into.starts);
        let mut any = !into.marks.is_empty() || !into.starts.is_empty();
        if into.commands.is_empty() {
            std::mem::swap(&mut inbox.commands, &mut into.commands);
            into.has_orders = std::mem::take(&mut inbox.has_orders);
            inbox.message_bytes = 0;
            self.has_orders.store(false, Ordering::Relaxed);
            any |= !into.commands.is_empty();
        }
        any
    }
}

#[cfg(loom)]
impl Inbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.marks.is_empty() && self.commands.is_empty() && self.starts.is_empty()
    }
}
