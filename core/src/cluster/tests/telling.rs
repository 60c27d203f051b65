//! How changes are told, and understood.

use std::collections::BTreeSet;

use super::*;

#[test]
fn what_is_notified_on_one_is_read_on_the_other() {
    let (mut a, mut b) = pair(4);
    b.client(&[key(1)]);
    b.set(&key(1), "new");
    a.notify(at(200), &key(1));
    assert!(a.was_woken());
    b.hear(at(200), &a.publishes());
    assert_eq!(b.answer(at(200)), ["1"]);
    assert_eq!(b.received(), ["1=new"]);
    assert_eq!((b.counts().messages, b.counts().keys, b.counts().repairs), (1, 1, 0));
}

#[test]
fn its_own_messages_are_no_news() {
    let (mut a, _) = pair(4);
    a.client(&[key(1)]);
    a.notify(at(200), &key(1));
    assert_eq!(a.answer(at(200)), ["1"]);
    let said = a.publishes();
    a.hear(at(200), &said);
    assert_eq!(a.counts().echoes, 1);
    assert!(a.reads().is_empty());
}

#[test]
fn a_key_that_changes_often_while_the_bus_is_busy_is_told_of_once() {
    let (mut a, _) = pair(1);
    for _ in 0..5 {
        a.notify(at(200), &key(1));
        a.notify(at(200), &EntityKey::new("ticks", "7").expect("short"));
    }
    let said: Vec<_> = a.publishes().iter().flat_map(|it| sections(it)).collect();
    let mut ids: Vec<_> = said.iter().flat_map(|(.., ids)| ids.clone()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["1", "7", "7", "7", "7", "7"]);
}

#[test]
fn a_section_has_256_keys_and_one_more_makes_it_a_whole_bucket() {
    let lane: Vec<_> = keys_of(0, 64).take(message::MAX_KEYS + 1).collect();
    let told_of = |count: usize| {
        let (mut a, mut b) = pair(1);
        b.client(&lane[..1]);
        b.set(&lane[0], "new");
        lane[..count].iter().for_each(|key| a.notify(at(200), key));
        let said = a.publishes();
        b.hear(at(200), &said);
        b.pass(200, 300);
        assert_eq!(b.answer(at(300)), [lane[0].id()]);
        assert_eq!(b.received(), [format!("{}=new", lane[0].id())]);
        let ids: usize = said.iter().flat_map(|it| sections(it)).map(|it| it.2.len()).sum();
        (ids, b.counts().whole_buckets, b.counts().repairs)
    };
    assert_eq!(told_of(256), (256, 0, 0));
    assert_eq!(told_of(257), (0, 1, 1));
}

#[test]
fn a_key_that_is_too_long_makes_it_a_whole_bucket() {
    let of_len = |len: usize| key("x".repeat(len - "items".len()));
    let (mut a, mut b) = pair(1);
    let longest = of_len(message::MAX_TOLD_KEY_BYTES);
    a.notify(at(200), &longest);
    let said = a.publishes();
    assert_eq!(sections(&said[0]), [(0, 1, vec![longest.id().to_owned()])]);

    let longer = of_len(message::MAX_TOLD_KEY_BYTES + 1);
    b.client(std::slice::from_ref(&longer));
    b.set(&longer, "new");
    b.hear(at(200), &said);
    a.notify(at(300), &longer);
    let said = a.publishes();
    assert_eq!(sections(&said[0]), [(0, 2, vec![])]);
    b.hear(at(300), &said);
    b.pass(300, 400);
    b.answer(at(400));
    assert_eq!(b.received(), [format!("{}=new", longer.id())]);
}

#[test]
fn buckets_share_messages_of_about_8_kib() {
    let (mut a, mut b) = pair(1024);
    // All of one lane, which has sixteen of the buckets.
    let padding = "x".repeat(100);
    let keys = (0..).map(|id: u32| key(format!("{padding}{id}")));
    let keys: Vec<_> = keys.filter(|it| it.bucket(64) == 5).take(400).collect();
    keys.iter().for_each(|key| a.notify(at(200), key));
    let said = a.publishes();
    let bytes: usize = said.iter().map(Vec::len).sum();
    let longest_section = message::MAX_KEYS * 120;
    assert_eq!(
        said.len(),
        bytes.div_ceil(message::FULL_BYTES + 120 * 25),
        "{bytes} bytes"
    );
    for message in &said {
        assert!(message.len() <= message::FULL_BYTES + longest_section);
    }
    let sections: Vec<_> = said.iter().flat_map(|it| sections(it)).collect();
    assert_eq!(sections.len(), 16);
    assert!(sections.iter().all(|(_, number, _)| *number == 1));
    let told: BTreeSet<_> = sections.iter().flat_map(|(.., ids)| ids.clone()).collect();
    assert_eq!(told.len(), keys.len());
    b.hear(at(200), &said);
    assert_eq!((b.counts().keys, b.counts().malformed), (400, 0));
}

#[test]
fn what_finds_no_room_in_the_outgoing_set_is_told_of_as_whole_buckets() {
    let (mut a, mut b) = pair(1024);
    let room = 16 * 1024;
    // Those beyond are of three buckets.
    let mut keys: Vec<_> = keys_of(0, 64).filter(|it| it.bucket(1024) > 128).take(room).collect();
    let beyond: Vec<_> = keys_of(0, 64).filter(|it| it.bucket(1024) <= 128).take(30).collect();
    b.client(&beyond);
    beyond.iter().for_each(|key| b.set(key, "new"));
    keys.extend(beyond.iter().cloned());
    keys.iter().for_each(|key| a.notify(at(200), key));
    let said = a.publishes();
    let whole: BTreeSet<u32> = said
        .iter()
        .flat_map(|it| sections(it))
        .filter(|(.., ids)| ids.is_empty())
        .map(|(bucket, ..)| bucket)
        .collect();
    assert!([0, 64, 128].iter().all(|bucket| whole.contains(bucket)), "{whole:?}");
    b.hear(at(200), &said);
    b.pass(200, 400);
    b.answer(at(400));
    assert_eq!(b.received().len(), beyond.len());
}

#[test]
fn what_comes_twice_or_out_of_order_is_taken_once() {
    let (mut a, mut b) = pair(1);
    b.client(&[key(1), key(2)]);
    let mut said = Vec::new();
    for id in [1, 2] {
        a.notify(at(200), &key(id));
        said.extend(a.publishes());
    }
    b.hear(
        at(200),
        &[said[1].clone(), said[0].clone(), said[1].clone(), said[0].clone()],
    );
    assert_eq!(b.answer(at(200)), ["2", "1"]);
    assert_eq!((b.counts().messages, b.counts().repeated), (4, 2));
    b.pass(200, 2000);
    assert_eq!((b.counts().gaps, b.counts().repairs), (0, 0));
}

#[test]
fn a_lost_message_is_found_by_the_next_one_and_a_lost_last_one_by_the_digest() {
    for has_next in [true, false] {
        let (mut a, mut b) = pair(1);
        b.client(&[key(1)]);
        b.set(&key(1), "new");
        a.notify(at(200), &key(1));
        assert_eq!(a.publishes().len(), 1, "and it is lost");
        let told_at = if has_next {
            a.notify(at(300), &key(2));
            b.hear(at(300), &a.publishes());
            300
        } else {
            b.hear(at(500), &a.beat(at(500)));
            500
        };
        // It may only be late.
        b.pass(told_at, told_at + 499);
        assert_eq!((b.counts().gaps, b.reads()), (0, vec![]));
        b.pass(told_at + 500, told_at + 600);
        assert_eq!(b.counts().gaps, 1);
        b.answer(at(told_at + 600));
        assert_eq!(b.received(), ["1=new"]);
    }
}

/// However many locks they waited behind: a message is what costs.
#[test]
fn what_waits_together_leaves_together() {
    let (mut a, _) = pair(1024);
    let keys: Vec<_> = (0..100).map(key).collect();
    for key in &keys {
        a.notify(at(1000), key);
    }
    let messages = a.publishes();
    let told = messages.iter().flat_map(|it| sections(it)).map(|(.., keys)| keys.len());
    assert_eq!((messages.len(), told.sum::<usize>()), (1, 100));
    // And what comes afterwards wakes it.
    a.was_woken();
    a.notify(at(1000), &key(1000));
    assert!(a.was_woken());
    assert_eq!(a.publishes().len(), 1);
}
