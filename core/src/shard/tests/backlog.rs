//! What one connection sends holds up nobody else, and nothing that it says counts once it is closing.

use super::*;

const SUBSCRIBE: &str = r#"{"action":"subscribe","body":{"entity":"items","id":"9"}}"#;

fn text(text: &str) -> Vec<u8> {
    frame(1, text.as_bytes())
}

/// Who said what, in order.
fn listen(config: &mut Config) -> Arc<Mutex<Vec<String>>> {
    let heard = Arc::<Mutex<Vec<String>>>::default();
    let hear = heard.clone();
    config.on_message = Some(Arc::new(move |incoming: Incoming<'_>| {
        let said = String::from_utf8_lossy(incoming.payload().as_bytes()).into_owned();
        lock(&hear).push(format!("{}{said}", incoming.secret()));
    }));
    heard
}

fn numbers(range: std::ops::Range<usize>) -> Vec<u8> {
    range.flat_map(|number| text(&format!("{{\"n\":{number}}}"))).collect()
}

#[test]
fn more_than_a_turns_work_waits_and_the_client_is_not_read_from() {
    let mut heard = Arc::default();
    let mut net = Net::new(1, |config| {
        heard = listen(config);
        config.input_budget = 10;
    });
    let (loud, other) = (net.connect(0), net.connect(0));
    net.subscribe(other, "items", "1");
    let conn = loud.conn;
    let shard = &mut net.shards[0];
    let now = net.now;
    let bytes = &mut numbers(0..35)[..];
    shard.handle(now, Input::Received { conn, bytes });
    assert_eq!(lock(&heard).len(), 10);
    assert!(shard.is_paused(conn));
    assert_eq!(shard.poll_timeout(), Some(now), "there is work left");
    // A driver that had read further already.
    let bytes = &mut numbers(35..40)[..];
    shard.handle(now, Input::Received { conn, bytes });
    assert_eq!(lock(&heard).len(), 10);
    // Others are heard, and sent what they are owed, in between.
    let subscribe = &mut text(SUBSCRIBE)[..];
    shard.handle(
        now,
        Input::Received {
            conn: other.conn,
            bytes: subscribe,
        },
    );
    assert_eq!(shard.subscriptions(), 2);
    net.node.notify(now, &key("items", "1")).unwrap();
    let mut outputs = 0;
    while let Some(output) = net.shards[0].poll_output(now) {
        outputs += 1;
        assert!(matches!(output, Output::Broadcast(_)));
        if let Output::Broadcast(broadcast) = output {
            broadcast.for_each(|_, _| Sent::All);
        }
        assert_eq!(lock(&heard).len(), 20, "one turn for each output");
    }
    assert_eq!(outputs, 1);
    assert_eq!(lock(&heard).len(), 30, "and then one for each turn of the driver");
    assert!(net.shards[0].is_paused(conn));
    net.run();
    assert!(!net.shards[0].is_paused(conn));
    assert_eq!(net.peer(loud).resumed, 1);
    let expected: Vec<_> = (0..40).map(|number| format!("{{\"n\":{number}}}")).collect();
    assert_eq!(*lock(&heard), expected);
    assert_eq!(net.counts(0).read_pauses, 1);
    assert!(net.shards[0].conns.get(conn.0).unwrap().extra.is_none());
}

#[test]
fn those_with_a_backlog_take_turns() {
    let mut heard = Arc::default();
    let mut net = Net::new(1, |config| {
        heard = listen(config);
        config.input_budget = 5;
    });
    let (a, b) = (net.connect(0), net.connect(0));
    net.secret(a, "a");
    net.secret(b, "b");
    for id in [a, b] {
        let bytes = &mut numbers(0..15)[..];
        net.shards[0].handle(net.now, Input::Received { conn: id.conn, bytes });
    }
    net.run();
    let who: String = lock(&heard).iter().map(|it| &it[..1]).collect();
    assert_eq!(who, "aaaaabbbbbaaaaabbbbbaaaaabbbbb");
}

#[test]
fn a_driver_that_does_not_stop_reading_costs_no_memory_without_end() {
    let mut net = Net::new(1, |config| config.input_budget = 1);
    let id = net.connect(0);
    let conn = id.conn;
    let portion = numbers(0..6000);
    for _ in 0..100 {
        let bytes = &mut portion.clone()[..];
        net.shards[0].handle(net.now, Input::Received { conn, bytes });
    }
    net.run();
    assert_eq!(net.frames(id), ["close 1013 sent too much at once"]);
    assert!(!net.shards[0].is_paused(conn), "its end is awaited");
    net.eof(id);
    assert_eq!(net.peer(id).closed, 1);
}

#[test]
fn nothing_counts_that_lies_behind_an_end() {
    let close = frame(8, &1000u16.to_be_bytes());
    let violation = frame(3, b"");
    let secret = text(r#"{"action":"secret","body":"new"}"#);
    let behind = [
        text("{\"late\":1}"),
        secret,
        text(SUBSCRIBE),
        text("{\"late\":2}"),
        frame(9, b"late"),
        close.clone(),
        violation.clone(),
    ]
    .concat();
    type End = fn(&mut Net, ClientId);
    // What ends the connection before the bytes are handed over, or the first of them; and what the client sees.
    let ends: [(&str, End, &[u8], &str); 6] = [
        (
            "the application, by secret",
            |net, _| {
                net.node
                    .disconnect(&Selector::Secret("revoked".into()), 4000, "")
                    .unwrap()
            },
            b"",
            "close 4000",
        ),
        (
            "the application, by key",
            |net, _| {
                net.node
                    .disconnect(&Selector::Key(key("items", "1")), 4000, "")
                    .unwrap()
            },
            b"",
            "close 4000",
        ),
        (
            "the application, by client",
            |net, id| net.node.client(id).close(4000, "").unwrap(),
            b"",
            "close 4000",
        ),
        (
            "a drain",
            |net, _| {
                net.shards[0].drain(
                    net.now,
                    DrainOptions {
                        code: 1001,
                        over: Duration::ZERO,
                        retry_within: Duration::ZERO,
                    },
                )
            },
            b"",
            "close 1001",
        ),
        ("the client", |_, _| {}, &close, "close 1000"),
        ("a violation", |_, _| {}, &violation, "close 1002 unknown opcode 3"),
    ];
    for (name, end, first, last) in ends {
        let mut heard = Arc::default();
        let mut net = Net::new(1, |config| heard = listen(config));
        let id = net.connect(0);
        net.secret(id, "revoked");
        net.subscribe(id, "items", "1");
        end(&mut net, id);
        net.receive(id, [first, &behind].concat());
        assert_eq!(*lock(&heard), [""; 0], "{name}");
        assert_eq!(net.frames(id), [last], "{name}");
        let counts = net.counts(0);
        assert_eq!(counts.subscriptions, 0, "{name}");
        assert_eq!(counts.violations, u64::from(name == "a violation"), "{name}");
        net.receive(id, &behind);
        assert_eq!(net.frames(id), [""; 0], "{name}");
        net.eof(id);
        assert_eq!(net.peer(id).closed, 1, "{name}");
    }
}

#[test]
fn nothing_counts_that_lies_behind_the_message_at_which_the_application_ended_it() {
    let heard = Arc::<Mutex<Vec<String>>>::default();
    let hear = heard.clone();
    let mut net = Net::new(1, |config| {
        config.on_message = Some(Arc::new(move |incoming: Incoming<'_>| {
            lock(&hear).push(incoming.secret().to_owned());
            incoming.client().close(4001, "enough").unwrap();
        }));
    });
    let id = net.connect(0);
    net.receive(id, [text("{\"n\":1}"), text(SUBSCRIBE), text("{\"n\":2}")].concat());
    assert_eq!(lock(&heard).len(), 1);
    assert_eq!(net.frames(id), ["close 4001 enough"]);
    assert_eq!(net.counts(0).subscriptions, 0);
    assert_eq!(net.counts(0).messages, 1);
}

#[test]
fn input_that_waits_is_dropped_at_the_end() {
    let mut heard = Arc::default();
    let mut net = Net::new(1, |config| {
        heard = listen(config);
        config.input_budget = 3;
    });
    let id = net.connect(0);
    let conn = id.conn;
    let bytes = &mut numbers(0..9)[..];
    net.shards[0].handle(net.now, Input::Received { conn, bytes });
    net.node.client(id).close(4000, "").unwrap();
    net.run();
    assert_eq!(lock(&heard).len(), 3);
    assert_eq!(net.frames(id), ["close 4000"]);
    assert!(!net.shards[0].is_paused(conn));
    assert_eq!(net.peer(id).resumed, 1, "its end is to be read");
}
