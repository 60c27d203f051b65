//! Nodes that connect to each other, and what they make of each other when nothing goes wrong.

use entity_sync_tests::load::Changes;
use entity_sync_tests::{Client, wait_for};

use super::{Cluster, Costs, Meanwhile, crowd, owned, pause, settle, wait_until_subscribed};

#[test]
fn three_nodes_with_clients_and_changes_on_all() {
    let cluster = Cluster::mesh(3);
    let crowds = cluster.crowds(40, 100, 5);
    let before = cluster.costs();
    let load = cluster.load(&[0, 1, 2], 100);
    pause(4.0);
    let changes = load.stop();
    settle(&cluster.data(), &crowds);
    assert!(changes.done >= 50, "{changes:?}");
    assert_eq!((changes.refused, changes.unanswered), (0, 0));
    for (node, before) in cluster.nodes.iter().zip(before) {
        Costs::of(node).since(before).check(Meanwhile {
            changes,
            subscriptions: 0,
            keys: 100,
            is_lossy: false,
        });
    }
    cluster.check_logs();
}

#[test]
fn a_node_that_joins_late_hears_and_is_heard() {
    let mut cluster = Cluster::prepare(3);
    for index in 0..3 {
        let flags = cluster.mesh_flags(index);
        cluster.nodes[index].set_flags(flags);
    }
    cluster.nodes[..2].iter_mut().for_each(|it| it.start());
    cluster.wait_for_peers();
    pause(0.3);
    let mut crowds = cluster.crowds(20, 100, 10);
    let before: Vec<_> = cluster.nodes[..2].iter().map(Costs::of).collect();
    let load = cluster.load(&[0, 1, 2], 100);
    pause(1.0);
    // Its clients are there before it hears anyone.
    crowds.push(crowd(&cluster.nodes[2], 20, 100, 10));
    cluster.nodes[2].start();
    cluster.wait_for_peers();
    wait_until_subscribed(&crowds[2]);
    pause(1.0);
    let changes = load.stop();
    settle(&cluster.data(), &crowds);
    assert_eq!(changes.refused, 0, "{changes:?}");
    for (node, before) in cluster.nodes.iter().zip(before) {
        let costs = Costs::of(node).since(before);
        assert!(costs.runs >= 1, "{costs:?}");
        costs.check(Meanwhile {
            changes,
            subscriptions: 0,
            keys: 100,
            // What it said before they had subscribed to it.
            is_lossy: true,
        });
    }
    Costs::of(&cluster.nodes[2]).check(Meanwhile {
        changes,
        subscriptions: crowds[2].tally().subscriptions,
        keys: 100,
        is_lossy: true,
    });
    cluster.check_logs();
}

#[test]
fn nodes_that_start_at_once_share_a_new_file() {
    for _ in 0..4 {
        let mut cluster = Cluster::prepare(3);
        for index in 0..3 {
            let flags = cluster.mesh_flags(index);
            cluster.nodes[index].set_flags(flags);
        }
        cluster.nodes.iter_mut().for_each(|it| it.spawn());
        for (number, node) in cluster.nodes.iter_mut().enumerate() {
            node.wait_until_up();
            node.put(number, "row");
        }
        assert_eq!(cluster.data().rows().len(), 3);
        cluster.check_logs();
    }
}

#[test]
fn who_leaves_says_so_and_who_dies_is_missed() {
    let mut cluster = Cluster::mesh(3);
    let crowds = cluster.crowds(10, 50, 5);
    for id in 0..50 {
        cluster.nodes[0].put(id, &format!("{id} first"));
    }
    settle(&cluster.data(), &crowds);
    let before = cluster.costs();

    let view = cluster.nodes[0].cluster();
    assert_eq!(view["connected"], true, "{view}");
    assert_eq!(view["peers"].as_array().unwrap().len(), 2, "{view}");
    for peer in view["peers"].as_array().unwrap() {
        assert_eq!((&peer["state"], &peer["gaps"]), (&"alive".into(), &0.into()), "{view}");
        assert!(peer["heard_ms_ago"].as_u64().unwrap() < 30_000, "{view}");
    }
    wait_for("what the first has said to be shown", || {
        let heard = cluster.nodes[1].cluster();
        let mut peers = heard["peers"].as_array().unwrap().iter();
        let first = peers.find(|it| it["node"] == view["node"]).unwrap();
        assert_eq!(first["epoch"], view["epoch"], "{heard}");
        // 50 keys, of which hardly any share a bucket; what comes while the bus is busy shares a message.
        first["buckets"].as_u64() > Some(30) && first["messages"].as_u64() > Some(0)
    });

    cluster.nodes[2].stop();
    for node in &cluster.nodes[..2] {
        wait_for("the goodbye", || node.peers("left") == 1);
    }
    // Longer than it takes to miss somebody.
    pause(4.0);
    for (node, before) in cluster.nodes[..2].iter().zip(&before) {
        let costs = Costs::of(node).since(*before);
        assert_eq!((costs.sweeps, costs.repairs, costs.reads), (0, 0, 0), "{costs:?}");
        assert_eq!((node.peers("left"), node.peers("alive")), (1, 1));
    }

    let rows = crowds[0].tally().rows;
    cluster.nodes[1].kill();
    let survivor = &cluster.nodes[0];
    wait_for("the loss", || survivor.peers("lost") == 1);
    wait_for("the repair", || survivor.count("repairs") == 50);
    assert_eq!((survivor.count("lost_peers"), survivor.count("sweeps")), (1, 1));
    assert_eq!(survivor.peers("left"), 1);
    settle(&cluster.data(), &crowds[..1]);
    assert_eq!(crowds[0].tally().rows, rows, "what is unchanged is not pushed");
    cluster.check_logs();
}

#[test]
fn applications_with_other_prefixes_do_not_hear_each_other() {
    let mut cluster = Cluster::prepare(2);
    for index in 0..2 {
        let prefix = owned(&["--prefix", &format!("shop{index}")]);
        let flags = [cluster.mesh_flags(index), prefix].concat();
        cluster.nodes[index].set_flags(flags);
    }
    cluster.nodes.iter_mut().for_each(|it| it.start());
    hear_nothing_of_each_other(&cluster);
    for node in &cluster.nodes {
        assert_eq!((node.count("forged"), node.count("digests")), (0, 0));
    }
}

#[test]
fn nodes_with_other_secrets_are_refused() {
    let mut cluster = Cluster::prepare(3);
    for index in 0..2 {
        let file = cluster.folder.path().join(format!("secret-{index}"));
        std::fs::write(&file, format!("{index}: sixteen bytes and more\n")).unwrap();
        let secret = owned(&["--cluster-secret-file", file.to_str().unwrap()]);
        let flags = [cluster.mesh_flags(index), secret].concat();
        cluster.nodes[index].set_flags(flags);
    }
    // One that has none, and takes the others' proofs for nonsense or for nothing.
    let flags = cluster.mesh_flags(2);
    cluster.nodes[2].set_flags(flags);
    cluster.nodes.iter_mut().for_each(|it| it.start());
    for node in &cluster.nodes[..2] {
        wait_for("others' messages", || node.count("forged") >= 4);
        assert_eq!(node.count("digests"), 0);
    }
    hear_nothing_of_each_other(&cluster);
}

/// Of the first two.
fn hear_nothing_of_each_other(cluster: &Cluster) {
    let mut clients: Vec<_> = cluster.nodes[..2]
        .iter()
        .map(|it| Client::connect(it.clients))
        .collect();
    for (client, node) in clients.iter_mut().zip(&cluster.nodes) {
        client.subscribe("items", "1");
        client.sync();
        let sent = node.count("digests_sent");
        wait_for("some heartbeats", || node.count("digests_sent") > sent + 4);
    }
    cluster.nodes[0].put(1, "one");
    assert_eq!(clients[0].row(), "one");
    pause(1.5);
    assert_eq!(clients[1].sync(), [""; 0], "the other application's change");
    for node in &cluster.nodes[..2] {
        assert_eq!(node.cluster()["peers"], serde_json::json!([]));
    }
}

impl Meanwhile {
    /// Nothing but these.
    pub(super) fn changes(done: u64, keys: u64, is_lossy: bool) -> Self {
        Self {
            changes: Changes {
                done,
                ..Changes::default()
            },
            subscriptions: 0,
            keys,
            is_lossy,
        }
    }
}
