//! How rows get to the members of a topic: straight from the shared buffer where nothing is in the way, through the
//! outbox where something is.

use std::fmt;

use super::{ConnId, Ending, Phase, Sent, Shard, TRY_AGAIN_LATER};
use crate::client::ClientId;
use crate::flights::{Delivery, FlightId, Scope};
use crate::incident::Misdeed;
use crate::outbox::{Chunk, Pushed};
use crate::subscriptions::{Standing, TopicId};
use crate::ws::close_frame;

/// The most reads that one connection may have asked for at once after rows were withheld from it. It begins with one
/// and doubles as rows fit, as more would be withheld again.
const MAX_WANTED: u32 = 8;

/// Rows on their way to the members of a topic.
pub(super) struct Walk {
    delivery: Delivery,
    /// They are queued for everyone: more rows are to come in this turn, or there are none.
    only_queues: bool,
}

/// The same bytes for many connections. See [`for_each`](Self::for_each).
#[must_use = "nobody receives the rows until for_each is called"]
pub struct Broadcast<'a> {
    shard: &'a mut Shard,
}

impl<'a> Broadcast<'a> {
    pub(super) fn new(shard: &'a mut Shard) -> Self {
        Self { shard }
    }

    /// Calls `write` for each receiver whose socket may take the rows now, and queues them for the others, or for all if
    /// other rows are to follow. Visits at most `broadcast_budget` members; the rest come with a later output.
    pub fn for_each(self, mut write: impl FnMut(ConnId, Chunk<'_>) -> Sent) {
        let Some(walk) = self.shard.walk.take() else {
            return;
        };
        for _ in 0..self.shard.node.config().broadcast_budget.max(1) {
            let write: Option<Write<'_>> = if walk.only_queues { None } else { Some(&mut write) };
            if !self.shard.deliver_to_next(&walk.delivery, write) {
                return;
            }
        }
        self.shard.walk = Some(walk);
    }
}

impl fmt::Debug for Broadcast<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Broadcast")
    }
}

/// What one connection has queued. See [`write`](Self::write).
#[must_use = "nothing is sent until write is called"]
pub struct Flush<'a> {
    shard: &'a mut Shard,
    conn: ConnId,
    /// Which list it stands in.
    is_urgent: bool,
}

impl<'a> Flush<'a> {
    pub(super) fn new(shard: &'a mut Shard, conn: ConnId, is_urgent: bool) -> Self {
        Self { shard, conn, is_urgent }
    }

    /// Whose it is.
    pub fn conn(&self) -> ConnId {
        self.conn
    }

    /// Calls `write` once with all chunks, at most 64, to be written in this order: one gathered write.
    /// [`Sent::Partial`] counts over all of them.
    pub fn write(self, write: impl FnOnce(ConnId, &[Chunk<'_>]) -> Sent) {
        let Self { shard, conn, is_urgent } = self;
        let Some(state) = shard.conns.get_mut(conn.0) else {
            return;
        };
        // It stands at the front, where `front_of` found it.
        let list = if is_urgent { &mut shard.urgent } else { &mut shard.ready };
        list.pop_front();
        state.unlist(is_urgent);
        let outbox = &mut state.extra().outbox;
        let chunks = outbox.chunks();
        let len = chunks.iter().map(|chunk| chunk.as_slice().len()).sum();
        let sent = write(conn, &chunks);
        drop(chunks);
        match sent {
            Sent::All => outbox.consume(len, |group| shard.latency.written(group.since())),
            Sent::Partial(bytes) => {
                outbox.consume(bytes, |group| shard.latency.written(group.since()));
                state.blocked = bytes < len;
            }
            Sent::Busy => state.blocked = true,
            Sent::Taken => outbox.lend(),
            Sent::Closed => return shard.end(conn),
        }
        shard.after_write(conn);
    }
}

impl fmt::Debug for Flush<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flush").field("conn", &self.conn).finish()
    }
}

type Write<'w> = &'w mut dyn FnMut(ConnId, Chunk<'_>) -> Sent;

impl Shard {
    /// Takes the newest rows of a marked flight, and begins to walk over those who are to have them. When more are to come
    /// in this turn they are queued, so that each connection gets all of them in one write.
    pub(super) fn take(&mut self, flight: FlightId) {
        let Some(delivery) = self.node.take(self.now, self.index, flight) else {
            return;
        };
        if self.subscriptions.topic(delivery.topic).is_none() {
            return;
        }
        self.subscriptions.start_walk(delivery.topic);
        self.walk = Some(Walk {
            only_queues: !self.inbox.marks.is_empty() || delivery.group.is_empty(),
            delivery,
        });
    }

    /// Delivers to the next member of the walk, or queues when there is no `write`. Returns false at the walk's end.
    fn deliver_to_next(&mut self, delivery: &Delivery, write: Option<Write<'_>>) -> bool {
        let Some((index, standing)) = self.subscriptions.walk_next() else {
            return false;
        };
        let is_for_it = match delivery.scope {
            Scope::All => true,
            Scope::Since(ticket) => standing.joined() >= ticket || standing.wants(),
            Scope::Wanting => standing.wants(),
        };
        let is_due = delivery.ticket > standing.joined() && is_for_it;
        let Some((slot, state)) = self.conns.at_mut(index).filter(|_| is_due) else {
            return true;
        };
        let conn = ConnId(slot);
        let &Delivery {
            topic,
            ref group,
            every,
            ..
        } = delivery;
        if standing != standing.served() {
            let extra = state.extra();
            if standing.wants() {
                extra.wanted -= 1;
                extra.max_wanted = (extra.max_wanted.max(1) * 2).min(MAX_WANTED);
            }
            if standing.is_dirty() {
                extra.dirty.retain(|&dirty| dirty != topic);
            }
            self.subscriptions.set_walked_standing(standing.served());
        }
        // Unless it turns out otherwise.
        let mut is_given = !group.is_empty();
        let limit = self.node.config().max_outbox_bytes;
        match write {
            Some(write) if state.is_clear() => {
                let sent = match write(conn, Chunk::whole(group.bytes())) {
                    Sent::Partial(0) => Sent::Busy,
                    Sent::Partial(bytes) if bytes >= group.len() => Sent::All,
                    sent => sent,
                };
                match sent {
                    Sent::All => self.latency.written(group.since()),
                    Sent::Partial(bytes) => {
                        state.extra().outbox.push_begun(topic, group, every, bytes, false);
                        state.blocked = true;
                    }
                    Sent::Busy => {
                        state.extra().outbox.push_begun(topic, group, every, 0, false);
                        state.blocked = true;
                    }
                    Sent::Taken => state.extra().outbox.push_begun(topic, group, every, 0, true),
                    Sent::Closed => {
                        is_given = false;
                        self.end(conn);
                    }
                }
            }
            _ => match state.extra().outbox.push_group(topic, group, every, limit) {
                Pushed::Queued => {}
                Pushed::Replaced => self.counters.conflated.add_alone(1),
                Pushed::Refused if every => {
                    is_given = false;
                    self.fall_behind(conn);
                }
                Pushed::Refused => {
                    is_given = false;
                    self.counters.dirty_marks.add_alone(1);
                    let extra = state.extra();
                    extra.dirty.push_back(topic);
                    extra.max_wanted = 1;
                    extra.refused_at = extra.outbox.group_bytes();
                    self.subscriptions.set_walked_standing(standing.dirty());
                }
            },
        }
        if is_given {
            self.counters.deliveries.add_alone(1);
            self.counters.delivered_bytes.add_alone(group.len() as u64);
        }
        // Most connections have nothing queued, before and after.
        if self.conns.get(conn.0).is_some_and(|it| it.extra.is_some()) {
            self.queue_changed(conn);
        }
        true
    }

    /// Ends a connection whose outbox is full of what can't be skipped.
    pub(super) fn fall_behind(&mut self, conn: ConnId) {
        self.counters.fallen_behind.add_alone(1);
        self.tell(conn, || Misdeed::FellBehind);
        self.close(conn, close_frame(Some(TRY_AGAIN_LATER), "fell behind"));
    }

    pub(super) fn written(&mut self, conn: ConnId, bytes: usize) {
        let patient_now = self.patient_now();
        let Some(state) = self.conns.get_mut(conn.0) else {
            return;
        };
        match &mut state.extra {
            Some(extra) if extra.outbox.is_lent() => {
                extra.outbox.consume(bytes, |group| self.latency.written(group.since()));
            }
            _ => {
                self.counters.stale_inputs.add_alone(1);
                return;
            }
        }
        if bytes > 0 {
            state.last_alive = patient_now;
        }
        self.after_write(conn);
    }

    /// The outbox of a connection has become shorter, perhaps.
    fn after_write(&mut self, conn: ConnId) {
        let Some(state) = self.conns.get_mut(conn.0) else {
            return;
        };
        if state.phase == Phase::Closing && state.is_clear() {
            state.phase = Phase::Lingering;
            self.endings.push_back(Ending::Shutdown(conn));
        }
        self.queue_changed(conn);
    }

    /// What a connection has queued has become more or less: sees to what follows from that.
    pub(super) fn queue_changed(&mut self, conn: ConnId) {
        self.ask_for_dirty(conn);
        self.make_ready(conn);
        if let Some(state) = self.conns.get_mut(conn.0) {
            state.tidy();
        }
    }

    /// Asks for reads of keys whose rows were withheld, a few at a time, once there is room for them again.
    fn ask_for_dirty(&mut self, conn: ConnId) {
        let room = self.node.config().max_outbox_bytes / 2;
        loop {
            let Some(state) = self.conns.get_mut(conn.0) else {
                return;
            };
            let Some(extra) = state.extra.as_mut().filter(|it| !it.dirty.is_empty()) else {
                return;
            };
            let refused_at = extra.refused_at;
            let room = if refused_at > 0 { room.min(refused_at / 2) } else { room };
            if extra.outbox.group_bytes() > room {
                return;
            }
            if extra.wanted >= extra.max_wanted.max(1) {
                if !std::mem::replace(&mut extra.is_timed, true) {
                    self.timers.asked(self.patience.at(self.now), conn);
                }
                return;
            }
            extra.refused_at = 0;
            if let Some(topic) = extra.dirty.pop_front() {
                self.want(conn, topic);
            }
        }
    }

    /// The reads that this connection alone asked for are taking long. They may be failing, and must not hold up the
    /// others for ever.
    pub(super) fn stop_waiting(&mut self, conn: ConnId) {
        let state = self.conns.get_mut(conn.0);
        if let Some(extra) = state.and_then(|it| it.extra.as_mut()) {
            extra.is_timed = false;
            extra.max_wanted = extra.wanted.saturating_add(MAX_WANTED);
            self.ask_for_dirty(conn);
        }
    }

    /// Rows of this topic are being read, are owed, or have not reached all its members yet.
    pub(super) fn is_awaited(&self, topic: TopicId) -> bool {
        let flight = self.subscriptions.topic(topic).map(|it| it.flight);
        self.subscriptions.walked_topic() == Some(topic)
            || flight.is_some_and(|it| self.node.is_busy(self.index, it))
            || self.task.as_ref().is_some_and(|it| it.will_want(topic))
    }

    /// Asks for a read for one member of a topic.
    pub(super) fn want(&mut self, conn: ConnId, topic: TopicId) {
        if let Some(standing) = self.note_wanting(conn, topic)
            && let Some(flight) = self.subscriptions.topic(topic).map(|it| it.flight)
        {
            let client = ClientId {
                shard: self.index,
                conn,
            };
            self.node
                .want(self.now, self.index, flight, standing.joined(), Some(client));
        }
    }

    /// Notes that a member needs a read, which is still to be asked for.
    pub(super) fn note_wanting(&mut self, conn: ConnId, topic: TopicId) -> Option<Standing> {
        let index = conn.0.index;
        let standing = self.subscriptions.standing(index, topic)?;
        if let Some(state) = self.conns.get_mut(conn.0)
            && !standing.wants()
        {
            state.extra().wanted += 1;
            self.counters.targeted_reads.add_alone(1);
        }
        self.subscriptions
            .set_standing(index, topic, Standing::wanting(standing));
        Some(standing)
    }
}
