//! [`Memory`]: the server's anonymous memory over the run.

use std::fmt;

/// Allowed beyond half as much again, for allocators that keep what they once had.
const SLACK_BYTES: u64 = 32 * 1024 * 1024;

/// Samples of `RssAnon` since the end of the warm-up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    first: Option<u64>,
    max: u64,
    last: u64,
}

impl Memory {
    pub(crate) fn push(&mut self, bytes: u64) {
        self.first.get_or_insert(bytes);
        self.max = self.max.max(bytes);
        self.last = bytes;
    }

    /// What the last sample may be.
    pub(crate) fn limit(&self) -> u64 {
        let first = self.first.unwrap_or_default();
        first + first / 2 + SLACK_BYTES
    }

    pub(crate) fn has_grown(&self) -> bool {
        self.last > self.limit()
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, max, last, limit] =
            [self.first.unwrap_or_default(), self.max, self.last, self.limit()].map(|it| it as f64 / 1024.0 / 1024.0);
        write!(f, "{first:.1}, {max:.1}, {last:.1} (at most {limit:.1})")
    }
}
