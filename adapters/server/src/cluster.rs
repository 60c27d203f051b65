//! [`ClusterOptions`]: what the flags say of the cluster, made to run.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use entity_sync_bus::{
    ClusterConfig, ClusterCounts, ClusterSecret, ClusterView, Join, NodeId, PeerState, PlainConfig, cluster_config,
    numbered, plain,
};
use entity_sync_nats::{Nats, NatsAuth, NatsConfig};
use entity_sync_nsq::Nsq;
use entity_sync_zmq::{BrokerEndpoints, DnsName, Endpoint, ZmqConfig, zmq};
use serde_json::{Value, json};

/// What makes a node one of a cluster, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterOptions {
    /// What carries messages between nodes.
    pub bus: BusOptions,
    /// What keeps applications on one bus apart.
    pub prefix: String,
    /// What nodes of a cluster prove to be such with.
    pub secret: Option<SecretFile>,
    /// How often nodes say what they have published.
    pub heartbeat: Duration,
    /// What this node is called, if it has a name that no other has.
    pub node_name: Option<String>,
    /// Keys that all nodes together read again per second, where changes may have been missed.
    pub repair_rate: u32,
    /// Everything is looked at again in such intervals.
    pub sweep_every: Option<Duration>,
}

/// What carries messages between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusOptions {
    /// ZeroMQ's PUB and SUB.
    Zmq {
        /// Where this node publishes.
        bind: Vec<Endpoint>,
        /// Where others do.
        peers: Vec<Endpoint>,
        /// Names of others.
        peer_names: Vec<DnsName>,
        /// Forwarders.
        brokers: Vec<BrokerEndpoints>,
    },
    /// NATS.
    Nats {
        /// Its servers.
        servers: Vec<String>,
        /// What it asks for.
        credentials: Option<std::path::PathBuf>,
        /// Whose certificates are trusted, if not the system's.
        roots: Option<std::path::PathBuf>,
    },
    /// NSQ, as the Go original used it.
    Nsq {
        /// nsqd's addresses.
        nsqd: Vec<String>,
    },
}

/// The content of a file that holds a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretFile(pub Vec<u8>);

impl fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretFile(…)")
    }
}

/// Why there is no bus. Its `Display` says what to do.
#[derive(Debug)]
pub struct BusError(Box<dyn std::error::Error + Send + Sync>);

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for BusError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl BusError {
    pub(crate) fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

impl ClusterOptions {
    /// The bus, ready to be started.
    pub(crate) fn bus(&self) -> Result<Box<dyn Join>, BusError> {
        let config = self.config()?;
        Ok(match &self.bus {
            BusOptions::Zmq {
                bind,
                peers,
                peer_names,
                brokers,
            } => {
                let mut links = ZmqConfig::default();
                links.bind.clone_from(bind);
                links.peers.clone_from(peers);
                links.peer_names.clone_from(peer_names);
                links.brokers.clone_from(brokers);
                Box::new(zmq(links, config))
            }
            BusOptions::Nats {
                servers,
                credentials,
                roots,
            } => {
                let mut nats = NatsConfig::new(servers);
                if let Some(file) = credentials {
                    nats.auth = NatsAuth::CredentialsFile(file.clone());
                }
                nats.tls.roots_file.clone_from(roots);
                nats.name = Some(config.name.clone());
                Box::new(numbered(Nats::new(&nats).map_err(BusError::new)?, config))
            }
            BusOptions::Nsq { nsqd } => {
                let nsq = Nsq::new(entity_sync_nsq::Config::new(nsqd)).map_err(BusError::new)?;
                let mut config = PlainConfig::default();
                config.repair_rate = self.repair_rate;
                config.sweep_every = self.sweep_every;
                Box::new(plain(nsq, config))
            }
        })
    }

    fn config(&self) -> Result<ClusterConfig, BusError> {
        let mut config = cluster_config();
        config.prefix.clone_from(&self.prefix);
        if let Some(SecretFile(secret)) = &self.secret {
            config.secret = Some(ClusterSecret::new(secret, &self.prefix).map_err(BusError::new)?);
        }
        config.heartbeat = self.heartbeat;
        config.repair_rate = self.repair_rate;
        config.sweep_every = self.sweep_every;
        match &self.node_name {
            Some(name) => {
                config.node = NodeId::of_name(name);
                config.name.clone_from(name);
            }
            None => config.name = host_name(),
        }
        Ok(config)
    }
}

/// What people call this machine, which several nodes may share.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().chars().take(16).collect()
}

/// What `GET /cluster` answers.
pub(crate) fn to_json(view: &ClusterView) -> String {
    let status = view.status();
    let peers: Vec<_> = status
        .peers
        .iter()
        .map(|peer| {
            json!({
                "node": peer.node.to_string(),
                "name": peer.name,
                "epoch": peer.epoch.to_string(),
                "state": peer.state.as_str(),
                "heard_ms_ago": peer.heard_ago.as_millis() as u64,
                "buckets": peer.used_buckets,
                "messages": peer.messages,
                "missing": peer.missing,
                "gaps": peer.gaps,
            })
        })
        .collect();
    let counts = status
        .counts
        .iter()
        .map(|(name, _, value)| (name.to_owned(), value.into()));
    json!({
        "node": status.node.to_string(),
        "name": status.name,
        "epoch": status.epoch.to_string(),
        "connected": status.is_connected,
        "has_been_connected": status.has_been_connected,
        "waiting_repairs": status.waiting_repairs,
        "peers": peers,
        "counts": Value::Object(counts.collect()),
    })
    .to_string()
}

/// What is counted, for the metrics page.
pub(crate) fn numbers(view: &ClusterView) -> Vec<(&'static str, &'static str, u64)> {
    let status = view.status();
    let alive = status
        .peers
        .iter()
        .filter(|peer| peer.state == PeerState::Alive)
        .count();
    let missing = status.peers.iter().map(|peer| peer.missing).sum();
    let mut numbers: Vec<_> = status
        .counts
        .iter()
        .map(|(name, help, value)| (metric_name(name), help, value))
        .collect();
    numbers.extend([
        (
            "cluster_connected",
            "Whether the bus is connected.",
            u64::from(status.is_connected),
        ),
        ("cluster_peers", "Other nodes that are heard.", alive as u64),
        (
            "cluster_missing_messages",
            "Messages that peers have sent and that have not come.",
            missing,
        ),
        (
            "cluster_waiting_repairs",
            "Reads that wait for their turn because a change may have been missed.",
            status.waiting_repairs as u64,
        ),
    ]);
    numbers
}

/// The name of a counter of the cluster among those of everything else.
fn metric_name(name: &'static str) -> &'static str {
    static NAMES: OnceLock<BTreeMap<&str, &str>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        let all = ClusterCounts::default();
        // Made once, for as long as the process lives.
        let named = all.iter().map(|(name, ..)| (name, &*format!("cluster_{name}").leak()));
        named.collect()
    });
    names.get(name).copied().unwrap_or(name)
}
