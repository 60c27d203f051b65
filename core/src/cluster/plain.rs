//! [`PlainCluster`]: a node among others on a queue that carries one JSON body for each change.

use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use hashbrown::HashMap;

use super::deliveries::{Batches, Deliveries};
use super::latecomers::Latecomers;
use super::plain_body::write_body;
use super::published::{Due, Message, Published};
use super::repairs::Repairs;
use super::status::{ClusterCounters, ClusterView};
use super::waiting::{Pushed, Waiting};
use super::{ClusterConfigError, Hearing, JoinError};
use crate::hash::Seed;
use crate::key::EntityKey;
use crate::node::{LANES, Lane, Node, Outgoing};
use crate::patience::Patience;
use crate::time::Timestamp;
use crate::wire::decode_entity_key;

/// Messages that may wait for their confirmation at the same time.
const MAX_UNCONFIRMED: usize = 1024;

/// Keys that may wait to be published, over all topics; but some of each.
const MAX_WAITING: usize = 1024 * 1024;
const MIN_WAITING: usize = 1024;

/// Bytes of them: keys may be long.
const MAX_WAITING_BYTES: usize = 256 * 1024 * 1024;

/// How long a queue that has lost something is left alone, at first and at most.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// A message that does not come back again and again is waited for longer each time, up to so many doublings.
const MAX_DOUBLINGS: u32 = 4;

/// Everything is read again at most so often because messages did not come back.
const SWEEP_PAUSE: Duration = Duration::from_secs(30);

/// While something is waited for, the time is looked at so often: if that is late, this process was held up.
const LOOK: Duration = Duration::from_secs(1);

/// A queue that is first reached so long after the start was not there before.
const AT_ONCE: Duration = Duration::from_secs(1);

/// How a node takes part in a cluster over a plain queue.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PlainConfig {
    /// What the queue has not confirmed after so long is applied on this node, as if it had come back.
    pub confirm_within: Duration,
    /// What the queue has confirmed and not brought back after so long is taken to be lost: its key is read again here, and
    /// published again for the other nodes. Each further time, it is waited for twice as long.
    pub echo_within: Duration,
    /// How many messages of a topic may be published that the queue has not brought back. Queues drop what is more than
    /// they hold: times the number of nodes, it must be less than that.
    pub max_unechoed: usize,
    /// Nodes of the Go original come back so long after a queue has restarted. What was heard until then is published
    /// again for them. `None` if there are no such nodes.
    pub latecomers_after: Option<Duration>,
    /// Keys that are read again per second after the queue was gone.
    pub repair_rate: u32,
    /// As [`ClusterConfig::sweep_every`](super::ClusterConfig::sweep_every).
    pub sweep_every: Option<Duration>,
}

impl Default for PlainConfig {
    fn default() -> Self {
        Self {
            confirm_within: Duration::from_secs(2),
            echo_within: Duration::from_secs(5),
            max_unechoed: 1000,
            // They try once a minute.
            latecomers_after: Some(Duration::from_secs(65)),
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
        if self.echo_within < Duration::from_millis(10) {
            return Err(ClusterConfigError::EchoWithin(self.echo_within));
        }
        if self.max_unechoed == 0 {
            return Err(ClusterConfigError::NoUnechoed);
        }
        ClusterConfigError::check_sweep(self.sweep_every)
    }
}

/// One node's part in a cluster whose bus is a queue as the Go original used it: the topic is the entity's name, the body
/// `{"entity":"items","id":"100"}`.
///
/// The queue brings each node its own messages too, and only then they are applied: so each notify leads to one push, as
/// with the original. While the queue is not connected, and for what it does not confirm, notifies are applied at once, and
/// published when that is possible again. What it confirms and does not bring back is read again here, and published
/// again. Whenever it comes back, everything is read again that anyone is subscribed to.
///
/// It is driven as a [`Cluster`](super::Cluster) is.
pub struct PlainCluster {
    node: Node,
    config: PlainConfig,
    counters: Arc<ClusterCounters>,
    view: Arc<ClusterView>,
    repairs: Repairs,
    lane: Lane,
    topics: Box<[Topic]>,
    topic_of: HashMap<Box<str>, usize, Seed>,
    /// The topic that may publish next.
    turn: usize,
    published: Published,
    latecomers: Latecomers,
    deliveries: Deliveries,
    body: Vec<u8>,
    born: Timestamp,
    is_connected: bool,
    /// The queue has lost something, and is left alone until then.
    retry_at: Option<Timestamp>,
    /// How long it is left alone the next time.
    retry_after: Duration,
    outgoing: Arc<Outgoing>,
    next_sweep: Option<Timestamp>,
    /// Messages have not come back: others' may be missing too.
    loss_sweep: Option<Timestamp>,
    /// Until when there is none.
    no_loss_sweep: Timestamp,
    /// When the time was looked at last, in patient time.
    last_look: Timestamp,
    /// Since when something waits is in its time.
    patience: Patience,
    /// The latest time that an input told.
    now: Timestamp,
}

/// What is to be published under one topic.
struct Topic {
    name: Box<str>,
    waiting: Waiting,
}

/// What happens to a [`PlainCluster`].
#[derive(Debug)]
pub enum PlainInput<'a> {
    /// A body has arrived, under whichever topic.
    Message(&'a [u8]),
    /// All topics are heard, for the first time or again. If they were before, another part of the queue is heard besides.
    Connected,
    /// Some topic is not heard any more.
    Disconnected,
    /// Messages may have been lost on their way here: there were too many, or a part of the queue is gone.
    Missed,
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
        let names: Vec<Box<str>> = node.entity_names().into_iter().flatten().map(Into::into).collect();
        let count = names.len();
        let room = (MAX_WAITING / count).max(MIN_WAITING);
        let topics = names.iter().cloned().map(|name| Topic {
            name,
            waiting: Waiting::new(room, MAX_WAITING_BYTES / count, seed),
        });
        let topics = Box::from_iter(topics);
        let mut topic_of = HashMap::with_hasher(seed);
        topic_of.extend(names.into_iter().zip(0..));
        Ok(Self {
            view: Arc::new(ClusterView::new(None, Hearing::NotExpected, counters.clone())),
            counters,
            repairs: Repairs::new(1, seed),
            lane: Lane::new(seed),
            published: Published::new(topics.len(), seed),
            topics,
            topic_of,
            turn: 0,
            latecomers: Latecomers::new(config.latecomers_after, seed),
            deliveries: Deliveries::new(),
            body: Vec::new(),
            born: now,
            is_connected: false,
            retry_at: None,
            retry_after: FIRST_RETRY,
            outgoing,
            next_sweep: config.sweep_every.map(|every| now + every),
            loss_sweep: None,
            no_loss_sweep: now,
            last_look: now,
            patience: Patience::new(config.confirm_within),
            now,
            config,
            node,
        })
    }

    /// The topics to be heard: the names of all entities.
    pub fn topics(&self) -> Vec<String> {
        self.topics.iter().map(|it| it.name.to_string()).collect()
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
                Ok(key) => self.receive(now, &key),
                Err(_) => self.counters.malformed.add(1),
            },
            PlainInput::Connected => {
                // A queue that was there before this node has given the others what it had.
                if self.view.has_been_connected() || now.since(self.born) > AT_ONCE {
                    self.latecomers.wait(now);
                }
                self.set_connected(true);
                // What was published meanwhile has passed this node by.
                self.sweep(now);
            }
            PlainInput::Disconnected => {
                self.set_connected(false);
                // Nobody knows when their echoes would come; nor those of what the queue has confirmed just now.
                for topic in &mut self.topics {
                    topic.waiting.apply(|_| true, |key| self.node.hear(now, key.as_ref()));
                }
                // For the others, it is published again.
                for message in self.published.take_confirmed() {
                    let batches = self.deliveries.add();
                    self.wait_again(now, message, 0, batches);
                }
                self.sweep(now);
            }
            PlainInput::Missed => self.sweep(now),
            PlainInput::Receipt { number, outcome } => self.receive_receipt(now, number, outcome),
        }
    }

    fn receive(&mut self, now: Timestamp, key: &EntityKey) {
        self.counters.messages.add(1);
        self.counters.keys.add(1);
        self.node.hear(now, key.as_ref());
        self.published.echo(key);
        if self.topic_of.contains_key(key.entity()) && self.latecomers.heard(now, key) {
            self.counters.untold.add(1);
        }
    }

    /// What is to be done next. Call it until `None` after each call of another method, and when the waker was called.
    pub fn poll_output(&mut self, now: Timestamp) -> Option<PlainOutput<'_>> {
        self.advance(now);
        self.take_lanes(now);
        if !self.is_connected || self.retry_at.is_some() || self.published.unconfirmed() >= MAX_UNCONFIRMED {
            return None;
        }
        let topics = self.topics.len();
        let may_publish =
            |&it: &usize| self.topics[it].waiting.len() > 0 && self.published.unechoed(it) < self.config.max_unechoed;
        let topic = (self.turn..topics).chain(0..self.turn).find(may_publish)?;
        self.turn = (topic + 1) % topics;
        let next = self.topics[topic].waiting.pop(&mut self.deliveries)?;
        if !next.is_applied {
            self.begin_to_look(now);
        }
        write_body(&mut self.body, &next.key);
        self.counters.published.add(1);
        let number = self.published.add(Message {
            key: next.key,
            topic,
            is_counted: next.is_counted,
            is_applied: next.is_applied,
            losses: next.losses,
            batches: next.batches,
            is_confirmed: false,
            is_echoed: false,
            due: (!next.is_applied).then(|| self.patience.at(now) + self.config.confirm_within),
        });
        Some(PlainOutput::Publish {
            number,
            topic: &self.topics[topic].name,
            body: &self.body,
        })
    }

    /// Whether there is something that the queue does not have yet.
    pub fn has_unsent(&self) -> bool {
        self.published.unconfirmed() > 0 || self.topics.iter().any(|it| it.waiting.len() > 0)
    }

    /// How many messages were published that the queue has not brought back, confirmed or not.
    pub fn unechoed(&self) -> usize {
        (0..self.topics.len()).map(|it| self.published.unechoed(it)).sum()
    }

    /// Sets a mark behind everything that was notified on this node so far.
    pub fn mark(&mut self, now: Timestamp) -> u64 {
        self.advance(now);
        self.take_lanes(now);
        self.deliveries.mark()
    }

    /// Whether the queue has everything that was notified before a [mark](Self::mark), or will never take it.
    pub fn is_delivered(&self, mark: u64) -> bool {
        self.deliveries.is_over(mark)
    }

    /// The keys of what was notified before a [mark](Self::mark) and the queue has not confirmed.
    pub fn undelivered(&self, mark: u64) -> Vec<EntityKey> {
        let published = self.published.iter_unconfirmed();
        let published = published.filter(|it| it.batches.is_before(mark)).map(|it| &it.key);
        let waiting = self.topics.iter().flat_map(|it| it.waiting.before(mark));
        published.chain(waiting).cloned().collect()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if ever. Any call may change it.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let judged = self.next_judgement().map(|at| self.patience.real(at));
        let others = self.repairs.poll_timeout().into_iter().chain(self.next_sweep);
        let others = others.chain(self.loss_sweep).chain(self.latecomers.poll_timeout());
        judged.into_iter().chain(others).chain(self.retry_at).min()
    }

    /// Time has passed: applies what is not confirmed, publishes again what did not come back, begins repairs.
    ///
    /// When the process was held up, as by SIGSTOP, that time doesn't count against the queue: what came meanwhile may
    /// still wait to be read.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.advance(now);
        self.retry_at = self.retry_at.filter(|&at| at > now);
        self.last_look = self.patience.at(now);
        self.judge(now);
        for key in self.latecomers.take(now) {
            self.wait(now, &key, false, true);
        }
        if self.next_sweep.is_some_and(|at| at <= now) {
            self.next_sweep = self.config.sweep_every.map(|every| now + every);
            self.sweep(now);
        }
        if self.loss_sweep.is_some_and(|at| at <= now) {
            self.loss_sweep = None;
            self.no_loss_sweep = now + SWEEP_PAUSE;
            self.sweep(now);
        }
        let begun = self.repairs.handle_timeout(now, &self.node, self.config.repair_rate, 1);
        self.counters.repairs.add(begun);
    }

    fn advance(&mut self, now: Timestamp) {
        let mut patience = self.patience;
        patience.pass(self.now, now, || self.next_judgement());
        self.patience = patience;
        self.now = self.now.max(now);
    }

    /// When what is waited for is looked at next, in patient time. The time is looked at more often than it would have to
    /// be: a process that was held up just until then would have no time to read what has come.
    fn next_judgement(&self) -> Option<Timestamp> {
        let unapplied = self.unapplied_since().map(|since| since + self.config.confirm_within);
        let first = self.published.first_due().into_iter().chain(unapplied).min();
        first.map(|at| at.min(self.last_look + LOOK))
    }

    /// Something is about to be waited for. If nothing was, nobody has looked at the time.
    fn begin_to_look(&mut self, now: Timestamp) {
        if self.published.first_due().is_none() && self.unapplied_since().is_none() {
            self.last_look = self.patience.at(now);
        }
    }

    fn unapplied_since(&self) -> Option<Timestamp> {
        self.topics.iter().filter_map(|it| it.waiting.unapplied_since()).min()
    }

    /// What was waited for has not come in time.
    fn judge(&mut self, now: Timestamp) {
        let patient_now = self.patience.at(now);
        while let Some(due) = self.published.take_due(patient_now) {
            match due {
                Due::Unconfirmed(key) => {
                    self.counters.unconfirmed.add(1);
                    self.node.hear(now, key.as_ref());
                }
                Due::Unechoed(message) => {
                    self.counters.unechoed.add(1);
                    if !message.is_applied {
                        self.node.hear(now, message.key.as_ref());
                    }
                    self.loss_sweep.get_or_insert(self.no_loss_sweep.max(now));
                    let batches = self.deliveries.add();
                    self.wait_again(now, message, 1, batches);
                }
            }
        }
        // Those behind a queue that takes nothing, too.
        let (node, limit) = (&self.node, self.config.confirm_within);
        for topic in &mut self.topics {
            let is_due = |since| since + limit <= patient_now;
            let applied = topic.waiting.apply(is_due, |key| node.hear(now, key.as_ref()));
            self.counters.unconfirmed.add(applied);
        }
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
        let is_expected = self.is_connected && !is_applied;
        if is_expected {
            self.begin_to_look(now);
        }
        let is_told = self.wait(now, &key, is_counted, !is_expected);
        if !(is_applied || is_expected && is_told) {
            self.node.hear(now, key.as_ref());
        }
    }

    /// A key is to be published. Says whether it will be: not if too many wait.
    fn wait(&mut self, now: Timestamp, key: &EntityKey, is_counted: bool, is_applied: bool) -> bool {
        let since = self.patience.at(now);
        let topic = self.topic_of.get(key.entity()).and_then(|&it| self.topics.get_mut(it));
        let pushed = topic.map(|it| (it.waiting).push(since, key, is_counted, is_applied, &mut self.deliveries));
        let is_told = pushed.is_some_and(|it| it != Pushed::NoRoom);
        if !is_told {
            self.counters.untold.add(1);
        }
        is_told
    }

    /// A message that is applied is to be published again, before all others.
    fn wait_again(&mut self, now: Timestamp, message: Message, losses: u32, batches: Batches) {
        let (losses, since) = (message.losses + losses, self.patience.at(now));
        if let Some(topic) = self.topics.get_mut(message.topic) {
            let Message { key, is_counted, .. } = message;
            (topic.waiting).push_again(since, key, is_counted, losses, batches, &mut self.deliveries);
        }
    }

    fn receive_receipt(&mut self, now: Timestamp, number: u64, outcome: Outcome) {
        if outcome == Outcome::Confirmed {
            let losses = self.published.losses(number).min(MAX_DOUBLINGS);
            let due = self.patience.at(now) + self.config.echo_within * (1 << losses);
            self.begin_to_look(now);
            if let Some(batches) = self.published.confirm(number, due) {
                self.counters.confirmed.add(1);
                self.deliveries.finish(&batches);
                self.retry_after = FIRST_RETRY;
            }
            return;
        }
        let Some(message) = self.published.reject(number) else {
            return;
        };
        if !message.is_applied {
            self.counters.unconfirmed.add(1);
            self.node.hear(now, message.key.as_ref());
        }
        if outcome == Outcome::Refused {
            self.counters.untold.add(1);
            self.deliveries.finish(&message.batches);
        } else {
            let batches = message.batches.clone();
            self.wait_again(now, message, 0, batches);
            self.leave_alone(now);
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

impl fmt::Debug for PlainCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainCluster")
            .field("waiting", &self.topics.iter().map(|it| it.waiting.len()).sum::<usize>())
            .field("published", &self.published.len())
            .finish_non_exhaustive()
    }
}
