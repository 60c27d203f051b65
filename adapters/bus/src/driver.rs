//! [`Driver`]: drives a cluster and its bus, of either kind.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use entity_sync_core::Timestamp;
use entity_sync_core::cluster::{ClusterView, JoinError};
use entity_sync_runtime::{Health, LogLimit};

use crate::delivery::Undelivered;
use crate::inbox::{Event, Shared};
use crate::member::{Clock, Member, StartError};
use crate::thread::{BusThread, Driven, Next, Unparker};

/// Events that are handled before what they lead to is published, and the time looked at.
pub(crate) const EVENTS_PER_TURN: usize = 1024;

/// Outputs that are handed to the bus before what has arrived is looked at.
pub(crate) const OUTPUTS_PER_TURN: usize = 1024;

/// A cluster with its bus, of one kind or the other.
pub(crate) trait Machine: Send + 'static {
    fn view(&self) -> Arc<ClusterView>;

    /// Starts the bus.
    fn start(&mut self, inbox: &Arc<Shared>);

    fn handle(&mut self, now: Timestamp, event: Event);

    /// Messages were dropped before they came to be events.
    fn overflowed(&mut self, now: Timestamp);

    fn poll_timeout(&self) -> Option<Timestamp>;

    fn handle_timeout(&mut self, now: Timestamp);

    /// Hands the bus what the cluster says, and says whether there may be more.
    fn put_out(&mut self, now: Timestamp, inbox: &Arc<Shared>) -> bool;

    /// Whether something waits until the bus can take it. It is waited for when the node leaves.
    fn has_unsent(&self) -> bool;

    /// Sets a mark behind everything that was notified so far.
    fn mark(&mut self, now: Timestamp) -> u64;

    /// What was notified before a mark and the bus does not have.
    fn look(&self, mark: u64) -> Result<(), Undelivered>;

    /// Says goodbye, and stops the bus, in about this time.
    fn leave(&mut self, now: Timestamp, inbox: &Arc<Shared>, timeout: Duration);
}

struct Driver<M> {
    machine: M,
    clock: Clock,
    inbox: Arc<Shared>,
    unparker: Arc<Unparker>,
    view: Arc<ClusterView>,
    logs: Logs,
}

/// One for each kind of line.
#[derive(Default)]
struct Logs {
    connected: LogLimit,
    lost: LogLimit,
}

/// Drives what `make` makes with a waker, on a thread of its own.
pub(crate) fn drive<M: Machine>(
    clock: Clock,
    health: Health,
    make: impl FnOnce(Timestamp, Waker) -> Result<M, JoinError>,
) -> Result<Box<dyn Member>, StartError> {
    let unparker = Arc::<Unparker>::default();
    let waker = Waker::from(unparker.clone());
    let machine = make(clock(), waker.clone())?;
    let view = machine.view();
    let driver = Driver {
        machine,
        clock,
        inbox: Arc::new(Shared::new(waker.clone(), health.clone())),
        unparker,
        view: view.clone(),
        logs: Logs::default(),
    };
    BusThread::spawn(view, waker, &health, driver)
}

impl<M: Machine> Driven for Driver<M> {
    fn begin(&mut self) {
        self.unparker.set_here();
        self.machine.start(&self.inbox);
    }

    fn turn(&mut self) -> Next {
        let mut has_more = self.take_in();
        let now = (self.clock)();
        // What has arrived comes first, but not for ever: the others wait for this node's digests.
        if self.machine.poll_timeout().is_some_and(|at| at <= now) {
            self.machine.handle_timeout(now);
        }
        has_more |= self.machine.put_out(now, &self.inbox);
        match has_more {
            true => Next::Again,
            false => Next::Within(self.machine.poll_timeout().map(|at| at.since((self.clock)()))),
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        self.unparker.park(timeout);
    }

    fn mark(&mut self) -> u64 {
        self.machine.mark((self.clock)())
    }

    fn look(&self, mark: u64) -> Result<(), Undelivered> {
        self.machine.look(mark)
    }

    fn has_unsent(&self) -> bool {
        self.machine.has_unsent()
    }

    fn leave(&mut self, timeout: Duration) {
        self.machine.leave((self.clock)(), &self.inbox, timeout);
    }

    fn give_up(&mut self) {
        self.machine.handle((self.clock)(), Event::Connected(false));
    }
}

impl<M: Machine> Driver<M> {
    /// Says whether there may be more.
    fn take_in(&mut self) -> bool {
        let now = (self.clock)();
        for _ in 0..EVENTS_PER_TURN {
            let Some(event) = self.inbox.pop() else {
                self.note_dropped(now);
                return false;
            };
            let _span = match &event {
                Event::Message(message) => Some(tracing::trace_span!("bus message", bytes = message.len()).entered()),
                Event::Connected(true) => {
                    if let Some(skipped) = self.logs.connected.happened() {
                        tracing::info!(skipped, "the bus is connected");
                    }
                    None
                }
                Event::Connected(false) => {
                    if let Some(skipped) = self.logs.lost.happened() {
                        tracing::warn!(
                            skipped,
                            "the bus has lost its connection: this node and the others don't hear each other"
                        );
                    }
                    None
                }
                Event::Receipt { .. } | Event::Missed => None,
            };
            self.machine.handle(now, event);
        }
        self.note_dropped(now);
        true
    }

    fn note_dropped(&mut self, now: Timestamp) {
        let dropped = self.inbox.take_dropped();
        if dropped > 0 {
            self.view.add_overflowed(dropped);
            self.machine.overflowed(now);
        }
    }
}
