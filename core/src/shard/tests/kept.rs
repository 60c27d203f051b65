//! What is counted, and what all clients together may make the node keep.

use super::*;

fn message(len: usize) -> Vec<u8> {
    frame(1, &vec![b' '; len])
}

#[test]
fn a_change_of_the_secret_leaves_as_many_subscriptions() {
    let mut net = Net::new(1, |_| {});
    let id = net.connect(0);
    for key in ["1", "2", "3"] {
        net.subscribe(id, "items", key);
    }
    net.secret(id, "s");
    let counts = net.counts(0);
    assert_eq!((counts.subscriptions, net.shards[0].subscriptions()), (3, 3));
}

#[test]
fn only_what_connections_are_given_counts_as_delivered() {
    let mut net = Net::new(1, |config| config.max_outbox_bytes = 20);
    let (fast, slow, broken) = (net.connect(0), net.connect(0), net.connect(0));
    for id in [fast, slow] {
        net.subscribe(id, "items", "1");
        net.subscribe(id, "items", "none");
    }
    net.change("items", "none", 1);
    let counts = net.counts(0);
    assert_eq!((counts.deliveries, counts.delivered_bytes), (0, 0), "no rows");
    net.peer(slow).room = Some(0);
    net.change("items", "1", 1);
    let counts = net.counts(0);
    let row = "items/1 v1".len() as u64 + 2;
    assert_eq!(
        (counts.deliveries, counts.delivered_bytes),
        (2, 2 * row),
        "written, and queued"
    );
    // No room for another key.
    net.subscribe(slow, "items", "2");
    net.change("items", "2", 2);
    let counts = net.counts(0);
    assert_eq!((counts.deliveries, counts.dirty_marks), (2, 1), "withheld");
    net.peer(broken).is_broken = true;
    net.subscribe(broken, "items", "3");
    net.change("items", "3", 3);
    let counts = net.counts(0);
    assert_eq!((counts.deliveries, counts.closed), (2, 1), "its socket failed");
}

#[test]
fn all_subscriptions_together_have_a_limit() {
    let bytes = Subscriptions::BYTES + Subscriptions::topic_bytes("items1".len());
    let mut net = Net::new(2, |config| config.max_total_subscription_bytes = 20 * bytes);
    let (greedy, other) = (net.connect(0), net.connect(1));
    for n in 0..9 {
        net.subscribe(greedy, "items", &n.to_string());
    }
    assert_eq!(net.counts(0).subscription_bytes, 9 * bytes as u64);
    net.subscribe(other, "items", "a");
    // Half is gone. The other half is for both alike.
    net.subscribe(greedy, "items", "x");
    for n in 0..8 {
        net.subscribe(other, "items", &n.to_string());
    }
    assert_eq!(
        (net.counts(0).subscriptions, net.counts(0).refused_subscriptions),
        (9, 1)
    );
    assert_eq!(
        (net.counts(1).subscriptions, net.counts(1).refused_subscriptions),
        (5, 4)
    );
    // What is there goes on, and may move.
    net.secret(greedy, "s");
    assert_eq!(net.counts(0).subscriptions, 9);
    net.eof(greedy);
    assert_eq!(net.counts(0).subscription_bytes, 0);
    net.subscribe(other, "items", "7");
    assert_eq!(net.counts(1).subscriptions, 6);
}

#[test]
fn all_secrets_together_have_a_limit() {
    let mut net = Net::new(2, |config| config.max_total_secret_bytes = 40);
    let (a, b, c) = (net.connect(0), net.connect(0), net.connect(1));
    net.secret(a, "0123456789abcdef");
    net.secret(b, "0123456789abcdef");
    assert_eq!(net.counts(0).secret_bytes, 16, "equal ones are kept once");
    net.secret(c, "0123");
    net.secret(c, "012345");
    net.secret(c, "01234567890");
    assert_eq!(
        net.all_frames([a, b, c]).concat(),
        ["close 1013 no room for more input"]
    );
    assert_eq!((net.counts(1).refused_input, net.counts(1).secret_bytes), (1, 6));
    net.eof(c);
    assert_eq!(net.counts(1).secret_bytes, 0);
    net.eof(a);
    net.eof(b);
    assert_eq!(net.counts(0).secret_bytes, 0);
    let d = net.connect(1);
    net.secret(d, "0123456789abcdef");
    assert_eq!(net.frames(d), [""; 0]);
}

#[test]
fn all_beginnings_of_messages_together_have_a_limit() {
    let mut net = Net::new(2, |config| config.max_total_input_bytes = 400);
    let (a, b) = (net.connect(0), net.connect(1));
    net.receive(a, &message(1000)[..190]);
    assert_eq!(net.counts(0).input_bytes, 190);
    net.receive(b, &message(1000)[..90]);
    assert_eq!(net.all_frames([a, b]).concat(), [""; 0], "its share");
    net.receive(b, [0; 90]);
    assert_eq!(net.frames(b), ["close 1013 no room for more input"]);
    assert_eq!((net.counts(1).input_bytes, net.counts(1).refused_input), (0, 1));
    // Nor does a request that is never done cost more.
    let upgrading = net.open(1, &Opening::default()).unwrap();
    net.receive(upgrading, format!("GET / HTTP/1.1\r\nX: {:300}", ""));
    assert_eq!((net.peer(upgrading).closed, net.counts(1).refused_input), (1, 2));
    net.eof(b);
    // The rest comes, and makes room.
    net.receive(a, &message(1000)[190..]);
    assert_eq!((net.counts(0).input_bytes, net.counts(0).messages), (0, 1));
    assert_eq!(net.frames(a), [""; 0]);
}

#[test]
fn nothing_counts_behind_a_secret_that_finds_no_room() {
    let passed = Arc::<AtomicUsize>::default();
    let counted = passed.clone();
    let mut net = Net::new(1, move |config| {
        config.max_total_secret_bytes = 10;
        config.on_message = Some(Arc::new(move |_: Incoming<'_>| {
            _ = counted.fetch_add(1, Ordering::Relaxed)
        }));
    });
    let id = net.connect(0);
    let mut bytes = frame(1, br#"{"action":"secret","body":"0123456789abcdef"}"#);
    bytes.extend(frame(
        1,
        br#"{"action":"subscribe","body":{"entity":"items","id":"1"}}"#,
    ));
    bytes.extend(frame(1, br#"{"hello":1}"#));
    net.receive(id, &bytes[..]);
    assert_eq!(net.frames(id), ["close 1013 no room for more input"]);
    assert_eq!((net.shards[0].subscriptions(), passed.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn a_change_of_the_secret_finds_the_limit_of_subscriptions_too() {
    let bytes = Subscriptions::BYTES + Subscriptions::topic_bytes("items1".len());
    let mut net = Net::new(1, |config| config.max_total_subscription_bytes = 8 * bytes);
    let ids: Vec<_> = (0..10).map(|_| net.connect(0)).collect();
    for &id in &ids {
        net.subscribe(id, "items", "1");
    }
    assert_eq!(net.counts(0).refused_subscriptions, 0, "one topic for all");
    // Each comes to be alone in a topic.
    for (number, &id) in ids.iter().enumerate() {
        net.secret(id, &number.to_string());
    }
    let counts = net.counts(0);
    assert!(
        counts.subscription_bytes <= 8 * bytes as u64,
        "{}",
        counts.subscription_bytes
    );
    assert!(counts.refused_subscriptions > 0);
    assert_eq!(counts.subscriptions + counts.refused_subscriptions, 10);
}

#[test]
fn a_handler_that_panics_pauses_nobody() {
    let mut net = Net::new(1, |config| {
        config.on_message = Some(Arc::new(|incoming: Incoming<'_>| {
            incoming.stop_reading();
            panic!("before anybody was told");
        }));
    });
    let id = net.connect(0);
    net.receive(id, &frame(1, br#"{"hello":1}"#)[..]);
    assert_eq!(net.counts(0).handler_panics, 1);
    assert!(!net.shards[0].is_paused(id.conn));
}

#[test]
fn rows_for_which_a_blocked_client_has_no_room_are_not_read_over_and_over() {
    let mut net = Net::new(1, |config| config.max_outbox_bytes = 10_000);
    let slow = net.connect(0);
    net.subscribe(slow, "items", "small");
    net.subscribe(slow, "items", "large");
    net.peer(slow).room = Some(0);
    net.store.padding.store(3000, Ordering::Relaxed);
    net.change("items", "small", 1);
    net.store.padding.store(8000, Ordering::Relaxed);
    net.node.notify(net.now, &key("items", "large")).unwrap();
    // Not until there is nothing left to do: there would be more for ever.
    for _ in 0..100 {
        match net.shards[0].poll_output(net.now) {
            Some(Output::Broadcast(broadcast)) => broadcast.for_each(|_, _| Sent::Busy),
            Some(Output::Flush(flush)) => flush.write(|_, _| Sent::Busy),
            Some(_) => {}
            None => break,
        }
    }
    let reads = net.node.counters().reads.get();
    assert!(reads <= 3, "{reads} reads");
    // It comes once there is room.
    net.unblock(slow);
    let received = String::from_utf8_lossy(&net.peer(slow).received).into_owned();
    assert!(received.contains("items/small v1") && received.contains("items/large v1"));
}
