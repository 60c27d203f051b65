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
        config.work_budget = 10;
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
        config.work_budget = 5;
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
    let mut net = Net::new(1, |config| config.work_budget = 1);
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
        config.work_budget = 3;
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

fn secret(secret: &str) -> Vec<u8> {
    text(&format!(r#"{{"action":"secret","body":"{secret}"}}"#))
}

#[test]
fn a_secret_is_skipped_only_if_another_follows_before_anything_that_needs_it() {
    let mut heard = Arc::default();
    let mut net = Net::new(1, |config| {
        heard = listen(config);
        config.entities = snapshots();
    });
    let id = net.connect(0);
    let said = [
        secret("a"),
        secret("b"),
        text("{\"n\":1}"),
        secret("c"),
        text("not JSON"),
        frame(9, b""),
        secret("d"),
        text(SUBSCRIBE),
        secret("e"),
        secret("f"),
    ];
    net.receive(id, said.concat());
    assert_eq!(*lock(&heard), ["b{\"n\":1}"]);
    // It is subscribed under `d`, and moved to `f` before anything of `d` goes out.
    assert_eq!(net.frames(id), ["pong ", "items/9 of f v0"]);
    assert_eq!(net.counts(0).secret_changes, 3, "b, d and f");
    net.say(id, "{\"n\":2}");
    assert_eq!(lock(&heard)[1], "f{\"n\":2}");
}

fn snapshots() -> Entities {
    Entities::any(EntityOptions {
        snapshot: true,
        ..EntityOptions::default()
    })
}

#[test]
fn who_changes_its_secret_too_often_is_not_read_from_for_a_while() {
    let mut heard = Arc::default();
    let mut net = Net::new(1, |config| {
        heard = listen(config);
        config.max_secret_changes = 3;
        config.secret_window = Duration::from_secs(6);
        config.dead_after = Duration::from_secs(5);
        config.ping_interval = Duration::from_secs(2);
    });
    let (id, other) = (net.connect(0), net.connect(0));
    for n in 0..3 {
        net.secret(id, &format!("s{n}"));
        assert!(!net.shards[0].is_paused(id.conn));
    }
    // Saying the same again changes nothing.
    net.secret(id, "s2");
    assert!(!net.shards[0].is_paused(id.conn));
    let said: Vec<u8> = (3..6)
        .flat_map(|n| [secret(&format!("s{n}")), text("{}")].concat())
        .collect();
    net.receive(id, said);
    assert_eq!(*lock(&heard), ["s3{}"], "one too many, and then no more");
    assert!(net.shards[0].is_paused(id.conn));
    let mut waited = Vec::new();
    while net.shards[0].is_paused(id.conn) {
        net.receive(other, frame(10, b""));
        let at = net.shards[0].poll_timeout().unwrap();
        let before = lock(&heard).len();
        net.wait_until(at);
        if lock(&heard).len() > before {
            waited.push(at.since(Timestamp::START));
        }
        assert!(
            net.now < Timestamp::START + Duration::from_secs(60),
            "it is read from again"
        );
    }
    // One share of the window after the other, and it was not taken for dead.
    assert_eq!(*lock(&heard), ["s3{}", "s4{}", "s5{}"]);
    assert_eq!(waited, [2, 4].map(Duration::from_secs));
    assert_eq!(net.counts(0).dead_peers, 0);
    net.wait_until(net.now + Duration::from_secs(60));
    assert_eq!(net.counts(0).dead_peers, 2, "silence counts again");
}

/// What the issue saw: 268 KiB of secrets by a client with 999 long keys held another's push up for 20 s.
#[test]
fn thousands_of_secrets_at_once_cost_a_few_changes_and_others_go_on() {
    let mut net = Net::new(1, |_| {});
    let (loud, other) = (net.connect(0), net.connect(0));
    net.subscribe(other, "items", "1");
    for n in 0..999 {
        net.subscribe(loud, "items", &format!("{n:01024}")[5..]);
    }
    assert_eq!(net.shards[0].subscriptions(), 1000);
    let said: Vec<u8> = (0..7_400).flat_map(|n| secret(&format!("{n}"))).collect();
    let mut chunks = said.chunks(64 * 1024);
    let bytes = &mut chunks.next().unwrap().to_vec()[..];
    net.shards[0].handle(net.now, Input::Received { conn: loud.conn, bytes });
    assert_eq!(
        net.counts(0).secret_changes,
        1,
        "a change for a turn's worth of messages"
    );
    assert!(net.shards[0].is_paused(loud.conn));
    net.change("items", "1", 1);
    assert_eq!(net.frames(other), ["items/1 v1"]);
    let mut handed = 1;
    for second in 0..40 {
        while !net.shards[0].is_paused(loud.conn)
            && let Some(chunk) = chunks.next()
        {
            handed += 1;
            net.receive(loud, chunk);
        }
        net.wait_until(Timestamp::START + Duration::from_secs(second));
        net.receive(other, frame(10, b""));
    }
    assert_eq!((handed, chunks.next()), (5, None));
    let changes = net.counts(0).secret_changes;
    assert!((10..=50).contains(&changes), "{changes} changes");
    assert_eq!(&**net.shards[0].secret_of(loud.conn), "7399");
}

#[test]
fn an_order_that_concerns_many_is_carried_out_in_parts() {
    let mut heard = Arc::default();
    let mut net = Net::new(1, |config| {
        heard = listen(config);
        config.work_budget = 5;
    });
    let ids: Vec<_> = (0..20).map(|_| net.connect(0)).collect();
    for &id in &ids {
        net.secret(id, "s");
        net.subscribe(id, "items", "1");
    }
    let reads = net.node.counters().reads.get();
    net.node.reread(net.now, &Selector::Secret("s".into()));
    let conn = ids[0].conn;
    let now = net.now;
    let shard = &mut net.shards[0];
    let bytes = &mut secret("later")[..];
    shard.handle(now, Input::Received { conn, bytes });
    assert!(shard.is_paused(conn), "it is meant as it was");
    let mut parts = 0;
    while shard.has_orders() {
        assert_eq!(&**shard.secret_of(conn), "s");
        parts += 1;
        let is_done = shard.poll_output(now).is_some() || !shard.has_orders();
        shard.assert_consistent();
        assert!(is_done || shard.poll_timeout() == Some(now), "there is work left");
    }
    assert!((5..30).contains(&parts), "{parts} parts");
    net.run();
    assert_eq!(
        net.node.counters().reads.get(),
        reads + 2,
        "one for all, and one for the new secret"
    );
    for (n, &id) in ids.iter().enumerate() {
        let expected = if n == 0 {
            "items/1 of later v0"
        } else {
            "items/1 of s v0"
        };
        assert_eq!(net.frames(id).last().map(String::as_str), Some(expected));
    }
    // Those who come meanwhile are not meant, and messages keep their places among orders.
    net.node.client(ids[1]).send_text("before").unwrap();
    net.node.disconnect(&Selector::Secret("s".into()), 4000, "").unwrap();
    net.node.client(ids[1]).send_text("after").unwrap();
    // A part of it; the output is given again.
    let _ = net.shards[0].poll_output(now);
    assert!(net.shards[0].has_orders());
    let opening = Opening {
        secret: Some("s".into()),
        is_upgraded: true,
        ..Opening::default()
    };
    let late = net.open(0, &opening).unwrap();
    net.run();
    assert_eq!(net.frames(ids[1]), ["before", "close 4000"]);
    assert_eq!(net.frames(ids[19]), ["close 4000"]);
    assert_eq!(net.all_frames([ids[0], late]), [[""; 0], [""; 0]]);
    assert_eq!(
        net.shards[0]
            .conns
            .iter()
            .filter(|(_, it)| it.phase == Phase::Open)
            .count(),
        2
    );
}

#[test]
fn subscriptions_of_many_end_in_parts() {
    for selector in [Selector::Key(key("items", "1")), Selector::Secret("".into())] {
        let mut net = Net::new(1, |config| config.work_budget = 4);
        let ids: Vec<_> = (0..20).map(|_| net.connect(0)).collect();
        for &id in &ids {
            net.subscribe(id, "items", "1");
        }
        net.node.unsubscribe(&selector);
        assert!(net.shards[0].poll_output(net.now).is_none());
        let left = net.shards[0].subscriptions();
        assert!((10..20).contains(&left), "{left} are left");
        net.run();
        assert_eq!(net.shards[0].subscriptions(), 0);
    }
}

#[test]
fn a_client_that_always_has_more_to_say_keeps_nobody_from_being_pushed() {
    let mut net = Net::new(1, |_| {});
    let (loud, other) = (net.connect(0), net.connect(0));
    net.subscribe(other, "items", "1");
    net.run();
    let now = net.now;
    let mut flood = Vec::new();
    (0..10_000).for_each(|_| flood.extend(frame(9, b"")));
    let hear = |shard: &mut Shard| {
        let bytes = &mut flood.clone()[..];
        shard.handle(now, Input::Received { conn: loud.conn, bytes });
    };
    hear(&mut net.shards[0]);
    net.node.notify(now, &key("items", "1")).unwrap();
    for outputs in 0.. {
        assert!(outputs < 200, "it is held up for as long as the other goes on");
        let is_push = match net.shards[0].poll_output(now).expect("there is more to do") {
            Output::Broadcast(_) => true,
            Output::Flush(flush) => {
                flush.write(|_, _| Sent::All);
                false
            }
            _ => false,
        };
        if is_push {
            break;
        }
        if !net.shards[0].is_paused(loud.conn) {
            hear(&mut net.shards[0]);
        }
    }
}
