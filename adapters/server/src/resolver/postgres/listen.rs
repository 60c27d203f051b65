//! [`Listener`]: hears what the database notifies of. What it may have missed while it could not hear is read again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use entity_sync_mio::EntityKey;
use tokio_postgres::Notification;

use super::session::{Failure, Session, Tls};
use super::{Shared, count};

/// How often a silent connection is asked whether it is still there, and how long it may take to say so.
const ASK_EVERY: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long to wait after a failure: doubled each time up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What to hear, and what to do then.
pub struct Listener {
    /// The channel whose payloads are keys, such as `items/100`.
    pub channel: String,
    /// Told of each key. Says whether that is an entity.
    pub heard: Arc<dyn Fn(&EntityKey) -> bool + Send + Sync>,
    /// Told after each gap, when the next notification will be heard.
    pub reread_all: Box<dyn Fn() + Send + Sync>,
}

/// Hears for ever, with whatever connection there is.
pub(super) async fn listen(shared: Arc<Shared>, listener: &Listener, tls: Tls) {
    let mut wait = RETRY.0;
    // After a panic it says otherwise.
    shared.counts.listening.store(0, Ordering::Relaxed);
    loop {
        match begin(&shared, listener, tls.clone()).await {
            Ok(session) => {
                wait = RETRY.0;
                shared.counts.listening.store(1, Ordering::Relaxed);
                tracing::info!(channel = listener.channel, "hearing PostgreSQL's notifications");
                count(&shared.counts.gaps);
                (listener.reread_all)();
                while session.is_alive(ANSWER_WITHIN).await {
                    // A connection that is closed is noticed soon, one that hangs when it is asked.
                    for _ in 0..100 {
                        tokio::time::sleep(ASK_EVERY / 100).await;
                        if session.is_closed() {
                            break;
                        }
                    }
                }
                shared.counts.listening.store(0, Ordering::Relaxed);
                shared.complain("lost", "the connection that hears PostgreSQL's notifications was lost; all is read again once there is another");
            }
            Err(error) => {
                let channel = &listener.channel;
                shared.complain(
                    "listen",
                    format_args!("can't hear PostgreSQL's notifications on {channel:?}: {error}; trying again"),
                );
            }
        }
        tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        wait = (wait * 2).min(RETRY.1);
    }
}

async fn begin(shared: &Arc<Shared>, listener: &Listener, tls: Tls) -> Result<Session, Failure> {
    let (heard, of_driver) = (listener.heard.clone(), shared.clone());
    let hear = move |notification: Notification| tell(&of_driver, &*heard, notification.payload());
    let session = Session::connect_and_hear(shared, tls, hear).await?;
    let channel = listener.channel.replace('"', "\"\"");
    session.batch(&format!("LISTEN \"{channel}\"")).await?;
    Ok(session)
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
    shared.complaints.tell(
        "payload",
        format_args!(
            "PostgreSQL notified of {payload:?}, which is no key of an entity: payloads are an entity and an id, such as \
             items/100"
        ),
    );
}
