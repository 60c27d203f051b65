//! What a client's bytes do: the upgrade, control frames, and the three messages of protocol v1.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
// Not the model checker's: it is lent to one thread.
use std::sync::atomic::AtomicBool;

use smallvec::SmallVec;

use super::pause::Pause;
use super::timers::secret_interval;
use super::{ConnId, Phase, Shard};
use crate::client::{Incoming, PassThrough, Payload};
use crate::config::LIMITS_FIELD;
use crate::hash::NameHash;
use crate::incident::Misdeed;
use crate::key::EntityKey;
use crate::resolve::Audience;
use crate::subscriptions::{Standing, Subscriptions, TopicId};
use crate::wire::{self, ClientMessage};
use crate::ws::{self, Flow, Limits, OpCode, Received, Refusal, Stop, Upgrade, close_frame, control_frame};

/// What a message's bytes cost, beside what it asks for.
const BYTES_PER_UNIT: usize = 256;

impl Shard {
    pub(super) fn received(&mut self, conn: ConnId, bytes: &mut [u8]) {
        match self.conns.get(conn.0).map(|state| state.phase) {
            Some(Phase::Upgrading) => self.received_http(conn, bytes),
            Some(Phase::Open) => self.received_frames(conn, bytes),
            // Whatever comes after the end is not read.
            Some(Phase::Closing | Phase::Lingering) | None => return,
        }
        self.count_input(conn);
    }

    fn received_http(&mut self, conn: ConnId, bytes: &mut [u8]) {
        let Some(state) = self.conns.get_mut(conn.0) else {
            return;
        };
        let mut earlier = match &mut state.extra {
            Some(extra) if !extra.held.is_empty() => std::mem::take(&mut extra.held),
            _ => Vec::new(),
        };
        let mut searched = earlier.len();
        let is_continued = searched > 0;
        let mut rest = if is_continued {
            earlier.extend_from_slice(bytes);
            &mut earlier[..]
        } else {
            bytes
        };
        let mut all_consumed = 0;
        // A refused request may be followed by a better one on the same connection.
        while !rest.is_empty() {
            let config = self.node.config();
            let counters = &self.counters;
            let date = config.http_date.as_deref().map(|date| {
                move || {
                    let date = catch_unwind(AssertUnwindSafe(date));
                    // A refusal can do without.
                    date.inspect_err(|_| counters.handler_panics.add_alone(1)).ok()
                }
            });
            match ws::upgrade(&config.upgrade, date.as_ref().map(|it| it as _), rest, searched) {
                Upgrade::Incomplete => {
                    let request = if is_continued {
                        // In place: it may come in very small pieces.
                        earlier.drain(..all_consumed);
                        earlier
                    } else {
                        rest.to_vec()
                    };
                    return self.keep_request(conn, request);
                }
                Upgrade::Accept {
                    response,
                    consumed,
                    wants_snapshots,
                } => {
                    let asks = rest
                        .get(..consumed)
                        .is_some_and(|head| ws::has_field(head, LIMITS_FIELD));
                    let response = if asks {
                        ws::with_field(&response, LIMITS_FIELD, &config.limits_told())
                    } else {
                        response
                    };
                    self.set_upgraded(conn, Phase::Open);
                    if let Some(state) = self.conns.get_mut(conn.0) {
                        state.wants_snapshots |= wants_snapshots;
                        state.extra().outbox.push_control(response);
                    }
                    self.make_ready(conn);
                    let frames = rest.get_mut(consumed..).unwrap_or_default();
                    return self.received_frames(conn, frames);
                }
                Upgrade::Refuse {
                    response,
                    consumed,
                    reason,
                    keep_alive,
                } => {
                    self.refuse_upgrade(conn, reason);
                    if reason == Refusal::Tls {
                        return self.end(conn);
                    }
                    let Some(state) = self.conns.get_mut(conn.0) else {
                        return;
                    };
                    let outbox = &mut state.extra().outbox;
                    outbox.push_control(response);
                    // Pipelining beyond reason, without reading the answers.
                    let too_much = outbox.control_bytes() > self.node.config().upgrade.max_request_bytes;
                    if !keep_alive || too_much {
                        return self.await_end(conn);
                    }
                    self.make_ready(conn);
                    rest = rest.get_mut(consumed..).unwrap_or_default();
                    (all_consumed, searched) = (all_consumed + consumed, 0);
                }
            }
        }
        self.handshakes.holds(conn, 0);
    }

    /// Keeps the beginning of a request, if all of them together are not too long.
    fn keep_request(&mut self, conn: ConnId, request: Vec<u8>) {
        self.handshakes.holds(conn, request.len());
        if let Some(state) = self.conns.get_mut(conn.0) {
            state.extra().held = request;
        }
        while let Some(other) = self.handshakes.beyond_bytes(conn) {
            self.displace(other);
        }
    }

    fn refuse_upgrade(&mut self, conn: ConnId, reason: Refusal) {
        self.counters.refused_upgrades.add_alone(1);
        self.node.count_refused_upgrade(reason);
        if reason == Refusal::Tls {
            self.tell(conn, || Misdeed::TlsAtPlainPort);
        }
        if let Some(on_refused) = &self.node.config().on_refused_upgrade
            && catch_unwind(AssertUnwindSafe(|| on_refused(self.client_id(conn), reason))).is_err()
        {
            self.counters.handler_panics.add_alone(1);
        }
    }

    /// Acts on the messages in these bytes until the connection's budget is spent or reading from it stops. Says how many
    /// bytes that took.
    pub(super) fn act_on_frames(&mut self, conn: ConnId, bytes: &mut [u8]) -> usize {
        let len = bytes.len();
        let Some(state) = self.conns.get_mut(conn.0) else {
            return len;
        };
        // The decoder is out of the connection while its messages are acted upon, which needs the whole shard.
        let mut decoder = match &mut state.extra {
            Some(extra) => std::mem::take(&mut extra.decoder),
            None => Default::default(),
        };
        let config = self.node.config();
        let limits = Limits {
            max_message_bytes: config.max_message_bytes,
        };
        self.work_left = config.work_budget.max(1);
        let mut secret = None;
        let taken = decoder.receive(bytes, &limits, &mut |received| self.act_on(conn, received, &mut secret));
        self.put_in_force(conn, &mut secret);
        if !self.is_open(conn) {
            return len;
        }
        match taken {
            Ok(taken) => {
                if let Some(state) = self.conns.get_mut(conn.0) {
                    if !decoder.is_idle() {
                        state.extra().decoder = decoder;
                    }
                    state.tidy();
                }
                taken
            }
            Err(violation) => {
                self.counters.violations.add_alone(1);
                self.tell(conn, || Misdeed::Violation {
                    code: violation.close_code(),
                    reason: violation.reason().into_owned(),
                });
                let frame = close_frame(Some(violation.close_code()), &violation.reason());
                self.close(conn, frame);
                len
            }
        }
    }

    fn is_open(&self, conn: ConnId) -> bool {
        self.conns.get(conn.0).is_some_and(|it| it.phase == Phase::Open)
    }

    /// `secret` is what the client has sent and what is not in force yet.
    fn act_on(&mut self, conn: ConnId, received: Received<'_>, secret: &mut Option<String>) -> Flow {
        match received {
            Received::Text(text) => self.act_on_message(conn, Payload::Text(text), secret),
            Received::Binary(bytes) => self.act_on_message(conn, Payload::Binary(bytes), secret),
            Received::Ping(payload) => {
                if let Some(state) = self.conns.get_mut(conn.0) {
                    let pong = control_frame(OpCode::Pong, payload);
                    state.extra().outbox.push_pong(pong);
                }
                self.make_ready(conn);
            }
            Received::Pong => {}
            Received::Close(code) => self.close(conn, close_frame(code, "")),
        }
        self.spend(1);
        match self.conns.get(conn.0) {
            Some(state) if state.phase == Phase::Open => {
                // The application may have ended it, and then nothing that it says counts, whatever else lies in these bytes.
                if self.work_left == 0 || state.pauses.besides(Pause::Backlog) || self.has_orders() {
                    return Flow::Break(Stop::Pause);
                }
                Flow::Continue(())
            }
            _ => Flow::Break(Stop::End),
        }
    }

    fn act_on_message(&mut self, conn: ConnId, message: Payload<'_>, secret: &mut Option<String>) {
        self.counters.messages.add_alone(1);
        self.spend(message.as_bytes().len() / BYTES_PER_UNIT);
        if self.node.config().pass_through == PassThrough::All {
            return self.pass(conn, message);
        }
        let decoded = wire::decode(message.as_bytes());
        // Those behind it are subscribed and passed on under the secret that was sent before them. One that nothing but
        // another secret follows need not be put in force.
        if !matches!(decoded, Ok(ClientMessage::Secret(_)) | Err(_)) {
            self.put_in_force(conn, secret);
            if !self.is_open(conn) {
                // There was no room for the secret.
                return;
            }
        }
        match decoded {
            Ok(ClientMessage::Subscribe(key)) => self.subscribe(conn, key),
            Ok(ClientMessage::Unsubscribe(key)) => self.unsubscribe(conn, &key),
            Ok(ClientMessage::Secret(_)) if self.conns.get(conn.0).is_some_and(|it| it.is_secret_fixed) => {
                self.counters.rejected_messages.add_alone(1);
                self.tell(conn, || Misdeed::FixedSecret);
            }
            Ok(ClientMessage::Secret(newer)) => *secret = Some(newer),
            Ok(ClientMessage::PassThrough) => self.pass(conn, message),
            // v1 has no way to tell the client.
            Err(error) => {
                self.counters.rejected_messages.add_alone(1);
                self.tell(conn, || Misdeed::RejectedMessage(error));
            }
        }
    }

    fn put_in_force(&mut self, conn: ConnId, secret: &mut Option<String>) {
        if let Some(secret) = secret.take()
            && self.is_open(conn)
        {
            self.change_secret(conn, &secret);
        }
    }

    /// Gives a message to the application.
    fn pass(&mut self, conn: ConnId, payload: Payload<'_>) {
        let Some(on_message) = &self.node.config().on_message else {
            self.counters.rejected_messages.add_alone(1);
            return;
        };
        let pauses = AtomicBool::new(false);
        let incoming = Incoming {
            node: &self.node,
            id: self.client_id(conn),
            secret: self.secret_of(conn),
            payload,
            pauses: Some(&pauses),
        };
        self.counters.passed_messages.add_alone(1);
        // It is shown nothing that could be half changed, and other clients are not to suffer for it.
        if catch_unwind(AssertUnwindSafe(|| on_message(incoming))).is_err() {
            // If it wanted a pause, it may not have told anybody who is to end it.
            self.counters.handler_panics.add_alone(1);
        } else if pauses.into_inner() {
            self.pause(conn, Pause::Application);
        }
    }

    /// The subscription exists from here on: a notify that comes later finds it. See [`Node::current_ticket`] for why
    /// this needs no lock when the shard has subscribers of this topic already.
    ///
    /// [`Node::current_ticket`]: crate::node::Node::current_ticket
    fn subscribe(&mut self, conn: ConnId, key: EntityKey) {
        let Some(options) = self.node.options_of(&key) else {
            // Nobody can notify of it.
            return self.refuse_subscription(conn);
        };
        let with_snapshot = options.snapshot || self.conns.get(conn.0).is_some_and(|it| it.wants_snapshots);
        let Some(audience) = options.audience.audience_of(&key, self.secret_of(conn)) else {
            self.counters.handler_panics.add_alone(1);
            return self.refuse_subscription(conn);
        };
        let hash = self.name_hash(conn, self.node.config().seed.hash_of(&key), &audience);
        let found = self.subscriptions.find(&key, &audience, hash);
        self.spend(1);
        if let Some(topic) = found
            && self.subscriptions.is_member(conn.0.index, topic)
        {
            return;
        }
        let config = self.node.config();
        if self.subscriptions.count_of(conn.0.index) >= config.max_subscriptions || key.len() > config.max_key_bytes {
            return self.refuse_subscription(conn);
        }
        let topic_bytes = found.map_or_else(|| Subscriptions::topic_bytes(key.len()), |_| 0);
        if !self.has_room_for(conn, Subscriptions::BYTES + topic_bytes) {
            return self.refuse_subscription(conn);
        }
        let topic = found.unwrap_or_else(|| self.join_topic(key, audience, hash));
        let standing = Standing::since(self.node.current_ticket());
        self.subscriptions.join(conn.0.index, topic, standing);
        self.weigh(topic);
        self.count_subscriptions();
        if with_snapshot {
            self.want(conn, topic);
        }
    }

    /// Whether the subscriptions of all leave room for one more of so many bytes.
    fn has_room_for(&self, conn: ConnId, bytes: usize) -> bool {
        let limit = self.node.config().max_total_subscription_bytes;
        // As if the connection's others were like this one.
        let own = self.subscriptions.count_of(conn.0.index).saturating_mul(bytes);
        let total = &self.node.totals().subscriptions;
        total.has_room(limit, own, bytes, self.node.admission().open())
    }

    fn refuse_subscription(&mut self, conn: ConnId) {
        self.counters.refused_subscriptions.add_alone(1);
        self.tell(conn, || Misdeed::RefusedSubscription);
    }

    fn unsubscribe(&mut self, conn: ConnId, key: &EntityKey) {
        let Some(options) = self.node.options_of(key) else {
            return;
        };
        let Some(audience) = options.audience.audience_of(key, self.secret_of(conn)) else {
            self.counters.handler_panics.add_alone(1);
            // Whatever audience it has, the client wants no more of this.
            if let Some(topic) = self.topic_of(conn, key) {
                self.leave(conn, topic);
            }
            return;
        };
        let hash = self.name_hash(conn, self.node.config().seed.hash_of(key), &audience);
        let Some(topic) = self.subscriptions.find(key, &audience, hash) else {
            return;
        };
        self.leave(conn, topic);
    }

    /// A connection's subscription of a key, found without its audience.
    fn topic_of(&self, conn: ConnId, key: &EntityKey) -> Option<TopicId> {
        let mut topics = self.subscriptions.topics_of(conn.0.index);
        topics.find(|it| self.subscriptions.topic(*it).is_some_and(|it| it.key == *key))
    }

    /// Ends one subscription, and drops what is queued for it.
    pub(super) fn leave(&mut self, conn: ConnId, topic: TopicId) {
        if let Some(left) = self.subscriptions.leave(conn.0.index, topic) {
            self.revoke(conn, topic);
            self.has_left(conn, left);
            self.queue_changed(conn);
        }
    }

    /// Moves the connection's subscriptions to the audiences of its new secret. What was queued under the old one is
    /// dropped, and what that loses is read again (G6). All at once, or rows of the old one could follow those of the new.
    fn change_secret(&mut self, conn: ConnId, secret: &str) {
        if &**self.secret_of(conn) == secret {
            return;
        }
        let config = self.node.config();
        if !self.secrets.is_known(secret) {
            let own = self.secret_of(conn).len();
            let (limit, more) = (config.max_total_secret_bytes, secret.len().saturating_sub(own));
            let total = &self.node.totals().secrets;
            if !total.has_room(limit, own, more, self.node.admission().open()) {
                return self.refuse_input(conn);
            }
        }
        let patient_now = self.patient_now();
        let Some(state) = self.conns.get_mut(conn.0) else {
            return;
        };
        if let Some(interval) = secret_interval(config) {
            state.secrets_until = state.secrets_until.max(self.now) + interval;
            if state.secrets_until.since(self.now) > config.secret_window {
                self.timers.secret_rate(patient_now, conn);
                self.pause(conn, Pause::SecretRate);
            }
        }
        self.counters.secret_changes.add_alone(1);
        self.secrets.set(conn.0.index, secret);
        self.count_secrets();
        let secret = self.secret_of(conn).clone();
        let topics: SmallVec<[TopicId; 8]> = self.subscriptions.topics_of(conn.0.index).collect();
        for old in topics {
            let Some(topic) = self.subscriptions.topic(old) else {
                continue;
            };
            let (key, key_hash) = (topic.key.clone(), topic.hash.key);
            let Some(options) = self.node.options_of(&key) else {
                continue;
            };
            let Some(audience) = options.audience.audience_of(&key, &secret) else {
                // Nobody knows what it may see with the new secret.
                self.counters.handler_panics.add_alone(1);
                self.leave(conn, old);
                self.refuse_subscription(conn);
                continue;
            };
            if audience == topic.audience {
                self.spend(1);
                continue;
            }
            self.spend(2 + key.len() / BYTES_PER_UNIT);
            // In this order, since other threads notify meanwhile. A notify after the ticket is drawn leads to a read of
            // the new topic that this connection receives; one before it shows in the old topic.
            let hash = self.name_hash(conn, key_hash, &audience);
            let found = self.subscriptions.find(&key, &audience, hash);
            // Others stay in the old topic, so that this one comes in addition.
            if found.is_none()
                && self.subscriptions.member_count(old) > 1
                && !self.has_room_for(conn, Subscriptions::topic_bytes(key.len()))
            {
                self.leave(conn, old);
                self.refuse_subscription(conn);
                continue;
            }
            let new = found.unwrap_or_else(|| self.join_topic(key, audience, hash));
            let standing = Standing::since(self.node.current_ticket());
            // Which it is too if this connection alone wants it.
            let on_its_way = self.is_awaited(old);
            let lost_rows = self.revoke(conn, old);
            let Some(left) = self.subscriptions.leave(conn.0.index, old) else {
                continue;
            };
            self.has_left(conn, left);
            self.subscriptions.join(conn.0.index, new, standing);
            self.weigh(new);
            self.count_subscriptions();
            if on_its_way || lost_rows || left.standing.is_dirty() {
                self.want(conn, new);
            }
        }
        self.queue_changed(conn);
    }

    fn revoke(&mut self, conn: ConnId, topic: TopicId) -> bool {
        let extra = self.conns.get_mut(conn.0).and_then(|it| it.extra.as_mut());
        extra.is_some_and(|extra| extra.outbox.revoke(topic))
    }

    pub(super) fn secret_of(&self, conn: ConnId) -> &Arc<str> {
        self.secrets
            .of(conn.0.index)
            .map_or(&self.no_secret, |(secret, _)| secret)
    }

    /// Hashes neither the key nor, where that is the audience, the connection's own secret anew: both may be long.
    fn name_hash(&self, conn: ConnId, key_hash: u64, audience: &Audience) -> NameHash {
        let seed = self.node.config().seed;
        let audience_hash = match (audience, self.secrets.of(conn.0.index)) {
            (Audience::Secret(secret), Some((own, hash))) if Arc::ptr_eq(secret, own) => hash,
            _ => seed.hash_of_audience(audience),
        };
        NameHash::new(seed, key_hash, audience_hash)
    }

    /// Tells the node whenever a large topic has doubled or halved.
    pub(super) fn weigh(&self, topic: TopicId) {
        const FEW: usize = 16;
        let members = self.subscriptions.member_count(topic);
        if members >= FEW
            && members.is_power_of_two()
            && let Some(flight) = self.subscriptions.topic(topic).map(|it| it.flight)
        {
            self.node.weigh(self.index, flight, members.ilog2() as u8);
        }
    }

    fn join_topic(&mut self, key: EntityKey, audience: Audience, hash: NameHash) -> TopicId {
        let (node, shard) = (&self.node, self.index);
        self.subscriptions
            .insert_topic(key, audience, hash, |topic, key, audience| {
                node.join(shard, topic, key, audience, hash)
            })
    }
}
