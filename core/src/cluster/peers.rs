//! [`Peer`]: what is known of another node.

use std::collections::VecDeque;
use std::time::Duration;

use super::track::{Arrival, Track};
use super::{ClusterConfig, Epoch};
use crate::time::Timestamp;

/// Runs of a node that are over and remembered.
const MAX_EARLIER_RUNS: usize = 8;

pub(super) struct Peer {
    pub(super) epoch: Epoch,
    pub(super) name: String,
    pub(super) state: State,
    /// When its last digest came.
    pub(super) heard: Timestamp,
    /// The number of that digest.
    digest: u64,
    /// Of the digest whose part that one is, all parts before it have come too.
    has_all_parts: bool,
    /// How often it says that it sends them.
    heartbeat: Duration,
    /// Runs of it that are over, and the last digest of each, so that a replay doesn't bring one back.
    earlier_runs: VecDeque<(Epoch, u64)>,
    /// By bucket.
    tracks: Box<[Track]>,
    /// What is missing, the oldest first: all are given the same time.
    suspicions: VecDeque<Suspicion>,
    pub(super) messages: u64,
    pub(super) gaps: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Alive,
    /// It has been silent for too long.
    Lost,
    /// It has said goodbye.
    Left,
}

/// Something is missing of a bucket. It may only be late.
#[derive(Clone, Copy, Debug)]
struct Suspicion {
    bucket: u32,
    /// Up to this number something is missing.
    number: u64,
    until: Timestamp,
}

impl Peer {
    pub(super) fn new(now: Timestamp, epoch: Epoch, buckets: u32) -> Self {
        Self {
            epoch,
            name: String::new(),
            state: State::Alive,
            heard: now,
            digest: 0,
            has_all_parts: false,
            heartbeat: Duration::ZERO,
            earlier_runs: VecDeque::new(),
            tracks: vec![Track::new(); buckets as usize].into(),
            suspicions: VecDeque::new(),
            messages: 0,
            gaps: 0,
        }
    }

    /// Whether a digest is newer than all of its run that have come before: if not, it is late, repeated or replayed.
    pub(super) fn is_new_digest(&self, epoch: Epoch, number: u64) -> bool {
        let earlier = self.earlier_runs.iter().find(|(run, _)| *run == epoch);
        let last = match earlier {
            _ if epoch == self.epoch => self.digest,
            Some((_, last)) => *last,
            None => 0,
        };
        number > last
    }

    /// The node has been started again.
    pub(super) fn begin_run(&mut self, now: Timestamp, epoch: Epoch, buckets: u32) {
        let mut earlier_runs = std::mem::take(&mut self.earlier_runs);
        earlier_runs.retain(|(run, _)| *run != epoch);
        if earlier_runs.len() >= MAX_EARLIER_RUNS {
            earlier_runs.pop_front();
        }
        earlier_runs.push_back((self.epoch, self.digest));
        *self = Self {
            earlier_runs,
            ..Self::new(now, epoch, buckets)
        };
    }

    /// A digest has come: it is alive. One that is continued goes on where the one before it ended.
    pub(super) fn hear(&mut self, now: Timestamp, number: u64, is_continued: bool, heartbeat: Duration, name: &str) {
        self.has_all_parts = !is_continued || (self.has_all_parts && number == self.digest + 1);
        self.digest = number;
        self.heard = now;
        // It may say what it likes, but not keep us waiting for ever.
        self.heartbeat = heartbeat.min(Duration::from_secs(60));
        if self.name != name {
            name.clone_into(&mut self.name);
        }
        self.state = State::Alive;
    }

    /// It has said goodbye, if all was heard that it said before.
    pub(super) fn leave(&mut self) {
        if self.has_all_parts {
            self.state = State::Left;
        }
    }

    /// A message has come. What is missing may be late by `patience`.
    pub(super) fn receive(&mut self, now: Timestamp, bucket: u32, number: u64, patience: Duration) -> Option<Arrival> {
        let track = self.tracks.get_mut(bucket as usize)?;
        let arrival = track.receive(number);
        if arrival == Arrival::Overtook {
            self.gaps += 1;
        } else {
            self.suspect(bucket, now + patience);
        }
        Some(arrival)
    }

    /// A digest says that it has given the messages of this bucket numbers up to this one.
    pub(super) fn announce(&mut self, now: Timestamp, bucket: u32, number: u64, is_heard: bool, patience: Duration) {
        let Some(track) = self.tracks.get_mut(bucket as usize) else {
            return;
        };
        track.announce(number);
        if is_heard {
            self.suspect(bucket, now + patience);
        } else {
            // Nobody asked for these.
            track.give_up();
        }
    }

    fn suspect(&mut self, bucket: u32, until: Timestamp) {
        if self.suspicions.len() >= 4 * self.tracks.len() {
            // The next message or digest notices it.
            return;
        }
        if let Some(number) = self.tracks[bucket as usize].notice_gap() {
            self.suspicions.push_back(Suspicion { bucket, number, until });
        }
    }

    /// When to call [`Self::next_gap`].
    pub(super) fn poll_timeout(&self) -> Option<Timestamp> {
        self.suspicions.front().map(|it| it.until)
    }

    /// The next bucket of which something has been missing for too long: it is not coming any more.
    pub(super) fn next_gap(&mut self, now: Timestamp) -> Option<u32> {
        while let Some(suspicion) = self.suspicions.front().copied().filter(|it| it.until <= now) {
            self.suspicions.pop_front();
            let track = &mut self.tracks[suspicion.bucket as usize];
            if track.has_gaps_up_to(suspicion.number) {
                track.give_up();
                self.gaps += 1;
                return Some(suspicion.bucket);
            }
        }
        None
    }

    /// For so long nobody has listened to it: that time doesn't count. What is missing has `patience` from now at most.
    pub(super) fn grant(&mut self, now: Timestamp, time: Duration, patience: Duration) {
        self.heard = self.heard.max(now.min(self.heard + time));
        for suspicion in &mut self.suspicions {
            suspicion.until = (now + patience).min(suspicion.until + time);
        }
    }

    /// Buckets that it has published to.
    pub(super) fn used_buckets(&self) -> impl Iterator<Item = u32> {
        (0..)
            .zip(&self.tracks)
            .filter(|(_, track)| track.known() > 0)
            .map(|(bucket, _)| bucket)
    }

    pub(super) fn missing(&self) -> u64 {
        self.tracks.iter().map(Track::missing).fold(0, u64::saturating_add)
    }

    /// From when on it counts as lost, if it stays silent.
    pub(super) fn lost_at(&self, config: &ClusterConfig) -> Timestamp {
        self.heard + self.heartbeat.max(config.heartbeat) * config.lost_after_heartbeats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(500);

    fn at(ms: u64) -> Timestamp {
        Timestamp::START + Duration::from_millis(ms)
    }

    fn peer() -> Peer {
        let epoch = Epoch {
            started_ms: 1,
            nonce: 1,
        };
        Peer::new(Timestamp::START, epoch, 8)
    }

    #[test]
    fn what_is_late_is_waited_for() {
        let mut peer = peer();
        peer.receive(at(0), 3, 2, PATIENCE);
        assert_eq!(peer.poll_timeout(), Some(at(500)));
        peer.receive(at(400), 3, 1, PATIENCE);
        assert_eq!(peer.next_gap(at(600)), None);
        assert_eq!(peer.poll_timeout(), None);
    }

    #[test]
    fn what_is_lost_is_a_gap_once() {
        let mut peer = peer();
        peer.receive(at(0), 3, 2, PATIENCE);
        peer.receive(at(100), 3, 4, PATIENCE);
        assert_eq!(peer.next_gap(at(499)), None);
        assert_eq!(peer.next_gap(at(500)), Some(3));
        assert_eq!(peer.next_gap(at(600)), None);
        assert_eq!((peer.gaps, peer.missing()), (1, 0));
        // What comes after all is no news.
        assert_eq!(peer.receive(at(600), 3, 1, PATIENCE), Some(Arrival::Repeated));
    }

    #[test]
    fn another_that_is_missing_since_is_waited_for_in_its_turn() {
        let mut peer = peer();
        peer.receive(at(0), 3, 2, PATIENCE);
        peer.receive(at(300), 3, 1, PATIENCE);
        peer.receive(at(400), 3, 4, PATIENCE);
        assert_eq!(peer.next_gap(at(500)), None);
        assert_eq!(peer.poll_timeout(), Some(at(900)));
        assert_eq!(peer.next_gap(at(900)), Some(3));
    }

    #[test]
    fn time_in_which_nobody_listened_does_not_count() {
        let mut peer = peer();
        peer.receive(at(0), 3, 2, PATIENCE);
        // Held up until here, and this one is read before the time is looked at.
        peer.receive(at(4_000), 3, 4, PATIENCE);
        peer.grant(at(4_000), Duration::from_millis(3_500), PATIENCE);
        assert_eq!((peer.heard, peer.next_gap(at(3_999))), (at(3_500), None));
        peer.receive(at(4_000), 3, 1, PATIENCE);
        assert_eq!(peer.poll_timeout(), Some(at(4_000)));
        assert_eq!(peer.next_gap(at(4_499)), None);
        assert_eq!(peer.next_gap(at(4_500)), Some(3), "not later than without");
    }

    #[test]
    fn a_digest_tells_of_lost_last_messages() {
        let mut peer = peer();
        peer.announce(at(0), 5, 7, true, PATIENCE);
        peer.announce(at(400), 5, 7, true, PATIENCE);
        peer.announce(at(400), 6, 9, false, PATIENCE);
        assert_eq!(peer.missing(), 7);
        assert_eq!(peer.next_gap(at(500)), Some(5));
        peer.announce(at(900), 5, 7, true, PATIENCE);
        assert_eq!(peer.next_gap(at(2000)), None);
        assert_eq!(peer.used_buckets().collect::<Vec<_>>(), [5, 6]);
    }
}
