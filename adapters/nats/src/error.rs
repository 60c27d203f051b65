//! [`NatsError`]: what is wrong with a configuration, and what to do about it.

use std::path::PathBuf;
use std::{fmt, io};

use entity_sync_bus::NoneToSpare;

/// What is wrong with a configuration. Servers that can't be reached are none of it: they are waited for.
#[derive(Debug)]
#[non_exhaustive]
pub enum NatsError {
    /// There is no server to connect to.
    NoServers,
    /// Not the URL of a NATS server.
    BadUrl {
        /// The URL, without user and password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// URLs say who we are, and differ; or the configuration says it too.
    TwoAuths,
    /// A file can't be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a `.creds` file.
    BadCredentials {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Not the seed of an nkey.
    BadNkeySeed {
        /// What is wrong with it.
        reason: String,
    },
    /// A file of certificates or a key can't be used.
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system trusts nobody who could vouch for the server.
    NoSystemRoots {
        /// What it says.
        reason: String,
    },
    /// The system gives no thread, or no event loop for it.
    NoThread(io::Error),
}

impl fmt::Display for NatsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoServers => f.write_str("no NATS server is given: give one as nats://HOST:PORT"),
            Self::BadUrl { url, reason } => write!(
                f,
                "{url:?} is not the URL of a NATS server ({reason}): it should be nats://HOST:PORT or tls://HOST:PORT"
            ),
            Self::TwoAuths => f.write_str(
                "there are several users, passwords or tokens for NATS: give one, either in all URLs or beside them",
            ),
            Self::Unreadable { path, source } => write!(f, "{} can't be read: {source}", path.display()),
            Self::BadCredentials { path, reason } => write!(
                f,
                "{} is not a credentials file ({reason}): it should have a user's JWT and seed, as nsc writes them",
                path.display()
            ),
            Self::BadNkeySeed { reason } => write!(
                f,
                "the nkey's seed can't be used ({reason}): it should be a user's, which begins with SU"
            ),
            Self::BadCertificate { path, reason } => write!(
                f,
                "{} can't be used ({reason}): it should be a PEM file of certificates, or of the key that belongs to them",
                path.display()
            ),
            Self::NoSystemRoots { reason } => write!(
                f,
                "TLS is required, and the system trusts no certificates ({reason}): install ca-certificates, or name a \
                 file of root certificates"
            ),
            Self::NoThread(error) => NoneToSpare { whom: "NATS", error }.fmt(f),
        }
    }
}

impl std::error::Error for NatsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            Self::NoThread(error) => Some(error),
            _ => None,
        }
    }
}
