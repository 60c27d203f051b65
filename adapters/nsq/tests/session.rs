//! What is said when all is well.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use entity_sync_bus::{Outcome, PlainBus, Told};
use entity_sync_nsq::Config;
use entity_sync_tests::nsqd::{FEATURES, Nsqd, frame};
use entity_sync_tests::wait_for;

use crate::node::{BODY, Node, config, confirmed, message};

/// As recorded, but for `user_agent`, the output buffer, and how many messages may be in flight.
#[test]
fn byte_for_byte() {
    assert_eq!(FEATURES.len() + 4, 0x134);
    let nsqd = Nsqd::start();
    let mut node = Node::start(Config::new([nsqd.address().to_string()]), &["items"]);
    assert_eq!(node.next(), Told::Connected);
    let name = rustix::system::uname();
    let host = name.nodename().to_str().unwrap();
    let short = host.split('.').next().unwrap();
    let json = format!(
        r#"{{"client_id":"{short}","deflate":false,"deflate_level":6,"feature_negotiation":true,"heartbeat_interval":30000,"hostname":"{host}","long_id":"{host}","msg_timeout":0,"output_buffer_size":-1,"output_buffer_timeout":-1,"sample_rate":0,"short_id":"{short}","snappy":false,"tls_v1":false,"user_agent":"entity-sync/{}"}}"#,
        env!("CARGO_PKG_VERSION")
    );
    let length = (json.len() as u32).to_be_bytes();
    let identify = [b"  V2IDENTIFY\n", &length[..], json.as_bytes()].concat();
    let channels = nsqd.channels("items");
    let subscribe = format!("SUB items {}\nRDY 200\n", channels[0]);
    let mut consumer = [&identify[..], subscribe.as_bytes()].concat();
    same(&nsqd, 0, &consumer);
    assert_eq!(
        nsqd.connections(),
        1,
        "the producer connects before there is anything to publish"
    );

    node.publish(1, "items", BODY.as_bytes());
    assert_eq!(node.next_sorted(2), [confirmed(1), message(BODY)]);
    let publish = [b"PUB items\n\0\0\0\x1d", BODY.as_bytes()].concat();
    let mut producer = [&identify[..], &publish].concat();
    same(&nsqd, 1, &producer);
    consumer.extend(b"FIN 18a5dc70ee669001\n");
    same(&nsqd, 0, &consumer);

    nsqd.inject(&frame(0, b"_heartbeat_"));
    consumer.extend(b"NOP\n");
    producer.extend(b"NOP\n");
    same(&nsqd, 0, &consumer);
    same(&nsqd, 1, &producer);

    // Another message takes the same way.
    node.publish(2, "items", BODY.as_bytes());
    assert_eq!(node.next_sorted(2), [confirmed(2), message(BODY)]);
    producer.extend(&publish);
    same(&nsqd, 1, &producer);
    consumer.extend(b"FIN 18a5dc70ee669002\n");
    same(&nsqd, 0, &consumer);

    node.bus.stop(Duration::from_secs(10));
    consumer.extend(b"CLS\n");
    same(&nsqd, 0, &consumer);
    same(&nsqd, 1, &producer);
    assert_eq!(nsqd.connections(), 2);
    wait_for("the end of both connections", || nsqd.open_connections() == 0);
}

/// Waits until a connection has sent what it should have, and no more.
#[track_caller]
fn same(nsqd: &Nsqd, connection: usize, expected: &[u8]) {
    let start = std::time::Instant::now();
    while nsqd.transcript(connection).len() < expected.len() && start.elapsed() < entity_sync_tests::PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent = nsqd.transcript(connection).escape_ascii().to_string();
    assert_eq!(sent, expected.escape_ascii().to_string());
}

#[test]
fn a_channel_is_a_fresh_uuid_for_each_topic_and_node() {
    let nsqd = Nsqd::start();
    let nodes = [0; 2].map(|_| Node::start(config(&[&nsqd]), &["items", "people"]));
    nodes.iter().for_each(|it| assert_eq!(it.next(), Told::Connected));
    let channels: HashSet<_> = [nsqd.channels("items"), nsqd.channels("people")]
        .concat()
        .into_iter()
        .collect();
    assert_eq!(channels.len(), 4, "{channels:?}");
    for channel in channels {
        let uuid = channel.strip_suffix("#ephemeral").unwrap();
        let groups: Vec<_> = uuid.split('-').collect();
        assert_eq!(
            groups.iter().map(|it| it.len()).collect::<Vec<_>>(),
            [8, 4, 4, 4, 12],
            "{uuid}"
        );
        assert!(
            uuid.chars().all(|it| it == '-' || matches!(it, '0'..='9' | 'a'..='f')),
            "{uuid}"
        );
        assert!(
            groups[2].starts_with('4') && groups[3].starts_with(['8', '9', 'a', 'b']),
            "{uuid}"
        );
    }
}

#[test]
fn two_nodes_hear_each_other_and_themselves() {
    let nsqd = Nsqd::start();
    let mut nodes = [0; 2].map(|_| Node::connected(&nsqd));
    nodes[0].publish(1, "items", b"from the first");
    assert_eq!(nodes[0].next_sorted(2), [confirmed(1), message("from the first")]);
    assert_eq!(nodes[1].next(), message("from the first"));
    nodes[1].publish(2, "items", b"from the second");
    assert_eq!(nodes[1].next_sorted(2), [confirmed(2), message("from the second")]);
    assert_eq!(nodes[0].next(), message("from the second"));
    nodes
        .iter()
        .for_each(|it| assert_eq!(it.soon(), None, "once is enough"));
}

#[test]
fn five_thousand_messages_in_order() {
    in_order(1);
}

#[test]
fn in_order_with_many_in_flight_too() {
    in_order(100);
}

fn in_order(max_in_flight: u16) {
    const MESSAGES: u64 = 5_000;
    let nsqd = Nsqd::start();
    let mut config = config(&[&nsqd]);
    config.max_in_flight = max_in_flight.try_into().unwrap();
    let mut node = Node::start(config, &["items"]);
    assert_eq!(node.next(), Told::Connected);
    assert!(nsqd.count(format!("RDY {max_in_flight}\n").as_bytes()) > 0);
    let (mut sent, mut confirmed, mut received) = (0, 0, 0);
    while received < MESSAGES || confirmed < MESSAGES {
        while sent < MESSAGES && sent - confirmed < 1_000 {
            node.publish(sent, "items", sent.to_string().as_bytes());
            sent += 1;
        }
        match node.next() {
            Told::Receipt(number, Outcome::Confirmed) => {
                assert_eq!(number, confirmed);
                confirmed += 1;
            }
            told => {
                assert_eq!(told, message(received.to_string()));
                received += 1;
            }
        }
    }
    let counts = node.counts();
    assert_eq!(
        (counts.published, counts.confirmed, counts.received),
        (MESSAGES, MESSAGES, MESSAGES)
    );
    assert_eq!((counts.failures, counts.errors), (0, 0));
}

#[test]
fn no_more_in_flight_than_nsqd_allows() {
    let nsqd = Nsqd::start();
    let features = frame(0, br#"{"max_rdy_count":5}"#);
    nsqd.misbehave(|it| it.answered = vec![("IDENTIFY", features)]);
    let mut config = config(&[&nsqd]);
    config.max_in_flight = 100.try_into().unwrap();
    let node = Node::start(config, &["items"]);
    assert_eq!(node.next(), Told::Connected);
    wait_for("RDY", || nsqd.count(b"RDY 5\n") == 1);
}

/// nsqd holds back messages to a client that takes more, by default for 250 ms.
#[test]
fn a_lone_message_is_not_held_back() {
    let nsqd = Nsqd::start();
    let node = Node::connected(&nsqd);
    for _ in 0..3 {
        let start = Instant::now();
        nsqd.publish("items", "x");
        assert_eq!(node.next(), message("x"));
        assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    }
}

/// nsqd drops what exceeds a channel's memory, without telling.
#[test]
fn with_as_many_in_flight_as_by_default_a_burst_is_taken_as_fast_as_it_comes() {
    const MESSAGES: u64 = 20_000;
    let nsqd = Nsqd::start();
    nsqd.set_mem_queue_size(2_000);
    let mut node = Node::connected(&nsqd);
    let (mut sent, mut received, mut confirmed) = (0, 0, 0);
    while received < MESSAGES {
        // What has not come back is bounded, as a node bounds it.
        while sent < MESSAGES && sent - received < 1_000 && sent - confirmed < 1_000 {
            node.publish(sent, "items", BODY.as_bytes());
            sent += 1;
        }
        match node.next() {
            Told::Message(_) => received += 1,
            _ => confirmed += 1,
        }
    }
    assert_eq!(nsqd.dropped(), 0);
}

/// What is in a message is none of the bus's business.
#[test]
fn any_body_comes_as_it_is() {
    let nsqd = Nsqd::start();
    let node = Node::connected(&nsqd);
    let large = vec![b'x'; 300_000];
    let bodies: [&[u8]; 6] = [
        b"{\"ENTITY\":\"items\",\"Id\":\"100\",\"x\":1}\n",
        b"[]",
        b"\xff\0\n",
        b"FIN x\n",
        &large,
        b"last",
    ];
    for body in bodies {
        nsqd.publish("items", body);
    }
    for body in bodies {
        assert_eq!(node.next(), message(body));
    }
    wait_for("the last to be finished", || nsqd.count(b"\nFIN ") == bodies.len());
}

#[test]
fn frames_may_come_in_single_bytes() {
    let nsqd = Nsqd::start();
    nsqd.misbehave(|it| it.is_split = true);
    let mut node = Node::connected(&nsqd);
    for number in 0..20 {
        node.publish(number, "items", BODY.as_bytes());
        assert_eq!(node.next_sorted(2), [confirmed(number), message(BODY)]);
    }
}

#[test]
fn heartbeats_are_answered_and_keep_connections() {
    let nsqd = Nsqd::start();
    nsqd.set_heartbeat(Duration::from_millis(20));
    let mut node = Node::connected(&nsqd);
    node.publish(1, "items", BODY.as_bytes());
    assert_eq!(node.next_sorted(2), [confirmed(1), message(BODY)]);
    // For longer than a connection would live without them.
    wait_for("heartbeats for more than two intervals", || {
        nsqd.count(b"NOP\n") > 2 * 2 * 60
    });
    assert_eq!((nsqd.connections(), node.soon()), (2, None));
}

#[test]
fn what_was_published_is_sent_before_leaving() {
    let nsqd = Nsqd::start();
    let mut node = Node::connected(&nsqd);
    for number in 0..500 {
        node.publish(number, "items", BODY.as_bytes());
    }
    node.bus.stop(Duration::from_secs(20));
    assert_eq!(node.counts().confirmed, 500);
    assert_eq!(nsqd.count(b"CLS\n"), 1);
    wait_for("all connections to end", || nsqd.open_connections() == 0);
    assert_eq!(nsqd.channels("items"), [""; 0]);
    // What comes afterwards is not lost from sight.
    node.publish(500, "items", BODY.as_bytes());
    assert_eq!(node.counts().dropped, 1);
    node.bus.stop(Duration::from_secs(20));
}

#[test]
fn topics_that_are_there_twice_are_heard_of_once_and_none_at_all_is_connected() {
    let nsqd = Nsqd::start();
    let node = Node::start(config(&[&nsqd]), &["items", "items"]);
    assert_eq!(node.next(), Told::Connected);
    nsqd.publish("items", "x");
    assert_eq!((node.next(), node.soon()), (message("x"), None));
    let node = Node::start(config(&[&nsqd]), &[]);
    assert_eq!(node.next(), Told::Connected);
}
