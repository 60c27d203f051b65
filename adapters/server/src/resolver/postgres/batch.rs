//! [`Queue`]: reads that wait for a connection, those of one query and audience together, and what runs them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use entity_sync_mio::{Audience, ReadError, Reply, Request};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_postgres::error::SqlState;

use super::session::{Failure, Session, Tls};
use super::{Shared, count};

/// Ids in one query, at most.
const MAX_IDS: usize = 500;
/// After a connection failed, reads fail for so long without another attempt. Core tries each of them again.
const REST: Duration = Duration::from_millis(200);

/// What a query is asked for at once.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Group {
    query: usize,
    entity: String,
    audience: Audience,
}

#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    work: Notify,
}

#[derive(Default)]
struct Waiting {
    /// By id. One that is asked for again has been given up by core, so the newer reply takes its place.
    groups: HashMap<Group, HashMap<String, Reply>>,
    /// Each group once.
    turns: VecDeque<Group>,
}

struct Batch {
    group: Group,
    replies: HashMap<String, Reply>,
}

impl Queue {
    pub(super) fn push(&self, query: usize, request: Request, reply: Reply) {
        let group = Group {
            query,
            entity: request.key.entity().to_owned(),
            audience: request.audience,
        };
        let replaced = {
            let mut waiting = self.waiting.lock();
            let Waiting { groups, turns } = &mut *waiting;
            let replies = groups.entry(group).or_insert_with_key(|group| {
                turns.push_back(group.clone());
                HashMap::new()
            });
            replies.insert(request.key.id().to_owned(), reply)
        };
        // Outside of the lock: it is core's to hear of.
        drop(replaced);
        self.work.notify_one();
    }

    /// Those that wait for the group whose turn it is.
    async fn next(&self) -> Batch {
        loop {
            if let Some(batch) = self.pop() {
                return batch;
            }
            self.work.notified().await;
        }
    }

    fn pop(&self) -> Option<Batch> {
        let mut waiting = self.waiting.lock();
        let group = waiting.turns.pop_front()?;
        let mut replies = waiting.groups.remove(&group)?;
        if replies.len() > MAX_IDS {
            let ids: Vec<String> = replies.keys().take(MAX_IDS).cloned().collect();
            let taken = ids.into_iter().filter_map(|id| replies.remove_entry(&id)).collect();
            let rest = std::mem::replace(&mut replies, taken);
            waiting.groups.insert(group.clone(), rest);
            waiting.turns.push_back(group.clone());
            // For another connection.
            self.work.notify_one();
        }
        Some(Batch { group, replies })
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
    let mut failed_at: Option<Instant> = None;
    loop {
        let Batch { group, replies } = shared.queue.next().await;
        if session.as_ref().is_none_or(Session::is_closed) {
            session = None;
            if failed_at.is_some_and(|at| at.elapsed() < REST) {
                fail(replies, &ReadError::Failed);
                continue;
            }
            match Session::connect(&shared, tls.clone()).await {
                Ok(connected) => session = Some(connected),
                Err(error) => {
                    shared.complain(
                        "connect",
                        format_args!("PostgreSQL can't be reached: {error}; reads are tried again"),
                    );
                    failed_at = Some(Instant::now());
                    fail(replies, &ReadError::Failed);
                    continue;
                }
            }
        }
        if let Some(connected) = &session
            && !run(&shared, connected, &group, replies).await
        {
            session = None;
        }
    }
}

/// Answers all replies. Says whether the session can go on.
async fn run(shared: &Shared, session: &Session, group: &Group, replies: HashMap<String, Reply>) -> bool {
    let ids: Vec<&str> = replies.keys().map(String::as_str).collect();
    match read(shared, session, group, &ids).await {
        Ok(rows) => {
            answer(rows, replies);
            true
        }
        Err(failure) if failure.is_lost() || replies.len() == 1 => {
            complain(shared, group, &failure);
            fail(replies, &failure.to_read_error());
            !failure.is_lost()
        }
        Err(failure @ Failure::NoRole) => {
            fail(replies, &failure.to_read_error());
            true
        }
        // It may be one id's fault, which the others are not to suffer from.
        Err(_) => {
            for (id, reply) in replies {
                let rows = read(shared, session, group, &[&id]).await;
                let single = HashMap::from([(id, reply)]);
                match rows {
                    Ok(rows) => answer(rows, single),
                    Err(failure) => {
                        complain(shared, group, &failure);
                        fail(single, &failure.to_read_error());
                        if failure.is_lost() {
                            // The replies that are left fail as they are dropped.
                            return false;
                        }
                    }
                }
            }
            true
        }
    }
}

async fn read(
    shared: &Shared,
    session: &Session,
    group: &Group,
    ids: &[&str],
) -> Result<Vec<(String, String)>, Failure> {
    count(&shared.counts.batches);
    let reads = ids.len() as u64;
    shared
        .counts
        .reads
        .fetch_add(reads, std::sync::atomic::Ordering::Relaxed);
    let query = shared
        .plan
        .queries
        .get(group.query)
        .map(String::as_str)
        .unwrap_or_default();
    let role = shared.plan.role.as_deref();
    let secret = match &group.audience {
        Audience::Secret(secret) => secret,
        _ => "",
    };
    // Text in PostgreSQL can't have it, so there is no such row and nobody with such a secret.
    if secret.contains('\0') {
        return Err(Failure::NoRole);
    }
    let ids: Vec<&str> = ids.iter().copied().filter(|id| !id.contains('\0')).collect();
    let entity = group.entity.replace('\0', "");
    let reading = async {
        if role.is_none() && group.audience == Audience::Public {
            session.read(query, &ids, &entity).await
        } else {
            session.read_as(query, role, &ids, secret, &entity).await
        }
    };
    // The database has the same limit for each statement, and is given a moment to say so.
    let limit = shared.plan.limit + Duration::from_secs(1);
    match tokio::time::timeout(limit, reading).await {
        Ok(read) => read,
        Err(_) => Err(Failure::Lost("it takes too long".to_owned())),
    }
}

fn complain(shared: &Shared, group: &Group, failure: &Failure) {
    let is_usual = match failure {
        Failure::Refused { code, .. } => *code == SqlState::INSUFFICIENT_PRIVILEGE,
        Failure::NoRole => true,
        Failure::Lost(_) => false,
    };
    if !is_usual && failure.to_read_error() != ReadError::NotFound {
        let entity = &group.entity;
        let kind = match failure {
            Failure::Refused { code, .. } => code.code(),
            _ => "read",
        };
        shared.complain(
            kind,
            format_args!("{entity:?} can't be read from PostgreSQL: {failure}; it is tried again"),
        );
    }
}

/// Gives each its rows. An id without one is not found.
fn answer(rows: Vec<(String, String)>, mut replies: HashMap<String, Reply>) {
    let mut by_id = HashMap::<String, Vec<String>>::new();
    for (id, row) in rows {
        by_id.entry(id).or_default().push(row);
    }
    // A query may give more than it was asked for.
    let found = by_id
        .into_iter()
        .filter_map(|(id, rows)| Some((replies.remove(&id)?, rows)));
    Reply::answer_all(found.map(|(reply, rows)| (reply, Ok(rows.into_iter().collect()))));
    fail(replies, &ReadError::NotFound);
}

fn fail(replies: HashMap<String, Reply>, error: &ReadError) {
    Reply::answer_all(replies.into_values().map(|reply| (reply, Err(error.clone()))));
}
