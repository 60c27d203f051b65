//! [`zmq()`]: a [`ZmqBus`] on a thread of its own.

use std::io;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

use entity_sync_bus::{
    BusThread, Clock, ClusterConfig, Driven, Health, Join, LogLimit, Member, Next, STOP_GRACE, StartError, Undelivered,
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
        let driver = Driver {
            bus,
            poll,
            events: Events::with_capacity(4),
            clock,
            failures: LogLimit::default(),
        };
        BusThread::spawn(view, waker, &health, driver)
    }
}

struct Driver {
    bus: ZmqBus,
    poll: Poll,
    events: Events,
    clock: Clock,
    failures: LogLimit,
}

impl Driven for Driver {
    fn turn(&mut self) -> Next {
        match self.bus.process((self.clock)()) {
            Turn::Again => Next::Again,
            Turn::Until(at) => Next::Within(Some(at.since((self.clock)()))),
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        // What has woken it does not matter: it looks at everything that may have something.
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                if let Some(skipped) = self.failures.happened() {
                    tracing::error!(%error, skipped, "the bus can't wait for its sockets");
                }
                std::thread::sleep(PAUSE);
            }
            _ => {}
        }
    }

    fn mark(&mut self) -> u64 {
        self.bus.handed_over().mark()
    }

    fn look(&self, mark: u64) -> Result<(), Undelivered> {
        self.bus.handed_over().look(mark, self.bus.view())
    }

    fn has_unsent(&self) -> bool {
        self.bus.handed_over().missing(self.bus.view()) > 0
    }

    fn leave(&mut self, timeout: Duration) {
        // One that nobody waits for may still send a little.
        self.bus.say_goodbye(timeout.max(STOP_GRACE));
    }

    fn give_up(&mut self) {
        self.bus.give_up((self.clock)());
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use entity_sync_bus::cluster_config;
    use entity_sync_core::{Config, EntityKey, Reply, Request, Resolve, Seed, Timestamp};

    use super::*;
    use crate::{Broker, BrokerConfig, BrokerEndpoints};

    /// Long enough for anything, and less than forever.
    const LONG: Duration = Duration::from_secs(60);

    struct NoReads;

    impl Resolve for NoReads {
        fn resolve(&self, request: Request, _: Reply) {
            panic!("nobody asked for {request:?}");
        }
    }

    struct Peer {
        node: Node,
        clock: Clock,
        member: Box<dyn Member>,
        links: Arc<ZmqView>,
    }

    impl Peer {
        /// One that says nothing by itself for a long time.
        fn start(change: impl FnOnce(&mut ZmqConfig)) -> Self {
            let (node, _) = Node::new(Config::new(Seed(1, 2)), Arc::new(NoReads), vec![Waker::noop().clone()]);
            let start = Instant::now();
            let clock: Clock = Arc::new(move || Timestamp::after_start(start.elapsed()));
            let mut config = ZmqConfig::default();
            change(&mut config);
            let mut cluster = cluster_config();
            cluster.heartbeat = LONG;
            let bus = zmq(config, cluster);
            let links = bus.view().clone();
            let member = Box::new(bus)
                .join(node.clone(), clock.clone(), Health::default())
                .expect("a good start");
            Self {
                node,
                clock,
                member,
                links,
            }
        }

        fn at(brokers: &[Broker]) -> Self {
            let endpoints = |broker: &Broker| BrokerEndpoints {
                frontend: broker.frontend().parse().expect("an endpoint"),
                backend: broker.backend().parse().expect("an endpoint"),
            };
            Self::start(|it| it.brokers = brokers.iter().map(endpoints).collect())
        }

        fn notify(&self, id: &str) {
            let key = EntityKey::new("items", id).expect("short");
            self.node.notify((self.clock)(), &key).expect("registered");
        }

        fn wait_for_brokers(&self, count: u64) {
            let start = Instant::now();
            while self.links.status().connected_brokers != count {
                assert!(start.elapsed() < LONG);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn broker() -> Broker {
        let any = || "tcp://127.0.0.1:0".parse().expect("an endpoint");
        Broker::start(&BrokerConfig::new(any(), any())).expect("a free port")
    }

    #[test]
    fn of_two_brokers_one_that_is_down_keeps_nobody_from_leaving() {
        let brokers = [broker(), broker()];
        let mut peer = Peer::at(&brokers);
        peer.wait_for_brokers(2);
        peer.notify("1");
        assert_eq!(peer.member.flush(LONG), Ok(()));
        let [first, _second] = brokers;
        drop(first);
        peer.wait_for_brokers(1);
        let start = Instant::now();
        assert_eq!(peer.member.leave(LONG / 4), Ok(()));
        assert!(start.elapsed() < LONG / 10, "{:?}", start.elapsed());
    }

    #[test]
    fn what_was_handed_over_keeps_nobody_from_leaving_when_the_bus_is_lost() {
        let broker = broker();
        let mut peer = Peer::at(std::slice::from_ref(&broker));
        peer.wait_for_brokers(1);
        peer.notify("1");
        assert_eq!(peer.member.flush(LONG), Ok(()));
        drop(broker);
        peer.wait_for_brokers(0);
        let start = Instant::now();
        assert_eq!(peer.member.leave(LONG / 4), Ok(()));
        assert!(start.elapsed() < LONG / 10, "{:?}", start.elapsed());
    }

    #[test]
    fn what_was_not_handed_over_is_counted_and_nothing_else_is() {
        let broker = broker();
        let mut peer = Peer::at(std::slice::from_ref(&broker));
        peer.wait_for_brokers(1);
        for id in ["1", "2", "3"] {
            peer.notify(id);
            assert_eq!(peer.member.flush(LONG), Ok(()));
        }
        drop(broker);
        peer.wait_for_brokers(0);
        peer.notify("4");
        let undelivered = peer.member.flush(LONG / 100).expect_err("there is no connection");
        assert_eq!(undelivered.others, 1);
        let undelivered = peer.member.leave(LONG / 100).expect_err("there is no connection");
        assert_eq!(undelivered.others, 1);
    }

    #[test]
    fn a_flush_waits_for_no_heartbeat() {
        let peer = Peer::start(|it| it.bind = vec!["tcp://127.0.0.1:0".parse().expect("an endpoint")]);
        peer.notify("1");
        // Until there is nothing to look at but the flush.
        std::thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        assert_eq!(peer.member.flush(LONG / 4), Ok(()));
        assert!(start.elapsed() < LONG / 10, "{:?}", start.elapsed());
    }
}
