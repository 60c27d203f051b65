use std::collections::{BTreeMap, BTreeSet};

use bytes::BytesMut;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::frame::{RowLimits, Rows};
use crate::slots::SlotId;
use crate::ws::{OpCode, encode_header};

/// From `EVERY` on, every group of a topic is to be sent.
const TOPICS: u32 = 7;
const EVERY: u32 = 5;
/// Stands for a topic where messages are meant: like `every` group, each is to be sent.
const MESSAGE: u32 = 99;
const LIMIT: usize = 3000;
/// For stories with more items than one write takes.
const LARGE_LIMIT: usize = 60_000;
const NO_LIMITS: RowLimits = RowLimits {
    rows: usize::MAX,
    bytes: u32::MAX as usize,
};

#[derive(Clone, Debug)]
enum Op {
    /// A topic and its rows' lengths.
    Group(u32, Vec<usize>),
    Message(usize),
    /// So many small groups of one topic, or messages.
    Burst(u32, usize),
    /// The same as a group, of which the driver has sent a part, or holds all if there is none. Only done if nothing is queued.
    Begun(u32, Vec<usize>, Option<Index>),
    Control(usize),
    Pong(usize),
    Last(usize),
    Revoke(u32),
    RevokeAll,
    /// From here on there are no more messages.
    DropMessages,
    /// The driver writes, or gives back what it holds.
    Write(Amount),
    Lend,
}

#[derive(Clone, Debug)]
enum Amount {
    Bytes(Index),
    /// Ends between two frames.
    Frames(Index),
    All,
}

fn op() -> impl Strategy<Value = Op> {
    let topic = 0..TOPICS;
    let size = prop_oneof![8 => 16..200usize, 1 => Just(LIMIT)];
    let sizes = prop_oneof![
        9 => prop::collection::vec(size.clone(), 1..4),
        1 => Just(Vec::new()),
    ];
    let amount = prop_oneof![
        2 => any::<Index>().prop_map(Amount::Bytes),
        2 => any::<Index>().prop_map(Amount::Frames),
        1 => Just(Amount::All),
    ];
    let begun = (
        topic.clone(),
        prop::collection::vec(size.clone(), 1..4),
        prop::option::of(any::<Index>()),
    );
    prop_oneof![
        10 => (topic.clone(), sizes).prop_map(|(topic, sizes)| Op::Group(topic, sizes)),
        4 => size.clone().prop_map(Op::Message),
        4 => (EVERY..=TOPICS, 20..120usize).prop_map(|(topic, count)| match topic {
            TOPICS => Op::Burst(MESSAGE, count),
            topic => Op::Burst(topic, count),
        }),
        1 => begun.prop_map(|(topic, sizes, sent)| Op::Begun(topic, sizes, sent)),
        2 => (16..300usize).prop_map(Op::Control),
        4 => (16..500usize).prop_map(Op::Pong),
        1 => (16..100usize).prop_map(Op::Last),
        3 => topic.prop_map(Op::Revoke),
        1 => Just(Op::RevokeAll),
        1 => Just(Op::DropMessages),
        6 => amount.prop_map(Op::Write),
        4 => Just(Op::Lend),
    ]
}

fn story() -> impl Strategy<Value = (usize, Vec<Op>)> {
    let limit = prop_oneof![Just(LIMIT), Just(LARGE_LIMIT)];
    (limit, prop::collection::vec(op(), 1..80))
}

fn topic_id(topic: u32) -> TopicId {
    TopicId(SlotId {
        index: topic,
        generation: 0,
    })
}

fn padded(text: String, size: usize) -> String {
    format!("{text:.<size$}")
}

/// Each frame says what it is: number, topic, index and count.
fn group(number: usize, topic: u32, sizes: &[usize]) -> Group {
    let rows = sizes.iter().enumerate();
    let rows: Rows = rows
        .map(|(index, &size)| padded(format!("{number} {topic} {index} {} ", sizes.len()), size))
        .collect();
    Group::build(&rows, NO_LIMITS).unwrap()
}

fn control(number: usize, size: usize) -> Bytes {
    let mut frame = BytesMut::new();
    encode_header(OpCode::Pong, size, &mut frame);
    frame.extend_from_slice(padded(format!("{number} "), size).as_bytes());
    frame.freeze()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    start: usize,
    end: usize,
    /// In the order of pushing.
    number: usize,
    /// Topic, index in its group and length of that; not for control frames.
    row: Option<(u32, usize, usize)>,
}

/// Parses what left, which must consist of whole frames.
fn frames(wire: &[u8]) -> Vec<Frame> {
    let (mut at, mut frames) = (0, Vec::new());
    while at < wire.len() {
        let (header, len) = match wire[at + 1] {
            126 => (4, usize::from(u16::from_be_bytes([wire[at + 2], wire[at + 3]]))),
            len => (2, usize::from(len)),
        };
        let payload = std::str::from_utf8(&wire[at + header..at + header + len]).unwrap();
        let words: Vec<usize> = payload.split(' ').map_while(|word| word.parse().ok()).collect();
        let row = match (wire[at], &words[..]) {
            (0x81, &[_, topic, index, count]) => Some((topic as u32, index, count)),
            (0x8a, &[_]) => None,
            other => panic!("not a frame: {other:?}"),
        };
        let end = at + header + len;
        frames.push(Frame {
            start: at,
            end,
            number: words[0],
            row,
        });
        at = end;
    }
    frames
}

/// An item behind the fixed ones: its topic, if it is a group, and its number.
type Waiting = (Option<u32>, usize);

/// A topic's groups up to `number` came to an end: superseded, or revoked.
struct End {
    topic: u32,
    number: usize,
    revoked: bool,
    /// Where on the wire. Unknown as long as the driver holds what may still be sent.
    at: Option<usize>,
}

/// An outbox with all that happened to it.
#[derive(Default)]
struct Story {
    outbox: Outbox,
    limit: usize,
    /// What left.
    wire: Vec<u8>,
    /// Clones that the driver holds.
    lent: Option<Vec<Bytes>>,
    pushed: usize,
    /// Control frames, which must all leave, and those of them that nothing older may follow.
    controls: BTreeSet<usize>,
    lasts: BTreeSet<usize>,
    /// Those that a newer one may replace while they wait.
    pongs: BTreeSet<usize>,
    /// The group that must leave last of its topic.
    newest: BTreeMap<u32, usize>,
    /// What nothing takes the place of, with its topic: it must leave unless it was revoked.
    kept: Vec<(u32, usize)>,
    ends: Vec<End>,
    drops_messages: bool,
    /// The most items that there were when the driver wrote or took what was shown.
    longest: usize,
}

impl Story {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    fn play(limit: usize, ops: &[Op]) -> Self {
        let mut story = Self::new(limit);
        for op in ops {
            story.apply(op);
            story.check();
        }
        story
    }

    fn apply(&mut self, op: &Op) {
        self.pushed += 1;
        let number = self.pushed;
        match op {
            Op::Group(topic, sizes) => self.push(*topic, &group(number, *topic, sizes)),
            Op::Message(_) | Op::Burst(MESSAGE, _) if self.drops_messages => {}
            Op::Message(size) => self.push_message(*size),
            Op::Burst(topic, count) => {
                for _ in 0..*count {
                    self.apply(&match *topic {
                        MESSAGE => Op::Message(16),
                        topic => Op::Group(topic, vec![16]),
                    });
                }
            }
            Op::Begun(topic, sizes, sent) if self.outbox.is_empty() => {
                let group = group(number, *topic, sizes);
                let begun = sent.map_or(0, |sent| sent.index(group.len()));
                self.outbox
                    .push_begun(topic_id(*topic), &group, *topic >= EVERY, begun, sent.is_none());
                self.wire.extend_from_slice(&group.bytes()[..begun]);
                self.lent = sent.is_none().then(|| vec![group.bytes().clone()]);
                self.promise(*topic);
            }
            Op::Control(size) => {
                let mut expected = self.waiting();
                self.outbox.push_control(control(number, *size));
                self.controls.insert(number);
                let waiting = self.waiting();
                let in_front = waiting.iter().take_while(|it| it.0.is_none());
                let at = in_front.enumerate().find(|it| it.1.1 == number);
                expected.insert(at.expect("in front of all groups").0, (None, number));
                assert_eq!(waiting, expected);
            }
            Op::Pong(size) => self.pong(control(number, *size)),
            Op::Last(size) => {
                self.outbox.push_last(control(number, *size));
                self.controls.insert(number);
                self.lasts.insert(number);
            }
            Op::Revoke(topic) => self.revoke(*topic),
            Op::RevokeAll => {
                self.outbox.revoke_all();
                (0..TOPICS).for_each(|topic| self.end(topic, number, true));
                let mut items = self.outbox.items();
                assert!(self.lent.is_some() || !items.any(|it| matches!(it, Item::Group { .. })));
            }
            Op::DropMessages => {
                let mut expected = self.waiting();
                expected.retain(|it| it.0 != Some(MESSAGE));
                self.outbox.drop_messages();
                self.drops_messages = true;
                self.end(MESSAGE, number, true);
                assert_eq!(self.waiting(), expected);
            }
            Op::Write(amount) => self.write(amount),
            Op::Lend if self.lent.is_none() && !self.outbox.is_empty() => {
                self.lent = Some(self.chunks());
                self.outbox.lend();
            }
            Op::Begun(..) | Op::Lend => {}
        }
    }

    fn chunks(&mut self) -> Vec<Bytes> {
        self.longest = self.longest.max(self.outbox.items().count());
        let chunks = self.outbox.chunks();
        assert_eq!(chunks.len(), self.outbox.items().count().min(MAX_CHUNKS));
        assert!(chunks.iter().all(|chunk| chunk.as_slice() == chunk.to_bytes()));
        chunks.iter().map(Chunk::to_bytes).collect()
    }

    fn waiting(&self) -> Vec<Waiting> {
        let waiting = self.outbox.urgent.iter().chain(&self.outbox.waiting);
        waiting
            .map(|item| match (item, frames(item.bytes())[0].number) {
                (Item::Group { topic, .. }, number) => (Some(topic.0.index), number),
                (Item::Message(_), number) => (Some(MESSAGE), number),
                (_, number) => (None, number),
            })
            .collect()
    }

    /// What was pushed just now must leave: last of its topic, if a newer one doesn't come.
    fn promise(&mut self, topic: u32) {
        self.newest.insert(topic, self.pushed);
        if topic >= EVERY {
            self.kept.push((topic, self.pushed));
        }
    }

    fn push_message(&mut self, size: usize) {
        let mut expected = self.waiting();
        let frame = group(self.pushed, MESSAGE, &[size]).bytes().clone();
        let pushed = self.outbox.push_message(frame.clone(), self.limit);
        self.pushed_behind_all(MESSAGE, ITEM_BYTES + frame.len(), pushed, &mut expected);
        assert_eq!(self.waiting(), expected);
    }

    /// A message, or one of `every` group of its topic, which takes nothing's place.
    fn pushed_behind_all(&mut self, topic: u32, held: usize, pushed: Pushed, expected: &mut Vec<Waiting>) {
        match pushed {
            Pushed::Replaced => panic!("something is skipped"),
            Pushed::Queued if held == 0 => {}
            Pushed::Queued => {
                expected.push((Some(topic), self.pushed));
                self.promise(topic);
            }
            Pushed::Refused => {
                let before = self.outbox.group_bytes();
                assert!(before > 0 && before + held > self.limit, "refused without need");
            }
        }
    }

    fn push(&mut self, topic: u32, group: &Group) {
        let number = self.pushed;
        let mut expected = self.waiting();
        let older = expected.iter().position(|it| it.0 == Some(topic));
        let before = self.outbox.group_bytes();
        let every = topic >= EVERY;
        let held = if group.is_empty() { 0 } else { held_by(group) };
        let pushed = self.outbox.push_group(topic_id(topic), group, every, self.limit);
        if every {
            self.pushed_behind_all(topic, held, pushed, &mut expected);
        } else if group.is_empty() || pushed == Pushed::Refused {
            let has_no_room = before > 0 && before + held > self.limit;
            assert!(group.is_empty() || has_no_room, "refused without need");
            assert!(!group.is_empty() || (pushed == Pushed::Replaced) == older.is_some());
            older.map(|at| expected.remove(at));
            self.newest.remove(&topic);
            // The driver may give back an older group, and nothing here is to take its place.
            self.ends
                .retain(|end| end.topic != topic || end.revoked || end.at.is_some());
        } else {
            assert_eq!(pushed == Pushed::Replaced, older.is_some());
            match older {
                Some(at) => expected[at].1 = number,
                None => expected.push((Some(topic), number)),
            }
            self.promise(topic);
            self.end(topic, number - 1, false);
        }
        assert_eq!(self.waiting(), expected);
    }

    /// A pong beyond the limit may cost one waiting control frame, or itself, but nothing else.
    fn pong(&mut self, frame: Bytes) {
        let mut expected = self.waiting();
        let fits = self.outbox.control_bytes() + ITEM_BYTES + frame.len() <= MAX_CONTROL_BYTES;
        self.outbox.push_pong(frame);
        let newest = expected.iter().rposition(|it| self.pongs.contains(&it.1));
        if let Some(older) = newest.filter(|_| !fits) {
            self.controls.remove(&expected.remove(older).1);
        }
        let in_front = expected
            .iter()
            .take_while(|(topic, number)| topic.is_none() && !self.lasts.contains(number));
        expected.insert(in_front.count(), (None, self.pushed));
        self.pongs.insert(self.pushed);
        self.controls.insert(self.pushed);
        assert_eq!(self.waiting(), expected);
    }

    fn revoke(&mut self, topic: u32) {
        let mut expected = self.waiting();
        expected.retain(|it| it.0 != Some(topic));
        let id = topic_id(topic);
        let is_its = |item: &Item| matches!(item, Item::Group { topic, .. } if *topic == id);
        let is_queued = self.outbox.items().any(is_its);
        let unsent = |outbox: &Outbox| outbox.items().map(|it| it.bytes().len()).sum::<usize>() - outbox.sent;
        let before = unsent(&self.outbox);
        let lost = self.outbox.revoke(id);
        // What is lent counts as lost, as nobody knows yet how much of it has left.
        let has_shrunk = unsent(&self.outbox) < before;
        assert_eq!(lost, has_shrunk || (self.lent.is_some() && is_queued));
        assert_eq!(self.waiting(), expected);
        self.end(topic, self.pushed, true);
    }

    fn end(&mut self, topic: u32, number: usize, revoked: bool) {
        if revoked {
            self.newest.remove(&topic);
        }
        self.ends.push(End {
            topic,
            number,
            revoked,
            at: self.lent.is_none().then_some(self.wire.len()),
        });
    }

    fn write(&mut self, amount: &Amount) {
        let chunks = self.lent.take().unwrap_or_else(|| self.chunks());
        let old = self.wire.len();
        self.wire.extend(chunks.iter().flatten());
        let sent = match amount {
            Amount::All => self.wire.len() - old,
            Amount::Bytes(index) => index.index(self.wire.len() - old + 1),
            Amount::Frames(index) => {
                let ends = frames(&self.wire).into_iter().filter(|frame| frame.end > old);
                let ends: Vec<usize> = std::iter::once(0).chain(ends.map(|frame| frame.end - old)).collect();
                ends[index.index(ends.len())]
            }
        };
        self.wire.truncate(old + sent);
        self.outbox.consume(sent, |_| {});
        for end in &mut self.ends {
            end.at = end.at.or(Some(self.wire.len()));
        }
    }

    fn check(&mut self) {
        self.outbox.assert_consistent();
        assert_eq!(self.outbox.is_lent(), self.lent.is_some());
        assert!(
            self.lent
                .as_ref()
                .is_none_or(|lent| lent.len() == self.outbox.begun.len())
        );
        let limited = self.outbox.items().filter(|it| it.is_limited());
        assert!(self.outbox.group_bytes() <= self.limit || limited.count() == 1);
    }

    /// Sends the rest and looks at all that left.
    fn finish(mut self) {
        while !self.outbox.is_empty() {
            self.write(&Amount::All);
            self.check();
        }
        assert_eq!((self.outbox.group_bytes(), self.outbox.control_bytes()), (0, 0));
        let frames = frames(&self.wire);
        let mut controls: Vec<usize> = Vec::new();
        let mut seen = BTreeMap::new();
        for (at, frame) in frames.iter().enumerate() {
            let Some((topic, index, count)) = frame.row else {
                controls.push(frame.number);
                continue;
            };
            let before = at.checked_sub(1).map(|before| &frames[before]);
            if index > 0 {
                let row = Some((topic, index - 1, count));
                assert!(before.is_some_and(|it| (it.number, it.row) == (frame.number, row)));
            } else {
                assert!(seen.insert(topic, frame.number) < Some(frame.number), "out of order");
            }
            let is_whole = index + 1 == count || frames.get(at + 1).is_some_and(|it| it.number == frame.number);
            let mut ends = self
                .ends
                .iter()
                .filter(|it| it.topic == topic && it.number >= frame.number);
            assert!(
                is_whole || ends.clone().any(|end| end.revoked),
                "{frame:?} is cut short"
            );
            let is_after = |end: &End| end.at <= Some(frame.start) && (end.revoked || index == 0);
            assert!(!ends.any(is_after), "{frame:?} leaves after its end");
        }
        for (topic, newest) in &self.newest {
            assert_eq!(seen.get(topic), Some(newest));
        }
        for &(topic, number) in &self.kept {
            let is_revoked = |end: &End| end.topic == topic && end.number >= number && end.revoked;
            let has_left = frames.iter().any(|frame| frame.number == number);
            assert!(has_left || self.ends.iter().any(is_revoked), "{number} is lost");
        }
        for last in self.lasts.intersection(&self.controls) {
            let behind = frames.iter().skip_while(|frame| frame.number != *last);
            assert!(
                behind.into_iter().all(|frame| frame.number >= *last),
                "overtakes the last"
            );
        }
        let in_order = controls.iter().filter(|number| !self.lasts.contains(number));
        assert!(in_order.is_sorted());
        controls.sort_unstable();
        assert_eq!(controls, Vec::from_iter(self.controls));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_leaves_is_whole_and_in_order((limit, ops) in story()) {
        Story::play(limit, &ops).finish();
    }
}

#[test]
fn stories_often_have_more_items_than_one_write_takes() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut longest = Vec::new();
    for _ in 0..100 {
        let (limit, ops) = story().new_tree(&mut runner).unwrap().current();
        longest.push(Story::play(limit, &ops).longest);
    }
    let often = longest.iter().filter(|&&items| items > MAX_CHUNKS).count();
    assert!(often >= 25, "{often} of 100: {longest:?}");
}

#[test]
fn what_is_beyond_one_write_is_neither_shown_nor_lent() {
    let mut story = Story::new(LARGE_LIMIT);
    story.apply(&Op::Burst(MESSAGE, MAX_CHUNKS - 2));
    for topic in [EVERY, EVERY, 0, EVERY, 0] {
        story.apply(&Op::Group(topic, vec![16]));
    }
    // Of 67 items pushed one took another's place, and two are behind the cut: the newest of topic 0 and of `EVERY`.
    assert_eq!(story.outbox.items().count(), MAX_CHUNKS + 2);
    story.apply(&Op::Lend);
    assert_eq!(story.lent.as_ref().map(Vec::len), Some(MAX_CHUNKS));
    assert_eq!(story.waiting().len(), 2);
    // What is not lent can still be replaced, revoked and overtaken.
    story.apply(&Op::Group(0, vec![20]));
    story.apply(&Op::Control(16));
    story.apply(&Op::Revoke(EVERY));
    story.apply(&Op::DropMessages);
    story.check();
    let waiting: Vec<_> = story.waiting().iter().map(|it| it.0).collect();
    assert_eq!(waiting, [None, Some(0)]);
    // One message was written, and half of the next one, which must be finished.
    let lens: Vec<usize> = story.lent.iter().flatten().map(Bytes::len).collect();
    story.outbox.consume(lens[0] + lens[1] / 2, |_| {});
    assert_eq!(story.outbox.items().count(), 3);
    let chunks = story.outbox.chunks();
    let shown: Vec<usize> = chunks.iter().map(|chunk| chunk.as_slice().len()).collect();
    assert_eq!(shown, [lens[1] - lens[1] / 2, 18, 22]);
    story.outbox.assert_consistent();
}
