//! More than one nsqd.

use std::time::Duration;

use entity_sync_bus::Told;
use entity_sync_tests::nsqd::Nsqd;
use entity_sync_tests::wait_for;

use crate::node::{BODY, Node, at, config, confirmed, message};

#[test]
fn all_are_heard_of_and_the_first_is_published_to() {
    let nsqds = [Nsqd::start(), Nsqd::start()];
    let mut node = Node::start(config(&[&nsqds[0], &nsqds[1]]), &["items", "people"]);
    assert_eq!(node.next(), Told::Connected);
    assert_eq!(
        node.status.nsqds().iter().map(|it| it.subscribed).collect::<Vec<_>>(),
        [2, 2]
    );
    for nsqd in &nsqds {
        nsqd.publish("people", "x");
        assert_eq!(node.next(), message("x"));
    }
    node.publish(1, "items", BODY.as_bytes());
    assert_eq!(node.next_sorted(2), [confirmed(1), message(BODY)]);
    assert_eq!(nsqds.each_ref().map(|it| it.count(b"PUB items\n")), [1, 0]);
    assert_eq!(
        node.status
            .nsqds()
            .iter()
            .map(|it| it.is_publishing)
            .collect::<Vec<_>>(),
        [true, false]
    );
}

#[test]
fn it_is_connected_only_if_all_are() {
    let late = Nsqd::free_address();
    let mut first = Nsqd::start();
    let addresses = [first.address(), late].map(|it| it.to_string());
    let mut node = Node::start(at(addresses), &["items"]);
    wait_for("the first to be heard of", || node.status.nsqds()[0].subscribed == 1);
    // Messages come already, but some may be missed.
    first.publish("items", "x");
    assert_eq!((node.next(), node.soon()), (message("x"), None));
    let second = Nsqd::start_at(late);
    assert_eq!(node.next(), Told::Connected);
    node.publish(1, "items", b"to the first");
    assert_eq!(node.next_sorted(2), [confirmed(1), message("to the first")]);

    first.kill();
    assert_eq!(node.next(), Told::Disconnected);
    let mut number = 1;
    wait_for("the second to be published to", || {
        number += 1;
        node.publish(number, "items", b"to the second");
        let told = node.next();
        assert_ne!(told, Told::Connected);
        told == confirmed(number) || node.soon() == Some(confirmed(number))
    });
    assert!(second.count(b"PUB items\n") > 0);
    assert!(!node.status.is_connected());
    first.restart();
    wait_for("the first to be heard of again", || node.next() == Told::Connected);
}

/// One that swallows connections is not waited for, while another is heard of.
#[test]
fn an_nsqd_that_is_cut_off_does_not_delay_what_the_other_can_take() {
    let nsqds = [Nsqd::start(), Nsqd::start()];
    nsqds[0].misbehave(|it| it.is_stuck = true);
    let mut config = config(&[&nsqds[0], &nsqds[1]]);
    config.timeout = Duration::from_secs(3_600);
    config.heartbeat = Duration::from_secs(60);
    let mut node = Node::start(config, &["items"]);
    wait_for("the second to be heard of", || node.status.nsqds()[1].subscribed == 1);
    node.publish(1, "items", BODY.as_bytes());
    assert_eq!(node.next_sorted(2), [confirmed(1), message(BODY)]);
    assert_eq!(nsqds[1].count(b"PUB items\n"), 1);
}
