//! [`BrokerArgs`]: the flags of `entity-sync broker`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;
use entity_sync_zmq::{CurveServer, Endpoint};

use super::cluster::{bind, refuse_twice};
use super::{ArgsError, curve};

/// Where a broker is, and who may connect to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerOptions {
    /// Where nodes publish.
    pub frontend: Endpoint,
    /// Where nodes hear.
    pub backend: Endpoint,
    /// Its keys, and those of the nodes that may connect.
    pub curve: Option<CurveServer>,
    /// Other machines may connect without authentication.
    pub zmq_allow_unauthenticated: bool,
}

#[derive(Args)]
pub(super) struct BrokerArgs {
    /// Where nodes publish: IP:PORT, tcp://HOST:PORT or ipc://PATH
    #[arg(long, env = "ENTITY_SYNC_FRONTEND", value_name = "ADDR", default_value = "127.0.0.1:7100", value_parser = bind)]
    frontend: Endpoint,
    /// Where nodes hear
    #[arg(long, env = "ENTITY_SYNC_BACKEND", value_name = "ADDR", default_value = "127.0.0.1:7101", value_parser = bind)]
    backend: Endpoint,
    /// A file with the broker's secret key of CURVE: connections are encrypted, and nodes without a key are refused
    ///
    /// With it, the broker may bind to addresses that other machines reach. All brokers of a cluster use the same file. The
    /// nodes use it too, unless --zmq-curve-allow-file lists keys of their own.
    /// entity-sync zmq-keys cluster.key
    /// entity-sync broker --frontend 10.0.0.1:7100 --backend 10.0.0.1:7101 --zmq-curve-secret-file cluster.key
    #[arg(
        long,
        env = "ENTITY_SYNC_ZMQ_CURVE_SECRET_FILE",
        value_name = "FILE",
        verbatim_doc_comment
    )]
    zmq_curve_secret_file: Option<PathBuf>,
    /// A file with the public keys of the nodes that may connect, one in each line [default: the broker's own]
    ///
    /// Each node then has a secret key of its own, and the broker's public key: --zmq-curve-server-key-file. Example:
    /// cat node-1.key.pub node-2.key.pub > nodes; entity-sync broker --zmq-curve-secret-file broker.key --zmq-curve-allow-file nodes
    #[arg(
        long,
        env = "ENTITY_SYNC_ZMQ_CURVE_ALLOW_FILE",
        value_name = "FILE",
        verbatim_doc_comment
    )]
    zmq_curve_allow_file: Option<PathBuf>,
    /// Let other machines connect without authentication
    ///
    /// Only for a network that nobody but the cluster's nodes can reach: anyone who connects can read all changes, forge them
    /// unless nodes have a --cluster-secret-file, and grow this process's memory without a limit. --zmq-curve-secret-file
    /// admits nobody but nodes.
    #[arg(long, env = "ENTITY_SYNC_ZMQ_ALLOW_UNAUTHENTICATED", value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, hide_possible_values = true, value_parser = BoolishValueParser::new())]
    zmq_allow_unauthenticated: bool,
}

impl BrokerArgs {
    pub(super) fn check(self) -> Result<BrokerOptions, ArgsError> {
        refuse_twice(
            &[self.frontend.clone(), self.backend.clone()],
            &["--frontend", "--backend"],
        )?;
        let curve = curve::server(
            self.zmq_curve_secret_file,
            self.zmq_curve_allow_file,
            self.zmq_allow_unauthenticated,
        )?;
        Ok(BrokerOptions {
            frontend: self.frontend,
            backend: self.backend,
            curve,
            zmq_allow_unauthenticated: self.zmq_allow_unauthenticated,
        })
    }
}
