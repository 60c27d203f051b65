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
mod listen;
mod session;

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use entity_sync_mio::{Health, Refused, Reply, Request, Resolver};
use entity_sync_runtime::restart;
use tokio::sync::oneshot;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use super::{Complaints, SourceError};
use batch::Queue;
pub use listen::Listener;
use session::Session;

/// Connections that read, for each database.
const CONNECTIONS: usize = 4;
/// After a task died, before it begins again.
const REST: Duration = Duration::from_millis(100);
/// How long a connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Where a database is, and who we are there.
#[derive(Clone, PartialEq, Eq)]
pub struct Dsn(Box<Config>);

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
    queue: Queue,
    counts: Counts,
    complaints: Complaints,
    /// Where it reports a database that can't be read or heard, and tasks that die.
    health: Health,
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
    pub fn start(plan: Plan, listener: Option<Listener>, health: Health) -> Result<Self, PostgresError> {
        let shared = Arc::new(Shared {
            plan,
            queue: Queue::default(),
            counts: Counts::default(),
            complaints: Complaints::default(),
            health: health.clone(),
        });
        let tls = session::tls(&shared.plan.dsn.0).map_err(PostgresError::System)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(PostgresError::System)?;
        runtime.block_on(check(&shared, tls.clone()))?;
        let (stop, stopped) = oneshot::channel();
        let of_thread = shared.clone();
        let thread = entity_sync_runtime::spawn("postgres", &health, move || {
            runtime.block_on(async {
                let pause = || tokio::time::sleep(REST);
                for number in 0..CONNECTIONS {
                    let (shared, tls) = (of_thread.clone(), tls.clone());
                    tokio::spawn(async move {
                        let work = || batch::work(shared.clone(), tls.clone());
                        // Reads that it had fail, and are tried again.
                        restart(format!("postgres-{number}"), &shared.health, work, pause).await;
                    });
                }
                if let Some(listener) = listener {
                    tokio::spawn(async move {
                        let listen = || listen::listen(of_thread.clone(), &listener, tls.clone());
                        // All is read again once it hears again.
                        restart("postgres-listen", &of_thread.health, listen, pause).await;
                    });
                }
                // An error means that the sender is gone, which is the end as well.
                let _ = stopped.await;
            });
            // Tasks end with their runtime.
            runtime.shutdown_background();
        })
        .map_err(PostgresError::System)?;
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
        let config = &self.shared.plan.dsn.0;
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
    fn complain(&self, kind: &str, what: impl fmt::Display) {
        count(&self.counts.failures);
        self.complaints.tell(kind, what);
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Has the database look at each query. That it can't be reached now is said, and no reason not to start.
async fn check(shared: &Shared, tls: session::Tls) -> Result<(), PostgresError> {
    let session = match Session::connect(shared, tls).await {
        Ok(session) => session,
        Err(error) => {
            shared.complain(
                "connect",
                format_args!("PostgreSQL can't be reached: {error}; each read tries again"),
            );
            return Ok(());
        }
    };
    for query in &shared.plan.queries {
        session
            .check(&session::wrapped(query))
            .await
            .map_err(|reason| refused(query, reason))?;
    }
    if let Some(role) = &shared.plan.role {
        session
            .check(&session::wrapped_role(role))
            .await
            .map_err(|reason| refused(role, reason))?;
    }
    Ok(())
}

fn refused(query: &str, reason: String) -> PostgresError {
    let query = query.chars().take(60).collect();
    PostgresError::Query { query, reason }
}

impl FromStr for Dsn {
    type Err = SourceError;

    fn from_str(given: &str) -> Result<Self, SourceError> {
        let bad = |why: &str| SourceError::BadDsn(why.to_owned());
        // What the parser says of it may show a part of it, such as a password with an @ in it.
        let mut config: Config = given.parse().map_err(|_| bad("that is no connection string"))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(bad("there is no host in it"));
        }
        if config.get_user().is_none() {
            return Err(bad("there is no user in it"));
        }
        // An encrypted connection to whoever answers protects from nobody who matters: with `require` the certificate is
        // checked, and otherwise there is none.
        if config.get_ssl_mode() == SslMode::Prefer {
            config.ssl_mode(SslMode::Disable);
        }
        if config.get_application_name().is_none() {
            config.application_name("entity-sync");
        }
        config
            .connect_timeout(CONNECT_LIMIT)
            .keepalives_idle(Duration::from_secs(10))
            .tcp_user_timeout(Duration::from_secs(20));
        Ok(Self(Box::new(config)))
    }
}

impl fmt::Debug for Dsn {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dsn")
            .field("user", &self.0.get_user())
            .field("hosts", &self.0.get_hosts())
            .field("dbname", &self.0.get_dbname())
            .finish_non_exhaustive()
    }
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
