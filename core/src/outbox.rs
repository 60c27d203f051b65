//! [`Outbox`]: what one connection has still to be sent.
//!
//! An outbox exists only while something is waiting. It is one queue in the order of sending. Its first `fixed` items can
//! no longer change: the first may be partly sent, and all of them may be lent to the driver. Behind them stand control
//! frames, which overtake groups but never break one up; then groups, at most one per topic.

use std::collections::VecDeque;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::frame::Group;
use crate::subscriptions::TopicId;

/// The most chunks of one gathered write, well below the kernel's 1,024.
pub(crate) const MAX_CHUNKS: usize = 64;

/// When more bytes than these wait behind a peer which doesn't read, a pong replaces the newest of those that wait, as
/// RFC 6455 section 5.5.3 allows.
const MAX_CONTROL_BYTES: usize = 2048;

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
    items: VecDeque<Item>,
    fixed: usize,
    /// Control frames right behind the fixed items.
    controls: usize,
    /// Bytes already sent of the first item.
    sent: usize,
    /// Unsent bytes of groups and messages.
    group_bytes: usize,
    /// Unsent bytes of everything else.
    control_bytes: usize,
    /// The fixed items are with the driver.
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

    fn overtakes_groups(&self) -> bool {
        matches!(self, Self::Control(_) | Self::Pong(_))
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
        self.items.is_empty()
    }

    pub(crate) fn is_lent(&self) -> bool {
        self.lent
    }

    /// Unsent bytes of groups and messages: what counts against the connection's limit.
    pub(crate) fn group_bytes(&self) -> usize {
        self.group_bytes
    }

    /// Unsent bytes of control frames and responses.
    pub(crate) fn control_bytes(&self) -> usize {
        self.control_bytes
    }

    /// Queues the newest group of a topic. One that no byte has left of is replaced and keeps its place (G4), unless
    /// `every` group is to be sent.
    pub(crate) fn push_group(&mut self, topic: TopicId, group: &Group, every: bool, limit: usize) -> Pushed {
        let older = if every { None } else { self.position_of(topic) };
        let older_len = older.map_or(0, |at| self.items[at].bytes().len());
        if group.is_empty() {
            return match older {
                Some(at) => {
                    self.remove(at);
                    Pushed::Replaced
                }
                None => Pushed::Queued,
            };
        }
        if !self.has_room(group.len(), older_len, limit) {
            if let Some(at) = older {
                self.remove(at);
            }
            return Pushed::Refused;
        }
        self.group_bytes = self.group_bytes - older_len + group.len();
        let item = Item::Group {
            topic,
            group: group.clone(),
            revoked: false,
            every,
        };
        match older {
            Some(at) => {
                self.items[at] = item;
                Pushed::Replaced
            }
            None => {
                self.items.push_back(item);
                Pushed::Queued
            }
        }
    }

    /// Queues a message behind everything.
    pub(crate) fn push_message(&mut self, frame: Bytes, limit: usize) -> Pushed {
        if !self.has_room(frame.len(), 0, limit) {
            return Pushed::Refused;
        }
        self.group_bytes += frame.len();
        self.items.push_back(Item::Message(frame));
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
        self.items.push_back(Item::Group {
            topic,
            group: group.clone(),
            revoked: false,
            every,
        });
        self.group_bytes = group.len() - sent;
        self.sent = sent;
        self.lent = lent;
        self.fixed = usize::from(lent || sent > 0);
    }

    /// Queues bytes that overtake groups not begun: control frames, HTTP responses.
    pub(crate) fn push_control(&mut self, frame: Bytes) {
        self.insert_control(Item::Control(frame));
    }

    /// Queues a pong. When too much is waiting, it takes the place of the newest pong that can still be taken back.
    pub(crate) fn push_pong(&mut self, frame: Bytes) {
        if self.control_bytes + frame.len() > MAX_CONTROL_BYTES {
            let newest = (self.fixed..self.items.len())
                .rev()
                .find(|&at| matches!(self.items[at], Item::Pong(_)));
            if let Some(older) = newest.and_then(|at| self.items.remove(at)) {
                self.control_bytes -= older.bytes().len();
                self.fix(self.fixed);
            }
        }
        self.insert_control(Item::Pong(frame));
    }

    /// Queues bytes behind everything: the close frame of an orderly end.
    pub(crate) fn push_last(&mut self, frame: Bytes) {
        self.control_bytes += frame.len();
        self.items.push_back(Item::Last(frame));
    }

    fn insert_control(&mut self, item: Item) {
        self.control_bytes += item.bytes().len();
        self.items.insert(self.fixed + self.controls, item);
        self.controls += 1;
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
        let mut at = 0;
        let (fixed, group_bytes) = (self.fixed, &mut self.group_bytes);
        self.items.retain(|item| {
            let is_kept = at < fixed || !matches!(item, Item::Message(_));
            at += 1;
            if !is_kept {
                *group_bytes -= item.bytes().len();
            }
            is_kept
        });
    }

    fn revoke_where(&mut self, is_revoked: impl Fn(TopicId) -> bool) -> bool {
        let mut lost = false;
        for at in (0..self.items.len()).rev() {
            match &mut self.items[at] {
                Item::Group { topic, revoked, .. } if is_revoked(*topic) => {
                    if at >= self.fixed {
                        self.remove(at);
                        lost = true;
                    } else if self.lent {
                        // How much of it went out is known when it comes back.
                        *revoked = true;
                        lost = true;
                    } else {
                        lost |= self.cut_first();
                    }
                }
                _ => {}
            }
        }
        self.fix(self.fixed);
        lost
    }

    /// What to write next, in order.
    pub(crate) fn chunks(&self) -> SmallVec<[Chunk<'_>; 8]> {
        self.items
            .iter()
            .take(MAX_CHUNKS)
            .enumerate()
            .map(|(at, item)| Chunk {
                bytes: item.bytes(),
                sent: if at == 0 { self.sent } else { 0 },
            })
            .collect()
    }

    /// The driver holds clones of what [`Self::chunks`] showed.
    pub(crate) fn lend(&mut self) {
        self.lent = true;
        self.fix(self.items.len().min(MAX_CHUNKS));
    }

    /// `bytes` left for the kernel; whatever was lent is back. More than was queued is cut to that.
    pub(crate) fn consume(&mut self, mut bytes: usize, mut written: impl FnMut(&Group)) {
        let mut returned = self.fixed;
        while bytes > 0 {
            let Some(first) = self.items.front() else {
                break;
            };
            let rest = first.bytes().len() - self.sent;
            let step = rest.min(bytes);
            bytes -= step;
            if first.is_limited() {
                self.group_bytes -= step;
            } else {
                self.control_bytes -= step;
            }
            if step < rest {
                self.sent += step;
            } else {
                self.sent = 0;
                if let Some(Item::Group { group, .. }) = self.items.pop_front() {
                    written(&group);
                }
                returned = returned.saturating_sub(1);
            }
        }
        let begun = usize::from(self.sent > 0);
        if std::mem::take(&mut self.lent) {
            for at in (begun..returned).rev() {
                self.take_back(at);
            }
            if matches!(self.items.front(), Some(Item::Group { revoked: true, .. })) {
                self.cut_first();
            }
            // Control frames that came meanwhile stand behind what was lent. Nothing is lent any more.
            let begun = usize::from(self.sent > 0);
            self.items.make_contiguous()[begun..].sort_by_key(|item| !item.overtakes_groups());
        }
        self.fix(usize::from(self.sent > 0));
    }

    /// What was lent comes back with no byte sent: meanwhile it may have been revoked, or overtaken by a newer group.
    fn take_back(&mut self, at: usize) {
        let (topic, revoked, every) = match self.items.get(at) {
            Some(&Item::Group {
                topic, revoked, every, ..
            }) => (topic, revoked, every),
            Some(Item::Message(_)) if self.drops_messages => return self.remove(at),
            _ => return,
        };
        if revoked {
            return self.remove(at);
        }
        if every {
            return;
        }
        let newer = self.items.iter().skip(at + 1).position(|item| item.is_latest_of(topic));
        if let Some(newer) = newer.and_then(|behind| self.items.remove(at + 1 + behind)) {
            self.group_bytes -= self.items[at].bytes().len();
            self.items[at] = newer;
        }
    }

    /// Panics unless the sums are right and groups stand once per topic.
    pub(crate) fn assert_consistent(&self) {
        let (mut groups, mut controls) = (0, 0);
        let mut topics = Vec::new();
        for (at, item) in self.items.iter().enumerate() {
            assert!(!item.bytes().is_empty());
            match item {
                Item::Message(frame) => groups += frame.len(),
                Item::Group {
                    topic, group, every, ..
                } => {
                    groups += group.len();
                    if at >= self.fixed && !every {
                        assert!(!topics.contains(topic), "two groups of one topic");
                        topics.push(*topic);
                    }
                }
                other => controls += other.bytes().len(),
            }
        }
        match self.items.front() {
            Some(first) if first.is_limited() => groups -= self.sent,
            Some(_) => controls -= self.sent,
            None => assert_eq!(self.sent, 0),
        }
        assert_eq!((groups, controls), (self.group_bytes, self.control_bytes));
        assert!(self.fixed >= usize::from(self.sent > 0));
        assert!(self.fixed + self.controls <= self.items.len());
    }

    fn fix(&mut self, fixed: usize) {
        self.fixed = fixed;
        self.controls = self
            .items
            .iter()
            .skip(fixed)
            .take_while(|item| item.overtakes_groups())
            .count();
    }

    /// Cuts the first item, a group partly sent, at the end of the frame that is being sent. Says whether rows were lost.
    fn cut_first(&mut self) -> bool {
        let Some(Item::Group { group, .. }) = self.items.front() else {
            return false;
        };
        let end = group.frame_end(self.sent);
        let lost = end < group.len();
        self.group_bytes -= group.len() - self.sent;
        if end == self.sent {
            self.items.pop_front();
            self.sent = 0;
            self.fix(0);
        } else {
            self.control_bytes += end - self.sent;
            self.items[0] = Item::Control(group.bytes().slice(..end));
        }
        lost
    }

    /// The group of this topic that may still be replaced.
    fn position_of(&self, wanted: TopicId) -> Option<usize> {
        let behind = self.fixed + self.controls;
        self.items
            .iter()
            .skip(behind)
            .position(|item| item.is_latest_of(wanted))
            .map(|at| at + behind)
    }

    /// Removes a group that is not begun.
    fn remove(&mut self, at: usize) {
        if let Some(item) = self.items.remove(at) {
            self.group_bytes -= item.bytes().len();
        }
    }
}

#[cfg(test)]
mod tests;
