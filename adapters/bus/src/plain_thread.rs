//! [`plain`]: a cluster over a [`PlainBus`], and the thread that drives both.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use entity_sync_core::Node;
use entity_sync_core::cluster::{ClusterView, PlainCluster, PlainConfig, PlainInput, PlainOutput};

use crate::alarm::Alarm;
use crate::inbox::{Event, Shared};
use crate::member::{Clock, Join, Member, StartError};
use crate::numbered::OnThread;
use crate::plain::{PlainBus, PlainInbox, Receipt};

/// Events that are handled before what they lead to is published, and the time looked at.
const EVENTS_PER_TURN: usize = 1024;

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
    fn join(self: Box<Self>, node: Node, clock: Clock) -> Result<Box<dyn Member>, StartError> {
        let Self { mut bus, config } = *self;
        for topic in node.entity_names().into_iter().flatten() {
            bus.check_topic(topic)?;
        }
        let alarm = Arc::<Alarm>::default();
        let waker = Waker::from(alarm.clone());
        let cluster = PlainCluster::new(node, config, clock(), waker.clone())?;
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

struct Driver {
    cluster: PlainCluster,
    clock: Clock,
    inbox: Arc<Shared>,
    alarm: Arc<Alarm>,
    view: Arc<ClusterView>,
}

impl Driver {
    fn run_and_end<B: PlainBus>(mut self, bus: &mut B) {
        self.alarm.set_here();
        let alarm = self.alarm.clone();
        if catch_unwind(AssertUnwindSafe(|| self.run(bus))).is_err() {
            tracing::error!("the bus panicked: this node tells and hears of no change any more, until it is restarted");
            self.cluster.handle((self.clock)(), PlainInput::Disconnected);
        }
        alarm.set_over();
    }

    fn run<B: PlainBus>(&mut self, bus: &mut B) {
        bus.start(&self.cluster.topics(), PlainInbox(self.inbox.clone()));
        loop {
            let has_more = self.take_in();
            let now = (self.clock)();
            if self.cluster.poll_timeout().is_some_and(|at| at <= now) {
                self.cluster.handle_timeout(now);
            }
            self.put_out(bus);
            if let Some(by) = self.alarm.leave_by() {
                return bus.stop(by.saturating_duration_since(Instant::now()));
            }
            if !has_more {
                let now = (self.clock)();
                self.alarm.wait(self.cluster.poll_timeout().map(|at| at.since(now)));
            }
        }
    }

    /// Says whether there may be more.
    fn take_in(&mut self) -> bool {
        let now = (self.clock)();
        for _ in 0..EVENTS_PER_TURN {
            let input = match self.inbox.pop() {
                Some(Event::Message(ref body)) => {
                    let span = tracing::trace_span!("bus message", bytes = body.len());
                    span.in_scope(|| self.cluster.handle(now, PlainInput::Message(body)));
                    continue;
                }
                Some(Event::Connected(true)) => {
                    tracing::info!("the bus is connected");
                    PlainInput::Connected
                }
                Some(Event::Connected(false)) => {
                    tracing::warn!("the bus has lost its connection: notifies of other nodes are not heard");
                    PlainInput::Disconnected
                }
                Some(Event::Receipt { number, is_confirmed }) => PlainInput::Receipt { number, is_confirmed },
                None => {
                    let dropped = self.inbox.take_dropped();
                    if dropped > 0 {
                        self.view.add_overflowed(dropped);
                        self.cluster.handle(now, PlainInput::Overflowed);
                    }
                    return false;
                }
            };
            self.cluster.handle(now, input);
        }
        true
    }

    fn put_out<B: PlainBus>(&mut self, bus: &mut B) {
        let now = (self.clock)();
        while let Some(PlainOutput::Publish { number, topic, body }) = self.cluster.poll_output(now) {
            bus.publish(topic, body, Receipt::new(self.inbox.clone(), number));
        }
    }
}
