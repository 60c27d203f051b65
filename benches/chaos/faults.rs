//! [`Faults`]: what happens to the nodes and between them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use entity_sync_tests::proxy::Way;
use fastrand::Rng;

use crate::cluster::{Cluster, NODES};

/// Milliseconds between two faults, at most.
const BETWEEN_MS: u64 = 3_000;
/// How long a node is away, at most: longer than it takes to be missed.
const AWAY_MS: u64 = 6_000;
/// How long one stands still, at most. It may stand still in the middle of a write, while others can't write and wait for
/// five seconds.
const STILL_MS: u64 = 4_500;
/// How long connections are cut, at most: longer than libzmq waits for a sign of life.
const CUT_MS: u64 = 10_000;

/// What has been done to the nodes, and is to be undone.
#[derive(Default)]
pub(crate) struct Faults {
    /// How often each was.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    nodes: BTreeMap<usize, (Instant, Down)>,
    proxies: BTreeMap<usize, Instant>,
    next: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Down {
    Gone,
    Still,
}

impl Faults {
    /// Undoes what is over, and begins something new now and then.
    pub(crate) fn go_on(&mut self, cluster: &mut Cluster, rng: &mut Rng) {
        let now = Instant::now();
        self.undo(cluster, |until| until <= now);
        if self.next.is_none_or(|it| it <= now) {
            self.next = Some(now + Duration::from_millis(rng.u64(..BETWEEN_MS)));
            let kind = self.begin(cluster, rng, now);
            *self.counts.entry(kind).or_default() += 1;
        }
    }

    /// Undoes everything.
    pub(crate) fn end(&mut self, cluster: &mut Cluster) {
        self.undo(cluster, |_| true);
    }

    fn undo(&mut self, cluster: &mut Cluster, is_over: impl Fn(Instant) -> bool) {
        for (index, _) in self.proxies.extract_if(.., |_, until| is_over(*until)) {
            cluster.proxies[index].set(Way::Open);
        }
        // Those that stand still first: whoever starts may have to wait for them.
        for wanted in [Down::Still, Down::Gone] {
            let over = self
                .nodes
                .extract_if(.., |_, (until, down)| *down == wanted && is_over(*until));
            for (index, _) in over {
                match wanted {
                    Down::Still => cluster.nodes[index].signal("-CONT"),
                    Down::Gone => cluster.nodes[index].start(),
                }
            }
        }
    }

    fn begin(&mut self, cluster: &mut Cluster, rng: &mut Rng, now: Instant) -> &'static str {
        let mut for_up_to = |ms: u64| now + Duration::from_millis(rng.u64(50..ms));
        let (away, still, cut) = (for_up_to(AWAY_MS), for_up_to(STILL_MS), for_up_to(CUT_MS));
        let (kind, node) = (rng.u8(..7), rng.usize(..NODES));
        let is_up = !self.nodes.contains_key(&node);
        match kind {
            0..2 if is_up => {
                cluster.count(node);
                cluster.nodes[node].kill();
                self.nodes.insert(node, (away, Down::Gone));
                "killed"
            }
            2 if is_up => {
                cluster.count(node);
                cluster.nodes[node].stop();
                self.nodes.insert(node, (away, Down::Gone));
                "asked to stop"
            }
            3 | 4 if is_up => {
                cluster.nodes[node].signal("-STOP");
                self.nodes.insert(node, (still, Down::Still));
                "stopped by a signal"
            }
            _ => {
                let way = if rng.bool() { Way::Stalled } else { Way::Closed };
                // One way between two nodes, or all that there are.
                let single = rng.usize(..cluster.proxies.len());
                let all = rng.u8(..4) == 0;
                for index in (0..cluster.proxies.len()).filter(|it| all || *it == single) {
                    cluster.proxies[index].set(way);
                    self.proxies.insert(index, cut);
                }
                match way {
                    Way::Stalled => "connections stalled",
                    _ => "connections closed",
                }
            }
        }
    }
}
