//! Nodes that all connect to each other.

use std::time::Duration;

use entity_sync_bus::{ClusterSecret, PeerState};
use entity_sync_tests::wait_for;
use entity_sync_zmq::Endpoint;

use super::{Loop, Peer, Store, address, mesh};

#[test]
fn three_nodes_tell_each_other_of_every_change() {
    let store = Store::default();
    let addresses = [address(), address(), address()];
    // Each has its own address among its peers.
    let all: Vec<&Endpoint> = addresses.iter().collect();
    let nodes: Vec<_> = addresses.iter().map(|it| Peer::start(&store, mesh(it, &all))).collect();
    for node in &nodes {
        node.wait_for_peers(2);
        wait_for("connections", || node.links().connected_peers == 3);
        assert_eq!(node.links().peers, 3);
    }
    let mut clients: Vec<_> = nodes.iter().map(|it| it.client(&["1"])).collect();
    for round in 0..30 {
        let row = format!("round {round}");
        nodes[round % 3].put("1", &row);
        for client in &mut clients {
            client.rows_until(&row);
        }
    }
    for node in &nodes {
        let counts = node.counts();
        assert!(counts.echoes > 0, "{counts:?}");
        assert_eq!((counts.gaps, counts.malformed), (0, 0), "{counts:?}");
        // The nodes were new to each other, which may have been seen to only after the clients had come.
        let reads = 30..=30 + counts.repairs;
        assert!(reads.contains(&node.reads_of("1")), "one read for each change");
    }
}

#[test]
fn the_first_node_is_ready_alone() {
    let node = Peer::start(&Store::default(), mesh(&address(), &[&address()]));
    assert!(node.member.view().has_been_connected());
    assert_eq!((node.links().peers, node.links().connected_peers), (1, 0));
}

#[test]
fn a_free_port_is_told_of() {
    let node = Loop::start(&mesh(&"tcp://127.0.0.1:0".parse().unwrap(), &[]), |_| {});
    let [address] = node.links.addresses() else {
        panic!("{:?}", node.links.addresses());
    };
    let port = address.strip_prefix("tcp://127.0.0.1:").expect(address);
    assert_ne!(port.parse::<u16>().unwrap(), 0);
}

#[test]
fn unix_sockets_do_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| -> Endpoint { format!("ipc://{}/{name}", folder.path().display()).parse().unwrap() };
    let (a, b) = (path("a"), path("b"));
    let store = Store::default();
    let first = Peer::start(&store, mesh(&a, &[&b]));
    let second = Peer::start(&store, mesh(&b, &[&a]));
    first.wait_for_peers(1);
    second.wait_for_peers(1);
    wait_for("a connection", || first.links().connected_peers == 1);
    let mut client = second.client(&["1"]);
    first.put("1", "row");
    client.rows_until("row");
}

#[test]
fn ipv6_does_too() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        println!("no IPv6 on this machine: not tested");
        return;
    }
    let first = Loop::start(&mesh(&"tcp://[::1]:0".parse().unwrap(), &[]), |_| {});
    let at: Endpoint = first.links.addresses()[0].parse().unwrap();
    let second = Loop::start(&mesh(&address(), &[&at]), |_| {});
    second.wait_for_peers(1);
    wait_for("a connection", || second.links.status().connected_peers == 1);
}

/// The goodbye, and all that was notified before it, is sent although the sockets are closed right behind it.
#[test]
fn whoever_leaves_has_said_everything_before() {
    let store = Store::default();
    let (a, b) = (address(), address());
    let staying = Peer::start(&store, mesh(&a, &[&b]));
    let mut leaving = Peer::start(&store, mesh(&b, &[&a]));
    staying.wait_for_peers(1);
    leaving.wait_for_peers(1);
    let mut client = staying.client(&["last"]);
    // So much that it can't all be in the system's buffers by the time that the sockets are closed.
    for id in 0..20_000 {
        leaving.notify(&format!("{id} {}", "x".repeat(1_500)));
    }
    leaving.put("last", "of all");
    leaving.member.leave(Duration::from_secs(20)).expect("all is told");
    client.rows_until("of all");
    wait_for("the goodbye", || staying.peers(PeerState::Left) == 1);
    let counts = staying.counts();
    assert_eq!(
        (counts.keys, counts.gaps, counts.lost_peers),
        (20_001, 0, 0),
        "{counts:?}"
    );
    drop(leaving);

    // And the address is free again.
    let again = Peer::start(&store, mesh(&b, &[&a]));
    staying.wait_for_peers(1);
    assert!(again.member.view().has_been_connected());
}

#[test]
fn a_node_that_dies_is_missed_and_what_it_may_have_said_is_read_again() {
    let store = Store::default();
    let (a, b) = (address(), address());
    let staying = Peer::start_with(&store, mesh(&a, &[&b]), |it| it.lost_after_heartbeats = 4);
    let dying = Loop::start(&mesh(&b, &[&a]), |_| {});
    staying.wait_for_peers(1);
    dying.wait_for_peers(1);
    let mut client = staying.client(&["1"]);
    staying.put("1", "before");
    client.rows_until("before");
    store.put("1", "its last change, of which nobody was told");
    dying.kill();
    client.rows_until("its last change, of which nobody was told");
    assert_eq!(staying.peers(PeerState::Lost), 1);
}

#[test]
fn with_a_secret_only_those_who_share_it_are_heard() {
    let store = Store::default();
    let (a, b, c) = (address(), address(), address());
    let secret = |text: &str| ClusterSecret::new(text.as_bytes(), "entity-sync").unwrap();
    let node = Peer::start_with(&store, mesh(&a, &[&b, &c]), |it| {
        it.secret = Some(secret("the cluster's own secret"));
    });
    let friend = Loop::start(&mesh(&b, &[&a]), |it| {
        it.secret = Some(secret("the cluster's own secret"))
    });
    let stranger = Loop::start(&mesh(&c, &[&a]), |it| it.secret = Some(secret("some other secret")));
    node.wait_for_peers(1);
    friend.wait_for_peers(1);
    stranger.notify("1");
    wait_for("forged messages", || node.counts().forged > 1);
    friend.notify("1");
    wait_for("a key", || node.counts().keys == 1);
    assert_eq!(node.member.view().status().peers.len(), 1);
}

#[test]
fn applications_with_other_prefixes_do_not_hear_each_other() {
    let store = Store::default();
    let (a, b, c) = (address(), address(), address());
    let node = Peer::start_with(&store, mesh(&a, &[&b, &c]), |it| it.prefix = "shop".to_owned());
    let same = Loop::start(&mesh(&b, &[&a]), |it| it.prefix = "shop".to_owned());
    // What begins the same.
    let other = Loop::start(&mesh(&c, &[&a]), |it| it.prefix = "shop-2".to_owned());
    node.wait_for_peers(1);
    same.wait_for_peers(1);
    wait_for("both connections", || node.links().connected_peers == 2);
    other.notify("1");
    same.notify("2");
    wait_for("a key", || node.counts().keys == 1);
    assert_eq!((node.counts().malformed, node.counts().new_peers), (0, 1));
}
