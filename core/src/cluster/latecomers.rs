//! [`Latecomers`]: what other nodes may have missed because they come back to a queue later than this one.

use std::time::Duration;

use hashbrown::HashSet;

use crate::hash::Seed;
use crate::key::EntityKey;
use crate::time::Timestamp;

/// Keys that are kept. Beyond, they are counted as untold.
const MAX_KEYS: usize = 64 * 1024;

/// Nodes publish again at different moments in this time, so that most keys are published by one of them only.
const SPREAD: Duration = Duration::from_secs(10);

/// What is heard so long after the latecomers are back was published when they were.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

/// Collects the keys that are heard between this node's return to the queue and that of the slowest others.
///
/// A queue keeps what nobody is subscribed to for the first who comes, and gives later ones nothing of it. Nodes of the
/// Go original come back about 60 s after a queue has restarted, and read nothing again.
pub(super) struct Latecomers {
    /// How long they take. With none, nothing is published again.
    after: Option<Duration>,
    keys: HashSet<EntityKey, Seed>,
    back_at: Timestamp,
    /// When the keys are published again; `None` if nobody is waited for.
    publish_at: Option<Timestamp>,
    seed: Seed,
}

impl Latecomers {
    pub(super) fn new(after: Option<Duration>, seed: Seed) -> Self {
        Self {
            after,
            keys: HashSet::with_hasher(seed),
            back_at: Timestamp::START,
            publish_at: None,
            seed,
        }
    }

    /// This node has come back to the queue, or to a part of it.
    pub(super) fn wait(&mut self, now: Timestamp) {
        let Some(after) = self.after else {
            return;
        };
        self.back_at = now + after;
        let chance = self.seed.hash_of(&now) % SPREAD.as_micros() as u64;
        self.publish_at = Some(self.back_at + ON_ITS_WAY + Duration::from_micros(chance));
    }

    /// A message was heard, this node's own or another's. Says whether there is no room for its key.
    pub(super) fn heard(&mut self, now: Timestamp, key: &EntityKey) -> bool {
        if self.publish_at.is_none() {
            return false;
        }
        if now < self.back_at {
            if self.keys.len() >= MAX_KEYS && !self.keys.contains(key) {
                return true;
            }
            self.keys.insert(key.clone());
        } else if now >= self.back_at + ON_ITS_WAY {
            // Somebody has published it again.
            self.keys.remove(key);
        }
        false
    }

    pub(super) fn poll_timeout(&self) -> Option<Timestamp> {
        self.publish_at
    }

    /// What is to be published again, once its time has come.
    pub(super) fn take(&mut self, now: Timestamp) -> impl Iterator<Item = EntityKey> + use<> {
        let is_due = self.publish_at.is_some_and(|at| at <= now);
        let keys = match is_due {
            true => {
                self.publish_at = None;
                std::mem::replace(&mut self.keys, HashSet::with_hasher(self.seed))
            }
            false => HashSet::with_hasher(self.seed),
        };
        keys.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::START + Duration::from_secs(seconds)
    }

    fn key(id: usize) -> EntityKey {
        EntityKey::new("items", &id.to_string()).expect("short")
    }

    #[test]
    fn what_is_heard_until_the_others_are_back_is_published_once_more() {
        let mut it = Latecomers::new(Some(Duration::from_secs(65)), Seed(1, 2));
        it.heard(at(0), &key(0));
        it.wait(at(1));
        for id in [1, 2, 2, 3] {
            it.heard(at(65), &key(id));
        }
        // Another node has published this one again; that one was published before they were back.
        it.heard(at(71), &key(1));
        it.heard(at(67), &key(2));
        it.heard(at(72), &key(4));
        let due = it.poll_timeout().expect("waited for");
        assert!((at(71)..=at(81)).contains(&due));
        assert_eq!(it.take(at(70)).count(), 0);
        let mut ids: Vec<_> = it.take(at(81)).map(|key| key.id().to_owned()).collect();
        ids.sort();
        assert_eq!((ids, it.poll_timeout()), (vec!["2".to_owned(), "3".to_owned()], None));
    }

    #[test]
    fn it_is_bounded_and_says_what_finds_no_room() {
        let mut it = Latecomers::new(Some(Duration::from_secs(65)), Seed(1, 2));
        it.wait(at(0));
        assert!((0..MAX_KEYS).all(|id| !it.heard(at(1), &key(id))));
        assert!(it.heard(at(1), &key(MAX_KEYS)));
        assert!(!it.heard(at(1), &key(0)));
        assert_eq!(it.take(at(90)).count(), MAX_KEYS);
    }

    #[test]
    fn with_no_latecomers_nothing_is_kept() {
        let mut it = Latecomers::new(None, Seed(1, 2));
        it.wait(at(0));
        it.heard(at(1), &key(1));
        assert_eq!((it.poll_timeout(), it.take(at(90)).count()), (None, 0));
    }
}
