//! What a queue confirms and does not bring back, and what others miss who come back to it later.

use super::plain::{Plain, tick};
use super::*;

impl Plain {
    /// The queue has these, and brings back none.
    fn confirm(&mut self, now: Timestamp, said: &[(u64, String, Vec<u8>)]) {
        for (number, ..) in said {
            self.receipt(now, *number, true);
        }
    }
}

#[test]
fn what_does_not_come_back_is_read_again_here_and_published_again() {
    let mut a = Plain::connected();
    a.client(&[key(1)]);
    a.notify(at(100), &key(1));
    let said = a.says(at(100));
    a.confirm(at(200), &said);
    a.pass(at(5199));
    assert!(a.reads().is_empty() && a.says(at(5199)).is_empty());
    assert!(!a.cluster.has_unsent(), "the queue has confirmed it");
    a.pass(at(5200));
    assert_eq!(a.answer(at(5200)), ["1"]);
    let again = a.says(at(5200));
    assert_eq!((again.len(), &again[0].2), (1, &said[0].2));
    assert_eq!(a.counts().unechoed, 1);
    // This node's own queue has dropped it, and so perhaps what came from others.
    assert_eq!(a.counts().sweeps, 2);
    a.pass(at(5300));
    a.answer(at(5300));
    // It is waited for twice as long, and is not read again then, as it was already.
    a.confirm(at(5300), &again);
    a.pass(at(15_299));
    assert!(a.says(at(15_299)).is_empty());
    a.pass(at(15_300));
    assert!(a.reads().is_empty());
    let again = a.says(at(15_300));
    a.confirm(at(15_300), &again);
    a.hear(at(15_310), &again[0].2);
    a.answer(at(15_310));
    a.pass(at(200_000));
    assert!(a.says(at(200_000)).is_empty(), "it has come back");
    assert_eq!((a.counts().unechoed, a.counts().sweeps), (2, 3));
    assert_eq!(a.cluster.poll_timeout(), None);
}

#[test]
fn each_that_is_counted_has_its_own_echo() {
    let mut a = Plain::connected();
    for _ in 0..3 {
        a.notify(at(100), &tick(1));
    }
    let said = a.says(at(100));
    // One of them before it is confirmed, one after that, one not at all.
    a.hear(at(110), &said[0].2);
    a.confirm(at(120), &said);
    a.hear(at(130), &said[1].2);
    a.pass(at(6000));
    assert_eq!((a.says(at(6000)).len(), a.counts().unechoed), (1, 1));
}

#[test]
fn so_many_of_a_topic_may_not_have_come_back_and_other_topics_do_not_wait_for_them() {
    let mut a = Plain::connected();
    for id in 0..1500 {
        a.notify(at(100), &key(id));
    }
    let said = a.says(at(100));
    assert_eq!(said.len(), 1000);
    a.confirm(at(110), &said);
    assert!(a.says(at(110)).is_empty(), "the queue has 1000 that have not come back");
    a.notify(at(110), &tick(1));
    assert_eq!(a.says(at(110)).len(), 1, "another topic waits");
    for (.., body) in &said[..300] {
        a.hear(at(120), body);
    }
    assert_eq!(a.says(at(120)).len(), 300);
}

#[test]
fn what_is_refused_or_lost_makes_room() {
    let mut a = Plain::connected_with(|it| it.max_unechoed = 2);
    for id in 0..4 {
        a.notify(at(100), &key(id));
    }
    let said = a.says(at(100));
    assert_eq!(said.len(), 2);
    let number = said[0].0;
    let outcome = Outcome::Refused;
    a.cluster.handle(at(110), PlainInput::Receipt { number, outcome });
    let more = a.says(at(110));
    assert_eq!(more.len(), 1);
    for number in [said[1].0, more[0].0] {
        a.receipt(at(120), number, false);
    }
    a.pass(at(300));
    assert_eq!(a.says(at(300)).len(), 2);
}

#[test]
fn what_the_queue_had_when_it_went_is_published_again_when_it_is_back() {
    let mut a = Plain::connected();
    a.client(&[key(1)]);
    a.notify(at(100), &key(1));
    let said = a.says(at(100));
    a.confirm(at(110), &said);
    a.cluster.handle(at(120), PlainInput::Disconnected);
    a.pass(at(200));
    assert_eq!(a.answer(at(200)), ["1"], "all is read again here");
    a.pass(at(9000));
    assert!(a.says(at(9000)).is_empty());
    a.cluster.handle(at(9000), PlainInput::Connected);
    assert_eq!(a.ids(at(9000)), ["1"]);
    assert_eq!(a.counts().unechoed, 0);
}

#[test]
fn after_this_process_was_held_up_nothing_is_judged_before_it_has_read_what_has_come() {
    let mut a = Plain::connected();
    a.client(&[key(1), key(2)]);
    a.notify(at(100), &key(1));
    let first = a.says(at(100));
    a.confirm(at(110), &first);
    a.notify(at(120), &key(2));
    let second = a.says(at(120));
    // Stopped for half a minute; the answers wait in its sockets.
    a.cluster.handle_timeout(at(30_000));
    assert!(a.reads().is_empty() && a.says(at(30_000)).is_empty());
    a.pass(at(30_500));
    assert!(a.reads().is_empty());
    for (number, _, body) in first.iter().chain(&second) {
        a.hear(at(30_600), body);
        a.receipt(at(30_600), *number, true);
    }
    a.answer(at(30_600));
    a.pass(at(60_000));
    assert_eq!((a.counts().unechoed, a.counts().unconfirmed), (0, 0));

    // But a process that is slow all the time is no excuse.
    a.notify(at(60_000), &key(1));
    let said = a.says(at(60_000));
    a.confirm(at(60_000), &said);
    for now in (0..10).map(|round| at(62_500 + round * 2_500)) {
        a.cluster.handle_timeout(now);
    }
    assert_eq!(a.counts().unechoed, 1);
}

#[test]
fn sweeps_for_lost_messages_are_far_apart() {
    let mut a = Plain::connected();
    let mut now = 100;
    while now < 60_000 {
        a.notify(at(now), &key(now as u32));
        let said = a.says(at(now));
        a.confirm(at(now), &said);
        now += 500;
        a.pass(at(now));
    }
    assert!(a.counts().unechoed > 100);
    assert!((3..=4).contains(&a.counts().sweeps), "{:?}", a.counts());
}

#[test]
fn what_is_heard_after_the_queue_has_come_back_is_published_again_for_those_who_come_later() {
    let mut a = Plain::connected();
    a.cluster.handle(at(1000), PlainInput::Disconnected);
    a.cluster.handle(at(2000), PlainInput::Connected);
    // What another node has published, and this node's own.
    a.hear(at(3000), br#"{"entity":"items","id":"1"}"#);
    a.hear(at(3000), br#"{"entity":"unknown","id":"1"}"#);
    a.notify(at(4000), &key(2));
    let said = a.says(at(4000));
    a.confirm(at(4000), &said);
    a.hear(at(4010), &said[0].2);
    a.pass(at(66_000));
    assert!(a.says(at(66_000)).is_empty());
    a.pass(at(90_000));
    let mut ids = a.ids(at(90_000));
    ids.sort();
    assert_eq!(ids, ["1", "2"]);

    // A node that has just started, and finds the queue there, has taken nothing away from anybody.
    let mut b = Plain::connected();
    b.hear(at(3000), br#"{"entity":"items","id":"1"}"#);
    b.pass(at(90_000));
    assert!(b.says(at(90_000)).is_empty());
    // One that has waited for it may have.
    let mut c = Plain::new();
    c.cluster.handle(at(5000), PlainInput::Connected);
    c.hear(at(6000), br#"{"entity":"items","id":"1"}"#);
    c.pass(at(90_000));
    assert_eq!(c.says(at(90_000)).len(), 1);
}

#[test]
fn a_mark_is_passed_when_the_queue_has_what_was_notified_before_it() {
    let mut a = Plain::new();
    let nothing = a.cluster.mark(at(50));
    assert!(a.cluster.is_delivered(nothing));
    a.notify(at(100), &key(1));
    a.notify(at(100), &tick(2));
    let mark = a.cluster.mark(at(100));
    assert!(a.cluster.has_unsent(), "the queue is not there yet");
    let ids = |a: &Plain| {
        let mut ids: Vec<_> = a
            .cluster
            .undelivered(mark)
            .iter()
            .map(|it| it.id().to_owned())
            .collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&a), ["1", "2"]);
    a.cluster.handle(at(200), PlainInput::Connected);
    let said = a.says(at(200));
    a.notify(at(210), &key(3));
    a.receipt(at(220), said[0].0, false);
    a.receipt(at(220), said[1].0, true);
    assert!(!a.cluster.is_delivered(mark));
    assert_eq!(ids(&a).len(), 1);
    a.pass(at(400));
    let again = a.says(at(400));
    // The one that was lost comes first; the other is behind the mark.
    a.receipt(at(410), again[0].0, true);
    assert!(a.cluster.is_delivered(mark) && ids(&a).is_empty());
    assert!(a.cluster.has_unsent());
}

#[test]
fn bad_limits_are_refused() {
    let refused = |change: fn(&mut PlainConfig)| {
        let mut config = PlainConfig::default();
        change(&mut config);
        let joined = PlainCluster::new(Site::new().node.clone(), config, at(0), Waker::noop().clone());
        joined.err().map(|it| it.to_string())
    };
    assert!(refused(|it| it.max_unechoed = 0).is_some_and(|it| it.contains("at least 1")));
    assert!(refused(|it| it.echo_within = Duration::ZERO).is_some_and(|it| it.contains("at least 10 ms")));
}
