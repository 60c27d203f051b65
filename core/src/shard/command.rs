//! What the application wants done on this shard: messages, ends, subscriptions that end, reads that are repeated.
//!
//! An order may concern all connections, so it is carried out a part at a time; other outputs go out in between. What
//! clients say meanwhile waits (`backlog`), as an order means them as they are before that.

use std::collections::BTreeMap;

use super::pause::Pause;
use super::{ConnId, Phase, Shard};
use crate::client::{Command, Whose};
use crate::flights::Ticket;
use crate::outbox::Pushed;
use crate::subscriptions::{Standing, TopicId};

/// An order that is being carried out.
pub(super) struct Task {
    what: What,
    whose: Rest,
}

enum What {
    Close(bytes::Bytes),
    Unsubscribe,
    /// The reads are asked for when all members are noted, as a read may be answered at once, and all members of a topic
    /// are to share it: one that is new enough for the latest of them.
    Reread(Ticket, BTreeMap<TopicId, Ticket>),
}

/// Those whom an order concerns and who have still their turn.
enum Rest {
    Conn(Option<ConnId>),
    /// The walk of [`Secrets`](super::secrets::Secrets).
    Secret,
    /// Members leave the topic at their turn.
    Topic(TopicId),
}

impl Task {
    /// It is still to ask for a read of this topic.
    pub(super) fn will_want(&self, topic: TopicId) -> bool {
        matches!(&self.what, What::Reread(_, topics) if topics.contains_key(&topic))
    }
}

impl Shard {
    /// Whether the application wants something done first, before clients are listened to.
    pub(super) fn has_orders(&self) -> bool {
        self.task.is_some() || self.inbox.has_orders || self.node.has_orders(self.index)
    }

    /// Whether there is anything to do for the application, as far as this shard has taken it, messages included.
    pub(super) fn has_commands(&self) -> bool {
        self.task.is_some() || !self.inbox.commands.is_empty()
    }

    /// Does what the application wants, as much as may be done at once.
    pub(super) fn obey(&mut self) {
        self.work_left = self.node.config().work_budget.max(1);
        while self.work_left > 0 {
            self.spend(1);
            if let Some(task) = self.task.take() {
                self.task = self.go_on(task);
                continue;
            }
            let (what, whose) = match self.inbox.commands.pop_front() {
                None => {
                    self.inbox.has_orders = false;
                    return;
                }
                Some(Command::Send { conn, frame }) => {
                    self.send(conn, frame);
                    continue;
                }
                Some(Command::ReadOn(conn)) => {
                    self.resume(conn, Pause::Application);
                    continue;
                }
                Some(Command::Close { whose, frame }) => (What::Close(frame), whose),
                Some(Command::Unsubscribe(whose)) => (What::Unsubscribe, whose),
                Some(Command::Reread(whose, ticket)) => (What::Reread(ticket, BTreeMap::new()), whose),
            };
            let whose = match whose {
                Whose::Conn(conn) => Rest::Conn(Some(conn)),
                Whose::Topic(topic) => Rest::Topic(topic),
                Whose::Secret(secret) => {
                    self.secrets.start_walk(&secret);
                    Rest::Secret
                }
            };
            self.task = Some(Task { what, whose });
        }
    }

    /// Does the next part of an order, for one connection. Gives back what is left of it.
    fn go_on(&mut self, mut task: Task) -> Option<Task> {
        let Task { what, whose } = &mut task;
        let conn = match whose {
            Rest::Conn(conn) => conn.take(),
            Rest::Secret => self.secrets.walk_next().and_then(|index| self.conn_at(index)),
            Rest::Topic(topic) => self
                .subscriptions
                .any_member(*topic)
                .and_then(|index| self.conn_at(index)),
        };
        let Some(conn) = conn else {
            // Only these have anything left to do.
            let What::Reread(_, topics) = what else {
                return None;
            };
            let (topic, joined) = topics.pop_first()?;
            if let Some(flight) = self.subscriptions.topic(topic).map(|it| it.flight) {
                self.spend(2);
                self.node.want(self.now, self.index, flight, joined, None);
            }
            return Some(task);
        };
        match (what, &whose) {
            (What::Close(frame), _) => {
                let frame = frame.clone();
                self.spend(self.topic_count(conn));
                self.close_orderly(conn, frame);
            }
            (What::Unsubscribe, Rest::Topic(topic)) => self.leave(conn, *topic),
            (What::Unsubscribe, _) => {
                for topic in self.topics_of(conn) {
                    self.spend(1);
                    self.leave(conn, topic);
                }
            }
            // By key, all are owed a read, which is no order.
            (What::Reread(..), Rest::Topic(_)) => return None,
            (What::Reread(ticket, topics), _) => {
                for topic in self.topics_of(conn) {
                    self.spend(1);
                    if let Some(joined) = self.note_reread(conn, topic, *ticket) {
                        let latest = topics.entry(topic).or_insert(joined);
                        *latest = joined.max(*latest);
                    }
                }
            }
        }
        Some(task)
    }

    fn send(&mut self, conn: ConnId, frame: bytes::Bytes) {
        let limit = self.node.config().max_outbox_bytes;
        let Some(state) = self.conns.get_mut(conn.0).filter(|it| it.phase == Phase::Open) else {
            return;
        };
        match state.extra().outbox.push_message(frame, limit) {
            Pushed::Queued | Pushed::Replaced => {
                self.counters.sent_messages.add_alone(1);
                self.make_ready(conn);
            }
            Pushed::Refused => self.fall_behind(conn),
        }
    }

    /// Reads that began with this ticket or before don't count for this connection any more.
    fn note_reread(&mut self, conn: ConnId, topic: TopicId, ticket: Ticket) -> Option<Ticket> {
        let index = conn.0.index;
        let standing = self.subscriptions.standing(index, topic)?;
        if standing.is_dirty()
            && let Some(extra) = self.conns.get_mut(conn.0).and_then(|it| it.extra.as_mut())
        {
            extra.dirty.retain(|&dirty| dirty != topic);
        }
        let mut fresh = Standing::since(standing.joined().max(ticket));
        if standing.wants() {
            fresh = fresh.wanting();
        }
        self.subscriptions.set_standing(index, topic, fresh);
        self.note_wanting(conn, topic).map(Standing::joined)
    }

    fn topics_of(&self, conn: ConnId) -> Vec<TopicId> {
        if self.conns.get(conn.0).is_none() {
            return Vec::new();
        }
        self.subscriptions.topics_of(conn.0.index).collect()
    }

    fn topic_count(&self, conn: ConnId) -> usize {
        self.subscriptions.count_of(conn.0.index)
    }

    fn conn_at(&self, index: u32) -> Option<ConnId> {
        self.conns.at(index).map(|(id, _)| ConnId(id))
    }
}
