//! Peers by name.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use entity_sync_tests::wait_for;
use entity_sync_zmq::{Endpoint, ZmqConfig};

use super::{Loop, Peer, Store, address, mesh};

/// A name server of the test's.
#[derive(Clone, Default)]
struct Names {
    /// `None` fails.
    answer: Arc<Mutex<Option<Vec<SocketAddr>>>>,
    asked: Arc<AtomicU64>,
}

impl Names {
    fn set(&self, endpoints: &[&Endpoint]) {
        let address = |it: &&Endpoint| it.to_string().strip_prefix("tcp://").unwrap().parse().unwrap();
        *self.answer.lock().unwrap() = Some(endpoints.iter().map(address).collect());
    }

    fn fail(&self) {
        *self.answer.lock().unwrap() = None;
    }

    fn wait_until_asked(&self) {
        let before = self.asked.load(Ordering::SeqCst);
        // The first of them may have begun before.
        wait_for("lookups", || self.asked.load(Ordering::SeqCst) >= before + 2);
    }

    fn config(&self, bind: &Endpoint) -> ZmqConfig {
        let mut config = mesh(bind, &[]);
        config.peer_names = vec!["nodes.example:5555".parse().unwrap()];
        config.lookup_every = Duration::from_millis(20);
        config.keep_vanished = Duration::from_millis(200);
        let names = self.clone();
        config.lookup = Some(Arc::new(move |host, port| {
            assert_eq!((host, port), ("nodes.example", 5555));
            names.asked.fetch_add(1, Ordering::SeqCst);
            names
                .answer
                .lock()
                .unwrap()
                .clone()
                .ok_or(io::ErrorKind::TimedOut.into())
        }));
        config
    }
}

#[test]
fn peers_come_and_go_with_the_addresses_of_their_name() {
    let store = Store::default();
    let names = Names::default();
    let (a, b) = (address(), address());
    let first = Peer::start(&store, names.config(&a));
    // It fails, and is tried again.
    wait_for("failures", || first.links().failed_lookups > 0);
    assert!(first.member.view().has_been_connected());
    let second = Peer::start(&store, names.config(&b));
    // All nodes of a headless service, itself among them.
    names.set(&[&a, &b]);
    first.wait_for_peers(1);
    second.wait_for_peers(1);
    wait_for("connections", || first.links().connected_peers == 2);
    let mut client = second.client(&["1"]);
    first.put("1", "by name");
    client.rows_until("by name");

    // While the name can't be looked up, everything stays as it is.
    names.fail();
    names.wait_until_asked();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(first.links().peers, 2);
    // And what has vanished goes, after a while.
    names.set(&[&a]);
    wait_for("the end of a connection", || first.links().peers == 1);
    assert_eq!(first.links().connected_peers, 1);
    names.set(&[&a, &b]);
    wait_for("connections", || first.links().connected_peers == 2);
    first.put("1", "again");
    client.rows_until("again");
}

/// A lookup that takes for ever holds up nothing but itself.
#[test]
fn a_lookup_that_hangs_holds_up_nobody() {
    let store = Store::default();
    let (a, b) = (address(), address());
    let (keep, hang) = std::sync::mpsc::channel::<()>();
    let hang = Mutex::new(hang);
    let mut config = mesh(&a, &[&b]);
    config.peers.push("tcp://nodes.example:5555".parse().unwrap());
    config.lookup = Some(Arc::new(move |_, _| {
        let _ = hang.lock().unwrap().recv();
        Err(io::ErrorKind::TimedOut.into())
    }));
    let mut first = Peer::start(&store, config);
    let second = Loop::start(&mesh(&b, &[&a]), |_| {});
    first.wait_for_peers(1);
    second.wait_for_peers(1);
    let mut client = first.client(&["1"]);
    store.put("1", "meanwhile");
    second.notify("1");
    client.rows_until("meanwhile");
    // Nor does it hold up leaving.
    first.member.leave(Duration::from_secs(10)).expect("all is told");
    wait_for("the goodbye", || {
        second.view.status().peers[0].state == entity_sync_bus::PeerState::Left
    });
    drop(keep);
}

#[test]
fn the_systems_names_are_looked_up_too() {
    let (a, b) = (address(), "tcp://127.0.0.1:0".parse().unwrap());
    let first = Loop::start(&mesh(&b, &[]), |_| {});
    let bound = &first.links.addresses()[0];
    let port = bound.rsplit_once(':').unwrap().1;
    // Given as an endpoint; it may have an IPv6 address, where nobody is.
    let named: Endpoint = format!("tcp://localhost:{port}").parse().unwrap();
    let second = Loop::start(&mesh(&a, &[&named]), |_| {});
    second.wait_for_peers(1);
    wait_for("a connection", || second.links.status().connected_peers == 1);
}
