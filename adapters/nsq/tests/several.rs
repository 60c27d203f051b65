//! More than one nsqd.

use std::time::Duration;

use entity_sync_bus::{Severity, Told};
use entity_sync_nsq::Config;
use entity_sync_tests::nsqd::Nsqd;
use entity_sync_tests::{PATIENCE, wait_for};

use crate::node::{BODY, Node, at, config, confirmed, message};

impl Node {
    /// What is wrong, as `nsqd HOST:PORT`, and how much that matters.
    fn troubles(&self) -> Vec<(String, Severity)> {
        let inbox = self.probe.plain_inbox();
        let troubles = inbox.health().troubles().into_iter();
        troubles.map(|it| (it.part, it.severity)).collect()
    }

    /// The next message, which is this one with a tag, and which nsqd that is from nobody knows.
    fn hears(&self, body: &str) {
        let told = self.next();
        let Told::Message(message) = &told else {
            panic!("{told:?} instead of {body}");
        };
        let fields = &body.as_bytes()[..body.len() - 1];
        assert!(message.starts_with(fields), "{message:?} instead of {body}");
    }
}

fn part(nsqd: &Nsqd) -> String {
    format!("nsqd {}", nsqd.address())
}

fn body(id: usize) -> String {
    format!(r#"{{"entity":"items","id":"{id}"}}"#)
}

#[test]
fn each_message_goes_to_all_of_them_and_is_heard_once() {
    let nsqds = [Nsqd::start(), Nsqd::start()];
    let nodes_of = [&nsqds[..1], &nsqds[1..]];
    let [first, second] = nodes_of.map(|it| Node::start(config(&[&it[0]]), &["items"]));
    let mut both = Node::start(config(&[&nsqds[0], &nsqds[1]]), &["items"]);
    assert_eq!([first.next(), second.next()], [Told::Connected, Told::Connected]);
    // Once for each of them.
    assert_eq!([both.next(), both.next()], [Told::Connected, Told::Connected]);
    for number in 0..20 {
        both.publish(number, "items", BODY.as_bytes());
        first.hears(BODY);
        second.hears(BODY);
        let told = [both.next(), both.next()];
        assert!(told.contains(&confirmed(number)), "{told:?}");
    }
    wait_for("the other copies", || both.counts().repeated == 20);
    assert_eq!((both.counts().received, both.soon()), (20, None));
    assert_eq!([first.soon(), second.soon()], [None, None]);
    // What others publish without a tag is heard from wherever it comes.
    nsqds.iter().for_each(|it| it.publish("items", BODY));
    both.hears(BODY);
    both.hears(BODY);
    assert_eq!(both.troubles(), []);
}

#[test]
fn any_of_them_will_do_and_it_is_known_which_is_down() {
    let mut nsqds = [Nsqd::start(), Nsqd::start()];
    let mut node = Node::start(config(&[&nsqds[0], &nsqds[1]]), &["items", "people"]);
    assert_eq!([node.next(), node.next()], [Told::Connected, Told::Connected]);
    for down in [0, 1, 0] {
        nsqds[down].kill();
        assert_eq!(node.next(), Told::Missed);
        wait_for("the report", || {
            node.troubles() == [(part(&nsqds[down]), Severity::Degraded)]
        });
        assert!(node.status.is_connected());
        let number = 100 + down as u64;
        node.publish(number, "items", BODY.as_bytes());
        let told = [node.next(), node.next()];
        assert!(told.contains(&confirmed(number)), "{told:?}");
        nsqds[down].restart();
        assert_eq!(node.next(), Told::Connected);
        wait_for("recovery", || node.troubles().is_empty());
        // What it did not get is caught up, and has been heard.
        assert_eq!(node.soon(), None);
        nsqds[down].publish("people", "x");
        assert_eq!(node.next(), message("x"));
    }
    nsqds.iter_mut().for_each(|it| it.kill());
    assert_eq!([node.next(), node.next()], [Told::Missed, Told::Disconnected]);
    let all = || {
        let mut all: Vec<_> = nsqds.iter().map(|it| (part(it), Severity::NotReady)).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    wait_for("both to be reported", || node.troubles() == all());
    nsqds[1].restart();
    assert_eq!(node.next(), Told::Connected);
    wait_for("the other one to matter less", || {
        node.troubles() == [(part(&nsqds[0]), Severity::Degraded)]
    });
}

#[test]
fn what_one_did_not_get_while_it_was_down_it_gets_when_it_is_back() {
    let late = Nsqd::free_address();
    let first = Nsqd::start();
    let addresses = [first.address(), late].map(|it| it.to_string());
    let mut node = Node::start(at(addresses), &["items"]);
    assert_eq!(node.next(), Told::Connected);
    for id in 0..100 {
        // Each twice, which is of no use.
        node.publish(id as u64, "items", body(id % 50).as_bytes());
        let told = [node.next(), node.next()];
        assert!(told.contains(&confirmed(id as u64)), "{told:?}");
    }
    let second = Nsqd::start_at(late);
    // A node that hears only this one.
    let other = Node::connected(&second);
    assert_eq!(node.next(), Told::Connected);
    let mut heard: Vec<_> = (0..50).map(|_| format!("{:?}", other.next())).collect();
    heard.sort();
    heard.dedup();
    assert_eq!((heard.len(), other.soon()), (50, None));
    assert_eq!(node.soon(), None);
}

/// One that swallows connections is not waited for, while another is heard of.
#[test]
fn an_nsqd_that_is_cut_off_does_not_delay_what_the_other_can_take() {
    let nsqds = [Nsqd::start(), Nsqd::start()];
    nsqds[0].misbehave(|it| it.is_stuck = true);
    let mut config: Config = config(&[&nsqds[0], &nsqds[1]]);
    config.timeout = Duration::from_secs(3_600);
    config.heartbeat = Duration::from_secs(60);
    let mut node = Node::start(config, &["items"]);
    assert_eq!(node.next(), Told::Connected);
    // More than may wait for the one that takes nothing.
    for number in 0..3_000 {
        node.publish(number, "items", BODY.as_bytes());
        let told = [node.next(), node.next()];
        assert!(told.contains(&confirmed(number)), "{told:?}");
    }
    assert_eq!(nsqds[1].count(b"PUB items\n"), 3_000);
}

/// Nor does it lose anything by that.
#[test]
fn what_waits_for_an_nsqd_that_does_not_answer_is_kept() {
    let nsqds = [Nsqd::start(), Nsqd::start()];
    // Longer than all that is published takes: a node that lost its connection would miss what nsqd had for it.
    let patient = |nsqds: &[&Nsqd]| {
        let mut config = config(nsqds);
        config.timeout = PATIENCE;
        config.heartbeat = PATIENCE;
        config
    };
    // A node that hears only this one.
    let other = Node::start(patient(&[&nsqds[0]]), &["items"]);
    assert_eq!(other.next(), Told::Connected);
    nsqds[0].misbehave(|it| it.is_stuck = true);
    let mut node = Node::start(patient(&[&nsqds[0], &nsqds[1]]), &["items"]);
    assert_eq!(node.next(), Told::Connected);
    for number in 0..3_000 {
        node.publish(number, "items", body(number as usize).as_bytes());
        let told = [node.next(), node.next()];
        assert!(told.contains(&confirmed(number)), "{told:?}");
    }
    assert_eq!(node.counts().not_kept, 0);
    nsqds[0].behave();
    let mut heard = std::collections::HashSet::new();
    while heard.len() < 3_000 {
        if let Told::Message(message) = other.next() {
            heard.insert(message);
        }
    }
    assert_eq!(node.counts().not_kept, 0);
}

#[test]
fn a_message_that_only_one_refuses_is_taken_by_the_other() {
    let nsqds = [Nsqd::start(), Nsqd::start()];
    nsqds[0].misbehave(|it| it.refused = vec![("PUB", "E_BAD_MESSAGE PUB message too big 29 > 10")]);
    let mut node = Node::start(config(&[&nsqds[0], &nsqds[1]]), &["items"]);
    assert_eq!([node.next(), node.next()], [Told::Connected, Told::Connected]);
    node.publish(1, "items", BODY.as_bytes());
    let told = [node.next(), node.next()];
    assert!(told.contains(&confirmed(1)), "{told:?}");
    node.wait_for_failure("is not published again");
    assert_eq!(node.counts().refused, 0);
}
