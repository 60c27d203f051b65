//! [`Link`]: what the bus's two sides share, and [`run`]: the side that has the connection.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{Client, ClientError, Event, Server, Subject, Subscriber};
use entity_sync_bus::{Inbox, LogLimit, Outage, Part, Severity};
use entity_sync_runtime::supervise;
use futures_core::Stream;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::AbortHandle;

use crate::options::Plan;
use crate::outgoing::{Batch, Outgoing};
use crate::rights::{Denied, Permission};
use crate::status::{NatsStatus, count};

/// How often the connection is looked at besides, as async-nats drops events when they are many.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// A server that is about to close is left within this time, not by all nodes at once.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// After async-nats has failed.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// What the bus's two sides share.
#[derive(Default)]
pub(crate) struct Link {
    pub(crate) outgoing: Outgoing,
    pub(crate) status: NatsStatus,
    /// The server's limit. 0: not known.
    max_payload: AtomicUsize,
    was_too_large: AtomicBool,
    logs: Logs,
    /// What this node may not do.
    denied: Mutex<Denied>,
    /// Where an operator is told what is wrong, once it is started.
    part: OnceLock<Part>,
    /// Something has happened to the connection.
    look: Notify,
    /// The server is about to close.
    leave: Notify,
    /// To which connection that was.
    leaving: AtomicU64,
    /// The server has said no to something.
    error: Notify,
    closed: Notify,
}

/// One for each kind of line.
#[derive(Default)]
struct Logs {
    unreachable: Outage,
    error: LogLimit,
    slow: LogLimit,
    refused: LogLimit,
}

impl Link {
    /// Whether the server takes a message of this length.
    pub(crate) fn takes(&self, length: usize) -> bool {
        let max = self.max_payload.load(Ordering::Relaxed);
        let takes = max == 0 || length <= max;
        if !takes && !self.was_too_large.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "NATS: a message of {length} bytes exceeds the server's max_payload ({max}) and was not sent, nor will \
                 others of that size be: raise max_payload"
            );
        }
        takes
    }

    fn event(&self, event: &Event) {
        let counters = self.status.counters();
        match event {
            Event::Connected => self.look.notify_one(),
            Event::Disconnected => {
                // What comes from now on is of the next connection, also if that is noticed later.
                self.denied.lock().clear();
                self.look.notify_one();
            }
            Event::Closed => self.closed.notify_one(),
            Event::Draining => {}
            Event::LameDuckMode => {
                tracing::info!("NATS: the server is about to close");
                let connection = counters.connects.load(Ordering::Relaxed);
                self.leaving.store(connection, Ordering::Relaxed);
                self.leave.notify_one();
            }
            Event::SlowConsumer(_) => {
                count(&counters.slow, 1);
                if let Some(before) = self.logs.slow.happened() {
                    tracing::warn!(
                        before,
                        "NATS: messages come faster than they are taken, and some were dropped"
                    );
                }
            }
            Event::ServerError(error) => {
                count(&counters.errors, 1);
                self.error.notify_waiters();
                let error = error.to_string();
                match Permission::of(&error) {
                    Some(permission) => self.is_denied(permission),
                    None => {
                        if let Some(before) = self.logs.error.happened() {
                            tracing::error!(before, "NATS: the server refused something: {error}");
                        }
                    }
                }
                self.status.set_last_error(Some(error));
            }
            // An attempt to connect; why it failed is told to `unreachable`.
            Event::ClientError(ClientError::Other(_)) => count(&counters.errors, 1),
            Event::ClientError(error) => tracing::debug!("{error}"),
        }
    }

    /// Before each attempt to connect: why those before have failed, if they have.
    fn unreachable(&self, servers: &[Server]) {
        let failed = servers.iter().filter(|it| it.failed_attempts > 0);
        let reasons = failed.filter_map(|it| {
            let (host, port, error) = (it.addr.host(), it.addr.port(), it.last_error.as_ref()?);
            Some(format!("{host}:{port}: {error}{}", hint(error)))
        });
        let reasons = reasons.collect::<Vec<_>>().join("; ");
        if reasons.is_empty() {
            return;
        }
        if let Some(before) = self.logs.unreachable.failed() {
            tracing::warn!(before, "NATS: no connection, trying again: {reasons}");
        }
        self.trouble(format!("no connection: {reasons}"));
        self.status.set_last_error(Some(reasons));
    }

    /// There is a connection, the one of this number.
    fn connected(&self, number: u64, inbox: &Inbox) {
        let counters = self.status.counters();
        self.outgoing.connection(Some(number));
        counters.connects.store(number, Ordering::Relaxed);
        counters.is_connected.store(true, Ordering::Relaxed);
        self.logs.unreachable.is_over();
        let missing = self.denied.lock().missing();
        match &missing {
            Some(missing) => self.trouble(missing.as_str()),
            None => self.is_well(),
        }
        self.status.set_last_error(missing);
        // Topics are subscribed to before anything is published over this connection: what is published from now on
        // is heard by this node, too.
        inbox.connected();
    }

    /// There is no connection any more, if there was one.
    fn lost(&self, inbox: &Inbox) {
        if self.status.counters().is_connected.swap(false, Ordering::Relaxed) {
            self.drop_messages(self.outgoing.connection(None));
            inbox.disconnected();
            self.trouble("the connection is lost");
        }
    }

    fn is_denied(&self, permission: Permission) {
        let mut denied = self.denied.lock();
        let to_be_logged = denied.add(Instant::now(), permission);
        let Some(missing) = denied.missing() else { return };
        if let Some(before) = to_be_logged {
            tracing::error!(before, "NATS: {missing}");
        }
        drop(denied);
        self.trouble(missing);
    }

    /// Tries again what was denied, and forgets what no longer is. Subscriptions that were denied are to be made again.
    fn look_at_denied(&self) {
        let mut denied = self.denied.lock();
        let had_any = denied.missing().is_some();
        for subject in denied.try_again(Instant::now()) {
            self.outgoing.want_once_more(&subject);
        }
        if had_any && denied.missing().is_none() {
            drop(denied);
            self.is_well();
        }
    }

    fn trouble(&self, message: impl Into<String>) {
        if let Some(part) = self.part.get() {
            part.report(Severity::NotReady, message);
        }
    }

    fn is_well(&self) {
        if let Some(part) = self.part.get() {
            part.recover();
        }
    }

    fn drop_messages(&self, dropped: usize) {
        count(&self.status.counters().not_sent, dropped as u64);
    }
}

/// What to do about it, where the error alone doesn't say.
fn hint(error: &str) -> &'static str {
    let error = error.to_lowercase();
    if error.contains("authorization") || error.contains("authentication") {
        " (look at the user, password, token or credentials)"
    } else if error.contains("unknownissuer") {
        " (look at the file of root certificates)"
    } else if error.contains("invalidcontenttype") {
        " (perhaps the server has no TLS)"
    } else {
        ""
    }
}

/// Connects, and serves until it is stopped.
pub(crate) async fn run(
    link: Arc<Link>,
    plan: Plan,
    started: oneshot::Receiver<Inbox>,
    mut stopped: watch::Receiver<Option<Instant>>,
) {
    let inbox = tokio::select! {
        inbox = started => inbox,
        _ = stopped.wait_for(Option::is_some) => return,
    };
    let Ok(inbox) = inbox else { return };
    let _ = link.part.set(inbox.health().part("nats"));
    link.trouble("not connected yet");
    let health = inbox.health().clone();
    supervise("entity-sync-nats", &health, go_on(&link, &plan, &inbox, stopped)).await;
}

async fn go_on(link: &Arc<Link>, plan: &Plan, inbox: &Inbox, mut stopped: watch::Receiver<Option<Instant>>) {
    let _watch = DeadMansSwitch { link, inbox };
    while serve(link, plan, inbox, &mut stopped).await == End::Failed {
        tracing::error!("NATS: the client has failed; a new one is started");
        count(&link.status.counters().errors, 1);
        link.denied.lock().clear();
        link.lost(inbox);
        let again = tokio::time::sleep(RESTART_DELAY);
        tokio::select! {
            () = again => {}
            _ = stopped.wait_for(Option::is_some) => return,
        }
    }
}

/// Whoever is left by a thread that panics must not be thought to be connected.
struct DeadMansSwitch<'a> {
    link: &'a Link,
    inbox: &'a Inbox,
}

impl Drop for DeadMansSwitch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.link.outgoing.close();
            self.link.lost(self.inbox);
            let last_error = "the thread of this node's that has the connection panicked";
            self.link.status.set_last_error(Some(last_error.to_owned()));
        }
    }
}

#[derive(PartialEq)]
enum End {
    Stopped,
    /// async-nats has panicked, as it does on some answers that no server gives.
    Failed,
}

async fn serve(link: &Arc<Link>, plan: &Plan, inbox: &Inbox, stopped: &mut watch::Receiver<Option<Instant>>) -> End {
    let alive = Alive::default();
    let failed = alive.0.clone();
    let for_events = link.clone();
    let for_attempts = link.clone();
    let options = plan.options.clone();
    let options = options
        .event_callback(move |event| {
            // Dropped with this, which is when nothing can happen any more.
            let _ = &alive;
            for_events.event(&event);
            std::future::ready(())
        })
        .reconnect_to_server_callback(move |servers, _| {
            for_attempts.unreachable(&servers);
            // Whichever it would have been.
            std::future::ready(None)
        });
    // It returns at once, as it is to retry the first time, too.
    let client = match options.connect(plan.servers.as_slice()).await {
        Ok(client) => client,
        Err(error) => {
            tracing::error!("NATS: no client: {error}");
            return End::Failed;
        }
    };
    link.outgoing.want_again();

    tokio::select! {
        () = pump(link, &client, inbox) => {}
        () = watch(link, &client, inbox) => {}
        () = leave(link, &client) => {}
        () = time_is_over(link, stopped.clone()) => {}
        () = failed.notified() => return End::Failed,
    }
    let deadline = stopped.borrow().unwrap_or_else(Instant::now);
    let _ = tokio::time::timeout_at(deadline.into(), farewell(link, &client)).await;
    link.status.counters().is_connected.store(false, Ordering::Relaxed);
    End::Stopped
}

/// Tells when it is dropped.
#[derive(Default)]
struct Alive(Arc<Notify>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// Once it was stopped: when the time is over, or at once if nothing can be sent.
async fn time_is_over(link: &Link, mut stopped: watch::Receiver<Option<Instant>>) {
    let deadline = match stopped.wait_for(Option::is_some).await {
        Ok(deadline) => *deadline,
        Err(_) => None,
    };
    if let Some(deadline) = deadline
        && link.status.is_connected()
    {
        tokio::time::sleep_until(deadline.into()).await;
    }
}

/// Hands over what waits, until it is closed and nothing waits.
async fn pump(link: &Arc<Link>, client: &Client, inbox: &Inbox) {
    let mut subscriptions = HashMap::new();
    while let Some(batch) = link.outgoing.next().await {
        let Batch {
            topics,
            messages,
            connection,
        } = batch;
        for (topic, is_wanted) in topics {
            subscribe(link, client, inbox, &mut subscriptions, topic, is_wanted).await;
        }
        let mut messages = messages.into_iter();
        while link.outgoing.is_for(connection)
            && let Some((subject, message)) = messages.next()
        {
            let sent = tokio::select! {
                biased;
                sent = client.publish(subject, message) => sent,
                // It would wait for the next connection.
                () = link.outgoing.lost(connection) => {
                    link.drop_messages(1);
                    break;
                }
            };
            match sent {
                Ok(()) => count(&link.status.counters().published, 1),
                Err(error) => {
                    link.drop_messages(1);
                    if let Some(before) = link.logs.refused.happened() {
                        tracing::error!(before, "NATS: a message was not sent: {error}");
                    }
                }
            }
        }
        link.drop_messages(messages.len());
    }
}

async fn subscribe(
    link: &Arc<Link>,
    client: &Client,
    inbox: &Inbox,
    subscriptions: &mut HashMap<Box<str>, AbortHandle>,
    topic: Box<str>,
    is_wanted: bool,
) {
    if !is_wanted {
        // Its subscriber is dropped, which unsubscribes.
        if let Some(task) = subscriptions.remove(&topic) {
            task.abort();
        }
        return;
    }
    if link.denied.lock().has_subscription(&topic)
        && let Some(task) = subscriptions.remove(&topic)
    {
        task.abort();
    }
    let Entry::Vacant(entry) = subscriptions.entry(topic) else {
        return;
    };
    match client.subscribe(Subject::from(&**entry.key())).await {
        Ok(subscriber) => {
            // It takes all there is at its turn, not only the 128 that tokio would let it: the connection's
            // task reads far more at its own.
            let receive = receive(link.clone(), subscriber, inbox.clone());
            let receive = supervise(format!("NATS subscription {:?}", entry.key()), inbox.health(), receive);
            let task = tokio::spawn(tokio::task::unconstrained(receive));
            entry.insert(task.abort_handle());
        }
        Err(error) => tracing::error!(
            "NATS: can't subscribe to {:?}, so its changes will be missed: {error}",
            entry.key()
        ),
    }
}

async fn receive(link: Arc<Link>, mut subscriber: Subscriber, inbox: Inbox) {
    while let Some(message) = next(&mut subscriber).await {
        count(&link.status.counters().received, 1);
        inbox.message(message.payload);
    }
}

async fn next(subscriber: &mut Subscriber) -> Option<async_nats::Message> {
    let mut subscriber = pin!(subscriber);
    std::future::poll_fn(|context| subscriber.as_mut().poll_next(context)).await
}

/// Tells of the connection, whatever has become of events.
async fn watch(link: &Link, client: &Client, inbox: &Inbox) {
    let statistics = client.statistics();
    let counters = link.status.counters();
    // Of other clients.
    let before = counters.connects.load(Ordering::Relaxed);
    let mut connects = before;
    let mut was_connected = false;
    loop {
        let is_connected = client.connection_state() == State::Connected;
        let connects_now = before + statistics.connects.load(Ordering::Relaxed);
        let is_another = connects_now != connects;
        if was_connected && (!is_connected || is_another) {
            link.lost(inbox);
        }
        if is_connected && (!was_connected || is_another) {
            link.max_payload.store(client.max_payload(), Ordering::Relaxed);
            link.connected(connects_now, inbox);
        }
        if is_connected {
            link.look_at_denied();
        }
        (connects, was_connected) = (connects_now, is_connected);
        let _ = tokio::time::timeout(LOOK_INTERVAL, link.look.notified()).await;
    }
}

/// Leaves servers that are about to close, if there are others.
async fn leave(link: &Link, client: &Client) {
    // It says so more than once.
    let is_still = || {
        let connection = link.status.counters().connects.load(Ordering::Relaxed);
        link.status.is_connected() && link.leaving.load(Ordering::Relaxed) == connection
    };
    loop {
        link.leave.notified().await;
        if is_still() && client.server_pool().await.is_ok_and(|servers| servers.len() > 1) {
            tokio::time::sleep(LEAVE_WITHIN.mul_f64(fastrand::f64())).await;
            if is_still() {
                let _ = client.force_reconnect().await;
            }
        }
    }
}

/// Makes sure that the server has got what was published, and closes.
///
/// A flush only says that the system has the bytes, and a socket that is closed with something unread takes them back.
/// But what comes back from the server has gone there behind them.
async fn farewell(link: &Link, client: &Client) {
    if !link.status.is_connected() {
        return;
    }
    let _ = client.flush().await;
    let here_and_back = async {
        let subject = client.new_inbox();
        let mut subscriber = client.subscribe(subject.clone()).await.ok()?;
        client.publish(subject, "".into()).await.ok()?;
        next(&mut subscriber).await
    };
    tokio::select! {
        _ = here_and_back => {}
        // We may not be allowed to do that; the answer has gone the same way.
        () = link.error.notified() => {}
    }
    if client.drain().await.is_ok() {
        link.closed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use async_nats::ServerError;
    use entity_sync_bus::{Health, Probe, Told};

    use super::*;

    fn connected() -> (Link, Probe) {
        let link = Link::default();
        link.outgoing.connection(Some(1));
        link.status.counters().is_connected.store(true, Ordering::Relaxed);
        assert!(link.outgoing.publish(&"a".into(), b"1"));
        (link, Probe::new())
    }

    fn switch<'a>(link: &'a Link, inbox: &'a Inbox) -> DeadMansSwitch<'a> {
        DeadMansSwitch { link, inbox }
    }

    /// The connection is noticed some time after it was made, and by then the server may have said no to something.
    #[test]
    fn what_was_denied_before_the_connection_was_noticed_is_not_forgotten() {
        let (link, probe) = (Link::default(), Probe::new());
        let (inbox, health) = (probe.inbox(), Health::default());
        let _ = link.part.set(health.part("nats"));
        let deny = |text: &str| link.event(&Event::ServerError(ServerError::Other(text.to_owned())));
        let says = |text: &str| health.troubles().iter().any(|it| it.message.contains(text));
        link.event(&Event::Connected);
        deny("Permissions Violation for Subscription to \"first\"");
        link.connected(1, &inbox);
        assert!(says("may not subscribe to \"first\""), "{:?}", health.troubles());
        // With another one, it has to be said again.
        link.event(&Event::Disconnected);
        link.event(&Event::Connected);
        deny("Permissions Violation for Publish to \"second\"");
        link.lost(&inbox);
        link.connected(2, &inbox);
        assert!(
            !says("first") && says("may not publish to \"second\""),
            "{:?}",
            health.troubles()
        );
        link.event(&Event::Disconnected);
        link.event(&Event::Connected);
        link.connected(3, &inbox);
        assert_eq!(health.troubles(), []);
    }

    #[test]
    fn when_the_thread_panics_the_bus_is_not_connected_any_more() {
        let (link, probe) = connected();
        let ended = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let inbox = probe.inbox();
                let _switch = switch(&link, &inbox);
                panic!("as a test wants it to");
            });
            thread.join()
        });
        assert!(ended.is_err());
        assert_eq!(probe.next(), Some(Told::Disconnected));
        assert!(!link.status.is_connected());
        assert!(!link.outgoing.publish(&"a".into(), b"2"));
        assert_eq!(link.status.counts().not_sent, 1);
    }

    #[test]
    fn when_the_thread_ends_nothing_is_told() {
        let (link, probe) = connected();
        drop(switch(&link, &probe.inbox()));
        assert_eq!(probe.next(), None);
    }
}
