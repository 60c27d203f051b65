//! What digests say, and what their absence says.

use std::collections::BTreeSet;

use super::*;

/// Two nodes, one of which has published to each of so many buckets.
fn busy_pair(buckets: u32) -> (Member, Member) {
    let (mut a, mut b) = pair(buckets);
    let mut missing: BTreeSet<u32> = (0..buckets).collect();
    for key in (0..).map(|id: u32| key(id)) {
        if missing.remove(&key.bucket(buckets)) {
            a.notify(at(150), &key);
        }
        if missing.is_empty() {
            break;
        }
    }
    b.hear(at(150), &a.publishes());
    (a, b)
}

#[test]
fn a_long_digest_comes_in_parts_that_are_digests_of_their_own() {
    let (mut a, mut b) = busy_pair(8192);
    let parts = a.beat(at(500));
    assert_eq!(parts.len(), 3);
    let mut told = BTreeSet::new();
    for part in &parts {
        let (entries, is_leaving) = digest(part).expect("a digest");
        assert!(part.len() <= message::FULL_BYTES + 64 && !is_leaving);
        told.extend(entries);
    }
    assert_eq!(told, (0..8192).map(|bucket| (bucket, 1)).collect());
    // The second one alone.
    let before = b.peer(1).heard;
    b.hear(at(500), &parts[1..2]);
    assert!(b.peer(1).heard > before);
    assert_eq!(b.counts().old_digests, 0);
}

#[test]
fn a_goodbye_counts_only_with_all_its_parts() {
    for lost in [None, Some(0), Some(1), Some(2)] {
        let (mut a, mut b) = busy_pair(8192);
        a.cluster.leave();
        let mut parts = a.publishes();
        assert_eq!(parts.len(), 3);
        if let Some(lost) = lost {
            parts.remove(lost);
        }
        b.hear(at(200), &parts);
        let is_whole = lost.is_none();
        assert_eq!(b.peer(1).state == State::Left, is_whole, "without part {lost:?}");
        b.pass(200, 4000);
        assert_eq!(
            (b.counts().lost_peers, b.counts().sweeps),
            if is_whole { (0, 0) } else { (1, 1) }
        );
    }
}

#[test]
fn who_leaves_says_first_what_was_notified() {
    let (mut a, mut b) = pair(4);
    b.client(&[key(1), key(2)]);
    for id in [1, 2] {
        a.notify(at(200), &key(id));
    }
    a.cluster.leave();
    let said = a.publishes();
    let (last, before) = said.split_last().expect("some");
    assert!(digest(last).is_some_and(|(_, is_leaving)| is_leaving));
    let told: usize = before.iter().flat_map(|it| sections(it)).map(|it| it.2.len()).sum();
    assert_eq!(told, 2);
    b.hear(at(200), &said);
    assert_eq!(b.peer(1).state, State::Left);
    assert_eq!(b.reads().len(), 2);
}

#[test]
fn what_a_goodbye_tells_of_and_has_not_come_is_missed() {
    let (mut a, mut b) = pair(4);
    b.client(&[key(1)]);
    b.set(&key(1), "new");
    a.notify(at(200), &key(1));
    a.cluster.leave();
    let said = a.publishes();
    b.hear(at(200), &said[said.len() - 1..]);
    b.pass(200, 900);
    b.answer(at(900));
    assert_eq!(b.received(), ["1=new"]);
}

#[test]
fn who_is_silent_for_six_heartbeats_may_be_dead() {
    let (_, mut b) = pair(4);
    b.client(&[key(1)]);
    b.set(&key(1), "new");
    b.pass(100, 2999);
    assert_eq!((b.counts().lost_peers, b.peer(1).state), (0, State::Alive));
    b.pass(3000, 3100);
    assert_eq!((b.counts().lost_peers, b.peer(1).state), (1, State::Lost));
    b.answer(at(3100));
    assert_eq!(b.received(), ["1=new"]);
    // Once.
    b.pass(3100, 9000);
    assert_eq!((b.counts().lost_peers, b.counts().sweeps, b.reads().len()), (1, 1, 0));
}

#[test]
fn losses_at_a_time_share_a_sweep() {
    let (mut a, mut b, mut c) = (Member::new(config(1)), Member::new(config(2)), Member::new(config(3)));
    acquaint(&mut [&mut a, &mut b, &mut c]);
    let keys: Vec<_> = (0..200).map(key).collect();
    c.client(&keys);
    let before = c.counts().repairs;
    // Both were heard last at 0; and then one 20 ms later, in the middle of the other's sweep.
    c.pass(100, 3000);
    assert_eq!((c.counts().lost_peers, c.counts().sweeps), (2, 1));
    c.pass(3001, 4000);
    assert_eq!(c.counts().repairs - before, 200);
}

#[test]
fn a_sweep_in_the_middle_of_another_repeats_only_what_was_read_already() {
    let (mut a, mut b, mut c) = (Member::new(config(1)), Member::new(config(2)), Member::new(config(3)));
    acquaint(&mut [&mut a, &mut b, &mut c]);
    let keys: Vec<_> = (0..1000).map(key).collect();
    c.client(&keys);
    let before = c.counts().repairs;
    c.hear(at(100), &b.beat(at(100)));
    c.pass(100, 3099);
    let begun = c.counts().repairs - before;
    assert!((1..1000).contains(&begun), "{begun}");
    c.pass(3100, 5000);
    assert_eq!(c.counts().sweeps, 2);
    let repeated = c.counts().repairs - before - 1000;
    assert!(repeated <= begun + 100, "{begun}, and then {repeated} again");
}

#[test]
fn nobody_is_lost_because_this_node_was_held_up_or_cut_off() {
    let (_, mut b) = pair(4);
    b.pass(100, 1000);
    // Stopped for a minute.
    b.cluster.handle_timeout(at(61_000));
    assert_eq!(b.counts().lost_peers, 0);
    b.cluster.handle(at(61_100), ClusterInput::Disconnected);
    b.pass(61_100, 121_000);
    assert_eq!(b.counts().lost_peers, 0);
    b.cluster.handle(at(121_000), ClusterInput::Connected);
    b.pass(121_000, 123_999);
    assert_eq!(b.counts().lost_peers, 0);
    // It is granted as long as anybody.
    b.pass(124_000, 124_100);
    assert_eq!(b.counts().lost_peers, 1);
}

#[test]
fn who_is_reached_is_told_early() {
    let (mut a, _) = pair(4);
    a.beat(at(500));
    assert_eq!(a.cluster.poll_timeout(), at(1000));
    a.cluster.handle(at(600), ClusterInput::Reached);
    assert_eq!(a.cluster.poll_timeout(), at(600));
    a.cluster.handle_timeout(at(600));
    assert_eq!(a.publishes().len(), 1);
}

#[test]
fn everything_is_swept_from_time_to_time_if_that_is_wished() {
    let mut config = config(1);
    config.sweep_every = Some(Duration::from_secs(10));
    let mut a = Member::new(config);
    a.client(&[key(1)]);
    a.answer(at(0));
    a.set(&key(1), "written without a notify");
    a.pass(1, 9_999);
    assert!(a.reads().is_empty());
    a.pass(10_000, 10_100);
    a.answer(at(10_100));
    assert_eq!(a.received(), ["1=written without a notify"]);
    a.pass(10_101, 20_200);
    assert_eq!(a.answer(at(20_200)), ["1"]);
    assert_eq!((a.received().len(), a.counts().sweeps), (0, 2));
}

#[test]
fn who_has_gone_is_forgotten_after_a_while() {
    let mut config = config(2);
    config.forget_after = Duration::from_secs(20);
    let (mut a, mut b) = (Member::new(super::config(1)), Member::new(config));
    acquaint(&mut [&mut a, &mut b]);
    a.cluster.leave();
    b.hear(at(200), &a.publishes());
    b.pass(200, 19_900);
    assert_eq!(b.cluster.view().status().peers.len(), 1);
    b.pass(19_900, 21_000);
    assert!(b.cluster.peers.is_empty() && b.cluster.view().status().peers.is_empty());
    assert_eq!(b.counts().sweeps, 0, "it has said goodbye");
    // One that is alive is not, however long it says nothing new.
    let mut c = Member::new(super::config(3));
    for beat in 0..100 {
        let now = at(21_000 + beat * 500);
        b.hear(now, &c.beat(now));
        b.cluster.handle_timeout(now);
    }
    assert_eq!(b.peer(3).state, State::Alive);
}

/// It may only have been cut off when it was lost, and have died since.
#[test]
fn who_was_lost_is_swept_for_once_more_when_it_is_forgotten() {
    let mut config = config(2);
    config.forget_after = Duration::from_secs(20);
    let (mut a, mut b) = (Member::new(super::config(1)), Member::new(config));
    acquaint(&mut [&mut a, &mut b]);
    b.pass(100, 19_900);
    assert_eq!((b.counts().lost_peers, b.counts().sweeps), (1, 1));
    b.pass(19_900, 21_000);
    assert_eq!((b.cluster.peers.len(), b.counts().sweeps), (0, 2));
}
