//! Nodes that meet at an nsqd, as those of the Go original did.

use std::time::{Duration, Instant};

use entity_sync::{Entity, EntityKey, EntitySync, Rows};
use entity_sync_bus::{PlainConfig, plain};
use entity_sync_nsq::{Config, Nsq};
use entity_sync_tests::nsqd::Nsqd;
use entity_sync_tests::{Client, wait_for};

use super::{Cluster, Costs, Meanwhile, owned, pause, settle};

fn start(nsqd: &Nsqd) -> Cluster {
    let mut cluster = Cluster::prepare(2);
    let bus = owned(&[
        "--bus",
        "nsq",
        "--nsqd",
        &nsqd.address().to_string(),
        "--entity",
        "items",
    ]);
    let flags = [cluster.flags(), bus].concat();
    cluster.nodes.iter_mut().for_each(|it| it.set_flags(flags.clone()));
    cluster.nodes.iter_mut().for_each(|it| it.start());
    for node in &cluster.nodes {
        wait_for("the bus", || node.call("GET", "/readyz", "").0 == 200);
    }
    cluster
}

#[test]
fn each_notify_is_one_push_on_both_nodes_and_so_is_one_of_the_original() {
    let nsqd = Nsqd::start();
    let cluster = start(&nsqd);
    assert_eq!(nsqd.channels("items").len(), 2);
    // Everything is looked at once when a node is connected: let that be over.
    pause(1.0);
    let mut clients = Vec::from_iter(cluster.nodes.iter().map(|it| Client::connect(it.clients)));
    cluster.data().write([(100, "100 snapshot".to_owned())]);
    for client in &mut clients {
        client.subscribe("items", "100");
        assert_eq!(client.row(), "100 snapshot");
    }
    for round in 0..20 {
        let row = format!("100 round {round}");
        cluster.nodes[round % 2].put(100, &row);
        for client in &mut clients {
            assert_eq!(client.row(), row);
        }
    }
    // As Go's encoder writes it.
    nsqd.publish("items", r#"{"entity":"items","id":"100"}"#);
    for client in &mut clients {
        assert_eq!(client.row(), "100 round 19");
        // And no more than that.
        assert_eq!(client.sync(), [""; 0]);
    }
    for node in &cluster.nodes {
        assert!(node.count("repairs") <= 1 && node.count("unconfirmed") == 0);
        assert!(node.count("confirmed") >= 10);
    }
    cluster.check_logs();
}

#[test]
fn what_changes_while_nsqd_is_down_is_repaired_when_it_is_back() {
    let mut nsqd = Nsqd::start();
    let cluster = start(&nsqd);
    let crowds = cluster.crowds(10, 50, 5);
    for id in 0..50 {
        cluster.nodes[id % 2].put(id, &format!("{id} before"));
    }
    settle(&cluster.data(), &crowds);
    let before = cluster.costs();
    nsqd.kill();
    for node in &cluster.nodes {
        wait_for("the loss", || node.cluster()["connected"] == false);
    }
    for id in 0..50 {
        cluster.nodes[id % 2].put(id, &format!("{id} meanwhile"));
    }
    let truth = cluster.data().rows();
    // Each node has told its own clients what it was told.
    for crowd in &crowds {
        wait_for("the node's own changes", || crowd.stale(&truth).len() <= 25);
    }
    assert!(
        crowds.iter().any(|it| !it.stale(&truth).is_empty()),
        "there is no bus between them"
    );
    nsqd.restart();
    settle(&cluster.data(), &crowds);
    for (node, before) in cluster.nodes.iter().zip(before) {
        wait_for("the bus", || node.cluster()["connected"] == true);
        let costs = Costs::of(node).since(before);
        assert!(costs.sweeps >= 1, "{costs:?}");
        // What could not be published is published late, and comes to both.
        costs.check(Meanwhile::changes(2 * 50, 50, false));
    }
    cluster.check_logs();
}

/// Three times 10,000, which is more than a channel of nsqd's holds.
#[test]
fn bursts_arrive_on_both_nodes() {
    let nsqd = Nsqd::start();
    let cluster = start(&nsqd);
    for burst in 0..3 {
        let keys = (0..10_000).map(|id| format!(r#"{{"entity":"items","id":"{burst}-{id}"}}"#));
        let body = format!("[{}]", Vec::from_iter(keys).join(","));
        assert_eq!(cluster.nodes[0].call("POST", "/notify", &body).0, 202);
    }
    for node in &cluster.nodes {
        wait_for("all messages", || node.count("messages") >= 30_000);
        assert_eq!(node.count("messages"), 30_000);
        assert_eq!(node.count("unechoed"), 0);
    }
    assert_eq!(nsqd.dropped(), 0);
    cluster.check_logs();
}

/// What nsqd drops for the node itself, that finds out.
#[test]
fn what_nsqd_drops_is_published_again() {
    let nsqd = Nsqd::start();
    let cluster = start(&nsqd);
    nsqd.set_mem_queue_size(0);
    let mut clients = Vec::from_iter(cluster.nodes.iter().map(|it| Client::connect(it.clients)));
    for client in &mut clients {
        client.subscribe("items", "100");
        client.sync();
    }
    cluster.nodes[0].put(100, "100 dropped");
    wait_for("the drop", || nsqd.dropped() == 2);
    nsqd.set_mem_queue_size(10_000);
    for client in &mut clients {
        assert_eq!(client.row(), "100 dropped");
    }
    // Everything is looked at once after connecting, which may have been after the change.
    wait_for("the echo to be missed", || cluster.nodes[0].count("unechoed") == 1);
}

fn job(nsqd: std::net::SocketAddr) -> EntitySync {
    let nsq = Nsq::new(Config::new([format!("tcp://{nsqd}")])).unwrap();
    let sync = EntitySync::builder()
        .entity("items", Entity::read(|_| Ok(Rows::one("{}"))))
        .bus(plain(nsq, PlainConfig::default()))
        .start()
        .unwrap();
    for id in 0..100 {
        sync.notify(&EntityKey::new("items", &id.to_string()).unwrap()).unwrap();
    }
    sync
}

#[test]
fn a_job_that_notifies_and_ends_has_told_nsqd() {
    let nsqd = Nsqd::start();
    assert_eq!(job(nsqd.address()).shutdown(Duration::from_secs(20)), Ok(()));
    assert_eq!(nsqd.count(b"PUB items\n"), 100);
    // One that goes on can wait, too.
    let sync = job(nsqd.address());
    assert_eq!(sync.flush(Duration::from_secs(20)), Ok(()));
    assert_eq!(nsqd.count(b"PUB items\n"), 200);
}

#[test]
fn a_job_without_nsqd_says_what_was_not_delivered() {
    let start = Instant::now();
    let undelivered = job(Nsqd::free_address())
        .shutdown(Duration::from_millis(300))
        .unwrap_err();
    assert_eq!(undelivered.keys.len(), 100);
    assert!(start.elapsed() < entity_sync_tests::PATIENCE);
}
