//! [`Flag`]: what a waker of the simulation does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;

/// Somebody wants to be asked.
pub(crate) struct Flag(AtomicBool);

impl Flag {
    pub(crate) fn raised() -> Self {
        Self(AtomicBool::new(true))
    }

    pub(crate) fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(crate) fn lower(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.raise();
    }
}
