//! Connections of the bus that are cut in the middle.

use entity_sync_tests::proxy::{Proxy, Way};

use super::{Cluster, Costs, Meanwhile, owned, pause, settle};

#[test]
fn a_node_that_is_cut_off_for_ten_seconds_catches_up() {
    let mut cluster = Cluster::prepare(3);
    let mut cut = Vec::new();
    let mut others = Vec::new();
    for index in 0..3 {
        let mut flags = cluster.zmq_flags(index);
        for other in (0..3).filter(|it| *it != index) {
            let proxy = Proxy::start(cluster.nodes[other].bus());
            flags.extend(owned(&["--zmq-peer", &proxy.address().to_string()]));
            match [index, other].contains(&2) {
                true => cut.push(proxy),
                false => others.push(proxy),
            }
        }
        cluster.nodes[index].set_flags(flags);
    }
    cluster.start();
    let crowds = cluster.crowds(20, 1000, 50);
    let before = cluster.costs();

    // Two ways to be cut off, for both directions.
    for (proxy, way) in cut.iter().zip([Way::Stalled, Way::Closed, Way::Closed, Way::Stalled]) {
        proxy.set(way);
    }
    for id in 0..1000 {
        cluster.nodes[id % 3].put(id, &format!("{id} meanwhile"));
        if id % 100 == 99 {
            pause(0.9);
        }
    }
    let stale = crowds[2].stale(&cluster.data().rows());
    // What it read again when it missed the others is all that it has.
    assert!(stale.len() >= 100, "it was not cut off: {}", stale.len());
    cut.iter().for_each(|it| it.set(Way::Open));
    settle(&cluster.data(), &crowds);
    cluster.wait_for_peers();
    for (node, before) in cluster.nodes.iter().zip(before) {
        let costs = Costs::of(node).since(before);
        assert!(costs.repairs > 0, "{costs:?}");
        costs.check(Meanwhile::changes(1000, 1000, true));
    }
    cluster.check_logs();
}
