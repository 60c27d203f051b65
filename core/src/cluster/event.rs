//! [`ClusterEvent`]: what an operator wants to hear of, once each.

use std::collections::VecDeque;
use std::fmt;

use super::{Epoch, NodeId};

/// Events that wait for the driver. Older ones give way.
const MAX_WAITING: usize = 256;

/// Something that happened in a cluster, to be logged.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterEvent {
    /// A node is heard of, or a new run of it.
    PeerJoined {
        /// Which.
        node: NodeId,
        /// What people call it.
        name: String,
        /// The run.
        epoch: Epoch,
    },
    /// A node has been silent for too long. Everything is read again.
    PeerLost {
        /// Which.
        node: NodeId,
        /// What people call it.
        name: String,
    },
    /// A node that was lost is heard again.
    PeerFound {
        /// Which.
        node: NodeId,
        /// What people call it.
        name: String,
    },
    /// A node has said goodbye.
    PeerLeft {
        /// Which.
        node: NodeId,
        /// What people call it.
        name: String,
    },
    /// The bus is connected, but this node's own messages don't come back.
    Deaf {
        /// Under which topic it publishes them.
        topic: String,
    },
    /// This node's own messages come back again.
    Hears,
}

impl fmt::Display for ClusterEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PeerJoined { node, name, .. } => write!(f, "node {node} ({name:?}) has joined"),
            Self::PeerLost { node, name } => write!(
                f,
                "node {node} ({name:?}) is not heard any more: what it may have changed is read again"
            ),
            Self::PeerFound { node, name } => write!(f, "node {node} ({name:?}) is heard again"),
            Self::PeerLeft { node, name } => write!(f, "node {node} ({name:?}) has left"),
            Self::Deaf { topic } => write!(
                f,
                "the bus is connected but does not bring back what this node publishes: it probably exchanges no changes \
                 with others; check whether it may publish and subscribe to {topic:?}"
            ),
            Self::Hears => f.write_str("the bus brings back what this node publishes again"),
        }
    }
}

/// What has happened and was not asked for yet.
#[derive(Debug, Default)]
pub(super) struct Events(VecDeque<ClusterEvent>);

impl Events {
    pub(super) fn push(&mut self, event: ClusterEvent) {
        if self.0.len() >= MAX_WAITING {
            self.0.pop_front();
        }
        self.0.push_back(event);
    }

    pub(super) fn pop(&mut self) -> Option<ClusterEvent> {
        self.0.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_told_once_and_the_oldest_are_forgotten() {
        let event = |number: u64| ClusterEvent::PeerLeft {
            node: NodeId(number),
            name: "a \n b".to_owned(),
        };
        let mut events = Events::default();
        (0..=MAX_WAITING as u64).for_each(|number| events.push(event(number)));
        assert_eq!(events.pop(), Some(event(1)));
        assert_eq!(std::iter::from_fn(|| events.pop()).count(), MAX_WAITING - 1);
        // Names come from others: no line of the log is theirs.
        assert_eq!(event(255).to_string(), r#"node 00000000000000ff ("a \n b") has left"#);
    }
}
