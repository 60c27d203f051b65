//! [`Join`]: how a node becomes one of a cluster, and [`Member`], what it is then.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use entity_sync_core::cluster::{ClusterConfig, ClusterView, Epoch, JoinError, NodeId};
use entity_sync_core::{Node, Timestamp};
use entity_sync_runtime::Health;

use crate::delivery::Undelivered;
use crate::none_to_spare::NoneToSpare;
use crate::plain::BadTopic;

/// Tells the time of the node's own clock, the one that its shards are driven with.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// A bus that has not been started.
pub trait Join: Send {
    /// Makes the node one of a cluster. It is called once, before anything is notified. The bus and its threads report their
    /// trouble to `health`.
    ///
    /// # Errors
    /// [`StartError`]: nothing is left running.
    fn join(self: Box<Self>, node: Node, clock: Clock, health: Health) -> Result<Box<dyn Member>, StartError>;
}

/// A node's part in a cluster. Dropping it leaves in a hurry; [`leave`](Self::leave) is kinder to the others.
pub trait Member: Send + Sync + fmt::Debug {
    /// What happens in the cluster.
    fn view(&self) -> &Arc<ClusterView>;

    /// Waits until the bus has everything that was notified before this call: for its first connection too, and for about
    /// `timeout` at most. With a numbered bus it has what was handed to it while it was connected.
    ///
    /// # Errors
    /// [`Undelivered`]: what it does not have. It is still to be told.
    fn flush(&self, timeout: Duration) -> Result<(), Undelivered>;

    /// Sends what was notified, says goodbye to the others, and waits until that is done, for the first connection too,
    /// for about `timeout` at most.
    ///
    /// # Errors
    /// [`Undelivered`]: what the bus does not have, and will not be given any more.
    fn leave(&mut self, timeout: Duration) -> Result<(), Undelivered>;
}

/// Why a node did not join.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// The cluster's rules can't be followed, or the node has a bus.
    Join(JoinError),
    /// An entity can't be a topic.
    Topic(BadTopic),
    /// The system refuses a thread, or what it sleeps on.
    Thread(io::Error),
    /// The bus can't be started.
    Bus(Box<dyn std::error::Error + Send + Sync>),
}

/// The defaults for a node with a random id that started just now.
pub fn cluster_config() -> ClusterConfig {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = Epoch {
        started_ms: u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX),
        nonce: random(),
    };
    ClusterConfig::new(NodeId(random()), epoch)
}

fn random() -> u64 {
    getrandom::u64().unwrap_or_else(|_| {
        // Every system has entropy by the time that it has a network. If not, the address of a thing that is somewhere
        // else in each process must do.
        let thing = Box::new(0u8);
        let at = std::ptr::from_ref(&*thing) as u64;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        at.rotate_left(32) ^ (now.as_nanos() as u64) ^ u64::from(std::process::id()).rotate_left(48)
    })
}

impl From<JoinError> for StartError {
    fn from(error: JoinError) -> Self {
        Self::Join(error)
    }
}

impl From<BadTopic> for StartError {
    fn from(error: BadTopic) -> Self {
        Self::Topic(error)
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join(error) => error.fmt(f),
            Self::Topic(error) => error.fmt(f),
            Self::Thread(error) => NoneToSpare { whom: "the bus", error }.fmt(f),
            Self::Bus(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Join(error) => Some(error),
            Self::Topic(error) => Some(error),
            Self::Thread(error) => Some(error),
            Self::Bus(error) => Some(&**error),
        }
    }
}
