//! [`zmq()`]: a [`ZmqBus`] on a thread of its own.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

use entity_sync_bus::{
    BusThread, Clock, ClusterConfig, Departure, Health, Join, LogLimit, Member, STOP_GRACE, StartError, Undelivered,
};
use entity_sync_core::Node;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::bus::{Turn, ZmqBus};
use crate::config::ZmqConfig;
use crate::view::ZmqView;

const WAKER: Token = Token(0);
const SOCKET: Token = Token(1);

/// After an error of the system's, before it is asked again.
const PAUSE: Duration = Duration::from_millis(10);

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
    fn join(self: Box<Self>, node: Node, clock: Clock, health: Health) -> Result<Box<dyn Member>, StartError> {
        let poll = Poll::new().map_err(StartError::Thread)?;
        let waker = mio::Waker::new(poll.registry(), WAKER).map_err(StartError::Thread)?;
        let waker = Waker::from(Arc::new(PollWaker(waker)));
        let Self { config, cluster, view } = *self;
        let bus = ZmqBus::with_view(&config, cluster, node, clock(), waker.clone(), view, &health)?;
        let [first, second] = bus.link_fds();
        for fd in [bus.fd(), first, second] {
            poll.registry()
                .register(&mut SourceFd(&fd), SOCKET, Interest::READABLE)
                .map_err(StartError::Thread)?;
        }
        tracing::debug!(addresses = ?bus.addresses(), "the bus is open");
        let view = bus.view().clone();
        BusThread::spawn(view, waker, &health, move |departure| {
            run_and_end(bus, poll, &clock, departure);
        })
    }
}

fn run_and_end(mut bus: ZmqBus, mut poll: Poll, clock: &Clock, departure: &Departure) {
    match catch_unwind(AssertUnwindSafe(|| run(&mut bus, &mut poll, clock, departure))) {
        // One that nobody waits for may still send a little.
        Ok(time_left) => bus.leave(time_left.max(STOP_GRACE)),
        Err(panic) => {
            bus.give_up(clock());
            // Whoever started the thread reports it.
            resume_unwind(panic);
        }
    }
}

/// Until it is to leave, in the time that this gives.
fn run(bus: &mut ZmqBus, poll: &mut Poll, clock: &Clock, departure: &Departure) -> Duration {
    let mut events = Events::with_capacity(4);
    let failures = LogLimit::default();
    let mut turns = 0;
    loop {
        let time_left = departure.time_left();
        let turn = bus.process(clock());
        turns += 1;
        // libzmq has what it was given while something is bound or connected; what it was given before is gone.
        let view = bus.view().clone();
        let look = |mark| match turns > mark && view.is_connected() {
            true => Ok(()),
            false => Err(Undelivered::messages(view.counters().published.get())),
        };
        let until_flush = departure.answer_flushes(|| turns, look);
        if let Some(time_left) = time_left {
            let has_lost = !view.is_connected() && view.counters().published.get() > 0;
            if time_left.is_zero() || !has_lost {
                if has_lost {
                    departure.leave_behind(Undelivered::messages(view.counters().published.get()));
                }
                return time_left;
            }
        }
        let Turn::Until(at) = turn else {
            continue;
        };
        let until = [Some(at.since(clock())), time_left, until_flush];
        // What has woken it does not matter: it looks at everything that may have something.
        match poll.poll(&mut events, until.into_iter().flatten().min()) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                if let Some(skipped) = failures.happened() {
                    tracing::error!(%error, skipped, "the bus can't wait for its sockets");
                }
                std::thread::sleep(PAUSE);
            }
            _ => {}
        }
    }
}

struct PollWaker(mio::Waker);

impl Wake for PollWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // It fails only if the eventfd is gone, and with it the thread.
        let _ = self.0.wake();
    }
}
