//! [`Totals`]: what all clients together make a node keep, in bytes, with a limit for each kind.
//!
//! Half of each limit is for who comes first. The other half is shared out evenly among the connections, so that one that
//! takes much leaves the others their parts.

// Not the model checker's: a moment's difference decides nothing but who gets the last of it.
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) subscriptions: Total,
    pub(crate) secrets: Total,
    pub(crate) input: Total,
}

/// Bytes of one kind.
#[derive(Default)]
pub(crate) struct Total(AtomicUsize);

impl Total {
    /// A shard keeps `now` bytes, of which it has said `said` before.
    pub(crate) fn update(&self, said: &mut usize, now: usize) {
        if now >= *said {
            self.0.fetch_add(now - *said, Ordering::Relaxed);
        } else {
            self.0.fetch_sub(*said - now, Ordering::Relaxed);
        }
        *said = now;
    }

    /// Whether a connection, one of `connections`, that keeps `own` bytes may have so many more.
    pub(crate) fn has_room(&self, limit: usize, own: usize, more: usize, connections: usize) -> bool {
        let half = limit / 2;
        let share = half / connections.max(1);
        self.0.load(Ordering::Relaxed).saturating_add(more) <= half || own.saturating_add(more) <= share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_is_for_who_comes_first_and_half_is_shared() {
        let (total, mut said) = (Total::default(), 0);
        assert!(total.has_room(1000, 0, 500, 10));
        total.update(&mut said, 500);
        assert!(!total.has_room(1000, 500, 1, 10), "it has had more than its share");
        assert!(total.has_room(1000, 0, 50, 10));
        assert!(!total.has_room(1000, 0, 51, 10));
        // However many take their shares, there is an end.
        total.update(&mut said, 1000);
        assert!(!total.has_room(1000, 50, 1, 10));
        total.update(&mut said, 400);
        assert!(total.has_room(1000, 400, 100, 10));
        total.update(&mut said, 0);
        assert_eq!((total.0.load(Ordering::Relaxed), said), (0, 0));
    }
}
