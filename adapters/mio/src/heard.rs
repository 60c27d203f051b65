//! [`Heard`]: until when a reactor has read all that had arrived. Peers are judged by that time, and not by the clock: what
//! they have said may still wait in their sockets.

use entity_sync_core::Timestamp;

/// Goes in rounds: the kernel tells of all sockets that have something, perhaps in several portions, and then each of those
/// is read from at least once.
#[derive(Default)]
pub(crate) struct Heard {
    until: Timestamp,
    round_began: Timestamp,
    /// Events that the kernel has told of in this round.
    told: usize,
    /// Once it has told of all: sockets that are still to be read from.
    left: Option<usize>,
}

impl Heard {
    /// All that had arrived by then was read.
    pub(crate) fn until(&self) -> Timestamp {
        self.until
    }

    /// The kernel has told of `events`, which are all if there was `room` for more, and `unread` sockets are listed now, to
    /// be read from in this order. Of as many `sockets` as there are, it tells in turns.
    pub(crate) fn told(&mut self, now: Timestamp, events: usize, room: usize, sockets: usize, unread: usize) {
        if self.left.is_some() {
            return;
        }
        if self.told == 0 {
            self.round_began = now;
        }
        self.told += events;
        if events < room || self.told > sockets + room {
            self.left = Some(unread);
            self.end_round();
        }
    }

    /// The first of the sockets that are listed was read from.
    pub(crate) fn read_one(&mut self) {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
            self.end_round();
        }
    }

    fn end_round(&mut self) {
        if self.left == Some(0) {
            self.until = self.round_began;
            self.told = 0;
            self.left = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::after_start(Duration::from_millis(ms))
    }

    #[test]
    fn a_round_ends_when_all_that_the_kernel_told_of_was_read() {
        let mut heard = Heard::default();
        heard.told(at(1), 0, 10, 100, 0);
        assert_eq!(heard.until(), at(1), "there was nothing");
        // Two portions, and while they are read a third, which belongs to the next round.
        heard.told(at(2), 10, 10, 100, 10);
        heard.read_one();
        assert_eq!(heard.until(), at(1), "there may be more");
        heard.told(at(3), 2, 10, 100, 11);
        (0..10).for_each(|_| heard.read_one());
        heard.told(at(4), 5, 10, 100, 6);
        assert_eq!(heard.until(), at(1));
        heard.read_one();
        assert_eq!(heard.until(), at(2));
        heard.told(at(5), 0, 10, 100, 5);
        (0..5).for_each(|_| heard.read_one());
        assert_eq!(heard.until(), at(5));
    }

    #[test]
    fn sockets_that_always_have_something_do_not_put_it_off_for_ever() {
        let mut heard = Heard::default();
        for ms in 0..20 {
            heard.told(at(ms), 10, 10, 100, 10);
            (0..10).for_each(|_| heard.read_one());
        }
        assert_eq!(heard.until(), at(0));
        for ms in 20..40 {
            heard.told(at(ms), 10, 10, 100, 10);
            (0..10).for_each(|_| heard.read_one());
        }
        assert!(heard.until() >= at(12));
    }
}
