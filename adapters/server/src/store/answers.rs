//! [`Answers`]: the answers to a batch of writes. One caller tells the others.
//!
//! To wake a runtime from another thread takes a system call for each task, and from a task of its own none. So the writer
//! wakes one caller of a batch, and gives it the answers of all.

use tokio::sync::oneshot;

use super::StoreError;

pub(super) type Answer = Result<bool, StoreError>;

/// Where a caller waits for its answer.
pub(super) type Reply = oneshot::Sender<Answers>;

/// A caller's own answer, and those of others, who are told when this is dropped.
pub(super) struct Answers {
    own: Answer,
    others: Vec<(Reply, Answer)>,
}

impl Answers {
    /// Answers all of them. A caller who no longer waits needs no answer.
    pub(super) fn send(mut all: Vec<(Reply, Answer)>) {
        while let Some((reply, own)) = all.pop() {
            let others = std::mem::take(&mut all);
            match reply.send(Self { own, others }) {
                Ok(()) => return,
                Err(mut unsent) => all = std::mem::take(&mut unsent.others),
            }
        }
    }

    /// The caller's own answer. The others are told.
    pub(super) fn own(&self) -> Answer {
        self.own.clone()
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        for (reply, own) in self.others.drain(..) {
            let others = Vec::new();
            let _ = reply.send(Self { own, others });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_told_whoever_does_not_wait_any_more() {
        for gone in 0..4 {
            let (replies, answers): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel()).unzip();
            let mut answers: Vec<_> = answers.into_iter().map(Some).collect();
            if let Some(answer) = answers.get_mut(gone) {
                *answer = None;
            }
            Answers::send(replies.into_iter().map(|reply| (reply, Ok(true))).collect());
            // The one that was sent to may go without looking.
            for answer in answers.iter_mut().rev().flatten() {
                drop(answer.try_recv().expect("told"));
            }
            let (replies, mut answers): (Vec<_>, Vec<_>) = (0..2).map(|_| oneshot::channel()).unzip();
            Answers::send(
                replies
                    .into_iter()
                    .map(|reply| (reply, Err(StoreError::Busy)))
                    .collect(),
            );
            drop(answers.pop());
            let told = answers.pop().expect("two").try_recv().expect("told");
            assert_eq!(told.own(), Err(StoreError::Busy));
        }
    }
}
