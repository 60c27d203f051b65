//! A node that stands still for a while, and what its peers said meanwhile.

use super::*;

/// Peers that are lost after a second.
fn impatient_pair() -> (Member, Member) {
    let of = |number| {
        let mut config = config(number);
        config.lost_after_heartbeats = 2;
        Member::new(config)
    };
    let (mut a, mut b) = (of(1), of(2));
    acquaint(&mut [&mut a, &mut b]);
    (a, b)
}

#[test]
fn what_waits_to_be_read_is_no_silence_however_long_it_stood_still() {
    for stopped_ms in [900, 1_400, 10_000] {
        let (mut a, mut b) = impatient_pair();
        a.pass(101, 600);
        let goes_on_at = 600 + stopped_ms;
        let mut waiting = Vec::new();
        for ms in (600..goes_on_at).step_by(500) {
            waiting.extend(b.beat(at(ms)));
        }
        // There is so much that the time is looked at before all of it was read.
        a.cluster.handle_timeout(at(goes_on_at));
        a.cluster.handle_timeout(at(goes_on_at + 50));
        assert_eq!(a.counts().lost_peers, 0, "after {stopped_ms} ms");
        a.hear(at(goes_on_at + 100), &waiting);
        a.pass(goes_on_at + 101, goes_on_at + 900);
        assert_eq!((a.counts().lost_peers, a.peer(2).state), (0, State::Alive));
        // Who is silent from then on is noticed as soon as ever.
        a.pass(goes_on_at + 901, goes_on_at + 1_700);
        assert_eq!((a.counts().lost_peers, a.peer(2).state), (1, State::Lost));
    }
}

#[test]
fn what_was_missing_before_may_still_wait_to_be_read() {
    let (mut a, mut b) = pair(1);
    a.client(&[key(1)]);
    a.received();
    let mut messages = Vec::new();
    for _ in 0..2 {
        b.notify(at(100), &key(1));
        messages.extend(b.publishes());
    }
    a.hear(at(200), &messages[1..]);
    a.answer(at(200));
    // The first one was on its way when the process was stopped, and comes behind much else.
    a.cluster.handle_timeout(at(5_000));
    a.hear(at(5_100), &messages[..1]);
    a.pass(5_101, 6_000);
    assert_eq!((a.counts().gaps, a.counts().lost_peers), (0, 0));
}
