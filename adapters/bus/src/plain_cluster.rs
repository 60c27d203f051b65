//! [`plain`]: a cluster over a [`PlainBus`].

use std::sync::Arc;
use std::time::Duration;

use entity_sync_core::cluster::{ClusterView, PlainCluster, PlainConfig, PlainInput, PlainOutput};
use entity_sync_core::{Node, Timestamp};
use entity_sync_runtime::Health;

use crate::delivery::Undelivered;
use crate::driver::{Machine, OUTPUTS_PER_TURN, drive};
use crate::inbox::{Event, Shared};
use crate::member::{Clock, Join, Member, StartError};
use crate::plain::{PlainBus, PlainInbox, Receipt};

/// A cluster over a plain queue of yours.
pub fn plain<B: PlainBus>(bus: B, config: PlainConfig) -> Plain<B> {
    Plain { bus, config }
}

/// A [`PlainBus`] to be started: see [`plain`].
#[derive(Debug)]
pub struct Plain<B> {
    bus: B,
    config: PlainConfig,
}

impl<B: PlainBus> Join for Plain<B> {
    fn join(self: Box<Self>, node: Node, clock: Clock, health: Health) -> Result<Box<dyn Member>, StartError> {
        let Self { bus, config } = *self;
        for topic in node.entity_names().into_iter().flatten() {
            bus.check_topic(topic)?;
        }
        drive(clock, health, |now, waker| {
            let cluster = PlainCluster::new(node, config, now, waker)?;
            Ok(OverPlainBus { cluster, bus })
        })
    }
}

struct OverPlainBus<B> {
    cluster: PlainCluster,
    bus: B,
}

impl<B: PlainBus> Machine for OverPlainBus<B> {
    fn view(&self) -> Arc<ClusterView> {
        self.cluster.view().clone()
    }

    fn start(&mut self, inbox: &Arc<Shared>) {
        self.bus.start(&self.cluster.topics(), PlainInbox(inbox.clone()));
    }

    fn handle(&mut self, now: Timestamp, event: Event) {
        let input = match &event {
            Event::Message(body) => PlainInput::Message(body),
            Event::Connected(true) => PlainInput::Connected,
            Event::Connected(false) => PlainInput::Disconnected,
            Event::Missed => PlainInput::Missed,
            &Event::Receipt { number, outcome } => PlainInput::Receipt { number, outcome },
        };
        self.cluster.handle(now, input);
    }

    fn overflowed(&mut self, now: Timestamp) {
        self.cluster.handle(now, PlainInput::Missed);
    }

    fn poll_timeout(&self) -> Option<Timestamp> {
        self.cluster.poll_timeout()
    }

    fn handle_timeout(&mut self, now: Timestamp) {
        self.cluster.handle_timeout(now);
    }

    fn put_out(&mut self, now: Timestamp, inbox: &Arc<Shared>) -> bool {
        for _ in 0..OUTPUTS_PER_TURN {
            let Some(PlainOutput::Publish { number, topic, body }) = self.cluster.poll_output(now) else {
                return false;
            };
            self.bus.publish(topic, body, Receipt::new(inbox.clone(), number));
        }
        true
    }

    fn has_unsent(&self) -> bool {
        self.cluster.has_unsent()
    }

    fn mark(&mut self, now: Timestamp) -> u64 {
        self.cluster.mark(now)
    }

    fn look(&self, mark: u64) -> Result<(), Undelivered> {
        if self.cluster.is_delivered(mark) {
            return Ok(());
        }
        Err(Undelivered {
            keys: self.cluster.undelivered(mark),
            ..Undelivered::default()
        })
    }

    fn leave(&mut self, _: Timestamp, _: &Arc<Shared>, timeout: Duration) {
        self.bus.stop(timeout);
    }
}
