//! [`zmq()`]: a [`ZmqBus`] on a thread of its own.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use entity_sync_bus::{Clock, ClusterConfig, ClusterView, Join, Member, StartError};
use entity_sync_core::Node;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use parking_lot::{Condvar, Mutex};

use crate::bus::{Turn, ZmqBus};
use crate::config::ZmqConfig;
use crate::view::ZmqView;

const WAKER: Token = Token(0);
const SOCKET: Token = Token(1);

/// After an error of the system's, before it is asked again.
const PAUSE: Duration = Duration::from_millis(10);

/// To close sockets takes a moment longer than to send what they have.
const CLOSE_TIME: Duration = Duration::from_millis(200);

/// What may be sent still by a bus that nobody waits for.
const HURRIED_LINGER: Duration = Duration::from_millis(100);

/// A cluster over ZeroMQ. See [`cluster_config`](entity_sync_bus::cluster_config) for where `cluster` comes from.
pub fn zmq(config: ZmqConfig, cluster: ClusterConfig) -> Zmq {
    Zmq {
        config,
        cluster,
        view: Arc::default(),
    }
}

/// A bus over ZeroMQ, to be started: see [`zmq()`].
#[derive(Debug)]
pub struct Zmq {
    config: ZmqConfig,
    cluster: ClusterConfig,
    view: Arc<ZmqView>,
}

impl Zmq {
    /// How the node will be connected, once it has joined.
    pub fn view(&self) -> &Arc<ZmqView> {
        &self.view
    }
}

impl Join for Zmq {
    fn join(self: Box<Self>, node: Node, clock: Clock) -> Result<Box<dyn Member>, StartError> {
        let poll = Poll::new().map_err(StartError::Thread)?;
        let waker = mio::Waker::new(poll.registry(), WAKER).map_err(StartError::Thread)?;
        let alarm = Arc::new(Alarm {
            waker,
            leave_by: OnceLock::new(),
            is_over: Mutex::new(false),
            over: Condvar::new(),
        });
        let waker = Waker::from(alarm.clone());
        let Self { config, cluster, view } = *self;
        let bus = ZmqBus::with_view(&config, cluster, node, clock(), waker, view)?;
        let [first, second] = bus.link_fds();
        for fd in [bus.fd(), first, second] {
            poll.registry()
                .register(&mut SourceFd(&fd), SOCKET, Interest::READABLE)
                .map_err(StartError::Thread)?;
        }
        tracing::debug!(addresses = ?bus.addresses(), "the bus is open");
        let view = bus.view().clone();
        let of_thread = alarm.clone();
        std::thread::Builder::new()
            .name("entity-sync bus".to_owned())
            .spawn(move || run_and_end(bus, poll, clock, &of_thread))
            .map_err(StartError::Thread)?;
        Ok(Box::new(OnThread { alarm, view }))
    }
}

/// What the bus's thread, and those that wait for it, have in common.
struct Alarm {
    waker: mio::Waker,
    /// Until when it may take to leave, once it is to.
    leave_by: OnceLock<Instant>,
    is_over: Mutex<bool>,
    over: Condvar,
}

/// The other side of the bus's thread.
struct OnThread {
    alarm: Arc<Alarm>,
    view: Arc<ClusterView>,
}

impl Member for OnThread {
    fn view(&self) -> &Arc<ClusterView> {
        &self.view
    }

    fn leave(&mut self, timeout: Duration) {
        self.alarm.ask_to_leave(timeout);
        if !self.alarm.wait_until_over(timeout + CLOSE_TIME) {
            tracing::warn!("the bus has not ended in time, and is left to itself");
        }
    }
}

impl Drop for OnThread {
    fn drop(&mut self) {
        self.alarm.ask_to_leave(HURRIED_LINGER);
    }
}

fn run_and_end(mut bus: ZmqBus, mut poll: Poll, clock: Clock, alarm: &Alarm) {
    let run = catch_unwind(AssertUnwindSafe(|| run(&mut bus, &mut poll, &clock, alarm)));
    match (run, alarm.leave_by.get()) {
        (Ok(()), Some(by)) => bus.leave(clock(), by.saturating_duration_since(Instant::now())),
        _ => {
            tracing::error!("the bus panicked: this node tells and hears of no change any more, until it is restarted");
            bus.give_up(clock());
        }
    }
    alarm.set_over();
}

/// Until it is to leave.
fn run(bus: &mut ZmqBus, poll: &mut Poll, clock: &Clock, alarm: &Alarm) {
    let mut events = Events::with_capacity(4);
    while alarm.leave_by.get().is_none() {
        let turn = bus.process(clock());
        let Turn::Until(at) = turn else {
            continue;
        };
        // What has woken it does not matter: it looks at everything that may have something.
        match poll.poll(&mut events, Some(at.since(clock()))) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                tracing::error!(%error, "the bus can't wait for its sockets");
                std::thread::sleep(PAUSE);
            }
            _ => {}
        }
    }
}

impl Alarm {
    fn ask_to_leave(&self, timeout: Duration) {
        let now = Instant::now();
        let _ = self.leave_by.set(now.checked_add(timeout).unwrap_or(now));
        self.wake();
    }

    fn wake(&self) {
        // It fails only if the eventfd is gone, and with it the thread.
        let _ = self.waker.wake();
    }

    fn set_over(&self) {
        *self.is_over.lock() = true;
        self.over.notify_all();
    }

    /// Says whether the thread has ended in time.
    fn wait_until_over(&self, timeout: Duration) -> bool {
        let mut is_over = self.is_over.lock();
        self.over.wait_while_for(&mut is_over, |is_over| !*is_over, timeout);
        *is_over
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        Alarm::wake(&self);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        Alarm::wake(self);
    }
}

impl fmt::Debug for OnThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnThread")
            .field("view", &self.view)
            .finish_non_exhaustive()
    }
}
