//! Nodes that meet at an nsqd, as those of the Go original did.

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
