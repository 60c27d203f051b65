//! Nodes that hear only of buckets which hold keys that their clients are subscribed to.

use super::*;

fn by_interest(number: u64) -> ClusterConfig {
    let mut config = config(number);
    config.buckets = 64;
    config.by_interest = true;
    config
}

fn pair() -> (Member, Member) {
    let (mut a, mut b) = (Member::new(by_interest(1)), Member::new(by_interest(2)));
    acquaint(&mut [&mut a, &mut b]);
    (a, b)
}

fn topic_of(key: &EntityKey) -> String {
    format!("entity-sync.{:04x}", key.bucket(64))
}

#[test]
fn a_bucket_is_heard_from_its_first_key_to_its_last() {
    let mut a = Member::new(by_interest(1));
    assert_eq!(a.says(), [Said::Subscribe("entity-sync.ctrl".to_owned())]);
    a.was_woken();
    let [first, second] = &keys_of(3, 64).take(2).collect::<Vec<_>>()[..] else {
        panic!("two keys");
    };
    let conn = a.client(std::slice::from_ref(first));
    assert!(a.was_woken());
    assert_eq!(a.says(), [Said::Subscribe(topic_of(first))]);
    a.say(conn, "subscribe", second);
    assert!(!a.was_woken());
    a.say(conn, "unsubscribe", first);
    assert_eq!(a.says(), []);
    a.say(conn, "unsubscribe", second);
    assert_eq!(a.says(), [Said::Unsubscribe(topic_of(first))]);
    // What has come and gone meanwhile leads to nothing.
    a.say(conn, "subscribe", first);
    a.say(conn, "unsubscribe", first);
    assert_eq!(a.says(), []);
    a.say(conn, "subscribe", second);
    assert_eq!(a.says(), [Said::Subscribe(topic_of(first))]);
}

#[test]
fn a_running_read_keeps_its_bucket() {
    let mut a = Member::new(by_interest(1));
    let conn = a.client(&[key(1)]);
    a.says();
    a.notify(at(0), &key(1));
    a.publishes();
    a.say(conn, "unsubscribe", &key(1));
    // Whoever comes back takes it over, with what was missed meanwhile.
    assert_eq!(a.says(), []);
    a.answer(at(0));
    assert_eq!(a.says(), [Said::Unsubscribe(topic_of(&key(1)))]);
}

#[test]
fn each_bucket_has_its_topic() {
    let (mut a, _) = pair();
    let keys = [
        keys_of(3, 64).next().expect("one"),
        keys_of(40, 64).next().expect("one"),
    ];
    keys.iter().for_each(|key| a.notify(at(200), key));
    let mut topics = Vec::new();
    for said in a.says() {
        let Said::Publish(topic, message) = said else {
            panic!("{said:?}");
        };
        let sections = sections(&message);
        assert_eq!(sections.len(), 1);
        topics.push((topic, sections[0].0));
    }
    topics.sort_unstable();
    assert_eq!(topics, [(topic_of(&keys[0]), 3), (topic_of(&keys[1]), 40)]);
    a.cluster.handle(at(500), ClusterInput::Reached);
    a.cluster.handle_timeout(at(500));
    let said = a.says();
    assert!(
        matches!(&said[..], [Said::Publish(topic, _)] if topic == "entity-sync.ctrl"),
        "{said:?}"
    );
}

#[test]
fn what_nobody_was_interested_in_is_not_missed() {
    let (mut a, mut b) = pair();
    b.client(&[key(1)]);
    b.says();
    let other = (2..)
        .map(key)
        .find(|it| it.bucket(64) != key(1).bucket(64))
        .expect("one");
    a.notify(at(200), &other);
    a.publishes();
    b.hear(at(500), &a.beat(at(500)));
    b.pass(500, 1500);
    assert_eq!((b.counts().gaps, b.counts().repairs), (0, 0));
    // Later interest owes nothing for it.
    b.client(std::slice::from_ref(&other));
    b.says();
    b.hear(at(1500), &a.beat(at(1500)));
    b.pass(1500, 2500);
    assert_eq!((b.counts().gaps, b.counts().repairs), (0, 0));
}

#[test]
fn what_was_said_before_the_bus_had_subscribed_is_found() {
    let (mut a, mut b) = pair();
    b.client(&[key(1)]);
    b.set(&key(1), "new");
    assert_eq!(b.says(), [Said::Subscribe(topic_of(&key(1)))]);
    a.notify(at(200), &key(1));
    assert_eq!(a.publishes().len(), 1, "which b does not hear yet");
    b.hear(at(500), &a.beat(at(500)));
    b.pass(500, 1100);
    b.answer(at(1100));
    assert_eq!(b.received(), ["1=new"]);
}

#[test]
fn what_was_said_before_the_bus_was_even_told_to_subscribe_is_found() {
    let (mut a, mut b) = pair();
    b.client(&[key(1)]);
    b.set(&key(1), "new");
    a.notify(at(200), &key(1));
    assert_eq!(a.publishes().len(), 1, "which b does not hear yet");
    // The digest comes while the cluster's thread is about to look.
    b.hear(at(500), &a.beat(at(500)));
    assert_eq!(b.says()[..1], [Said::Subscribe(topic_of(&key(1)))]);
    b.pass(500, 1100);
    b.answer(at(1100));
    assert_eq!(b.received(), ["1=new"]);
}

#[test]
fn clients_that_were_there_before_the_bus_are_heard_for() {
    let mut site = Site::new();
    let conn = site.client(&[key(1)]);
    let mut b = Member::of(site, by_interest(2));
    assert!(b.says().contains(&Said::Subscribe(topic_of(&key(1)))));
    b.say(conn, "unsubscribe", &key(1));
    assert_eq!(b.says(), [Said::Unsubscribe(topic_of(&key(1)))]);
}
