//! [`ClusterOptions`]: what the flags say of the cluster, made to run.

mod report;

use std::fmt;
use std::time::Duration;

use entity_sync_bus::{
    ClusterConfig, ClusterSecret, Join, NodeId, PlainConfig, StartError, cluster_config, numbered, plain,
};
use entity_sync_nats::{Nats, NatsAuth, NatsConfig};
use entity_sync_nsq::Nsq;
use entity_sync_zmq::{BrokerEndpoints, Curve, DnsName, Endpoint, ZmqConfig, zmq};

pub(crate) use report::{numbers, to_json};

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
    /// The others are told of what PostgreSQL notifies this node of.
    pub publishes_postgres: bool,
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
        /// What connections are encrypted with.
        curve: Option<Box<Curve>>,
        /// Other machines may connect to this node without authentication.
        allow_unauthenticated: bool,
    },
    /// NATS.
    Nats {
        /// Its servers.
        servers: Vec<NatsUrl>,
        /// What it asks for.
        credentials: Option<std::path::PathBuf>,
        /// Whose certificates are trusted, if not the system's.
        roots: Option<std::path::PathBuf>,
    },
    /// NSQ, as the Go original used it.
    Nsq {
        /// nsqd's addresses.
        nsqd: Vec<String>,
        /// How many messages of an entity may be on their way through it.
        max_pending: Option<usize>,
    },
}

impl fmt::Display for BusOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zmq {
                bind,
                peers,
                peer_names,
                brokers,
                curve,
                allow_unauthenticated: _,
            } => {
                f.write_str("ZeroMQ")?;
                if !bind.is_empty() {
                    write!(f, " at {}", list(bind))?;
                }
                let peers = peers.iter().map(ToString::to_string);
                let peer_names = peer_names.iter().map(ToString::to_string);
                let brokers = brokers
                    .iter()
                    .map(|it| format!("the broker {},{}", it.frontend, it.backend));
                let others: Vec<_> = peers.chain(peer_names).chain(brokers).collect();
                if !others.is_empty() {
                    write!(f, ", with {}", others.join(", "))?;
                }
                match curve {
                    Some(_) => f.write_str(", encrypted"),
                    None => Ok(()),
                }
            }
            Self::Nats { servers, .. } => write!(f, "NATS at {}", list(servers)),
            Self::Nsq { nsqd, .. } => write!(f, "NSQ at {}", list(nsqd)),
        }
    }
}

fn list(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Where a NATS server is, perhaps with a user and a password, which its `Debug` and `Display` don't show.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsUrl(pub String);

impl fmt::Debug for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        entity_sync_nats::without_user(&self.0).fmt(f)
    }
}

impl fmt::Display for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&entity_sync_nats::without_user(&self.0))
    }
}

impl From<String> for NatsUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

/// The content of a file that holds a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretFile(pub Vec<u8>);

impl fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretFile(…)")
    }
}

impl ClusterOptions {
    /// The bus, ready to be started.
    pub(crate) fn bus(&self) -> Result<Box<dyn Join>, StartError> {
        let config = self.config()?;
        Ok(match &self.bus {
            BusOptions::Zmq {
                bind,
                peers,
                peer_names,
                brokers,
                curve,
                allow_unauthenticated,
            } => {
                let mut links = ZmqConfig::default();
                links.bind.clone_from(bind);
                links.peers.clone_from(peers);
                links.peer_names.clone_from(peer_names);
                links.brokers.clone_from(brokers);
                links.curve = curve.as_deref().cloned();
                links.allow_unauthenticated = *allow_unauthenticated;
                Box::new(zmq(links, config))
            }
            BusOptions::Nats {
                servers,
                credentials,
                roots,
            } => {
                let mut nats = NatsConfig::new(servers.iter().map(|it| &*it.0));
                if let Some(file) = credentials {
                    nats.auth = NatsAuth::CredentialsFile(file.clone());
                }
                nats.tls.roots_file.clone_from(roots);
                nats.name = Some(config.name.clone());
                Box::new(numbered(Nats::new(&nats).map_err(refused)?, config))
            }
            BusOptions::Nsq { nsqd, max_pending } => {
                let nsq = Nsq::new(entity_sync_nsq::Config::new(nsqd)).map_err(refused)?;
                let mut config = PlainConfig::default();
                config.max_unechoed = max_pending.unwrap_or(config.max_unechoed);
                config.repair_rate = self.repair_rate;
                config.sweep_every = self.sweep_every;
                Box::new(plain(nsq, config))
            }
        })
    }

    fn config(&self) -> Result<ClusterConfig, StartError> {
        let mut config = cluster_config();
        config.prefix.clone_from(&self.prefix);
        if let Some(SecretFile(secret)) = &self.secret {
            config.secret = Some(ClusterSecret::new(secret, &self.prefix).map_err(refused)?);
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

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> StartError {
    StartError::Bus(error.into())
}
