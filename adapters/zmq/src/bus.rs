//! [`ZmqBus`]: a node's sockets and its [`Cluster`], to be driven by any event loop.

use std::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use entity_sync_bus::{BusHealth, ClusterConfig, ClusterView, HandedOver, Health, LogLimit, StartError, log_events};
use entity_sync_core::cluster::{Cluster, ClusterInput, ClusterOutput};
use entity_sync_core::{Node, Timestamp};

use crate::config::ZmqConfig;
use crate::envelope;
use crate::error::ZmqError;
use crate::links::{Change, Links, Side};
use crate::monitor::{Event, Monitor};
use crate::names::Names;
use crate::places::PlaceReports;
use crate::sockets::{self, Purpose, Security};
use crate::view::ZmqView;
use crate::zap::Doorman;

/// Messages that are received before what they lead to is published, and as many that are published before the bus looks at
/// what has arrived.
const BUDGET: usize = 1024;

/// Connections and names are looked at so often at most: it costs as much as some messages.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Who has connected hears a digest so much later: its subscription is on its way still. Several that come together hear the
/// same one.
const GREET_AFTER: Duration = Duration::from_millis(100);

/// Messages of a node that leaves while it is still notified of more than it can send.
const MAX_LAST_MESSAGES: usize = 100_000;

/// A node's sockets and its part in the cluster, without a thread: for an event loop of yours. [`zmq`](crate::zmq()) runs it
/// on one of its own.
///
/// Whoever drives it calls [`process`](Self::process) when [`fd`](Self::fd) becomes readable, when the waker was called, and
/// when it is time. It may be moved to another thread, and belongs to one at a time.
///
/// Dropped without [`leave`](Self::leave), it is gone for the others as if the process had died.
pub struct ZmqBus {
    cluster: Cluster,
    publisher: zmq::Socket,
    subscriber: zmq::Socket,
    of_publisher: Monitor,
    of_subscriber: Monitor,
    fd: RawFd,
    link_fds: [RawFd; 2],
    links: Links,
    names: Option<Names>,
    /// It answers for the sockets above, and so is dropped after them.
    _doorman: Option<Doorman>,
    view: Arc<ZmqView>,
    message: zmq::Message,
    frame: Vec<u8>,
    /// What this node has subscribed to first: the topic of digests, and of everything unless by interest.
    usual: Vec<u8>,
    /// The next frame belongs to a message that is dropped.
    is_amid_parts: bool,
    /// The subscriber was told something, which may have swallowed what its fd was to tell.
    is_touched: bool,
    next_look: Timestamp,
    greet_at: Option<Timestamp>,
    is_bound: bool,
    is_connected: bool,
    handed_over: HandedOver,
    health: BusHealth,
    places: PlaceReports,
    logs: Logs,
}

/// One for each kind of line.
#[derive(Default)]
struct Logs {
    refusals: LogLimit,
    lookups: LogLimit,
    sending: LogLimit,
    receiving: LogLimit,
    connecting: LogLimit,
    cut_off: LogLimit,
}

/// What [`ZmqBus::process`] has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is more to do: call it again, after others had their turn.
    Again,
    /// All is done until its fd becomes readable, its waker is called, or it is this time.
    Until(Timestamp),
}

impl ZmqBus {
    /// Opens the sockets, and makes the node one of the cluster. `waker` is called, on any thread, when something was notified
    /// or a name was looked up, and `process` is to be called for that. `now` is the time of the node's own clock, here and
    /// with all other calls.
    ///
    /// # Errors
    /// [`StartError::Bus`] with a [`ZmqError`] if an address can't be bound to or libzmq refuses something, or what is wrong
    /// with the cluster's rules: nothing is left open.
    pub fn new(
        config: &ZmqConfig,
        cluster: ClusterConfig,
        node: Node,
        now: Timestamp,
        waker: Waker,
    ) -> Result<Self, StartError> {
        Self::with_view(config, cluster, node, now, waker, Arc::default(), &Health::default())
    }

    pub(crate) fn with_view(
        config: &ZmqConfig,
        mut cluster: ClusterConfig,
        node: Node,
        now: Timestamp,
        waker: Waker,
        view: Arc<ZmqView>,
        health: &Health,
    ) -> Result<Self, StartError> {
        config.check()?;
        // Brokers forward everything to all. In a mesh, few nodes connect to themselves.
        cluster.hears_itself = config.bind.is_empty();
        let context = zmq::Context::new();
        let curve = config.curve.as_ref();
        let client = || match curve {
            Some(curve) => Security::Client {
                keys: &curve.client,
                server: &curve.server_key,
            },
            None => Security::None,
        };
        let server = curve
            .and_then(|it| it.server.as_ref())
            .filter(|_| !config.bind.is_empty());
        let doorman = server
            .map(|server| Doorman::start(&context, &server.allowed, health))
            .transpose()?;
        let of_publisher = server.map_or_else(client, Security::Server);
        let publisher = sockets::open(&context, zmq::PUB, Purpose::Publish, config, of_publisher)?;
        let subscriber = sockets::open(&context, zmq::SUB, Purpose::Subscribe, config, client())?;
        let of_publisher = Monitor::attach(&context, &publisher, "publisher")?;
        let of_subscriber = Monitor::attach(&context, &subscriber, "subscriber")?;
        let bound = config.bind.iter().map(|endpoint| sockets::bind(&publisher, endpoint));
        let addresses = bound.collect::<Result<Vec<_>, _>>()?;
        let (links, connects) = Links::new(config);
        let names = match links.names() {
            [] => None,
            names => {
                let names = Names::start(
                    names.to_vec(),
                    config.lookup_every,
                    config.lookup.clone(),
                    waker.clone(),
                    health,
                );
                Some(names.map_err(StartError::Thread)?)
            }
        };
        let fd = subscriber.get_fd().map_err(ZmqError::from)?;
        let link_fds = [of_publisher.fd()?, of_subscriber.fd()?];
        let is_bound = !addresses.is_empty();
        view.set_addresses(addresses);
        // At last, since it can't be undone.
        let cluster = Cluster::new(node, cluster, now, waker)?;
        let mut bus = Self {
            health: BusHealth::new(health, cluster.view().clone()),
            places: PlaceReports::new(&links, health, is_bound, now),
            cluster,
            publisher,
            subscriber,
            of_publisher,
            of_subscriber,
            fd,
            link_fds,
            is_bound,
            links,
            names,
            _doorman: doorman,
            view,
            message: zmq::Message::new(),
            frame: Vec::new(),
            usual: Vec::new(),
            is_amid_parts: false,
            is_touched: false,
            next_look: now,
            greet_at: None,
            is_connected: false,
            handed_over: HandedOver::default(),
            logs: Logs::default(),
        };
        // The others hear of a mesh's first node later, but it is there.
        bus.show_links(now);
        bus.publish();
        bus.make(connects);
        Ok(bus)
    }

    /// From now on, `health` shows whether this node is connected to others, and which peers and brokers it is not connected
    /// to.
    pub fn report_to(&mut self, health: &Health, now: Timestamp) {
        self.health = BusHealth::new(health, self.cluster.view().clone());
        self.places = PlaceReports::new(&self.links, health, self.is_bound, now);
        self.places.changed(now, &self.links, self.links.counts());
    }

    /// Becomes readable when messages may have arrived. It is to be polled for nothing else, and is **edge-triggered** in
    /// effect: it says only once that there is something to look at. So call [`process`](Self::process) first, again for as
    /// long as it says [`Turn::Again`], and only then wait for the fd.
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// Become readable when connections have come or gone, in the same way as [`fd`](Self::fd). Whoever doesn't wait for them
    /// hears of that when `process` is called anyway, within a heartbeat.
    pub fn link_fds(&self) -> [RawFd; 2] {
        self.link_fds
    }

    /// Where the node is bound, with the ports that were taken for port 0.
    pub fn addresses(&self) -> &[String] {
        self.view.addresses()
    }

    /// What happens in the cluster.
    pub fn view(&self) -> &Arc<ClusterView> {
        self.cluster.view()
    }

    /// How the node is connected.
    pub fn zmq_view(&self) -> &Arc<ZmqView> {
        &self.view
    }

    /// Takes in what has arrived, publishes what was notified, and does what it is time for: a part of it, if there is much.
    pub fn process(&mut self, now: Timestamp) -> Turn {
        let is_time_to_look = self.next_look <= now;
        if is_time_to_look {
            self.next_look = now + LOOK_EVERY;
            self.look_at_names(now);
            self.look_at_links(now);
            let overdue = self.links.overdue(now);
            self.make(overdue);
            self.show_links(now);
            self.places.log_overdue(now, &self.links);
        }
        let mut has_more = self.receive(now);
        // What has arrived comes first, but not for ever: the others wait for this node's digests.
        if self.cluster.poll_timeout() <= now {
            self.cluster.handle_timeout(now);
        }
        if self.greet_at.is_some_and(|at| at <= now) {
            self.greet_at = None;
            self.cluster.handle(now, ClusterInput::Reached);
            self.cluster.handle_timeout(now);
        }
        log_events(&mut self.cluster);
        self.health.look();
        has_more |= self.publish();
        // Where there was more to say, what has arrived meanwhile comes before the rest of it.
        if has_more || std::mem::take(&mut self.is_touched) {
            return Turn::Again;
        }
        // What was not looked at now may have been what it was called for.
        let next_look = (!is_time_to_look).then_some(self.next_look);
        let others = next_look.into_iter().chain(self.greet_at);
        Turn::Until(others.fold(self.cluster.poll_timeout(), Timestamp::min))
    }

    /// Publishes what was notified, and nothing else. Says whether there is more.
    ///
    /// `process` does that too. This is for a loop that has just notified something and wants it to leave at once.
    pub fn publish(&mut self) -> bool {
        for _ in 0..BUDGET {
            let Some(output) = self.cluster.poll_output() else {
                // Who has connected hears nothing before it is greeted, and then all.
                if self.is_connected && self.greet_at.is_none() {
                    self.handed_over.all(self.cluster.view());
                }
                return false;
            };
            let done = match output {
                ClusterOutput::Publish { topic, message } => {
                    envelope::seal(&mut self.frame, topic, message);
                    self.publisher.send(&self.frame[..], zmq::DONTWAIT)
                }
                ClusterOutput::Subscribe(topic) => {
                    envelope::subscription(&mut self.frame, topic);
                    if self.usual.is_empty() {
                        self.usual.clone_from(&self.frame);
                    }
                    self.is_touched = true;
                    self.subscriber.set_subscribe(&self.frame)
                }
                ClusterOutput::Unsubscribe(topic) => {
                    envelope::subscription(&mut self.frame, topic);
                    self.is_touched = true;
                    self.subscriber.set_unsubscribe(&self.frame)
                }
            };
            if let Err(error) = done {
                // A message that is not sent is missed, and read again.
                complain(&self.logs.sending, "libzmq refused to send or to subscribe", error);
            }
        }
        true
    }

    /// This node leaves: says goodbye, and waits until everything is sent, for about `linger` at most, all in all.
    pub fn leave(mut self, linger: Duration) {
        self.say_goodbye(linger);
        // Closing the context waits for what is to be sent.
        drop(self);
    }

    /// What is said then is sent when this is dropped, in about this time.
    pub(crate) fn say_goodbye(&mut self, linger: Duration) {
        let start = Instant::now();
        let time_left = || linger.saturating_sub(start.elapsed());
        // With a broker that is down, libzmq would keep what is said for it, and wait for it to come back.
        for endpoint in self.links.not_up(Side::Publisher) {
            let _ = self.publisher.disconnect(endpoint);
        }
        self.publish_last(time_left);
        self.cluster.leave();
        self.publish_last(time_left);
        let linger = time_left();
        if let Err(error) = self.publisher.set_linger(sockets::ms(linger)) {
            tracing::warn!(%error, "libzmq does not wait for the last messages to be sent");
        }
    }

    fn publish_last(&mut self, time_left: impl Fn() -> Duration) {
        for _ in 0..MAX_LAST_MESSAGES / BUDGET {
            if !self.publish() || time_left().is_zero() {
                return;
            }
        }
    }

    /// Says whether there may be more.
    fn receive(&mut self, now: Timestamp) -> bool {
        for _ in 0..BUDGET {
            if let Err(error) = self.subscriber.recv(&mut self.message, zmq::DONTWAIT) {
                match error {
                    // Having nothing, libzmq has looked at all that its fd was to tell.
                    zmq::Error::EAGAIN => return false,
                    zmq::Error::EINTR => continue,
                    _ => {
                        complain(&self.logs.receiving, "libzmq refused to receive", error);
                        return false;
                    }
                }
            }
            let is_last = !self.message.get_more();
            let is_whole = is_last && !self.is_amid_parts;
            self.is_amid_parts = !is_last;
            let message = envelope::open(&self.message, &self.usual).filter(|_| is_whole);
            match message {
                Some(message) => {
                    let _span = tracing::trace_span!("bus message", bytes = message.len()).entered();
                    self.cluster.handle(now, ClusterInput::Message(message));
                }
                None if is_last => self.cluster.view().add_malformed(1),
                None => {}
            }
        }
        true
    }

    fn look_at_links(&mut self, now: Timestamp) {
        for side in [Side::Publisher, Side::Subscriber] {
            let monitor = match side {
                Side::Publisher => &mut self.of_publisher,
                Side::Subscriber => &mut self.of_subscriber,
            };
            while let Some(event) = monitor.next() {
                match event {
                    Event::Up(endpoint) => {
                        tracing::debug!(endpoint, ?side, "connected");
                        if side == Side::Publisher {
                            self.greet_at.get_or_insert(now + GREET_AFTER);
                        }
                        self.links.set_up(now, side, endpoint, true);
                    }
                    Event::Down(endpoint) => {
                        tracing::debug!(endpoint, ?side, "disconnected");
                        self.links.set_up(now, side, endpoint, false);
                    }
                    Event::Refused(endpoint) => {
                        self.view.add_refused();
                        if let Some(skipped) = self.logs.refusals.happened() {
                            tracing::warn!(
                                endpoint,
                                ?side,
                                skipped,
                                "a connection was refused: are the keys right?"
                            );
                        }
                    }
                }
            }
        }
    }

    /// Tells of connections that have come or gone, if any have.
    fn show_links(&mut self, now: Timestamp) {
        let Some(counts) = self.links.changed_counts() else {
            return;
        };
        self.view.show(counts);
        self.places.changed(now, &self.links, counts);
        let is_connected = self.is_bound || counts.connected_brokers > 0;
        if is_connected == self.is_connected {
            return;
        }
        self.is_connected = is_connected;
        self.cluster.handle(
            now,
            match is_connected {
                true => ClusterInput::Connected,
                false => ClusterInput::Disconnected,
            },
        );
        if !self.is_bound {
            match is_connected {
                true => tracing::info!("connected to a broker"),
                false if self.logs.cut_off.happened().is_some() => {
                    tracing::warn!("no broker is connected: changes are not exchanged until one is");
                }
                false => {}
            }
        }
    }

    fn look_at_names(&mut self, now: Timestamp) {
        while let Some(answer) = self.names.as_ref().and_then(Names::next) {
            let name = self.links.names().get(answer.name).map(ToString::to_string);
            match answer.addresses {
                Ok(addresses) => {
                    let changes = self.links.resolved(now, answer.name, &addresses);
                    self.make(changes);
                }
                Err(error) => {
                    self.view.add_failed_lookup();
                    if let Some(skipped) = self.logs.lookups.happened() {
                        tracing::warn!(
                            name,
                            %error,
                            skipped,
                            "DNS lookup failed; the addresses found earlier stay in use"
                        );
                    }
                }
            }
        }
    }

    fn make(&mut self, changes: Vec<Change>) {
        for change in &changes {
            self.is_touched = true;
            let socket = |side: &Side| match side {
                Side::Publisher => &self.publisher,
                Side::Subscriber => &self.subscriber,
            };
            let done = match change {
                Change::Connect(side, endpoint) => socket(side).connect(endpoint),
                Change::Disconnect(side, endpoint) => socket(side).disconnect(endpoint),
            };
            match done {
                Ok(()) => tracing::debug!(?change, "as names and configuration say"),
                Err(error) => {
                    tracing::debug!(?change, %error, "refused");
                    complain(
                        &self.logs.connecting,
                        "libzmq refused to connect or to disconnect",
                        error,
                    );
                }
            }
        }
    }

    /// What libzmq was given to send.
    pub(crate) fn handed_over(&self) -> &HandedOver {
        &self.handed_over
    }

    /// The thread that drove it has panicked.
    pub(crate) fn give_up(&mut self, now: Timestamp) {
        self.cluster.handle(now, ClusterInput::Disconnected);
    }
}

fn complain(limit: &LogLimit, what: &'static str, error: zmq::Error) {
    if let Some(skipped) = limit.happened() {
        tracing::warn!(%error, skipped, "{what}");
    }
}

impl fmt::Debug for ZmqBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZmqBus")
            .field("addresses", &self.addresses())
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}
