//! Who is let in, and how all are sent away.

use std::sync::Mutex;

use super::*;
use crate::ws::Hosts;

#[test]
fn draining_ends_connections_at_an_even_pace() {
    let mut net = Net::new(1, |_| {});
    let ids = [(); 4].map(|()| net.connect(0));
    let upgrading = net.open(0, &Opening::default()).unwrap();
    for id in ids {
        net.subscribe(id, "items", "1");
    }
    net.now = at(3);
    // What is queued goes out before the end.
    net.peer(ids[0]).room = Some(0);
    net.change("items", "1", 1);
    assert_eq!(net.all_frames(ids).concat().len(), 3);
    let drain = DrainOptions {
        over: Duration::from_secs(4),
        ..DrainOptions::default()
    };
    assert!(!net.shards[0].is_draining());
    net.shards[0].drain(net.now, drain);
    net.run();
    assert!(net.shards[0].is_draining());
    assert_eq!(net.peer(upgrading).closed, 1);
    assert_eq!(net.open(0, &Opening::default()), Err(Refused::Draining));
    assert_eq!(net.shards[0].open(net.now), Err(Refused::Draining));
    assert_eq!(net.counts(0).refused_connections, 2);
    let mut hints = Vec::new();
    for ended in 1..=4 {
        net.unblock(ids[0]);
        let frames = net.all_frames(ids).concat();
        let closes: Vec<_> = frames.iter().filter(|it| it.starts_with("close")).collect();
        let [close] = closes[..] else {
            panic!("{frames:?}");
        };
        let hint = close.strip_prefix("close 1012 retry in ").unwrap();
        let hint: u64 = hint.strip_suffix(" ms").unwrap().parse().unwrap();
        assert!(hint < 5000);
        hints.push(hint);
        if ended == 4 {
            break;
        }
        let next = net.shards[0].poll_timeout().unwrap();
        assert_eq!(next, at(3 + ended));
        net.wait_until(at(3 + ended - 1) + Duration::from_nanos(999_999_999));
        assert_eq!(net.all_frames(ids).concat(), NOTHING, "too early");
        net.wait_until(next);
    }
    hints.dedup();
    assert_eq!(hints.len(), 4, "each has a time of its own");
    assert!(ids.into_iter().all(|id| net.has_ended(id)));
    assert_eq!(net.shards[0].connections(), 0);
    assert_eq!(net.counts(0).dead_peers, 0);
}

#[test]
fn what_is_queued_leaves_before_a_drained_connection_ends() {
    let mut net = Net::new(1, |_| {});
    let (a, b) = (net.connect(0), net.connect(0));
    for id in [a, b] {
        net.subscribe(id, "items", "1");
        net.peer(id).room = Some(0);
    }
    net.change("items", "1", 1);
    let at_once = DrainOptions {
        code: 1001,
        retry_within: Duration::ZERO,
        ..DrainOptions::default()
    };
    net.shards[0].drain(net.now, at_once);
    net.run();
    net.unblock(a);
    assert_eq!(net.frames(a), ["items/1 v1", "close 1001"]);
    assert!(net.has_ended(a));
    // Who takes nothing is not waited for for ever.
    let limit = net.shards[0].poll_timeout().unwrap();
    assert_eq!(limit, net.now + net.node.config().close_time_limit);
    net.wait_until(limit);
    assert_eq!((net.peer(b).closed, net.shards[0].connections()), (1, 0));
}

#[test]
fn draining_may_be_hastened_and_needs_no_connections() {
    let mut net = Net::new(2, |_| {});
    let ids = [(); 4].map(|()| net.connect(0));
    let slowly = DrainOptions {
        over: Duration::from_secs(3600),
        ..DrainOptions::default()
    };
    net.shards[0].drain(net.now, slowly);
    net.run();
    assert_eq!(net.all_frames(ids).concat().len(), 1);
    net.shards[0].drain(net.now, DrainOptions::default());
    net.run();
    let frames = net.all_frames(ids).concat();
    assert_eq!(frames.iter().filter(|it| it.starts_with("close 1012 ")).count(), 3);
    // The other shard has none, and goes on till it is told.
    let own = net.connect(1);
    net.eof(own);
    net.shards[1].drain(net.now, slowly);
    net.run();
    assert_eq!(net.open(1, &Opening::default()), Err(Refused::Draining));
    net.wait_until(at(20));
    assert!(net.shards[1].is_draining());
}

#[test]
fn a_connection_that_has_upgraded_elsewhere_speaks_in_frames_at_once() {
    let mut net = Net::new(1, |config| config.max_upgrading = 1);
    let opening = Opening {
        is_upgraded: true,
        ..Opening::default()
    };
    let (a, b) = (net.open(0, &opening).unwrap(), net.open(0, &opening).unwrap());
    assert_eq!(net.shards[0].may_accept(net.now), Ok(()), "these don't upgrade");
    net.subscribe(a, "items", "1");
    net.receive(b, frame(9, b"b"));
    net.change("items", "1", 1);
    assert_eq!(net.all_frames([a, b]), [["items/1 v1"], ["pong b"]]);
    net.wait_until(net.now + net.node.config().upgrade_time_limit);
    assert_eq!(net.shards[0].connections(), 2);
    // Its first bytes may be bad ones.
    let c = net.open(0, &opening).unwrap();
    net.receive(c, UPGRADE);
    assert!(net.frames(c)[0].starts_with("close 1002"));
    assert_eq!(net.counts(0).violations, 1);
}

#[test]
fn connections_are_limited_over_all_shards() {
    let mut net = Net::new(2, |config| config.max_connections = 2);
    let (a, _) = (net.connect(0), net.connect(1));
    for shard in [0, 1] {
        assert_eq!(net.open(shard, &Opening::default()), Err(Refused::TooManyConnections));
        assert_eq!(net.counts(shard).refused_connections, 1);
    }
    net.eof(a);
    net.connect(1);
    assert_eq!(net.open(0, &Opening::default()), Err(Refused::TooManyConnections));
    net.run();
}

#[test]
fn connections_of_one_address_are_limited_over_all_shards() {
    let mut net = Net::new(2, |config| config.max_connections_per_address = 2);
    let from = |peer: &str| Opening {
        peer: Some(peer.parse().unwrap()),
        ..Opening::default()
    };
    let one = from("192.0.2.1");
    let (a, _) = (net.open(0, &one).unwrap(), net.open(1, &one).unwrap());
    for shard in [0, 1] {
        assert_eq!(net.open(shard, &one), Err(Refused::TooManyFromAddress));
        net.open(shard, &from("192.0.2.2")).unwrap();
        net.open(shard, &Opening::default()).unwrap();
        net.run();
    }
    net.eof(a);
    net.open(1, &one).unwrap();
    assert_eq!(net.open(0, &one), Err(Refused::TooManyFromAddress));
    net.run();
}

#[test]
fn every_end_gives_back_what_was_admitted() {
    type End = (&'static str, fn(&mut Net, ClientId));
    let ends: [End; 14] = [
        ("end of file", |net, id| net.eof(id)),
        ("reset", |net, id| net.handle(id, Input::Closed { conn: id.conn })),
        ("bad request", |net, id| {
            net.receive(id, "nonsense\r\n\r\n");
            assert_eq!(net.shards[0].may_accept(net.now), Ok(()), "it doesn't upgrade any more");
            assert!(net.has_ended(id));
        }),
        ("another page", |net, id| {
            net.receive(id, NOT_FOUND);
            assert!(net.shards[0].may_accept(net.now).is_err(), "it may still upgrade");
            net.eof(id);
        }),
        ("another page, then no answer", |net, id| {
            net.receive(id, NOT_FOUND);
            net.wait_until(net.now + net.node.config().upgrade_time_limit);
        }),
        ("no request", |net, id| {
            net.receive(id, &UPGRADE[..20]);
            net.wait_until(net.now + net.node.config().upgrade_time_limit);
        }),
        ("broken socket", |net, id| {
            net.peer(id).is_broken = true;
            net.receive(id, UPGRADE);
        }),
        ("broken socket while refused", |net, id| {
            net.peer(id).is_broken = true;
            net.receive(id, "nonsense\r\n\r\n");
        }),
        ("upgrade, then the end", |net, id| {
            net.receive(id, UPGRADE);
            assert_eq!(net.shards[0].may_accept(net.now), Ok(()));
            net.eof(id);
        }),
        ("close frame, then silence", |net, id| {
            net.receive(id, UPGRADE);
            net.receive(id, frame(8, &1000u16.to_be_bytes()));
            assert!(net.peer(id).is_shut);
            net.wait_until(net.now + net.node.config().close_time_limit);
        }),
        ("violation", |net, id| {
            net.receive(id, UPGRADE);
            net.receive(id, [0xff; 10]);
            assert!(net.has_ended(id));
        }),
        ("silence", |net, id| {
            net.receive(id, UPGRADE);
            net.wait_until(net.now + net.node.config().dead_after);
        }),
        ("sent away while it upgrades", |net, id| {
            net.node.client(id).close(1000, "").unwrap();
            net.run();
        }),
        ("drained while it upgrades", |net, _| {
            net.shards[0].drain(net.now, DrainOptions::default());
            net.run();
        }),
    ];
    for (name, end) in ends {
        let mut net = Net::new(2, |config| {
            config.max_connections = 1;
            config.max_upgrading = 1;
            config.max_connections_per_address = 1;
        });
        let opening = Opening {
            peer: Some([192, 0, 2, 1].into()),
            ..Opening::default()
        };
        let id = net.open(0, &opening).unwrap();
        assert!(net.shards[0].may_accept(net.now).is_err());
        end(&mut net, id);
        assert_eq!(net.peer(id).closed, 1, "{name}");
        assert_eq!(net.node.admission().open(), 0, "{name}");
        assert_eq!(net.shards[0].may_accept(net.now), Ok(()), "{name}");
        let counts = net.counts(0);
        assert_eq!((counts.opened, counts.closed, counts.connections), (1, 1, 0), "{name}");
        // The next one finds room, by each of the limits.
        let next = net.open(1, &opening).unwrap();
        net.receive(next, UPGRADE);
        net.eof(next);
    }
}

#[test]
fn a_shard_that_is_gone_gives_back_what_was_admitted() {
    let mut net = Net::new(2, |config| {
        config.max_connections = 4;
        config.max_upgrading = 1;
        config.max_connections_per_address = 2;
    });
    let opening = Opening {
        peer: Some([192, 0, 2, 1].into()),
        ..Opening::default()
    };
    let upgraded = net.open(1, &opening).unwrap();
    net.receive(upgraded, UPGRADE);
    net.subscribe(upgraded, "items", "1");
    let closing = net.connect(1);
    net.node.client(closing).close(1000, "").unwrap();
    let stays = net.connect(0);
    net.subscribe(stays, "items", "1");
    net.open(1, &opening).unwrap();
    assert_eq!(net.node.admission().open(), 4);
    assert!(net.shards[1].may_accept(net.now).is_err());
    drop(net.shards.pop());
    assert_eq!(net.node.admission().open(), 1);
    assert_eq!(net.shards[0].may_accept(net.now), Ok(()));
    net.open(0, &opening).unwrap();
    net.open(0, &opening).unwrap();
    net.change("items", "1", 1);
    assert_eq!(net.frames(stays), ["items/1 v1"]);
    let gone = net.node.shard_counters().nth(1).unwrap();
    assert_eq!((gone.connections.get(), gone.subscriptions.get()), (0, 0));
    assert_eq!((gone.opened.get(), gone.closed.get()), (3, 3));
}

#[test]
fn silent_connections_give_way_and_keep_nobody_out() {
    let mut net = Net::new(1, |config| {
        config.max_upgrading = 8;
        config.max_upgrading_per_address = 4;
    });
    let from = |last: u8| Opening {
        peer: Some([192, 0, 2, last].into()),
        ..Opening::default()
    };
    let silent: Vec<_> = (0..100).map(|_| net.open(0, &from(1)).unwrap()).collect();
    net.run();
    assert_eq!((net.shards[0].connections(), net.counts(0).displaced_upgrades), (4, 96));
    assert!(
        silent.iter().take(4).all(|&id| net.peer(id).closed == 0),
        "those that came first have their second"
    );
    // Another address is let in, and finishes.
    assert_eq!(net.shards[0].may_accept(net.now), Ok(()));
    let other = net.open(0, &from(2)).unwrap();
    net.receive(other, UPGRADE);
    // Many addresses fill it, and then the oldest that has had time gives way.
    for last in 3..=6 {
        net.open(0, &from(last)).unwrap();
    }
    assert!(net.shards[0].may_accept(net.now).is_err());
    net.wait_until(net.now + Duration::from_secs(1));
    assert_eq!(net.shards[0].may_accept(net.now), Ok(()));
    let late = net.open(0, &from(7)).unwrap();
    net.receive(late, UPGRADE);
    net.subscribe(late, "items", "1");
    net.change("items", "1", 1);
    assert_eq!(net.counts(0).displaced_upgrades, 97);
    assert_eq!([other, late].map(|id| net.peer(id).closed), [0, 0]);
}

#[test]
fn an_upgrade_request_may_be_long_and_come_in_small_pieces() {
    let mut net = Net::new(1, |config| config.max_upgrade_bytes = 100_000);
    let cookies = format!("\r\nCookie: {}\r\n\r\n", "x".repeat(60_000));
    let request = UPGRADE.replace("\r\n\r\n", &cookies);
    let id = net.open(0, &Opening::default()).unwrap();
    for piece in request.as_bytes().chunks(100) {
        net.receive(id, piece);
    }
    assert!(net.peer(id).received.starts_with(b"HTTP/1.1 101 "));
    // Those that are never finished share a limit: the oldest ends.
    let [a, b, c] = [(); 3].map(|()| net.open(0, &Opening::default()).unwrap());
    for id in [a, b, c] {
        net.receive(id, &request[..40_000]);
    }
    let ended = [a, b, c].map(|id| net.peer(id).closed);
    assert_eq!(ended, [1, 0, 0]);
    net.receive(b, &request[40_000..]);
    assert!(net.peer(b).received.starts_with(b"HTTP/1.1 101 "));
}

#[test]
fn who_asks_is_told_the_limits_of_subscriptions() {
    let mut net = Net::new(1, |config| config.max_subscriptions = 7);
    let id = net.open(0, &Opening::default()).unwrap();
    net.receive(id, UPGRADE.replace("\r\n\r\n", "\r\nentity-sync-limits: ?\r\n\r\n"));
    let answer = String::from_utf8(net.peer(id).received.clone()).unwrap();
    let told = "=\r\nEntity-Sync-Limits: subscriptions=7, key-bytes=1024\r\n\r\n";
    assert!(
        answer.starts_with("HTTP/1.1 101 ") && answer.ends_with(told),
        "{answer}"
    );
}

#[test]
fn refused_upgrades_are_counted_and_told_by_reason() {
    let told = Arc::<Mutex<Vec<String>>>::default();
    let (refusals, incidents) = (told.clone(), told.clone());
    let mut net = Net::new(1, move |config| {
        config.upgrade.hosts = Hosts::Named(Vec::new());
        config.on_refused_upgrade = Some(Arc::new(move |_, reason| {
            refusals.lock().unwrap().push(reason.name().to_owned());
        }));
        config.on_incident = Some(Arc::new(move |incident| {
            incidents.lock().unwrap().push(incident.what.to_string());
        }));
    });
    let host = format!(
        "Host: {}",
        UPGRADE.split_once("Host: ").unwrap().1.split_once('\r').unwrap().0
    );
    for request in [
        UPGRADE.replace("GET /", "GET /x"),
        UPGRADE.replace(&host, "Host: evil.example"),
        UPGRADE.replace("\r\n\r\n", "\r\nOrigin: null\r\n\r\n"),
        "\u{16}\u{3}\u{1}".to_owned(),
    ] {
        let id = net.open(0, &Opening::default()).unwrap();
        net.receive(id, &request);
        assert_eq!(net.peer(id).closed, usize::from(request.len() == 3), "{request:?}");
    }
    let told = told.lock().unwrap();
    assert_eq!(told[..3], ["path", "host", "origin"]);
    assert!(told[3].contains("began with TLS") && told[4] == "tls", "{told:?}");
    let counts = net.node.counters().snapshot();
    let by_reason = [
        counts.refused_upgrades_path,
        counts.refused_upgrades_host,
        counts.refused_upgrades_origin,
        counts.refused_upgrades_tls,
    ];
    assert_eq!((by_reason, net.counts(0).refused_upgrades), ([1; 4], 4));
}
