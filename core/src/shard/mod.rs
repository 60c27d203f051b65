//! [`Shard`]: the connections of one reactor, what they subscribe to and what they have still to be sent.
//!
//! - this file: the interface, and the life of a connection;
//! - `interface`: the words it is spoken in;
//! - `conn`: what is kept for a connection;
//! - `consistency`: what must be true of all that is kept;
//! - `handshakes`: connections that have not finished their upgrade, and which of them gives way;
//! - `session`: what a client's bytes do;
//! - `backlog`: how much of a client's input is worked on at once;
//! - `deliver`: how rows get to the members of a topic;
//! - `command`: what the application wants done;
//! - `drain`: how all connections are ended without all of them coming back at once;
//! - `kept`: what is kept for clients, in bytes;
//! - `pause`: why a client isn't read from for a while;
//! - `secrets`: who has which secret;
//! - `timers`: what happens when nothing happens.

mod backlog;
mod command;
mod conn;
mod consistency;
mod deliver;
mod drain;
mod handshakes;
mod interface;
mod kept;
mod pause;
mod secrets;
mod session;
mod timers;

use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::admission::{Opening, Refused, counted};
use crate::client::ClientId;
use crate::counters::ShardCounters;
use crate::hash::Seed;
use crate::incident::{Incident, Misdeed};
use crate::latency::Latency;
use crate::log_quota::LogQuota;
use crate::node::{Inbox, Node};
use crate::patience::Patience;
use crate::slots::Slots;
use crate::subscriptions::{Left, Subscriptions};
use crate::time::Timestamp;

use command::Task;
use conn::{Conn, Phase};
use deliver::Walk;
pub use deliver::{Broadcast, Flush};
use drain::Drain;
pub use drain::DrainOptions;
use handshakes::Handshakes;
pub use interface::{ConnId, Input, Output, Sent};
use kept::{Said, TRY_AGAIN_LATER};
use pause::Pauses;
use secrets::Secrets;
use timers::Timers;

/// One reactor's share of a node: a state machine that is fed [`Input`]s and asked for [`Output`]s.
///
/// A driver's turn, in this order:
/// 1. feed what happened: [`open`](Self::open) for new sockets, [`handle`](Self::handle) for each event,
///    [`handle_timeout`](Self::handle_timeout) when [`poll_timeout`](Self::poll_timeout) has passed;
/// 2. call [`poll_output`](Self::poll_output) and do what it says until it gives `None`;
/// 3. sleep until an event, the shard's waker, or `poll_timeout`.
///
/// A driver may break off step 2 to keep its turns short, but then it must come back without sleeping: the shard's waker
/// is called only after `poll_output` has given `None`.
///
/// Peers are judged by what the driver has read. All that has arrived by the time which `handle_timeout` is given must
/// have been handled before; a driver that has left something in a socket gives the time by which it had read everything.
/// When the driver was held up, as by SIGSTOP, the time that it was late doesn't count against any peer.
pub struct Shard {
    node: Node,
    index: u32,
    /// The latest time that an input told.
    now: Timestamp,
    conns: Slots<Conn>,
    subscriptions: Subscriptions,
    secrets: Secrets,
    timers: Timers,
    /// All deadlines of `timers` are in its time.
    patience: Patience,
    handshakes: Handshakes,
    /// What this shard has still to do for the node.
    inbox: Inbox,
    /// The order of the application's that is being carried out.
    task: Option<Task>,
    /// The rows whose receivers are being walked.
    walk: Option<Walk>,
    /// Connections that have something to send and may send it.
    ready: VecDeque<ConnId>,
    /// Those of them that don't wait for walks: replies and control frames, and those that have waited for their sockets.
    urgent: VecDeque<ConnId>,
    /// So many of these may go before the next slice of a walk.
    urgent_first: u32,
    /// So many outputs more before the node's inbox is looked at.
    until_inbox: u32,
    endings: VecDeque<Ending>,
    /// Connections whose input is to be worked on further.
    backlog: VecDeque<ConnId>,
    /// What is left of the present one's budget.
    work_left: usize,
    /// Connections that are to be read from again.
    resumed: VecDeque<ConnId>,
    drain: Option<Drain>,
    /// The addresses of connections by index, if there is a limit for each.
    peers: Vec<Option<IpAddr>>,
    /// The secret of those that sent none.
    no_secret: Arc<str>,
    counters: Arc<ShardCounters>,
    latency: Latency,
    /// What the node has been told that this shard keeps.
    said: Said,
    /// Bytes of input that its connections keep.
    input_bytes: usize,
    /// By [`Misdeed::kind`].
    incidents: LogQuota<u8>,
}

/// Outputs after which a shard looks at what it has to do for the node, even if it never runs out of others.
const INBOX_EVERY: u32 = 64;

/// Flushes of urgent connections between two slices of a walk, or two commands.
const URGENT_BETWEEN: u32 = 64;

enum Ending {
    Shutdown(ConnId),
    Close(ConnId),
}

impl Shard {
    pub(crate) fn new(node: Node, index: u32, seed: Seed) -> Self {
        let timers = Timers::new(node.config());
        let per_second = node.config().max_incidents_per_second;
        let patience = Patience::new(timers.shortest());
        let counters = node.counters_of(index);
        let latency = Latency::new(node.latency_of(index));
        let handshakes = Handshakes::new(node.config(), node.shard_count());
        Self {
            node,
            index,
            now: Timestamp::START,
            conns: Slots::new(),
            subscriptions: Subscriptions::new(),
            secrets: Secrets::new(seed),
            timers,
            patience,
            handshakes,
            inbox: Inbox::default(),
            task: None,
            walk: None,
            ready: VecDeque::new(),
            urgent: VecDeque::new(),
            urgent_first: URGENT_BETWEEN,
            until_inbox: INBOX_EVERY,
            endings: VecDeque::new(),
            backlog: VecDeque::new(),
            work_left: 0,
            resumed: VecDeque::new(),
            drain: None,
            peers: Vec::new(),
            no_secret: Arc::from(""),
            counters,
            latency,
            said: Said::default(),
            input_bytes: 0,
            incidents: LogQuota::new(per_second, Duration::from_secs(1)),
        }
    }

    /// Whether the driver may accept a connection now. If not, they are to wait in the kernel's queue until it asks
    /// again, at the time given.
    ///
    /// # Errors
    /// When to ask again.
    pub fn may_accept(&self, now: Timestamp) -> Result<(), Timestamp> {
        self.handshakes.may_accept(now)?;
        self.node.admission().may_accept(now, self.node.config())
    }

    /// A socket was accepted; its upgrade request is awaited.
    ///
    /// # Errors
    /// [`Refused`]: drop the socket.
    pub fn open(&mut self, now: Timestamp) -> Result<ConnId, Refused> {
        self.open_with(now, &Opening::default())
    }

    /// As [`open`](Self::open), for a driver that can say more of it, or was handed a connection that has upgraded.
    ///
    /// # Errors
    /// [`Refused`]: drop the socket.
    pub fn open_with(&mut self, now: Timestamp, opening: &Opening) -> Result<ConnId, Refused> {
        self.advance(now);
        let config = self.node.config();
        let admitted = if self.is_draining() {
            Err(Refused::Draining)
        } else {
            self.node.admission().enter(self.now, config, opening)
        };
        if let Err(refused) = admitted {
            self.counters.refused_connections.add_alone(1);
            return Err(refused);
        }
        let phase = if opening.is_upgraded {
            Phase::Open
        } else {
            Phase::Upgrading
        };
        let conn = ConnId(self.conns.insert(Conn {
            extra: None,
            is_secret_fixed: opening.secret.is_some(),
            wants_snapshots: opening.wants_snapshots,
            last_alive: self.patient_now(),
            secrets_until: Timestamp::START,
            phase,
            blocked: false,
            listed: false,
            is_urgent: false,
            pauses: Pauses::default(),
        }));
        self.secrets
            .set(conn.0.index, opening.secret.as_deref().unwrap_or_default());
        if let Some(peer) = counted(config, opening.peer) {
            if self.peers.len() <= conn.index() {
                self.peers.resize(conn.index() + 1, None);
            }
            self.peers[conn.index()] = Some(peer);
        }
        self.counters.opened.add_alone(1);
        self.count_connections();
        let now = self.patient_now();
        let chance = config.seed.hash_of(&(self.index, conn));
        self.timers.opened(now, conn, chance);
        self.look_for_life(now, conn);
        if phase == Phase::Upgrading
            && let Some(other) = self.handshakes.begin(self.now, conn, opening.peer)
        {
            self.displace(other);
        }
        self.count_secrets();
        Ok(conn)
    }

    /// Something happened. Afterwards [`poll_output`](Self::poll_output) may give more and
    /// [`poll_timeout`](Self::poll_timeout) may be earlier.
    pub fn handle(&mut self, now: Timestamp, input: Input<'_>) {
        self.advance(now);
        let conn = match input {
            Input::Received { conn, .. }
            | Input::Eof { conn }
            | Input::Writable { conn }
            | Input::Written { conn, .. }
            | Input::Closed { conn } => conn,
        };
        let patient_now = self.patient_now();
        let Some(state) = self.conns.get_mut(conn.0) else {
            self.counters.stale_inputs.add_alone(1);
            return;
        };
        match input {
            Input::Received { bytes, .. } => {
                state.last_alive = patient_now;
                self.received(conn, bytes);
            }
            Input::Writable { .. } => {
                if std::mem::take(&mut state.blocked) {
                    // The peer has taken bytes.
                    state.last_alive = patient_now;
                    self.make_urgent(conn);
                }
                self.make_ready(conn);
            }
            Input::Written { bytes, .. } => self.written(conn, bytes),
            Input::Eof { .. } | Input::Closed { .. } => self.end(conn),
        }
    }

    /// The next thing to do, or `None` until another call tells something new or the shard's waker is called.
    ///
    /// What the last output wrote counts as written `now`, in [`Node::latency`].
    ///
    /// A [`Broadcast`] or [`Flush`] that is dropped unused is given again.
    pub fn poll_output(&mut self, now: Timestamp) -> Option<Output<'_>> {
        self.advance(now);
        // One turn for each output: neither waits for all of the other.
        let (mut may_obey, mut may_work) = (true, true);
        self.until_inbox = self.until_inbox.saturating_sub(1);
        loop {
            if may_work && !self.has_orders() {
                may_work = false;
                self.work_on_backlog();
            }
            match self.endings.pop_front() {
                Some(Ending::Shutdown(conn)) => return Some(Output::Shutdown(conn)),
                Some(Ending::Close(conn)) => return Some(Output::Close(conn)),
                None => {}
            }
            if let Some(conn) = self.next_resumed() {
                return Some(Output::Resume(conn));
            }
            if let Some(left) = self.urgent_first.checked_sub(1)
                && let Some(conn) = self.front_of(true)
            {
                self.urgent_first = left;
                return Some(Output::Flush(Flush::new(self, conn, true)));
            }
            if self.walk.is_some() {
                self.urgent_first = URGENT_BETWEEN;
                return Some(Output::Broadcast(Broadcast::new(self)));
            }
            if may_obey && self.has_commands() {
                self.urgent_first = URGENT_BETWEEN;
                self.obey();
                may_obey = self.work_left > 0;
                continue;
            }
            if let Some(flight) = self.inbox.marks.pop_front() {
                self.take(flight);
                continue;
            }
            // Those who keep this shard busy must not keep it from what others notify.
            if self.until_inbox == 0 && self.inbox.commands.is_empty() {
                self.until_inbox = INBOX_EVERY;
                if self.node.take_inbox(self.now, self.index, &mut self.inbox) {
                    continue;
                }
            }
            // Only now, so that a connection with several new groups gets them in one write.
            if let Some(conn) = self.front_of(false) {
                self.urgent_first = URGENT_BETWEEN;
                return Some(Output::Flush(Flush::new(self, conn, false)));
            }
            if let Some(conn) = self.front_of(true) {
                return Some(Output::Flush(Flush::new(self, conn, true)));
            }
            if !self.node.take_inbox(self.now, self.index, &mut self.inbox) {
                return None;
            }
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout). Ask after `poll_output` gave `None`, each time.
    ///
    /// It is a time that has passed while there is work left that was put off for the sake of others: sleep not at all, feed
    /// what has happened and go on.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        if self.has_backlog() || self.has_commands() {
            return Some(self.now);
        }
        let reads = self.keeps_time().then(|| self.node.poll_timeout()).flatten();
        let drain = self.drain.as_ref().and_then(Drain::poll);
        let timers = self.timers.poll().map(|at| self.patience.real(at));
        [timers, reads, drain].into_iter().flatten().min()
    }

    /// Time has passed until `now`, and what has arrived by then was handled. Calling it too early is harmless, and so is
    /// a time earlier than that of other calls.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.advance(now);
        if self.keeps_time() {
            self.node.handle_timeout(now);
        }
        self.timers_passed(self.patience.at(now));
        self.drain_on();
    }

    /// All sockets are gone, as when the event loop that had them ends: as [`Input::Closed`] for each.
    pub fn abandon(&mut self, now: Timestamp) {
        self.advance(now);
        let all: Vec<ConnId> = self.conns.iter().map(|(id, _)| ConnId(id)).collect();
        for conn in all {
            self.end(conn);
        }
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// How many subscriptions its connections have.
    pub fn subscriptions(&self) -> usize {
        self.subscriptions.len()
    }

    /// What waits to be sent to a connection: (bytes of rows, bytes of control frames and responses). `None` when it has
    /// ended.
    pub fn queued_bytes(&self, conn: ConnId) -> Option<(usize, usize)> {
        let state = self.conns.get(conn.0)?;
        Some(state.extra.as_ref().map_or((0, 0), |extra| {
            (extra.outbox.group_bytes(), extra.outbox.control_bytes())
        }))
    }

    /// What the application knows a connection as.
    pub fn client_id(&self, conn: ConnId) -> ClientId {
        let shard = self.index;
        ClientId { shard, conn }
    }

    /// What happened so far. [`Node::shard_counters`] has the same for any thread.
    pub fn counters(&self) -> &ShardCounters {
        &self.counters
    }

    /// The node this shard belongs to.
    pub fn node(&self) -> &Node {
        &self.node
    }

    fn advance(&mut self, now: Timestamp) {
        self.patience.pass(self.now, now, || self.timers.poll());
        self.now = self.now.max(now);
        self.latency.advance(self.now);
    }

    fn patient_now(&self) -> Timestamp {
        self.patience.at(self.now)
    }

    /// One shard also looks after the time limits of reads.
    fn keeps_time(&self) -> bool {
        self.node.is_timekeeper(self.index)
    }

    /// Lists a connection for flushing, if it has anything to send and may send it.
    fn make_ready(&mut self, conn: ConnId) {
        if let Some(state) = self.conns.get_mut(conn.0)
            && state.can_flush()
        {
            if state.extra.as_ref().is_some_and(|it| it.outbox.is_urgent()) {
                self.make_urgent(conn);
            } else if !state.is_urgent && !std::mem::replace(&mut state.listed, true) {
                self.ready.push_back(conn);
            }
        }
    }

    fn make_urgent(&mut self, conn: ConnId) {
        if let Some(state) = self.conns.get_mut(conn.0)
            && state.can_flush()
            && !std::mem::replace(&mut state.is_urgent, true)
        {
            self.urgent.push_back(conn);
        }
    }

    /// The next connection to be flushed, of one list or the other.
    fn front_of(&mut self, is_urgent: bool) -> Option<ConnId> {
        let Self {
            urgent, ready, conns, ..
        } = self;
        let list = if is_urgent { urgent } else { ready };
        while let Some(&conn) = list.front() {
            match conns.get_mut(conn.0) {
                Some(state) if state.can_flush() => return Some(conn),
                Some(state) => state.unlist(is_urgent),
                None => {}
            }
            list.pop_front();
        }
        None
    }

    /// Tells the application what a client did wrong, unless there is too much of it.
    fn tell(&mut self, conn: ConnId, what: impl FnOnce() -> Misdeed) {
        let client = self.client_id(conn);
        let Some(on_incident) = &self.node.config().on_incident else {
            return;
        };
        let what = what();
        if let Some(untold) = self.incidents.happened(self.now, &what.kind()) {
            let incident = Incident { client, what, untold };
            if catch_unwind(AssertUnwindSafe(|| on_incident(&incident))).is_err() {
                self.counters.handler_panics.add_alone(1);
            }
        }
    }

    /// Sends `last` as soon as the frame being sent is done, and then ends the connection. There is no second close frame.
    fn close(&mut self, conn: ConnId, last: Bytes) {
        if self.conns.get(conn.0).is_none_or(|it| it.phase != Phase::Open) {
            return;
        }
        self.leave_all(conn);
        if let Some(state) = self.conns.get_mut(conn.0) {
            let outbox = &mut state.extra().outbox;
            outbox.revoke_all();
            outbox.drop_messages();
            outbox.push_control(last);
        }
        self.await_end(conn);
    }

    /// The last bytes for this connection are queued.
    fn await_end(&mut self, conn: ConnId) {
        if self.conns.get(conn.0).is_some() {
            self.set_upgraded(conn, Phase::Closing);
            self.timers.closing(self.patient_now(), conn);
            self.resume_all(conn);
        }
        if let Some(extra) = self.conns.get_mut(conn.0).and_then(|it| it.extra.as_mut()) {
            extra.held = Vec::new();
            extra.decoder = Default::default();
            self.count_input(conn);
        }
        self.make_ready(conn);
    }

    /// Sends what is queued and then `last`, and ends the connection.
    fn close_orderly(&mut self, conn: ConnId, last: Bytes) {
        match self.conns.get(conn.0).map(|state| state.phase) {
            Some(Phase::Upgrading) => self.end(conn),
            Some(Phase::Open) => {
                self.leave_all(conn);
                if let Some(state) = self.conns.get_mut(conn.0) {
                    state.extra().outbox.push_last(last);
                }
                self.await_end(conn);
            }
            Some(Phase::Closing | Phase::Lingering) | None => {}
        }
    }

    fn end(&mut self, conn: ConnId) {
        self.leave_all(conn);
        if let Some(state) = self.conns.remove(conn.0) {
            self.secrets.remove(conn.0.index);
            self.count_secrets();
            self.input_bytes -= state.extra.as_ref().map_or(0, |it| it.counted);
            self.say_input();
            if state.phase == Phase::Upgrading {
                self.handshakes.end(conn);
            }
            let peer = self.peers.get_mut(conn.index()).and_then(Option::take);
            self.node.admission().leave(self.node.config(), peer);
            self.counters.closed.add_alone(1);
            self.count_connections();
            self.endings.push_back(Ending::Close(conn));
        }
    }

    /// From here on its upgrade is not waited for.
    fn set_upgraded(&mut self, conn: ConnId, phase: Phase) {
        if let Some(state) = self.conns.get_mut(conn.0) {
            let before = std::mem::replace(&mut state.phase, phase);
            if before == Phase::Upgrading && phase != Phase::Upgrading {
                self.handshakes.end(conn);
            }
        }
    }

    /// Ends a connection that has not upgraded, for newer ones.
    fn displace(&mut self, conn: ConnId) {
        self.counters.displaced_upgrades.add_alone(1);
        self.end(conn);
    }

    fn count_connections(&self) {
        self.counters.connections.set(self.conns.len() as u64);
    }

    fn leave_all(&mut self, conn: ConnId) {
        while let Some(left) = self.subscriptions.leave_any(conn.0.index) {
            self.has_left(conn, left);
        }
    }

    /// Puts the books right after a connection left a topic.
    fn has_left(&mut self, conn: ConnId, left: Left) {
        if let Some(extra) = self.conns.get_mut(conn.0).and_then(|it| it.extra.as_mut()) {
            if left.standing.wants() {
                extra.wanted -= 1;
            }
            if left.standing.is_dirty() {
                extra.dirty.retain(|&topic| topic != left.topic);
            }
        }
        if !left.is_last {
            self.weigh(left.topic);
        } else if let Some(topic) = self.subscriptions.remove_topic(left.topic) {
            self.node.leave(self.now, self.index, topic.flight);
        }
        self.count_subscriptions();
    }
}

impl Drop for Shard {
    /// Other shards may go on, as when this one's thread has died: they must not be owed reads, or rows kept, for its sake, and
    /// one of them keeps the node's time if this one did.
    fn drop(&mut self) {
        for topic in self.subscriptions.topics() {
            self.node.leave(self.now, self.index, topic.flight);
        }
        for (id, _) in self.conns.iter() {
            let peer = self.peers.get(id.index as usize).copied().flatten();
            self.node.admission().leave(self.node.config(), peer);
        }
        self.counters.closed.add_alone(self.conns.len() as u64);
        self.counters.connections.set(0);
        self.keep_nothing();
        self.node.retire(self.index);
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard")
            .field("index", &self.index)
            .field("connections", &self.connections())
            .field("subscriptions", &self.subscriptions())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
