//! [`numbered`]: a cluster over a [`Bus`], and the thread that drives both.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use entity_sync_core::Node;
use entity_sync_core::cluster::{Cluster, ClusterConfig, ClusterEvent, ClusterInput, ClusterOutput, ClusterView};

use crate::alarm::Alarm;
use crate::bus::{Bus, Inbox};
use crate::inbox::{Event, Shared};
use crate::member::{Clock, Join, Member, StartError};

/// Events that are handled before what they lead to is published, and the time looked at.
const EVENTS_PER_TURN: usize = 1024;

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
    fn join(self: Box<Self>, node: Node, clock: Clock) -> Result<Box<dyn Member>, StartError> {
        let Self { mut bus, config } = *self;
        let alarm = Arc::<Alarm>::default();
        let waker = Waker::from(alarm.clone());
        let cluster = Cluster::new(node, config, clock(), waker.clone())?;
        let view = cluster.view().clone();
        let inbox = Arc::new(Shared::new(waker));
        let driver = Driver {
            cluster,
            clock,
            inbox,
            alarm: alarm.clone(),
            view: view.clone(),
        };
        std::thread::Builder::new()
            .name("entity-sync bus".to_owned())
            .spawn(move || driver.run_and_end(&mut bus))
            .map_err(StartError::Thread)?;
        Ok(Box::new(OnThread { alarm, view }))
    }
}

/// Writes what has happened in a cluster to the log: for drivers of a [`Cluster`] of their own.
pub fn log_events(cluster: &mut Cluster) {
    while let Some(event) = cluster.poll_event() {
        match event {
            ClusterEvent::PeerLost { .. } => tracing::warn!("{event}"),
            _ => tracing::info!("{event}"),
        }
    }
}

/// The other side of a bus's thread.
pub(crate) struct OnThread {
    pub(crate) alarm: Arc<Alarm>,
    pub(crate) view: Arc<ClusterView>,
}

impl Member for OnThread {
    fn view(&self) -> &Arc<ClusterView> {
        &self.view
    }

    fn leave(&mut self, timeout: Duration) {
        self.alarm.ask_to_leave(timeout);
        if !self.alarm.wait_until_over(timeout) {
            tracing::warn!("the bus has not ended in time, and is left to itself");
        }
    }
}

impl Drop for OnThread {
    fn drop(&mut self) {
        self.alarm.ask_to_leave(Duration::ZERO);
    }
}

impl std::fmt::Debug for OnThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnThread")
            .field("view", &self.view)
            .finish_non_exhaustive()
    }
}

struct Driver {
    cluster: Cluster,
    clock: Clock,
    inbox: Arc<Shared>,
    alarm: Arc<Alarm>,
    view: Arc<ClusterView>,
}

impl Driver {
    fn run_and_end<B: Bus>(mut self, bus: &mut B) {
        self.alarm.set_here();
        let alarm = self.alarm.clone();
        if catch_unwind(AssertUnwindSafe(|| self.run(bus))).is_err() {
            tracing::error!("the bus panicked: this node tells and hears of no change any more, until it is restarted");
            self.cluster.handle((self.clock)(), ClusterInput::Disconnected);
        }
        alarm.set_over();
    }

    fn run<B: Bus>(&mut self, bus: &mut B) {
        bus.start(Inbox(self.inbox.clone()));
        loop {
            let has_more = self.take_in();
            let now = (self.clock)();
            // What has arrived comes first, but not for ever: the others wait for this node's digests.
            if self.cluster.poll_timeout() <= now {
                self.cluster.handle_timeout(now);
            }
            log_events(&mut self.cluster);
            self.put_out(bus);
            if let Some(by) = self.alarm.leave_by() {
                self.cluster.leave();
                self.put_out(bus);
                return bus.stop(by.saturating_duration_since(Instant::now()));
            }
            if !has_more {
                let now = (self.clock)();
                self.alarm.wait(Some(self.cluster.poll_timeout().since(now)));
            }
        }
    }

    /// Says whether there may be more.
    fn take_in(&mut self) -> bool {
        let now = (self.clock)();
        for _ in 0..EVENTS_PER_TURN {
            let input = match self.inbox.pop() {
                Some(Event::Message(ref message)) => {
                    let span = tracing::trace_span!("bus message", bytes = message.len());
                    span.in_scope(|| self.cluster.handle(now, ClusterInput::Message(message)));
                    continue;
                }
                Some(Event::Connected(true)) => {
                    tracing::info!("the bus is connected");
                    ClusterInput::Connected
                }
                Some(Event::Connected(false)) => {
                    tracing::warn!("the bus has lost its connection");
                    ClusterInput::Disconnected
                }
                Some(Event::Receipt { .. }) => continue,
                None => {
                    self.view.add_overflowed(self.inbox.take_dropped());
                    return false;
                }
            };
            self.cluster.handle(now, input);
        }
        true
    }

    fn put_out<B: Bus>(&mut self, bus: &mut B) {
        while let Some(output) = self.cluster.poll_output() {
            match output {
                // What is not sent is noticed by those who miss it.
                ClusterOutput::Publish { topic, message } => _ = bus.publish(topic, message),
                ClusterOutput::Subscribe(topic) => bus.subscribe(topic),
                ClusterOutput::Unsubscribe(topic) => bus.unsubscribe(topic),
            }
        }
    }
}
