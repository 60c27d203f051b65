//! [`Guest`]: a shard for connections that no reactor can serve, because their socket is none of the kernel's or its
//! bytes need work before they are frames: TLS that ends in the process, HTTP/2, memory. Another event loop drives it.

use std::fmt;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use entity_sync_core::{Output, Shard, Timestamp};
use parking_lot::{Condvar, Mutex};

use crate::Stop;
use crate::clock::Clock;

/// A shard of a running [`Server`](crate::Server), on loan: see [`Handle::take_guest`](crate::Handle::take_guest).
///
/// Drive it as [`Shard`] says, with [`now`](Self::now) for the time. When it is dropped, the connections that it still
/// has are forgotten and it may be taken again.
pub struct Guest {
    /// Always there, but for the end.
    shard: Option<Shard>,
    place: Arc<Place>,
    clock: Clock,
    stop: Arc<Stop>,
    is_stopping: bool,
}

/// Where a shard without a reactor waits for a guest.
pub(crate) struct Place {
    shard: Mutex<Option<Shard>>,
    came_back: Condvar,
    waker: Arc<GuestWaker>,
}

/// Wakes whoever drives the shard now.
#[derive(Default)]
pub(crate) struct GuestWaker(Mutex<Option<Waker>>);

impl Guest {
    /// What is to be driven.
    pub fn shard(&mut self) -> &mut Shard {
        // Only `drop` takes it.
        self.shard.as_mut().expect("a guest has its shard")
    }

    /// The time of the server's clock.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Has this waker called from now on, and no other, when the shard has outputs or the server is to stop. Set it before
    /// outputs are polled, so that nothing comes between.
    pub fn set_waker(&self, waker: &Waker) {
        let mut current = self.place.waker.0.lock();
        match &mut *current {
            Some(current) => current.clone_from(waker),
            None => *current = Some(waker.clone()),
        }
    }

    /// Whether the server is to stop and all connections have ended, or their time is over: drop the guest, which the
    /// server waits for. Ask once a turn; the first time that it is to stop, this begins to drain the shard.
    pub fn has_stopped(&mut self) -> bool {
        if !self.stop.is_requested() {
            return false;
        }
        if !std::mem::replace(&mut self.is_stopping, true)
            && let Some(options) = self.stop.drain()
        {
            let now = self.now();
            self.shard().drain(now, options);
        }
        self.shard().connections() == 0 || self.stop.time_left().is_zero()
    }

    /// After how long to call [`Shard::handle_timeout`] and [`has_stopped`](Self::has_stopped), if nothing happens
    /// before. Ask after [`Shard::poll_output`] gave `None`.
    pub fn timeout(&mut self) -> Option<Duration> {
        let now = self.now();
        let shard = self.shard().poll_timeout().map(|at| at.since(now));
        let stop = self.is_stopping.then(|| self.stop.time_left());
        [shard, stop].into_iter().flatten().min()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        *self.place.waker.0.lock() = None;
        if let Some(mut shard) = self.shard.take() {
            let now = self.clock.now();
            shard.abandon(now);
            // The sockets are dropped with whoever had the guest.
            while let Some(output) = shard.poll_output(now) {
                match output {
                    Output::Broadcast(broadcast) => broadcast.for_each(|_, _| entity_sync_core::Sent::Closed),
                    Output::Flush(flush) => flush.write(|_, _| entity_sync_core::Sent::Closed),
                    Output::Resume(_) | Output::Shutdown(_) | Output::Close(_) => {}
                }
            }
            *self.place.shard.lock() = Some(shard);
            self.place.came_back.notify_all();
        }
    }
}

impl Place {
    pub(crate) fn new(shard: Shard, waker: Arc<GuestWaker>) -> Self {
        Self {
            shard: Mutex::new(Some(shard)),
            came_back: Condvar::new(),
            waker,
        }
    }

    pub(crate) fn take(self: &Arc<Self>, clock: Clock, stop: &Arc<Stop>) -> Option<Guest> {
        // A server that stops looks at the place after it has said so, so that either it waits or none is taken.
        let mut shard = self.shard.lock();
        if stop.is_requested() {
            return None;
        }
        Some(Guest {
            shard: Some(shard.take()?),
            place: self.clone(),
            clock,
            stop: stop.clone(),
            is_stopping: false,
        })
    }

    pub(crate) fn wake(&self) {
        self.waker.wake_by_ref();
    }

    /// Waits until no guest has the shard, until `deadline` at most.
    pub(crate) fn wait(&self, deadline: Instant) {
        let mut shard = self.shard.lock();
        while shard.is_none() {
            if self.came_back.wait_until(&mut shard, deadline).timed_out() {
                return;
            }
        }
    }
}

impl Wake for GuestWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let waker = self.0.lock().clone();
        // Outside of the lock: it is someone else's code.
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").finish_non_exhaustive()
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").finish_non_exhaustive()
    }
}
