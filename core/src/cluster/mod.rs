//! A node among others: what is notified on one is told to all, whatever the bus between them does.
//!
//! A [`Cluster`] decides and does nothing, as a [`Shard`](crate::Shard) does. Whoever has the bus feeds it what arrives and
//! publishes what it says. The bus may lose, repeat and reorder messages, and be cut for a while: each message carries a
//! number, each node says again and again in *digests* how far it has counted, and whoever has missed something reads again
//! what its clients are subscribed to. Nobody is asked for anything, and nothing is sent twice.
//!
//! | fault | how it is noticed | what is read again |
//! | --- | --- | --- |
//! | a message lost, in the middle or the last one; a partition; a subscription of the bus that did not arrive | numbers that are missing one heartbeat after the next message or digest | keys of its bucket |
//! | a peer is silent for too long | no digest for `lost_after_heartbeats` | all keys: it may have died with messages that nobody can count |
//! | a peer, or a run of it, that was never heard | its digest | all keys: a run before it may have died so |
//!
//! What is read again is delivered only if it differs from what was delivered last, at a pace that the store bears, and not
//! at all if a notify leads to a read before.
//!
//! A [`PlainCluster`] is for queues that carry one JSON body for each change, as the Go original's did.

mod buckets;
mod config;
mod deliveries;
mod error;
mod event;
mod hearing;
mod latecomers;
mod message;
mod peers;
mod plain;
mod plain_body;
mod published;
mod repairs;
mod secret;
mod status;
mod telling;
#[cfg(test)]
mod tests;
mod topics;
mod track;
mod waiting;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use crate::node::{Node, Outgoing};
use crate::time::Timestamp;

pub(crate) use buckets::{BucketSet, MAX_BUCKETS};
pub use config::{ClusterConfig, ClusterConfigError, Epoch, NodeId};
pub use error::JoinError;
pub use event::ClusterEvent;
use event::Events;
pub use hearing::Hearing;
use hearing::Listening;
pub use message::MAX_MESSAGE_BYTES;
use message::{Body, Digest, Reject, Sections, Sender};
use peers::{Peer, State};
pub use plain::{Outcome, PlainCluster, PlainConfig, PlainInput, PlainOutput};
use repairs::Repairs;
pub use secret::{ClusterSecret, ShortSecret};
pub use status::{ClusterCounters, ClusterCounts, ClusterStatus, ClusterView, Identity, PeerState, PeerStatus};
use telling::Telling;
pub use topics::MAX_TOPIC_BYTES;
use topics::Topics;
use track::Arrival;

/// One node's part in its cluster.
///
/// One thread drives it: it feeds what the bus does to [`handle`](Self::handle), takes outputs until there are none, and
/// sleeps until the bus has something, the waker is called, or [`poll_timeout`](Self::poll_timeout). Whatever has arrived
/// is to be handled before [`handle_timeout`](Self::handle_timeout), or peers are taken for silent that are not.
pub struct Cluster {
    node: Node,
    config: ClusterConfig,
    counters: Arc<ClusterCounters>,
    view: Arc<ClusterView>,
    peers: BTreeMap<NodeId, Peer>,
    repairs: Repairs,
    events: Events,
    topics: Topics,
    telling: Telling,
    outgoing: Arc<Outgoing>,
    next_heartbeat: Timestamp,
    /// Peers are answered early not before this.
    next_answer: Timestamp,
    next_sweep: Option<Timestamp>,
    is_connected: bool,
    listening: Listening,
}

/// What happens to a [`Cluster`].
#[derive(Debug)]
pub enum ClusterInput<'a> {
    /// A message has arrived, under whichever topic.
    Message(&'a [u8]),
    /// The bus is connected, for the first time or again.
    Connected,
    /// The bus has lost its connection.
    Disconnected,
    /// Someone can hear this node who could not a moment ago. They are told early what they may have missed; unlike with
    /// [`Connected`](Self::Connected), those who are silent stay under suspicion.
    Reached,
}

/// What a [`Cluster`] wants done.
#[must_use = "outputs are to be acted upon"]
#[derive(Debug, PartialEq, Eq)]
pub enum ClusterOutput<'a> {
    /// Publish a message, once. If that can't be done now, drop it.
    Publish {
        /// Under this topic.
        topic: &'a str,
        /// The message.
        message: &'a [u8],
    },
    /// Hear what is published under this topic, from now on and after each reconnect.
    Subscribe(&'a str),
    /// Don't any more.
    Unsubscribe(&'a str),
}

impl Cluster {
    /// Makes the node one of a cluster. From now on, what is notified on it goes to the others, too. `waker` is called when
    /// there are outputs that no call on this cluster caused.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn new(node: Node, config: ClusterConfig, now: Timestamp, waker: Waker) -> Result<Self, JoinError> {
        config.check()?;
        let seed = node.config().seed;
        let outgoing = Outgoing::new(seed, waker);
        let outgoing = node.attach_bus(match config.by_interest {
            true => outgoing.by_interest(config.buckets),
            false => outgoing,
        })?;
        let counters = Arc::<ClusterCounters>::default();
        // Nodes that start together don't send their digests together.
        let phase = seed.hash_of(&config.node) % config.heartbeat.as_micros() as u64;
        let listening = Listening::new(&config, now);
        Ok(Self {
            view: Arc::new(ClusterView::new(
                Some(Identity::of(&config)),
                listening.hearing(),
                counters.clone(),
            )),
            peers: BTreeMap::new(),
            repairs: Repairs::new(config.buckets, seed),
            events: Events::default(),
            topics: Topics::new(&config.prefix, config.buckets, config.by_interest),
            telling: Telling::new(outgoing.clone(), config.buckets, seed),
            outgoing,
            next_heartbeat: now + Duration::from_micros(phase),
            next_answer: now,
            next_sweep: config.sweep_every.map(|every| now + every),
            is_connected: false,
            listening,
            counters,
            config,
            node,
        })
    }

    /// What happens in the cluster, to be read on any thread.
    pub fn view(&self) -> &Arc<ClusterView> {
        &self.view
    }

    /// Takes in what the bus did. What arrives is judged here: whatever it is, it is no error of the embedder's.
    pub fn handle(&mut self, now: Timestamp, input: ClusterInput<'_>) {
        match input {
            ClusterInput::Message(message) => self.receive(now, message),
            ClusterInput::Connected => {
                self.set_connected(now, true);
                self.grant_all(now);
                // Tell the others early what they may have missed.
                self.next_heartbeat = now;
            }
            ClusterInput::Disconnected => self.set_connected(now, false),
            ClusterInput::Reached => self.next_heartbeat = self.next_heartbeat.min(now),
        }
    }

    /// What is to be done next. Call it until `None` after each call of another method, and when the waker was called.
    pub fn poll_output(&mut self) -> Option<ClusterOutput<'_>> {
        self.telling.take(self.config.buckets);
        // Only now: who becomes interested from here on sees that the waker is to be called.
        if self.topics.has_changes(self.outgoing.interest()) {
            return self.topics.next_change();
        }
        self.telling.write(&self.config, &mut self.topics, &self.counters)
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called. Any call may change it.
    pub fn poll_timeout(&self) -> Timestamp {
        let suspicions = self.peers.values().filter_map(Peer::poll_timeout);
        let others = self.repairs.poll_timeout().into_iter().chain(self.next_sweep);
        suspicions.chain(others).fold(self.next_heartbeat, Timestamp::min)
    }

    /// Time has passed: sends digests, gives up what is missing, begins repairs.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        let heartbeat = self.config.heartbeat;
        let late = now.since(self.poll_timeout());
        if late > heartbeat / 2 {
            // This thread, or the whole process, was held up: what its peers sent meanwhile may be on its way still.
            for peer in self.peers.values_mut() {
                peer.grant(now, late + heartbeat / 2, heartbeat);
            }
            self.listening.grant(now, late + heartbeat / 2);
        }
        if self.listening.handle_timeout(now) {
            self.show_hearing();
            let topic = self.topics.of_digests().to_owned();
            self.events.push(ClusterEvent::Deaf { topic });
        }
        let mut lost = 0;
        for (&node, peer) in &mut self.peers {
            while let Some(bucket) = peer.next_gap(now) {
                self.counters.gaps.add(1);
                self.repairs.add(now, bucket, &self.node);
            }
            if self.is_connected && peer.state == State::Alive && peer.lost_at(&self.config) <= now {
                peer.state = State::Lost;
                lost += 1;
                let name = peer.name.clone();
                self.events.push(ClusterEvent::PeerLost { node, name });
            }
        }
        if lost > 0 {
            self.counters.lost_peers.add(lost);
            self.sweep(now);
        }
        if self.next_sweep.is_some_and(|at| at <= now) {
            self.next_sweep = self.config.sweep_every.map(|every| now + every);
            self.sweep(now);
        }
        let alive = self.peers.values().filter(|it| it.state == State::Alive).count();
        let begun = self
            .repairs
            .handle_timeout(now, &self.node, self.config.repair_rate, 1 + alive);
        self.counters.repairs.add(begun);
        if self.next_heartbeat <= now {
            self.next_heartbeat = now + heartbeat;
            let forget_after = self.config.forget_after;
            let is_known = |peer: &Peer| peer.state == State::Alive || now.since(peer.heard) < forget_after;
            // One that was cut off, and not dead, may have died since with changes that nobody heard.
            let has_lost = self.peers.values().any(|it| it.state == State::Lost && !is_known(it));
            self.peers.retain(|_, peer| is_known(peer));
            if has_lost {
                self.sweep(now);
            }
            self.telling.begin_digest();
            self.view.show(now, &self.peers, self.repairs.len());
        }
    }

    /// What has happened that is worth a line in a log. Ask until `None`, as often as you like; the oldest are forgotten if
    /// nobody asks.
    pub fn poll_event(&mut self) -> Option<ClusterEvent> {
        self.events.pop()
    }

    /// This node leaves: the others are told, and need not wonder. Take the outputs, and drop it.
    pub fn leave(&mut self) {
        self.telling.leave();
    }

    fn receive(&mut self, now: Timestamp, bytes: &[u8]) {
        let (sender, body) = match message::decode(bytes, self.config.secret.as_ref()) {
            Ok(read) => read,
            Err(reject) => return self.reject(reject),
        };
        if sender.node == self.config.node {
            if sender.epoch == self.config.epoch {
                if let Body::Digest(digest) = body {
                    self.hear_own_digest(now, digest.number);
                }
                return self.counters.echoes.add(1);
            }
            // A late message of an earlier run; or another node that calls itself the same.
            return self.counters.namesakes.add(1);
        }
        match body {
            Body::Changes(sections) => self.receive_changes(now, sender, sections),
            Body::Digest(digest) => self.receive_digest(now, sender, &digest),
        }
    }

    fn reject(&self, reject: Reject) {
        match reject {
            Reject::Version => &self.counters.other_versions,
            Reject::Forged => &self.counters.forged,
            Reject::Malformed => &self.counters.malformed,
        }
        .add(1);
    }

    fn receive_changes(&mut self, now: Timestamp, sender: Sender, mut sections: Sections<'_>) {
        let Some(peer) = self.peers.get_mut(&sender.node) else {
            // Its digest will say what was missed by this.
            return self.counters.strangers.add(1);
        };
        if peer.epoch != sender.epoch {
            match peer.epoch < sender.epoch {
                true => &self.counters.strangers,
                false => &self.counters.old_epochs,
            }
            .add(1);
            return;
        }
        self.counters.messages.add_alone(1);
        peer.messages += 1;
        loop {
            let section = match sections.next() {
                Ok(Some(section)) => section,
                Ok(None) => return,
                Err(reject) => return self.reject(reject),
            };
            let bucket = section.bucket;
            let arrival = peer.receive(now, bucket, section.number, self.config.heartbeat);
            match arrival {
                Some(Arrival::New) => {}
                Some(Arrival::Overtook) => {
                    self.counters.gaps.add(1);
                    self.repairs.add(now, bucket, &self.node);
                }
                Some(Arrival::Repeated) => self.counters.repeated.add(1),
                None => return self.reject(Reject::Malformed),
            }
            let is_new = arrival != Some(Arrival::Repeated);
            if section.keys == 0 && is_new {
                self.counters.whole_buckets.add(1);
                self.repairs.add(now, bucket, &self.node);
            }
            for _ in 0..section.keys {
                match sections.key() {
                    Ok(key) if is_new => {
                        self.counters.keys.add_alone(1);
                        self.node.hear(now, key);
                    }
                    Ok(_) => {}
                    Err(reject) => {
                        if is_new {
                            // Its number has come, and its keys have not.
                            self.repairs.add(now, bucket, &self.node);
                        }
                        return self.reject(reject);
                    }
                }
            }
        }
    }

    fn receive_digest(&mut self, now: Timestamp, sender: Sender, digest: &Digest<'_>) {
        if digest.buckets != self.config.buckets || digest.by_interest != self.config.by_interest {
            return self.counters.mismatched.add(1);
        }
        if !self.peers.contains_key(&sender.node) {
            self.forget_a_dead_one();
        }
        let is_full = self.peers.len() >= self.config.max_peers;
        let mut is_new_run = false;
        let peer = match self.peers.entry(sender.node) {
            Entry::Vacant(_) if is_full => return self.counters.too_many_peers.add(1),
            Entry::Vacant(entry) => {
                is_new_run = true;
                self.counters.new_peers.add(1);
                entry.insert(Peer::new(now, sender.epoch, self.config.buckets))
            }
            Entry::Occupied(entry) => {
                let peer = entry.into_mut();
                if sender.epoch < peer.epoch && peer.state == State::Alive {
                    return self.counters.old_epochs.add(1);
                }
                if !peer.is_new_digest(sender.epoch, digest.number) {
                    return self.counters.old_digests.add(1);
                }
                if sender.epoch != peer.epoch {
                    // Newer; or the clock of its machine was set back, and the run before is over.
                    is_new_run = true;
                    self.counters.restarted_peers.add(1);
                    peer.begin_run(now, sender.epoch, self.config.buckets);
                }
                peer
            }
        };
        if is_new_run {
            // A run before this one may have ended with messages that nobody can count, even one that was never heard.
            self.repairs.add_all(now, &self.node);
        }
        let (node, epoch, name) = (sender.node, sender.epoch, || digest.name.to_owned());
        let was = peer.state;
        if is_new_run {
            let name = name();
            self.events.push(ClusterEvent::PeerJoined { node, name, epoch });
        } else if was == State::Lost {
            self.events.push(ClusterEvent::PeerFound { node, name: name() });
        }
        self.counters.digests.add(1);
        peer.hear(now, digest.number, digest.is_continued, digest.heartbeat, digest.name);
        for (bucket, number) in digest.entries() {
            // Of a new run, everything is read again anyway.
            let is_heard = !is_new_run && self.topics.hears(self.outgoing.interest(), bucket);
            peer.announce(now, bucket, number, is_heard, self.config.heartbeat);
        }
        if digest.is_leaving {
            peer.leave();
            if peer.state == State::Left && was != State::Left {
                self.events.push(ClusterEvent::PeerLeft { node, name: name() });
            }
        }
        if is_new_run {
            // Tell it early where this node is; but whoever is new all the time is not answered all the time.
            let at = self.next_answer.max(now);
            self.next_answer = at + self.config.heartbeat / 4;
            self.next_heartbeat = self.next_heartbeat.min(at);
        }
    }

    /// Makes room for another peer, if there is none and one of them is dead.
    fn forget_a_dead_one(&mut self) {
        if self.peers.len() >= self.config.max_peers {
            let dead = self.peers.iter().filter(|(_, peer)| peer.state != State::Alive);
            if let Some(node) = dead.min_by_key(|(_, peer)| peer.heard).map(|(&node, _)| node) {
                self.peers.remove(&node);
            }
        }
    }

    fn set_connected(&mut self, now: Timestamp, is_connected: bool) {
        self.is_connected = is_connected;
        self.listening.connected(now, is_connected, self.telling.last_digest());
        self.view.set_connected(is_connected);
        self.show_hearing();
    }

    fn hear_own_digest(&mut self, now: Timestamp, number: u64) {
        let before = self.listening.hearing();
        self.listening.heard(now, number);
        if self.listening.hearing() != before {
            self.show_hearing();
            if before == Hearing::Deaf {
                self.events.push(ClusterEvent::Hears);
            }
        }
    }

    fn show_hearing(&self) {
        self.view.set_hearing(self.listening.hearing());
    }

    /// Nobody is taken for silent because nothing could be heard.
    fn grant_all(&mut self, now: Timestamp) {
        self.listening.grant(now, Duration::MAX);
        for peer in self.peers.values_mut().filter(|it| it.state == State::Alive) {
            peer.heard = now;
        }
    }

    fn sweep(&mut self, now: Timestamp) {
        self.counters.sweeps.add(1);
        self.repairs.add_all(now, &self.node);
    }
}

impl Drop for Cluster {
    /// Nobody takes what is notified from now on, and so it is not kept.
    fn drop(&mut self) {
        self.outgoing.close();
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("node", &self.config.node)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}
