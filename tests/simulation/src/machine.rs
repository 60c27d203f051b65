//! The machine under test: a `Core`, or the shards of a `Node`, driven only when it asks for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use entity_sync_core::{
    ClientId, Config, ConnId, Core, CoreOutput, EntityKey, Input, Node, Output, Reply, Request, Shard, ShardCounts,
    Timestamp,
};

use crate::store::Requests;

pub(crate) struct Machine {
    kind: Kind,
    /// Whether a shard's driver has a reason to poll it.
    flags: Vec<Arc<Flag>>,
    requests: Arc<Requests>,
}

enum Kind {
    Core(Box<Core>),
    Node(Node, Vec<Shard>),
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Machine {
    /// One `Core` for 0 shards, else that many shards of one node.
    pub(crate) fn new(config: Config, shards: usize) -> Self {
        let flags: Vec<_> = (0..shards.max(1))
            .map(|_| Arc::new(Flag(AtomicBool::new(false))))
            .collect();
        let mut wakers: Vec<Waker> = flags.iter().cloned().map(Waker::from).collect();
        let requests = Arc::new(Requests::default());
        let kind = if shards == 0 {
            Kind::Core(Box::new(Core::new(config, wakers.remove(0))))
        } else {
            let (node, shards) = Node::new(config, requests.clone(), wakers);
            Kind::Node(node, shards)
        };
        Self { kind, flags, requests }
    }

    pub(crate) fn is_core(&self) -> bool {
        matches!(self.kind, Kind::Core(_))
    }

    pub(crate) fn shards(&self) -> usize {
        self.flags.len()
    }

    /// Whether the shard has said that it may have outputs.
    pub(crate) fn wants_poll(&self, shard: usize) -> bool {
        self.flags[shard].0.load(Ordering::SeqCst)
    }

    fn needs_poll(&self, shard: usize, needs: bool) {
        self.flags[shard].0.store(needs, Ordering::SeqCst);
    }

    pub(crate) fn open(&mut self, shard: usize, now: Timestamp) -> Option<ConnId> {
        self.needs_poll(shard, true);
        match &mut self.kind {
            Kind::Core(core) => core.open(now).ok(),
            Kind::Node(_, shards) => shards[shard].open(now).ok(),
        }
    }

    pub(crate) fn handle(&mut self, shard: usize, now: Timestamp, input: Input<'_>) {
        self.needs_poll(shard, true);
        match &mut self.kind {
            Kind::Core(core) => core.handle(now, input),
            Kind::Node(_, shards) => shards[shard].handle(now, input),
        }
    }

    /// Says whether the entity is known.
    pub(crate) fn notify(&mut self, now: Timestamp, key: &EntityKey) -> bool {
        match &mut self.kind {
            Kind::Core(core) => {
                let result = core.notify(now, key);
                self.needs_poll(0, true);
                result.is_ok()
            }
            Kind::Node(node, _) => node.notify(now, key).is_ok(),
        }
    }

    pub(crate) fn node(&self) -> &Node {
        self.shard(0).node()
    }

    pub(crate) fn client_id(&self, shard: usize, conn: ConnId) -> ClientId {
        self.shard(shard).client_id(conn)
    }

    pub(crate) fn panic_next(&self, panics: bool) {
        self.requests.panic_next(panics);
    }

    pub(crate) fn handle_timeout(&mut self, shard: usize, now: Timestamp) {
        self.needs_poll(shard, true);
        match &mut self.kind {
            Kind::Core(core) => core.handle_timeout(now),
            Kind::Node(_, shards) => shards[shard].handle_timeout(now),
        }
    }

    pub(crate) fn poll_timeout(&self, shard: usize) -> Option<Timestamp> {
        self.shard(shard).poll_timeout()
    }

    /// Gives the shard's next output to `act`, and reads to `read`. Says whether there was one.
    pub(crate) fn poll_output(
        &mut self,
        shard: usize,
        now: Timestamp,
        read: impl FnOnce(Request, Reply),
        act: impl FnOnce(Output<'_>),
    ) -> bool {
        let did = match &mut self.kind {
            Kind::Core(core) => match core.poll_output(now) {
                Some(CoreOutput::Read(request, reply)) => {
                    read(request, reply);
                    true
                }
                Some(CoreOutput::Shard(output)) => {
                    act(output);
                    true
                }
                None => false,
            },
            Kind::Node(_, shards) => match shards[shard].poll_output(now) {
                Some(output) => {
                    act(output);
                    true
                }
                None => false,
            },
        };
        if !did {
            self.needs_poll(shard, false);
        }
        did
    }

    /// The reads that the node has handed over.
    pub(crate) fn take_requests(&mut self) -> Vec<(Request, Reply)> {
        self.requests.take()
    }

    /// The driver is not to read from it.
    pub(crate) fn is_paused(&self, shard: usize, conn: ConnId) -> bool {
        self.shard(shard).is_paused(conn)
    }

    pub(crate) fn queued_bytes(&self, shard: usize, conn: ConnId) -> Option<(usize, usize)> {
        self.shard(shard).queued_bytes(conn)
    }

    pub(crate) fn counters(&self) -> ShardCounts {
        let mut sum = ShardCounts::default();
        for shard in 0..self.shards() {
            sum += self.shard(shard).counters().snapshot();
        }
        sum
    }

    pub(crate) fn reads(&self) -> u64 {
        self.node().counters().reads.get()
    }

    pub(crate) fn check(&self) {
        for shard in 0..self.shards() {
            self.shard(shard).assert_consistent();
        }
        self.node().assert_consistent();
    }

    fn shard(&self, shard: usize) -> &Shard {
        match &self.kind {
            Kind::Core(core) => core.shard(),
            Kind::Node(_, shards) => &shards[shard],
        }
    }
}
