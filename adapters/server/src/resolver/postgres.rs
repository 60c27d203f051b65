//! [`Postgres`]: rows from a PostgreSQL database, one query for many reads, and the database's own notifications.
//!
//! A query is given what is to be read and gives two columns, the id and the row:
//!
//! ```sql
//! SELECT id, row_to_json(items) FROM items WHERE id::text = ANY($1)
//! ```
//!
//! | parameter | type | what it is |
//! | --- | --- | --- |
//! | `$1` | `text[]` | the ids |
//! | `$2` | `text` | the client's secret; empty for entities whose reads serve everyone |
//! | `$3` | `text` | the entity |
//!
//! An id without a row is not found; one with several has several. Columns are sent as their text, and a row that is null is
//! none. With secrets, the query runs in a transaction of its own, in which `current_setting('entity_sync.secret')` is
//! the secret too, for policies and views, and whose role may be chosen by another query. What the database forbids
//! (42501) the client is denied.

mod batch;
mod dsn;
mod listen;
mod session;
mod tls;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use entity_sync_mio::{Refused, Reply, Request, Resolver};
use entity_sync_runtime::{Health, Part, restart};
use tokio::sync::oneshot;
use tokio_postgres::config::Host;

use super::health::{Kind, SourceHealth};
pub use batch::MAX_IDS;
use batch::Queue;
pub use dsn::Dsn;
pub use listen::Listener;
use session::{Ask, Failure, Session};

/// After a task died, before it begins again.
const REST: Duration = Duration::from_millis(100);
/// How long a connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// What is read from a database, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the database is.
    pub dsn: Dsn,
    /// What gives the rows: see [`postgres`](self).
    pub queries: Vec<String>,
    /// Gives the role of a client by its secret (`$1`). A client without one is denied.
    pub role: Option<String>,
    /// How long a read may take.
    pub limit: Duration,
    /// Connections that read. One more listens, and now and then another one tries whether that hears.
    pub connections: usize,
}

/// A running connection to a database. Dropping it ends it; reads that wait then fail.
pub struct Postgres {
    shared: Arc<Shared>,
    /// Dropping it ends the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What a database's connections have counted.
#[derive(Debug, Default)]
pub struct Counts {
    batches: AtomicU64,
    reads: AtomicU64,
    connects: AtomicU64,
    failures: AtomicU64,
    notifications: AtomicU64,
    bad_notifications: AtomicU64,
    gaps: AtomicU64,
    listening: AtomicU64,
}

struct Shared {
    plan: Plan,
    /// The plan's queries and role, as they are sent.
    queries: Vec<String>,
    role: Option<String>,
    queue: Queue,
    counts: Counts,
    health: SourceHealth,
    listening: Part,
}

/// Why a database can't be used as it was said.
#[derive(Debug)]
#[non_exhaustive]
pub enum PostgresError {
    /// The database refuses a query.
    Query {
        /// The beginning of the query.
        query: String,
        /// What it says.
        reason: String,
    },
    /// The system gives no thread or no certificates.
    System(io::Error),
}

impl Postgres {
    /// Connects and checks the queries. A database that can't be reached is tried again for each read.
    ///
    /// # Errors
    /// [`PostgresError`].
    pub fn start(plan: Plan, listener: Option<Listener>, health: &Health) -> Result<Self, PostgresError> {
        let tls = tls::tls(plan.dsn.encryption.as_ref()).map_err(PostgresError::System)?;
        let shared = Arc::new(Shared {
            queries: plan.queries.iter().map(|it| session::wrapped(it)).collect(),
            role: plan.role.as_deref().map(session::wrapped_role),
            queue: Queue::new(plan.connections, plan.limit),
            counts: Counts::default(),
            health: SourceHealth::new(health, "postgres"),
            listening: health.part("postgres notifications"),
            plan,
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(PostgresError::System)?;
        runtime.block_on(check(&shared, tls.clone()))?;
        let (stop, stopped) = oneshot::channel();
        let (of_thread, of_tasks) = (shared.clone(), health.clone());
        let run = move || {
            runtime.block_on(async {
                let pause = || tokio::time::sleep(REST);
                for number in 0..of_thread.plan.connections.max(1) {
                    let (shared, tls, health) = (of_thread.clone(), tls.clone(), of_tasks.clone());
                    tokio::spawn(async move {
                        let work = || batch::work(shared.clone(), tls.clone());
                        // Reads that it had fail, and are tried again.
                        restart(format!("postgres-{number}"), &health, work, pause).await;
                    });
                }
                if let Some(listener) = listener {
                    tokio::spawn(async move {
                        let listen = || listen::listen(of_thread.clone(), &listener, tls.clone());
                        // All is read again once it hears again.
                        restart("postgres-listen", &of_tasks, listen, pause).await;
                    });
                }
                // An error means that the sender is gone, which is the end as well.
                let _ = stopped.await;
            });
            // Tasks end with their runtime.
            runtime.shutdown_background();
        };
        let thread = entity_sync_runtime::spawn("postgres", health, run).map_err(PostgresError::System)?;
        Ok(Self {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// What reads by the query of this number in the plan.
    pub fn resolver(&self, query: usize) -> impl Resolver + use<> {
        let shared = self.shared.clone();
        move |request: Request, reply: Reply| shared.queue.push(query, request, reply)
    }

    /// Where it is, for people and metrics: the user, the hosts and the database, without a password.
    pub fn source(&self) -> String {
        let config = &self.shared.plan.dsn.config;
        let hosts = config.get_hosts().iter().map(|host| match host {
            Host::Tcp(host) => host.clone(),
            Host::Unix(path) => path.display().to_string(),
        });
        let ports = config.get_ports().iter().map(u16::to_string);
        let hosts: Vec<_> = hosts.collect();
        let ports: Vec<_> = ports.collect();
        let (user, name) = (
            config.get_user().unwrap_or_default(),
            config.get_dbname().unwrap_or_default(),
        );
        format!("{user}@{}:{}/{name}", hosts.join(","), ports.join(","))
    }

    /// What was counted: name, help and number.
    pub fn counts(&self) -> Vec<(&'static str, &'static str, u64)> {
        let counts = &self.shared.counts;
        let all = [
            ("postgres_batches", "Queries for rows.", &counts.batches),
            ("postgres_reads", "Reads that those were for.", &counts.reads),
            ("postgres_connects", "Connections to PostgreSQL.", &counts.connects),
            (
                "postgres_failures",
                "Queries and connections that failed.",
                &counts.failures,
            ),
            (
                "postgres_notifications",
                "Keys that PostgreSQL notified of.",
                &counts.notifications,
            ),
            (
                "postgres_bad_notifications",
                "Notifications that were no keys of entities.",
                &counts.bad_notifications,
            ),
            ("postgres_gaps", "Times after which all was read again.", &counts.gaps),
            (
                "postgres_listening",
                "Connections that hear PostgreSQL's notifications now.",
                &counts.listening,
            ),
        ];
        all.map(|(name, help, count)| (name, help, count.load(Ordering::Relaxed)))
            .into()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
        // Their clients are served by the next server.
        self.shared.queue.clear();
    }
}

impl Shared {
    fn complain(&self, kind: Kind, what: &str) {
        count(&self.counts.failures);
        self.health.log(kind, what);
    }

    fn can_not_connect(&self, failure: &Failure) {
        let what = format!("PostgreSQL can't be reached: {failure}; reads are tried again");
        self.health.fails(&what);
        self.complain(Kind::Failed, &what);
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Asks each query for nothing. That the database can't be reached now is said, and no reason not to start.
async fn check(shared: &Shared, tls: tls::Tls) -> Result<(), PostgresError> {
    let lost = match Session::connect(shared, tls).await {
        Ok(session) => check_queries(shared, &session).await?,
        Err(failure) => Some(failure),
    };
    if let Some(failure) = lost {
        shared.can_not_connect(&failure);
    }
    Ok(())
}

/// Gives what shows that the database does not answer at all.
async fn check_queries(shared: &Shared, session: &Session) -> Result<Option<Failure>, PostgresError> {
    let nothing = Ask {
        query: &session::wrapped("SELECT '', ''"),
        ids: &[],
        entity: "",
        secret: Some(""),
        role: None,
        limit: shared.plan.limit,
    };
    let queries = shared.plan.queries.iter().zip(&shared.queries);
    let of_queries = queries.map(|(given, query)| (given, Ask { query, ..nothing }));
    let role = shared.plan.role.iter().zip(shared.role.as_deref());
    let of_role = role.map(|(given, role)| {
        let role = Some(role);
        (given, Ask { role, ..nothing })
    });
    for (given, ask) in of_queries.chain(of_role) {
        match session.read(ask).await {
            Err(failure) if failure.may_be_of_all() => return Ok(Some(failure)),
            // Only what no id, secret or role can help makes a query useless.
            Err(failure) if failure.is_of_query() => return Err(refused(given, failure.to_string())),
            Err(failure) => tracing::debug!("the query {given:?} fails without an id and a secret: {failure}"),
            Ok(_) => {}
        }
    }
    Ok(None)
}

fn refused(query: &str, reason: String) -> PostgresError {
    let query = query.chars().take(60).collect();
    PostgresError::Query { query, reason }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres")
            .field("plan", &self.shared.plan)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for PostgresError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query { query, reason } => write!(
                f,
                "PostgreSQL refuses the query {query:?}: {reason}; it is given the ids as $1 (text[]), the secret as $2 \
                 (text) and the entity as $3 (text), and must give two columns, the id and the row"
            ),
            Self::System(error) => write!(f, "the system refused: {}", Refused(error)),
        }
    }
}

impl std::error::Error for PostgresError {}

#[cfg(test)]
mod tests;
