//! [`Http`]: rows from HTTP servers, one GET for each read.
//!
//! | answer | what it means |
//! | --- | --- |
//! | 200 | its body is the row |
//! | 204 | there is no row |
//! | 304 | the row has not changed since the `ETag` that was sent |
//! | 404, 410; 400 for an id with control characters | there is no such entity |
//! | 403 | this client may not see it |
//! | 408, 425, 5xx, none in time | tried again soon |
//! | anything else, such as 401 or a redirect | tried again slowly, and the operator is told |
//!
//! What a name that a client has chosen may do to the URL is decided in [`Template`].
//! The client's secret is sent as a bearer token. Redirects are not followed, as the token would go along.

mod connect;
mod reader;
mod url;

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use entity_sync_mio::{ReadError, Reply, Request, Resolver};
use entity_sync_runtime::{Health, Turns, restart};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use tokio::sync::{Notify, oneshot};
use tower::{Service, ServiceExt};

use super::health::Kind;
use super::text::describe;
use connect::Connector;
use reader::{Asking, CACHE_BYTES, Reader, Weight};
pub use url::Template;

/// After a task died, before it begins again.
const REST: Duration = Duration::from_millis(100);
/// How long a connection is kept for the next read.
const IDLE: Duration = Duration::from_secs(30);
/// How often a server that is not read from is tried, and one that can't be reached.
const TRY_EVERY: Duration = Duration::from_secs(10);
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// How HTTP servers are read from.
#[derive(Clone, Copy, Debug)]
pub struct HttpPlan {
    /// Reads that run at the same time, each on a connection of its own.
    pub reads: usize,
    /// How long a read may take.
    pub limit: Duration,
    /// The longest row.
    pub max_bytes: usize,
}

impl HttpPlan {
    /// Files that this takes at most: for reads that run, for connections that are kept, and for those that are only tried.
    pub fn files(&self, templates: &[Template]) -> usize {
        let hosts = hosts(templates);
        self.reads + self.idle_per_host(hosts) * hosts + templates.len()
    }

    /// All hosts together keep as many connections as may read at the same time.
    fn idle_per_host(&self, hosts: usize) -> usize {
        (self.reads / hosts.max(1)).max(1)
    }
}

/// How many hosts they lead to. Connections are kept for each.
fn hosts(templates: &[Template]) -> usize {
    let origins: HashSet<_> = templates.iter().map(Template::origin).collect();
    origins.len()
}

/// What reads over HTTP: one thread for all servers. Dropping it ends it; reads that wait then fail.
pub struct Http {
    shared: Arc<Shared>,
    readers: Vec<(Template, Arc<Reader>)>,
    /// Dropping it ends the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    asking: Asking,
    connector: Connector,
    /// By entity.
    waiting: Mutex<Turns<String, Read>>,
    work: Notify,
    is_over: AtomicBool,
}

/// A read that waits.
struct Read {
    reader: Arc<Reader>,
    request: Request,
    reply: Reply,
    since: Instant,
}

impl Http {
    /// Starts the thread, which also tries whether the servers can be reached.
    ///
    /// # Errors
    /// The system gives no thread or no certificates.
    pub fn start(templates: &[Template], plan: HttpPlan, health: &Health) -> io::Result<Self> {
        let connector = connect::connector(plan.limit)?;
        let asking = asking(plan, hosts(templates), connector.clone());
        let shared = Arc::new(Shared {
            asking,
            connector,
            waiting: Mutex::default(),
            work: Notify::new(),
            is_over: AtomicBool::new(false),
        });
        let mut readers = Vec::new();
        for template in templates {
            let reader = Reader::new(template.clone(), health);
            let reader = reader.ok_or_else(|| io::Error::other(format!("{template:?} is no URL")))?;
            readers.push((template.clone(), Arc::new(reader)));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let (of_thread, of_tasks, tried) = (shared.clone(), health.clone(), readers.clone());
        let run = move || {
            runtime.block_on(async {
                let pause = || tokio::time::sleep(REST);
                for number in 0..plan.reads.max(1) {
                    let (shared, health) = (of_thread.clone(), of_tasks.clone());
                    tokio::spawn(async move {
                        // A read that it had fails, and is tried again.
                        restart(format!("http-{number}"), &health, || work(shared.clone()), pause).await;
                    });
                }
                for (_, reader) in tried {
                    let (shared, health) = (of_thread.clone(), of_tasks.clone());
                    tokio::spawn(async move {
                        let watch = || watch(shared.clone(), reader.clone());
                        restart("http-watch", &health, watch, pause).await;
                    });
                }
                // An error means that the sender is gone, which is the end as well.
                let _ = stopped.await;
            });
            // Tasks end with their runtime.
            runtime.shutdown_background();
        };
        let thread = entity_sync_runtime::spawn("http", health, run)?;
        Ok(Self {
            shared,
            readers,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// What reads the entities of one of the templates.
    pub fn resolver(&self, template: &Template) -> impl Resolver + use<> {
        let reader = self.readers.iter().find(|(it, _)| it == template);
        let reader = reader.map(|(_, reader)| reader.clone());
        let shared = self.shared.clone();
        move |request: Request, reply: Reply| match &reader {
            Some(reader) => shared.push(reader.clone(), request, reply),
            // All templates were given at the start.
            None => reply.fail(ReadError::NotFound),
        }
    }
}

fn asking(plan: HttpPlan, hosts: usize, connector: Connector) -> Asking {
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(plan.idle_per_host(hosts))
        .build(connector);
    Asking {
        client,
        known: Cache::with_weighter(1024, CACHE_BYTES, Weight),
        limit: plan.limit,
        max_bytes: plan.max_bytes,
    }
}

impl Shared {
    fn push(&self, reader: Arc<Reader>, request: Request, reply: Reply) {
        if self.is_over.load(Ordering::Relaxed) {
            return drop(reply);
        }
        let entity = request.key.entity().to_owned();
        let is_urgent = reply.answers_notify();
        let read = Read {
            reader,
            request,
            reply,
            since: Instant::now(),
        };
        self.waiting.lock().push(entity, read, is_urgent);
        self.work.notify_one();
    }

    async fn next(&self) -> Read {
        loop {
            let (read, is_more) = {
                let mut waiting = self.waiting.lock();
                (waiting.pop(), !waiting.is_empty())
            };
            if is_more {
                self.work.notify_one();
            }
            match read {
                // Given up, and asked for again: that is behind in the queue.
                Some(read) if read.since.elapsed() > self.asking.limit => {}
                Some(read) => return read,
                None => self.work.notified().await,
            }
        }
    }
}

/// Runs one read after the other.
async fn work(shared: Arc<Shared>) {
    loop {
        let read = shared.next().await;
        match read.reader.read(&shared.asking, &read.request).await {
            // Core counts and retries what can't be sent.
            Ok(rows) => drop(read.reply.rows(rows)),
            Err(error) => read.reply.fail(error),
        }
    }
}

/// Tries whether a server can be reached, so that it is known before anyone is subscribed, and after all have gone.
async fn watch(shared: Arc<Shared>, reader: Arc<Reader>) {
    let mut connector = shared.connector.clone();
    let mut could_not = false;
    loop {
        let connecting = async { connector.ready().await?.call(reader.example.clone()).await };
        let error = match tokio::time::timeout(shared.asking.limit, connecting).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(describe(&error)),
            Err(_) => Some("it takes too long".to_owned()),
        };
        let is_lost = error.is_some();
        if let Some(why) = error {
            let what = format!("{} can't be reached: {why}; it is tried again", reader.server());
            reader.health.fails(&what);
            reader.health.log(Kind::Failed, &what);
        } else if could_not {
            // Perhaps nobody reads now. If reads still fail, they will say so again.
            reader.health.works();
        }
        could_not = is_lost;
        reader.health.look();
        tokio::time::sleep(if is_lost { TRY_AGAIN } else { TRY_EVERY }).await;
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic was reported.
            let _ = thread.join();
        }
        self.shared.is_over.store(true, Ordering::Relaxed);
        // Their clients are served by the next server.
        let waiting = std::mem::take(&mut *self.shared.waiting.lock());
        drop(waiting);
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http")
            .field("readers", &self.readers)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
