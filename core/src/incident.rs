//! [`Incident`]: what a client did wrong, told to the application for its log, at a limited rate for each
//! kind. The counters have all of it.

use std::fmt;
use std::sync::Arc;

use crate::client::ClientId;
use crate::wire::WireError;
use crate::ws::Refusal;

/// Something that a client did wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Incident {
    /// Who.
    pub client: ClientId,
    /// What.
    pub what: Misdeed,
    /// How many of the same kind, of the same shard, were not told since the one before, as there were too many.
    pub untold: u64,
}

/// What a client did wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misdeed {
    /// It sent a message that is none of protocol v1's. It isn't told, and the connection stays.
    RejectedMessage(WireError),
    /// It violated the WebSocket protocol and is closed with this code.
    Violation {
        /// The close code.
        code: u16,
        /// The reason in the close frame.
        reason: String,
    },
    /// It sent a secret, and its own was set when it was accepted: see [`Opening::secret`](crate::Opening::secret). It
    /// isn't told.
    FixedSecret,
    /// It subscribed to too much, to too long a key, or to an entity that is not registered. It isn't told.
    RefusedSubscription,
    /// It began with TLS, and is closed: TLS ends in front of the server.
    TlsAtPlainPort,
    /// Its outbox was full of what can't be skipped, and it is closed with code 1013.
    FellBehind,
}

/// What the application does with incidents. It is called on the thread of the connection, which must not block.
pub type OnIncident = Arc<dyn Fn(&Incident) + Send + Sync>;

/// What the application does with refused upgrade requests. It is called on the thread of the connection, which must not block.
pub type OnRefusedUpgrade = Arc<dyn Fn(ClientId, Refusal) + Send + Sync>;

impl Misdeed {
    /// What has its own share of the log.
    pub(crate) fn kind(&self) -> u8 {
        match self {
            Self::RejectedMessage(_) => 0,
            Self::Violation { .. } => 1,
            Self::FixedSecret => 2,
            Self::RefusedSubscription => 3,
            Self::FellBehind => 4,
            Self::TlsAtPlainPort => 5,
        }
    }
}

impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {}: {}", self.client, self.what)?;
        match self.untold {
            0 => Ok(()),
            untold => write!(f, " ({untold} more like it were not told)"),
        }
    }
}

impl fmt::Display for Misdeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RejectedMessage(error) => write!(f, "message rejected: {error}"),
            Self::Violation { code, reason } if reason.is_empty() => write!(f, "closed with {code}"),
            Self::Violation { code, reason } => write!(f, "closed with {code}: {reason}"),
            Self::FixedSecret => f.write_str("secret ignored: its own was set when it was accepted"),
            Self::RefusedSubscription => f.write_str("subscription refused: too many, too long, or no known entity"),
            Self::TlsAtPlainPort => f.write_str(
                "closed: it began with TLS, which this port does not speak; use ws:// instead of wss://, or let a proxy end TLS in \
                 front of the server",
            ),
            Self::FellBehind => f.write_str("closed with 1013: it fell behind"),
        }
    }
}
