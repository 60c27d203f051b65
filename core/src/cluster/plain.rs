//! [`PlainCluster`]: a node among others on a queue that carries one JSON body for each change.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use super::repairs::Repairs;
use super::status::{ClusterCounters, ClusterView};
use super::waiting::Waiting;
use super::{ClusterConfigError, JoinError};
use crate::key::EntityKey;
use crate::node::{LANES, Lane, Node, Outgoing};
use crate::patience::Patience;
use crate::time::Timestamp;
use crate::wire::decode_entity_key;

/// Messages that may wait for their confirmation at the same time.
const MAX_UNCONFIRMED: usize = 1024;

/// How long a queue that has lost something is left alone, at first and at most.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// How a node takes part in a cluster over a plain queue.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PlainConfig {
    /// What the queue has not confirmed after so long is applied on this node, as if it had come back.
    pub confirm_within: Duration,
    /// Keys that are read again per second after the queue was gone.
    pub repair_rate: u32,
    /// As [`ClusterConfig::sweep_every`](super::ClusterConfig::sweep_every).
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

impl PlainConfig {
    fn check(&self) -> Result<(), ClusterConfigError> {
        if self.confirm_within < Duration::from_millis(10) {
            return Err(ClusterConfigError::ConfirmWithin(self.confirm_within));
        }
        ClusterConfigError::check_sweep(self.sweep_every)
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
    /// The queue has lost something, and is left alone until then.
    retry_at: Option<Timestamp>,
    /// How long it is left alone the next time.
    retry_after: Duration,
    outgoing: Arc<Outgoing>,
    next_sweep: Option<Timestamp>,
    /// Since when something waits is in its time.
    patience: Patience,
    /// The latest time that an input told.
    now: Timestamp,
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
        /// What did.
        outcome: Outcome,
    },
}

/// What became of a message that was published on a plain queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The queue has it.
    Confirmed,
    /// The queue does not have it. It is published again.
    Lost,
    /// The queue will never take it.
    Refused,
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
        config.check()?;
        let seed = node.config().seed;
        let outgoing = node.attach_bus(Outgoing::new(seed, waker))?;
        let counters = Arc::<ClusterCounters>::default();
        Ok(Self {
            view: Arc::new(ClusterView::new(None, counters.clone())),
            counters,
            repairs: Repairs::new(1, seed),
            lane: Lane::new(seed),
            waiting: Waiting::new(seed),
            unconfirmed: VecDeque::new(),
            next_number: 0,
            body: Vec::new(),
            is_connected: false,
            retry_at: None,
            retry_after: FIRST_RETRY,
            outgoing,
            next_sweep: config.sweep_every.map(|every| now + every),
            patience: Patience::new(config.confirm_within),
            now,
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
        self.advance(now);
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
                // Nobody knows when their echoes would come; nor those of what the queue has confirmed just now.
                self.waiting.apply(|_| true, |key| self.node.hear(now, key.as_ref()));
                self.sweep(now);
            }
            PlainInput::Overflowed => self.sweep(now),
            PlainInput::Receipt { number, outcome } => self.receive_receipt(now, number, outcome),
        }
    }

    /// What is to be done next. Call it until `None` after each call of another method, and when the waker was called.
    pub fn poll_output(&mut self, now: Timestamp) -> Option<PlainOutput<'_>> {
        self.advance(now);
        self.take_lanes(now);
        if !self.is_connected || self.retry_at.is_some() || self.unconfirmed.len() >= MAX_UNCONFIRMED {
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
            since: self.patience.at(now),
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

    /// Whether there is something that the queue does not have yet, and that it may still take.
    pub fn has_unsent(&self) -> bool {
        self.is_connected && (self.waiting.len() > 0 || !self.unconfirmed.is_empty())
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if ever. Any call may change it.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let unapplied = self.unapplied_until().map(|at| self.patience.real(at));
        let others = self.repairs.poll_timeout().into_iter().chain(self.next_sweep);
        unapplied.into_iter().chain(others).chain(self.retry_at).min()
    }

    /// Until when the queue has time to confirm the first of those that it has not, in patient time.
    fn unapplied_until(&self) -> Option<Timestamp> {
        let expected = self.unconfirmed.iter().find(|it| it.state == PublishedState::Expected);
        let unapplied = expected
            .map(|it| it.since)
            .into_iter()
            .chain(self.waiting.unapplied_since());
        unapplied.map(|since| since + self.config.confirm_within).min()
    }

    /// Time has passed: applies what is not confirmed, begins repairs.
    ///
    /// When the process was held up, as by SIGSTOP, that time doesn't count against the queue: receipts that came meanwhile
    /// may still wait to be read.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.advance(now);
        self.retry_at = self.retry_at.filter(|&at| at > now);
        let limit = self.config.confirm_within;
        let patient_now = self.patience.at(now);
        for published in &mut self.unconfirmed {
            if published.since + limit > patient_now {
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
        let is_due = |since| since + limit <= patient_now;
        let applied = (self.waiting).apply(is_due, |key| node.hear(now, key.as_ref()));
        self.counters.unconfirmed.add(applied);
        if self.next_sweep.is_some_and(|at| at <= now) {
            self.next_sweep = self.config.sweep_every.map(|every| now + every);
            self.sweep(now);
        }
        let begun = self.repairs.handle_timeout(now, &self.node, self.config.repair_rate, 1);
        self.counters.repairs.add(begun);
    }

    fn advance(&mut self, now: Timestamp) {
        let mut patience = self.patience;
        patience.pass(self.now, now, || self.unapplied_until());
        self.patience = patience;
        self.now = self.now.max(now);
    }

    fn set_connected(&mut self, is_connected: bool) {
        self.is_connected = is_connected;
        self.view.set_connected(is_connected);
        self.outgoing.set_echoes(is_connected);
    }

    /// A queue that has lost something is not asked again at once.
    fn leave_alone(&mut self, now: Timestamp) {
        if self.retry_at.is_none() {
            self.retry_at = Some(now + self.retry_after);
            self.retry_after = (2 * self.retry_after).min(LAST_RETRY);
        }
    }

    fn sweep(&mut self, now: Timestamp) {
        self.counters.sweeps.add(1);
        self.repairs.add_all(now, &self.node);
    }

    /// Takes what was notified here: each lane about once, as what changes all the time would go in again and again.
    fn take_lanes(&mut self, now: Timestamp) {
        for _ in 0..LANES {
            if !self.outgoing.take(&mut self.lane) {
                return;
            }
            let mut lane = std::mem::replace(&mut self.lane, Lane::new(self.node.config().seed));
            for (key, is_counted, is_applied) in lane.drain_keys() {
                self.tell(now, key, is_counted, is_applied);
            }
            if !lane.crowded_out.is_empty() {
                // Nobody knows which keys they were.
                self.counters.untold.add(lane.crowded_out.len() as u64);
                lane.crowded_out.clear();
                self.sweep(now);
            }
            self.lane = lane;
        }
        // There may be more, for which nobody else calls.
        self.outgoing.call_again();
    }

    fn tell(&mut self, now: Timestamp, key: EntityKey, is_counted: bool, is_applied: bool) {
        // It may have been notified while the queue still seemed to be there.
        let mut is_expected = self.is_connected && !is_applied;
        if !(self.waiting).push(self.patience.at(now), &key, is_counted, !is_expected) {
            self.counters.untold.add(1);
            is_expected = false;
        }
        if !is_applied && !is_expected {
            self.node.hear(now, key.as_ref());
        }
    }

    fn receive_receipt(&mut self, now: Timestamp, number: u64, outcome: Outcome) {
        let Some(first) = self.unconfirmed.front().map(|it| it.number) else {
            return;
        };
        let at = number.checked_sub(first).and_then(|at| usize::try_from(at).ok());
        let Some(published) = at.and_then(|at| self.unconfirmed.get_mut(at)) else {
            return;
        };
        let state = std::mem::replace(&mut published.state, PublishedState::Over);
        if state == PublishedState::Over {
            return;
        }
        if outcome == Outcome::Confirmed {
            self.counters.confirmed.add(1);
            self.retry_after = FIRST_RETRY;
        } else {
            let (key, is_counted) = (published.key.clone(), published.is_counted);
            if state == PublishedState::Expected {
                self.counters.unconfirmed.add(1);
                self.node.hear(now, key.as_ref());
            }
            match outcome {
                Outcome::Refused => self.counters.untold.add(1),
                _ => {
                    self.waiting.push_again(self.patience.at(now), key, is_counted);
                    self.leave_alone(now);
                }
            }
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

impl Drop for PlainCluster {
    /// Nobody publishes from now on, nor brings anything back: of what was notified here, nobody knows what the queue has and
    /// has not brought yet.
    fn drop(&mut self) {
        self.outgoing.close();
        self.node.reread_all(self.node.clock());
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
