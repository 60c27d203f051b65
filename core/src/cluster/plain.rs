//! [`PlainCluster`]: a node among others on a queue that carries one JSON body for each change.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use super::repairs::Repairs;
use super::status::{ClusterCounters, ClusterView};
use super::waiting::Waiting;
use super::{ClusterConfig, Epoch, JoinError, NodeId};
use crate::key::EntityKey;
use crate::node::{Lane, Node, Outgoing};
use crate::time::Timestamp;
use crate::wire::decode_entity_key;

/// Messages that may wait for their confirmation at the same time.
const MAX_UNCONFIRMED: usize = 1024;

/// How a node takes part in a cluster over a plain queue.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PlainConfig {
    /// What the queue has not confirmed after so long is applied on this node, as if it had come back.
    pub confirm_within: Duration,
    /// Keys that are read again per second after the queue was gone.
    pub repair_rate: u32,
    /// As [`ClusterConfig::sweep_every`].
    pub sweep_every: Option<Duration>,
}

impl Default for PlainConfig {
    fn default() -> Self {
        Self {
            confirm_within: Duration::from_secs(2),
            repair_rate: 10_000,
            sweep_every: None,
        }
    }
}

/// One node's part in a cluster whose bus is a queue as the Go original used it: the topic is the entity's name, the body
/// `{"entity":"items","id":"100"}`.
///
/// The queue brings each node its own messages too, and only then they are applied: so each notify leads to one push, as
/// with the original. While the queue is not connected, and for what it does not confirm, notifies are applied at once, and
/// published when that is possible again. Whenever it comes back, everything is read again that anyone is subscribed to.
///
/// It is driven as a [`Cluster`](super::Cluster) is.
pub struct PlainCluster {
    node: Node,
    config: PlainConfig,
    counters: Arc<ClusterCounters>,
    view: Arc<ClusterView>,
    repairs: Repairs,
    lane: Lane,
    /// To be published, in order.
    waiting: Waiting,
    /// Published and not confirmed, in order.
    unconfirmed: VecDeque<Published>,
    next_number: u64,
    body: Vec<u8>,
    is_connected: bool,
    next_sweep: Option<Timestamp>,
}

struct Published {
    number: u64,
    key: EntityKey,
    is_counted: bool,
    since: Timestamp,
    state: PublishedState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PublishedState {
    /// It is expected to come back.
    Expected,
    /// It was applied here, but the queue may still have it.
    Applied,
    /// The queue has answered.
    Over,
}

/// What happens to a [`PlainCluster`].
#[derive(Debug)]
pub enum PlainInput<'a> {
    /// A body has arrived, under whichever topic.
    Message(&'a [u8]),
    /// All topics are heard, for the first time or again.
    Connected,
    /// Some topic is not heard any more.
    Disconnected,
    /// Messages were dropped before they came here.
    Overflowed,
    /// What became of a message that was published.
    Receipt {
        /// Which.
        number: u64,
        /// Whether the queue has it.
        is_confirmed: bool,
    },
}

/// What a [`PlainCluster`] wants done.
#[must_use = "outputs are to be acted upon"]
#[derive(Debug, PartialEq, Eq)]
pub enum PlainOutput<'a> {
    /// Publish a body, and tell what became of it.
    Publish {
        /// What the [receipt](PlainInput::Receipt) is to name.
        number: u64,
        /// Under this topic.
        topic: &'a str,
        /// The body.
        body: &'a [u8],
    },
}

impl PlainCluster {
    /// Makes the node one of a cluster. From now on, what is notified on it goes through the queue. `waker` is called when
    /// there are outputs that no call on this cluster caused.
    ///
    /// # Errors
    /// [`JoinError`]: the node has a bus already, or entities that are not registered by name.
    pub fn new(node: Node, config: PlainConfig, now: Timestamp, waker: Waker) -> Result<Self, JoinError> {
        if node.entity_names().is_none_or(|mut names| names.next().is_none()) {
            return Err(JoinError::NoEntities);
        }
        let seed = node.config().seed;
        node.attach_bus(Outgoing::new(seed, waker))?;
        let counters = Arc::<ClusterCounters>::default();
        // A plain node has no name for others.
        let nobody = ClusterConfig::new(
            NodeId(0),
            Epoch {
                started_ms: 0,
                nonce: 0,
            },
        );
        Ok(Self {
            view: Arc::new(ClusterView::new(&nobody, counters.clone())),
            counters,
            repairs: Repairs::new(1, seed),
            lane: Lane::new(seed),
            waiting: Waiting::new(seed),
            unconfirmed: VecDeque::new(),
            next_number: 0,
            body: Vec::new(),
            is_connected: false,
            next_sweep: config.sweep_every.map(|every| now + every),
            config,
            node,
        })
    }

    /// The topics to be heard: the names of all entities.
    pub fn topics(&self) -> Vec<String> {
        self.node
            .entity_names()
            .into_iter()
            .flatten()
            .map(str::to_owned)
            .collect()
    }

    /// What happens in the cluster, to be read on any thread.
    pub fn view(&self) -> &Arc<ClusterView> {
        &self.view
    }

    /// Takes in what the queue did. What arrives is judged here: whatever it is, it is no error of the embedder's.
    pub fn handle(&mut self, now: Timestamp, input: PlainInput<'_>) {
        match input {
            PlainInput::Message(body) => match decode_entity_key(body) {
                Ok(key) => {
                    self.counters.messages.add(1);
                    self.counters.keys.add(1);
                    self.node.hear(now, key.as_ref());
                }
                Err(_) => self.counters.malformed.add(1),
            },
            PlainInput::Connected => {
                self.set_connected(true);
                // What was published meanwhile has passed this node by.
                self.sweep(now);
            }
            PlainInput::Disconnected => {
                self.set_connected(false);
                // Nobody knows when their echoes would come.
                self.waiting.apply(|_| true, |key| self.node.hear(now, key.as_ref()));
            }
            PlainInput::Overflowed => self.sweep(now),
            PlainInput::Receipt { number, is_confirmed } => self.receive_receipt(now, number, is_confirmed),
        }
    }

    /// What is to be done next. Call it until `None` after each call of another method, and when the waker was called.
    pub fn poll_output(&mut self, now: Timestamp) -> Option<PlainOutput<'_>> {
        self.take_lanes(now);
        if !self.is_connected || self.unconfirmed.len() >= MAX_UNCONFIRMED {
            return None;
        }
        let waiting = self.waiting.pop()?;
        self.next_number += 1;
        write_body(&mut self.body, &waiting.key);
        self.counters.published.add(1);
        self.unconfirmed.push_back(Published {
            number: self.next_number,
            key: waiting.key,
            is_counted: waiting.is_counted,
            since: now,
            state: match waiting.is_applied {
                true => PublishedState::Applied,
                false => PublishedState::Expected,
            },
        });
        Some(PlainOutput::Publish {
            number: self.next_number,
            topic: self.unconfirmed.back()?.key.entity(),
            body: &self.body,
        })
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if ever. Any call may change it.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let expected = self.unconfirmed.iter().find(|it| it.state == PublishedState::Expected);
        let unapplied = expected
            .map(|it| it.since)
            .into_iter()
            .chain(self.waiting.unapplied_since());
        let unapplied = unapplied.map(|since| since + self.config.confirm_within);
        let others = self.repairs.poll_timeout().into_iter().chain(self.next_sweep);
        unapplied.chain(others).min()
    }

    /// Time has passed: applies what is not confirmed, begins repairs.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        let limit = self.config.confirm_within;
        for published in &mut self.unconfirmed {
            if published.since + limit > now {
                break;
            }
            if published.state == PublishedState::Expected {
                published.state = PublishedState::Applied;
                self.counters.unconfirmed.add(1);
                self.node.hear(now, published.key.as_ref());
            }
        }
        // Those behind a queue that takes nothing, too.
        let node = &self.node;
        let applied = (self.waiting).apply(|since| since + limit <= now, |key| node.hear(now, key.as_ref()));
        self.counters.unconfirmed.add(applied);
        if self.next_sweep.is_some_and(|at| at <= now) {
            self.next_sweep = self.config.sweep_every.map(|every| now + every);
            self.sweep(now);
        }
        let begun = self.repairs.handle_timeout(now, &self.node, self.config.repair_rate, 1);
        self.counters.repairs.add(begun);
    }

    fn set_connected(&mut self, is_connected: bool) {
        self.is_connected = is_connected;
        self.view.set_connected(is_connected);
        if let Some(outgoing) = self.node.outgoing() {
            outgoing.set_echoes(is_connected);
        }
    }

    fn sweep(&mut self, now: Timestamp) {
        self.counters.sweeps.add(1);
        self.repairs.add_all(now, self.node.current_ticket());
    }

    /// Takes what was notified here.
    fn take_lanes(&mut self, now: Timestamp) {
        loop {
            let Some(outgoing) = self.node.outgoing() else {
                return;
            };
            if !outgoing.take(&mut self.lane) {
                return;
            }
            let mut lane = std::mem::replace(&mut self.lane, Lane::new(self.node.config().seed));
            for (key, is_applied) in lane.keys.drain() {
                self.tell(now, key, false, is_applied);
            }
            for (key, is_applied) in lane.counted.drain(..) {
                self.tell(now, key, true, is_applied);
            }
            if !lane.crowded_out.is_empty() {
                // Nobody knows which keys they were.
                self.counters.untold.add(lane.crowded_out.len() as u64);
                lane.crowded_out.clear();
                self.sweep(now);
            }
            self.lane = lane;
        }
    }

    fn tell(&mut self, now: Timestamp, key: EntityKey, is_counted: bool, is_applied: bool) {
        // It may have been notified while the queue still seemed to be there.
        let mut is_expected = self.is_connected && !is_applied;
        if !self.waiting.push(now, &key, is_counted, !is_expected) {
            self.counters.untold.add(1);
            is_expected = false;
        }
        if !is_applied && !is_expected {
            self.node.hear(now, key.as_ref());
        }
    }

    fn receive_receipt(&mut self, now: Timestamp, number: u64, is_confirmed: bool) {
        let Some(first) = self.unconfirmed.front().map(|it| it.number) else {
            return;
        };
        let at = number.checked_sub(first).and_then(|at| usize::try_from(at).ok());
        let Some(published) = at.and_then(|at| self.unconfirmed.get_mut(at)) else {
            return;
        };
        let state = std::mem::replace(&mut published.state, PublishedState::Over);
        if is_confirmed {
            self.counters.confirmed.add(1);
        } else if state != PublishedState::Over {
            let (key, is_counted) = (published.key.clone(), published.is_counted);
            if state == PublishedState::Expected {
                self.counters.unconfirmed.add(1);
                self.node.hear(now, key.as_ref());
            }
            self.waiting.push_again(now, key, is_counted);
        }
        while self
            .unconfirmed
            .front()
            .is_some_and(|it| it.state == PublishedState::Over)
        {
            self.unconfirmed.pop_front();
        }
    }
}

/// Writes a key as Go's `json.Marshal` writes the original's: entity first, `<`, `>`, `&` and two line separators escaped.
pub(super) fn write_body(body: &mut Vec<u8>, key: &EntityKey) {
    body.clear();
    body.extend(b"{\"entity\":");
    write_string(body, key.entity());
    body.extend(b",\"id\":");
    write_string(body, key.id());
    body.push(b'}');
}

fn write_string(body: &mut Vec<u8>, text: &str) {
    let mut buffer = [0; 4];
    body.push(b'"');
    for character in text.chars() {
        match character {
            '"' => body.extend(b"\\\""),
            '\\' => body.extend(b"\\\\"),
            '\n' => body.extend(b"\\n"),
            '\r' => body.extend(b"\\r"),
            '\t' => body.extend(b"\\t"),
            '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                body.extend(format!("\\u{:04x}", u32::from(character)).as_bytes());
            }
            _ => body.extend(character.encode_utf8(&mut buffer).as_bytes()),
        }
    }
    body.push(b'"');
}

impl fmt::Debug for PlainCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainCluster")
            .field("waiting", &self.waiting.len())
            .field("unconfirmed", &self.unconfirmed.len())
            .finish_non_exhaustive()
    }
}
