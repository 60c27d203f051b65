//! The flags that have ZeroMQ's connections encrypted, and the files of keys that they name.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use entity_sync_zmq::{BadKey, Curve, CurveKeyPair, CurvePublicKey, CurveSecretKey, CurveServer};

use super::ArgsError;

pub(super) const SECRET: &str = "--zmq-curve-secret-file";
pub(super) const SERVER_KEY: &str = "--zmq-curve-server-key-file";
pub(super) const ALLOW: &str = "--zmq-curve-allow-file";

/// What any other user of the machine may do with a file.
const BY_OTHERS: u32 = 0o007;

#[derive(Args)]
pub(super) struct CurveArgs {
    /// A file with this node's secret key of CURVE: connections are encrypted, and nodes without a key are refused
    ///
    /// With it, --zmq-bind takes addresses that other machines reach. In a mesh, all nodes have the same file:
    /// entity-sync zmq-keys cluster.key
    /// entity-sync --bus zmq --zmq-bind 10.0.0.1:7000 --zmq-peer 10.0.0.2:7000 --zmq-curve-secret-file cluster.key
    /// With brokers it is the brokers' file, or one of this node's own, which each broker's --zmq-curve-allow-file lists.
    #[arg(
        long,
        env = "ENTITY_SYNC_ZMQ_CURVE_SECRET_FILE",
        value_name = "FILE",
        help_heading = "Cluster",
        verbatim_doc_comment
    )]
    pub(super) zmq_curve_secret_file: Option<PathBuf>,

    /// A file with the brokers' public key, for a node whose own secret key is another one
    ///
    /// Example: --zmq-curve-secret-file node-1.key --zmq-curve-server-key-file broker.key.pub
    #[arg(
        long,
        env = "ENTITY_SYNC_ZMQ_CURVE_SERVER_KEY_FILE",
        value_name = "FILE",
        help_heading = "Cluster"
    )]
    pub(super) zmq_curve_server_key_file: Option<PathBuf>,
}

/// What goes with keys, and what does not.
pub(super) struct Beside {
    pub(super) binds: bool,
    pub(super) has_brokers: bool,
    pub(super) allows_unauthenticated: bool,
}

impl CurveArgs {
    pub(super) fn check(self, beside: &Beside) -> Result<Option<Box<Curve>>, ArgsError> {
        let Some(path) = self.zmq_curve_secret_file else {
            return match self.zmq_curve_server_key_file {
                Some(_) => Err(CurveError::WithoutSecret { flag: SERVER_KEY }.into()),
                None => Ok(None),
            };
        };
        if beside.allows_unauthenticated {
            return Err(CurveError::Unauthenticated.into());
        }
        if beside.binds && beside.has_brokers {
            return Err(CurveError::BindAndBrokers.into());
        }
        if beside.binds && self.zmq_curve_server_key_file.is_some() {
            return Err(CurveError::OneKeyInMesh.into());
        }
        let mut curve = Curve::shared(key_pair(&path)?);
        if let Some(path) = self.zmq_curve_server_key_file {
            curve.server_key = match public_keys(SERVER_KEY, &path)?[..] {
                [key] => key,
                ref keys => return Err(CurveError::NotOneKey { path, keys: keys.len() }.into()),
            };
        }
        Ok(Some(Box::new(curve)))
    }
}

/// For those that nodes connect to.
pub(super) fn server(
    secret: Option<PathBuf>,
    allow: Option<PathBuf>,
    allows_unauthenticated: bool,
) -> Result<Option<CurveServer>, ArgsError> {
    let Some(path) = secret else {
        return match allow {
            Some(_) => Err(CurveError::WithoutSecret { flag: ALLOW }.into()),
            None => Ok(None),
        };
    };
    if allows_unauthenticated {
        return Err(CurveError::Unauthenticated.into());
    }
    let mut server = CurveServer::shared(key_pair(&path)?);
    if let Some(path) = allow {
        server.allowed = public_keys(ALLOW, &path)?;
        if server.allowed.is_empty() {
            return Err(CurveError::NobodyAllowed { path }.into());
        }
    }
    Ok(Some(server))
}

fn key_pair(path: &Path) -> Result<CurveKeyPair, CurveError> {
    let unreadable = |error: io::Error| CurveError::Read {
        flag: SECRET,
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let mut file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.mode() & BY_OTHERS != 0 {
        return Err(CurveError::OpenToOthers { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(unreadable)?;
    match CurveSecretKey::try_from(&bytes[..]) {
        Ok(key) => Ok(key.into()),
        Err(BadKey) => Err(CurveError::BadSecret { path: path.to_owned() }),
    }
}

/// One in each line, with a comment after it or not; or 32 bytes.
fn public_keys(flag: &'static str, path: &Path) -> Result<Vec<CurvePublicKey>, CurveError> {
    let bytes = std::fs::read(path).map_err(|error| CurveError::Read {
        flag,
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    if let Ok(bytes) = <[u8; 32]>::try_from(&bytes[..]) {
        return Ok(vec![bytes.into()]);
    }
    let mut keys = Vec::new();
    for (line, number) in String::from_utf8_lossy(&bytes).lines().zip(1..) {
        match line.split_whitespace().next() {
            // A key may begin with one, too.
            None | Some("#") => {}
            Some(key) => keys.push(key.parse().map_err(|BadKey| CurveError::BadLine {
                flag,
                path: path.to_owned(),
                line: number,
            })?),
        }
    }
    Ok(keys)
}

/// Why keys of CURVE are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CurveError {
    /// A file can't be read.
    Read {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with the file.
        reason: String,
    },
    /// Other users of the machine may read or write the secret key.
    OpenToOthers {
        /// The file that it is in.
        path: PathBuf,
    },
    /// There is no secret key in the file.
    BadSecret {
        /// The file.
        path: PathBuf,
    },
    /// A line of a file of public keys has none.
    BadLine {
        /// The flag that names the file.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// Its number, from 1 on.
        line: usize,
    },
    /// The brokers have one key.
    NotOneKey {
        /// The file that it should be in.
        path: PathBuf,
        /// How many there are.
        keys: usize,
    },
    /// Nobody may connect to the broker.
    NobodyAllowed {
        /// The file that lists who may.
        path: PathBuf,
    },
    /// Other keys are given without one's own.
    WithoutSecret {
        /// The flag that names them.
        flag: &'static str,
    },
    /// Nodes of a mesh know each other by the key that they share.
    OneKeyInMesh,
    /// A node with keys is one of a mesh, or meets others at brokers.
    BindAndBrokers,
    /// With keys, everybody is authenticated.
    Unauthenticated,
}

impl CurveError {
    pub(super) fn flags(&self) -> &[&'static str] {
        match self {
            Self::Read { flag, .. } | Self::BadLine { flag, .. } | Self::WithoutSecret { flag } => {
                std::slice::from_ref(flag)
            }
            Self::OpenToOthers { .. } | Self::BadSecret { .. } => &[SECRET],
            Self::NobodyAllowed { .. } => &[ALLOW],
            Self::NotOneKey { .. } | Self::OneKeyInMesh => &[SERVER_KEY],
            Self::BindAndBrokers => &[SECRET, "--zmq-bind", "--zmq-broker"],
            Self::Unauthenticated => &[SECRET, "--zmq-allow-unauthenticated"],
        }
    }
}

impl fmt::Display for CurveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { flag, path, reason } => write!(
                f,
                "the file with keys of CURVE, {}, can't be read ({reason}); entity-sync zmq-keys writes keys ({flag})",
                path.display()
            ),
            Self::OpenToOthers { path } => write!(
                f,
                "other users of this machine may read or write the secret key in {0}: chmod 600 {0} ({SECRET})",
                path.display()
            ),
            Self::BadSecret { path } => write!(
                f,
                "there is no secret key of CURVE in {}: {BadKey}; write a new one with: entity-sync zmq-keys FILE ({SECRET})",
                path.display()
            ),
            Self::BadLine { flag, path, line } => write!(
                f,
                "there is no public key of CURVE in line {line} of {}: {BadKey}; a comment begins with \"# \" ({flag})",
                path.display()
            ),
            Self::NotOneKey { path, keys } => write!(
                f,
                "there are {keys} public keys in {}: write the one that all brokers have ({SERVER_KEY})",
                path.display()
            ),
            Self::NobodyAllowed { path } => write!(
                f,
                "no node may connect, as there is no key in {}: write the nodes' public keys into it, one in each line, or \
                 leave {ALLOW} out and give the nodes the broker's key file",
                path.display()
            ),
            Self::WithoutSecret { flag } => write!(
                f,
                "{flag} needs {SECRET}, a key of its own for this process: write one with: entity-sync zmq-keys FILE"
            ),
            Self::OneKeyInMesh => write!(
                f,
                "{SERVER_KEY} is for nodes that connect to brokers: those with --zmq-bind all have the same {SECRET}, so \
                 leave it out"
            ),
            Self::BindAndBrokers => write!(
                f,
                "with {SECRET} a node either binds, as one of a mesh, or connects to brokers: leave --zmq-bind or \
                 --zmq-broker out"
            ),
            Self::Unauthenticated => write!(
                f,
                "with {SECRET} nobody connects without authentication: leave --zmq-allow-unauthenticated out"
            ),
        }
    }
}

impl std::error::Error for CurveError {}

impl From<CurveError> for ArgsError {
    fn from(error: CurveError) -> Self {
        Self::Curve(error)
    }
}
