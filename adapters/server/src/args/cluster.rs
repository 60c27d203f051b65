//! [`ClusterArgs`]: the flags that make a node one of a cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use entity_sync_zmq::{BrokerEndpoints, DnsName, Endpoint};

use super::ArgsError;
use crate::cluster::{BusOptions, ClusterOptions, SecretFile};

/// What carries changes between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum WhichBus {
    /// One node alone.
    None,
    /// ZeroMQ: nodes connect to each other, or to brokers.
    Zmq,
    /// NATS.
    Nats,
    /// NSQ, as the Go original used it.
    Nsq,
}

#[derive(Args)]
pub(super) struct ClusterArgs {
    /// What carries changes between the nodes of a cluster
    ///
    /// Two nodes on one machine:
    /// entity-sync --bus zmq --zmq-bind 127.0.0.1:7001 --zmq-peer 127.0.0.1:7002
    /// entity-sync --bus zmq --zmq-bind 127.0.0.1:7002 --zmq-peer 127.0.0.1:7001 --listen 127.0.0.1:8090 --api 127.0.0.1:8091
    #[arg(
        long,
        env = "ENTITY_SYNC_BUS",
        value_name = "BUS",
        default_value = "none",
        help_heading = "Cluster",
        verbatim_doc_comment
    )]
    bus: WhichBus,

    /// Where this node publishes for the others: IP:PORT, tcp://HOST:PORT or ipc://PATH; may be given several times
    ///
    /// Without --cluster-secret-file, whoever reaches it is believed. In the environment, separate several by commas.
    #[arg(long, env = "ENTITY_SYNC_ZMQ_BIND", value_name = "ADDR", value_delimiter = ',', value_parser = bind, help_heading = "Cluster")]
    zmq_bind: Vec<Endpoint>,

    /// Where another node publishes; may be given several times
    ///
    /// All nodes may have the same list: a node's own address does no harm in it.
    #[arg(long, env = "ENTITY_SYNC_ZMQ_PEER", value_name = "ADDR", value_delimiter = ',', value_parser = peer, help_heading = "Cluster")]
    zmq_peer: Vec<Endpoint>,

    /// A DNS name whose addresses are all other nodes, and their port; it is looked up again and again
    ///
    /// Example: --zmq-peer-dns entity-sync.default.svc.cluster.local:7000
    #[arg(
        long,
        env = "ENTITY_SYNC_ZMQ_PEER_DNS",
        value_name = "NAME:PORT",
        value_delimiter = ',',
        help_heading = "Cluster"
    )]
    zmq_peer_dns: Vec<DnsName>,

    /// A broker's frontend and backend, which entity-sync broker is; several carry everything twice, so that one may fail
    ///
    /// In the environment, separate several by semicolons.
    /// Example: --zmq-broker 10.0.0.1:7100,10.0.0.1:7101
    #[arg(long, env = "ENTITY_SYNC_ZMQ_BROKER", value_name = "FRONTEND,BACKEND", value_delimiter = ';', value_parser = broker, help_heading = "Cluster")]
    zmq_broker: Vec<BrokerEndpoints>,

    /// A NATS server, which may have user:password@ or token@ before its host; may be given several times
    ///
    /// Example: --bus nats --nats nats://127.0.0.1:4222
    #[arg(
        long,
        env = "ENTITY_SYNC_NATS",
        hide_env_values = true,
        value_name = "URL",
        value_delimiter = ',',
        help_heading = "Cluster"
    )]
    nats: Vec<String>,

    /// A file with the credentials for NATS, as nsc writes it
    #[arg(
        long,
        env = "ENTITY_SYNC_NATS_CREDENTIALS_FILE",
        value_name = "FILE",
        help_heading = "Cluster"
    )]
    nats_credentials_file: Option<PathBuf>,

    /// A PEM file with the authorities whose certificates NATS servers may have, instead of the system's
    #[arg(
        long,
        env = "ENTITY_SYNC_NATS_CA_FILE",
        value_name = "FILE",
        help_heading = "Cluster"
    )]
    nats_ca_file: Option<PathBuf>,

    /// An nsqd's TCP address; may be given several times
    ///
    /// Each entity is a topic, so name them with --entity. Example: --bus nsq --nsqd 127.0.0.1:4150 --entity items
    #[arg(
        long,
        env = "ENTITY_SYNC_NSQD",
        value_name = "ADDR",
        value_delimiter = ',',
        help_heading = "Cluster"
    )]
    nsqd: Vec<String>,

    /// Keeps applications on one bus apart: the same on all nodes of a cluster
    #[arg(
        long,
        env = "ENTITY_SYNC_PREFIX",
        value_name = "NAME",
        default_value = "entity-sync",
        help_heading = "Cluster"
    )]
    prefix: String,

    /// A file that all nodes of the cluster have; messages of others are refused
    ///
    /// Example: head -c 32 /dev/urandom | base64 > secret; entity-sync --cluster-secret-file secret
    #[arg(
        long,
        env = "ENTITY_SYNC_CLUSTER_SECRET_FILE",
        value_name = "FILE",
        help_heading = "Cluster"
    )]
    cluster_secret_file: Option<PathBuf>,

    /// Milliseconds between a node's signs of life: a change that the bus has lost is noticed within two of them
    #[arg(long, env = "ENTITY_SYNC_HEARTBEAT_MS", value_name = "MS", default_value = "500", value_parser = clap::value_parser!(u64).range(10..=60_000), help_heading = "Cluster")]
    heartbeat_ms: u64,

    /// What this node is called, unlike any other, also after a restart [default: a random id, and the host's name]
    #[arg(long, env = "ENTITY_SYNC_NODE_NAME", value_name = "NAME", value_parser = node_name, help_heading = "Cluster")]
    node_name: Option<String>,

    /// Keys that all nodes together read again per second, where changes may have been missed
    #[arg(long, env = "ENTITY_SYNC_REPAIR_RATE", value_name = "N", default_value = "10000", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Cluster")]
    repair_rate: u32,

    /// Look at everything again that anyone is subscribed to, in such intervals, in case somebody forgot to notify
    #[arg(long, env = "ENTITY_SYNC_SWEEP_EVERY_SECONDS", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Cluster")]
    sweep_every_seconds: Option<u64>,
}

/// Where a broker is.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct BrokerOptions {
    /// Where nodes publish: IP:PORT, tcp://HOST:PORT or ipc://PATH
    #[arg(long, env = "ENTITY_SYNC_FRONTEND", value_name = "ADDR", default_value = "127.0.0.1:7100", value_parser = bind)]
    pub frontend: Endpoint,
    /// Where nodes hear
    #[arg(long, env = "ENTITY_SYNC_BACKEND", value_name = "ADDR", default_value = "127.0.0.1:7101", value_parser = bind)]
    pub backend: Endpoint,
}

impl ClusterArgs {
    /// What can be told only from several values together, or from what they name.
    pub(super) fn check(self, names_entities: bool) -> Result<Option<ClusterOptions>, ArgsError> {
        let given = [
            ("--zmq-bind", WhichBus::Zmq, !self.zmq_bind.is_empty()),
            ("--zmq-peer", WhichBus::Zmq, !self.zmq_peer.is_empty()),
            ("--zmq-peer-dns", WhichBus::Zmq, !self.zmq_peer_dns.is_empty()),
            ("--zmq-broker", WhichBus::Zmq, !self.zmq_broker.is_empty()),
            ("--nats", WhichBus::Nats, !self.nats.is_empty()),
            (
                "--nats-credentials-file",
                WhichBus::Nats,
                self.nats_credentials_file.is_some(),
            ),
            ("--nats-ca-file", WhichBus::Nats, self.nats_ca_file.is_some()),
            ("--nsqd", WhichBus::Nsq, !self.nsqd.is_empty()),
        ];
        let name_of = |bus: WhichBus| bus.to_possible_value().map(|it| it.get_name().to_owned());
        for (flag, of, is_given) in given {
            if is_given && of != self.bus {
                return Err(ArgsError::OtherBus {
                    flag,
                    bus: name_of(of).unwrap_or_default(),
                });
            }
        }
        let missing = |flags| Err(ArgsError::BusWithout { flags });
        let bus = match self.bus {
            WhichBus::None => return Ok(None),
            WhichBus::Zmq if self.zmq_bind.is_empty() && self.zmq_broker.is_empty() => {
                return missing("--zmq-bind, or --zmq-broker if nodes meet at brokers");
            }
            WhichBus::Zmq => BusOptions::Zmq {
                bind: self.zmq_bind,
                peers: self.zmq_peer,
                peer_names: self.zmq_peer_dns,
                brokers: self.zmq_broker,
            },
            WhichBus::Nats if self.nats.is_empty() => return missing("--nats, such as --nats nats://127.0.0.1:4222"),
            WhichBus::Nats => BusOptions::Nats {
                servers: self.nats,
                credentials: self.nats_credentials_file,
                roots: self.nats_ca_file,
            },
            WhichBus::Nsq if self.nsqd.is_empty() => return missing("--nsqd, such as --nsqd 127.0.0.1:4150"),
            WhichBus::Nsq if !names_entities => {
                return missing("the entities, each of which is a topic: --entity items --entity people");
            }
            WhichBus::Nsq => BusOptions::Nsq { nsqd: self.nsqd },
        };
        let secret = self.cluster_secret_file.as_deref().map(secret).transpose()?;
        Ok(Some(ClusterOptions {
            bus,
            prefix: self.prefix,
            secret,
            heartbeat: Duration::from_millis(self.heartbeat_ms),
            node_name: self.node_name,
            repair_rate: self.repair_rate,
            sweep_every: self.sweep_every_seconds.map(Duration::from_secs),
        }))
    }
}

fn secret(path: &Path) -> Result<SecretFile, ArgsError> {
    let text = std::fs::read(path).map_err(|error| ArgsError::SecretFile {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    // As editors end a line.
    Ok(SecretFile(text.trim_ascii_end().to_owned()))
}

fn bind(given: &str) -> Result<Endpoint, String> {
    let endpoint = endpoint(given)?;
    endpoint.check_bind().map_err(|error| error.to_string())?;
    Ok(endpoint)
}

fn peer(given: &str) -> Result<Endpoint, String> {
    let endpoint = endpoint(given)?;
    endpoint.check_connect().map_err(|error| error.to_string())?;
    Ok(endpoint)
}

/// An address without a scheme is one for TCP.
fn endpoint(given: &str) -> Result<Endpoint, String> {
    let endpoint = match given.contains("://") {
        true => given.parse(),
        false => format!("tcp://{given}").parse(),
    };
    endpoint.map_err(|error: entity_sync_zmq::BadEndpoint| error.to_string())
}

fn broker(given: &str) -> Result<BrokerEndpoints, String> {
    let Some((frontend, backend)) = given.split_once(',') else {
        return Err("write both sides of the broker: FRONTEND,BACKEND, such as 10.0.0.1:7100,10.0.0.1:7101".to_owned());
    };
    Ok(BrokerEndpoints {
        frontend: peer(frontend)?,
        backend: peer(backend)?,
    })
}

fn node_name(given: &str) -> Result<String, &'static str> {
    match given.len() {
        1..=64 => Ok(given.to_owned()),
        _ => Err("write a name of 1 to 64 bytes"),
    }
}
