//! [`Queue`]: reads that wait for a connection, those of one query and audience together, and what runs them.
//!
//! A query fails as a whole when one of its ids is bad. It is then split in halves, until the bad one is alone; those halves
//! wait in a line of their own, which has half of the connections at most. An id that was bad before goes there at once, and
//! alone: the others don't suffer from it again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use entity_sync_mio::{Audience, ReadError, Reply, Request};
use entity_sync_runtime::Turns;
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::sync::Notify;

use super::session::{Ask, Failure, Found, Session};
use super::tls::Tls;
use super::{Shared, count};
use crate::resolver::health::Kind;

/// Ids in one query, at most.
pub const MAX_IDS: usize = 500;
/// After a connection failed, reads fail for so long without another attempt. Core tries each of them again.
const REST: Duration = Duration::from_millis(200);
/// Memory for ids that were bad, about.
const BAD_ID_BYTES: u64 = 1 << 20;

/// What a query is asked for at once.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Group {
    query: usize,
    entity: String,
    audience: Audience,
}

/// A read of one id.
struct Item {
    id: String,
    reply: Reply,
    since: Instant,
}

pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    work: Notify,
    /// Core gives a read up after this, and asks for another one.
    limit: Duration,
    /// Connections that may have [suspects](Waiting::suspects) at the same time.
    max_testing: usize,
    /// By who asks as well: what is bad about it may be the secret.
    bad_ids: Cache<(Group, String), (), Weight>,
}

#[derive(Default)]
struct Waiting {
    fresh: Turns<Group, Item>,
    /// Parts of queries that failed, and ids that were bad before.
    suspects: Turns<Group, Vec<Item>>,
    /// Connections that have some of them.
    testing: usize,
    was_test: bool,
}

struct Batch<'a> {
    group: Group,
    items: Vec<Item>,
    /// Its items are suspects.
    _test: Option<Test<'a>>,
}

/// Counts a connection that has suspects until it is dropped.
struct Test<'a>(&'a Queue);

impl Drop for Test<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().testing -= 1;
        self.0.work.notify_one();
    }
}

#[derive(Clone)]
struct Weight;

impl Weighter<(Group, String), ()> for Weight {
    fn weight(&self, (group, id): &(Group, String), (): &()) -> u64 {
        let secret = match &group.audience {
            Audience::Secret(name) | Audience::Named(name) => name.len(),
            Audience::Public => 0,
        };
        (group.entity.len() + secret + id.len()) as u64 + 128
    }
}

impl Queue {
    /// For as many connections, and reads that are given up after `limit`.
    pub(super) fn new(connections: usize, limit: Duration) -> Self {
        Self {
            waiting: Mutex::default(),
            work: Notify::new(),
            limit,
            max_testing: (connections / 2).max(1),
            bad_ids: Cache::with_weighter(1024, BAD_ID_BYTES, Weight),
        }
    }

    pub(super) fn push(&self, query: usize, request: Request, reply: Reply) {
        let id = request.key.id().to_owned();
        let group = Group {
            query,
            entity: request.key.entity().to_owned(),
            audience: request.audience,
        };
        let is_suspect = !self.bad_ids.is_empty() && self.is_bad(&(group.clone(), id.clone()));
        let is_urgent = reply.answers_notify();
        let since = Instant::now();
        let item = Item { id, reply, since };
        {
            let mut waiting = self.waiting.lock();
            if is_suspect {
                waiting.suspects.push(group, vec![item], is_urgent);
            } else {
                waiting.fresh.push(group, item, is_urgent);
            }
        }
        self.work.notify_one();
    }

    fn is_bad(&self, id: &(Group, String)) -> bool {
        self.bad_ids.get(id).is_some()
    }

    /// Those whose turn it is.
    async fn next(&self) -> Batch<'_> {
        loop {
            let Some(mut batch) = self.pop() else {
                self.work.notified().await;
                continue;
            };
            // Given up, and asked for again: those are behind in the queue.
            let given_up: Vec<_> = batch
                .items
                .extract_if(.., |it| it.since.elapsed() > self.limit)
                .collect();
            drop(given_up);
            if !batch.items.is_empty() {
                return batch;
            }
        }
    }

    fn pop(&self) -> Option<Batch<'_>> {
        let mut waiting = self.waiting.lock();
        let may_test = waiting.testing < self.max_testing && !waiting.suspects.is_empty();
        let is_test = may_test && (!waiting.was_test || waiting.fresh.is_empty());
        waiting.was_test = is_test;
        let (group, items) = if is_test {
            let (group, batches) = waiting.suspects.pop_some(1)?;
            waiting.testing += 1;
            (group, batches.into_iter().flatten().collect())
        } else {
            waiting.fresh.pop_some(MAX_IDS)?
        };
        if !waiting.fresh.is_empty() || !waiting.suspects.is_empty() {
            // For another connection.
            self.work.notify_one();
        }
        let test = is_test.then(|| Test(self));
        Some(Batch {
            group,
            items,
            _test: test,
        })
    }

    /// One of these is bad, or several: each half is to be read alone.
    fn split(&self, group: &Group, mut items: Vec<Item>) {
        let half = items.split_off(items.len() / 2);
        {
            let mut waiting = self.waiting.lock();
            for half in [items, half] {
                let is_urgent = half.iter().any(|it| it.reply.answers_notify());
                waiting.suspects.push(group.clone(), half, is_urgent);
            }
        }
        self.work.notify_one();
    }

    /// Fails all that wait.
    pub(super) fn clear(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        drop(waiting);
    }
}

/// Runs batches on one connection, which it makes anew when it is lost.
pub(super) async fn work(shared: Arc<Shared>, tls: Tls) {
    let mut session: Option<Session> = None;
    let mut failed: Option<(Instant, ReadError)> = None;
    loop {
        let mut batch = shared.queue.next().await;
        let items = std::mem::take(&mut batch.items);
        if session.as_ref().is_none_or(Session::is_closed) {
            session = None;
            if let Some((at, error)) = &failed
                && at.elapsed() < REST
            {
                fail(items, error);
                continue;
            }
            match Session::connect(&shared, tls.clone()).await {
                // No sign of life of the database: a pooler takes connections without it.
                Ok(connected) => session = Some(connected),
                Err(failure) => {
                    shared.can_not_connect(&failure);
                    let error = failure.to_read_error();
                    fail(items, &error);
                    failed = Some((Instant::now(), error));
                    continue;
                }
            }
        }
        if let Some(connected) = &session
            && !run(&shared, connected, &batch.group, items).await
        {
            session = None;
        }
    }
}

/// Answers all items, or puts them back to be read in parts. Says whether the session can go on.
async fn run(shared: &Shared, session: &Session, group: &Group, items: Vec<Item>) -> bool {
    let ids: Vec<&str> = items.iter().map(|it| it.id.as_str()).collect();
    let failure = match read(shared, session, group, &ids).await {
        Ok(rows) => {
            shared.health.works();
            if let [only] = &items[..] {
                shared.queue.bad_ids.remove(&(group.clone(), only.id.clone()));
            }
            answer(rows, items);
            return true;
        }
        Err(failure) => failure,
    };
    let only = match &items[..] {
        [only] => Some((group.clone(), only.id.clone())),
        _ => None,
    };
    let is_new = only.as_ref().is_some_and(|it| !shared.queue.is_bad(it));
    // It may be one id's fault, which the others are not to suffer from.
    let may_be_of_ids = match &only {
        Some(_) => is_new && failure.is_of_values(),
        None => !failure.is_lost() && !failure.is_of_query() && !matches!(failure, Failure::NoRole),
    };
    if may_be_of_ids {
        // If it fails for no id at all, it is not: the secret may be bad.
        match (read(shared, session, group, &[]).await, &only) {
            (Err(same), _) if same.is_like(&failure) => {}
            (Err(lost), _) if lost.is_lost() => {
                complain(shared, group, None, &lost);
                fail(items, &lost.to_read_error());
                return false;
            }
            (_, Some(only)) => shared.queue.bad_ids.insert(only.clone(), ()),
            (_, None) => {
                shared.queue.split(group, items);
                return true;
            }
        }
    }
    complain(shared, group, only.as_ref().map(|(_, id)| id.as_str()), &failure);
    fail(items, &failure.to_read_error());
    !failure.is_lost()
}

async fn read(shared: &Shared, session: &Session, group: &Group, ids: &[&str]) -> Result<Vec<Found>, Failure> {
    count(&shared.counts.batches);
    let reads = ids.len() as u64;
    shared
        .counts
        .reads
        .fetch_add(reads, std::sync::atomic::Ordering::Relaxed);
    let secret = match &group.audience {
        Audience::Secret(secret) => secret,
        _ => "",
    };
    // Text in PostgreSQL can't have it, so there is no such row and nobody with such a secret.
    if secret.contains('\0') {
        return Err(Failure::NoRole);
    }
    let ids: Vec<&str> = ids.iter().copied().filter(|id| !id.contains('\0')).collect();
    let role = shared.role.as_deref();
    let ask = Ask {
        query: shared.queries.get(group.query).map(String::as_str).unwrap_or_default(),
        ids: &ids,
        entity: &group.entity.replace('\0', ""),
        secret: (role.is_some() || group.audience != Audience::Public).then_some(secret),
        role,
        limit: shared.plan.limit,
    };
    session.read(ask).await
}

fn complain(shared: &Shared, group: &Group, id: Option<&str>, failure: &Failure) {
    let entity = &group.entity;
    let what = match id {
        Some(id) => format!("{entity:?} {id:?}"),
        None => format!("{entity:?}"),
    };
    let say = |kind, then: &str| {
        let what = format!("{what} can't be read from PostgreSQL: {failure}; {then}");
        if !failure.is_lost() {
            shared.health.degrades(&what);
        }
        if failure.may_be_of_all() {
            shared.health.fails(&what);
        }
        shared.complain(kind, &what);
    };
    match failure.to_read_error() {
        ReadError::NotFound | ReadError::Denied => {
            tracing::debug!("{what} is not read from PostgreSQL: {failure}");
        }
        ReadError::Rejected => {
            let then = "correct the query or the database, it is tried again slowly";
            say(Kind::Rejected, then);
        }
        _ => say(Kind::Failed, "it is tried again"),
    }
}

/// Gives each its rows. An id without one is not found.
fn answer(rows: Vec<Found>, items: Vec<Item>) {
    let mut by_id = HashMap::<String, Vec<Vec<u8>>>::new();
    for (id, row) in rows {
        by_id.entry(id).or_default().push(row);
    }
    let answers = items.into_iter().map(|item| {
        let rows = by_id.get(&item.id).ok_or(ReadError::NotFound);
        (item.reply, rows.map(|rows| rows.iter().cloned().collect()))
    });
    Reply::answer_all(answers);
}

fn fail(items: Vec<Item>, error: &ReadError) {
    Reply::answer_all(items.into_iter().map(|item| (item.reply, Err(error.clone()))));
}
