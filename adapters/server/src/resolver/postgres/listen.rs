//! [`Listener`]: hears what the database notifies of. What it may have missed while it could not hear is read again.
//!
//! That a connection took `LISTEN` does not say that it hears: a pooler that gives each transaction another connection takes
//! it too, and passes no notification on. So it is tried, at first and again and again, with a notification by another
//! connection to a channel that nobody else listens to.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use entity_sync_mio::EntityKey;
use entity_sync_runtime::Severity;
use tokio::sync::mpsc;
use tokio_postgres::Notification;

use super::session::{Failure, Session};
use super::tls::Tls;
use super::{Shared, count};
use crate::resolver::health::Kind;

/// How often a silent connection is asked whether it is still there.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How often it is tried whether notifications come through, and how long one may take.
const TRY_EVERY: Duration = Duration::from_secs(30);
const HEARD_WITHIN: Duration = Duration::from_secs(5);
/// How long to wait after a failure: doubled each time up to the second; or to the third if it is deaf, which may stay so, and
/// may leave a `LISTEN` in a pooler's connection each time.
const RETRY: (Duration, Duration, Duration) = (
    Duration::from_millis(100),
    Duration::from_secs(5),
    Duration::from_secs(60),
);

/// What to hear, and what to do then.
pub struct Listener {
    /// The channel whose payloads are keys, such as `items/100`.
    pub channel: String,
    /// Told of each key. Says whether that is an entity.
    pub heard: Arc<dyn Fn(&EntityKey) -> bool + Send + Sync>,
    /// Told after each gap, when the next notification will be heard.
    pub reread_all: Box<dyn Fn() + Send + Sync>,
}

/// A connection that listens.
struct Ear {
    session: Session,
    /// A channel of its own.
    probe: String,
    probes: mpsc::UnboundedReceiver<String>,
}

/// Hears for ever, with whatever connection there is.
pub(super) async fn listen(shared: Arc<Shared>, listener: &Listener, tls: Tls) {
    let channel = &listener.channel;
    let mut wait = RETRY.0;
    let part = &shared.listening;
    // After a panic it says otherwise.
    shared.counts.listening.store(0, Ordering::Relaxed);
    loop {
        let mut longest = RETRY.1;
        match begin(&shared, listener, tls.clone()).await {
            Ok((mut ear, true)) => {
                wait = RETRY.0;
                shared.counts.listening.store(1, Ordering::Relaxed);
                part.recover();
                tracing::info!(channel, "hearing PostgreSQL's notifications");
                count(&shared.counts.gaps);
                (listener.reread_all)();
                let why = stay(&shared, &mut ear, tls.clone()).await;
                shared.counts.listening.store(0, Ordering::Relaxed);
                let what = format!("{why}; all is read again once notifications are heard");
                part.report(Severity::Degraded, what.as_str());
                shared.complain(Kind::Failed, &what);
            }
            Ok((ear, false)) => {
                (wait, longest) = (wait.max(RETRY.1), RETRY.2);
                let what = format!(
                    "PostgreSQL's notifications on {channel:?} don't come through, so changes are not seen: is a pooler \
                     between that shares connections by transaction? Give this server a DSN that leads to the database \
                     itself, or to a pool by session, or notify it over its API"
                );
                part.report(Severity::Degraded, what.as_str());
                shared.complain(Kind::Rejected, &what);
                // The pooler's connection may be the same one now.
                let _ = ear.session.batch("UNLISTEN *").await;
            }
            Err(failure) => {
                if failure.may_be_of_all() {
                    shared.can_not_connect(&failure);
                }
                not_hearing(&shared, channel, &failure);
            }
        }
        shared.health.look();
        tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        wait = (wait * 2).min(longest);
    }
}

fn not_hearing(shared: &Shared, channel: &str, failure: &Failure) {
    let what = format!("can't hear PostgreSQL's notifications on {channel:?}: {failure}; trying again");
    shared.listening.report(Severity::Degraded, what.as_str());
    shared.complain(Kind::Failed, &what);
}

/// A connection that listens, and whether it hears.
async fn begin(shared: &Arc<Shared>, listener: &Listener, tls: Tls) -> Result<(Ear, bool), Failure> {
    let probe = format!("entity_sync_probe_{:016x}", fastrand::u64(..));
    let (heard_probe, probes) = mpsc::unbounded_channel();
    let (heard, of_driver, of_probe) = (listener.heard.clone(), shared.clone(), probe.clone());
    let hear = move |notification: Notification| {
        if notification.channel() == of_probe {
            // Nobody waits for it any more.
            let _ = heard_probe.send(notification.payload().to_owned());
        } else {
            tell(&of_driver, &*heard, notification.payload());
        }
    };
    let session = Session::connect_and_hear(shared, tls.clone(), hear).await?;
    let channel = listener.channel.replace('"', "\"\"");
    // In one transaction, and so on one connection.
    session
        .batch(&format!("LISTEN \"{channel}\"; LISTEN \"{probe}\""))
        .await?;
    let mut ear = Ear { session, probe, probes };
    let is_heard = hears(shared, &mut ear, tls).await?;
    shared.health.works();
    Ok((ear, is_heard))
}

/// Whether a notification of another connection comes through. That one may lead to the same connection behind a pooler, but
/// then it is told itself.
async fn hears(shared: &Shared, ear: &mut Ear, tls: Tls) -> Result<bool, Failure> {
    let nonce = format!("{:016x}", fastrand::u64(..));
    let other = Session::connect(shared, tls).await?;
    other.notify(&ear.probe, &nonce).await?;
    let heard = async {
        while let Some(payload) = ear.probes.recv().await {
            if payload == nonce {
                return Ok(true);
            }
        }
        let reason = "the connection was lost".to_owned();
        Err(Failure::Lost { code: None, reason })
    };
    tokio::time::timeout(HEARD_WITHIN, heard).await.unwrap_or(Ok(false))
}

/// Stays until it hears no more. Says why.
async fn stay(shared: &Shared, ear: &mut Ear, tls: Tls) -> &'static str {
    let mut tried = Instant::now();
    while ear.session.is_alive().await {
        // A connection that is closed is noticed soon, one that hangs when it is asked.
        for _ in 0..100 {
            tokio::time::sleep(ASK_EVERY / 100).await;
            if ear.session.is_closed() {
                break;
            }
        }
        shared.health.look();
        if tried.elapsed() >= TRY_EVERY {
            tried = Instant::now();
            // If there is no other connection to be had, that says nothing about this one.
            if matches!(hears(shared, ear, tls.clone()).await, Ok(false)) && !ear.session.is_closed() {
                return "PostgreSQL's notifications don't come through any more";
            }
        }
    }
    "the connection that hears PostgreSQL's notifications was lost"
}

fn tell(shared: &Shared, heard: &(dyn Fn(&EntityKey) -> bool + Send + Sync), payload: &str) {
    let key = payload
        .split_once('/')
        .and_then(|(entity, id)| EntityKey::new(entity, id).ok());
    if key.is_some_and(|key| heard(&key)) {
        count(&shared.counts.notifications);
        return;
    }
    count(&shared.counts.bad_notifications);
    let payload: String = payload.chars().take(100).collect();
    let what = format!(
        "PostgreSQL notified of {payload:?}, which is no key of an entity: payloads are an entity and an id, such as items/100"
    );
    shared.health.log(Kind::Nonsense, &what);
}
