//! [`spawn`] and [`supervise`]: threads and tasks whose death is noticed; [`spawn_restarting`] and [`restart`] begin them again.

use std::any::Any;
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::health::{Health, Part, Severity};

/// How long a thread rests after a panic before it begins again, so that one that panics at once does not spin.
const REST: Duration = Duration::from_millis(100);

/// Starts a thread of this name. If it panics, that is logged, counted, and reported as [`Severity::Dead`] for as long as
/// `health` exists. If `run` returns, all is well: the thread was asked to end.
///
/// # Errors
/// The system refuses the thread.
pub fn spawn(
    name: impl Into<String>,
    health: &Health,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let watched = Watched::new(name, health);
    std::thread::Builder::new().name(watched.name.clone()).spawn(move || {
        // What the thread had is dropped while it unwinds; nobody sees it half done.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            watched.died("thread", &*panic);
        }
    })
}

/// As [`spawn`], but `run` is called again after a panic, which is reported as [`Severity::Degraded`]: for threads that lose
/// nothing by it.
///
/// # Errors
/// The system refuses the thread.
pub fn spawn_restarting(
    name: impl Into<String>,
    health: &Health,
    mut run: impl FnMut() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let watched = Watched::new(name, health);
    std::thread::Builder::new().name(watched.name.clone()).spawn(move || {
        while let Err(panic) = catch_unwind(AssertUnwindSafe(&mut run)) {
            watched.restarts("thread", &*panic);
            std::thread::sleep(REST);
        }
    })
}

/// A task that is watched as [`spawn`] watches a thread. It ends when `task` does, or panics.
pub fn supervise<N, T>(name: N, health: &Health, task: T) -> impl Future<Output = ()> + use<N, T>
where
    N: Into<String>,
    T: Future<Output = ()>,
{
    let watched = Watched::new(name, health);
    async move {
        if let Err(panic) = caught(task).await {
            watched.died("task", &*panic);
        }
    }
}

/// A task that is begun again after a panic, as [`spawn_restarting`] does. Between both it waits for `pause`.
pub async fn restart<T: Future<Output = ()>, P: Future<Output = ()>>(
    name: impl Into<String>,
    health: &Health,
    mut task: impl FnMut() -> T,
    mut pause: impl FnMut() -> P,
) {
    let watched = Watched::new(name, health);
    while let Err(panic) = caught(task()).await {
        watched.restarts("task", &*panic);
        pause().await;
    }
}

type Panic = Box<dyn Any + Send>;

async fn caught<T>(task: impl Future<Output = T>) -> Result<T, Panic> {
    let mut task = Box::pin(task);
    poll_fn(
        // What panicked is not polled again.
        move |cx| match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
            Err(panic) => Poll::Ready(Err(panic)),
        },
    )
    .await
}

/// A thread or a task, by its name.
struct Watched {
    name: String,
    health: Health,
    part: Part,
}

impl Watched {
    fn new(name: impl Into<String>, health: &Health) -> Self {
        let name = name.into();
        Self {
            part: health.part(name.clone()),
            health: health.clone(),
            name,
        }
    }

    fn died(self, what: &str, panic: &(dyn Any + Send)) {
        let Self { name, health, part } = self;
        health.count_dead_thread();
        let why = message(panic);
        tracing::error!(name, "{what} died: {why}");
        part.report(
            Severity::Dead,
            format!("{what} died: {why}; restart the process and report this bug"),
        );
        part.keep_trouble();
    }

    fn restarts(&self, what: &str, panic: &(dyn Any + Send)) {
        self.health.count_dead_thread();
        let (name, why) = (&self.name, message(panic));
        tracing::error!(name, "{what} died and is started again: {why}");
        self.part.report(
            Severity::Degraded,
            format!("{what} died and was started again: {why}; report this bug"),
        );
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic without a message")
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn told(health: &Health) -> Vec<String> {
        health.troubles().iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn done(task: impl Future<Output = ()>) {
        let polled = pin!(task).poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(polled, Poll::Ready(()));
    }

    #[test]
    fn a_panic_is_reported_and_a_return_is_not() {
        let health = Health::default();
        spawn("well", &health, || {}).expect("starts").join().expect("returns");
        assert!(health.is_alive());
        let thread = spawn("worker-1", &health, || panic!("at {}", 7)).expect("starts");
        thread.join().expect("the panic is caught");
        assert_eq!(health.dead_threads(), 1);
        assert_eq!(
            told(&health),
            ["worker-1: thread died: at 7; restart the process and report this bug"]
        );
    }

    #[test]
    fn a_task_is_watched_like_a_thread() {
        let health = Health::default();
        done(supervise("well", &health, ready(())));
        assert!(health.is_alive());
        done(supervise("listener", &health, async { panic!("no row") }));
        assert_eq!(health.dead_threads(), 1);
        assert_eq!(
            told(&health),
            ["listener: task died: no row; restart the process and report this bug"]
        );
    }

    #[test]
    fn what_loses_nothing_begins_again() {
        let health = Health::default();
        let mut times = 0;
        let run = move || {
            times += 1;
            assert!(times > 2, "time {times}");
        };
        let thread = spawn_restarting("reader", &health, run).expect("starts");
        thread.join().expect("returns the third time");
        assert_eq!((health.dead_threads(), health.is_alive()), (2, true));
        let mut times = 0;
        let task = || {
            times += 1;
            let first = times == 1;
            async move { assert!(!first, "the first") }
        };
        let pause: fn() -> Ready<()> = || ready(());
        done(restart("worker", &health, task, pause));
        assert_eq!((health.dead_threads(), health.is_alive()), (3, true));
    }

    #[test]
    fn a_part_that_begins_again_is_in_trouble_while_it_runs() {
        let health = Health::default();
        let watched = Watched::new("reader", &health);
        watched.restarts("thread", &"once");
        let said = "reader: thread died and was started again: once; report this bug";
        assert_eq!(told(&health), [said]);
        assert!(health.is_ready());
    }
}
