//! [`Home`]: a node of several, with its clients: what the simulations of clusters share.

use std::sync::Arc;

use entity_sync_core::Timestamp;
use fastrand::Rng;

use crate::Simulation;
use crate::flag::Flag;
use crate::op::{Driver, Op};
use crate::world::World;

/// Audiences that a key can have: three secrets, and none.
pub(crate) const MAX_AUDIENCES: u64 = 4;

/// A node, its clients, and whether its process runs.
pub(crate) struct Home {
    pub(crate) world: World,
    /// Raised when its cluster has something to say.
    pub(crate) flag: Arc<Flag>,
    pub(crate) is_stopped: bool,
    pub(crate) shards: usize,
}

impl Home {
    pub(crate) fn new(world: World, shards: usize) -> Self {
        Self {
            world,
            flag: Arc::new(Flag::raised()),
            is_stopped: false,
            shards,
        }
    }

    /// Some clients, so that there is somebody to be wronged.
    pub(crate) fn populate(&mut self, rng: &mut Rng) -> Result<(), String> {
        for client in 0..4 {
            let (shard, driver) = (rng.u8(..), Driver::Direct);
            self.world.apply(Op::Connect { shard, driver })?;
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
            self.world.advance(missed);
            self.world.look()?;
        }
        Ok(())
    }
}
