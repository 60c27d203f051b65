//! [`BusThread`]: a cluster that is driven on a thread of its own; how that is told to go, and waited for.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock};
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use entity_sync_core::cluster::ClusterView;
use entity_sync_runtime::Health;
use parking_lot::{Condvar, Mutex};

use crate::bus::STOP_GRACE;
use crate::delivery::{Flush, Undelivered};
use crate::member::{Member, StartError};

/// What is waited for besides the time for leaving: the bus's own grace, and what threads take to wake each other.
const CLOSE_TIME: Duration = STOP_GRACE.saturating_mul(2);

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
    flushes: Mutex<Vec<Flush>>,
    /// What the bus did not have when the thread left.
    undelivered: Mutex<Undelivered>,
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
        health: &Health,
        drive: impl FnOnce(&Departure) + Send + 'static,
    ) -> Result<Box<dyn Member>, StartError> {
        let departure = Arc::<Departure>::default();
        let of_thread = departure.clone();
        entity_sync_runtime::spawn("entity-sync bus", health, move || {
            let _over = OverAtLast(&of_thread);
            drive(&of_thread);
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

    /// Tells those who wait for the bus to have what they have notified. `look` says whether it has what was notified before
    /// a mark, which `mark` sets now. Returns when to look again at the latest.
    pub fn answer_flushes(
        &self,
        mut mark: impl FnMut() -> u64,
        mut look: impl FnMut(u64) -> Result<(), Undelivered>,
    ) -> Option<Duration> {
        let mut next = None;
        self.flushes.lock().retain_mut(|flush| {
            let answer = look(flush.mark(&mut mark));
            let time_left = flush.time_left();
            let is_over = answer.is_ok() || time_left.is_zero();
            if is_over {
                flush.answer(answer);
            } else {
                next = Some(next.map_or(time_left, |it| time_left.min(it)));
            }
            !is_over
        });
        next
    }

    /// Says what the bus does not have although the thread leaves now.
    pub fn leave_behind(&self, undelivered: Undelivered) {
        *self.undelivered.lock() = undelivered;
    }

    /// Says whether the thread has ended in time.
    fn wait_until_over(&self, timeout: Duration) -> bool {
        let mut is_over = self.is_over.lock();
        self.over.wait_while_for(&mut is_over, |is_over| !*is_over, timeout);
        *is_over
    }
}

/// Says that the thread has ended, however it does.
struct OverAtLast<'a>(&'a Departure);

impl Drop for OverAtLast<'_> {
    fn drop(&mut self) {
        *self.0.is_over.lock() = true;
        self.0.over.notify_all();
        // Whoever waits hears that nobody answers.
        self.0.flushes.lock().clear();
    }
}

impl Member for BusThread {
    fn view(&self) -> &Arc<ClusterView> {
        &self.view
    }

    fn flush(&self, timeout: Duration) -> Result<(), Undelivered> {
        let timeout = timeout.min(FOR_EVER);
        let (answer, answered) = sync_channel(1);
        self.departure
            .flushes
            .lock()
            .push(Flush::new(Instant::now() + timeout, answer));
        if *self.departure.is_over.lock() {
            // It has ended before it could see this.
            self.departure.flushes.lock().clear();
        }
        self.waker.wake_by_ref();
        let answer = answered.recv_timeout(timeout + CLOSE_TIME);
        answer.unwrap_or_else(|_| Err(Undelivered::unknown()))
    }

    fn leave(&mut self, timeout: Duration) -> Result<(), Undelivered> {
        self.ask_to_leave(timeout);
        if !self.departure.wait_until_over(timeout.min(FOR_EVER) + CLOSE_TIME) {
            tracing::warn!("the bus has not ended in time, and is left to itself");
            return Err(Undelivered::unknown());
        }
        let undelivered = std::mem::take(&mut *self.departure.undelivered.lock());
        match undelivered.is_empty() {
            true => Ok(()),
            false => Err(undelivered),
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
pub(crate) struct Unparker {
    thread: OnceLock<Thread>,
    /// It was woken since it parked last. A bus may park on this thread too, and take the wake-up away.
    is_rung: AtomicBool,
}

impl Unparker {
    /// To be called on the thread, before it looks at anything.
    pub(crate) fn set_here(&self) {
        let _ = self.thread.set(std::thread::current());
    }

    /// Parks the thread until it is woken, or was, or the time is over, or for no reason.
    ///
    /// Both sides swap the flag: whoever comes second sees all that the first has done before. So either this thread looks
    /// at everything after what it was woken for was there, or it is known, and about to park, when it is unparked.
    pub(crate) fn park(&self, timeout: Option<Duration>) {
        if self.is_rung.swap(false, Ordering::SeqCst) {
            return;
        }
        match timeout {
            Some(timeout) => std::thread::park_timeout(timeout),
            None => std::thread::park(),
        }
        self.is_rung.swap(false, Ordering::SeqCst);
    }
}

impl Wake for Unparker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_rung.swap(true, Ordering::SeqCst);
        // Before it is known, the thread has not looked at anything yet.
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}
