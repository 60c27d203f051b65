//! [`spawn`]: threads whose death is noticed.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use crate::health::{Health, Severity};

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
    let name = name.into();
    let part = health.part(name.clone());
    let health = health.clone();
    std::thread::Builder::new().name(name.clone()).spawn(move || {
        // What the thread had is dropped while it unwinds; nobody sees it half done.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            health.count_dead_thread();
            let why = message(&*panic);
            tracing::error!(thread = name, "thread died: {why}");
            part.report(
                Severity::Dead,
                format!("thread died: {why}; restart the process and report this bug"),
            );
            part.keep_trouble();
        }
    })
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
    use super::*;

    #[test]
    fn a_panic_is_reported_and_a_return_is_not() {
        let health = Health::default();
        spawn("well", &health, || {}).expect("starts").join().expect("returns");
        assert!(health.is_alive());
        let thread = spawn("worker-1", &health, || panic!("at {}", 7)).expect("starts");
        thread.join().expect("the panic is caught");
        assert_eq!(health.dead_threads(), 1);
        let said: Vec<_> = health.troubles().iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            ["worker-1: thread died: at 7; restart the process and report this bug"]
        );
    }
}
