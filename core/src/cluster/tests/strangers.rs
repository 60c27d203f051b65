//! Who is believed, and who isn't.

use super::*;

#[test]
fn nodes_with_other_rules_are_not_heard() {
    let changes: [fn(&mut ClusterConfig); 2] = [|it| it.buckets = 8, |it| it.by_interest = true];
    for change in changes {
        let mut other = config(1);
        change(&mut other);
        let (mut a, mut b) = (Member::new(other), Member::new(config(2)));
        b.client(&[key(1)]);
        a.notify(at(0), &key(1));
        let changes = a.publishes();
        b.hear(at(0), &a.beat(at(0)));
        b.hear(at(0), &changes);
        assert_eq!((b.counts().mismatched, b.counts().strangers), (1, 1));
        assert!(b.cluster.peers.is_empty() && b.reads().is_empty());
    }
}

#[test]
fn no_more_nodes_than_that_are_kept_track_of() {
    let mut few = config(9);
    few.max_peers = 2;
    let mut b = Member::new(few);
    let mut digests: Vec<_> = (1..=3).map(|number| Member::new(config(number)).beat(at(0))).collect();
    for digest in &digests {
        b.hear(at(0), digest);
    }
    assert_eq!((b.cluster.peers.len(), b.counts().too_many_peers), (2, 1));
    // Those that are known are heard still.
    b.hear(at(1), &digests.swap_remove(0));
    assert_eq!((b.counts().too_many_peers, b.counts().old_digests), (1, 1));
}

#[test]
fn what_comes_before_the_first_digest_is_told_of_by_that() {
    let (mut a, mut b) = (Member::new(config(1)), Member::new(config(2)));
    b.client(&[key(1)]);
    b.set(&key(1), "new");
    a.notify(at(0), &key(1));
    b.hear(at(0), &a.publishes());
    assert_eq!((b.counts().strangers, b.reads().len()), (1, 0));
    let before = b.cluster.poll_timeout();
    b.beat(at(0));
    assert!(before <= b.cluster.poll_timeout());
    b.hear(at(10), &a.beat(at(10)));
    assert_eq!(b.cluster.poll_timeout(), at(10), "it is answered at once");
    b.pass(10, 100);
    b.answer(at(100));
    assert_eq!(b.received(), ["1=new"]);
}

#[test]
fn namesakes_are_not_heard() {
    let mut namesake = config(2);
    namesake.epoch = epoch(2_000);
    let (mut a, mut b) = (Member::new(namesake), Member::new(config(2)));
    b.client(&[key(1)]);
    a.notify(at(0), &key(1));
    let changes = a.publishes();
    b.hear(at(0), &a.beat(at(0)));
    b.hear(at(0), &changes);
    assert_eq!(b.counts().namesakes, 2);
    assert!(b.cluster.peers.is_empty() && b.reads().is_empty());
}

fn signed(number: u64, secret: &[u8]) -> ClusterConfig {
    let mut config = config(number);
    config.secret = ClusterSecret::new(secret, "es").ok();
    config
}

#[test]
fn forged_messages_change_nothing() {
    let secret = b"a secret of sufficient length";
    let (mut a, mut b) = (Member::new(signed(1, secret)), Member::new(signed(2, secret)));
    acquaint(&mut [&mut a, &mut b]);
    b.client(&[key(1)]);
    a.notify(at(200), &key(1));
    let mut said = a.publishes();
    said.extend(a.beat(at(500)));
    assert_eq!(said.len(), 2);
    let before = b.counts();
    for message in &said {
        for bit in 0..message.len() * 8 {
            let mut forged = message.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            b.hear(at(500), &[forged]);
        }
        for len in 0..message.len() {
            b.hear(at(500), &[message[..len].to_vec()]);
        }
    }
    // Those of another secret, and of none.
    let mut others = [
        Member::new(signed(3, b"another secret, as long")),
        Member::new(config(4)),
    ];
    for other in &mut others {
        other.notify(at(500), &key(1));
        let changes = other.publishes();
        b.hear(at(500), &other.beat(at(500)));
        b.hear(at(500), &changes);
    }
    let after = b.counts();
    assert!(after.forged > 1000 && after.other_versions == 16);
    let known = ClusterCounts {
        forged: before.forged,
        other_versions: before.other_versions,
        ..after
    };
    assert_eq!(known, before);
    assert_eq!((b.cluster.peers.len(), b.reads().len()), (1, 0));
    b.hear(at(500), &said);
    assert_eq!(b.reads(), ["1"]);
}

#[test]
fn what_is_replayed_is_no_news() {
    let (mut a, mut b) = pair(4);
    b.client(&[key(1)]);
    a.notify(at(200), &key(1));
    let mut said = a.publishes();
    said.extend(a.beat(at(500)));
    b.hear(at(500), &said);
    assert_eq!(b.answer(at(500)), ["1"]);
    let heard = b.peer(1).heard;
    b.hear(at(2000), &said);
    assert_eq!((b.counts().repeated, b.counts().old_digests), (1, 1));
    assert_eq!(
        (b.peer(1).heard, b.reads().len()),
        (heard, 0),
        "a replay is no sign of life"
    );
}

/// A node that was started again, `started_ms` by its clock, and what its last run said.
fn restarted(started_ms: u64) -> (Vec<Vec<u8>>, Member, Member) {
    let (mut a, mut b) = pair(4);
    b.client(&[key(1)]);
    a.notify(at(200), &key(1));
    let mut said = a.publishes();
    said.extend(a.beat(at(500)));
    b.hear(at(500), &said);
    b.answer(at(500));
    b.received();
    let mut config = config(1);
    config.epoch = epoch(started_ms);
    (said, Member::new(config), b)
}

#[test]
fn who_comes_back_may_have_died_with_messages_that_nobody_got() {
    let (said, mut a, mut b) = restarted(2_000);
    b.set(&key(1), "new");
    b.hear(at(600), &a.beat(at(600)));
    assert_eq!(b.counts().restarted_peers, 1);
    b.pass(600, 700);
    b.answer(at(700));
    assert_eq!(b.received(), ["1=new"]);
    // Its numbers begin anew, and those of the run before mean nothing.
    a.notify(at(700), &key(1));
    b.hear(at(700), &a.publishes());
    assert_eq!(b.answer(at(700)), ["1"]);
    b.hear(at(700), &said);
    assert_eq!((b.counts().old_epochs, b.reads().len()), (2, 0));
    assert_eq!(b.peer(1).epoch, epoch(2_000));
}

#[test]
fn a_run_that_seems_older_is_believed_once_the_one_before_is_silent() {
    let (said, mut a, mut b) = restarted(500);
    b.hear(at(600), &a.beat(at(600)));
    assert_eq!((b.counts().old_epochs, b.counts().restarted_peers), (1, 0));
    b.pass(600, 3600);
    assert_eq!(b.counts().lost_peers, 1);
    b.hear(at(3600), &a.beat(at(3600)));
    assert_eq!((b.counts().restarted_peers, b.peer(1).epoch), (1, epoch(500)));
    // And what the one before had said does not bring it back.
    b.hear(at(3700), &said);
    assert_eq!((b.counts().restarted_peers, b.peer(1).epoch), (1, epoch(500)));
}

#[test]
fn what_is_no_message_is_counted() {
    let (mut a, mut b) = pair(4);
    a.notify(at(200), &key(1));
    let good = a.publishes().remove(0);
    let cut = good[..good.len() - 1].to_vec();
    let mut other_version = good.clone();
    other_version[0] = 2;
    // A bucket that there isn't.
    let mut no_bucket = good.clone();
    no_bucket[26] = 4;
    b.hear(at(200), &[vec![], vec![0; 70_000], cut, other_version, no_bucket]);
    assert_eq!((b.counts().malformed, b.counts().other_versions), (3, 2));
    assert!(b.reads().is_empty());
}
