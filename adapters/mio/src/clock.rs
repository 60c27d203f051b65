//! [`Clock`]: the process's monotonic clock as core's timestamps.

use std::time::Instant;

use entity_sync_core::Timestamp;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn now(self) -> Timestamp {
        Timestamp::after_start(self.start.elapsed())
    }
}
