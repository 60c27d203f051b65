//! The thread that all connections live on, and how it is told to [`Stop`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use entity_sync_bus::PlainInbox;
use entity_sync_runtime::supervise;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::consumer::Consumer;
use crate::producer::{Kept, Producer, Publish};
use crate::status::Shared;
use crate::wire::Topic;

/// What there is to be heard of.
pub(crate) struct Start {
    pub(crate) topics: Vec<String>,
    pub(crate) inbox: PlainInbox,
}

/// Tells when to leave, and until when that is to be done.
#[derive(Clone)]
pub(crate) struct Stop(pub(crate) watch::Receiver<Option<Instant>>);

/// Serves the bus until it is stopped or dropped.
pub(crate) async fn run(
    shared: Arc<Shared>,
    start: oneshot::Receiver<Start>,
    waiting: Vec<mpsc::Receiver<Publish>>,
    stop: Stop,
) {
    let Ok(Start { topics, inbox }) = start.await else {
        return;
    };
    let health = inbox.health().clone();
    supervise("entity-sync-nsq", &health, serve(shared, topics, inbox, waiting, stop)).await;
}

async fn serve(
    shared: Arc<Shared>,
    mut topics: Vec<String>,
    inbox: PlainInbox,
    waiting: Vec<mpsc::Receiver<Publish>>,
    stop: Stop,
) {
    let mut seen = HashSet::new();
    topics.retain(|topic| seen.insert(topic.clone()));
    shared.start(topics.len(), &inbox);
    let mut tasks = JoinSet::new();
    for topic in &topics {
        let topic = match Topic::new(topic) {
            Ok(topic) => topic,
            Err(why) => {
                tracing::error!(topic, "NSQ can't carry this entity: {why}");
                continue;
            }
        };
        for nsqd in 0..shared.nsqds.len() {
            let consumer = Consumer {
                shared: shared.clone(),
                nsqd,
                topic: topic.clone(),
                inbox: inbox.clone(),
                stop: stop.clone(),
            };
            let name = format!("NSQ consumer of {}", topic.as_str());
            tasks.spawn(supervise(name, inbox.health(), consumer.run()));
        }
    }
    for (nsqd, waiting) in waiting.into_iter().enumerate() {
        let name = format!("NSQ producer for {}", shared.nsqds[nsqd].address);
        let producer = Producer {
            kept: Kept::new(shared.nsqds.len()),
            shared: shared.clone(),
            nsqd,
            waiting,
        };
        tasks.spawn(supervise(name, inbox.health(), producer.run()));
    }
    tokio::select! {
        () = stop.expired() => {}
        () = finish(&mut tasks) => {}
    }
    // Whatever is not done by now is dropped, and with it the receipts.
}

/// Waits for all of them.
async fn finish(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

impl Stop {
    /// Waits until this node leaves; by when it is to have left.
    pub(crate) async fn requested(&self) -> tokio::time::Instant {
        // Nobody can ask any more: the bus was dropped.
        let deadline = self.0.clone().wait_for(Option::is_some).await.ok().and_then(|it| *it);
        deadline.unwrap_or_else(Instant::now).into()
    }

    /// Waits until the time for leaving is up.
    async fn expired(&self) {
        let deadline = self.requested().await;
        tokio::time::sleep_until(deadline).await;
    }
}
