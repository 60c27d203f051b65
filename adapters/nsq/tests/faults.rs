//! What happens when all is not well.

use std::time::{Duration, Instant};

use entity_sync_bus::{Outcome, PlainBus, Told};
use entity_sync_nsq::Config;
use entity_sync_tests::nsqd::{Nsqd, frame};
use entity_sync_tests::{PATIENCE, wait_for};

use crate::node::{BODY, Node, at, config, confirmed, lost, message, refused};

#[test]
fn nsqd_may_come_later() {
    let address = Nsqd::free_address();
    let mut node = Node::start(at([address.to_string()]), &["items", "people"]);
    node.publish(1, "items", BODY.as_bytes());
    assert_eq!(node.next(), lost(1));
    node.wait_for_failure("is nsqd running there?");
    assert!(!node.status.is_connected());
    let nsqd = Nsqd::start_at(address);
    assert_eq!(node.next(), Told::Connected);
    assert!(node.status.is_connected());
    // It tries again at once when a subscription was made.
    node.publish(2, "items", BODY.as_bytes());
    assert_eq!(node.next_sorted(2), [confirmed(2), message(BODY)]);
    assert_eq!(node.counts().reconnects, 0, "these are the first connections");
    assert_eq!(nsqd.open_connections(), 3);
}

/// Each would wait for more than any test does.
#[test]
fn a_connection_that_was_made_ends_the_waiting_of_others() {
    let wait = Duration::from_secs(120)..=Duration::from_secs(120);
    let nsqd = Nsqd::start();
    let later = ("SUB", "E_SUB_FAILED SUB failed to deleted topic/channel");
    nsqd.misbehave(|it| it.refused_once = vec![later]);
    let mut config_of_both = config(&[&nsqd]);
    config_of_both.backoff = wait;
    config_of_both.timeout = PATIENCE;
    let node = Node::start(config_of_both.clone(), &["items", "people"]);
    assert_eq!(node.next(), Told::Connected);
    assert_eq!(node.counts().failures, 1);

    // The producer's too: it fails while there is no answer to the consumer yet.
    let nsqd = Nsqd::start();
    nsqd.misbehave(|it| {
        it.ignored = vec!["SUB", "RDY"];
        it.refused_once = vec![("PUB", "E_PUB_FAILED PUB failed exiting")];
    });
    config_of_both.nsqd = vec![nsqd.address().to_string()];
    let mut node = Node::start(config_of_both, &["items"]);
    wait_for("the subscription to be asked for", || nsqd.count(b"RDY 200\n") == 1);
    node.publish(1, "items", BODY.as_bytes());
    assert_eq!(node.next(), lost(1));
    node.publish(2, "items", BODY.as_bytes());
    assert_eq!(node.next(), lost(2));
    nsqd.inject(&frame(0, b"OK"));
    assert_eq!(node.next(), Told::Connected);
    node.publish(3, "items", BODY.as_bytes());
    assert_eq!(node.next(), confirmed(3));
}

#[test]
fn killed_and_restarted() {
    let mut nsqd = Nsqd::start();
    let mut node = Node::connected(&nsqd);
    node.publish(0, "items", BODY.as_bytes());
    assert_eq!(node.next_sorted(2), [confirmed(0), message(BODY)]);
    let channels = nsqd.channels("items");
    nsqd.misbehave(|it| it.ignored = vec!["PUB"]);
    (1..=3).for_each(|number| node.publish(number, "items", BODY.as_bytes()));
    wait_for("all to be sent", || nsqd.count(b"PUB items\n") == 4);
    for round in 1..=3 {
        nsqd.kill();
        let mut expected = vec![Told::Disconnected];
        if round == 1 {
            expected.extend((1..=3).map(lost));
            expected.sort_by_key(|it| format!("{it:?}"));
        }
        assert_eq!(node.next_sorted(expected.len()), expected);
        assert!(!node.status.is_connected());
        assert_eq!(node.soon(), None);
        // What a topic keeps while it has no channel comes once there is one, and that is heard of first.
        nsqd.publish("items", "meanwhile");
        nsqd.behave();
        nsqd.restart();
        assert_eq!((node.next(), node.next()), (Told::Connected, message("meanwhile")));
        let new_channels = nsqd.channels("items");
        assert_eq!(new_channels.len(), 1);
        assert_ne!(new_channels, channels);
    }
    node.publish(4, "items", BODY.as_bytes());
    assert_eq!(node.next_sorted(2), [confirmed(4), message(BODY)]);
    let counts = node.counts();
    assert!(counts.reconnects >= 4, "{counts:?}");
    assert_eq!(counts.published, counts.confirmed + counts.dropped + counts.refused);
}

/// A connection that was lost and is back before anybody else has noticed has lost messages all the same.
#[test]
fn every_lost_subscription_is_told_however_short() {
    let nsqd = Nsqd::start();
    let node = Node::start(config(&[&nsqd]), &["items", "people", "places"]);
    assert_eq!(node.next(), Told::Connected);
    for _ in 0..5 {
        nsqd.cut();
        assert_eq!((node.next(), node.next()), (Told::Disconnected, Told::Connected));
        assert_eq!(node.soon(), None);
    }
    assert_eq!(node.counts().reconnects, 15);
}

#[test]
fn a_stuck_nsqd_blocks_nobody_and_is_given_up() {
    let nsqd = Nsqd::start();
    let mut node = Node::connected(&nsqd);
    node.publish(0, "items", BODY.as_bytes());
    assert_eq!(node.next_sorted(2), [confirmed(0), message(BODY)]);
    nsqd.misbehave(|it| it.is_stuck = true);
    // More than sockets hold, and than may wait.
    let start = Instant::now();
    let large = vec![b'x'; 100_000];
    (1..=3_000).for_each(|number| node.publish(number, "items", &large));
    assert!(start.elapsed() < PATIENCE, "publishing waits for nsqd");
    // At most 1,024 wait to be sent, and as many to be answered.
    let dropped = node.counts().dropped;
    assert!(dropped >= 3_000 - 2 * 1_024, "only {dropped} were dropped at once");
    let mut told: Vec<_> = (0..3_001).map(|_| node.next()).collect();
    assert_eq!(told.iter().filter(|it| **it == Told::Disconnected).count(), 1);
    told.retain(|it| *it != Told::Disconnected);
    assert!(
        told.iter().all(|it| matches!(it, Told::Receipt(_, Outcome::Lost))),
        "a receipt is confirmed"
    );
    assert_eq!(node.counts().dropped, 3_000);
    nsqd.behave();
    assert_eq!(node.next(), Told::Connected);
    wait_for("nsqd to take messages again", || {
        node.publish(4_000, "items", b"again");
        (0..2).any(|_| node.next() == confirmed(4_000))
    });
}

/// It accepts, since the system does that for it, and says nothing.
#[test]
fn an_nsqd_that_never_says_a_word() {
    let nsqd = Nsqd::start();
    nsqd.misbehave(|it| it.is_stuck = true);
    let mut config = config(&[&nsqd]);
    config.timeout = Duration::from_millis(200);
    let mut node = Node::start(config, &["items"]);
    node.publish(1, "items", BODY.as_bytes());
    assert_eq!(node.next(), lost(1));
    node.wait_for_failure("nsqd doesn't answer");
    nsqd.behave();
    assert_eq!(node.next(), Told::Connected);
}

#[test]
fn silence_for_two_heartbeats_is_death() {
    let nsqd = Nsqd::start();
    nsqd.set_heartbeat(Duration::from_secs(3_600));
    let node = Node::connected(&nsqd);
    assert_eq!(node.next(), Told::Disconnected);
    node.wait_for_failure("two heartbeats");
    assert_eq!(node.next(), Told::Connected);
}

#[test]
fn a_frame_that_never_ends_is_no_sign_of_life() {
    let nsqd = Nsqd::start();
    nsqd.set_heartbeat(Duration::from_secs(3_600));
    let mut config = config(&[&nsqd]);
    // So that what is sent here is never the beginning of something.
    config.backoff = Duration::from_secs(3_600)..=Duration::from_secs(3_600);
    let node = Node::start(config, &["items"]);
    assert_eq!(node.next(), Told::Connected);
    nsqd.inject(&frame(2, &[0; 100_000])[..8]);
    let start = Instant::now();
    while node.status.is_connected() {
        assert!(start.elapsed() < PATIENCE, "the connection is kept");
        nsqd.inject(b"0");
        std::thread::sleep(Duration::from_millis(20));
    }
    node.wait_for_failure("two heartbeats");
}

#[test]
fn messages_that_are_not_answered_are_dropped_though_nsqd_lives() {
    let nsqd = Nsqd::start();
    nsqd.set_heartbeat(Duration::from_millis(20));
    nsqd.misbehave(|it| it.ignored = vec!["PUB"]);
    let mut node = Node::connected(&nsqd);
    node.publish(1, "items", BODY.as_bytes());
    assert_eq!(node.next(), lost(1));
    node.wait_for_failure("nsqd doesn't answer");
    nsqd.behave();
    wait_for("nsqd to take messages again", || {
        node.publish(2, "items", BODY.as_bytes());
        node.next() == confirmed(2)
    });
    assert!(
        node.status.is_connected(),
        "what is heard is none of the producer's business"
    );
}

#[test]
fn what_nsqd_refuses_is_not_confirmed() {
    for (answer, outcome, advice) in [
        (
            "E_BAD_MESSAGE PUB message too big 29 > 10",
            refused(1),
            "raise nsqd's --max-msg-size; this message is not published again",
        ),
        ("E_PUB_FAILED PUB failed disk full", lost(1), "whether its disk is full"),
    ] {
        let nsqd = Nsqd::start();
        nsqd.misbehave(|it| it.refused = vec![("PUB", answer)]);
        let mut node = Node::connected(&nsqd);
        node.publish(1, "items", BODY.as_bytes());
        assert_eq!(node.next(), outcome);
        node.wait_for_failure(advice);
        assert_eq!((node.counts().refused, node.counts().errors), (1, 1));
        nsqd.behave();
        wait_for("nsqd to take messages again", || {
            node.publish(2, "items", BODY.as_bytes());
            node.next() == confirmed(2)
        });
    }
}

#[test]
fn a_topic_that_nsqd_refuses_is_never_connected_and_says_what_to_do() {
    let nsqd = Nsqd::start();
    nsqd.misbehave(|it| it.refused = vec![("SUB", r#"E_BAD_TOPIC SUB topic name "items" is not valid"#)]);
    let node = Node::start(config(&[&nsqd]), &["items"]);
    node.wait_for_failure("rename the entity");
    nsqd.misbehave(|it| it.refused = vec![("SUB", "E_INVALID cannot SUB in current state (TLS required)")]);
    node.wait_for_failure("--tls-required");
    let features = frame(0, br#"{"max_rdy_count":2500,"auth_required":true}"#);
    nsqd.misbehave(|it| {
        it.refused.clear();
        it.answered = vec![("IDENTIFY", features)];
    });
    node.wait_for_failure("--auth-http-address");
    assert_eq!(node.soon(), None);
    // One that knows no features, as before 0.2.20.
    nsqd.misbehave(|it| it.answered = vec![("IDENTIFY", frame(0, b"OK"))]);
    assert_eq!(node.next(), Told::Connected);
    assert!(node.counts().errors >= 2);
    assert_eq!(node.counts().violations, 0);
}

#[test]
fn bad_names_and_bodies_never_reach_nsqd() {
    let nsqd = Nsqd::start();
    let mut node = Node::connected(&nsqd);
    let too_long = vec![b'x'; 1024 * 1024 + 1];
    let unfit: [(&str, &[u8]); 6] = [
        ("my items", b"x"),
        ("items\nCLS", b"x"),
        ("", b"x"),
        ("é", b"x"),
        ("items", b""),
        ("items", &too_long),
    ];
    for (number, (topic, body)) in (0..).zip(unfit) {
        node.publish(number, topic, body);
        assert_eq!(node.next(), refused(number));
    }
    assert_eq!((node.counts().refused, nsqd.connections()), (6, 1));
    node.publish(6, "items", &too_long[1..]);
    assert_eq!(node.next_sorted(2), [confirmed(6), message(&too_long[1..])]);
}

/// An entity that was not asked about before.
#[test]
fn a_bus_with_a_bad_name_is_never_connected() {
    let nsqd = Nsqd::start();
    let node = Node::start(config(&[&nsqd]), &["items", "my items"]);
    nsqd.publish("items", "x");
    assert_eq!((node.next(), node.soon()), (message("x"), None));
    assert!(!node.status.is_connected());
}

#[test]
fn garbage_ends_the_connection_and_no_more() {
    let nsqd = Nsqd::start();
    let node = Node::connected(&nsqd);
    let bad_id = frame(2, &[&[0; 10][..], b"18a5dc70ee66900\nx"].concat());
    let good_id = frame(2, &[&[0; 10][..], b"18a5dc70ee669000x"].concat());
    let cases: [(&[u8], &str); 8] = [
        (&u32::MAX.to_be_bytes(), "raise max_message_bytes"),
        (&frame(0, &[0; 1024 * 1024 + 31])[..8], "raise max_message_bytes"),
        (&[0, 0, 0, 3], "too short"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "by default 4150"),
        (&frame(7, b"x"), "unknown type 7"),
        (&frame(2, b"too short"), "too short"),
        (&bad_id, "16 hexadecimal digits"),
        (&frame(0, b"\x1b[31m"), r"unexpected message from nsqd: \x1b[31m"),
    ];
    for (number, (garbage, expected)) in (1..).zip(cases) {
        nsqd.inject(garbage);
        assert_eq!(node.next(), Told::Disconnected, "{expected}");
        wait_for("the violation to be counted", || node.counts().violations == number);
        node.wait_for_failure(expected);
        assert_eq!(node.next(), Told::Connected);
    }
    // The client is not too strict, either. nsqd has not heard of this message, and says so.
    nsqd.inject(&good_id);
    assert_eq!(node.next(), message("x"));
    wait_for("nsqd's complaint", || node.counts().errors == 1);
    assert_eq!((node.soon(), nsqd.connections()), (None, 9));
    assert!(node.last_failure().contains("E_FIN_FAILED"));
}

/// It says `OK` once too often, so that an answer may be to something else.
#[test]
fn answers_that_fit_no_question_confirm_nothing_later() {
    let nsqd = Nsqd::start();
    let twice = [frame(0, b"OK"), frame(0, b"OK")].concat();
    nsqd.misbehave(|it| it.answered = vec![("PUB", twice)]);
    let mut node = Node::connected(&nsqd);
    node.publish(1, "items", BODY.as_bytes());
    assert_eq!(node.next(), confirmed(1));
    node.wait_for_failure("unexpected message from nsqd: OK");
    nsqd.misbehave(|it| {
        it.answered.clear();
        it.ignored = vec!["PUB"];
    });
    wait_for("the producer to be back, and its message to be dropped", || {
        node.publish(2, "items", BODY.as_bytes());
        assert_eq!(node.next(), lost(2));
        nsqd.count(b"PUB items\n") > 1
    });
}

#[test]
fn an_nsqd_that_ends_every_connection_is_not_hammered() {
    let nsqd = Nsqd::start();
    let mut config = config(&[&nsqd]);
    config.backoff = Duration::from_millis(20)..=Duration::from_secs(3_600);
    let node = Node::start(config, &["items"]);
    let start = Instant::now();
    let mut rounds = 0;
    while start.elapsed() < Duration::from_secs(1) {
        wait_for("a subscription, or the end of the second", || {
            node.status.is_connected() || start.elapsed() > Duration::from_secs(1)
        });
        nsqd.cut();
        rounds += 1;
        wait_for("the end of the connection", || !node.status.is_connected());
    }
    // 20, 40, … 640 ms, each shortened to half of it at worst.
    assert!((2..=8).contains(&rounds), "{rounds} connections in a second");
}

#[test]
fn leaving_a_stuck_nsqd_takes_no_longer_than_was_said() {
    let nsqd = Nsqd::start();
    let mut config = config(&[&nsqd]);
    config.timeout = Duration::from_secs(3_600);
    config.heartbeat = Duration::from_secs(60);
    let mut node = Node::start(config, &["items"]);
    assert_eq!(node.next(), Told::Connected);
    nsqd.misbehave(|it| it.is_stuck = true);
    node.publish(1, "items", BODY.as_bytes());
    let start = Instant::now();
    node.bus.stop(Duration::from_millis(100));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(node.next_sorted(2), [Told::Disconnected, lost(1)]);
    // One without any nsqd has nothing to wait for.
    let mut node = Node::start(Config::new([Nsqd::free_address().to_string()]), &["items"]);
    node.publish(1, "items", BODY.as_bytes());
    assert_eq!(node.next(), lost(1));
    node.bus.stop(Duration::MAX);
}

#[test]
fn dropping_it_ends_everything() {
    let nsqd = Nsqd::start();
    nsqd.misbehave(|it| it.ignored = vec!["PUB"]);
    let mut node = Node::connected(&nsqd);
    node.publish(1, "items", BODY.as_bytes());
    wait_for("the message to be sent", || nsqd.count(b"PUB ") == 1);
    let never_started = entity_sync_nsq::Nsq::new(config(&[&nsqd])).unwrap();
    drop(never_started);
    let Node { bus, status, .. } = node;
    drop(bus);
    wait_for("the receipt to be dropped", || status.counts().dropped == 1);
    wait_for("all connections to end", || nsqd.open_connections() == 0);
}
