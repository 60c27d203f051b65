//! [`JoinError`]: why a node is one of no cluster.

use std::fmt;

use super::ClusterConfigError;

/// Why a node did not join a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JoinError {
    /// A rule can't be followed.
    Config(ClusterConfigError),
    /// The node has a bus already, and can have but one.
    HasBus,
    /// Entities are to be registered by name, since each is a topic.
    NoEntities,
}

impl From<ClusterConfigError> for JoinError {
    fn from(error: ClusterConfigError) -> Self {
        Self::Config(error)
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::HasBus => f.write_str("the node has a bus already, and can have but one"),
            Self::NoEntities => {
                f.write_str("with this bus each entity is a topic: register them by name, and none for all others")
            }
        }
    }
}

impl std::error::Error for JoinError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(error) => Some(error),
            Self::HasBus | Self::NoEntities => None,
        }
    }
}
