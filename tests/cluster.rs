//! Clusters of the `entity-sync` binary as their users meet them: several processes on one data file, real buses between
//! them, and what goes wrong there.
//!
//! A change that the bus carries is pushed at once. After a fault is over, each client is to hold the newest state within
//! two heartbeats (1 s), plus what it takes to miss a peer (3 s), plus its keys by the rate of repair (10,000 per second and
//! cluster): [`WITHIN`] is that and what a busy machine adds. What a fault may cost in reads of the store is said by
//! [`Costs::check`].

mod brokers;
mod curve;
mod cut;
mod hostile;
mod killed;
mod mesh;
mod nats;
mod nsq;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use entity_sync_core::EntityKey;
use entity_sync_tests::crowd::Crowd;
use entity_sync_tests::data::Data;
use entity_sync_tests::load::{Changes, Load};
use entity_sync_tests::node::Node;
use entity_sync_tests::wait_for;

/// How long after a fault is over every client holds the newest state of its keys.
const WITHIN: Duration = Duration::from_secs(30);

/// Nodes with a data file that they share.
struct Cluster {
    // Before the folder, in which they are.
    nodes: Vec<Node>,
    folder: tempfile::TempDir,
}

impl Cluster {
    /// Nodes that have addresses, and don't run yet.
    fn prepare(count: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let node = |number| Node::prepare(folder.path(), &format!("node-{number}"));
        Self {
            nodes: (0..count).map(node).collect(),
            folder,
        }
    }

    /// A mesh over ZeroMQ that runs, whose nodes hear each other.
    fn mesh(count: usize) -> Self {
        Self::mesh_with(count, &[])
    }

    fn mesh_with(count: usize, flags: &[&str]) -> Self {
        let mut cluster = Self::prepare(count);
        for index in 0..count {
            let flags = [cluster.mesh_flags(index), owned(flags)].concat();
            cluster.nodes[index].set_flags(flags);
        }
        cluster.start();
        cluster
    }

    /// What makes a node one of a mesh with all others.
    fn mesh_flags(&self, index: usize) -> Vec<String> {
        let mut flags = self.zmq_flags(index);
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != index);
        flags.extend(others.flat_map(|(_, node)| ["--zmq-peer".to_owned(), node.bus().to_string()]));
        flags
    }

    /// The same, but for whom it hears.
    fn zmq_flags(&self, index: usize) -> Vec<String> {
        let bind = self.nodes[index].bus().to_string();
        [self.flags(), owned(&["--bus", "zmq", "--zmq-bind", &bind])].concat()
    }

    /// What all nodes have.
    fn flags(&self) -> Vec<String> {
        owned(&["--data", self.path().to_str().unwrap(), "--snapshot"])
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("data.db")
    }

    fn data(&self) -> Data {
        Data::open(&self.path())
    }

    /// Starts all at the same moment, and waits until they hear each other.
    fn start(&mut self) {
        self.nodes.iter_mut().for_each(Node::spawn);
        self.nodes.iter_mut().for_each(Node::wait_until_up);
        self.wait_for_peers();
        // What is read because they met is over before anyone counts.
        pause(0.3);
    }

    /// Waits until each node hears each other one that runs.
    fn wait_for_peers(&self) {
        let running: Vec<_> = self.nodes.iter().filter(|it| it.is_running()).collect();
        for node in &running {
            let all = || node.peers("alive") == running.len() - 1;
            wait_for(&format!("{} to hear all others", node.name), all);
        }
    }

    /// As many clients on each node that runs. Each has `each` keys of `0..keys`, and together they have all.
    fn crowds(&self, clients: u32, keys: u32, each: u32) -> Vec<Crowd> {
        let running = self.nodes.iter().filter(|it| it.is_running());
        let crowds: Vec<_> = running.map(|it| crowd(it, clients, keys, each)).collect();
        crowds.iter().for_each(wait_until_subscribed);
        crowds
    }

    /// Changes keys through these nodes, some hundreds per second.
    fn load(&self, nodes: &[usize], keys: u32) -> Load {
        let apis: Vec<_> = nodes.iter().map(|&it| self.nodes[it].api()).collect();
        Load::start(&apis, keys, 3, Duration::from_millis(10), 1)
    }

    fn costs(&self) -> Vec<Costs> {
        self.nodes.iter().map(Costs::of).collect()
    }

    /// Nothing went wrong that no fault explains: a node that panics, or a file that is locked.
    fn check_logs(&self) {
        for node in &self.nodes {
            let log = node.log();
            let is_bad = |line: &&str| ["panicked", "busy", "locked"].iter().any(|it| line.contains(it));
            assert_eq!(log.lines().find(is_bad), None, "{} logged", node.name);
        }
    }
}

/// As many clients on this node, which need not have connected yet.
fn crowd(node: &Node, clients: u32, keys: u32, each: u32) -> Crowd {
    assert!(clients * each >= keys, "some keys have nobody");
    let ids = |client| (0..each).map(|it| (client * each + it) % keys).collect();
    Crowd::start(node.clients, (0..clients).map(ids))
}

fn wait_until_subscribed(crowd: &Crowd) {
    wait_for("all clients", || crowd.is_subscribed());
}

/// Waits until all clients hold what the file says, whatever they were told in between. Nothing changes any more.
fn settle(data: &Data, crowds: &[Crowd]) {
    let start = Instant::now();
    loop {
        let truth = data.rows();
        let stale: Vec<_> = crowds.iter().flat_map(|it| it.stale(&truth)).collect();
        if stale.is_empty() {
            break;
        }
        let some = &stale[..stale.len().min(10)];
        assert!(start.elapsed() < WITHIN, "{} stale, such as {some:#?}", stale.len());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(crowds.iter().all(|it| it.tally().foreign == 0), "rows of other keys");
}

/// What a node has counted of that which costs something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Costs {
    reads: u64,
    repairs: u64,
    /// Of peers that were lost, and nothing else in these tests.
    sweeps: u64,
    /// Nodes that were heard for the first time, and runs of nodes.
    runs: u64,
    gaps: u64,
}

/// What happened meanwhile.
#[derive(Clone, Copy, Debug)]
struct Meanwhile {
    changes: Changes,
    /// Subscriptions made on the node, each of which reads a snapshot.
    subscriptions: u64,
    /// Different keys that are subscribed to on the node.
    keys: u64,
    /// Whether the bus has lost messages.
    is_lossy: bool,
}

impl Costs {
    /// Until now, once it has done what there was to do: nothing changes any more, or not yet.
    fn of(node: &Node) -> Self {
        let mut last = None;
        wait_for("it to be quiet", || {
            let before = last.replace(Self::sample(node));
            let is_quiet = before == last && node.cluster()["waiting_repairs"] == 0;
            pause(0.05);
            is_quiet
        });
        last.unwrap()
    }

    fn sample(node: &Node) -> Self {
        let counts = &node.cluster()["counts"];
        let count = |name: &str| counts[name].as_u64().unwrap();
        Self {
            reads: node.metric("reads_total"),
            repairs: count("repairs"),
            sweeps: count("sweeps"),
            runs: count("new_peers") + count("restarted_peers"),
            gaps: count("gaps"),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            reads: self.reads - before.reads,
            repairs: self.repairs - before.repairs,
            sweeps: self.sweeps - before.sweeps,
            runs: self.runs - before.runs,
            gaps: self.gaps - before.gaps,
        }
    }

    /// At most a read for each change, for each subscription, and for each key that is repaired. At most all keys are
    /// repaired for each peer that was lost and for each run of a node that was not known, and those of a bucket for each
    /// message that was lost.
    fn check(self, meanwhile: Meanwhile) {
        println!("{self:?} {meanwhile:?}");
        let Meanwhile {
            changes,
            subscriptions,
            keys,
            is_lossy,
        } = meanwhile;
        let all = changes.done + changes.refused + changes.unanswered;
        assert!(self.reads <= all + subscriptions + self.repairs);
        assert!(self.repairs <= keys * (self.sweeps + self.runs) + self.gaps * most_of_a_bucket(keys));
        assert!(self.gaps <= if is_lossy { all } else { 0 });
    }
}

/// How many of `0..keys` are in the same bucket.
fn most_of_a_bucket(keys: u64) -> u64 {
    let buckets = 1024;
    let mut counts = vec![0; buckets as usize];
    for id in 0..keys {
        let key = EntityKey::new("items", &id.to_string()).unwrap();
        counts[key.bucket(buckets) as usize] += 1;
    }
    counts.into_iter().max().unwrap_or_default()
}

fn owned(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|&it| it.to_owned()).collect()
}

fn pause(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}
