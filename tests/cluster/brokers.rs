//! Nodes that meet at brokers, which die.

use entity_sync_tests::node::Broker;
use entity_sync_tests::wait_for;

use super::{Cluster, Costs, Meanwhile, owned, pause, settle};

/// Two nodes that meet at as many brokers.
fn start(brokers: usize) -> (Cluster, Vec<Broker>) {
    let mut cluster = Cluster::prepare(2);
    let brokers: Vec<_> = (0..brokers)
        .map(|number| Broker::start(cluster.folder.path(), &format!("broker-{number}")))
        .collect();
    let mut flags = [cluster.flags(), owned(&["--bus", "zmq"])].concat();
    for broker in &brokers {
        flags.extend(owned(&["--zmq-broker", &broker.flag()]));
    }
    cluster.nodes.iter_mut().for_each(|it| it.set_flags(flags.clone()));
    cluster.start();
    (cluster, brokers)
}

#[test]
fn what_changes_while_the_broker_is_down_is_told_when_it_is_back() {
    let (cluster, mut brokers) = start(1);
    let crowds = cluster.crowds(20, 100, 5);
    let before = cluster.costs();
    let load = cluster.load(&[0, 1], 100);
    pause(1.0);
    brokers[0].kill();
    for node in &cluster.nodes {
        wait_for("the loss", || node.cluster()["connected"] == false);
        // Its clients would miss what the other changes. It goes on serving those it has.
        wait_for("it to be not ready", || node.call("GET", "/readyz", "").0 == 503);
    }
    pause(2.0);
    let changes = load.stop();
    assert_eq!((changes.refused, changes.unanswered), (0, 0));
    for id in 0..100 {
        cluster.nodes[0].put(id, &format!("{id} meanwhile"));
    }
    settle(&cluster.data(), &crowds[..1]);
    assert_eq!(crowds[1].stale(&cluster.data().rows()).len(), 100, "there is no bus");
    brokers[0].resume();
    settle(&cluster.data(), &crowds);
    for (node, before) in cluster.nodes.iter().zip(before) {
        let costs = Costs::of(node).since(before);
        let mut meanwhile = Meanwhile::changes(changes.done + 100, 100, true);
        meanwhile.changes.unanswered = changes.unanswered;
        costs.check(meanwhile);
    }
    cluster.check_logs();
}

#[test]
fn of_two_brokers_one_may_die_and_nothing_is_lost_or_read_twice() {
    let (cluster, mut brokers) = start(2);
    let crowds = cluster.crowds(20, 100, 5);
    let before = cluster.costs();
    let load = cluster.load(&[0, 1], 100);
    for node in &cluster.nodes {
        wait_for("repeats", || node.count("repeated") > 10);
    }
    brokers[0].kill();
    pause(1.5);
    for node in &cluster.nodes {
        let name = format!("zmq broker {}", brokers[0].endpoints());
        for path in ["/cluster", "/readyz"] {
            let (status, said) = node.call("GET", path, "");
            assert_eq!(status, 200, "{said}");
            assert!(said.contains(&name) && said.contains("degraded"), "{said}");
        }
        let log = node.log();
        let line = format!("ZeroMQ broker {} is not connected", brokers[0].endpoints());
        assert_eq!(log.matches(&line).count(), 1, "{log}");
    }
    brokers[0].resume();
    pause(1.5);
    brokers[1].kill();
    pause(1.5);
    let changes = load.stop();
    settle(&cluster.data(), &crowds);
    assert_eq!((changes.refused, changes.unanswered), (0, 0));
    for (node, before) in cluster.nodes.iter().zip(before) {
        let costs = Costs::of(node).since(before);
        assert_eq!((costs.gaps, costs.repairs), (0, 0), "{costs:?}");
        costs.check(Meanwhile {
            changes,
            subscriptions: 0,
            keys: 100,
            is_lossy: false,
        });
        assert_eq!(node.cluster()["connected"], true);
    }
    cluster.check_logs();
}
