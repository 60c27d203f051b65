//! Nodes that meet at a NATS server.

use entity_sync_tests::nats::Nats;
use entity_sync_tests::wait_for;

use super::{Cluster, Costs, Meanwhile, owned, pause, settle};

/// Two nodes that do not run.
fn prepare(nats: &Nats) -> Cluster {
    let mut cluster = Cluster::prepare(2);
    let flags = [cluster.flags(), owned(&["--bus", "nats", "--nats", &nats.url()])].concat();
    cluster.nodes.iter_mut().for_each(|it| it.set_flags(flags.clone()));
    cluster
}

#[test]
fn nats_killed_under_load_comes_back() {
    let Some(mut nats) = Nats::start() else {
        return;
    };
    let mut cluster = prepare(&nats);
    cluster.start();
    let crowds = cluster.crowds(20, 200, 10);
    let before = cluster.costs();
    let load = cluster.load(&[0, 1], 200);
    pause(1.0);
    nats.kill();
    pause(4.0);
    nats.resume();
    pause(1.0);
    let changes = load.stop();
    settle(&cluster.data(), &crowds);
    cluster.wait_for_peers();
    assert!(changes.done > 50, "{changes:?}");
    assert_eq!((changes.refused, changes.unanswered), (0, 0));
    for (node, before) in cluster.nodes.iter().zip(before) {
        let costs = Costs::of(node).since(before);
        assert!(costs.gaps > 0, "{costs:?}");
        costs.check(Meanwhile {
            changes,
            subscriptions: 0,
            keys: 200,
            is_lossy: true,
        });
    }
    cluster.check_logs();
}

#[test]
fn a_node_is_ready_once_its_bus_has_been_connected() {
    let Some(mut nats) = Nats::prepare() else {
        return;
    };
    let mut cluster = prepare(&nats);
    cluster.nodes.iter_mut().for_each(|it| it.start());
    let node = &cluster.nodes[0];
    let is_ready = || node.call("GET", "/readyz", "").0;
    assert_eq!((is_ready(), node.call("GET", "/healthz", "").0), (503, 200));
    let view = node.cluster();
    assert_eq!(
        (&view["connected"], &view["has_been_connected"]),
        (&false.into(), &false.into())
    );
    // It serves those who ask nevertheless.
    let crowds = cluster.crowds(2, 10, 5);
    node.put(1, "1 early");
    settle(&cluster.data(), &crowds[..1]);
    assert_eq!(is_ready(), 503);

    nats.resume();
    wait_for("the bus", || is_ready() == 200);
    settle(&cluster.data(), &crowds);
    nats.kill();
    wait_for("the loss", || node.cluster()["connected"] == false);
    // Its clients would miss what others change. It goes on serving those it has.
    wait_for("it to be not ready", || is_ready() == 503);
    wait_for("the reason", || {
        node.call("GET", "/cluster", "").1.contains("no connection: 127.0.0.1")
    });
    nats.resume();
    wait_for("the bus again", || is_ready() == 200);
}

/// It is tried again up to 20 times a second. Each attempt was a line, or several.
#[test]
fn a_server_that_is_down_is_logged_once_and_then_rarely() {
    let Some(nats) = Nats::prepare() else {
        return;
    };
    let mut cluster = prepare(&nats);
    let node = &mut cluster.nodes[0];
    node.start();
    pause(6.0);
    let log = node.log();
    let lines = log.lines().filter(|line| line.to_lowercase().contains("nats"));
    assert_eq!(lines.count(), 1, "{log}");
}
