//! [`Alarm`]: how a bus's thread is woken, told to go, and waited for.

use std::sync::Arc;
use std::sync::OnceLock;
use std::task::Wake;
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// What a thread that waits, and those that wait for it, have in common.
#[derive(Default)]
pub(crate) struct Alarm {
    thread: OnceLock<Thread>,
    /// Until when it may take to leave, once it is to.
    leave_by: OnceLock<Instant>,
    is_over: Mutex<bool>,
    over: Condvar,
}

impl Alarm {
    /// To be called on the thread, first.
    pub(crate) fn set_here(&self) {
        let _ = self.thread.set(std::thread::current());
    }

    /// Waits to be woken, on the thread.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        match timeout {
            Some(timeout) => std::thread::park_timeout(timeout),
            None => std::thread::park(),
        }
    }

    pub(crate) fn leave_by(&self) -> Option<Instant> {
        self.leave_by.get().copied()
    }

    pub(crate) fn ask_to_leave(self: &Arc<Self>, timeout: Duration) {
        let _ = self.leave_by.set(Instant::now() + timeout);
        self.wake_by_ref();
    }

    /// The thread has ended, or will say nothing more.
    pub(crate) fn set_over(&self) {
        *self.is_over.lock() = true;
        self.over.notify_all();
    }

    /// Says whether the thread has ended in time.
    pub(crate) fn wait_until_over(&self, timeout: Duration) -> bool {
        let mut is_over = self.is_over.lock();
        self.over.wait_while_for(&mut is_over, |is_over| !*is_over, timeout);
        *is_over
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before it is known, the thread has not looked at anything yet.
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}
