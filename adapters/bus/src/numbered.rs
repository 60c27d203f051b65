//! [`numbered`]: a cluster over a [`Bus`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use entity_sync_core::cluster::{Cluster, ClusterConfig, ClusterEvent, ClusterInput, ClusterOutput, ClusterView};
use entity_sync_core::{Node, Timestamp};
use entity_sync_runtime::Health;

use crate::bus::{Bus, Inbox, STOP_GRACE};
use crate::bus_health::BusHealth;
use crate::delivery::{HandedOver, Undelivered};
use crate::driver::{Machine, OUTPUTS_PER_TURN, drive};
use crate::inbox::{Event, Shared};
use crate::member::{Clock, Join, Member, StartError};

/// Turns of [`OUTPUTS_PER_TURN`] for the last messages of a node that leaves while it is still notified of more.
const MAX_LAST_TURNS: usize = 100;

/// A cluster over a bus of yours. See [`cluster_config`](crate::cluster_config) for where `config` comes from.
pub fn numbered<B: Bus>(bus: B, config: ClusterConfig) -> Numbered<B> {
    Numbered { bus, config }
}

/// A [`Bus`] to be started: see [`numbered`].
#[derive(Debug)]
pub struct Numbered<B> {
    bus: B,
    config: ClusterConfig,
}

impl<B: Bus> Join for Numbered<B> {
    fn join(self: Box<Self>, node: Node, clock: Clock, health: Health) -> Result<Box<dyn Member>, StartError> {
        let Self { bus, config } = *self;
        drive(clock, health.clone(), |now, waker| {
            let cluster = Cluster::new(node, config, now, waker)?;
            let health = BusHealth::new(&health, cluster.view().clone());
            Ok(OverBus {
                cluster,
                bus,
                health,
                handed_over: HandedOver::default(),
            })
        })
    }
}

struct OverBus<B> {
    cluster: Cluster,
    bus: B,
    health: BusHealth,
    handed_over: HandedOver,
}

impl<B: Bus> Machine for OverBus<B> {
    fn view(&self) -> Arc<ClusterView> {
        self.cluster.view().clone()
    }

    fn start(&mut self, inbox: &Arc<Shared>) {
        self.bus.start(Inbox(inbox.clone()));
    }

    fn handle(&mut self, now: Timestamp, event: Event) {
        match event {
            Event::Message(message) => self.cluster.handle(now, ClusterInput::Message(&message)),
            Event::Connected(true) => self.cluster.handle(now, ClusterInput::Connected),
            Event::Connected(false) => self.cluster.handle(now, ClusterInput::Disconnected),
            // Nothing that is published here asks for one.
            Event::Receipt { .. } | Event::Missed => {}
        }
    }

    fn overflowed(&mut self, _: Timestamp) {
        // Their numbers will be missing.
    }

    fn poll_timeout(&self) -> Option<Timestamp> {
        Some(self.cluster.poll_timeout())
    }

    fn handle_timeout(&mut self, now: Timestamp) {
        self.cluster.handle_timeout(now);
    }

    fn put_out(&mut self, _: Timestamp, _: &Arc<Shared>) -> bool {
        log_events(&mut self.cluster);
        self.health.look();
        for _ in 0..OUTPUTS_PER_TURN {
            let Some(output) = self.cluster.poll_output() else {
                if self.cluster.view().is_connected() {
                    self.handed_over.all(self.cluster.view());
                }
                return false;
            };
            match output {
                // What is not sent is noticed by those who miss it.
                ClusterOutput::Publish { topic, message } => _ = self.bus.publish(topic, message),
                ClusterOutput::Subscribe(topic) => self.bus.subscribe(topic),
                ClusterOutput::Unsubscribe(topic) => self.bus.unsubscribe(topic),
            }
        }
        true
    }

    fn has_unsent(&self) -> bool {
        self.handed_over.missing(self.cluster.view()) > 0
    }

    fn mark(&mut self, _: Timestamp) -> u64 {
        self.handed_over.mark()
    }

    fn look(&self, mark: u64) -> Result<(), Undelivered> {
        self.handed_over.look(mark, self.cluster.view())
    }

    fn leave(&mut self, now: Timestamp, inbox: &Arc<Shared>, timeout: Duration) {
        let start = Instant::now();
        self.cluster.leave();
        for _ in 0..MAX_LAST_TURNS {
            if !self.put_out(now, inbox) || start.elapsed() > timeout.max(STOP_GRACE) {
                break;
            }
        }
        self.bus.stop(timeout.saturating_sub(start.elapsed()));
    }
}

/// Writes what has happened in a cluster to the log: for drivers of a [`Cluster`] of their own.
pub fn log_events(cluster: &mut Cluster) {
    while let Some(event) = cluster.poll_event() {
        match event {
            ClusterEvent::PeerLost { .. } | ClusterEvent::Deaf { .. } => tracing::warn!("{event}"),
            _ => tracing::info!("{event}"),
        }
    }
}
