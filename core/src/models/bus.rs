//! What the bus's thread and others do to each other.
#![allow(
    clippy::unwrap_used,
    reason = "a test, which clippy doesn't see behind the other condition"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::Waker;

use loom::sync::atomic::Ordering::SeqCst;
use loom::thread;

use super::{NOW, Woken, World, check, config, key};
use crate::cluster::{Cluster, ClusterConfig, ClusterOutput, Epoch, NodeId};
use crate::node::{Lane, Outgoing};
use crate::{Node, Seed};

/// What is notified while the bus's thread takes what was: it takes that too, or is woken for it.
#[test]
fn nothing_that_is_notified_is_lost_to_the_bus() {
    check(|| {
        let woken = Arc::<Woken>::default();
        let outgoing = Arc::new(Outgoing::new(Seed(1, 2), Waker::from(woken.clone())));
        // Of one lane, so that one of them leaves it to the other to say that there is something.
        let notifiers = ["1", "2"].map(|id| {
            let outgoing = outgoing.clone();
            thread::spawn(move || outgoing.add(&key(id), false, true))
        });
        let mut told = BTreeSet::new();
        let mut take_all = || {
            let mut lane = Lane::new(Seed(1, 2));
            while outgoing.take(&mut lane) {
                told.extend(lane.keys.drain().map(|(key, _)| key.id().to_owned()));
            }
            told.len()
        };
        woken.0.store(0, SeqCst);
        let before = take_all();
        for notifier in notifiers {
            assert!(notifier.join().unwrap());
        }
        let was_woken = woken.0.load(SeqCst) > 0;
        let after = take_all();
        assert!(
            was_woken || before == after,
            "it sleeps, and there is something to tell"
        );
        assert_eq!(after, 2);
    });
}

/// A cluster of a node, and what wakes it.
fn cluster_of(node: &Node, by_interest: bool) -> (Cluster, Arc<Woken>) {
    let epoch = Epoch {
        started_ms: 1,
        nonce: 1,
    };
    let mut config = ClusterConfig::new(NodeId(1), epoch);
    config.buckets = 1;
    config.by_interest = by_interest;
    let woken = Arc::<Woken>::default();
    let cluster = Cluster::new(node.clone(), config, NOW, Waker::from(woken.clone())).unwrap();
    (cluster, woken)
}

/// Messages published, and topics begun to hear.
fn say_all(cluster: &mut Cluster) -> (usize, usize) {
    let (mut messages, mut topics) = (0, 0);
    while let Some(output) = cluster.poll_output() {
        match output {
            ClusterOutput::Publish { .. } => messages += 1,
            ClusterOutput::Subscribe(_) => topics += 1,
            ClusterOutput::Unsubscribe(_) => panic!("nobody leaves"),
        }
    }
    (messages, topics)
}

/// A notify, against the bus's thread: it is told of, and read here.
#[test]
fn a_notify_against_the_bus() {
    check(|| {
        let mut world = World::new(config());
        let (mut cluster, woken) = cluster_of(&world.node, false);
        let conn = world.connect();
        world.subscribe(conn, "1");
        say_all(&mut cluster);
        woken.0.store(0, SeqCst);
        let (node, store) = (world.node.clone(), world.store.clone());
        let notifier = thread::spawn(move || {
            let event = store.event();
            node.notify(NOW, &key("1")).unwrap();
            event
        });
        let (before, _) = say_all(&mut cluster);
        let event = notifier.join().unwrap();
        let was_woken = woken.0.load(SeqCst) > 0;
        let (after, _) = say_all(&mut cluster);
        assert!(was_woken || after == 0, "it sleeps, and there is something to tell");
        assert_eq!(before + after, 1);
        world.settle();
        assert!(world.has_row_after(conn, "1", event), "G1: the notify is lost");
    });
}

/// A first subscription, against the thread of a bus that hears by interest: it hears of the bucket.
#[test]
fn a_subscription_against_the_bus() {
    check(|| {
        let mut world = World::new(config());
        let (mut cluster, woken) = cluster_of(&world.node, true);
        let conn = world.connect();
        say_all(&mut cluster);
        // It looks because of something else.
        world.node.notify(NOW, &key("1")).unwrap();
        woken.0.store(0, SeqCst);
        let subscriber = thread::spawn(move || {
            world.subscribe(conn, "1");
            world
        });
        let (_, before) = say_all(&mut cluster);
        let _world = subscriber.join().unwrap();
        let was_woken = woken.0.load(SeqCst) > 0;
        let (_, after) = say_all(&mut cluster);
        assert!(was_woken || after == 0, "it sleeps, and there is a topic to hear");
        assert_eq!(before + after, 1);
    });
}
