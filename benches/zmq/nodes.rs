//! Nodes without clients.

use std::error::Error;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use entity_sync_bus::{ClusterConfig, cluster_config};
use entity_sync_core::{Config, EntityKey, Node, Reply, Request, Resolve, Seed, Timestamp};
use entity_sync_zmq::{Endpoint, Turn, ZmqBus, ZmqConfig};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

/// How long a run may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A node's clock.
#[derive(Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Timestamp {
        Timestamp::after_start(self.0.elapsed())
    }
}

struct NoReads;

impl Resolve for NoReads {
    fn resolve(&self, _: Request, _: Reply) {}
}

pub(crate) fn node() -> Node {
    Node::new(Config::new(Seed(1, 2)), Arc::new(NoReads), vec![Waker::noop().clone()]).0
}

pub(crate) fn rules() -> ClusterConfig {
    let mut rules = cluster_config();
    // Hearts beat in both sides' runs, or in none.
    rules.heartbeat = Duration::from_millis(500);
    rules
}

/// Whom a node hears, with a queue for so many messages.
pub(crate) fn config(peer: Option<&str>, queue: usize) -> Result<ZmqConfig, Box<dyn Error>> {
    let mut config = ZmqConfig::default();
    config.bind = vec!["tcp://127.0.0.1:0".parse()?];
    if let Some(peer) = peer {
        config.peers = vec![peer.parse::<Endpoint>()?];
    }
    config.send_queue = queue.try_into()?;
    Ok(config)
}

/// A node whose bus this program drives.
pub(crate) struct Driven {
    pub(crate) node: Node,
    pub(crate) clock: Clock,
    pub(crate) bus: ZmqBus,
    poll: Poll,
    events: Events,
}

impl Driven {
    pub(crate) fn start(config: &ZmqConfig) -> Result<Self, Box<dyn Error>> {
        let (node, clock) = (node(), Clock::start());
        let bus = ZmqBus::new(config, rules(), node.clone(), clock.now(), Waker::noop().clone())?;
        let poll = Poll::new()?;
        let fd = bus.fd();
        poll.registry()
            .register(&mut SourceFd(&fd), Token(0), Interest::READABLE)?;
        Ok(Self {
            node,
            clock,
            bus,
            poll,
            events: Events::with_capacity(4),
        })
    }

    /// Keys that have been looked up here.
    pub(crate) fn heard(&self) -> u64 {
        self.bus.view().counters().keys.get()
    }

    pub(crate) fn hears_someone(&self) -> bool {
        self.bus.view().counters().digests.get() > 0
    }

    /// One turn. Says until when there is nothing more to do.
    pub(crate) fn process(&mut self) -> Turn {
        self.bus.process(self.clock.now())
    }

    /// Sleeps until then, or until something arrives.
    pub(crate) fn sleep(&mut self, turn: Turn) -> Result<(), Box<dyn Error>> {
        if let Turn::Until(at) = turn {
            self.poll.poll(&mut self.events, Some(at.since(self.clock.now())))?;
        }
        Ok(())
    }

    /// Both.
    pub(crate) fn turn(&mut self) -> Result<(), Box<dyn Error>> {
        let turn = self.process();
        self.sleep(turn)
    }
}

pub(crate) fn keys(count: usize) -> Result<Vec<EntityKey>, Box<dyn Error>> {
    (0..count)
        .map(|id| Ok(EntityKey::new("items", &format!("{id:08}"))?))
        .collect()
}
