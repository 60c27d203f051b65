//! The "Pitfalls of libzmq" in docs/zeromq.md, each tested against the real library.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use entity_sync_bus::{ClusterConfig, Epoch, NodeId};
use entity_sync_core::Timestamp;
use entity_sync_core::cluster::{Cluster, ClusterInput, ClusterOutput};
use entity_sync_tests::{Client, wait_for};
use entity_sync_zmq::{Broker, BrokerConfig, BrokerEndpoints, Turn, ZmqBus, ZmqConfig};

use super::{Loop, Peer, Store, address, bare_node, cluster, key, mesh};

/// The fd says only once that there is something. With heartbeats a minute apart, nothing else than the fd and the waker
/// makes the loops look, so that a message which is left lying stays there.
#[test]
fn an_edge_is_never_missed() {
    let (a, b) = (address(), address());
    let slow = |it: &mut ClusterConfig| it.heartbeat = Duration::from_secs(60);
    let first = Loop::start(&mesh(&a, &[&b]), slow);
    let second = Loop::start(&mesh(&b, &[&a]), slow);
    let nodes = [&first, &second];
    // They greet each other when the connection comes, so there is no heartbeat to wait for.
    wait_for("digests", || nodes.iter().all(|it| it.counts().digests > 0));
    let mut sent = [0, 0];
    for round in 0..300 {
        // From single messages to more than a turn's budget, one way and both ways at once.
        let burst = [1, 2, 1, 40, 1, 3_000][round % 6];
        for id in 0..burst {
            if round % 3 != 1 {
                first.notify(&format!("{round}-{id}"));
                sent[0] += 1;
            }
            if round % 3 != 0 {
                second.notify(&format!("{round}-{id}"));
                sent[1] += 1;
            }
        }
        wait_for("all keys of the round", || {
            second.counts().keys == sent[0] && first.counts().keys == sent[1]
        });
    }
    for node in nodes {
        assert_eq!((node.counts().gaps, node.counts().repeated), (0, 0));
    }
}

/// More than a turn takes in, with nothing behind it that would make the loop look again.
#[test]
fn a_burst_longer_than_a_turn_is_taken_to_its_end() {
    let (a, bursts) = (address(), address());
    let node = Loop::start(&mesh(&a, &[&bursts]), |it| it.heartbeat = Duration::from_secs(60));
    let context = ::zmq::Context::new();
    let publisher = context.socket(::zmq::PUB).unwrap();
    publisher.set_linger(0).unwrap();
    publisher.set_sndhwm(0).unwrap();
    publisher.bind(&bursts.to_string()).unwrap();
    let burst = |messages: u64| {
        for _ in 0..messages {
            publisher.send("entity-sync.all\0nonsense", 0).unwrap();
        }
    };
    wait_for("a connection", || {
        burst(1);
        node.counts().other_versions > 0
    });
    std::thread::sleep(Duration::from_millis(200));
    let mut seen = node.counts().other_versions;
    for messages in [1, 1_023, 1_024, 1_025, 2_048, 5_000, 50_000, 1] {
        burst(messages);
        seen += messages;
        wait_for("the whole burst", || node.counts().other_versions == seen);
    }
}

/// And more than a turn sends.
#[test]
fn a_turn_ends_although_there_is_more_to_say() {
    let (node, clock) = bare_node();
    let rules = cluster(|it| {
        it.by_interest = true;
        it.buckets = 16_384;
    });
    let waker = std::task::Waker::noop().clone();
    let mut bus = ZmqBus::new(&mesh(&address(), &[]), rules, node.clone(), clock(), waker).unwrap();
    for id in 0..5_000 {
        node.notify(clock(), &key(&id.to_string())).unwrap();
    }
    let mut before = 0;
    let mut turns = 0;
    while bus.process(clock()) == Turn::Again {
        turns += 1;
        let published = bus.view().status().counts.published;
        assert!(published - before <= 1_100, "{published} after {before}");
        before = published;
    }
    assert!(turns >= 3, "{turns} turns");
    assert!(bus.view().status().counts.published > 4_000);
}

/// Subscriptions beyond a SUB's high-water mark are lost silently, and again whenever a publisher comes back. Here there are
/// more of them than the usual mark of 1,000.
#[test]
fn twenty_thousand_keys_survive_a_publishers_restart() {
    let by_interest = |it: &mut ClusterConfig| {
        it.by_interest = true;
        it.buckets = 16_384;
        it.lost_after_heartbeats = 1_000;
    };
    let (a, b) = (address(), address());
    survive_a_restart(&mesh(&a, &[&b]), &mesh(&b, &[&a]), by_interest, 11_000);
}

/// A broker is one who subscribes, too.
#[test]
fn twenty_thousand_keys_survive_it_behind_a_broker() {
    let by_interest = |it: &mut ClusterConfig| {
        it.by_interest = true;
        it.buckets = 16_384;
        it.lost_after_heartbeats = 1_000;
    };
    let (frontend, backend) = (address(), address());
    let _broker = Broker::start(&BrokerConfig::new(frontend.clone(), backend.clone())).unwrap();
    let mut config = ZmqConfig::default();
    config.brokers = vec![BrokerEndpoints { frontend, backend }];
    survive_a_restart(&config, &config, by_interest, 11_000);
}

#[test]
fn twenty_thousand_keys_survive_it_by_default_too() {
    let (a, b) = (address(), address());
    let rules = |it: &mut ClusterConfig| it.lost_after_heartbeats = 1_000;
    survive_a_restart(&mesh(&a, &[&b]), &mesh(&b, &[&a]), rules, 0);
}

fn survive_a_restart(
    of_receiver: &ZmqConfig,
    of_publisher: &ZmqConfig,
    rules: fn(&mut ClusterConfig),
    min_subscriptions: usize,
) {
    const CLIENTS: usize = 20;
    const KEYS_EACH: usize = 1_000;
    let store = Store::default();
    let receiver = Peer::start_with(&store, of_receiver.clone(), rules);
    let id = |number: usize| format!("key {number}");
    let clients: Vec<Client> = (0..CLIENTS)
        .map(|client| {
            let ids: Vec<_> = (0..KEYS_EACH).map(|it| id(client * KEYS_EACH + it)).collect();
            receiver.client(&ids.iter().map(String::as_str).collect::<Vec<_>>())
        })
        .collect();

    // Twice: the second one is a publisher that comes back.
    for run in 0..2u64 {
        let publisher = Loop::start(of_publisher, |it| {
            rules(it);
            it.node = NodeId(7);
        });
        publisher.wait_for_peers(1);
        wait_for("the run", || {
            receiver.counts().new_peers + receiver.counts().restarted_peers == 1 + run
        });
        // By now the subscriptions have left; the last ones are given time to arrive.
        wait_for("the repair", || receiver.member.view().status().waiting_repairs == 0);
        std::thread::sleep(Duration::from_millis(500));
        let before = receiver.counts();
        for number in 0..CLIENTS * KEYS_EACH {
            publisher.notify(&id(number));
            // No more at once than the queues between both can hold: it is about subscriptions here.
            if number % 500 == 499 {
                let so_far = number as u64 + 1;
                wait_for("keys", || {
                    receiver.counts().keys - before.keys + receiver.counts().gaps >= so_far
                });
            }
        }
        let after = receiver.counts();
        assert_eq!(after.keys - before.keys, 20_000, "{after:?}");
        assert_eq!(after.gaps, before.gaps, "{after:?}");
        wait_for("a digest", || {
            receiver.member.view().status().peers[0].used_buckets >= min_subscriptions
        });
        wait_for("reads", || {
            let reads = receiver.reads.lock().unwrap();
            (0..CLIENTS * KEYS_EACH).all(|it| reads.get(&id(it)).is_some_and(|&count| count > run))
        });
        publisher.kill();
    }
    drop(clients);
}

/// A PUB drops what a receiver doesn't take, and says nothing. The receiver notices.
#[test]
fn what_is_dropped_at_the_high_water_mark_is_read_again() {
    let store = Store::default();
    let (a, b) = (address(), address());
    let mut small = mesh(&b, &[&a]);
    small.send_queue = 2;
    let mut slow = mesh(&a, &[&b]);
    slow.receive_queue = 2;
    let sender = Loop::start(&small, |it| it.lost_after_heartbeats = 1_000);
    let receiver = Peer::start_with(&store, slow, |it| it.lost_after_heartbeats = 1_000);
    sender.wait_for_peers(1);
    receiver.wait_for_peers(1);
    let ids: Vec<_> = (0..200).map(|it| it.to_string()).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    let mut client = receiver.client(&ids);
    // Until something was lost for certain: whole buckets' worth of keys, as fast as they go.
    for round in 0.. {
        for id in &ids {
            store.put(id, &format!("{id} in round {round}"));
        }
        for filler in 0..20_000 {
            sender.notify(&format!("filler {filler} {}", "x".repeat(500)));
        }
        for id in &ids {
            sender.notify(id);
        }
        let sent = sender.counts().published;
        wait_for("the last of them", || {
            // Everything that was sent has come, or was given up.
            sender.counts().published >= sent && receiver.member.view().status().peers[0].missing == 0
        });
        if receiver.counts().gaps > 0 {
            break;
        }
        assert!(round < 50, "nothing was dropped: {:?}", receiver.counts());
    }
    // Each ends with its newest state, whichever were lost.
    let newest: std::collections::BTreeSet<String> = {
        let rows = store.0.lock().unwrap();
        ids.iter().map(|&id| rows[id].clone()).collect()
    };
    let mut missing = newest;
    while !missing.is_empty() {
        missing.remove(&client.row());
    }
}

/// One that is stuck doesn't hold up the others.
#[test]
fn a_stuck_receiver_holds_up_nobody() {
    let store = Store::default();
    let (a, b, c) = (address(), address(), address());
    let mut config = mesh(&a, &[&b, &c]);
    config.send_queue = 100;
    let sender = Loop::start(&config, |it| it.lost_after_heartbeats = 1_000);
    let stuck = Loop::start(&mesh(&b, &[&a]), |_| {});
    let receiver = Peer::start(&store, mesh(&c, &[&a]));
    sender.wait_for_peers(2);
    stuck.wait_for_peers(1);
    receiver.wait_for_peers(1);
    stuck.set_stuck(true);
    let mut client = receiver.client(&["1"]);
    // More than fits into any queue on the way.
    for round in 0..50 {
        for filler in 0..1_000 {
            sender.notify(&format!("{filler} {}", "x".repeat(1_000)));
        }
        let row = format!("round {round}");
        store.put("1", &row);
        sender.notify("1");
        client.rows_until(&row);
    }
    // And once it runs again, it notices what it has missed.
    stuck.set_stuck(false);
    let published = sender.counts().published;
    wait_for("the rest", || {
        let peers = stuck.view.status().peers;
        stuck.counts().digests > 0 && peers.iter().all(|it| it.missing == 0) && published <= sender.counts().published
    });
}

/// What is sent right after a connection begins is lost: the subscription is on its way still.
#[test]
fn what_is_sent_before_subscriptions_arrive_is_read_again() {
    let store = Store::default();
    for _ in 0..5 {
        let (a, b) = (address(), address());
        let receiver = Peer::start(&store, mesh(&a, &[&b]));
        let mut client = receiver.client(&["1"]);
        store.put("1", "old");
        receiver.notify("1");
        client.rows_until("old");
        // Nobody hears it yet.
        let sender = Loop::start(&mesh(&b, &[&a]), |_| {});
        store.put("1", "new");
        sender.notify("1");
        client.rows_until("new");
    }
}

/// Whoever comes back is told where the others are at once, not with the next heartbeat.
#[test]
fn who_connects_is_greeted() {
    let (a, b) = (address(), address());
    let seldom = |it: &mut ClusterConfig| it.heartbeat = Duration::from_secs(60);
    let first = Loop::start(&mesh(&a, &[&b]), seldom);
    // Its first digest has gone by now, and nobody heard it.
    wait_for("a digest", || first.counts().digests_sent > 0);
    std::thread::sleep(Duration::from_millis(300));
    let second = Loop::start(&mesh(&b, &[&a]), seldom);
    wait_for("a greeting", || second.counts().digests > 0);
}

/// Connections that come and go don't keep a silent peer alive: [`ClusterInput::Reached`] is no pardon, as `Connected` is.
#[test]
fn greeting_one_does_not_pardon_another() {
    let at = |ms| Timestamp::START + Duration::from_millis(ms);
    let config = |name: &str| {
        let epoch = Epoch {
            started_ms: 1,
            nonce: 1,
        };
        ClusterConfig::new(NodeId::of_name(name), epoch)
    };
    let cluster_of = |name| {
        let waker = std::task::Waker::noop().clone();
        Cluster::new(bare_node().0, config(name), Timestamp::START, waker).unwrap()
    };
    let mut peer = cluster_of("peer");
    peer.handle(at(0), ClusterInput::Connected);
    peer.handle_timeout(at(0));
    let mut digests = Vec::new();
    while let Some(output) = peer.poll_output() {
        if let ClusterOutput::Publish { message, .. } = output {
            digests.push(message.to_vec());
        }
    }
    for (input, is_lost) in [(ClusterInput::Reached, true), (ClusterInput::Connected, false)] {
        let mut node = cluster_of("node");
        node.handle(at(0), ClusterInput::Connected);
        for digest in &digests {
            node.handle(at(0), ClusterInput::Message(digest));
        }
        let mut sent = 0;
        for now in (0..5_000).step_by(100) {
            node.handle(
                at(now),
                match input {
                    ClusterInput::Connected => ClusterInput::Connected,
                    _ => ClusterInput::Reached,
                },
            );
            node.handle_timeout(at(now));
            while node.poll_output().is_some() {
                sent += 1;
            }
        }
        assert!(sent >= 50, "{sent} digests");
        assert_eq!(node.view().status().counts.lost_peers, u64::from(is_lost), "{input:?}");
    }
}

/// Nodes are notified of more than they can send, and still take in what arrives.
#[test]
fn who_is_flooded_with_notifies_still_hears_the_others() {
    let store = Store::default();
    let (a, b) = (address(), address());
    let flooded = Peer::start(&store, mesh(&a, &[&b]));
    let sender = Loop::start(&mesh(&b, &[&a]), |_| {});
    flooded.wait_for_peers(1);
    sender.wait_for_peers(1);
    let mut client = flooded.client(&["1"]);
    let handle = flooded.server.handle().clone();
    let is_over = Arc::new(AtomicBool::new(false));
    let of_thread = is_over.clone();
    let flood = std::thread::spawn(move || {
        let keys: Vec<_> = (0..50_000).map(|it| key(&format!("flood {it}"))).collect();
        while !of_thread.load(Ordering::SeqCst) {
            for key in &keys {
                handle.notify(key).unwrap();
            }
        }
    });
    for round in 0..10 {
        let row = format!("round {round}");
        store.put("1", &row);
        sender.notify("1");
        client.rows_until(&row);
    }
    is_over.store(true, Ordering::SeqCst);
    flood.join().unwrap();
}

/// Whatever comes over a connection: it is counted, and the rest goes on.
#[test]
fn garbage_is_counted_and_dropped() {
    let store = Store::default();
    let (a, b, junk) = (address(), address(), address());
    let node = Peer::start(&store, mesh(&a, &[&b, &junk]));
    let friend = Loop::start(&mesh(&b, &[&a]), |_| {});
    node.wait_for_peers(1);
    friend.wait_for_peers(1);

    let context = ::zmq::Context::new();
    let publisher = context.socket(::zmq::PUB).unwrap();
    publisher.set_linger(0).unwrap();
    publisher.bind(&junk.to_string()).unwrap();
    wait_for("a connection", || node.links().connected_peers == 2);
    let topic = |rest: &[u8]| [b"entity-sync.all\0", rest].concat();
    let frames = [
        topic(b""),
        topic(b"\x01"),
        topic(&[1; 100]),
        topic(&[1, 2, 0, 0]),
        topic(&[255; 1000]),
        topic(&vec![1; 500_000]),
    ];
    let (before, mut sent) = (node.counts(), 0);
    wait_for("malformed messages", || {
        for frame in &frames {
            publisher.send(&frame[..], 0).unwrap();
        }
        // A whole message, but as one of several parts.
        publisher
            .send_multipart([topic(b""), b"more".to_vec(), b"".to_vec()], 0)
            .unwrap();
        sent += 1;
        node.counts().malformed + node.counts().other_versions >= before.malformed + 7 * 3
    });
    assert!(sent >= 3);
    // Longer than any message: libzmq ends the connection.
    publisher.send(&topic(&vec![1; 2_000_000])[..], 0).unwrap();

    // And on the port that others subscribe at.
    let target = a.to_string();
    let target = target.strip_prefix("tcp://").unwrap();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 10_000], &[0; 64], b""] {
        let mut stream = TcpStream::connect(target).unwrap();
        let _ = stream.write_all(bytes);
    }
    let subscriber = context.socket(::zmq::XSUB).unwrap();
    subscriber.set_linger(0).unwrap();
    subscriber.connect(&a.to_string()).unwrap();
    for message in [
        &b"\x01entity-sync.all\0"[..],
        b"\x01entity-sync.all\0",
        b"\x00never",
        b"something",
        &[1; 900],
    ] {
        subscriber.send(message, 0).unwrap();
    }
    let mut client = node.client(&["1"]);
    for round in 0..10 {
        let row = format!("round {round}");
        store.put("1", &row);
        friend.notify("1");
        client.rows_until(&row);
    }
    assert_eq!(node.member.view().status().peers.len(), 1);
}
