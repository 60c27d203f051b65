//! Nodes that die, stand still and come back.

use super::{Cluster, Costs, Meanwhile, crowd, owned, pause, settle, wait_until_subscribed};
use entity_sync_tests::wait_for;

#[test]
fn a_node_killed_under_load_comes_back_under_its_name() {
    // Before anybody has missed it.
    killed_under_load(true, 0.5);
}

#[test]
fn a_node_killed_under_load_comes_back_under_another_name() {
    killed_under_load(false, 5.0);
}

fn killed_under_load(has_name: bool, away: f64) {
    let mut cluster = Cluster::prepare(3);
    for index in 0..3 {
        let mut flags = cluster.mesh_flags(index);
        if has_name {
            flags.extend(owned(&["--node-name", &format!("node-{index}")]));
        }
        cluster.nodes[index].set_flags(flags);
    }
    cluster.start();
    let crowds = cluster.crowds(20, 200, 10);
    let before = cluster.costs();
    let load = cluster.load(&[0, 1, 2], 200);
    pause(1.0);
    cluster.nodes[2].kill();
    pause(away);
    cluster.nodes[2].start();
    pause(1.0);
    let changes = load.stop();
    cluster.wait_for_peers();
    settle(&cluster.data(), &crowds);
    assert!(changes.done > 20 && changes.refused == 0, "{changes:?}");
    for (node, before) in cluster.nodes[..2].iter().zip(before) {
        let costs = Costs::of(node).since(before);
        assert!(costs.runs >= 1, "{costs:?}");
        costs.check(Meanwhile {
            changes,
            subscriptions: 0,
            keys: 200,
            is_lossy: true,
        });
        match has_name {
            true => assert!(node.count("restarted_peers") >= 1),
            false => assert!(costs.sweeps >= 1 && node.count("restarted_peers") == 0, "{costs:?}"),
        }
    }
    let tally = crowds[2].tally();
    assert!(tally.connections >= 40, "all came back: {tally:?}");
    Costs::of(&cluster.nodes[2]).check(Meanwhile {
        changes,
        subscriptions: tally.subscriptions,
        keys: 200,
        is_lossy: true,
    });
    cluster.check_logs();
}

#[test]
fn a_node_that_stands_still_for_a_while_catches_up() {
    let cluster = Cluster::mesh(3);
    let crowds = cluster.crowds(20, 200, 10);
    for id in 0..20 {
        cluster.nodes[2].put(id, &format!("{id} by the third"));
    }
    settle(&cluster.data(), &crowds);
    let before = cluster.costs();
    // Not through the third: if it stood still in the middle of a commit, the file would be locked for so long.
    let load = cluster.load(&[0, 1], 200);
    pause(0.5);
    cluster.nodes[2].signal("-STOP");
    for node in &cluster.nodes[..2] {
        wait_for("the loss", || node.peers("lost") == 1);
    }
    pause(2.0);
    cluster.nodes[2].signal("-CONT");
    pause(0.5);
    let changes = load.stop();
    cluster.wait_for_peers();
    settle(&cluster.data(), &crowds);
    assert_eq!((changes.refused, changes.unanswered), (0, 0));
    for (node, before) in cluster.nodes.iter().zip(before) {
        Costs::of(node).since(before).check(Meanwhile {
            changes,
            subscriptions: 0,
            keys: 200,
            is_lossy: true,
        });
    }
    // Whoever stood still has nobody to blame.
    assert_eq!(cluster.nodes[2].count("lost_peers"), 0);
    cluster.check_logs();
}

/// With a bus subscription for each key, libzmq loses most of so many when the publisher comes back.
#[test]
fn twenty_thousand_keys_survive_a_publisher_that_is_started_again() {
    let mut cluster = Cluster::mesh(2);
    let keys = 20_000;
    let mut data = cluster.data();
    data.write((0..keys).map(|id| (id, format!("{id} first"))));
    let crowds = [crowd(&cluster.nodes[1], 20, keys, 1000)];
    wait_until_subscribed(&crowds[0]);
    settle(&data, &crowds);
    let before = Costs::of(&cluster.nodes[1]);

    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    // At once, whether or not anybody hears it yet.
    data.write((0..keys).map(|id| (id, format!("{id} second"))));
    cluster.nodes[0].notify(0..keys);
    settle(&data, &crowds);
    let costs = Costs::of(&cluster.nodes[1]).since(before);
    costs.check(Meanwhile::changes(keys.into(), keys.into(), true));

    // And when it hears it, no key is missing, nor read in vain.
    cluster.wait_for_peers();
    let node = &cluster.nodes[1];
    wait_for("all repairs", || node.cluster()["waiting_repairs"] == 0);
    let before = Costs::of(node);
    data.write((0..keys).map(|id| (id, format!("{id} third"))));
    cluster.nodes[0].notify(0..keys);
    settle(&data, &crowds);
    let costs = Costs::of(node).since(before);
    costs.check(Meanwhile::changes(keys.into(), keys.into(), false));
}
