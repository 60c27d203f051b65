//! A world as one of several: what happens on other nodes, seen from here.

use std::collections::BTreeMap;

use entity_sync_core::{Node, Timestamp};

use super::{Trace, World};

impl World {
    /// A node of a cluster that starts now, with a store that others have changed before.
    pub(crate) fn in_cluster(
        seed: u64,
        shards: usize,
        trace: Option<Trace>,
        versions: BTreeMap<u8, Vec<Timestamp>>,
        now: Timestamp,
    ) -> Self {
        let mut world = Self::new(seed, shards.max(1), false);
        world.trace = trace;
        world.store.versions = versions;
        world.now = now;
        world.is_clustered = true;
        // Without, rows of the same state are the same, and those who have them need them no more.
        world.has_ticks = seed.is_multiple_of(3);
        world
    }

    pub(crate) fn node(&self) -> &Node {
        self.machine.node()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.now
    }

    pub(crate) fn versions(&self) -> &BTreeMap<u8, Vec<Timestamp>> {
        &self.store.versions
    }

    /// An application changes an entity and says so on another node.
    pub(crate) fn changed_elsewhere(&mut self, now: Timestamp, key: u8) {
        self.tick += 1;
        self.store.change(now, key);
        for client in self.clients.iter_mut().filter(|it| it.is_subscribed(key)) {
            client.due.insert(key, self.tick);
        }
    }

    /// The cluster may have caused so many reads.
    pub(crate) fn allow_reads(&mut self, reads: u64) {
        self.from_elsewhere += reads;
    }

    /// Nobody knows any more how often something is to be pushed, only that it is.
    pub(crate) fn lose_count(&mut self) {
        self.clients.iter_mut().for_each(|client| client.pushes.clear());
    }

    /// Sees to reads that the cluster has caused.
    pub(crate) fn look(&mut self) -> Result<(), String> {
        self.look_at_requests();
        self.answer_pings();
        self.check()
    }
}
