//! [`Home`]: a node of several, with its clients: what the simulations of clusters share.

use std::sync::Arc;
use std::task::Waker;

use entity_sync_core::{Node, Timestamp};
use fastrand::Rng;

use crate::Simulation;
use crate::flag::Flag;
use crate::op::{Driver, Op};
use crate::world::World;

/// Audiences that a key can have: three secrets, and none.
pub(crate) const MAX_AUDIENCES: u64 = 4;

/// A node with its cluster's half, its clients, and whether its process runs.
pub(crate) struct Home<C> {
    pub(crate) world: World,
    pub(crate) cluster: C,
    /// Raised when its cluster has something to say.
    pub(crate) flag: Arc<Flag>,
    pub(crate) is_stopped: bool,
    pub(crate) shards: usize,
}

impl<C> Home<C> {
    /// `join` is given the node, and who wakes the cluster.
    pub(crate) fn new<E>(
        world: World,
        shards: usize,
        join: impl FnOnce(Node, Waker) -> Result<C, E>,
    ) -> Result<Self, E> {
        let flag = Arc::new(Flag::raised());
        let cluster = join(world.node().clone(), Waker::from(flag.clone()))?;
        Ok(Self {
            world,
            cluster,
            flag,
            is_stopped: false,
            shards,
        })
    }

    /// Some clients, so that there is somebody to be wronged.
    pub(crate) fn populate(&mut self, rng: &mut Rng) -> Result<(), String> {
        for client in 0..4 {
            let (shard, driver) = (rng.u8(..), Driver::Direct);
            self.world.apply(Op::Connect {
                shard,
                driver,
                snapshots: false,
            })?;
            for _ in 0..2 {
                let key = rng.u8(..);
                self.world.apply(Op::Subscribe { client, key })?;
            }
        }
        Ok(())
    }

    /// It goes on, and finds that time has passed.
    pub(crate) fn wake_up(&mut self, now: Timestamp) -> Result<(), String> {
        if std::mem::take(&mut self.is_stopped) {
            let missed = now.since(self.world.now());
            self.world.freeze(missed);
            self.world.look()?;
        }
        Ok(())
    }
}
