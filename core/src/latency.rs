//! [`Latency`]: how long pushes take, from the notify to the driver's write.

use std::sync::Arc;
use std::time::Duration;

use crate::counters::Counter;
use crate::time::Timestamp;

/// The upper bounds of the buckets of [`LatencyCounts`], each inclusive. The last bucket has none.
pub const LATENCY_BOUNDS: [Duration; 16] = {
    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }
    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }
    [
        us(100),
        us(250),
        us(500),
        ms(1),
        us(2_500),
        ms(5),
        ms(10),
        ms(25),
        ms(50),
        ms(100),
        ms(250),
        ms(500),
        ms(1_000),
        ms(2_500),
        ms(5_000),
        ms(10_000),
    ]
};

const BUCKETS: usize = LATENCY_BOUNDS.len() + 1;

/// How many pushes took how long: from the first notify that their rows answer until the driver had written them all, as far
/// as it tells the time. Rows that nobody notified of, such as snapshots, are not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyCounts {
    /// Pushes by [`LATENCY_BOUNDS`]: each is in the first bucket whose bound it keeps.
    pub buckets: [u64; BUCKETS],
    /// All of them together.
    pub sum: Duration,
}

impl LatencyCounts {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl std::ops::AddAssign for LatencyCounts {
    fn add_assign(&mut self, other: Self) {
        for (sum, bucket) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += bucket;
        }
        self.sum += other.sum;
    }
}

/// The live numbers of one shard, which alone writes them.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [Counter; BUCKETS],
    sum_nanos: Counter,
}

impl Histogram {
    pub(crate) fn snapshot(&self) -> LatencyCounts {
        LatencyCounts {
            buckets: std::array::from_fn(|bucket| self.buckets[bucket].get()),
            sum: Duration::from_nanos(self.sum_nanos.get()),
        }
    }

    fn record(&self, took: Duration, pushes: u64) {
        let bucket = LATENCY_BOUNDS.partition_point(|&bound| bound < took);
        self.buckets[bucket].add_alone(pushes);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanos.add_alone(nanos.saturating_mul(pushes));
    }
}

/// Pushes that a shard has written since it was last told the time.
pub(crate) struct Latency {
    written: Vec<(Timestamp, u64)>,
    histogram: Arc<Histogram>,
}

impl Latency {
    pub(crate) fn new(histogram: Arc<Histogram>) -> Self {
        let written = Vec::new();
        Self { written, histogram }
    }

    /// A push is written whose rows answer a notify of `since`.
    pub(crate) fn written(&mut self, since: Option<Timestamp>) {
        let Some(since) = since else {
            return;
        };
        match self.written.last_mut().filter(|(same, _)| *same == since) {
            Some((_, pushes)) => *pushes += 1,
            None => self.written.push((since, 1)),
        }
    }

    /// It is now: what was written is written by now.
    pub(crate) fn advance(&mut self, now: Timestamp) {
        for (since, pushes) in self.written.drain(..) {
            self.histogram.record(now.since(since), pushes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_push_is_in_the_bucket_of_its_bound() {
        let at = |micros| Timestamp::START + Duration::from_micros(micros);
        let mut latency = Latency::new(Arc::default());
        latency.written(Some(at(0)));
        latency.written(Some(at(0)));
        latency.written(None);
        latency.advance(at(100));
        latency.written(Some(at(0)));
        latency.advance(at(101));
        latency.written(Some(at(0)));
        latency.advance(at(20_000_000));
        let counts = latency.histogram.snapshot();
        assert_eq!(
            (counts.buckets[0], counts.buckets[1], counts.buckets[BUCKETS - 1]),
            (2, 1, 1)
        );
        assert_eq!(counts.count(), 4);
        assert_eq!(counts.sum, Duration::from_micros(2 * 100 + 101 + 20_000_000));
        let mut twice = counts;
        twice += counts;
        assert_eq!((twice.count(), twice.sum), (8, counts.sum * 2));
    }
}
