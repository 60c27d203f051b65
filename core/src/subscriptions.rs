//! [`Subscriptions`]: topic → dense list of its members, and connection → its topics.
//!
//! A *topic* is one audience of one key on this shard. Both directions are dense lists that know each other's positions,
//! so that leaving is a swap, not a search. One walk over a topic's members may be under way; leaving moves its cursor, so
//! that nobody is skipped and nobody is visited twice.

use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::flights::{Flight, FlightId, Ticket};
use crate::hash::NameHash;
use crate::key::EntityKey;
use crate::resolve::Audience;
use crate::slots::{SlotId, Slots};

/// A topic of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TopicId(pub(crate) SlotId);

pub(crate) struct Topic {
    pub(crate) key: EntityKey,
    pub(crate) audience: Audience,
    /// Its other half in the node.
    pub(crate) flight: FlightId,
    pub(crate) hash: NameHash,
    members: Vec<Member>,
}

/// One connection in a topic.
#[derive(Clone, Copy, Debug)]
struct Member {
    conn: u32,
    /// Where the topic stands in the connection's list.
    back: u32,
    standing: Standing,
}

/// Since when a member belongs to its topic, and what it is owed beyond the usual. Eight bytes, since there is one for
/// every subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing(u64);

impl Standing {
    const WANTS: u64 = 1;
    const DIRTY: u64 = 2;

    pub(crate) fn since(ticket: Ticket) -> Self {
        Self(ticket.0 << 2)
    }

    /// It receives reads with a later ticket than this one.
    pub(crate) fn joined(self) -> Ticket {
        Ticket(self.0 >> 2)
    }

    /// A read for this member was asked of the node and has not come yet.
    pub(crate) fn wants(self) -> bool {
        self.0 & Self::WANTS != 0
    }

    /// Rows were withheld because the outbox is full; a read is to be asked for when there is room.
    pub(crate) fn is_dirty(self) -> bool {
        self.0 & Self::DIRTY != 0
    }

    pub(crate) fn wanting(self) -> Self {
        Self((self.0 | Self::WANTS) & !Self::DIRTY)
    }

    pub(crate) fn dirty(self) -> Self {
        Self((self.0 | Self::DIRTY) & !Self::WANTS)
    }

    pub(crate) fn served(self) -> Self {
        Self(self.0 & !(Self::WANTS | Self::DIRTY))
    }
}

/// An entry in a connection's list.
#[derive(Clone, Copy, Debug)]
struct Entry {
    topic: u32,
    /// Where the connection stands in the topic's list.
    position: u32,
}

type List = SmallVec<[Entry; 2]>;

pub(crate) struct Subscriptions {
    topics: Slots<Topic>,
    /// Topics by (key, audience): indices into `topics`.
    names: HashTable<u32>,
    /// By connection index.
    lists: Vec<List>,
    walk: Option<Walk>,
    count: usize,
    bytes: usize,
}

struct Walk {
    topic: TopicId,
    /// Members before this position have been visited.
    cursor: usize,
}

/// What a connection gave up when it left a topic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub(crate) topic: TopicId,
    pub(crate) standing: Standing,
    /// Nobody is left in the topic: remove it.
    pub(crate) is_last: bool,
}

impl Subscriptions {
    /// One subscription, beside its topic.
    pub(crate) const BYTES: usize = size_of::<Member>() + size_of::<Entry>();

    /// A topic of a key of so many bytes, here and in the node: entries in both tables and three indices by name, and a
    /// list of a few members.
    pub(crate) fn topic_bytes(key_len: usize) -> usize {
        size_of::<Topic>() + size_of::<Flight>() + 4 * size_of::<Member>() + 96 + key_len
    }

    #[cfg(test)]
    pub(crate) const LIST_BYTES: usize = size_of::<List>();
    #[cfg(test)]
    pub(crate) const ENTRY_BYTES: usize = size_of::<Entry>();
    #[cfg(test)]
    pub(crate) const MEMBER_BYTES: usize = size_of::<Member>();

    pub(crate) fn new() -> Self {
        Self {
            topics: Slots::new(),
            names: HashTable::new(),
            lists: Vec::new(),
            walk: None,
            count: 0,
            bytes: 0,
        }
    }

    /// How many subscriptions there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// What all subscriptions cost in bytes, as far as that can be counted: tables have room to grow, and an audience may be
    /// shared.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.count * Self::BYTES
    }

    pub(crate) fn find(&self, key: &EntityKey, audience: &Audience, hash: NameHash) -> Option<TopicId> {
        let index = *self.names.find(hash.name, |&index| {
            let topic = self.topics.at(index).map(|(_, topic)| topic);
            topic.is_some_and(|it| it.hash == hash && it.key == *key && it.audience == *audience)
        })?;
        self.topics.at(index).map(|(id, _)| TopicId(id))
    }

    pub(crate) fn topic(&self, id: TopicId) -> Option<&Topic> {
        self.topics.get(id.0)
    }

    pub(crate) fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.topics.iter().map(|(_, topic)| topic)
    }

    /// Adds a topic without members; `flight` learns the topic's id, since node and shard point at each other.
    pub(crate) fn insert_topic(
        &mut self,
        key: EntityKey,
        audience: Audience,
        hash: NameHash,
        flight: impl FnOnce(TopicId, &EntityKey, &Audience) -> FlightId,
    ) -> TopicId {
        debug_assert!(self.find(&key, &audience, hash).is_none());
        let id = self.topics.insert(Topic {
            key,
            audience,
            flight: FlightId::NOWHERE,
            hash,
            members: Vec::new(),
        });
        self.bytes += self.topics.get(id).map_or(0, |it| Self::topic_bytes(it.key.len()));
        let Self { topics, names, .. } = self;
        if let Some(topic) = topics.get_mut(id) {
            topic.flight = flight(TopicId(id), &topic.key, &topic.audience);
        }
        names.insert_unique(hash.name, id.index, |&index| {
            topics.at(index).map_or(0, |(_, topic)| topic.hash.name)
        });
        TopicId(id)
    }

    /// Removes a topic that has lost its last member.
    pub(crate) fn remove_topic(&mut self, id: TopicId) -> Option<Topic> {
        let topic = self.topics.get(id.0)?;
        debug_assert!(topic.members.is_empty());
        let hash = topic.hash;
        if let Ok(entry) = self.names.find_entry(hash.name, |&index| index == id.0.index) {
            entry.remove();
        }
        let topic = self.topics.remove(id.0)?;
        self.bytes -= Self::topic_bytes(topic.key.len());
        Some(topic)
    }

    /// How many topics a connection is in.
    pub(crate) fn count_of(&self, conn: u32) -> usize {
        self.lists.get(conn as usize).map_or(0, SmallVec::len)
    }

    /// The topics of a connection.
    pub(crate) fn topics_of(&self, conn: u32) -> impl Iterator<Item = TopicId> {
        self.lists
            .get(conn as usize)
            .into_iter()
            .flatten()
            .filter_map(|entry| self.topics.at(entry.topic))
            .map(|(id, _)| TopicId(id))
    }

    /// Any one member of a topic.
    pub(crate) fn any_member(&self, topic: TopicId) -> Option<u32> {
        self.topics.get(topic.0)?.members.last().map(|member| member.conn)
    }

    pub(crate) fn member_count(&self, topic: TopicId) -> usize {
        self.topics.get(topic.0).map_or(0, |topic| topic.members.len())
    }

    pub(crate) fn is_member(&self, conn: u32, topic: TopicId) -> bool {
        self.list_position(conn, topic).is_some()
    }

    /// Adds a connection that is not a member yet.
    pub(crate) fn join(&mut self, conn: u32, id: TopicId, standing: Standing) {
        debug_assert!(!self.is_member(conn, id));
        let Some(topic) = self.topics.get_mut(id.0) else {
            return;
        };
        if self.lists.len() <= conn as usize {
            self.lists.resize_with(conn as usize + 1, List::new);
        }
        let list = &mut self.lists[conn as usize];
        let position = topic.members.len() as u32;
        topic.members.push(Member {
            conn,
            back: list.len() as u32,
            standing,
        });
        list.push(Entry {
            topic: id.0.index,
            position,
        });
        self.count += 1;
    }

    /// Removes a connection from one topic.
    pub(crate) fn leave(&mut self, conn: u32, id: TopicId) -> Option<Left> {
        let at = self.list_position(conn, id)?;
        self.leave_at(conn, at)
    }

    /// Removes a connection from any one of its topics; call until `None`.
    pub(crate) fn leave_any(&mut self, conn: u32) -> Option<Left> {
        let last = self.count_of(conn).checked_sub(1)?;
        let left = self.leave_at(conn, last);
        if last == 0 {
            // The index will be another connection's; don't let it inherit a long list's memory.
            self.lists[conn as usize] = List::new();
        }
        left
    }

    pub(crate) fn standing(&self, conn: u32, id: TopicId) -> Option<Standing> {
        let at = self.list_position(conn, id)?;
        let entry = self.lists.get(conn as usize)?.get(at)?;
        let topic = self.topics.get(id.0)?;
        Some(topic.members[entry.position as usize].standing)
    }

    pub(crate) fn set_standing(&mut self, conn: u32, id: TopicId, standing: Standing) {
        let Some(at) = self.list_position(conn, id) else {
            return;
        };
        let position = self.lists[conn as usize][at].position as usize;
        if let Some(topic) = self.topics.get_mut(id.0) {
            topic.members[position].standing = standing;
        }
    }

    /// Begins a walk over a topic's members. Only one is under way at a time.
    pub(crate) fn start_walk(&mut self, topic: TopicId) {
        debug_assert!(self.walk.is_none());
        self.walk = Some(Walk { topic, cursor: 0 });
    }

    /// The next member of the walk, which is over at `None`. Whoever leaves before is not visited;
    /// whoever joins meanwhile comes among those not visited yet, and the ticket tells it apart.
    pub(crate) fn walk_next(&mut self) -> Option<(u32, Standing)> {
        let walk = self.walk.as_mut()?;
        let member = self
            .topics
            .get(walk.topic.0)
            .and_then(|topic| topic.members.get(walk.cursor));
        match member {
            Some(member) => {
                walk.cursor += 1;
                Some((member.conn, member.standing))
            }
            None => {
                self.walk = None;
                None
            }
        }
    }

    /// Changes the standing of the member that [`Self::walk_next`] gave last.
    pub(crate) fn set_walked_standing(&mut self, standing: Standing) {
        if let Some(walk) = &self.walk
            && let Some(topic) = self.topics.get_mut(walk.topic.0)
            && let Some(member) = topic.members.get_mut(walk.cursor.wrapping_sub(1))
        {
            member.standing = standing;
        }
    }

    pub(crate) fn walked_topic(&self) -> Option<TopicId> {
        self.walk.as_ref().map(|walk| walk.topic)
    }

    /// Panics unless both directions of every link agree.
    pub(crate) fn assert_consistent(&self) {
        let mut links = 0;
        for (id, topic) in self.topics.iter() {
            assert!(!topic.members.is_empty(), "an empty topic remains");
            assert_eq!(self.find(&topic.key, &topic.audience, topic.hash), Some(TopicId(id)));
            for (position, member) in topic.members.iter().enumerate() {
                let entry = self.lists[member.conn as usize][member.back as usize];
                assert_eq!((entry.topic, entry.position), (id.index, position as u32));
                links += 1;
            }
        }
        assert_eq!(links, self.count);
        assert_eq!(links, self.lists.iter().map(SmallVec::len).sum::<usize>());
        assert_eq!(self.names.len(), self.topics.len());
        let bytes = self.topics.iter().map(|(_, topic)| Self::topic_bytes(topic.key.len()));
        assert_eq!(bytes.sum::<usize>(), self.bytes);
    }

    /// Where a topic stands in a connection's list: searched for in the shorter of the two lists.
    fn list_position(&self, conn: u32, id: TopicId) -> Option<usize> {
        let list = self.lists.get(conn as usize)?;
        let topic = self.topics.get(id.0)?;
        if list.len() <= topic.members.len() {
            list.iter().position(|entry| entry.topic == id.0.index)
        } else {
            let member = topic.members.iter().find(|member| member.conn == conn)?;
            Some(member.back as usize)
        }
    }

    fn leave_at(&mut self, conn: u32, at: usize) -> Option<Left> {
        let entry = *self.lists.get(conn as usize)?.get(at)?;
        let (id, _) = self.topics.at(entry.topic)?;
        let left = self.remove_member(TopicId(id), entry.position as usize)?;
        let list = &mut self.lists[conn as usize];
        list.swap_remove(at);
        if let Some(moved) = list.get(at).copied()
            && let Some((_, topic)) = self.topics.at_mut(moved.topic)
        {
            topic.members[moved.position as usize].back = at as u32;
        }
        self.count -= 1;
        Some(left)
    }

    fn remove_member(&mut self, id: TopicId, position: usize) -> Option<Left> {
        let Self {
            topics, lists, walk, ..
        } = self;
        let topic = topics.get_mut(id.0)?;
        let standing = topic.members.get(position)?.standing;
        let mut hole = position;
        if let Some(walk) = walk
            && walk.topic == id
            && position < walk.cursor
        {
            // The last member may not have been visited: fill the hole with one that was, and the hole which that leaves,
            // now the first not visited, with the last.
            walk.cursor -= 1;
            topic.members.swap(hole, walk.cursor);
            let moved = topic.members[hole];
            lists[moved.conn as usize][moved.back as usize].position = hole as u32;
            hole = walk.cursor;
        }
        topic.members.swap_remove(hole);
        if let Some(moved) = topic.members.get(hole) {
            lists[moved.conn as usize][moved.back as usize].position = hole as u32;
        }
        Some(Left {
            topic: id,
            standing,
            is_last: topic.members.is_empty(),
        })
    }
}

#[cfg(test)]
mod tests;
