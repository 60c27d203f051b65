//! [`Deliveries`]: tells when a queue has everything that was notified before some moment.

use std::collections::VecDeque;

/// Counts the messages that the queue does not have yet, by the [mark](Deliveries::mark) that was set before them.
pub(super) struct Deliveries {
    /// How many are missing of each batch, the oldest first. The last one is still growing.
    missing: VecDeque<usize>,
    /// The number of the first of them.
    first: u64,
}

/// The batches that one message stands for: more than one if notifies of the same key were joined.
#[derive(Clone, Debug)]
pub(super) struct Batches {
    first: u64,
    more: Vec<u64>,
}

impl Deliveries {
    pub(super) fn new() -> Self {
        Self {
            missing: VecDeque::from([0]),
            first: 0,
        }
    }

    /// Another message is to be delivered.
    pub(super) fn add(&mut self) -> Batches {
        if let Some(last) = self.missing.back_mut() {
            *last += 1;
        }
        Batches {
            first: self.current(),
            more: Vec::new(),
        }
    }

    /// One is delivered, or never will be.
    pub(super) fn finish(&mut self, batches: &Batches) {
        for batch in batches.iter() {
            let at = batch.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
            if let Some(missing) = at.and_then(|at| self.missing.get_mut(at)) {
                *missing = missing.saturating_sub(1);
            }
        }
        self.forget_finished();
    }

    /// Sets a mark behind everything that was added so far.
    pub(super) fn mark(&mut self) -> u64 {
        let mark = self.current();
        self.missing.push_back(0);
        self.forget_finished();
        mark
    }

    /// Whether everything in front of a mark is delivered.
    pub(super) fn is_over(&self, mark: u64) -> bool {
        mark < self.first
    }

    fn current(&self) -> u64 {
        self.first + self.missing.len() as u64 - 1
    }

    fn forget_finished(&mut self) {
        while self.missing.len() > 1 && self.missing[0] == 0 {
            self.missing.pop_front();
            self.first += 1;
        }
    }
}

impl Batches {
    fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        std::iter::once(self.first).chain(self.more.iter().copied())
    }

    /// Whether this is something that a mark waits for.
    pub(super) fn is_before(&self, mark: u64) -> bool {
        self.iter().any(|batch| batch <= mark)
    }

    /// From now on this stands for the other ones, too. Returns those that it stood for already, which nobody has to wait
    /// for twice.
    pub(super) fn join(&mut self, other: Self) -> Option<Self> {
        let mut twice = Vec::new();
        for batch in other.iter() {
            let is_known = self.first == batch || self.more.contains(&batch);
            let list = if is_known { &mut twice } else { &mut self.more };
            list.push(batch);
        }
        Some(Self {
            first: twice.pop()?,
            more: twice,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_waits_for_what_was_added_before_it_and_for_nothing_else() {
        let mut deliveries = Deliveries::new();
        let nothing = deliveries.mark();
        assert!(deliveries.is_over(nothing));
        let (first, second) = (deliveries.add(), deliveries.add());
        let mark = deliveries.mark();
        let third = deliveries.add();
        let late_mark = deliveries.mark();
        assert!(first.is_before(mark) && !third.is_before(mark));
        deliveries.finish(&third);
        deliveries.finish(&first);
        assert!(!deliveries.is_over(mark) && !deliveries.is_over(late_mark));
        deliveries.finish(&second);
        assert!(deliveries.is_over(mark) && deliveries.is_over(late_mark));
    }

    #[test]
    fn joined_messages_are_waited_for_by_all_their_marks() {
        let mut deliveries = Deliveries::new();
        let (first, again) = (deliveries.add(), deliveries.add());
        let mark = deliveries.mark();
        let mut second = deliveries.add();
        let late_mark = deliveries.mark();
        assert!(second.join(first).is_none());
        let twice = second.join(again).expect("one of the first batch is there");
        deliveries.finish(&twice);
        assert!(!deliveries.is_over(mark));
        deliveries.finish(&second);
        assert!(deliveries.is_over(mark) && deliveries.is_over(late_mark));
    }
}
