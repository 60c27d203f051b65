//! [`BusThread`]: drives a cluster and its bus on a thread of its own, until it is told to leave.

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
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

/// What a [`BusThread`] drives: a cluster with its bus.
pub trait Driven: Send + 'static {
    /// Called first, on the thread.
    fn begin(&mut self) {}

    /// Takes in what has arrived, hands the bus what was notified, and does what is due. A turn is short: the rest is left
    /// for the next one.
    fn turn(&mut self) -> Next;

    /// Waits until there may be something to do, or was since the last turn, but no longer than this. It may return early.
    fn wait(&mut self, timeout: Option<Duration>);

    /// Sets a mark behind everything that was notified so far.
    fn mark(&mut self) -> u64;

    /// What was notified before a mark and the bus does not have.
    ///
    /// # Errors
    /// [`Undelivered`].
    fn look(&self, mark: u64) -> Result<(), Undelivered>;

    /// Whether something waits until the bus can take it. It is waited for when the node leaves.
    fn has_unsent(&self) -> bool;

    /// Says goodbye, and stops the bus, in about this time.
    fn leave(&mut self, timeout: Duration);

    /// Something of this has panicked: the node is not connected any more.
    fn give_up(&mut self);
}

/// What a turn has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// There is more to do.
    Again,
    /// All is done, until something happens or this time is over.
    Within(Option<Duration>),
}

/// What those who wait and the thread tell each other.
#[derive(Default)]
struct Departure {
    /// Until when it may take, once it is to leave.
    leave_by: OnceLock<Instant>,
    is_over: Mutex<bool>,
    over: Condvar,
    flushes: Mutex<Vec<Flush>>,
    /// What the bus did not have when the thread left.
    undelivered: Mutex<Undelivered>,
}

impl BusThread {
    /// Drives this on a new thread, until it is told to leave. `waker` ends what [`Driven::wait`] waits for.
    ///
    /// # Errors
    /// [`StartError::Thread`].
    pub fn spawn(
        view: Arc<ClusterView>,
        waker: Waker,
        health: &Health,
        driven: impl Driven,
    ) -> Result<Box<dyn Member>, StartError> {
        let departure = Arc::<Departure>::default();
        let of_thread = departure.clone();
        entity_sync_runtime::spawn("entity-sync bus", health, move || {
            let _over = OverAtLast(&of_thread);
            of_thread.drive(driven);
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
    fn drive(&self, mut driven: impl Driven) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.run(&mut driven))) {
            driven.give_up();
            // The supervisor of the thread reports it.
            resume_unwind(panic);
        }
    }

    fn run(&self, driven: &mut impl Driven) {
        driven.begin();
        loop {
            // Before anything is looked at: what was notified before it is to leave is still told.
            let time_left = self.time_left();
            let next = driven.turn();
            let (has_marked, until_flush) = self.answer_flushes(driven);
            // What others go on sending is no reason to stay.
            if let Some(timeout) = time_left
                && (timeout.is_zero() || !driven.has_unsent())
            {
                let mark = driven.mark();
                if driven.has_unsent()
                    && let Err(undelivered) = driven.look(mark)
                {
                    *self.undelivered.lock() = undelivered;
                }
                return driven.leave(timeout);
            }
            // What is before a new mark is to be handed over.
            if let (Next::Within(until), false) = (next, has_marked) {
                driven.wait(until.into_iter().chain(time_left).chain(until_flush).min());
            }
        }
    }

    /// How long the thread may take to leave; `None` while it is to stay.
    fn time_left(&self) -> Option<Duration> {
        let by = self.leave_by.get()?;
        Some(by.saturating_duration_since(Instant::now()))
    }

    /// Tells those who wait for the bus to have what they have notified. Says whether a new one waits, and when to look again
    /// at the latest.
    fn answer_flushes(&self, driven: &mut impl Driven) -> (bool, Option<Duration>) {
        let driven = RefCell::new(driven);
        let mut has_marked = false;
        let mut next = None;
        self.flushes.lock().retain_mut(|flush| {
            let mark = flush.mark(|| {
                has_marked = true;
                driven.borrow_mut().mark()
            });
            let answer = driven.borrow().look(mark);
            let time_left = flush.time_left();
            let is_over = answer.is_ok() || time_left.is_zero();
            if is_over {
                flush.answer(answer);
            } else {
                next = Some(next.map_or(time_left, |it| time_left.min(it)));
            }
            !is_over
        });
        (has_marked, next)
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
            tracing::warn!("the bus did not stop within its time limit; shutdown continues without it");
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
