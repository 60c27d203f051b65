//! [`Track`]: which messages of one bucket of one peer have come.

/// The numbers that a peer gave its messages of one bucket: 1, 2, 3, … Those 64 behind the highest are known one by one,
/// which absorbs repeats and what comes out of order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Track {
    /// The highest number that has come, or counts as if it had.
    highest: u64,
    /// Bit `i`: number `highest - i` has come. All that is before has come or has been given up.
    window: u64,
    /// The highest number that the peer has said it gave.
    announced: u64,
    /// Up to here, what is missing has been noticed.
    noticed: u64,
}

/// What a number is to its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It comes for the first time.
    New,
    /// It comes for the first time, and so many that were sent before it have not come although they are further back than
    /// messages get out of order.
    Overtook,
    /// It has come before, or it was given up: what it says is read again anyway.
    Repeated,
}

impl Track {
    pub(super) const fn new() -> Self {
        Self {
            highest: 0,
            window: u64::MAX,
            announced: 0,
            noticed: 0,
        }
    }

    pub(super) fn receive(&mut self, number: u64) -> Arrival {
        if number <= self.highest {
            let age = self.highest - number;
            if age >= 64 || self.window >> age & 1 == 1 {
                return Arrival::Repeated;
            }
            self.window |= 1 << age;
            return Arrival::New;
        }
        let ahead = number - self.highest;
        self.highest = number;
        let leaving = match ahead {
            64.. => u64::MAX,
            _ => u64::MAX << (64 - ahead),
        };
        let is_lost = ahead > 64 || self.window & leaving != leaving;
        if is_lost {
            // All that is missing is given up together.
            self.window = u64::MAX;
            return Arrival::Overtook;
        }
        self.window = self.window.checked_shl(ahead as u32).unwrap_or(0) | 1;
        Arrival::New
    }

    /// The peer says that it gave all numbers up to this one.
    pub(super) fn announce(&mut self, number: u64) {
        self.announced = self.announced.max(number);
    }

    /// Whether a message is missing that has been sent for certain.
    fn has_gaps(&self) -> bool {
        self.announced > self.highest || self.window != u64::MAX
    }

    /// Something is missing that was not noticed when this was last asked, among the numbers up to what this gives.
    pub(super) fn notice_gap(&mut self) -> Option<u64> {
        let known = self.known();
        if !self.has_gaps() || known <= self.noticed {
            return None;
        }
        self.noticed = known;
        Some(known)
    }

    /// Whether one is missing among those up to `number`.
    pub(super) fn has_gaps_up_to(&self, number: u64) -> bool {
        let newer = self.highest.saturating_sub(number);
        number > self.highest || (newer < 64 && !self.window >> newer != 0)
    }

    /// The highest number that has been sent for certain.
    pub(super) fn known(&self) -> u64 {
        self.highest.max(self.announced)
    }

    /// What is missing is given up.
    pub(super) fn give_up(&mut self) {
        self.highest = self.known();
        self.window = u64::MAX;
    }

    /// How many are missing.
    pub(super) fn missing(&self) -> u64 {
        u64::from(self.window.count_zeros()) + self.announced.saturating_sub(self.highest)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn in_order_nothing_is_missing() {
        let mut track = Track::new();
        for number in 1..200 {
            assert_eq!(track.receive(number), Arrival::New);
            assert!(!track.has_gaps());
            assert_eq!(track.receive(number), Arrival::Repeated);
        }
    }

    #[test]
    fn a_hole_is_seen_and_can_be_filled() {
        let mut track = Track::new();
        track.receive(1);
        assert_eq!(track.receive(3), Arrival::New);
        assert!(track.has_gaps() && track.has_gaps_up_to(2) && !track.has_gaps_up_to(1));
        assert_eq!(track.missing(), 1);
        assert_eq!(track.receive(2), Arrival::New);
        assert!(!track.has_gaps());
        // The first of all, too.
        let mut track = Track::new();
        track.receive(2);
        assert!(track.has_gaps_up_to(1));
    }

    #[test]
    fn a_lost_last_one_is_told_of() {
        let mut track = Track::new();
        track.receive(1);
        track.announce(3);
        assert!(track.has_gaps_up_to(2) && track.has_gaps_up_to(3));
        assert_eq!(track.missing(), 2);
        track.receive(3);
        assert!(track.has_gaps());
        track.give_up();
        assert!(!track.has_gaps());
        assert_eq!(track.receive(2), Arrival::Repeated);
        track.announce(2);
        assert!(!track.has_gaps());
    }

    #[test]
    fn the_window_has_room_for_64() {
        let mut track = Track::new();
        track.receive(1);
        // 2 is missing, and stays so until it is 64 behind.
        for number in 3..=65 {
            assert_eq!(track.receive(number), Arrival::New, "{number}");
            assert!(track.has_gaps_up_to(2));
        }
        assert_eq!(track.receive(66), Arrival::Overtook);
        assert!(!track.has_gaps());
        // So many at once that some are lost for certain; and one fewer.
        let mut track = Track::new();
        assert_eq!(track.receive(65), Arrival::Overtook);
        let mut track = Track::new();
        assert_eq!(track.receive(64), Arrival::New);
        assert_eq!(track.missing(), 63);
        assert_eq!(track.receive(1), Arrival::New);
        let mut track = Track::new();
        assert_eq!(track.receive(u64::MAX), Arrival::Overtook);
        assert_eq!(track.receive(1), Arrival::Repeated);
    }

    proptest! {
        /// Whatever comes in whatever order: each number is new once, or was given up; and what is missing is known.
        #[test]
        fn agrees_with_a_set(numbers in proptest::collection::vec(1u64..150, 0..200), announced in 0u64..150) {
            let mut track = Track::new();
            let mut come = BTreeSet::new();
            let mut given_up = 0;
            for number in numbers {
                let is_new = number > given_up && come.insert(number);
                match track.receive(number) {
                    Arrival::New => prop_assert!(is_new),
                    Arrival::Repeated => prop_assert!(!is_new),
                    Arrival::Overtook => {
                        prop_assert!(is_new);
                        let oldest = (given_up + 1..number).find(|it| !come.contains(it));
                        prop_assert!(oldest.is_some_and(|oldest| number - oldest >= 64));
                        given_up = number;
                    }
                }
                let highest = come.last().copied().unwrap_or_default().max(given_up);
                for upto in 1..=highest {
                    let missing = (given_up + 1..=upto).any(|it| !come.contains(&it));
                    prop_assert_eq!(track.has_gaps_up_to(upto), missing, "up to {}", upto);
                }
                let missing = (given_up + 1..=highest).filter(|it| !come.contains(it)).count();
                prop_assert_eq!(track.missing(), missing as u64);
            }
            track.announce(announced);
            let highest = come.last().copied().unwrap_or_default().max(given_up);
            let missing = (given_up + 1..=highest.max(announced)).any(|it| !come.contains(&it));
            prop_assert_eq!(track.has_gaps(), missing);
            track.give_up();
            prop_assert!(!track.has_gaps());
        }
    }
}
