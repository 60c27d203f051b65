//! The other commands of the binary: clients of a server that runs. [`watch`] prints pushes; [`api`] writes, reads, deletes
//! and notifies.

pub mod api;
#[cfg(test)]
mod tests;
pub mod trust;
mod unix;
pub mod watch;

use std::fmt;
use std::io;

use entity_sync_core::EntityKey;

/// Why a command failed. Its `Display` says what to do; it never shows a secret or a token.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// A file can't be read.
    File {
        /// Its name, as it was given.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// What was read as a body is not UTF-8 text.
    NotText,
    /// Not the address of an API.
    BadApi {
        /// As it was given.
        given: String,
    },
    /// The server's socket is not for this user.
    NotAllowed {
        /// Which.
        url: String,
    },
    /// Nobody answers.
    NoServer {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// The connection was lost before there was an answer.
    Lost {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// More keys than the server allows one connection to subscribe to.
    TooManyKeys {
        /// How many there are.
        keys: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A key that is longer than the server allows clients to subscribe to.
    KeyTooLong {
        /// Which.
        key: EntityKey,
        /// How long it may be, in bytes.
        limit: usize,
    },
    /// A file is to hold certificates, and doesn't.
    BadCa {
        /// Its name.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The system's certificates can't be used.
    NoTls {
        /// Why.
        reason: String,
    },
    /// The server's certificate is not believed.
    Untrusted {
        /// Where.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The API said no.
    Refused {
        /// What happened.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The address of the WebSocket is none.
    BadUrl {
        /// As it was given.
        given: String,
    },
    /// The server refuses the WebSocket, and will refuse the next one too.
    NoUpgrade {
        /// Where.
        url: String,
        /// The status of its answer.
        status: u16,
    },
    /// What was received can't be printed.
    Output(io::Error),
}

/// What a file is called that is none.
const STDIN: &str = "standard input";

/// A key on the command line: `entity/id`. The id may hold further slashes.
pub(crate) fn key(given: &str) -> Result<EntityKey, String> {
    match given.split_once('/') {
        Some((entity, id)) if !entity.is_empty() && !id.is_empty() => {
            EntityKey::new(entity, id).map_err(|error| error.to_string())
        }
        _ => Err("write an entity and an id with a slash between them, such as items/100".to_owned()),
    }
}

/// The one line of a file with a token or a secret.
fn line_of(path: &std::path::Path) -> Result<String, ClientError> {
    let text = std::fs::read_to_string(path).map_err(|source| ClientError::File {
        path: path.display().to_string(),
        source,
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

impl ClientError {
    /// The flags whose values it is about.
    pub fn flags(&self) -> &'static [&'static str] {
        match self {
            Self::File { path, .. } if path != STDIN => &["--api-token-file", "--secret-file", "--ca"],
            Self::BadApi { .. } | Self::NotAllowed { .. } | Self::NoServer { .. } => &["--api"],
            Self::BadCa { .. } | Self::Untrusted { .. } => &["--ca"],
            _ => &[],
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, source } => write!(f, "{path} can't be read: {source}"),
            Self::NotText => f.write_str("the body is not UTF-8 text; encode binary content, such as with base64"),
            Self::BadApi { given } => write!(
                f,
                "{given:?} is not a valid API address: write a host and a port, such as 127.0.0.1:8081, or \
                 https://sync.example.com for TLS, or unix:/run/entity-sync/api.sock for a socket (--api)"
            ),
            Self::BadCa { path, reason } => write!(
                f,
                "{path} can't be used: {reason}; it must hold one certificate or more in PEM, each between BEGIN \
                 CERTIFICATE and END CERTIFICATE (--ca)"
            ),
            Self::NoTls { reason } => write!(
                f,
                "the system's certificates can't be used: {reason}; name a file with those to trust (--ca)"
            ),
            Self::Untrusted { url, reason } => write!(
                f,
                "the certificate of {url} is not trusted ({reason}); if it was issued by your own authority, give that \
                 authority's certificate with --ca"
            ),
            Self::NotAllowed { url } => write!(
                f,
                "this user may not connect to {url}: do it as the socket's owner or as a member of its group"
            ),
            Self::NoServer { url, reason } => write!(
                f,
                "no server answers at {url} ({reason}); start one with: entity-sync, or name another with --api"
            ),
            Self::Lost { url, reason } => write!(
                f,
                "the connection to {url} was lost before there was an answer ({reason}); whether the request was carried out is \
                 not known: look, and send it again"
            ),
            Self::TooManyKeys { keys, limit } => write!(
                f,
                "{keys} keys are more than the server allows one connection to subscribe to, which is {limit}; watch fewer at \
                 once, or start the server with a higher --max-subscriptions"
            ),
            Self::KeyTooLong { key, limit } => write!(
                f,
                "the key {}/{} is longer than the server allows, which is {limit} bytes; start the server with a higher \
                 --max-key-bytes",
                key.entity(),
                key.id()
            ),
            Self::Refused { message, hint } if hint.is_empty() => f.write_str(message),
            Self::Refused { message, hint } => write!(f, "{message}: {hint}"),
            Self::BadUrl { given } => write!(
                f,
                "{given:?} is no address of a WebSocket; write one such as ws://127.0.0.1:8080/ws/entity-sync/, \
                 or wss:// for TLS"
            ),
            Self::NoUpgrade { url, status: 404 } => write!(
                f,
                "{url} has no WebSocket (404); the path is /ws/entity-sync/ unless the server was given another"
            ),
            Self::NoUpgrade { url, status } => write!(f, "{url} refuses a WebSocket ({status})"),
            Self::Output(error) => write!(f, "can't write: {error}"),
        }
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { source, .. } | Self::Output(source) => Some(source),
            _ => None,
        }
    }
}
