//! [`ArgsError`]: why a value is refused, and what to write instead.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::{CurveError, MAX_REACTORS};
use crate::resolver::SourceError;
use crate::values::ValueError;

/// Why a value on the command line, in the environment or in the configuration file is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArgsError {
    /// Not a good value of its kind.
    Value(ValueError),
    /// Not where the API can be.
    BadApi {
        /// As it was given.
        given: String,
        /// What it is not.
        error: ValueError,
    },
    /// The API would be reachable from other machines, by anyone.
    ApiWithoutToken {
        /// Where it was to be.
        api: SocketAddr,
    },
    /// The file with the token can't be read.
    TokenFile {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The token is none that can be sent, or can be guessed.
    BadToken {
        /// The file that it is in.
        path: PathBuf,
    },
    /// Clients and the API can't share a port.
    SamePort {
        /// Where clients connect.
        listen: SocketAddr,
        /// Where the API was to be.
        api: SocketAddr,
    },
    /// Not a sensible number of threads.
    BadReactors,
    /// The configuration file can't be read.
    ConfigFile {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The configuration file has a key that is no flag.
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The flag that is most like it, if one is much like it.
        similar: Option<String>,
    },
    /// Not where rows can come from. The value is not shown, as it may hold a password.
    Source(SourceError),
    /// What the configuration file says of an entity can't be.
    BadEntity {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no query for anything.
    NoQuery,
    /// A flag is for another bus than the one that is taken.
    OtherBus {
        /// Which.
        flag: &'static str,
        /// The buses that it is for.
        buses: Vec<&'static str>,
    },
    /// A bus has not what it needs.
    BusWithout {
        /// What is missing.
        flags: &'static str,
    },
    /// An address that something is to listen to is given twice.
    BindTwice {
        /// The flags that it is the value of.
        flags: &'static [&'static str],
        /// Which.
        address: String,
    },
    /// The file with the cluster's secret can't be read.
    SecretFile {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The cluster's secret can be guessed.
    ShortSecret {
        /// The file that it is in.
        path: PathBuf,
        /// How long it is.
        bytes: usize,
    },
    /// Keys of CURVE can't be used so.
    Curve(CurveError),
    /// Nodes of a cluster would each have rows of their own.
    MemoryOfEach,
    /// A table of the configuration file is of an entity that is none.
    NoSuchEntity {
        /// Its name.
        name: String,
    },
    /// No client could say in time that it is there.
    NoTimeForPings,
    /// A value in the configuration file is of a kind that no flag has.
    BadKind {
        /// The file.
        path: PathBuf,
        /// Its key.
        key: String,
    },
}

impl ArgsError {
    /// The flags whose values it is about.
    pub(super) fn flags(&self) -> &[&'static str] {
        match self {
            Self::Value(_)
            | Self::BadReactors
            | Self::UnknownKey { .. }
            | Self::BadEntity { .. }
            | Self::BadKind { .. } => &[],
            Self::BadApi { .. } | Self::ApiWithoutToken { .. } => &["--api"],
            Self::TokenFile { .. } | Self::BadToken { .. } => &["--api-token-file"],
            Self::SamePort { .. } => &["--listen", "--api"],
            Self::ConfigFile { .. } => &["--config"],
            Self::Source(_) | Self::NoQuery => &["--resolver"],
            Self::OtherBus { flag, .. } => std::slice::from_ref(flag),
            Self::BusWithout { .. } => &["--bus"],
            Self::BindTwice { flags, .. } => flags,
            Self::SecretFile { .. } | Self::ShortSecret { .. } => &["--cluster-secret-file"],
            Self::Curve(error) => error.flags(),
            Self::MemoryOfEach => &["--data", "--bus"],
            Self::NoSuchEntity { .. } => &["--entity"],
            Self::NoTimeForPings => &["--dead-after", "--ping-interval"],
        }
    }
}

impl fmt::Display for ArgsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(error) => error.fmt(f),
            Self::BadApi { given, error } => write!(f, "the API can't be at {given:?}: {error} (--api)"),
            Self::ApiWithoutToken { api } => write!(
                f,
                "--api {api} can be reached from other machines, and without a token anyone there could write; keep \
                 it on 127.0.0.1, or name a file that holds a token with --api-token-file"
            ),
            Self::TokenFile { path, reason } => write!(
                f,
                "the token file {} can't be read ({reason}); write one with: umask 077; head -c 32 /dev/urandom | base64 > {}",
                path.display(),
                path.display()
            ),
            Self::BadToken { path } => write!(
                f,
                "the token in {} can't be used: it must be one line of at least 16 visible ASCII characters; write \
                 one with: umask 077; head -c 32 /dev/urandom | base64 > {}",
                path.display(),
                path.display()
            ),
            Self::SamePort { listen, api } => write!(
                f,
                "--listen {listen} and --api {api} use the same port: give one of them another port"
            ),
            Self::BadReactors => write!(
                f,
                "write a number from 1 to {MAX_REACTORS}; the number of CPUs is taken if you leave it out"
            ),
            Self::ConfigFile { path, reason } => write!(
                f,
                "the configuration file {} can't be used: {}",
                path.display(),
                reason.trim_end()
            ),
            Self::UnknownKey { path, key, similar } => {
                write!(f, "{}: there is no {key:?}; ", path.display())?;
                match similar {
                    Some(similar) => write!(f, "did you mean {similar:?}?"),
                    None => f.write_str(
                        "keys are the names of the flags without --, which entity-sync --help lists, and [entities.NAME]",
                    ),
                }
            }
            Self::Source(error) => write!(f, "--resolver: {error}"),
            Self::BadEntity { name, reason } => write!(f, "[entities.{name}] {reason}"),
            Self::NoQuery => f.write_str(
                "--resolver has a database but no query: write it after the DSN, as in postgres=DSN,SELECT id, \
                 row_to_json(items) FROM items WHERE id = ANY($1), or one for each entity in the file that --config \
                 names: [entities.items] and below it query = \"SELECT …\"",
            ),
            Self::OtherBus { flag, buses } => {
                let add = if buses.len() == 1 { "that" } else { "one of these" };
                let buses = buses.join(" or ");
                write!(f, "{flag} is for --bus {buses}: add {add}, or leave {flag} out")
            }
            Self::BusWithout { flags } => write!(f, "this --bus needs {flags}"),
            Self::BindTwice { flags, address } => {
                write!(
                    f,
                    "{address} is given twice: remove one, or choose another address ({})",
                    flags.join(", ")
                )
            }
            Self::SecretFile { path, reason } => write!(
                f,
                "the file with the cluster's secret, {}, can't be read ({reason}); write one with: umask 077; head -c 32 \
                 /dev/urandom | base64 > {}, and give all nodes the same",
                path.display(),
                path.display()
            ),
            Self::ShortSecret { path, bytes } => write!(
                f,
                "the cluster's secret in {} has {bytes} bytes, and needs at least 16; write one with: umask 077; head -c 32 \
                 /dev/urandom | base64 > {}, and give all nodes the same",
                path.display(),
                path.display()
            ),
            Self::Curve(error) => error.fmt(f),
            Self::MemoryOfEach => f.write_str(
                "with --data :memory: each node of a cluster would have rows of its own: name a file that all of them \
                 share (--data), or where all of them read (--resolver), or leave --bus out",
            ),
            Self::NoSuchEntity { name } => write!(
                f,
                "[entities.{name}] is none of the entities that --entity names: add --entity {name}, or leave the table out"
            ),
            Self::NoTimeForPings => f.write_str(
                "--dead-after must be longer than --ping-interval: a client that says nothing can only answer pings",
            ),
            Self::BadKind { path, key } => write!(
                f,
                "{}: {key:?} must be a text, a number, true or false, or a list of such",
                path.display()
            ),
        }
    }
}

impl std::error::Error for ArgsError {}

impl From<ValueError> for ArgsError {
    fn from(error: ValueError) -> Self {
        Self::Value(error)
    }
}
