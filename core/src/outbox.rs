//! [`Outbox`]: what one connection has still to be sent.
//!
//! An outbox exists only while something is waiting. It is three queues, sent one after the other. What is *begun* can no
//! longer change: the first may be partly sent, and all may be lent to the driver. *Urgent* are control frames, which
//! overtake groups but never break one up. Then come those that *wait*: groups, at most one per topic, and messages.

use std::collections::VecDeque;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::frame::Group;
use crate::subscriptions::TopicId;

/// The most chunks of one gathered write, well below the kernel's 1,024.
pub(crate) const MAX_CHUNKS: usize = 64;

/// When control frames hold more bytes than these, a pong replaces the newest of those that wait, as RFC 6455 section
/// 5.5.3 allows.
const MAX_CONTROL_BYTES: usize = 16 * 1024;

/// What an item holds besides its bytes: its place in a queue that may be half empty, and an allocation's own.
pub(crate) const ITEM_BYTES: usize = 2 * size_of::<Item>() + 48;

/// A piece to write: all of the shared buffer that isn't sent yet.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    bytes: &'a Bytes,
    sent: usize,
}

impl<'a> Chunk<'a> {
    pub(crate) fn whole(bytes: &'a Bytes) -> Self {
        Self { bytes, sent: 0 }
    }

    /// The bytes to write.
    pub fn as_slice(&self) -> &'a [u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    /// The same as a shared buffer, for a driver that must own what it writes ([`Sent::Taken`](crate::Sent::Taken)).
    /// Costs a reference count.
    pub fn to_bytes(&self) -> Bytes {
        self.bytes.slice(self.sent..)
    }
}

#[derive(Default)]
pub(crate) struct Outbox {
    begun: VecDeque<Item>,
    urgent: VecDeque<Item>,
    waiting: VecDeque<Item>,
    /// Bytes already sent of the first item.
    sent: usize,
    /// Memory that groups and messages hold.
    group_bytes: usize,
    /// Memory that everything else holds.
    control_bytes: usize,
    /// What is begun is with the driver.
    lent: bool,
    /// Messages are not to be sent any more.
    drops_messages: bool,
}

enum Item {
    /// Control frames, HTTP responses, and the rest of a frame whose group was revoked.
    Control(Bytes),
    /// A control frame that a newer one may replace.
    Pong(Bytes),
    /// What comes after everything else.
    Last(Bytes),
    Group {
        topic: TopicId,
        group: Group,
        /// To be dropped at the next frame's end; only a lent group lingers with this set.
        revoked: bool,
        /// A newer one comes behind it instead of taking its place.
        every: bool,
    },
    /// A message of the application's. It counts as rows do, and nothing takes its place.
    Message(Bytes),
}

impl Item {
    fn bytes(&self) -> &Bytes {
        match self {
            Self::Control(bytes) | Self::Pong(bytes) | Self::Last(bytes) | Self::Message(bytes) => bytes,
            Self::Group { group, .. } => group.bytes(),
        }
    }

    /// The memory that it holds, if nobody else has the same bytes.
    fn held_bytes(&self) -> usize {
        match self {
            Self::Group { group, .. } => held_by(group),
            other => ITEM_BYTES + other.bytes().len(),
        }
    }

    /// It counts against the connection's limit.
    fn is_limited(&self) -> bool {
        matches!(self, Self::Group { .. } | Self::Message(_))
    }

    /// It is a group of this topic that a newer one takes the place of.
    fn is_latest_of(&self, wanted: TopicId) -> bool {
        matches!(self, Self::Group { topic, every: false, .. } if *topic == wanted)
    }
}

/// The memory that a queued group holds.
pub(crate) fn held_by(group: &Group) -> usize {
    ITEM_BYTES + group.held_bytes()
}

/// What became of a group that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    Queued,
    /// It took the place of an older one of the same topic.
    Replaced,
    /// Over the limit; the caller keeps a dirty mark instead, or ends the connection.
    Refused,
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.begun.is_empty() && self.urgent.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn is_lent(&self) -> bool {
        self.lent
    }

    /// Control frames or responses wait.
    pub(crate) fn is_urgent(&self) -> bool {
        !self.urgent.is_empty()
    }

    /// The memory that groups and messages hold: what counts against the connection's limit.
    pub(crate) fn group_bytes(&self) -> usize {
        self.group_bytes
    }

    /// The memory that control frames and responses hold.
    pub(crate) fn control_bytes(&self) -> usize {
        self.control_bytes
    }

    /// Queues the newest group of a topic. One that no byte has left of is replaced and keeps its place (G4), unless
    /// `every` group is to be sent.
    pub(crate) fn push_group(&mut self, topic: TopicId, group: &Group, every: bool, limit: usize) -> Pushed {
        let older = if every { None } else { self.position_of(topic) };
        if group.is_empty() {
            return match older {
                Some(at) => {
                    self.remove(at);
                    Pushed::Replaced
                }
                None => Pushed::Queued,
            };
        }
        let older_bytes = older.map_or(0, |at| self.waiting[at].held_bytes());
        if !self.has_room(held_by(group), older_bytes, limit) {
            if let Some(at) = older {
                self.remove(at);
            }
            return Pushed::Refused;
        }
        let item = Item::Group {
            topic,
            group: group.clone(),
            revoked: false,
            every,
        };
        self.note_pushed(&item);
        match older {
            Some(at) => {
                let older = std::mem::replace(&mut self.waiting[at], item);
                self.note_removed(&older);
                Pushed::Replaced
            }
            None => {
                self.waiting.push_back(item);
                Pushed::Queued
            }
        }
    }

    /// Queues a message behind everything.
    pub(crate) fn push_message(&mut self, frame: Bytes, limit: usize) -> Pushed {
        let item = Item::Message(frame);
        if !self.has_room(item.held_bytes(), 0, limit) {
            return Pushed::Refused;
        }
        self.note_pushed(&item);
        self.waiting.push_back(item);
        Pushed::Queued
    }

    /// Whether so many bytes may be queued, in the place of `older` ones. What alone exceeds the limit may go alone, or
    /// it could never go.
    fn has_room(&self, bytes: usize, older: usize, limit: usize) -> bool {
        let others = self.group_bytes - older;
        others == 0 || others + bytes <= limit
    }

    /// Queues a group of which the driver already sent `sent` bytes, or which it holds (`lent`). Only for an empty outbox.
    pub(crate) fn push_begun(&mut self, topic: TopicId, group: &Group, every: bool, sent: usize, lent: bool) {
        debug_assert!(self.is_empty() && sent < group.len());
        let item = Item::Group {
            topic,
            group: group.clone(),
            revoked: false,
            every,
        };
        self.note_pushed(&item);
        self.sent = sent;
        self.lent = lent;
        match lent || sent > 0 {
            true => self.begun.push_back(item),
            false => self.waiting.push_back(item),
        }
    }

    /// Queues bytes that overtake groups not begun: control frames, HTTP responses.
    pub(crate) fn push_control(&mut self, frame: Bytes) {
        self.push_urgent(Item::Control(frame));
    }

    /// Queues a pong. When too much is waiting, it takes the place of the newest pong that can still be taken back.
    pub(crate) fn push_pong(&mut self, frame: Bytes) {
        let pong = Item::Pong(frame);
        if self.control_bytes + pong.held_bytes() > MAX_CONTROL_BYTES {
            // Most often it is the last one.
            let newest = self.urgent.iter().rposition(|it| matches!(it, Item::Pong(_)));
            if let Some(older) = newest.and_then(|at| self.urgent.remove(at)) {
                self.note_removed(&older);
            }
        }
        self.push_urgent(pong);
    }

    fn push_urgent(&mut self, item: Item) {
        self.note_pushed(&item);
        self.urgent.push_back(item);
    }

    /// Queues bytes behind everything: the close frame of an orderly end.
    pub(crate) fn push_last(&mut self, frame: Bytes) {
        let last = Item::Last(frame);
        self.note_pushed(&last);
        self.waiting.push_back(last);
    }

    /// Takes back what is queued of one topic; a frame that is partly sent is finished. Says whether rows were lost.
    pub(crate) fn revoke(&mut self, topic: TopicId) -> bool {
        self.revoke_where(|queued| queued == topic)
    }

    /// Takes back all groups.
    pub(crate) fn revoke_all(&mut self) {
        self.revoke_where(|_| true);
    }

    /// Takes back all messages of which no byte has left. Those that are lent go when they come back.
    pub(crate) fn drop_messages(&mut self) {
        self.drops_messages = true;
        self.drop_waiting(|item| matches!(item, Item::Message(_)));
    }

    fn revoke_where(&mut self, is_revoked: impl Fn(TopicId) -> bool) -> bool {
        let before = self.waiting.len();
        self.drop_waiting(|item| matches!(item, Item::Group { topic, .. } if is_revoked(*topic)));
        let mut lost = self.waiting.len() < before;
        let mut is_cut = false;
        for item in &mut self.begun {
            match item {
                Item::Group { topic, revoked, .. } if is_revoked(*topic) => {
                    // How much of it went out is known when it comes back.
                    *revoked = self.lent;
                    lost |= self.lent;
                    is_cut = !self.lent;
                }
                _ => {}
            }
        }
        lost | (is_cut && self.cut_first())
    }

    fn drop_waiting(&mut self, is_dropped: impl Fn(&Item) -> bool) {
        let group_bytes = &mut self.group_bytes;
        self.waiting.retain(|item| {
            let is_dropped = is_dropped(item);
            if is_dropped {
                *group_bytes -= item.held_bytes();
            }
            !is_dropped
        });
    }

    /// What to write next, in order.
    pub(crate) fn chunks(&self) -> SmallVec<[Chunk<'_>; 8]> {
        self.items()
            .take(MAX_CHUNKS)
            .enumerate()
            .map(|(at, item)| Chunk {
                bytes: item.bytes(),
                sent: if at == 0 { self.sent } else { 0 },
            })
            .collect()
    }

    fn items(&self) -> impl Iterator<Item = &Item> {
        self.begun.iter().chain(&self.urgent).chain(&self.waiting)
    }

    /// The driver holds clones of what [`Self::chunks`] showed.
    pub(crate) fn lend(&mut self) {
        self.lent = true;
        while self.begun.len() < MAX_CHUNKS
            && let Some(item) = self.urgent.pop_front().or_else(|| self.waiting.pop_front())
        {
            self.begun.push_back(item);
        }
    }

    /// `bytes` left for the kernel; whatever was lent is back. More than was queued is cut to that.
    pub(crate) fn consume(&mut self, mut bytes: usize, mut written: impl FnMut(&Group)) {
        while bytes > 0
            && let Some(len) = self.first_len()
        {
            let rest = len - self.sent;
            if bytes < rest {
                self.sent += bytes;
                break;
            }
            bytes -= rest;
            self.sent = 0;
            if let Some(item) = self.pop_first() {
                self.note_removed(&item);
                if let Item::Group { group, .. } = &item {
                    written(group);
                }
            }
        }
        let begun = usize::from(self.sent > 0);
        if std::mem::take(&mut self.lent) {
            while self.begun.len() > begun
                && let Some(item) = self.begun.pop_back()
            {
                self.take_back(item);
            }
            if matches!(self.begun.front(), Some(Item::Group { revoked: true, .. })) {
                self.cut_first();
            }
        } else if self.begun.len() < begun
            && let Some(first) = self.pop_first()
        {
            self.begun.push_back(first);
        }
    }

    fn first_len(&self) -> Option<usize> {
        self.items().next().map(|it| it.bytes().len())
    }

    fn pop_first(&mut self) -> Option<Item> {
        let first = self.begun.pop_front().or_else(|| self.urgent.pop_front());
        first.or_else(|| self.waiting.pop_front())
    }

    /// What was lent comes back with no byte sent, and goes to the front: meanwhile it may have been revoked, or overtaken
    /// by a newer group.
    fn take_back(&mut self, item: Item) {
        match &item {
            Item::Control(_) | Item::Pong(_) => return self.urgent.push_front(item),
            Item::Group { revoked: true, .. } => return self.note_removed(&item),
            Item::Message(_) if self.drops_messages => return self.note_removed(&item),
            Item::Group {
                topic, every: false, ..
            } => {
                if let Some(newer) = self.position_of(*topic).and_then(|at| self.waiting.remove(at)) {
                    self.note_removed(&item);
                    return self.waiting.push_front(newer);
                }
            }
            Item::Group { .. } | Item::Message(_) | Item::Last(_) => {}
        }
        self.waiting.push_front(item);
    }

    fn note_pushed(&mut self, item: &Item) {
        *self.sum_of(item) += item.held_bytes();
    }

    fn note_removed(&mut self, item: &Item) {
        *self.sum_of(item) -= item.held_bytes();
    }

    fn sum_of(&mut self, item: &Item) -> &mut usize {
        match item.is_limited() {
            true => &mut self.group_bytes,
            false => &mut self.control_bytes,
        }
    }

    /// Panics unless the sums are right and groups stand once per topic.
    pub(crate) fn assert_consistent(&self) {
        let sum = |is_limited| {
            let items = self.items().filter(|it| it.is_limited() == is_limited);
            items.map(Item::held_bytes).sum::<usize>()
        };
        assert_eq!((sum(true), sum(false)), (self.group_bytes, self.control_bytes));
        let mut topics = Vec::new();
        for item in &self.waiting {
            assert!(matches!(item, Item::Group { .. } | Item::Message(_) | Item::Last(_)));
            if let Item::Group {
                topic, every: false, ..
            } = item
            {
                assert!(!topics.contains(topic), "two groups of one topic");
                topics.push(*topic);
            }
        }
        assert!((self.urgent.iter()).all(|it| matches!(it, Item::Control(_) | Item::Pong(_))));
        assert!(self.items().all(|it| !it.bytes().is_empty()));
        let first = self.begun.front().map_or(0, |it| it.bytes().len());
        assert!(self.sent == 0 || self.sent < first);
        assert!(self.lent || self.begun.len() == usize::from(self.sent > 0));
    }

    /// Cuts the first item, a group partly sent, at the end of the frame that is being sent. Says whether rows were lost.
    fn cut_first(&mut self) -> bool {
        let Some(Item::Group { group, .. }) = self.begun.front() else {
            return false;
        };
        let end = group.frame_end(self.sent);
        let lost = end < group.len();
        let rest = Item::Control(group.bytes().slice(..end));
        if let Some(cut) = self.begun.pop_front() {
            self.note_removed(&cut);
        }
        if end == self.sent {
            self.sent = 0;
        } else {
            self.note_pushed(&rest);
            self.begun.push_front(rest);
        }
        lost
    }

    /// The group of this topic that may still be replaced.
    fn position_of(&self, wanted: TopicId) -> Option<usize> {
        self.waiting.iter().position(|item| item.is_latest_of(wanted))
    }

    /// Removes a group that is not begun.
    fn remove(&mut self, at: usize) {
        if let Some(item) = self.waiting.remove(at) {
            self.note_removed(&item);
        }
    }
}

#[cfg(test)]
mod tests;
