//! What is read again, in which order, how fast, and for whom.

use super::*;

/// A node whose only peer has just been lost, at 3 s; its repairs are about to begin.
fn bereaved(mut before: impl FnMut(&mut Member)) -> Member {
    let (_, mut b) = pair(4);
    before(&mut b);
    b.pass(100, 2999);
    b.cluster.handle_timeout(at(3000));
    assert_eq!((b.counts().lost_peers, b.counts().repairs), (1, 0));
    b
}

/// When the repairs that are due begin: a moment by chance, up to 50 ms from now.
fn first_turn(member: &mut Member) -> u64 {
    (3000..=3050)
        .find(|&ms| {
            if member.cluster.poll_timeout() <= at(ms) {
                member.cluster.handle_timeout(at(ms));
            }
            member.counts().repairs > 0
        })
        .expect("they begin")
}

#[test]
fn those_with_the_most_subscribers_come_first() {
    let mut b = bereaved(|b| {
        // In an order that is neither one nor the other.
        for (id, clients) in [(1, 20), (2, 1), (3, 70), (4, 40)] {
            for _ in 0..clients {
                b.client(&[key(id)]);
            }
        }
    });
    b.pass(3000, 3100);
    assert_eq!(b.answer(at(3100)), ["3", "4", "1", "2"]);
}

#[test]
fn who_changes_its_secret_takes_repairs_that_wait_along() {
    const KEYS: usize = 500;
    let mut client = None;
    let mut b = bereaved(|b| client = Some(b.client(&(0..KEYS).map(key).collect::<Vec<_>>())));
    first_turn(&mut b);
    let begun = b.answer(at(3050)).len();
    assert!((1..KEYS).contains(&begun), "{begun}");
    b.say_text(client.expect("one"), r#"{"action":"secret","body":"other"}"#);
    let mut read: Vec<_> = b.answer(at(3050));
    b.pass(3051, 3200);
    read.extend(b.answer(at(3200)));
    assert_eq!(read.len(), KEYS - begun, "those that had been read stay as they are");
}

/// Where it moves to, rows may be on their way that don't count for it, so that nobody would look there.
#[test]
fn who_changes_its_secret_before_a_gap_is_looked_into_is_read_for_at_once() {
    let (_, mut b) = pair(4);
    let client = b.client(&[key(1)]);
    b.say_text(client, r#"{"action":"secret","body":"one"}"#);
    assert_eq!(b.reads().len(), 0, "there is no doubt");
    b.cluster.repairs.add_all(at(1000), &b.site.node);
    b.say_text(client, r#"{"action":"secret","body":"two"}"#);
    assert_eq!(b.answer(at(1000)), ["1"]);
    b.pass(1000, 1300);
    b.answer(at(1300));
    b.say_text(client, r#"{"action":"secret","body":"three"}"#);
    assert_eq!(b.reads().len(), 0, "there is none any more");
}

#[test]
fn the_cluster_shares_the_rate_and_nobody_bursts() {
    let begun_at = |nodes: u64, stall: u64| {
        let mut members: Vec<_> = (1..=nodes)
            .map(|number| {
                let mut config = config(number);
                config.repair_rate = 2_000;
                Member::new(config)
            })
            .collect();
        members[0].client(&(0..1000).map(key).collect::<Vec<_>>());
        members[0].site.answer(at(0));
        acquaint(&mut members.iter_mut().collect::<Vec<_>>());
        let mut b = members.swap_remove(0);
        b.pass(100, 1000);
        b.answer(at(1000));
        let before = b.counts().repairs;
        b.cluster.repairs.add_all(at(1000), &b.site.node);
        let first = (1000..1060).find(|&ms| {
            b.cluster.handle_timeout(at(ms));
            b.counts().repairs > before
        });
        let first = first.expect("they begin");
        if stall > 0 {
            b.cluster.handle_timeout(at(first + stall));
        } else {
            b.pass(first + 1, first + 100);
        }
        b.counts().repairs - before
    };
    // What has waited up to 50 ms may begin together: 100 ms and those.
    assert!((190..=310).contains(&begun_at(1, 0)), "{}", begun_at(1, 0));
    assert!((95..=155).contains(&begun_at(2, 0)), "{}", begun_at(2, 0));
    assert!((48..=78).contains(&begun_at(4, 0)), "{}", begun_at(4, 0));
    // A minute is not made up for at once.
    assert!(begun_at(1, 60_000) <= 310, "{}", begun_at(1, 60_000));
}

#[test]
fn a_notify_takes_the_place_of_a_repair() {
    let mut b = bereaved(|b| _ = b.client(&[key(1), key(2)]));
    b.notify(at(3000), &key(1));
    assert_eq!(b.reads(), ["1"]);
    b.answer(at(3000));
    b.pass(3000, 3200);
    assert_eq!(b.reads(), ["2"]);
    assert_eq!(b.counts().repairs, 1);
}

#[test]
fn a_read_that_began_before_is_not_enough() {
    let mut b = bereaved(|b| {
        b.client(&[key(1)]);
        b.notify(at(2000), &key(1));
        assert_eq!(b.reads(), ["1"]);
    });
    first_turn(&mut b);
    assert_eq!(b.answer(at(3100)), ["1", "1"]);
}

#[test]
fn what_is_unchanged_is_pushed_only_to_those_who_joined_since() {
    let mut b = bereaved(|b| {
        b.client(&[key(1), key(2)]);
        b.set(&key(1), "A");
        b.set(&key(2), "B");
        b.notify(at(200), &key(1));
        b.notify(at(200), &key(2));
        b.answer(at(200));
        assert_eq!(b.received(), ["1=A", "2=B"]);
        // It has nothing yet.
        b.client(&[key(2)]);
    });
    b.pass(3000, 3100);
    let mut read = b.answer(at(3100));
    read.sort_unstable();
    assert_eq!(read, ["1", "2"]);
    assert_eq!(b.received(), ["2=B"]);
    assert_eq!(b.node.counters().silent_unchanged.get(), 2);
}

#[test]
fn what_was_left_meanwhile_is_not_read() {
    let mut b = bereaved(|b| {
        let conn = b.client(&[key(1), key(2)]);
        assert_eq!(conn, conn);
    });
    first_turn(&mut b);
    assert_eq!(b.reads().len(), 2);

    let mut leaver = None;
    let mut b = bereaved(|b| leaver = Some(b.client(&[key(1), key(2)])));
    b.say(leaver.expect("it is there"), "unsubscribe", &key(1));
    b.pass(3000, 3200);
    assert_eq!((b.reads(), b.counts().repairs), (vec!["2".to_owned()], 1));
}

#[test]
fn a_store_that_lags_is_looked_at_again_after_a_repair() {
    let lagging = EntityKey::new("lagging", "1").expect("short");
    let mut b = bereaved(|b| _ = b.client(std::slice::from_ref(&lagging)));
    let first = first_turn(&mut b);
    assert_eq!(b.answer(at(first)), ["1"]);
    assert_eq!(b.received(), ["1=old"]);
    // Only now the replica shows what was missed.
    b.set(&lagging, "new");
    b.shard.handle_timeout(at(first + 199));
    assert!(b.reads().is_empty());
    b.shard.handle_timeout(at(first + 200));
    assert_eq!(b.answer(at(first + 200)), ["1"]);
    assert_eq!(b.received(), ["1=new"]);
}

#[test]
fn a_silent_look_at_a_store_that_lags_is_no_repair() {
    let lagging = EntityKey::new("lagging", "1").expect("short");
    let mut b = bereaved(|b| {
        b.client(std::slice::from_ref(&lagging));
        b.notify(at(2800), &lagging);
        b.answer(at(2800));
        b.received();
    });
    // It begins after the loss, and may all the same show what was before it.
    b.shard.handle_timeout(at(3000));
    assert_eq!(b.answer(at(3000)), ["1"]);
    b.set(&lagging, "new");
    first_turn(&mut b);
    b.answer(at(3050));
    assert_eq!(b.received(), ["1=new"]);
}

#[test]
fn whoever_was_there_before_the_bus_is_repaired_too() {
    let mut site = Site::new();
    site.client(&[key(1)]);
    site.notify(at(0), &key(1));
    site.answer(at(0));
    assert_eq!(site.received(), ["1=old"]);
    let mut b = Member::of(site, config(2));
    let mut a = Member::new(config(1));
    b.hear(at(0), &a.beat(at(0)));
    b.pass(0, 100);
    assert_eq!(b.answer(at(100)), ["1"]);
    // Nobody knows what they were given before.
    assert_eq!(b.received(), ["1=old"]);
    b.pass(101, 3100);
    assert_eq!(b.answer(at(3100)), ["1"]);
    assert_eq!(b.received(), Vec::<String>::new());
}
