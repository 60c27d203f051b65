//! [`Topics`]: under which names messages are published, and which of them this node hears.
//!
//! | topic | what |
//! | --- | --- |
//! | `PREFIX.all` | everything, unless nodes hear by interest |
//! | `PREFIX.ctrl` | digests, if they do |
//! | `PREFIX.0000` to `PREFIX.3fff` | changes of one bucket, if they do |
//!
//! None begins another one, so that a bus which matches by prefix keeps them apart.

use std::collections::VecDeque;
use std::fmt::Write;

use super::{BucketSet, ClusterOutput};
use crate::node::Interest;

/// The longest prefix.
pub(super) const MAX_PREFIX_BYTES: usize = 64;
/// No topic is longer: a prefix, a dot, and four digits of a bucket. They are of ASCII, and without a zero.
pub const MAX_TOPIC_BYTES: usize = MAX_PREFIX_BYTES + 1 + 4;

pub(super) struct Topics {
    prefix: String,
    by_interest: bool,
    /// Digests, and changes too unless by interest.
    common: String,
    is_common_new: bool,
    /// Buckets that are heard, by interest.
    heard: BucketSet,
    /// Buckets to begin or to stop hearing.
    changes: VecDeque<u32>,
    topic: String,
}

impl Topics {
    pub(super) fn new(prefix: &str, buckets: u32, by_interest: bool) -> Self {
        Self {
            common: format!("{prefix}.{}", if by_interest { "ctrl" } else { "all" }),
            prefix: prefix.to_owned(),
            by_interest,
            is_common_new: true,
            heard: BucketSet::none(buckets),
            changes: VecDeque::new(),
            topic: String::new(),
        }
    }

    pub(super) fn of_digests(&self) -> &str {
        &self.common
    }

    pub(super) fn of_changes(&mut self, bucket: u32) -> &str {
        if !self.by_interest {
            return &self.common;
        }
        self.topic.clear();
        // A string takes everything.
        let _ = write!(self.topic, "{}.{bucket:04x}", self.prefix);
        &self.topic
    }

    /// Whether messages of this bucket are to come: it is heard, or is to be as soon as anybody looks. A digest that comes
    /// before that may tell of changes after the interest began.
    pub(super) fn hears(&self, interest: Option<&Interest>, bucket: u32) -> bool {
        interest.is_none_or(|it| self.heard.contains(bucket) || it.is_in(bucket))
    }

    /// Whether there is a topic to begin or to stop hearing.
    pub(super) fn has_changes(&mut self, interest: Option<&Interest>) -> bool {
        if let Some(interest) = interest {
            interest.take_changes(|bucket| self.changes.push_back(bucket));
            // Interest may have come and gone meanwhile.
            while self
                .changes
                .front()
                .is_some_and(|&bucket| interest.is_in(bucket) == self.heard.contains(bucket))
            {
                self.changes.pop_front();
            }
        }
        self.is_common_new || !self.changes.is_empty()
    }

    pub(super) fn next_change(&mut self) -> Option<ClusterOutput<'_>> {
        if std::mem::take(&mut self.is_common_new) {
            return Some(ClusterOutput::Subscribe(&self.common));
        }
        let bucket = self.changes.pop_front()?;
        let was_heard = self.heard.contains(bucket);
        if was_heard {
            self.heard.remove(bucket);
        } else {
            self.heard.insert(bucket);
        }
        let topic = self.of_changes(bucket);
        Some(if was_heard {
            ClusterOutput::Unsubscribe(topic)
        } else {
            ClusterOutput::Subscribe(topic)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::MAX_BUCKETS;

    #[test]
    fn no_topic_is_longer() {
        let prefix = "x".repeat(MAX_PREFIX_BYTES);
        let mut topics = Topics::new(&prefix, MAX_BUCKETS, true);
        assert_eq!(topics.of_changes(MAX_BUCKETS - 1).len(), MAX_TOPIC_BYTES);
        assert!(topics.of_digests().len() <= MAX_TOPIC_BYTES);
    }
}
