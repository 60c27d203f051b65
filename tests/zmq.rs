//! A cluster over ZeroMQ, on the real libzmq. What is told here of the traps, each was seen there.

mod brokers;
mod curve;
mod errors;
mod mesh;
mod names;
mod traps;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use entity_sync_bus::{Clock, ClusterConfig, ClusterCounts, Join, Member, PeerState, cluster_config};
use entity_sync_core::{Config, EntityKey, Node, Reply, Request, Resolve, Seed, Timestamp};
use entity_sync_mio::{Rows, Server};
use entity_sync_tests::{Client, wait_for};
use entity_sync_zmq::{Endpoint, Turn, ZmqBus, ZmqConfig, ZmqStatus, ZmqView, zmq};

/// An address that no other test has, now or later: all of 127.0.0.0/8 is this machine.
fn address() -> Endpoint {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    let bytes = [(process >> 8) as u8, process as u8, 1 + number as u8];
    format!("tcp://127.{}.{}.{}:5555", bytes[0], bytes[1], bytes[2])
        .parse()
        .unwrap()
}

/// One of a mesh of these addresses.
fn mesh(bind: &Endpoint, peers: &[&Endpoint]) -> ZmqConfig {
    let mut config = ZmqConfig::default();
    config.bind = vec![bind.clone()];
    config.peers = peers.iter().map(|&it| it.clone()).collect();
    config
}

fn key(id: &str) -> EntityKey {
    EntityKey::new("items", id).unwrap()
}

/// What all nodes read.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<HashMap<String, String>>>);

impl Store {
    fn put(&self, id: &str, row: &str) {
        self.0.lock().unwrap().insert(id.to_owned(), row.to_owned());
    }
}

/// A server with clients, and its part in the cluster, which has a thread of its own.
struct Peer {
    store: Store,
    server: Server,
    member: Box<dyn Member>,
    links: Arc<ZmqView>,
    reads: Arc<Mutex<HashMap<String, u64>>>,
}

impl Peer {
    fn start(store: &Store, config: ZmqConfig) -> Self {
        Self::start_with(store, config, |_| {})
    }

    fn start_with(store: &Store, config: ZmqConfig, rules: impl FnOnce(&mut ClusterConfig)) -> Self {
        let reads = Arc::<Mutex<HashMap<String, u64>>>::default();
        let (rows, counted) = (store.clone(), reads.clone());
        let mut of_server = entity_sync_mio::Config::new(["127.0.0.1:0".parse().unwrap()]);
        of_server.reactors = std::num::NonZeroUsize::MIN;
        let server = Server::start(of_server, move |request: Request, reply: entity_sync_mio::Reply| {
            let id = request.key.id().to_owned();
            let row = rows.0.lock().unwrap().get(&id).cloned();
            *counted.lock().unwrap().entry(id).or_default() += 1;
            reply.rows(row.into_iter().collect::<Rows>()).unwrap();
        })
        .unwrap();
        let bus = zmq(config, cluster(rules));
        let links = bus.view().clone();
        let handle = server.handle();
        let member = Box::new(bus)
            .join(handle.node().clone(), Arc::new(handle.clock()), handle.health().clone())
            .unwrap();
        Self {
            store: store.clone(),
            server,
            member,
            links,
            reads,
        }
    }

    fn client(&self, ids: &[&str]) -> Client {
        let mut client = Client::connect(self.server.addresses()[0]);
        for id in ids {
            client.subscribe("items", id);
        }
        client.sync();
        client
    }

    fn put(&self, id: &str, row: &str) {
        self.store.put(id, row);
        self.notify(id);
    }

    fn notify(&self, id: &str) {
        self.server.handle().notify(&key(id)).unwrap();
    }

    fn counts(&self) -> ClusterCounts {
        self.member.view().status().counts
    }

    fn links(&self) -> ZmqStatus {
        self.links.status()
    }

    fn peers(&self, state: PeerState) -> usize {
        let status = self.member.view().status();
        status.peers.iter().filter(|it| it.state == state).count()
    }

    /// Waits until it hears so many others.
    fn wait_for_peers(&self, count: usize) {
        wait_for("peers", || self.peers(PeerState::Alive) == count);
    }

    fn reads_of(&self, id: &str) -> u64 {
        self.reads.lock().unwrap().get(id).copied().unwrap_or(0)
    }
}

/// The rules of the tests' cluster: heartbeats that a busy machine keeps, too.
fn cluster(rules: impl FnOnce(&mut ClusterConfig)) -> ClusterConfig {
    let mut cluster = cluster_config();
    cluster.heartbeat = Duration::from_millis(200);
    cluster.lost_after_heartbeats = 20;
    // However rare heartbeats are in a test.
    cluster.forget_after = Duration::from_secs(24 * 60 * 60);
    rules(&mut cluster);
    cluster
}

/// Nobody is subscribed to anything here.
struct NoReads;

impl Resolve for NoReads {
    fn resolve(&self, request: Request, _: Reply) {
        panic!("nobody asked for {request:?}");
    }
}

/// A node without clients.
pub(crate) fn bare_node() -> (Node, Clock) {
    let (node, _) = Node::new(Config::new(Seed(1, 2)), Arc::new(NoReads), vec![Waker::noop().clone()]);
    let start = Instant::now();
    (node, Arc::new(move || Timestamp::after_start(start.elapsed())))
}

/// A node whose bus is driven by an event loop of the test's, which waits for nothing but what the documentation says: its
/// fds, its waker and its time.
struct Loop {
    node: Node,
    clock: Clock,
    view: Arc<entity_sync_bus::ClusterView>,
    links: Arc<ZmqView>,
    alarm: Arc<LoopAlarm>,
    thread: Option<JoinHandle<()>>,
}

struct LoopAlarm {
    waker: mio::Waker,
    is_over: AtomicBool,
    is_stuck: AtomicBool,
}

impl Wake for LoopAlarm {
    fn wake(self: Arc<Self>) {
        self.waker.wake().unwrap();
    }
}

impl Loop {
    fn start(config: &ZmqConfig, rules: impl FnOnce(&mut ClusterConfig)) -> Self {
        use mio::{Events, Interest, Poll, Token, unix::SourceFd};
        let mut poll = Poll::new().unwrap();
        let alarm = Arc::new(LoopAlarm {
            waker: mio::Waker::new(poll.registry(), Token(0)).unwrap(),
            is_over: AtomicBool::new(false),
            is_stuck: AtomicBool::new(false),
        });
        let (node, clock) = bare_node();
        let mut bus = ZmqBus::new(
            config,
            cluster(rules),
            node.clone(),
            clock(),
            Waker::from(alarm.clone()),
        )
        .unwrap();
        let [first, second] = bus.link_fds();
        for fd in [bus.fd(), first, second] {
            let registry = poll.registry();
            registry
                .register(&mut SourceFd(&fd), Token(1), Interest::READABLE)
                .unwrap();
        }
        let (view, links) = (bus.view().clone(), bus.zmq_view().clone());
        let (of_thread, now) = (alarm.clone(), clock.clone());
        let thread = std::thread::spawn(move || {
            let mut events = Events::with_capacity(8);
            while !of_thread.is_over.load(Ordering::SeqCst) {
                if of_thread.is_stuck.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                if let Turn::Until(at) = bus.process(now()) {
                    poll.poll(&mut events, Some(at.since(now()))).unwrap();
                }
            }
            // No goodbye: as if the process had died.
            drop(bus);
        });
        Self {
            node,
            clock,
            view,
            links,
            alarm,
            thread: Some(thread),
        }
    }

    fn notify(&self, id: &str) {
        self.node.notify((self.clock)(), &key(id)).unwrap();
    }

    fn counts(&self) -> ClusterCounts {
        self.view.status().counts
    }

    fn wait_for_peers(&self, count: usize) {
        wait_for("peers", || {
            let peers = self.view.status().peers;
            peers.iter().filter(|it| it.state == PeerState::Alive).count() == count
        });
    }

    /// It does nothing until this is taken back.
    fn set_stuck(&self, is_stuck: bool) {
        self.alarm.is_stuck.store(is_stuck, Ordering::SeqCst);
    }

    fn kill(self) {
        drop(self);
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.alarm.is_over.store(true, Ordering::SeqCst);
        self.alarm.waker.wake().unwrap();
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}
