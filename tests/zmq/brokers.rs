//! Nodes that connect to forwarders.

use entity_sync_bus::{Health, Severity};
use entity_sync_tests::wait_for;
use entity_sync_zmq::{Broker, BrokerConfig, BrokerEndpoints, Endpoint, ZmqConfig};

use super::{Loop, Peer, Store, address, mesh};

struct Place {
    frontend: Endpoint,
    backend: Endpoint,
}

impl Place {
    fn new() -> Self {
        Self {
            frontend: address(),
            backend: address(),
        }
    }

    fn start(&self) -> Broker {
        Broker::start(&BrokerConfig::new(self.frontend.clone(), self.backend.clone())).unwrap()
    }
}

fn config(places: &[&Place]) -> ZmqConfig {
    let mut config = ZmqConfig::default();
    let endpoints = |it: &&Place| BrokerEndpoints {
        frontend: it.frontend.clone(),
        backend: it.backend.clone(),
    };
    config.brokers = places.iter().map(endpoints).collect();
    config
}

#[test]
fn a_broker_forwards_and_may_be_killed_and_started_again() {
    let store = Store::default();
    let place = Place::new();
    let nodes = [0, 1].map(|_| Peer::start_with(&store, config(&[&place]), |it| it.lost_after_heartbeats = 1_000));
    // It isn't there yet, so nobody is ready.
    assert!(nodes.iter().all(|it| !it.member.view().has_been_connected()));
    let broker = place.start();
    for node in &nodes {
        node.wait_for_peers(1);
        wait_for("the connection", || node.member.view().status().is_connected);
        assert_eq!((node.links().brokers, node.links().connected_brokers), (1, 1));
    }
    let mut client = nodes[1].client(&["1", "2"]);
    nodes[0].put("1", "by the broker");
    client.rows_until("by the broker");
    assert!(
        broker.counts().forwarded > 0 && broker.counts().dropped == 0,
        "{:?}",
        broker.counts()
    );
    assert_eq!((nodes[0].counts().repairs, nodes[1].counts().repairs), (0, 0));

    broker.stop();
    for node in &nodes {
        wait_for("the loss", || !node.member.view().status().is_connected);
        assert_eq!(node.links().connected_brokers, 0);
    }
    // Nobody is told of these, until the broker is back.
    nodes[0].put("1", "meanwhile");
    nodes[0].put("2", "meanwhile, too");
    let _broker = place.start();
    let mut rows = [client.row(), client.row()];
    rows.sort();
    assert_eq!(rows, ["meanwhile", "meanwhile, too"]);
    for node in &nodes {
        wait_for("the connection", || node.member.view().status().is_connected);
        assert_eq!(node.counts().lost_peers, 0);
    }
}

#[test]
fn of_two_brokers_one_may_fail_and_nothing_is_read_twice() {
    let store = Store::default();
    let places = [Place::new(), Place::new()];
    let mut brokers = places.each_ref().map(|it| Some(it.start()));
    let all: Vec<_> = places.iter().collect();
    let nodes = [0, 1].map(|_| Peer::start_with(&store, config(&all), |it| it.lost_after_heartbeats = 1_000));
    for node in &nodes {
        node.wait_for_peers(1);
        wait_for("both brokers", || node.links().connected_brokers == 2);
    }
    let mut client = nodes[1].client(&["1"]);
    // Whichever of them dies, and while it does.
    let mut round = 0;
    let mut change = |client: &mut entity_sync_tests::Client| {
        for _ in 0..20 {
            round += 1;
            let row = format!("round {round}");
            nodes[0].put("1", &row);
            client.rows_until(&row);
        }
        round
    };
    let rounds = change(&mut client);
    wait_for("repeats", || nodes[1].counts().repeated > 0);
    // And for the other node, which was new: it is looked at again whenever the system gets round to it.
    let most = rounds + nodes[1].counts().repairs;
    assert!(nodes[1].reads_of("1") <= most, "what comes twice is read once");
    for which in [0, 1] {
        brokers[which] = None;
        wait_for("the loss", || nodes[1].links().connected_brokers == 1);
        change(&mut client);
        assert!(nodes[1].member.view().status().is_connected);
        brokers[which] = Some(places[which].start());
        for node in &nodes {
            wait_for("both brokers", || node.links().connected_brokers == 2);
        }
        change(&mut client);
    }
    assert_eq!(nodes[1].counts().lost_peers, 0);
}

/// What is no message of a cluster's node goes no further than the broker.
#[test]
fn a_broker_forwards_only_what_nodes_send() {
    let store = Store::default();
    let place = Place::new();
    let broker = place.start();
    let node = Peer::start(&store, config(&[&place]));
    let friend = Loop::start(&config(&[&place]), |_| {});
    node.wait_for_peers(1);
    friend.wait_for_peers(1);
    let context = ::zmq::Context::new();
    let publisher = context.socket(::zmq::PUB).unwrap();
    publisher.set_linger(0).unwrap();
    publisher.connect(&place.frontend.to_string()).unwrap();
    let subscriber = context.socket(::zmq::XSUB).unwrap();
    subscriber.set_linger(0).unwrap();
    subscriber.connect(&place.backend.to_string()).unwrap();
    wait_for("what is dropped", || {
        publisher
            .send_multipart(["entity-sync.all\0", "of", "parts"], 0)
            .unwrap();
        subscriber.send("no subscription", 0).unwrap();
        broker.counts().dropped >= 20
    });
    publisher
        .send(&[b"entity-sync.all\0", &vec![0; 2_000_000][..]].concat()[..], 0)
        .unwrap();
    assert_eq!(node.counts().malformed, 0);
    let mut client = node.client(&["1"]);
    store.put("1", "as ever");
    friend.notify("1");
    client.rows_until("as ever");
    assert!(broker.is_running());
}

/// With heartbeats a minute apart nothing but the broker's own attention moves messages.
#[test]
fn a_broker_misses_no_edge() {
    let place = Place::new();
    let _broker = place.start();
    let rare = |it: &mut entity_sync_bus::ClusterConfig| it.heartbeat = std::time::Duration::from_secs(60);
    let first = Loop::start(&config(&[&place]), rare);
    let second = Loop::start(&config(&[&place]), rare);
    let nodes = [&first, &second];
    // Not by its fd, but when it is looked after anyway: here, when it is woken.
    wait_for("digests", || {
        for node in nodes {
            node.notify("wake up");
        }
        nodes.iter().all(|it| it.counts().digests > 0)
    });
    // What was on its way then has arrived.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let mut keys = nodes.map(|it| it.counts().keys);
    for round in 0..100 {
        let burst = [1, 2, 1, 700][round % 4];
        for id in 0..burst {
            first.notify(&format!("{round}-{id}"));
            second.notify(&format!("{round}-{id}"));
        }
        keys = keys.map(|it| it + burst);
        wait_for("all keys of the round", || nodes.map(|it| it.counts().keys) == keys);
    }
}

#[test]
fn a_mesh_and_a_broker_go_together() {
    let store = Store::default();
    let place = Place::new();
    let _broker = place.start();
    let (a, b) = (address(), address());
    let mut both = mesh(&a, &[&b]);
    both.brokers = config(&[&place]).brokers;
    let middle = Peer::start(&store, both);
    let of_mesh = Loop::start(&mesh(&b, &[&a]), |_| {});
    let of_broker = Loop::start(&config(&[&place]), |_| {});
    middle.wait_for_peers(2);
    of_mesh.wait_for_peers(1);
    of_broker.wait_for_peers(1);
    let mut client = middle.client(&["1"]);
    for (node, row) in [(&of_mesh, "of the mesh"), (&of_broker, "of the broker")] {
        store.put("1", row);
        node.notify("1");
        client.rows_until(row);
    }
}

/// The parts that are in trouble, and how much that matters.
fn troubles(health: &Health) -> Vec<(String, Severity)> {
    let troubles = health.troubles().into_iter();
    troubles.map(|it| (it.part, it.severity)).collect()
}

#[test]
fn which_broker_is_down_is_reported() {
    let places = [Place::new(), Place::new()];
    let node = Peer::start(&Store::default(), config(&[&places[0], &places[1]]));
    let health = node.server.handle().health();
    let name = |which: usize| format!("zmq broker {},{}", places[which].frontend, places[which].backend);
    let not_ready = |which| (name(which), Severity::NotReady);
    // None is there yet.
    let mut none = vec![not_ready(0), not_ready(1)];
    none.sort();
    none.insert(0, ("bus".to_owned(), Severity::NotReady));
    assert_eq!(troubles(health), none);
    let mut brokers = places.each_ref().map(|it| Some(it.start()));
    wait_for("both brokers", || troubles(health).is_empty());
    for which in [0, 1] {
        brokers[which] = None;
        wait_for("one to be missing", || {
            troubles(health) == [(name(which), Severity::Degraded)]
        });
        assert!(health.is_ready());
        assert!(health.troubles()[0].message.starts_with("not connected: "));
        brokers[which] = Some(places[which].start());
        wait_for("both brokers again", || troubles(health).is_empty());
    }
    brokers = [None, None];
    wait_for("all to be missing", || troubles(health) == none);
    drop(brokers);
}

/// One that takes what nodes publish and brings it to nobody: it is connected to, and everything looks fine.
#[test]
fn a_node_behind_a_broker_that_forwards_nothing_is_not_ready() {
    let place = Place::new();
    let context = ::zmq::Context::new();
    let bound = |kind, endpoint: &Endpoint| {
        let socket = context.socket(kind).unwrap();
        socket.set_linger(0).unwrap();
        socket.bind(&endpoint.to_string()).unwrap();
        socket
    };
    let sides = [bound(::zmq::SUB, &place.frontend), bound(::zmq::PUB, &place.backend)];
    let node = Peer::start_with(&Store::default(), config(&[&place]), |it| it.lost_after_heartbeats = 5);
    wait_for("the connection", || node.member.view().status().is_connected);
    let health = node.server.handle().health();
    assert_eq!(troubles(health), [("bus".to_owned(), Severity::NotReady)]);
    let said = || health.troubles()[0].message.clone();
    assert!(said().contains("has not yet heard its own first message"), "{}", said());
    wait_for("it to be deaf", || said().contains("does not come back"));
    drop(sides);
    let _broker = wait_for_a_free(&place);
    wait_for("it to hear itself", || troubles(health).is_empty());
}

/// Sockets of another context are closed a moment after they were dropped.
fn wait_for_a_free(place: &Place) -> Broker {
    let mut broker = None;
    wait_for("the addresses", || {
        let config = BrokerConfig::new(place.frontend.clone(), place.backend.clone());
        broker = Broker::start(&config).ok();
        broker.is_some()
    });
    broker.unwrap()
}

#[test]
fn which_peer_of_a_list_is_down_is_reported() {
    let (a, b) = (address(), address());
    let node = Peer::start(&Store::default(), mesh(&a, &[&a, &b]));
    let health = node.server.handle().health();
    let missing = [(format!("zmq peer {b}"), Severity::Degraded)];
    wait_for("the peer to be missing", || troubles(health) == missing);
    let peer = Loop::start(&mesh(&b, &[]), |_| {});
    wait_for("the peer", || troubles(health).is_empty());
    peer.kill();
    wait_for("the peer to be missing again", || troubles(health) == missing);
}
