//! [`Timestamp`]: time as a value that the embedder hands in.

use std::fmt;
use std::ops::Add;
use std::time::Duration;

/// A moment, in nanoseconds since a start that the embedder chooses (its process's, usually). It must come from a
/// monotonic clock; a step back is harmless but makes time-outs late.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The start of the embedder's clock.
    pub const START: Self = Self(0);

    /// The moment `elapsed` after the start; saturates after 584 years.
    pub fn after_start(elapsed: Duration) -> Self {
        Self::START + elapsed
    }

    /// Time passed since `earlier`, or zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub(crate) fn as_nanos(self) -> u64 {
        self.0
    }

    pub(crate) fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{:?}", Duration::from_nanos(self.0))
    }
}
