//! [`Telling`]: what this node tells the others: what was notified on it, in numbered messages, and digests.

use std::sync::Arc;

use super::message::{self, Digest, Sender, Writer};
use super::topics::Topics;
use super::{ClusterConfig, ClusterCounters, ClusterOutput};
use crate::hash::Seed;
use crate::key::EntityKey;
use crate::node::{LANES, Lane, Outgoing};

pub(super) struct Telling {
    outgoing: Arc<Outgoing>,
    /// The number of this node's last message of each bucket.
    numbers: Box<[u64]>,
    lane: Lane,
    /// Of what was notified here, that which is being published, in the order of its buckets. Taken from the end.
    keys: Vec<EntityKey>,
    /// Buckets of which no keys are named, likewise.
    whole: Vec<u32>,
    /// When these are told of, there are no others, unless the waker is called.
    is_drained: bool,
    /// The number of the last digest.
    digest: u64,
    /// A digest is being sent, and buckets from here on are still to be told of.
    next_bucket: Option<u32>,
    is_leaving: bool,
    writer: Writer,
}

impl Telling {
    pub(super) fn new(outgoing: Arc<Outgoing>, buckets: u32, seed: Seed) -> Self {
        Self {
            outgoing,
            numbers: vec![0; buckets as usize].into(),
            lane: Lane::new(seed),
            keys: Vec::new(),
            whole: Vec::new(),
            is_drained: false,
            digest: 0,
            next_bucket: None,
            is_leaving: false,
            writer: Writer::default(),
        }
    }

    /// The number of the last digest.
    pub(super) fn last_digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn begin_digest(&mut self) {
        self.next_bucket = Some(0);
    }

    /// From now on, digests are goodbyes.
    pub(super) fn leave(&mut self) {
        self.is_leaving = true;
        self.is_drained = false;
        self.begin_digest();
    }

    /// Takes what was notified here, if it is time for that.
    pub(super) fn take(&mut self, buckets: u32) {
        // The parts of a digest tell of the same moment; but a last one goes behind everything.
        if self.has_told() && (self.next_bucket.is_none() || self.is_leaving) {
            self.take_lanes(buckets);
            if self.is_leaving && !self.has_told() {
                // The goodbye is to tell of this, too.
                self.begin_digest();
            }
        }
    }

    /// The next message, if there is one.
    pub(super) fn write<'a>(
        &'a mut self,
        config: &ClusterConfig,
        topics: &'a mut Topics,
        counters: &ClusterCounters,
    ) -> Option<ClusterOutput<'a>> {
        let sender = Sender {
            node: config.node,
            epoch: config.epoch,
        };
        // What has been given a number goes out before the digest that tells of it.
        let topic = match self.has_told() {
            false => {
                let bucket = self.write_changes(sender, config, counters);
                topics.of_changes(bucket)
            }
            true => {
                self.write_digest(sender, config)?;
                counters.digests_sent.add(1);
                topics.of_digests()
            }
        };
        let message = self.writer.finish(config.secret.as_ref());
        Some(ClusterOutput::Publish { topic, message })
    }

    /// Whether all that was taken of what was notified here has been published.
    fn has_told(&self) -> bool {
        self.keys.is_empty() && self.whole.is_empty()
    }

    /// Takes about as much as one message tells of.
    fn take_lanes(&mut self, buckets: u32) {
        // There was no more a moment ago. If there is since, the waker was called for it.
        if std::mem::take(&mut self.is_drained) {
            return;
        }
        // Each lane about once: what changes all the time would go in again and again.
        for _ in 0..LANES {
            if self.keys.len() >= message::MAX_KEYS {
                break;
            }
            if !self.outgoing.take(&mut self.lane) {
                self.is_drained = !self.has_told();
                break;
            }
            // All were applied here: a numbered bus brings nobody its own.
            self.keys.extend(self.lane.drain_keys().map(|(key, ..)| key));
            self.whole.extend(self.lane.drain_crowded_out(buckets));
        }
        self.whole.sort_unstable();
        self.whole.dedup();
        self.keys.sort_unstable_by_key(|key| key.bucket(buckets));
    }

    /// Writes what is to be told into one message: as many buckets as fit, or one where each is a topic of its own. Gives
    /// the last of them.
    fn write_changes(&mut self, sender: Sender, config: &ClusterConfig, counters: &ClusterCounters) -> u32 {
        let bucket_of = |key: &EntityKey| key.bucket(config.buckets);
        self.writer.begin_changes(sender);
        let mut last = 0;
        while let Some(bucket) = self.keys.last().map(bucket_of).max(self.whole.last().copied()) {
            last = bucket;
            let first = self.keys.partition_point(|key| bucket_of(key) < bucket);
            let keys = &self.keys[first..];
            let is_whole = self.whole.pop_if(|it| *it == bucket).is_some()
                || keys.len() > message::MAX_KEYS
                || keys.iter().any(|key| key.len() > message::MAX_TOLD_KEY_BYTES);
            let number = &mut self.numbers[bucket as usize];
            *number += 1;
            self.writer.section(bucket, *number, if is_whole { &[] } else { keys });
            self.keys.truncate(first);
            counters.published.add_alone(1);
            if self.writer.is_full() || config.by_interest {
                break;
            }
        }
        last
    }

    /// Writes the next part of the digest that is being sent.
    fn write_digest(&mut self, sender: Sender, config: &ClusterConfig) -> Option<()> {
        let from = self.next_bucket?;
        self.digest += 1;
        let used = (0..).zip(&self.numbers).skip(from as usize);
        let mut used = used.filter(|(_, last)| **last > 0).peekable();
        let mut digest = Digest::new(self.digest, config.buckets, config.heartbeat, &config.name);
        digest.by_interest = config.by_interest;
        digest.is_continued = from > 0;
        self.writer.begin_digest(sender, &digest);
        while let Some((bucket, &last)) = used.next_if(|_| !self.writer.is_full()) {
            self.writer.entry(bucket, last);
        }
        self.next_bucket = used.peek().map(|&(bucket, _)| bucket);
        if self.is_leaving && self.next_bucket.is_none() {
            // Only the last part is a goodbye.
            self.writer.leaves();
        }
        Some(())
    }
}
