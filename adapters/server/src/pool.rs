//! [`Pool`]: a few threads that run blocking jobs, such as reads of the store.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::{Mutex, RwLock};

/// What a [`Pool`] runs.
pub type Job = Box<dyn FnOnce() + Send>;

/// Threads that run jobs in the order of [`run`](Pool::run).
///
/// A job that panics is the job's own loss: what it captured is dropped, and its thread goes on. Jobs that can't be run
/// any more are dropped as well, so give a job something to say so when it is dropped, as a resolver's reply does.
pub struct Pool {
    /// `None` after shutdown. Unbounded, since `run` is called by event loops, which must not wait; a caller that has a
    /// limit of its own (one running read per key and audience) bounds it.
    jobs: RwLock<Option<Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    panics: AtomicU64,
}

impl Pool {
    /// Starts `threads` threads (at least one) called `name`.
    ///
    /// # Errors
    /// When the system gives no thread; those already started end again.
    pub fn new(threads: usize, name: &str) -> io::Result<Self> {
        let (sender, jobs) = unbounded::<Job>();
        // Made before its threads, so that leaving early stops the first ones.
        let pool = Self {
            jobs: RwLock::new(Some(sender)),
            threads: Mutex::default(),
            shared: Arc::default(),
        };
        for _ in 0..threads.max(1) {
            let (jobs, shared) = (jobs.clone(), Arc::clone(&pool.shared));
            let thread = thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || work(&jobs, &shared))?;
            pool.threads.lock().push(thread);
        }
        Ok(pool)
    }

    /// Runs `job` on the next free thread. Never waits. After [`shutdown`](Self::shutdown) the job is dropped instead.
    pub fn run(&self, job: Job) {
        if let Some(jobs) = self.jobs.read().as_ref() {
            // Fails only when no thread is left, and then dropping the job is the answer.
            let _ = jobs.send(job);
        }
    }

    /// How many jobs have panicked so far.
    pub fn panics(&self) -> u64 {
        self.shared.panics.load(Ordering::Relaxed)
    }

    /// Lets running jobs finish, drops those that wait, and returns when all threads have ended.
    ///
    /// It waits as long as the longest running job. Dropping the pool does the same.
    pub fn shutdown(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.jobs.write().take();
        let mut threads = self.threads.lock();
        for thread in threads.drain(..) {
            // A job may hold the pool's last handle, and no thread can wait for itself.
            if thread.thread().id() != thread::current().id() {
                // It can't have panicked but in the drop of a job's values, which is that job's loss too.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

fn work(jobs: &Receiver<Job>, shared: &Shared) {
    for job in jobs {
        let result = catch_unwind(AssertUnwindSafe(|| {
            if shared.stopping.load(Ordering::Relaxed) {
                drop(job);
            } else {
                job();
            }
        }));
        if result.is_err() {
            shared.panics.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn runs_jobs_at_the_same_time_on_named_threads() {
        let pool = Pool::new(2, "reads").expect("threads");
        let (meet, met) = crossbeam_channel::bounded(0);
        let (done, names) = unbounded();
        let other = done.clone();
        // Each waits for the other, so one thread alone would never finish.
        pool.run(Box::new(move || {
            meet.send_timeout((), SOON).expect("a second thread");
            let _ = done.send(thread::current().name().map(str::to_owned));
        }));
        pool.run(Box::new(move || {
            met.recv_timeout(SOON).expect("a first thread");
            let _ = other.send(thread::current().name().map(str::to_owned));
        }));
        for _ in 0..2 {
            let name = names.recv_timeout(SOON).expect("ran");
            assert_eq!(name.as_deref(), Some("reads"));
        }
    }

    #[test]
    fn a_panic_drops_what_the_job_held_and_spares_the_thread() {
        let pool = Pool::new(1, "reads").expect("threads");
        let (held, dropped) = crossbeam_channel::bounded::<()>(0);
        pool.run(Box::new(move || {
            let _held = held;
            panic!("a job that fails on purpose");
        }));
        let gone = dropped.recv_timeout(SOON);
        assert_eq!(gone, Err(crossbeam_channel::RecvTimeoutError::Disconnected));
        let (done, ran) = unbounded();
        pool.run(Box::new(move || done.send(()).expect("heard")));
        ran.recv_timeout(SOON).expect("the thread goes on");
        assert_eq!(pool.panics(), 1);
    }

    #[test]
    fn shutdown_finishes_what_runs_and_drops_what_waits() {
        let pool = Pool::new(1, "reads").expect("threads");
        let (go, wait) = unbounded::<()>();
        let (begun, has_begun) = unbounded();
        let finished = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&finished);
        pool.run(Box::new(move || {
            let _ = begun.send(());
            let _ = wait.recv_timeout(SOON);
            flag.store(true, Ordering::SeqCst);
        }));
        has_begun.recv_timeout(SOON).expect("runs");
        let waiting = Arc::new(());
        let held = Arc::clone(&waiting);
        pool.run(Box::new(move || {
            let _held = held;
            unreachable!("it must not run");
        }));
        thread::scope(|scope| {
            let shutdown = scope.spawn(|| pool.shutdown());
            while pool.jobs.read().is_some() {
                thread::yield_now();
            }
            go.send(()).expect("still running");
            shutdown.join().expect("no panic");
        });
        assert!(finished.load(Ordering::SeqCst));
        assert_eq!(Arc::strong_count(&waiting), 1);
        assert_eq!(pool.panics(), 0);
    }

    #[test]
    fn a_job_after_shutdown_is_dropped() {
        let pool = Pool::new(1, "reads").expect("threads");
        pool.shutdown();
        let (held, dropped) = crossbeam_channel::bounded::<()>(0);
        pool.run(Box::new(move || drop(held)));
        assert!(dropped.try_recv().is_err_and(|e| e.is_disconnected()));
    }

    #[test]
    fn a_job_may_hold_the_last_handle() {
        let pool = Arc::new(Pool::new(1, "reads").expect("threads"));
        let weak: Weak<Pool> = Arc::downgrade(&pool);
        let (go, wait) = unbounded::<()>();
        let own = Arc::clone(&pool);
        pool.run(Box::new(move || {
            let _ = wait.recv_timeout(SOON);
            drop(own);
        }));
        drop(pool);
        go.send(()).expect("waiting");
        let begun = std::time::Instant::now();
        while weak.strong_count() > 0 {
            assert!(begun.elapsed() < SOON);
            thread::yield_now();
        }
    }
}
