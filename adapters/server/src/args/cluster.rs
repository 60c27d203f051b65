//! [`ClusterArgs`]: the flags that make a node one of a cluster.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use entity_sync_bus::{ClusterSecret, cluster_config};
use entity_sync_zmq::{BrokerEndpoints, DnsName, Endpoint};

use super::curve::{Beside, CurveArgs};
use super::limits::duration;
use super::{ArgsError, curve};
use crate::cluster::{BusOptions, ClusterOptions, NatsUrl, SecretFile};

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
    /// Without --zmq-curve-secret-file or --cluster-secret-file, anyone who reaches it is believed. In the environment, separate
    /// several by commas.
    #[arg(long, env = "ENTITY_SYNC_ZMQ_BIND", value_name = "ADDR", value_delimiter = ',', value_parser = bind, help_heading = "Cluster")]
    zmq_bind: Vec<Endpoint>,

    /// Where another node publishes; may be given several times
    ///
    /// All nodes may have the same list: a node's own address does no harm in it.
    #[arg(long, env = "ENTITY_SYNC_ZMQ_PEER", value_name = "ADDR", value_delimiter = ',', value_parser = peer, help_heading = "Cluster")]
    zmq_peer: Vec<Endpoint>,

    /// A DNS name that resolves to all other nodes, and their port; it is looked up repeatedly
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

    /// The frontend and backend of a broker (entity-sync broker); with several brokers each carries everything, so
    /// that one may fail
    ///
    /// In the environment, separate several by semicolons.
    /// Example: --zmq-broker 10.0.0.1:7100,10.0.0.1:7101
    #[arg(long, env = "ENTITY_SYNC_ZMQ_BROKER", value_name = "FRONTEND,BACKEND", value_delimiter = ';', value_parser = broker, help_heading = "Cluster")]
    zmq_broker: Vec<BrokerEndpoints>,

    /// Let other machines connect to --zmq-bind without authentication
    ///
    /// Only for a network that nobody but the cluster's nodes can reach: anyone who connects can read all changes, forge
    /// them without --cluster-secret-file, and grow this process's memory without a limit. --zmq-curve-secret-file admits
    /// nobody but nodes.
    #[arg(long, env = "ENTITY_SYNC_ZMQ_ALLOW_UNAUTHENTICATED", value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, hide_possible_values = true, value_parser = BoolishValueParser::new(), help_heading = "Cluster")]
    zmq_allow_unauthenticated: bool,

    #[command(flatten)]
    zmq_curve: CurveArgs,

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
    nats: Vec<NatsUrl>,

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

    /// An nsqd's TCP address, with or without tcp:// before it; may be given several times
    ///
    /// Each entity is a topic, so name them with --entity. Example: --bus nsq --nsqd 127.0.0.1:4150 --entity items
    /// With several, changes are published to all that can be reached, and any one will do.
    #[arg(
        long,
        env = "ENTITY_SYNC_NSQD",
        value_name = "ADDR",
        value_delimiter = ',',
        help_heading = "Cluster"
    )]
    nsqd: Vec<String>,

    /// Messages of one entity that this node may have published and not heard again from nsqd [default: 1000]
    ///
    /// nsqd drops messages without a word when more wait for a node than its --mem-queue-size (10000): keep this number, times
    /// the number of nodes, below that.
    #[arg(long, env = "ENTITY_SYNC_NSQD_MAX_PENDING", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Cluster")]
    nsqd_max_pending: Option<u32>,

    /// Keeps applications on one bus apart: the same on all nodes of a cluster [default: entity-sync]
    #[arg(long, env = "ENTITY_SYNC_PREFIX", value_name = "NAME", help_heading = "Cluster")]
    prefix: Option<String>,

    /// A file that all nodes of the cluster have; messages of others are refused
    ///
    /// It needs 16 bytes. Example:
    /// umask 077; head -c 32 /dev/urandom | base64 > secret
    /// entity-sync --bus nats --nats nats://127.0.0.1:4222 --cluster-secret-file secret
    #[arg(
        long,
        env = "ENTITY_SYNC_CLUSTER_SECRET_FILE",
        value_name = "FILE",
        help_heading = "Cluster",
        verbatim_doc_comment
    )]
    cluster_secret_file: Option<PathBuf>,

    /// Milliseconds between a node's signs of life: a change that the bus has lost is noticed within two of them [default: 500]
    #[arg(long, env = "ENTITY_SYNC_HEARTBEAT_MS", value_name = "MS", value_parser = heartbeat, help_heading = "Cluster")]
    heartbeat_ms: Option<Duration>,

    /// A name for this node: unique in the cluster, and the same after a restart [default: a random id, and the host's
    /// name]
    #[arg(long, env = "ENTITY_SYNC_NODE_NAME", value_name = "NAME", value_parser = node_name, help_heading = "Cluster")]
    node_name: Option<String>,

    /// Keys that all nodes together read again per second, where changes may have been missed [default: 10000]
    #[arg(long, env = "ENTITY_SYNC_REPAIR_RATE", value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Cluster")]
    repair_rate: Option<u32>,

    /// Seconds between reads of everything that anyone is subscribed to, in case a notify was missed
    #[arg(long, env = "ENTITY_SYNC_SWEEP_EVERY_SECONDS", value_name = "SECONDS", value_parser = sweep, help_heading = "Cluster")]
    sweep_every_seconds: Option<Duration>,

    /// Publish PostgreSQL's notifications to the other nodes over the bus
    ///
    /// For a cluster of which some nodes can't listen themselves: behind a standby or a pooler, with another resolver, or of
    /// the Go original. One node that does is enough, two are safe: the others read each change again for each of them.
    #[arg(long, env = "ENTITY_SYNC_POSTGRES_PUBLISH", value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, hide_possible_values = true, value_parser = BoolishValueParser::new(), help_heading = "Cluster")]
    postgres_publish: bool,
}

/// One that takes any free port is another one each time.
pub(super) fn refuse_twice(addresses: &[Endpoint], flags: &'static [&'static str]) -> Result<(), ArgsError> {
    let mut seen = HashSet::new();
    let mut fixed = addresses
        .iter()
        .map(ToString::to_string)
        .filter(|it| !it.ends_with(":*") && !it.ends_with(":0"));
    match fixed.find(|address| !seen.insert(address.clone())) {
        Some(address) => Err(ArgsError::BindTwice { flags, address }),
        None => Ok(()),
    }
}

impl ClusterArgs {
    /// What can be told only from several values together, or from what they name.
    pub(super) fn check(self, names_entities: bool) -> Result<Option<ClusterOptions>, ArgsError> {
        self.refuse_what_is_for_other_buses()?;
        refuse_twice(&self.zmq_bind, &["--zmq-bind"])?;
        let missing = |flags| Err(ArgsError::BusWithout { flags });
        let bus = match self.bus {
            WhichBus::None => return Ok(None),
            WhichBus::Zmq if self.zmq_bind.is_empty() && self.zmq_broker.is_empty() => {
                return missing("--zmq-bind, or --zmq-broker if nodes meet at brokers");
            }
            WhichBus::Zmq => BusOptions::Zmq {
                curve: self.zmq_curve.check(&Beside {
                    binds: !self.zmq_bind.is_empty(),
                    has_brokers: !self.zmq_broker.is_empty(),
                    allows_unauthenticated: self.zmq_allow_unauthenticated,
                })?,
                bind: self.zmq_bind,
                peers: self.zmq_peer,
                peer_names: self.zmq_peer_dns,
                brokers: self.zmq_broker,
                allow_unauthenticated: self.zmq_allow_unauthenticated,
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
            WhichBus::Nsq => BusOptions::Nsq {
                nsqd: self.nsqd,
                max_pending: self.nsqd_max_pending.map(|it| it as usize),
            },
        };
        let defaults = cluster_config();
        let prefix = self.prefix.unwrap_or(defaults.prefix);
        let secret = match &self.cluster_secret_file {
            Some(path) => Some(secret(path, &prefix)?),
            None => None,
        };
        Ok(Some(ClusterOptions {
            bus,
            prefix,
            secret,
            heartbeat: self.heartbeat_ms.unwrap_or(defaults.heartbeat),
            node_name: self.node_name,
            repair_rate: self.repair_rate.unwrap_or(defaults.repair_rate),
            sweep_every: self.sweep_every_seconds,
            publishes_postgres: self.postgres_publish,
        }))
    }

    /// No flag is ignored: whoever gives one that does nothing here meant another bus.
    fn refuse_what_is_for_other_buses(&self) -> Result<(), ArgsError> {
        use WhichBus::{Nats, Nsq, Zmq};
        let flags: [(&str, &[WhichBus], bool); 19] = [
            ("--zmq-bind", &[Zmq], !self.zmq_bind.is_empty()),
            ("--zmq-peer", &[Zmq], !self.zmq_peer.is_empty()),
            ("--zmq-peer-dns", &[Zmq], !self.zmq_peer_dns.is_empty()),
            ("--zmq-broker", &[Zmq], !self.zmq_broker.is_empty()),
            ("--zmq-allow-unauthenticated", &[Zmq], self.zmq_allow_unauthenticated),
            (curve::SECRET, &[Zmq], self.zmq_curve.zmq_curve_secret_file.is_some()),
            (
                curve::SERVER_KEY,
                &[Zmq],
                self.zmq_curve.zmq_curve_server_key_file.is_some(),
            ),
            ("--nats", &[Nats], !self.nats.is_empty()),
            ("--nats-credentials-file", &[Nats], self.nats_credentials_file.is_some()),
            ("--nats-ca-file", &[Nats], self.nats_ca_file.is_some()),
            ("--nsqd", &[Nsq], !self.nsqd.is_empty()),
            ("--nsqd-max-pending", &[Nsq], self.nsqd_max_pending.is_some()),
            // NSQ's messages are those of the Go original, which has none of these.
            ("--prefix", &[Zmq, Nats], self.prefix.is_some()),
            (
                "--cluster-secret-file",
                &[Zmq, Nats],
                self.cluster_secret_file.is_some(),
            ),
            ("--heartbeat-ms", &[Zmq, Nats], self.heartbeat_ms.is_some()),
            ("--node-name", &[Zmq, Nats], self.node_name.is_some()),
            ("--repair-rate", &[Zmq, Nats, Nsq], self.repair_rate.is_some()),
            (
                "--sweep-every-seconds",
                &[Zmq, Nats, Nsq],
                self.sweep_every_seconds.is_some(),
            ),
            ("--postgres-publish", &[Zmq, Nats, Nsq], self.postgres_publish),
        ];
        match flags
            .into_iter()
            .find(|(_, buses, is_given)| *is_given && !buses.contains(&self.bus))
        {
            Some((flag, buses, _)) => Err(ArgsError::OtherBus {
                flag,
                buses: buses.iter().map(|it| it.name()).collect(),
            }),
            None => Ok(()),
        }
    }
}

impl WhichBus {
    /// As it is written after `--bus`.
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zmq => "zmq",
            Self::Nats => "nats",
            Self::Nsq => "nsq",
        }
    }
}

/// The file's content, which makes a key with this prefix.
fn secret(path: &Path, prefix: &str) -> Result<SecretFile, ArgsError> {
    let text = std::fs::read(path).map_err(|error| ArgsError::SecretFile {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    // As editors end a line.
    let secret = text.trim_ascii_end();
    ClusterSecret::new(secret, prefix).map_err(|error| ArgsError::ShortSecret {
        path: path.to_owned(),
        bytes: error.bytes,
    })?;
    Ok(SecretFile(secret.to_owned()))
}

pub(super) fn bind(given: &str) -> Result<Endpoint, String> {
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

fn heartbeat(given: &str) -> Result<Duration, &'static str> {
    duration(given, 0.001, 0.01..=60.0).ok_or("write a number of milliseconds from 10 to 60000")
}

fn sweep(given: &str) -> Result<Duration, &'static str> {
    duration(given, 1.0, 1.0..=31_536_000.0).ok_or("write a number of seconds from 1 to 31536000, which is a year")
}

fn node_name(given: &str) -> Result<String, &'static str> {
    match given.len() {
        1..=64 => Ok(given.to_owned()),
        _ => Err("write a name of 1 to 64 bytes"),
    }
}
