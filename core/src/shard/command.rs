//! What the application wants done on this shard: messages, ends, subscriptions that end, reads that are repeated.

use super::{ConnId, Phase, Shard};
use crate::client::{Command, Whose};
use crate::flights::Ticket;
use crate::outbox::Pushed;
use crate::subscriptions::{Standing, TopicId};

impl Shard {
    pub(super) fn obey(&mut self, command: Command) {
        match command {
            Command::Send { conn, frame } => self.send(conn, frame),
            Command::Close { whose, frame } => {
                for conn in self.conns_of(&whose) {
                    self.close_orderly(conn, frame.clone());
                }
            }
            Command::Unsubscribe(Whose::Topic(topic)) => {
                while let Some(conn) = self
                    .subscriptions
                    .any_member(topic)
                    .and_then(|index| self.conn_at(index))
                {
                    self.leave(conn, topic);
                }
            }
            Command::Unsubscribe(whose) => {
                for conn in self.conns_of(&whose) {
                    for topic in self.topics_of(conn) {
                        self.leave(conn, topic);
                    }
                }
            }
            Command::Reread(whose, ticket) => {
                let mut topics = Vec::new();
                for conn in self.conns_of(&whose) {
                    for topic in self.topics_of(conn) {
                        topics.extend(self.note_reread(conn, topic, ticket).map(|joined| (topic, joined)));
                    }
                }
                // Only now, as a read may be answered at once, and all members of a topic are to share it: one that is
                // new enough for the latest of them.
                topics.sort_unstable();
                topics.dedup_by(|later, earlier| {
                    let is_same = later.0 == earlier.0;
                    if is_same {
                        earlier.1 = later.1;
                    }
                    is_same
                });
                for (topic, joined) in topics {
                    if let Some(flight) = self.subscriptions.topic(topic).map(|it| it.flight) {
                        self.node.want(self.now, self.index, flight, joined);
                    }
                }
            }
        }
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

    fn conns_of(&self, whose: &Whose) -> Vec<ConnId> {
        match whose {
            Whose::Conn(conn) => vec![*conn],
            Whose::Secret(secret) => {
                let has_it = |it: &str| it == &**secret;
                let conns = self.conns.iter();
                let conns = conns.filter(|(_, state)| has_it(state.secret.as_deref().unwrap_or_default()));
                conns.map(|(id, _)| ConnId(id)).collect()
            }
            Whose::Topic(topic) => {
                let members = self.subscriptions.members(*topic);
                members.filter_map(|index| self.conn_at(index)).collect()
            }
        }
    }

    fn topics_of(&self, conn: ConnId) -> Vec<TopicId> {
        if self.conns.get(conn.0).is_none() {
            return Vec::new();
        }
        self.subscriptions.topics_of(conn.0.index).collect()
    }

    fn conn_at(&self, index: u32) -> Option<ConnId> {
        self.conns.at(index).map(|(id, _)| ConnId(id))
    }
}
