//! [`sabotage`]: a thread of this process dies, as it would of a bug of ours.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

struct Saboteur {
    victim: String,
    is_done: AtomicBool,
}

/// The thread of this name panics when it logs something next: the only code that a reactor or a bus runs without a net and
/// that is not ours.
pub fn sabotage(victim: impl Into<String>) {
    let saboteur = Saboteur {
        victim: victim.into(),
        is_done: AtomicBool::new(false),
    };
    tracing::subscriber::set_global_default(saboteur).unwrap();
}

impl Saboteur {
    fn strike(&self) {
        let is_there = std::thread::current().name() == Some(&self.victim);
        assert!(!is_there || self.is_done.swap(true, Ordering::SeqCst), "sabotage");
    }
}

impl Subscriber for Saboteur {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        self.strike();
        Id::from_u64(1)
    }

    fn event(&self, _: &Event<'_>) {
        self.strike();
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
