//! [`Pool`]: threads for reads that block, and more of them for reads that hang.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use entity_sync_core::{Audience, EntityKey, ReadError, Request, Rows};
use entity_sync_runtime::{Health, Turns, spawn_restarting};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::resolver::{Reply, Resolver};

/// How soon a thread that the system refused is asked for again, unless something else happens before.
const SPAWN_AGAIN: Duration = Duration::from_secs(1);

/// How a [`Pool`] behaves.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// How many reads run at the same time, apart from those that hang. At least one.
    pub threads: usize,
    /// How long a read may run until its thread counts as hung. `Duration::MAX` is for ever.
    pub hung_after: Duration,
    /// How many hung threads are replaced at the same time. While more hang, so many fewer reads run.
    pub max_hung: usize,
    /// What the threads are called. Linux shows the first 15 bytes.
    pub name: String,
    /// Where a thread that dies is reported. It is started again.
    pub health: Health,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            threads: 4,
            hung_after: Duration::from_secs(5),
            max_hung: 64,
            name: "reader".to_owned(),
            health: Health::default(),
        }
    }
}

/// What a [`Pool`] has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolCounters {
    /// Reads begun.
    pub jobs: u64,
    /// Reads that panicked.
    pub panics: u64,
    /// Threads that hang now: the only number here that also falls.
    pub hung: u64,
    /// Threads that have hung, whether or not their reads ended after all.
    pub hung_ever: u64,
    /// Reads refused because an earlier one of the same key and audience was still running.
    pub refused: u64,
}

/// Threads that run blocking reads: those of one entity in the order in which they were asked for, and the entities in turn,
/// so that a slow one holds up the others by no more than the reads that run. Reads that follow a notify take turns with the
/// others. Keep
/// [`max_running_reads`](crate::EntityOptions::max_running_reads) below the number of threads, and it doesn't hold them up
/// at all.
///
/// A read that runs for longer than [`hung_after`](PoolConfig::hung_after) no longer takes the place of others: its
/// thread is replaced. Nothing can end a thread that hangs, so it stays until its read does, and meanwhile no other read
/// of the same key and audience begins. An entity that can't be read costs one thread, however often it is tried again.
///
/// It ends with its last handle, of which each resolver has one, and so each server that uses it: that is a
/// [`shutdown`](Self::shutdown) with a timeout of `hung_after`. Cloning gives another handle.
///
/// A key is what a client wrote: look it up, never use it as a path, in a command or in the text of a query.
///
/// ```no_run
/// use std::collections::HashMap;
///
/// use entity_sync_mio::{Config, Pool, PoolConfig, ReadError, Request, Rows, Server};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     // In place of a database that blocks.
///     let items = HashMap::from([("100", r#"{"name":"bicycle"}"#)]);
///     let pool = Pool::new(PoolConfig::default())?;
///     let resolver = pool.resolver(move |request: &Request| match items.get(request.key.id()) {
///         Some(&row) => Ok(Rows::one(row)),
///         None => Err(ReadError::NotFound),
///     });
///     let server = Server::start(Config::new(["127.0.0.1:8080".parse()?]), resolver)?;
///     // Whenever your application changes something, on any thread: server.handle().notify(&key)
///     std::io::stdin().read_line(&mut String::new())?; // it runs until you press Enter
///     server.shutdown(std::time::Duration::from_secs(5));
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct Pool(Arc<Owner>);

/// Ends the threads when nobody can give them work any more. They have the rest, but not this.
struct Owner(Arc<Shared>);

type Job = Box<dyn FnOnce() + Send>;

/// What the threads share. There is no more than one lock at a time, and none while a job runs or is dropped.
struct Shared {
    config: PoolConfig,
    state: Mutex<State>,
    /// For idle threads: there is a job, or the end.
    work: Condvar,
    /// For the monitor and for shutdown: there is something to look at.
    watch: Condvar,
    counts: Counts,
}

#[derive(Default)]
struct State {
    /// Holds no more than one job for each key and audience of each resolver.
    waiting: Turns<String, Job>,
    running: HashMap<ThreadId, Running>,
    /// Threads that have not ended, idle and hung ones included.
    live: usize,
    /// How many of `running` hang.
    hung: usize,
    /// The monitor knows of no limit, so it has to be told of the next one.
    unwatched: bool,
    stopping: bool,
}

struct Running {
    /// When it counts as hung, if ever.
    limit: Option<Instant>,
    is_hung: bool,
}

#[derive(Default)]
struct Counts {
    jobs: AtomicU64,
    panics: AtomicU64,
    hung: AtomicU64,
    hung_ever: AtomicU64,
    refused: AtomicU64,
}

impl Pool {
    /// Starts the threads, and one that sees to it that there are enough of them.
    ///
    /// # Errors
    /// When the system gives no thread, or the name contains a zero byte. Threads already started end again.
    pub fn new(config: PoolConfig) -> io::Result<Self> {
        // The standard library would panic.
        if config.name.contains('\0') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a zero byte in a thread's name",
            ));
        }
        let shared = Arc::new(Shared {
            config,
            state: Mutex::default(),
            work: Condvar::new(),
            watch: Condvar::new(),
            counts: Counts::default(),
        });
        // Made before its threads, so that leaving early ends the first ones.
        let pool = Self(Arc::new(Owner(shared.clone())));
        shared.spawn_missing(&mut shared.state.lock())?;
        let name = format!("{}-watch", shared.config.name);
        let health = shared.config.health.clone();
        spawn_restarting(name, &health, move || shared.watch())?;
        Ok(pool)
    }

    /// A resolver that calls `read` on the pool's threads.
    ///
    /// An error of `read`, a panic, and rows that can't be sent all fail the read, which core tries again later. A panic
    /// costs no thread.
    ///
    /// Core asks for another read of a key and audience only after it has given up the one before. While that one still
    /// runs here, the new one fails at once. If it has not begun yet, it answers the new request instead of its own.
    ///
    /// Each resolver is for one server. The resolvers of a pool share its threads and nothing else.
    pub fn resolver<F>(&self, read: F) -> impl Resolver + use<F>
    where
        F: Fn(&Request) -> Result<Rows, ReadError> + Send + Sync + 'static,
    {
        let reads = Arc::new(Reads {
            read,
            pool: self.clone(),
            names: Mutex::default(),
        });
        move |request, reply| reads.resolve(request, reply)
    }

    /// What it has counted so far. Takes no lock, so the numbers may be of slightly different moments.
    pub fn counters(&self) -> PoolCounters {
        let counts = &self.0.0.counts;
        PoolCounters {
            jobs: counts.jobs.load(Ordering::Relaxed),
            panics: counts.panics.load(Ordering::Relaxed),
            hung: counts.hung.load(Ordering::Relaxed),
            hung_ever: counts.hung_ever.load(Ordering::Relaxed),
            refused: counts.refused.load(Ordering::Relaxed),
        }
    }

    /// Drops the reads that wait, which fails them, and lets those that run finish: it returns when only hung threads
    /// are left, and after `timeout` at the latest. What still runs then goes on, and its thread ends with it.
    ///
    /// It does not wait for a read that calls it. Later reads fail, and calling it again waits again.
    pub fn shutdown(&self, timeout: Duration) {
        self.0.0.shutdown(timeout);
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.shutdown(self.0.config.hung_after);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("config", &self.0.0.config)
            .finish_non_exhaustive()
    }
}

impl State {
    /// How many threads there should be: whoever finds fewer starts some, and a thread that finds more ends.
    fn wanted(&self, config: &PoolConfig) -> usize {
        if self.stopping {
            0
        } else {
            config.threads.max(1) + self.hung.min(config.max_hung)
        }
    }

    /// Whether a thread other than `own` is left that does not hang.
    fn is_anyone_left_but(&self, own: ThreadId) -> bool {
        let own = self.running.get(&own).is_some_and(|it| !it.is_hung);
        self.live - self.hung > usize::from(own)
    }
}

impl Shared {
    /// Never waits for a thread: event loops call it.
    fn run(&self, entity: &str, job: Job, is_urgent: bool) {
        let mut state = self.state.lock();
        if state.stopping {
            // Not before the lock is released: the job may hold a reply, and dropping that calls back into core.
            drop(state);
            return drop(job);
        }
        state.waiting.push(entity.to_owned(), job, is_urgent);
        drop(state);
        self.work.notify_one();
    }

    fn shutdown(&self, timeout: Duration) {
        let deadline = Instant::now().checked_add(timeout);
        let waiting = {
            let mut state = self.state.lock();
            state.stopping = true;
            mem::take(&mut state.waiting)
        };
        self.work.notify_all();
        self.watch.notify_all();
        // Without the lock, as failing a read calls back into core.
        drop(waiting);
        let mut state = self.state.lock();
        while state.is_anyone_left_but(thread::current().id()) {
            match deadline {
                Some(deadline) if self.watch.wait_until(&mut state, deadline).timed_out() => break,
                Some(_) => {}
                None => self.watch.wait(&mut state),
            }
        }
    }

    fn spawn_missing(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        while state.live < state.wanted(&self.config) {
            let shared = self.clone();
            spawn_restarting(self.config.name.clone(), &self.config.health, move || shared.work())?;
            state.live += 1;
        }
        Ok(())
    }

    /// The life of a thread that runs jobs.
    fn work(&self) {
        let own = thread::current().id();
        let mut state = self.state.lock();
        // It may have begun again after a panic.
        self.has_run(&mut state, own);
        // One too many: this one hung and has been replaced, or all are to end.
        while state.live <= state.wanted(&self.config) {
            let Some(job) = state.waiting.pop() else {
                self.work.wait(&mut state);
                continue;
            };
            let limit = Instant::now().checked_add(self.config.hung_after);
            state.running.insert(own, Running { limit, is_hung: false });
            // A monitor that waits for another limit needs no call: that one is before this.
            if limit.is_some() && mem::take(&mut state.unwatched) {
                self.watch.notify_all();
            }
            self.counts.jobs.fetch_add(1, Ordering::Relaxed);
            if MutexGuard::unlocked(&mut state, || catch_unwind(AssertUnwindSafe(job)).is_err()) {
                self.counts.panics.fetch_add(1, Ordering::Relaxed);
            }
            self.has_run(&mut state, own);
        }
        state.live -= 1;
        self.watch.notify_all();
    }

    fn has_run(&self, state: &mut State, own: ThreadId) {
        if state.running.remove(&own).is_some_and(|it| it.is_hung) {
            state.hung -= 1;
            self.counts.hung.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The life of the monitor: finds out who hangs, and replaces them.
    fn watch(self: &Arc<Self>) {
        let mut guard = self.state.lock();
        loop {
            let state = &mut *guard;
            let now = Instant::now();
            let mut next = None;
            for running in state.running.values_mut().filter(|it| !it.is_hung) {
                match running.limit {
                    Some(limit) if limit <= now => {
                        running.is_hung = true;
                        state.hung += 1;
                        self.counts.hung.fetch_add(1, Ordering::Relaxed);
                        self.counts.hung_ever.fetch_add(1, Ordering::Relaxed);
                        // Shutdown does not wait for this one any more.
                        self.watch.notify_all();
                    }
                    Some(limit) => next = Some(next.map_or(limit, |next: Instant| next.min(limit))),
                    None => {}
                }
            }
            if state.stopping && state.live == state.hung {
                return;
            }
            state.unwatched = next.is_none();
            if self.spawn_missing(state).is_err() {
                let again = now + SPAWN_AGAIN;
                next = Some(next.map_or(again, |next| next.min(again)));
            }
            match next {
                Some(next) => drop(self.watch.wait_until(&mut guard, next)),
                None => self.watch.wait(&mut guard),
            }
        }
    }
}

/// What a read is for. The pool has no more than one read of a name, be it waiting or running.
type Name = (EntityKey, Audience);

/// The reads of one resolver.
struct Reads<F> {
    read: F,
    pool: Pool,
    /// Those that wait, with the replies they are to answer, and those that run, without.
    names: Mutex<HashMap<Name, Option<Reply>>>,
}

/// A read that has its place in `names`, until it is dropped.
struct Turn<F> {
    reads: Arc<Reads<F>>,
    name: Name,
}

impl<F: Fn(&Request) -> Result<Rows, ReadError> + Send + Sync + 'static> Reads<F> {
    fn resolve(self: &Arc<Self>, request: Request, reply: Reply) {
        let name = (request.key, request.audience);
        let is_urgent = reply.answers_notify();
        // Replies are never answered or dropped under this lock: core may come back for the next read.
        let mut names = self.names.lock();
        match names.get_mut(&name) {
            None => {
                names.insert(name.clone(), Some(reply));
                drop(names);
                let key = name.0.clone();
                let reads = self.clone();
                let turn = Turn { reads, name };
                self.pool.0.0.run(key.entity(), Box::new(move || turn.run()), is_urgent);
            }
            Some(Some(waiting)) => {
                // Core has given up the older request, and would discard an answer to it.
                let older = mem::replace(waiting, reply);
                drop(names);
                drop(older);
            }
            Some(None) => {
                drop(names);
                self.pool.0.0.counts.refused.fetch_add(1, Ordering::Relaxed);
                reply.fail(ReadError::Failed);
            }
        }
    }
}

impl<F: Fn(&Request) -> Result<Rows, ReadError>> Turn<F> {
    fn run(self) {
        let reply = self.reads.names.lock().get_mut(&self.name).and_then(Option::take);
        let Some(reply) = reply else { return };
        match self.read() {
            // Core counts and retries what can't be sent.
            Ok(rows) => drop(reply.rows(rows)),
            Err(error) => reply.fail(error),
        }
    }

    /// Takes `self` so that the name is free again before the reply is used, even by a panic: core may ask for the next
    /// read right then.
    fn read(self) -> Result<Rows, ReadError> {
        let (key, audience) = self.name.clone();
        (self.reads.read)(&Request { key, audience })
    }
}

impl<F> Drop for Turn<F> {
    fn drop(&mut self) {
        // A read that never began has its reply in here.
        let reply = self.reads.names.lock().remove(&self.name);
        drop(reply);
    }
}

#[cfg(test)]
mod tests;
