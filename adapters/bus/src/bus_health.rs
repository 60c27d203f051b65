//! [`BusHealth`]: whether a node exchanges changes with others, for health checks.

use std::sync::Arc;

use entity_sync_core::cluster::{ClusterView, Hearing};
use entity_sync_runtime::{Health, Part, Severity};

/// Reports to [`Health`] whether a node is connected to its bus and hears itself: for drivers of a
/// [`Cluster`](entity_sync_core::cluster::Cluster) of their own.
///
/// A node is not ready before its first own message has come back, nor while none does or there is no connection: its
/// clients would miss what others change.
#[derive(Debug)]
pub struct BusHealth {
    part: Part,
    view: Arc<ClusterView>,
    shown: Option<(bool, Hearing)>,
}

impl BusHealth {
    /// Shows what is so now.
    pub fn new(health: &Health, view: Arc<ClusterView>) -> Self {
        let mut bus = Self {
            part: health.part("bus"),
            view,
            shown: None,
        };
        bus.look();
        bus
    }

    /// To be called after anything was done with the cluster. It is cheap if nothing has changed.
    pub fn look(&mut self) {
        let now = (self.view.is_connected(), self.view.hearing());
        if self.shown.replace(now) == Some(now) {
            return;
        }
        let trouble = match now {
            (false, _) => "not connected: this node and the others don't hear each other",
            (true, Hearing::Waiting) => "connected, but this node has not yet heard its own first message",
            (true, Hearing::Deaf) => {
                "connected, but what this node publishes does not come back: it and the others probably don't hear each \
                 other; check its permissions to publish and to subscribe, and the brokers"
            }
            (true, Hearing::Hears | Hearing::NotExpected) => {
                self.part.recover();
                return;
            }
        };
        self.part.report(Severity::NotReady, trouble);
    }
}
