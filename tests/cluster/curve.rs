//! Nodes and brokers with keys of CURVE, and those who have none.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use entity_sync_tests::node::{Broker, Node};
use entity_sync_tests::program::binary;
use entity_sync_tests::wait_for;

use super::{Cluster, owned, pause, settle};

const REFUSED: &str = "a connection was refused: are the keys right?";

/// New keys in this file. None: this libzmq has no CURVE.
fn new_keys(file: &Path) -> Option<String> {
    let output = Command::new(binary()).arg("zmq-keys").arg(file).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    if said.contains("built without CURVE") {
        println!("this libzmq has no CURVE: not tested");
        assert!(std::env::var_os("REQUIRE_SERVERS").is_none(), "CI's libzmq has CURVE");
        return None;
    }
    assert!(output.status.success(), "{said}");
    assert_eq!(output.stdout.trim_ascii().len(), 40);
    Some(file.to_str().unwrap().to_owned())
}

/// The first of them have the same key, and one more has these flags.
fn mesh(with_keys: usize, others: &[&[&str]]) -> Option<Cluster> {
    let mut cluster = Cluster::prepare(with_keys + others.len());
    let key = new_keys(&cluster.folder.path().join("cluster.key"))?;
    for index in 0..cluster.nodes.len() {
        let more = match index.checked_sub(with_keys) {
            Some(other) => owned(others[other]),
            None => owned(&["--zmq-curve-secret-file", &key]),
        };
        let flags = [cluster.mesh_flags(index), more].concat();
        cluster.nodes[index].set_flags(flags);
        cluster.nodes[index].start();
    }
    Some(cluster)
}

fn peers(node: &Node) -> usize {
    node.cluster()["peers"].as_array().unwrap().len()
}

#[test]
fn in_a_mesh_with_one_key_file_only_those_who_have_it_hear_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let Some(other_key) = new_keys(&folder.path().join("other.key")) else {
        return;
    };
    let Some(cluster) = mesh(2, &[&[], &["--zmq-curve-secret-file", &other_key]]) else {
        return;
    };
    let nodes = &cluster.nodes;
    for node in &nodes[..2] {
        wait_for("the other one", || node.peers("alive") == 1);
    }
    let crowds = cluster.crowds(4, 20, 5);
    for id in 0..20 {
        nodes[id as usize % 2].put(id, &format!("{id} encrypted"));
    }
    settle(&cluster.data(), &crowds[..2]);
    // Each says so: the two refuse the others, and these refuse the two.
    for node in nodes {
        wait_for(&format!("the refusal, {}", node.name), || node.log().contains(REFUSED));
    }
    assert_eq!(nodes.iter().map(peers).collect::<Vec<_>>(), [1, 1, 0, 0]);
    for (stranger, crowd) in nodes[2..].iter().zip(&crowds[2..]) {
        assert_eq!((stranger.count("keys"), stranger.count("digests")), (0, 0));
        assert_eq!(crowd.stale(&cluster.data().rows()).len(), 20, "{} heard", stranger.name);
    }
    cluster.check_logs();
}

/// With one file for all, and with a key for each; the stranger knows the broker's key in the second case only.
#[test]
fn brokers_admit_nodes_by_their_keys() {
    for has_own in [false, true] {
        let mut cluster = Cluster::prepare(3);
        let folder = cluster.folder.path().to_owned();
        let keys = |name: &str| new_keys(&folder.join(name));
        let (Some(of_broker), Some(own), Some(stranger)) = (keys("broker.key"), keys("node.key"), keys("stranger.key"))
        else {
            return;
        };
        let (mut of_list, mut of_node) = (Vec::new(), owned(&["--zmq-curve-secret-file", &of_broker]));
        if has_own {
            of_list = owned(&["--zmq-curve-allow-file", &format!("{own}.pub")]);
            of_node = owned(&["--zmq-curve-secret-file", &own]);
        }
        let by_key = owned(&["--zmq-curve-server-key-file", &format!("{of_broker}.pub")]);
        if has_own {
            of_node.extend(by_key.clone());
        }
        let mut flags = owned(&["--zmq-curve-secret-file", &of_broker]);
        flags.extend(of_list);
        let brokers = [1, 2].map(|it| Broker::start_with(&folder, &format!("broker-{it}"), flags.clone()));
        let mut all = [cluster.flags(), owned(&["--bus", "zmq"])].concat();
        for broker in &brokers {
            all.extend(owned(&["--zmq-broker", &broker.flag()]));
        }
        let mut of_stranger = owned(&["--zmq-curve-secret-file", &stranger]);
        if has_own {
            of_stranger.extend(by_key);
        }
        for (node, more) in cluster.nodes.iter_mut().zip([of_node.clone(), of_node, of_stranger]) {
            node.set_flags([all.clone(), more].concat());
            node.start();
        }
        let nodes = &cluster.nodes;
        for node in &nodes[..2] {
            wait_for("the other one", || node.peers("alive") == 1);
        }
        let crowds = cluster.crowds(4, 20, 5);
        for id in 0..20 {
            nodes[id as usize % 2].put(id, &format!("{id} encrypted"));
        }
        settle(&cluster.data(), &crowds[..2]);
        wait_for("the broker to say so", || brokers[0].log().contains(REFUSED));
        let (status, said) = nodes[2].call("GET", "/readyz", "");
        assert_eq!(status, 503);
        assert!(said.contains("whether both have the right keys of CURVE"), "{said}");
        if has_own {
            // With another key of the broker's in mind, it doesn't understand the refusal.
            wait_for("the refusal", || nodes[2].log().contains(REFUSED));
            let named = "a node whose key of CURVE is not on the list was refused";
            wait_for("its address", || brokers[0].log().contains(named));
        }
        assert_eq!((peers(&nodes[0]), peers(&nodes[2])), (1, 0));
        cluster.check_logs();
    }
}

/// With keys, an address that other machines reach is not refused.
#[test]
fn with_a_key_it_binds_to_any_address() {
    let folder = tempfile::tempdir().unwrap();
    let Some(key) = new_keys(&folder.path().join("cluster.key")) else {
        return;
    };
    let mut node = Node::prepare(folder.path(), "node");
    let data = folder.path().join("data.db");
    let flags = [
        "--bus",
        "zmq",
        "--zmq-bind",
        "0.0.0.0:0",
        "--data",
        data.to_str().unwrap(),
    ];
    node.set_flags([&flags[..], &["--zmq-curve-secret-file", &key]].concat());
    node.start();
    assert_eq!(node.call("GET", "/readyz", "").0, 200);
    node.stop();
}

/// What a peer sends that speaks ZMTP 3.0, has no key, and subscribes to one random topic after the other.
fn flood(address: SocketAddr, mechanism: &[u8], bytes: usize) {
    let mut greeting = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0];
    greeting.extend(mechanism);
    greeting.resize(64, 0);
    greeting.extend(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB");
    let mut sent = 0;
    while sent < bytes {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut is_open = stream.write_all(&greeting).is_ok();
        // Its own greeting, which is not to fill its buffer.
        let _ = stream.read(&mut [0; 1024]);
        sent += greeting.len();
        // A connection that is closed has cost it a handshake; a thousand of them shall do.
        sent += bytes / 1000;
        while is_open && sent < bytes {
            let mut frame = vec![2, 0, 0, 0, 0, 0, 0, 4, 0, 1];
            frame.extend(std::iter::repeat_with(|| fastrand::u8(..)).take(1023));
            is_open = stream.write_all(&frame).is_ok();
            sent += frame.len();
        }
    }
}

#[test]
fn who_has_no_key_cannot_grow_a_node_by_subscriptions() {
    const FLOOD: usize = 8 << 20;
    let Some(cluster) = mesh(1, &[&[]]) else { return };
    let [with_key, without] = &cluster.nodes[..] else {
        panic!("two nodes");
    };
    let grown = |node: &Node, mechanism: &[u8]| {
        let before = node.resident_bytes();
        flood(node.bus(), mechanism, FLOOD);
        // For what is on its way still.
        pause(1.0);
        node.resident_bytes().saturating_sub(before) >> 20
    };
    // The flood does what it is said to do where nobody has a key.
    let grown_without = grown(without, b"NULL");
    assert!(grown_without > 50, "{grown_without} MB");
    for mechanism in [&b"NULL"[..], b"CURVE", b"PLAIN"] {
        let grown = grown(with_key, mechanism);
        println!("{grown} MB with a key, {grown_without} MB without");
        assert!(grown < 10, "{grown} MB");
    }
    assert_eq!(with_key.call("GET", "/readyz", "").0, 200);
    cluster.check_logs();
}
