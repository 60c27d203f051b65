//! [`Cluster`]: the nodes, what is between them, and their clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use entity_sync_benches::report::line;
use entity_sync_tests::crowd::Crowd;
use entity_sync_tests::data::Data;
use entity_sync_tests::node::{Node, agent, call};
use entity_sync_tests::proxy::Proxy;

pub(crate) const NODES: usize = 3;

/// Of each node's metrics, those that are reported, and what they are called there.
const FIGURES: [(&str, &str); 9] = [
    ("reads_total", "reads of the store"),
    ("silent_reads_total", "of them to look for changes"),
    ("pushes_total", "pushes"),
    ("cluster_messages_total", "messages of others"),
    ("cluster_repairs_total", "repairs"),
    ("cluster_gaps_total", "messages given up"),
    ("cluster_sweeps_total", "sweeps"),
    ("cluster_lost_peers_total", "peers lost"),
    ("cluster_restarted_peers_total", "peers restarted"),
];

/// How long a node may take to say what it has counted before it is killed.
const ASK_WITHIN: Duration = Duration::from_millis(500);

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    /// Between each two nodes, both ways.
    pub(crate) proxies: Vec<Proxy>,
    crowds: Vec<Crowd>,
    data: Data,
    /// What runs of nodes that are over have counted, as far as they could be asked.
    counted: BTreeMap<&'static str, u64>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    #[expect(clippy::unwrap_used, reason = "without a folder there is nothing to report")]
    pub(crate) fn start(clients: u32, keys: u32, each: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.db");
        let prepare = |number| Node::prepare(folder.path(), &format!("node-{number}"));
        let mut nodes: Vec<_> = (0..NODES).map(prepare).collect();
        let mut proxies = Vec::new();
        for index in 0..NODES {
            let bind = nodes[index].bus().to_string();
            let data = path.to_string_lossy().into_owned();
            let mut flags = ["--data", &data, "--snapshot", "--bus", "zmq", "--zmq-bind", &bind]
                .map(str::to_owned)
                .to_vec();
            for other in (0..NODES).filter(|it| *it != index) {
                let proxy = Proxy::start(nodes[other].bus());
                flags.extend(["--zmq-peer".to_owned(), proxy.address().to_string()]);
                proxies.push(proxy);
            }
            // The last one is another node each time.
            if index < NODES - 1 {
                flags.extend(["--node-name".to_owned(), format!("node-{index}")]);
            }
            nodes[index].set_flags(flags);
        }
        nodes.iter_mut().for_each(Node::spawn);
        nodes.iter_mut().for_each(Node::wait_until_up);
        let mut data = Data::open(&path);
        data.write((0..keys).map(|id| (id, format!("{id} first"))));
        let crowd = |node: &Node| {
            let ids = |client| (0..each).map(|it| (client * each + it) % keys).collect();
            Crowd::start(node.clients, (0..clients).map(ids))
        };
        Self {
            crowds: nodes.iter().map(crowd).collect(),
            nodes,
            proxies,
            data,
            counted: BTreeMap::new(),
            _folder: folder,
        }
    }

    pub(crate) fn apis(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(Node::api).collect()
    }

    /// Waits until no client is stale, and says how long that took; `None` if some were for too long, of which it tells.
    pub(crate) fn settle(&self, within: Duration) -> Option<Duration> {
        let start = Instant::now();
        loop {
            // First, so that what is found afterwards is no older.
            let took = start.elapsed();
            let truth = self.data.rows();
            let stale: Vec<_> = self.crowds.iter().map(|it| it.stale(&truth)).collect();
            if stale.iter().all(Vec::is_empty) {
                return Some(took);
            }
            if took > within {
                for (node, stale) in self.nodes.iter().zip(stale) {
                    println!("{}: {} stale", node.name, stale.len());
                    stale.iter().take(10).for_each(|it| println!("  {it}"));
                    println!("  {}", node.cluster());
                }
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A node is about to be killed: what it has counted would be lost.
    pub(crate) fn count(&mut self, index: usize) {
        let answer = call(&agent(ASK_WITHIN), self.nodes[index].api(), "GET", "/metrics", "");
        let page = answer.map(|(_, page)| page).unwrap_or_default();
        for line in page.lines().filter_map(|it| it.strip_prefix("entity_sync_")) {
            let Some((name, value)) = line.split_once(' ') else {
                continue;
            };
            if let Some((name, _)) = FIGURES.iter().find(|it| it.0 == name) {
                *self.counted.entry(name).or_default() += value.parse().unwrap_or(0);
            }
        }
    }

    /// Says what all have counted and got.
    pub(crate) fn report(&mut self) {
        for index in 0..NODES {
            self.count(index);
        }
        for (name, what) in FIGURES {
            let count = self.counted.get(name).copied().unwrap_or_default();
            line("nodes", what, &count.to_string());
        }
        let tallies = self.crowds.iter().map(Crowd::tally);
        let sum = tallies.fold([0; 3], |[a, b, c], it| {
            [a + it.rows, b + it.connections, c + it.foreign]
        });
        for (what, count) in ["rows", "connections", "rows of other keys"].iter().zip(sum) {
            line("clients", what, &count.to_string());
        }
    }
}
