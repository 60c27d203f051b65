//! Whom the shard gives up, and when: not because nobody looked for a while.

use super::*;

const PONG: u8 = 10;

/// Answers the pings that came.
fn answer(net: &mut Net, id: ClientId) -> usize {
    let pings = net.frames(id);
    assert!(pings.iter().all(|it| it == "ping"), "{pings:?}");
    if !pings.is_empty() {
        net.receive(id, frame(PONG, b""));
    }
    pings.len()
}

#[test]
fn time_in_which_nobody_looked_counts_against_nobody() {
    let mut net = Net::new(1, |_| {});
    let [a, silent, closing] = [(); 3].map(|()| net.connect(0));
    let upgrading = net.open(0, &Opening::default()).unwrap();
    net.receive(closing, frame(8, &1000u16.to_be_bytes()));
    let ends = |net: &mut Net| [a, silent, closing, upgrading].map(|id| net.peer(id).closed);
    net.freeze_until(net.now + Duration::from_secs(1000));
    assert_eq!(ends(&mut net), [0; 4]);
    // Now they have the rest of their time, and then it is over.
    let config = net.node.config().clone();
    let thawed = net.now;
    net.wait_until(thawed + config.close_time_limit);
    assert_eq!(ends(&mut net), [0, 0, 1, 0]);
    net.wait_until(thawed + config.upgrade_time_limit);
    assert_eq!(ends(&mut net), [0, 0, 1, 1]);
    while net.now < thawed + config.dead_after {
        net.wait_until(net.now + Duration::from_secs(1));
        answer(&mut net, a);
    }
    assert_eq!(ends(&mut net), [0, 1, 1, 1]);
    assert_eq!(net.frames(silent).len(), 2, "asked twice");
}

#[test]
fn a_client_whose_pong_waits_is_not_taken_for_dead_whenever_it_is_read() {
    let mut net = Net::new(1, |config| {
        config.ping_interval = Duration::from_secs(1);
        config.dead_after = Duration::from_secs(3);
    });
    let ids = [(); 50].map(|()| net.connect(0));
    net.wait_until(at(1));
    assert_eq!(net.all_frames(ids).concat().len(), 50);
    // All pongs are in their sockets, and the driver reads half of them before it looks at the time.
    net.now = at(5);
    for (index, id) in ids.into_iter().enumerate() {
        if index == 25 {
            net.freeze_until(net.now);
        }
        let conn = id.conn;
        net.shards[0].handle(
            net.now,
            Input::Received {
                conn,
                bytes: &mut frame(PONG, b"")[..],
            },
        );
    }
    for _ in 0..100 {
        net.wait_until(net.now + Duration::from_millis(100));
        for id in ids {
            answer(&mut net, id);
        }
    }
    assert_eq!((net.counts(0).connections, net.counts(0).dead_peers), (50, 0));
}

#[test]
fn a_driver_that_has_not_read_everything_says_so_by_an_earlier_time() {
    let mut net = Net::new(1, |_| {});
    let a = net.connect(0);
    net.wait_until(at(59));
    // It has read all that came until then, and goes on for a while.
    let read_until = net.now;
    for _ in 0..100 {
        net.now = net.now + Duration::from_millis(100);
        net.shards[0].handle_timeout(read_until);
        assert!(net.shards[0].poll_output(net.now).is_none());
    }
    assert_eq!(net.counts(0).connections, 1);
    net.receive(a, frame(PONG, b""));
    net.shards[0].handle_timeout(net.now);
    net.run();
    assert_eq!(net.counts(0).connections, 1);
}

#[test]
fn pings_keep_the_phases_that_they_are_spread_over() {
    const STEP: Duration = Duration::from_millis(100);
    let mut net = Net::new(1, |_| {});
    // A mass reconnect.
    let ids = [(); 64].map(|()| net.connect(0));
    let interval = net.node.config().ping_interval;
    // When each was pinged, in real time since the last freeze.
    let round = |net: &mut Net| {
        let began = net.now;
        let mut at = [Duration::ZERO; 64];
        while net.now < began + interval {
            net.wait_until(net.now + STEP);
            for (id, at) in ids.into_iter().zip(&mut at) {
                if answer(net, id) > 0 {
                    assert!(at.is_zero(), "two in one interval");
                    *at = net.now.since(began);
                }
            }
        }
        at
    };
    let first = round(&mut net);
    let (min, max) = (first.iter().min().unwrap(), first.iter().max().unwrap());
    assert!(*min > interval / 3 && *max - *min > interval / 3, "{min:?} to {max:?}");
    assert_eq!(round(&mut net), first);
    // Two of them at most come at once afterwards.
    net.freeze_until(net.now + 3 * interval);
    for id in ids {
        answer(&mut net, id);
    }
    let after = round(&mut net);
    let mut steps: Vec<_> = after.iter().map(|at| at.as_millis() / 1000).collect();
    steps.sort_unstable();
    steps.dedup();
    assert!(steps.len() > 8, "in step: {after:?}");
    assert_eq!(round(&mut net), after);
}

#[test]
fn a_peer_is_asked_before_it_is_given_up_however_short_its_time() {
    let mut net = Net::new(1, |config| config.dead_after = Duration::from_secs(10));
    let [a, silent] = [(); 2].map(|()| net.connect(0));
    assert!(net.node.config().ping_interval > net.node.config().dead_after);
    for _ in 0..300 {
        net.wait_until(net.now + Duration::from_millis(100));
        answer(&mut net, a);
    }
    assert_eq!([a, silent].map(|id| net.peer(id).closed), [0, 1]);
    assert!(!net.frames(silent).is_empty());
}

/// Answers nothing by itself.
#[derive(Default)]
struct Holder(Mutex<Option<Reply>>);

impl Resolve for Holder {
    fn resolve(&self, _: Request, reply: Reply) {
        *lock(&self.0) = Some(reply);
    }
}

#[test]
fn reads_are_not_given_up_because_nobody_looked() {
    let holder = Arc::new(Holder::default());
    let wakers = vec![Waker::noop().clone()];
    let (node, mut shards) = Node::new(Config::new(Seed(1, 2)), holder.clone(), wakers);
    let opening = Opening {
        is_upgraded: true,
        ..Opening::default()
    };
    let conn = shards[0].open_with(at(0), &opening).unwrap();
    let subscribe = r#"{"action":"subscribe","body":{"entity":"items","id":"1"}}"#;
    let mut bytes = frame(1, subscribe.as_bytes());
    shards[0].handle(
        at(0),
        Input::Received {
            conn,
            bytes: &mut bytes,
        },
    );
    node.notify(at(0), &key("items", "1")).unwrap();
    shards[0].handle_timeout(at(30));
    assert_eq!(node.counters().timed_out_reads.get(), 0);
    let reply = lock(&holder.0).take().unwrap();
    reply.send(at(30), Ok(Rows::one("in time"))).unwrap();
    assert_eq!(node.counters().late_reads.get(), 0);
    // One that does take too long, though somebody looks.
    node.notify(at(31), &key("items", "1")).unwrap();
    for ms in 0..=5_000 {
        shards[0].handle_timeout(at(31) + Duration::from_millis(ms));
    }
    assert_eq!(node.counters().timed_out_reads.get(), 1);
}
