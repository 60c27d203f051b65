//! [`Nats`]: the bus, and the thread beneath.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use async_nats::Subject;
use entity_sync_bus::{BadTopic, Bus, Inbox, NotSent, STOP_GRACE};
use tokio::sync::{oneshot, watch};

use crate::config::NatsConfig;
use crate::error::NatsError;
use crate::link::{self, Link};
use crate::options::Plan;
use crate::status::{NatsStatus, count};

/// A bus over NATS, with a thread of its own.
///
/// No call waits for the network, but for [`stop`](Bus::stop). Dropping it ends the thread soon, whatever waits.
pub struct Nats {
    link: Arc<Link>,
    subjects: Subjects,
    /// Starts the thread's work.
    inbox: Option<oneshot::Sender<Inbox>>,
    /// When all must be over.
    stop: watch::Sender<Option<Instant>>,
    /// Closed when the thread has let go of the connection.
    ended: mpsc::Receiver<()>,
}

impl Nats {
    /// Checks the configuration, and reads its files. Nothing is connected yet.
    ///
    /// # Errors
    /// What is wrong with it. That no server can be reached is no error, neither here nor later.
    pub fn new(config: &NatsConfig) -> Result<Self, NatsError> {
        let plan = Plan::new(config)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(NatsError::NoThread)?;
        let link = Arc::new(Link::default());
        let (inbox, started) = oneshot::channel();
        let (stop, stopped) = watch::channel(None);
        let (end, ended) = mpsc::channel();
        let its_link = link.clone();
        let work = move || {
            runtime.block_on(link::run(its_link, plan, started, stopped));
            // Not waiting for names that are being looked up.
            runtime.shutdown_background();
            drop(end);
        };
        let thread = thread::Builder::new().name("entity-sync-nats".to_owned());
        thread.spawn(work).map_err(NatsError::NoThread)?;
        Ok(Self {
            link,
            subjects: Subjects::default(),
            inbox: Some(inbox),
            stop,
            ended,
        })
    }

    /// How it goes, for whoever asks.
    pub fn status(&self) -> NatsStatus {
        self.link.status.clone()
    }
}

/// Topics that are kept checked: as many as a cluster has that publishes each bucket under its own, and some.
const MAX_SUBJECTS: usize = 32 * 1024;

/// Topics as NATS takes them. There are few, and each was checked when it came first.
#[derive(Default)]
struct Subjects(HashMap<Box<str>, Option<Subject>>);

impl Subjects {
    /// `None` if it can't be one.
    fn of(&mut self, topic: &str) -> Option<&Subject> {
        if !self.0.contains_key(topic) {
            if self.0.len() >= MAX_SUBJECTS {
                // Whoever publishes under so many is not served faster.
                self.0.clear();
            }
            let subject = check_topic(topic).is_ok().then(|| Subject::from(topic));
            self.0.insert(topic.into(), subject);
        }
        self.0.get(topic)?.as_ref()
    }
}

impl Bus for Nats {
    fn start(&mut self, inbox: Inbox) {
        if let Some(start) = self.inbox.take() {
            // It fails if the bus was stopped before.
            let _ = start.send(inbox);
        }
    }

    fn subscribe(&mut self, topic: &str) {
        match check_topic(topic) {
            Ok(()) => self.link.outgoing.want(topic, true),
            Err(error) => tracing::error!("NATS: {error}; its changes will be missed"),
        }
    }

    fn unsubscribe(&mut self, topic: &str) {
        if check_topic(topic).is_ok() {
            self.link.outgoing.want(topic, false);
        }
    }

    /// `Ok` means that there is a connection, and room. Messages that this connection has not taken when it is lost are
    /// dropped and counted; up to 256, which async-nats holds, may be sent over the next one.
    fn publish(&mut self, topic: &str, message: &[u8]) -> Result<(), NotSent> {
        if self.link.takes(message.len())
            && let Some(subject) = self.subjects.of(topic)
            && self.link.outgoing.publish(subject, message)
        {
            return Ok(());
        }
        count(&self.link.status.counters().not_sent, 1);
        Err(NotSent)
    }

    fn stop(&mut self, timeout: Duration) {
        self.link.outgoing.close();
        let now = Instant::now();
        let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(3600));
        self.stop.send_replace(Some(deadline));
        // It disconnects, and nobody sends.
        let _ = self.ended.recv_timeout(timeout.saturating_add(STOP_GRACE));
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.link.outgoing.close();
        self.stop.send_replace(Some(Instant::now()));
    }
}

impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nats").field("status", &self.link.status).finish()
    }
}

/// Whether a topic, or the prefix of topics, can be a subject: words between dots, without spaces and wildcards.
///
/// # Errors
/// What is wrong with it.
pub fn check_topic(topic: &str) -> Result<(), BadTopic> {
    let bad = |reason: &str| {
        Err(BadTopic {
            topic: topic.to_owned(),
            reason: reason.to_owned(),
        })
    };
    if topic.split('.').any(str::is_empty) {
        return bad("a subject of NATS has words between dots, and none of them is empty");
    }
    if topic
        .bytes()
        .any(|it| it <= b' ' || it == 127 || it == b'*' || it == b'>')
    {
        return bad("a subject of NATS has no spaces or control characters, and * and > are wildcards");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use entity_sync_bus::Probe;

    use super::*;

    #[test]
    fn topics() {
        for good in ["a", "shop.all", "shop.0033", "größe.x-y_z"] {
            assert!(check_topic(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a b",
            "a.*",
            ">",
            "a\r\nPUB b",
            "a\tb",
            "a\0",
        ] {
            assert!(check_topic(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn topics_are_checked_once_and_kept_within_bounds() {
        let mut subjects = Subjects::default();
        for _ in 0..2 {
            assert_eq!(subjects.of("shop.all").map(Subject::as_str), Some("shop.all"));
            assert_eq!(subjects.of("shop.*"), None);
            assert_eq!(subjects.0.len(), 2);
        }
        for i in 0..2 * MAX_SUBJECTS {
            let topic = format!("a.{i}");
            assert_eq!(subjects.of(&topic).map(Subject::as_str), Some(&*topic));
            assert!(subjects.0.len() <= MAX_SUBJECTS);
        }
    }

    #[test]
    fn without_a_server() {
        let nats = Nats::new(&NatsConfig::new(["nats://127.0.0.1:1"]));
        let mut nats = nats.unwrap_or_else(|error| panic!("{error}"));
        let status = nats.status();
        assert_eq!(nats.publish("a", b"1"), Err(NotSent));
        let probe = Probe::new();
        nats.start(probe.inbox());
        // More than async-nats takes while it has no connection.
        for i in 0..5000 {
            nats.subscribe(&format!("a.{i}"));
        }
        let start = Instant::now();
        while status.counts().errors == 0 {
            assert!(start.elapsed() < Duration::from_secs(30));
            assert_eq!(nats.publish("a", b"1"), Err(NotSent));
            thread::sleep(Duration::from_millis(1));
        }
        assert!(!status.is_connected() && !status.was_connected());
        assert_eq!(probe.next(), None);
        // Nothing is to be sent, so that it is over long before the time is.
        nats.stop(Duration::from_secs(3600));
        assert_eq!(nats.publish("a", b"1"), Err(NotSent));
    }

    #[test]
    fn it_ends_even_if_it_was_never_started() {
        let nats = Nats::new(&NatsConfig::new(["nats://127.0.0.1:1"]));
        let mut nats = nats.unwrap_or_else(|error| panic!("{error}"));
        nats.stop(Duration::from_secs(3600));
        nats.start(Probe::new().inbox());
        assert_eq!(nats.publish("a", b"1"), Err(NotSent));
    }

    #[test]
    fn dropping_it_ends_the_thread() {
        let nats = Nats::new(&NatsConfig::new(["nats://127.0.0.1:1"]));
        let mut nats = nats.unwrap_or_else(|error| panic!("{error}"));
        nats.start(Probe::new().inbox());
        let link = Arc::downgrade(&nats.link);
        drop(nats);
        let start = Instant::now();
        while link.strong_count() > 0 {
            assert!(start.elapsed() < Duration::from_secs(30));
            thread::sleep(Duration::from_millis(1));
        }
    }
}
