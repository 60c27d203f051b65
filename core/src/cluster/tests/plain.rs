//! A node on a queue that carries one JSON body for each change.

use super::*;

pub(super) struct Plain {
    pub(super) site: Site,
    pub(super) cluster: PlainCluster,
}

impl std::ops::Deref for Plain {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl std::ops::DerefMut for Plain {
    fn deref_mut(&mut self) -> &mut Site {
        &mut self.site
    }
}

pub(super) fn tick(id: u32) -> EntityKey {
    EntityKey::new("ticks", &id.to_string()).expect("short")
}

impl Plain {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(super) fn with(change: fn(&mut PlainConfig)) -> Self {
        let mut config = PlainConfig::default();
        change(&mut config);
        let site = Site::new();
        let waker = Waker::from(site.woken.clone());
        let cluster = PlainCluster::new(site.node.clone(), config, at(0), waker).expect("entities have names");
        Self { site, cluster }
    }

    /// With a queue that is there, and nothing left to repair.
    pub(super) fn connected() -> Self {
        Self::connected_with(|_| {})
    }

    pub(super) fn connected_with(change: fn(&mut PlainConfig)) -> Self {
        let mut plain = Self::with(change);
        plain.cluster.handle(at(0), PlainInput::Connected);
        plain.cluster.handle_timeout(at(60));
        plain
    }

    /// Time passes, and it is woken as it asks for.
    pub(super) fn pass(&mut self, until: Timestamp) {
        while let Some(due) = self.cluster.poll_timeout().filter(|&due| due <= until) {
            self.cluster.handle_timeout(due);
        }
    }

    /// What it publishes: number, topic and body.
    pub(super) fn says(&mut self, now: Timestamp) -> Vec<(u64, String, Vec<u8>)> {
        let mut said = Vec::new();
        while let Some(PlainOutput::Publish { number, topic, body }) = self.cluster.poll_output(now) {
            said.push((number, topic.to_owned(), body.to_vec()));
        }
        said
    }

    pub(super) fn ids(&mut self, now: Timestamp) -> Vec<String> {
        self.says(now).iter().map(|(.., body)| id_of(body)).collect()
    }

    pub(super) fn hear(&mut self, now: Timestamp, body: &[u8]) {
        self.cluster.handle(now, PlainInput::Message(body));
    }

    pub(super) fn receipt(&mut self, now: Timestamp, number: u64, is_confirmed: bool) {
        let outcome = match is_confirmed {
            true => Outcome::Confirmed,
            false => Outcome::Lost,
        };
        self.cluster.handle(now, PlainInput::Receipt { number, outcome });
    }

    pub(super) fn counts(&self) -> ClusterCounts {
        self.cluster.view().counters().snapshot()
    }
}

fn id_of(body: &[u8]) -> String {
    let key = crate::wire::decode_entity_key(body).expect("a key");
    key.id().to_owned()
}

#[test]
fn the_echo_is_the_trigger() {
    let mut a = Plain::connected();
    assert_eq!(a.cluster.topics().len(), 3);
    a.client(&[key(1)]);
    a.notify(at(100), &key(1));
    assert!(a.was_woken() && a.reads().is_empty());
    let said = a.says(at(100));
    let [(number, topic, body)] = &said[..] else {
        panic!("{said:?}");
    };
    assert_eq!(
        (topic.as_str(), &body[..]),
        ("items", &br#"{"entity":"items","id":"1"}"#[..])
    );
    assert!(a.reads().is_empty());
    a.hear(at(110), body);
    a.receipt(at(111), *number, true);
    assert_eq!(a.answer(at(111)), ["1"]);
    assert_eq!(a.received(), ["1=old"]);
    // And nothing more comes of it.
    a.pass(at(10_000));
    assert!(a.says(at(10_000)).is_empty() && a.reads().is_empty());
    assert_eq!((a.counts().confirmed, a.counts().unconfirmed), (1, 0));
}

#[test]
fn each_of_several_notifies_that_are_counted_is_one_push() {
    let mut a = Plain::connected();
    a.client(&[tick(1)]);
    for _ in 0..3 {
        a.notify(at(100), &tick(1));
    }
    for (_, _, body) in a.says(at(100)) {
        a.hear(at(100), &body);
    }
    a.answer(at(100));
    assert_eq!(a.received().len(), 3);
}

#[test]
fn without_the_queue_it_is_applied_at_once_and_told_later() {
    let mut a = Plain::new();
    a.client(&[key(1)]);
    a.notify(at(100), &key(1));
    assert_eq!(a.answer(at(100)), ["1"]);
    assert!(a.says(at(100)).is_empty(), "there is nobody to tell");
    assert!(a.reads().is_empty(), "it was applied");
    a.cluster.handle(at(200), PlainInput::Connected);
    let said = a.says(at(200));
    assert_eq!(said.len(), 1);
    // Unconfirmed, it is not applied again.
    a.pass(at(9100));
    assert_eq!(a.answer(at(9100)), ["1"], "the repair after the connect, and no more");
    assert_eq!(a.received(), ["1=old"], "which found nothing new");
}

#[test]
fn what_was_notified_while_the_queue_still_seemed_to_be_there_is_applied_once() {
    let mut a = Plain::connected();
    a.client(&[key(1), key(2)]);
    a.notify(at(100), &key(1));
    assert!(a.reads().is_empty());
    a.cluster.handle(at(100), PlainInput::Disconnected);
    a.notify(at(100), &key(2));
    assert_eq!(a.reads(), ["2"]);
    assert!(a.says(at(100)).is_empty());
    assert_eq!(a.reads(), ["2", "1"]);
}

#[test]
fn what_waits_for_its_turn_when_the_queue_goes_is_applied() {
    let mut a = Plain::connected_with(|it| it.max_unechoed = 10_000);
    let keys: Vec<_> = (0..1030).map(key).collect();
    a.client(&keys);
    keys.iter().for_each(|key| a.notify(at(100), key));
    assert_eq!(a.says(at(100)).len(), 1024);
    assert!(a.reads().is_empty());
    a.cluster.handle(at(200), PlainInput::Disconnected);
    assert_eq!(a.answer(at(200)).len(), 6);
    // The others may come back, or have been confirmed just before: they are read when that is over, as all is.
    a.pass(at(2100));
    let mut read = a.answer(at(2100));
    read.sort();
    read.dedup();
    assert!(read.len() >= 1024, "{}", read.len());
}

#[test]
fn what_waits_behind_a_queue_that_confirms_nothing_is_applied() {
    let mut a = Plain::connected_with(|it| it.max_unechoed = 10_000);
    let keys: Vec<_> = (0..1030).map(key).collect();
    a.client(&keys);
    keys.iter().for_each(|key| a.notify(at(100), key));
    assert_eq!(a.says(at(100)).len(), 1024);
    a.pass(at(2099));
    assert!(a.reads().is_empty());
    a.pass(at(2100));
    assert_eq!(a.answer(at(2100)).len(), 1030);
    assert_eq!(a.cluster.poll_timeout(), None);
    // One of them changes again, while it still waits to be told.
    let last = &keys[1029];
    a.notify(at(2200), last);
    assert!(a.says(at(2200)).is_empty() && a.reads().is_empty());
    a.pass(at(4199));
    assert!(a.reads().is_empty());
    a.pass(at(4200));
    assert_eq!(a.answer(at(4200)), [last.id()]);
}

#[test]
fn what_is_not_confirmed_in_time_is_applied() {
    let mut a = Plain::connected();
    a.client(&[key(1), key(2)]);
    a.notify(at(100), &key(1));
    let first = a.says(at(100));
    a.notify(at(200), &key(2));
    let second = a.says(at(200));
    a.pass(at(2099));
    assert!(a.reads().is_empty());
    a.pass(at(2100));
    assert_eq!((a.reads(), a.counts().unconfirmed), (vec!["1".to_owned()], 1));
    // Each has its own time; and one that is confirmed at last, and comes back, is over.
    for (number, _, body) in [&first[0], &second[0]] {
        a.receipt(at(2150), *number, true);
        a.hear(at(2150), body);
    }
    assert_eq!(a.cluster.poll_timeout(), None);
    assert_eq!(a.counts().confirmed, 2);
}

#[test]
fn what_is_refused_is_applied_and_told_again_before_the_others() {
    let mut a = Plain::connected();
    a.client(&[key(1), key(2)]);
    a.notify(at(100), &key(1));
    let said = a.says(at(100));
    a.notify(at(110), &key(2));
    a.receipt(at(120), said[0].0, false);
    assert_eq!(a.reads(), ["1"]);
    // The queue is left alone for a while, and then for longer.
    assert!(a.says(at(120)).is_empty());
    assert_eq!(a.cluster.poll_timeout(), Some(at(220)));
    a.cluster.handle_timeout(at(220));
    assert_eq!(a.ids(at(220)), ["1", "2"]);
    // Refused again, it is not applied again.
    a.receipt(at(230), said[0].0 + 1, false);
    assert_eq!(a.reads(), ["1"]);
    assert!(a.says(at(429)).is_empty());
    a.cluster.handle_timeout(at(430));
    assert_eq!((a.ids(at(430)), a.counts().unconfirmed), (vec!["1".to_owned()], 1));
    // Answers to what was never asked, or is over, mean nothing.
    for number in [0, said[0].0, 1000, u64::MAX] {
        a.receipt(at(140), number, false);
    }
    assert!(a.says(at(140)).is_empty());
}

#[test]
fn each_that_is_counted_is_told_again_when_it_is_refused() {
    let mut a = Plain::connected();
    for _ in 0..3 {
        a.notify(at(100), &tick(1));
    }
    let said = a.says(at(100));
    assert_eq!(said.len(), 3);
    for (number, ..) in &said[..2] {
        a.receipt(at(110), *number, false);
    }
    a.cluster.handle_timeout(at(210));
    assert_eq!(a.says(at(210)).len(), 2);
}

#[test]
fn what_the_queue_will_never_take_is_applied_and_not_told_again() {
    let mut a = Plain::connected();
    a.client(&[key(1)]);
    a.notify(at(100), &key(1));
    let number = a.says(at(100))[0].0;
    let outcome = Outcome::Refused;
    a.cluster.handle(at(110), PlainInput::Receipt { number, outcome });
    assert_eq!((a.reads(), a.counts().untold), (vec!["1".to_owned()], 1));
    assert!(!a.cluster.has_unsent());
    assert_eq!(a.cluster.poll_timeout(), None);
}

#[test]
fn what_waits_for_its_echo_when_the_bus_ends_is_applied() {
    let mut a = Plain::connected();
    a.client(&[key(1), key(2), key(3)]);
    for id in [1, 2] {
        a.notify(at(100), &key(id));
    }
    // The queue has the first one, and nobody knows any more whether it has brought it here.
    let number = a.says(at(100))[0].0;
    a.receipt(at(105), number, true);
    a.notify(at(110), &key(3));
    let Plain { mut site, cluster } = a;
    drop(cluster);
    let mut read = site.answer(at(120));
    read.sort();
    assert_eq!(read, ["1", "2", "3"]);
    // And what comes afterwards, at once.
    site.notify(at(130), &key(3));
    assert_eq!(site.reads(), ["3"]);
}

#[test]
fn what_waits_is_told_once_unless_it_is_counted() {
    let mut a = Plain::new();
    for _ in 0..3 {
        a.notify(at(0), &key(1));
        a.notify(at(0), &tick(2));
        a.says(at(0));
    }
    a.cluster.handle(at(100), PlainInput::Connected);
    let mut ids = a.ids(at(100));
    ids.sort_unstable();
    assert_eq!(ids, ["1", "2", "2", "2"]);
}

#[test]
fn no_more_than_1024_wait_for_their_receipts() {
    let mut a = Plain::connected_with(|it| it.max_unechoed = 10_000);
    for id in 0..1500 {
        a.notify(at(100), &key(id));
    }
    let said = a.says(at(100));
    assert_eq!(said.len(), 1024);
    a.receipt(at(110), said[0].0, true);
    assert_eq!(a.says(at(110)).len(), 1);
    for (number, ..) in &said[1..] {
        a.receipt(at(120), *number, true);
    }
    assert_eq!(a.says(at(120)).len(), 475);
}

#[test]
fn everything_is_read_again_on_each_connect_and_after_an_overflow() {
    let mut a = Plain::new();
    a.client(&[key(1)]);
    let mut now = 0;
    let inputs = [PlainInput::Connected, PlainInput::Missed, PlainInput::Connected];
    for input in inputs {
        a.cluster.handle(at(now), input);
        let begins = a.cluster.poll_timeout().expect("a repair");
        assert!(begins <= at(now + 50));
        a.cluster.handle_timeout(begins);
        assert_eq!(a.answer(begins), ["1"]);
        now += 1000;
    }
    assert_eq!((a.counts().sweeps, a.counts().repairs), (3, 3));
    assert_eq!(a.received().len(), 1, "nothing had changed");
}

#[test]
fn everything_is_swept_from_time_to_time_if_that_is_wished() {
    let mut a = Plain::with(|it| it.sweep_every = Some(Duration::from_secs(10)));
    a.client(&[key(1)]);
    assert_eq!(a.cluster.poll_timeout(), Some(at(10_000)));
    a.cluster.handle_timeout(at(10_000));
    a.cluster.handle_timeout(at(10_060));
    assert_eq!(a.reads(), ["1"]);
    assert_eq!(a.cluster.poll_timeout(), Some(at(20_000)));
}

#[test]
fn bodies_are_those_of_the_original() {
    let written = |entity: &str, id: &str| {
        let mut body = Vec::new();
        super::super::plain_body::write_body(&mut body, &EntityKey::new(entity, id).expect("short"));
        String::from_utf8(body).expect("text")
    };
    assert_eq!(written("items", "100"), r#"{"entity":"items","id":"100"}"#);
    assert_eq!(
        written("items", "a<b>&c"),
        r#"{"entity":"items","id":"a\u003cb\u003e\u0026c"}"#
    );
    assert_eq!(
        written("it\"em\\s", "\u{1}\n\r\t\u{2028}\u{2029}"),
        r#"{"entity":"it\"em\\s","id":"\u0001\n\r\t\u2028\u2029"}"#
    );
    assert_eq!(
        written("é", "日本 😀\u{7f}"),
        "{\"entity\":\"é\",\"id\":\"日本 😀\u{7f}\"}"
    );
}

#[test]
fn bodies_of_others_are_understood_as_the_original_does() {
    let mut a = Plain::connected();
    a.client(&[key(100)]);
    let heard = |a: &mut Plain, body: &[u8]| {
        a.hear(at(100), body);
        a.answer(at(100)).len()
    };
    for good in [
        &br#"{"entity":"items","id":"100"}"#[..],
        br#"{"ENTITY":"items","Id":"100","x":1}"#,
        b"{\"entity\":\"items\",\"id\":\"100\"}\n",
        br#" {"id":"\u0031\u0030\u0030","entity":"items"} "#,
    ] {
        assert_eq!(heard(&mut a, good), 1, "{}", good.escape_ascii());
    }
    // Nobody's entity, which is nobody's error.
    for quiet in [
        &b"null"[..],
        br#"{"id":"100"}"#,
        br#"{"entity":"other","id":"100"}"#,
        b"{}",
    ] {
        assert_eq!(heard(&mut a, quiet), 0, "{}", quiet.escape_ascii());
    }
    assert_eq!(a.counts().malformed, 0);
    let bad = [
        &br#"{"entity":"items","id":100}"#[..],
        b"nonsense",
        b"[]",
        br#"{"entity":"items","id":"100"}{"entity":"items","id":"100"}"#,
        b"",
    ];
    for bad in bad {
        assert_eq!(heard(&mut a, bad), 0, "{}", bad.escape_ascii());
    }
    assert_eq!(a.counts().malformed, bad.len() as u64);
}

#[test]
fn what_finds_no_room_is_counted_and_read_again_here() {
    let mut a = Plain::connected();
    let keys: Vec<_> = keys_of(0, 64).take(16 * 1024 + 3).collect();
    a.client(&keys[..1]);
    keys.iter().for_each(|key| a.notify(at(100), key));
    a.says(at(100));
    assert_eq!((a.counts().untold, a.counts().sweeps), (3, 2));
    a.cluster.handle_timeout(at(160));
    assert_eq!(a.reads(), [keys[0].id()]);
}

#[test]
fn entities_are_to_have_names() {
    let (node, _) = Node::new(Config::new(Seed(1, 2)), Arc::<Store>::default(), vec![]);
    let refused = PlainCluster::new(node, PlainConfig::default(), at(0), Waker::noop().clone());
    assert_eq!(refused.err(), Some(JoinError::NoEntities));
    // And a node has one bus.
    let site = Site::new();
    let join = || PlainCluster::new(site.node.clone(), PlainConfig::default(), at(0), Waker::noop().clone());
    assert!(join().is_ok());
    assert_eq!(join().err(), Some(JoinError::HasBus));
}

#[test]
fn receipts_that_wait_to_be_read_after_the_process_stood_still_are_not_missed() {
    let mut a = Plain::connected();
    a.client(&[tick(1)]);
    a.notify(at(100), &tick(1));
    let said = a.says(at(100));
    let [(number, _, body)] = &said[..] else {
        panic!("{said:?}");
    };
    // Echo and receipt have come, and are read only after a look at the time.
    a.cluster.handle_timeout(at(10_000));
    assert!(a.reads().is_empty());
    a.hear(at(10_001), body);
    a.receipt(at(10_002), *number, true);
    assert_eq!(a.answer(at(10_002)), ["1"]);
    for ms in 10_003..13_000 {
        a.cluster.handle_timeout(at(ms));
    }
    assert!(a.reads().is_empty(), "once for each notify");
    assert_eq!((a.counts().confirmed, a.counts().unconfirmed), (1, 0));
    // What the queue never answers is applied in its time.
    a.notify(at(13_000), &tick(1));
    assert_eq!(a.says(at(13_000)).len(), 1);
    for ms in 13_000..=15_000 {
        a.cluster.handle_timeout(at(ms));
    }
    assert_eq!(a.counts().unconfirmed, 1);
}
