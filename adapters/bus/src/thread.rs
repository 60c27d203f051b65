//! [`BusThread`]: a cluster that is driven on a thread of its own; how that is told to go, and waited for.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use entity_sync_core::cluster::ClusterView;
use parking_lot::{Condvar, Mutex};

use crate::member::{Member, StartError};

/// To close what a bus has open takes a moment longer than to send what it has.
const CLOSE_TIME: Duration = Duration::from_millis(200);

/// Longer than anyone waits, and no more than a clock can add.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

/// A node's part in a cluster, driven on a thread of its own.
pub struct BusThread {
    departure: Arc<Departure>,
    waker: Waker,
    view: Arc<ClusterView>,
}

/// Tells a bus's thread when it is to go.
#[derive(Default)]
pub struct Departure {
    /// Until when it may take, once it is to.
    leave_by: OnceLock<Instant>,
    is_over: Mutex<bool>,
    over: Condvar,
}

impl BusThread {
    /// Runs `drive` on a new thread. When it is woken by `waker` and [`Departure::time_left`] gives something, it is to
    /// leave the cluster in that time, and return.
    ///
    /// # Errors
    /// [`StartError::Thread`].
    pub fn spawn(
        view: Arc<ClusterView>,
        waker: Waker,
        drive: impl FnOnce(&Departure) + Send + 'static,
    ) -> Result<Box<dyn Member>, StartError> {
        let departure = Arc::<Departure>::default();
        let of_thread = departure.clone();
        std::thread::Builder::new()
            .name("entity-sync bus".to_owned())
            .spawn(move || {
                drive(&of_thread);
                *of_thread.is_over.lock() = true;
                of_thread.over.notify_all();
            })
            .map_err(StartError::Thread)?;
        Ok(Box::new(Self { departure, waker, view }))
    }

    fn ask_to_leave(&self, timeout: Duration) {
        let _ = self.departure.leave_by.set(Instant::now() + timeout.min(FOR_EVER));
        self.waker.wake_by_ref();
    }
}

impl Departure {
    /// How long the thread may take to leave; `None` while it is to stay.
    pub fn time_left(&self) -> Option<Duration> {
        let by = self.leave_by.get()?;
        Some(by.saturating_duration_since(Instant::now()))
    }

    /// Says whether the thread has ended in time.
    fn wait_until_over(&self, timeout: Duration) -> bool {
        let mut is_over = self.is_over.lock();
        self.over.wait_while_for(&mut is_over, |is_over| !*is_over, timeout);
        *is_over
    }
}

impl Member for BusThread {
    fn view(&self) -> &Arc<ClusterView> {
        &self.view
    }

    fn leave(&mut self, timeout: Duration) {
        self.ask_to_leave(timeout);
        if !self.departure.wait_until_over(timeout.min(FOR_EVER) + CLOSE_TIME) {
            tracing::warn!("the bus has not ended in time, and is left to itself");
        }
    }
}

impl Drop for BusThread {
    fn drop(&mut self) {
        self.ask_to_leave(Duration::ZERO);
    }
}

impl fmt::Debug for BusThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusThread")
            .field("view", &self.view)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Departure")
            .field("time_left", &self.time_left())
            .finish()
    }
}

/// Wakes a thread that parks.
#[derive(Default)]
pub(crate) struct Unparker(OnceLock<Thread>);

impl Unparker {
    /// To be called on the thread, before it looks at anything.
    pub(crate) fn set_here(&self) {
        let _ = self.0.set(std::thread::current());
    }
}

impl Wake for Unparker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before it is known, the thread has not looked at anything yet.
        if let Some(thread) = self.0.get() {
            thread.unpark();
        }
    }
}
