//! What the application and clients say to each other besides rows.

use super::*;
use crate::node::MESSAGE_BYTES;
use crate::outbox::ITEM_BYTES;

/// Who said what: with which secret, as text or not, and the bytes.
type Heard = Arc<Mutex<Vec<(ClientId, String, bool, Vec<u8>)>>>;

fn listen(config: &mut Config) -> Heard {
    let heard = Heard::default();
    let hear = heard.clone();
    config.on_message = Some(Arc::new(move |incoming: Incoming<'_>| {
        let is_text = matches!(incoming.payload(), Payload::Text(_));
        let bytes = incoming.payload().as_bytes().to_vec();
        lock(&hear).push((incoming.id(), incoming.secret().to_owned(), is_text, bytes));
    }));
    heard
}

#[test]
fn messages_without_an_action_are_passed_as_they_came() {
    let mut heard = Heard::default();
    let mut net = Net::new(2, |config| heard = listen(config));
    let (a, b) = (net.connect(0), net.connect(1));
    net.say(a, " {\"hello\" :\t1} ");
    net.secret(a, "s");
    net.receive(a, frame(2, b"{\"raw\":\"\xff\"}"));
    net.say(b, r#"{"action":""}"#);
    let expected = [
        (a, String::new(), true, b" {\"hello\" :\t1} ".to_vec()),
        (a, "s".to_owned(), false, b"{\"raw\":\"\xff\"}".to_vec()),
        (b, String::new(), true, br#"{"action":""}"#.to_vec()),
    ];
    assert_eq!(*lock(&heard), expected);
    // Neither these nor those with an action are anything else's.
    net.say(a, "not JSON");
    net.say(a, r#"{"action":"unknown"}"#);
    net.subscribe(a, "items", "1");
    assert_eq!(lock(&heard).len(), 3);
    let counts = net.counts(0);
    assert_eq!((counts.messages, counts.passed_messages), (6, 2));
    assert_eq!((counts.rejected_messages, counts.subscriptions), (2, 1));
}

#[test]
fn all_messages_are_passed_if_the_application_wants_them() {
    let mut heard = Heard::default();
    let mut net = Net::new(1, |config| {
        heard = listen(config);
        config.pass_through = PassThrough::All;
    });
    let a = net.connect(0);
    net.say(a, "not JSON");
    net.receive(a, frame(2, b"\xff\x00"));
    net.subscribe(a, "items", "1");
    net.secret(a, "s");
    net.say(a, "");
    let heard = lock(&heard);
    let texts: Vec<_> = heard.iter().map(|it| (it.2, &it.3[..])).collect();
    assert_eq!(texts[..2], [(true, &b"not JSON"[..]), (false, b"\xff\x00")]);
    assert!(texts[2].1.starts_with(br#"{"action":"subscribe""#));
    assert_eq!(texts[4], (true, &b""[..]));
    assert!(heard.iter().all(|it| it.0 == a && it.1.is_empty()));
    let counts = net.counts(0);
    assert_eq!((counts.passed_messages, counts.rejected_messages), (5, 0));
    assert_eq!(counts.subscriptions, 0);
}

#[test]
fn messages_for_nobody_are_counted_and_dropped() {
    let mut net = Net::new(1, |_| {});
    let a = net.connect(0);
    net.say(a, r#"{"hello":1}"#);
    let counts = net.counts(0);
    assert_eq!((counts.passed_messages, counts.rejected_messages), (0, 1));
    assert_eq!(net.frames(a), NOTHING);
}

#[test]
fn a_handler_that_panics_costs_nobody_the_connection() {
    let mut net = Net::new(1, |config| {
        config.on_message = Some(Arc::new(|_: Incoming<'_>| panic!("this handler panics")));
    });
    let (a, b) = (net.connect(0), net.connect(0));
    // All that comes at once, and what comes later.
    let passed = frame(1, br#"{"hello":1}"#);
    net.receive(a, [&passed[..], &frame(9, b"1"), &passed].concat());
    assert_eq!(net.frames(a), ["pong 1"]);
    net.receive(a, &passed);
    net.subscribe(a, "items", "1");
    net.subscribe(b, "items", "1");
    net.change("items", "1", 1);
    assert_eq!(net.all_frames([a, b]), [["items/1 v1"], ["items/1 v1"]]);
    let counts = net.counts(0);
    assert_eq!((counts.handler_panics, counts.passed_messages), (3, 3));
    assert_eq!(counts.connections, 2);
}

#[test]
fn messages_leave_in_the_order_in_which_they_were_sent() {
    let mut net = Net::new(2, |config| {
        config.on_message = Some(Arc::new(|incoming: Incoming<'_>| {
            let client = incoming.client();
            assert_eq!(client.id(), incoming.id());
            client.send_text("one").unwrap();
            client.send_binary(&[2, 0, 255]).unwrap();
            client.send_text("three").unwrap();
            if incoming.payload() == Payload::Text(r#"{"bye":1}"#) {
                client.close(4000, "bye").unwrap();
                client.send_text("too late").unwrap();
            }
        }));
    });
    let (a, b) = (net.connect(0), net.connect(1));
    net.say(a, r#"{"hello":1}"#);
    let three = ["one", "binary [2, 0, 255]", "three"];
    assert_eq!(net.all_frames([a, b]), [&three[..], &[]]);
    // From elsewhere, behind what is queued. Rows keep the place of those whose place they take.
    net.subscribe(b, "items", "1");
    net.peer(b).room = Some(0);
    net.change("items", "1", 1);
    net.node.client(b).send_text("after a row").unwrap();
    net.node.client(b).send_text("").unwrap();
    net.run();
    net.change("items", "1", 2);
    net.unblock(b);
    assert_eq!(net.all_frames([a, b]), [&[][..], &["items/1 v2", "after a row", ""]]);
    // The end comes after all that was sent before.
    net.peer(a).room = Some(0);
    net.say(a, r#"{"bye":1}"#);
    net.unblock(a);
    assert_eq!(net.frames(a), ["one", "binary [2, 0, 255]", "three", "close 4000 bye"]);
    assert!(net.has_ended(a));
    net.node.client(b).close(1000, "").unwrap();
    net.run();
    assert_eq!(net.frames(b), ["close 1000"]);
    assert!(net.has_ended(b));
    assert_eq!((net.counts(0).sent_messages, net.counts(1).sent_messages), (6, 2));
}

#[test]
fn messages_that_no_shard_has_taken_are_limited() {
    let mut net = Net::new(2, |config| config.max_handover_bytes = 100 + 2 * MESSAGE_BYTES);
    let (a, b, c) = (net.connect(0), net.connect(0), net.connect(1));
    let clients = [a, b, c].map(|id| net.node.client(id));
    let long = "x".repeat(60);
    assert_eq!(clients[0].send_text(&long), Ok(()));
    assert_eq!(clients[0].send_text(&long), Err(SendError::Full));
    assert_eq!(
        clients[1].send_binary(&[0; 60]),
        Err(SendError::Full),
        "of the same shard"
    );
    assert_eq!(clients[2].send_text(&long), Ok(()), "of another one");
    // Up to the limit, with the two bytes of each header.
    assert_eq!(clients[1].send_text(&"y".repeat(37)), Err(SendError::Full));
    assert_eq!(clients[1].send_text(&"y".repeat(36)), Ok(()));
    assert_eq!(clients[1].send_text(""), Err(SendError::Full));
    // What is no message is always taken.
    clients[1].close(1000, "").unwrap();
    net.run();
    assert_eq!(net.all_frames([a, c]), [[&long[..]], [&long]]);
    assert_eq!(net.frames(b), ["y".repeat(36), "close 1000".to_owned()]);
    // One that exceeds it may go alone.
    let longer = "z".repeat(net.node.config().max_handover_bytes);
    assert_eq!(clients[0].send_text(&longer), Ok(()));
    assert_eq!(clients[0].send_text(""), Err(SendError::Full));
    net.run();
    assert_eq!(clients[0].send_text(""), Ok(()));
    net.run();
    let received = std::mem::take(&mut net.peer(a).received);
    assert!(received.ends_with(b"zz\x81\0") && received.len() > longer.len());
}

#[test]
fn messages_beyond_the_outbox_end_the_connection() {
    let long = "x".repeat(60);
    // Two of these are too much, and so is one behind a row.
    let held = ITEM_BYTES + 2 + long.len();
    let mut net = Net::new(1, |config| config.max_outbox_bytes = 2 * held - 1);
    let clients = [net.connect(0), net.connect(0), net.connect(0)];
    let [a, b, c] = clients;
    net.subscribe(b, "items", "1");
    // Of the first one's message, some has left; the second one's have rows in front of them.
    net.peer(a).room = Some(5);
    net.peer(b).room = Some(0);
    net.change("items", "1", 1);
    for id in [a, c] {
        net.node.client(id).send_text(&long).unwrap();
        net.run();
    }
    assert_eq!(net.counts(0).fallen_behind, 0);
    for id in clients {
        net.node.client(id).send_text(&long).unwrap();
        net.node.client(id).send_text("more").unwrap();
        net.run();
    }
    assert_eq!(net.counts(0).fallen_behind, 2);
    assert_eq!(net.counts(0).subscriptions, 0);
    net.unblock(a);
    net.unblock(b);
    assert_eq!(net.frames(a), [&long[..], "close 1013 fell behind"]);
    assert_eq!(net.frames(b), ["close 1013 fell behind"]);
    assert_eq!(net.frames(c), [&long[..], &long, "more"]);
    assert!(net.has_ended(a) && net.has_ended(b));
    assert_eq!(net.shards[0].connections(), 1);
}

/// What lies behind in the same bytes waits too, and others don't.
#[test]
fn a_client_that_is_stopped_and_goes_on_again_and_again_has_one_turn_at_a_time() {
    let heard = Arc::<AtomicUsize>::default();
    let hear = heard.clone();
    let mut net = Net::new(1, |config| {
        config.on_message = Some(Arc::new(move |incoming: Incoming<'_>| {
            incoming.stop_reading();
            incoming.client().read_on();
            hear.fetch_add(1, Ordering::Relaxed);
        }));
    });
    let id = net.connect(0);
    // The shard looks after each output that it has one turn and not several.
    net.receive(id, frame(1, b"{\"n\":1}").repeat(1000));
    assert_eq!(heard.load(Ordering::Relaxed), 1000);
    assert!(!net.shards[0].is_paused(id.conn));
}

#[test]
fn the_application_may_stop_reading_from_one_client() {
    let heard = Heard::default();
    let hear = heard.clone();
    let mut net = Net::new(1, |config| {
        config.on_message = Some(Arc::new(move |incoming: Incoming<'_>| {
            incoming.stop_reading();
            let bytes = incoming.payload().as_bytes().to_vec();
            lock(&hear).push((incoming.id(), String::new(), true, bytes));
        }));
    });
    let (a, b) = (net.connect(0), net.connect(0));
    let said = |number: usize| frame(1, format!("{{\"n\":{number}}}").as_bytes());
    net.receive(a, [said(1), said(2), said(3)].concat());
    net.receive(b, said(7));
    let numbers = || lock(&heard).iter().map(|it| (it.0, it.3[5])).collect::<Vec<_>>();
    assert_eq!(numbers(), [(a, b'1'), (b, b'7')]);
    assert!(net.shards[0].is_paused(a.conn));
    let client = |id: ClientId| crate::client::Client::new(net.node.clone(), id);
    let (of_a, of_b) = (client(a), client(b));
    // Nobody is taken for dead who is not read from.
    net.wait_until(net.now + Duration::from_secs(600));
    assert_eq!(net.counts(0).connections, 2);
    for expected in [b'2', b'3'] {
        of_a.read_on();
        net.run();
        assert_eq!(numbers().last(), Some(&(a, expected)));
        assert!(net.shards[0].is_paused(a.conn));
    }
    of_a.read_on();
    of_a.read_on();
    net.run();
    assert!(!net.shards[0].is_paused(a.conn) && net.shards[0].is_paused(b.conn));
    net.receive(a, said(4));
    assert_eq!(numbers().last(), Some(&(a, b'4')));
    // A client that has gone.
    of_b.close(1000, "").unwrap();
    net.run();
    of_b.read_on();
    net.run();
}

#[test]
fn a_message_may_be_kept_and_handled_later() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep = kept.clone();
    let mut net = Net::new(1, |config| {
        config.on_message = Some(Arc::new(move |incoming: Incoming<'_>| {
            lock(&keep).push(incoming.keep())
        }));
    });
    let a = net.connect(0);
    net.secret(a, "s");
    net.say(a, r#"{"hello":1}"#);
    net.receive(a, frame(2, b"{\"raw\":\"\xff\"}"));
    let kept = std::mem::take(&mut *lock(&kept));
    let mut seen = Vec::new();
    for message in &kept {
        let is_well = message.handle(|incoming| {
            incoming.stop_reading();
            incoming.client().send_text("thank you").unwrap();
            let is_text = matches!(incoming.payload(), Payload::Text(_));
            seen.push((incoming.id(), incoming.secret().to_owned(), is_text));
        });
        assert!(is_well && message.size() > message.client().id().to_string().len());
    }
    assert_eq!(seen, [(a, "s".to_owned(), true), (a, "s".to_owned(), false)]);
    net.run();
    assert!(!net.shards[0].is_paused(a.conn));
    assert_eq!(net.frames(a), ["thank you", "thank you"]);
    assert!(!kept[0].handle(|_| panic!("this handler panics")));
    assert_eq!(net.node.counters().message_panics.get(), 1);
}
