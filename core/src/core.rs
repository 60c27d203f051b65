//! [`Core`]: one node with one shard, for an embedder with one thread.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use crate::admission::{Opening, Refused};
use crate::config::Config;
use crate::key::EntityKey;
use crate::node::{Node, UnknownEntity};
use crate::resolve::{Reply, Request, Resolve};
use crate::shard::{ConnId, DrainOptions, Input, Output, Shard};
use crate::time::Timestamp;

/// A [`Node`] and its only [`Shard`] as one state machine, which gives the reads to be done as outputs too.
///
/// See [`Shard`] for how to drive it.
pub struct Core {
    node: Node,
    shard: Shard,
    reads: Arc<Reads>,
}

/// What a [`Core`] wants done.
#[must_use = "outputs are to be acted upon"]
#[derive(Debug)]
pub enum CoreOutput<'a> {
    /// Read an entity and answer through the reply, now or later.
    Read(Request, Reply),
    /// See to connections.
    Shard(Output<'a>),
}

/// Reads that have begun in the books and wait to be polled.
struct Reads {
    queue: Mutex<VecDeque<(Request, Reply)>>,
    waker: Waker,
}

impl Core {
    /// Makes a core. `waker` is called when there are outputs that no call on this core caused: after replies from other
    /// threads, or notifies on [`node`](Self::node)'s handle.
    pub fn new(config: Config, waker: Waker) -> Self {
        let reads = Arc::new(Reads {
            queue: Mutex::default(),
            waker: waker.clone(),
        });
        let (node, mut shards) = Node::new(config, reads.clone(), vec![waker]);
        let shard = shards.remove(0);
        Self { node, shard, reads }
    }

    /// As [`Shard::open`].
    ///
    /// # Errors
    /// [`Refused`]: drop the socket.
    pub fn open(&mut self, now: Timestamp) -> Result<ConnId, Refused> {
        self.shard.open(now)
    }

    /// As [`Shard::open_with`].
    ///
    /// # Errors
    /// [`Refused`]: drop the socket.
    pub fn open_with(&mut self, now: Timestamp, opening: &Opening) -> Result<ConnId, Refused> {
        self.shard.open_with(now, opening)
    }

    /// As [`Shard::may_accept`].
    ///
    /// # Errors
    /// When to ask again.
    pub fn may_accept(&self, now: Timestamp) -> Result<(), Timestamp> {
        self.shard.may_accept(now)
    }

    /// As [`Shard::handle`].
    pub fn handle(&mut self, now: Timestamp, input: Input<'_>) {
        self.shard.handle(now, input);
    }

    /// As [`Shard::is_paused`].
    pub fn is_paused(&self, conn: ConnId) -> bool {
        self.shard.is_paused(conn)
    }

    /// As [`Node::notify`].
    ///
    /// # Errors
    /// [`UnknownEntity`] if entities are registered and this is none of them.
    pub fn notify(&mut self, now: Timestamp, key: &EntityKey) -> Result<(), UnknownEntity> {
        self.node.notify(now, key)
    }

    /// As [`Shard::poll_output`], and the reads that have become necessary.
    pub fn poll_output(&mut self, now: Timestamp) -> Option<CoreOutput<'_>> {
        if let Some((request, reply)) = self.reads.pop() {
            return Some(CoreOutput::Read(request, reply));
        }
        if let Some(output) = self.shard.poll_output(now) {
            return Some(CoreOutput::Shard(output));
        }
        // The shard may have found a read necessary just now.
        let (request, reply) = self.reads.pop()?;
        Some(CoreOutput::Read(request, reply))
    }

    /// As [`Shard::poll_timeout`].
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.shard.poll_timeout()
    }

    /// As [`Shard::handle_timeout`].
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.shard.handle_timeout(now);
    }

    /// The shared half: counters, and notifies from other threads.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The half with the connections.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// As [`Shard::drain`].
    pub fn drain(&mut self, now: Timestamp, options: DrainOptions) {
        self.shard.drain(now, options);
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // Replies hold the node, which holds them.
        while self.reads.pop().is_some() {}
    }
}

impl Reads {
    fn pop(&self) -> Option<(Request, Reply)> {
        self.lock().pop_front()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Request, Reply)>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolve for Reads {
    fn resolve(&self, request: Request, reply: Reply) {
        self.lock().push_back((request, reply));
        // A reply may have led to this read, and its sender doesn't poll.
        self.waker.wake_by_ref();
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("shard", &self.shard).finish()
    }
}
