//! [`ClusterConfig`]: who a node is in its cluster, and the cluster's rules.

use std::fmt;
use std::time::Duration;

use super::buckets::MAX_BUCKETS;
use super::message::MAX_NAME_BYTES;
use super::secret::ClusterSecret;
use super::topics::MAX_PREFIX_BYTES;
use crate::hash::Fnv;

/// Names a node of a cluster, across its restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// Of a name that no other node of the cluster has.
    pub fn of_name(name: &str) -> Self {
        let mut hash = Fnv::default();
        hash.write(name.as_bytes());
        Self(hash.finish())
    }
}

/// Tells the restarts of a node apart. Of two epochs of a node, the one that started later is the newer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch {
    /// When the process started, in milliseconds since 1970, as far as it knows.
    pub started_ms: u64,
    /// A random number, in case that two start at the same moment.
    pub nonce: u64,
}

/// Who a node is in its cluster, and the rules, which are to be the same on all nodes where nothing else is said.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClusterConfig {
    /// Keeps applications that share a bus apart: 1 to 64 of `A-Z`, `a-z`, `0-9`, `-` and `_`.
    pub prefix: String,
    /// This node, unlike any other.
    pub node: NodeId,
    /// This run of it.
    pub epoch: Epoch,
    /// What people call it, up to 64 bytes. It need not be unique.
    pub name: String,
    /// What proves that a message comes from a node of this cluster. Without it, whoever reaches the bus is believed.
    pub secret: Option<ClusterSecret>,
    /// Into how many groups keys are hashed: a power of two, up to 16,384.
    pub buckets: u32,
    /// How often each node says what it has published. A lost message is noticed within two of them. Nodes may differ in it.
    pub heartbeat: Duration,
    /// A peer that has been silent for so many heartbeats, the longer of its own and this node's, may be dead with messages
    /// that nobody got. Nodes may differ in it.
    pub lost_after_heartbeats: u32,
    /// Keys that are read again per second to repair what may have been missed, over all nodes: each node takes its share.
    /// At least 100 on each.
    pub repair_rate: u32,
    /// Reads everything again that anyone is subscribed to, in such intervals and at the pace of `repair_rate`: the backstop
    /// against writers that forget to notify. What is unchanged is not pushed. Nodes may differ in it.
    pub sweep_every: Option<Duration>,
    /// Nodes that are kept track of. A further one is not heard, and counted.
    pub max_peers: usize,
    /// What is kept of a peer that has gone is forgotten after so long.
    pub forget_after: Duration,
    /// Whether this node hears only of buckets that hold keys which its clients are subscribed to. It costs a subscription
    /// on the bus for each bucket, and pays only with very many nodes that each hold few keys: see `docs/cluster.md`.
    pub by_interest: bool,
    /// Whether the bus brings this node what it publishes itself, under a topic that it hears. If it does, a node to which
    /// nothing comes back for `lost_after_heartbeats` knows that it is cut off, although the bus says that it is connected.
    /// Nodes may differ in it.
    pub hears_itself: bool,
}

impl ClusterConfig {
    /// The defaults for a node of this name and epoch.
    pub fn new(node: NodeId, epoch: Epoch) -> Self {
        Self {
            prefix: "entity-sync".to_owned(),
            node,
            epoch,
            name: String::new(),
            secret: None,
            buckets: 1024,
            heartbeat: Duration::from_millis(500),
            lost_after_heartbeats: 6,
            repair_rate: 10_000,
            sweep_every: None,
            max_peers: 1_000,
            forget_after: Duration::from_secs(600),
            by_interest: false,
            hears_itself: true,
        }
    }

    pub(super) fn check(&self) -> Result<(), ClusterConfigError> {
        check_prefix(&self.prefix)?;
        if !self.buckets.is_power_of_two() || self.buckets > MAX_BUCKETS {
            return Err(ClusterConfigError::Buckets(self.buckets));
        }
        if self.name.len() > MAX_NAME_BYTES {
            return Err(ClusterConfigError::Name(self.name.clone()));
        }
        let heartbeats = Duration::from_millis(10)..=Duration::from_secs(60);
        if !heartbeats.contains(&self.heartbeat) {
            return Err(ClusterConfigError::Heartbeat(self.heartbeat));
        }
        if self.lost_after_heartbeats < 2 {
            return Err(ClusterConfigError::LostAfter(self.lost_after_heartbeats));
        }
        let least = self.heartbeat * self.lost_after_heartbeats;
        if self.forget_after < least {
            return Err(ClusterConfigError::ForgetAfter { least });
        }
        ClusterConfigError::check_sweep(self.sweep_every)
    }
}

impl ClusterConfigError {
    pub(super) fn check_sweep(every: Option<Duration>) -> Result<(), Self> {
        match every {
            Some(every) if every < Duration::from_secs(1) => Err(Self::SweepEvery(every)),
            _ => Ok(()),
        }
    }
}

fn check_prefix(prefix: &str) -> Result<(), ClusterConfigError> {
    // A dot would let one prefix begin another one's topics.
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if prefix.is_empty() || prefix.len() > MAX_PREFIX_BYTES || !prefix.bytes().all(is_good) {
        return Err(ClusterConfigError::Prefix(prefix.to_owned()));
    }
    Ok(())
}

/// A rule that can't be followed. Its `Display` says what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterConfigError {
    /// The prefix is empty, too long, or has other characters.
    Prefix(String),
    /// The number of buckets is no power of two, or too large.
    Buckets(u32),
    /// The name is too long.
    Name(String),
    /// The heartbeat is shorter than 10 ms or longer than a minute.
    Heartbeat(Duration),
    /// A peer would be taken for lost before its second heartbeat is due.
    LostAfter(u32),
    /// A peer would be forgotten before it is taken for lost, and what is missing of it with it.
    ForgetAfter {
        /// It takes at least so long.
        least: Duration,
    },
    /// Nothing else would be read any more.
    SweepEvery(Duration),
    /// No queue confirms so soon.
    ConfirmWithin(Duration),
    /// No queue brings a message back so soon.
    EchoWithin(Duration),
    /// Nothing could be published if no message may be on its way.
    NoUnechoed,
}

impl fmt::Display for ClusterConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) => write!(
                f,
                "{prefix:?} is no prefix: it takes 1 to 64 letters, digits, '-' and '_'"
            ),
            Self::Buckets(buckets) => write!(
                f,
                "{buckets} is no number of buckets: it takes a power of two up to {MAX_BUCKETS}, such as 1024"
            ),
            Self::Name(name) => write!(
                f,
                "{name:?} is too long for a node's name: {MAX_NAME_BYTES} bytes at most"
            ),
            Self::Heartbeat(heartbeat) => write!(f, "a heartbeat of {heartbeat:?}: it takes 10 ms to 60 s"),
            Self::LostAfter(count) => write!(
                f,
                "a peer can't be lost after {count} heartbeats: at least 2, better 4 or more"
            ),
            Self::ForgetAfter { least } => write!(
                f,
                "a peer can't be forgotten before it is lost: with these heartbeats it takes at least {least:?}"
            ),
            Self::SweepEvery(every) => write!(f, "a sweep every {every:?}: it takes at least 1 s, better minutes"),
            Self::ConfirmWithin(limit) => write!(f, "{limit:?} for a queue to confirm: it takes at least 10 ms"),
            Self::EchoWithin(limit) => {
                write!(
                    f,
                    "a queue must have at least 10 ms to bring a message back, got {limit:?}"
                )
            }
            Self::NoUnechoed => f.write_str("max_unechoed must be at least 1, got 0"),
        }
    }
}

impl std::error::Error for ClusterConfigError {}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.started_ms, self.nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_cannot_be_followed_are_refused() {
        let epoch = Epoch {
            started_ms: 1,
            nonce: 2,
        };
        let said = |change: fn(&mut ClusterConfig)| {
            let mut config = ClusterConfig::new(NodeId::of_name("a"), epoch);
            assert_eq!(config.check(), Ok(()));
            change(&mut config);
            config.check().expect_err("bad").to_string()
        };
        assert_eq!(
            said(|it| it.prefix = "a.b".to_owned()),
            r#""a.b" is no prefix: it takes 1 to 64 letters, digits, '-' and '_'"#
        );
        assert!(said(|it| it.prefix.clear()).starts_with(r#""" is no prefix"#));
        assert_eq!(
            said(|it| it.buckets = 1000),
            "1000 is no number of buckets: it takes a power of two up to 16384, such as 1024"
        );
        assert!(said(|it| it.buckets = 0).starts_with("0 is no"));
        assert!(said(|it| it.name = "x".repeat(65)).contains("64 bytes at most"));
        assert_eq!(
            said(|it| it.heartbeat = Duration::ZERO),
            "a heartbeat of 0ns: it takes 10 ms to 60 s"
        );
        assert!(said(|it| it.lost_after_heartbeats = 1).contains("at least 2"));
        assert!(said(|it| it.forget_after = Duration::from_secs(1)).contains("at least 3s"));
        assert!(said(|it| it.sweep_every = Some(Duration::ZERO)).contains("at least 1 s"));
    }
}
