//! Runs entity-sync-core with simulated clients, drivers, store and clock. Everything follows from one seed, so that a
//! seed which fails fails again; the guarantees of the design (G1 to G4 and G6) and the tables' own invariants are
//! asserted after every step; in a cluster, G5 whenever faults stop.
//!
//! The same [`Op`]s and [`ClusterOp`]s drive the fuzzer, which takes them from its bytes ([`run_ops`], [`run_cluster_ops`]).

mod client;
mod cluster;
mod entities;
mod machine;
mod op;
mod store;
mod wire;
mod world;

use entity_sync_core::cluster::ClusterCounts;
use fastrand::Rng;

pub use cluster::{ClusterOp, ClusterWorld};
pub use op::{Answer, Driver, Op, Target};
pub use world::{Stats, World};

/// A guarantee that did not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed that shows it.
    pub seed: u64,
    /// What was violated.
    pub what: String,
    /// What had been done, if a trace was asked for.
    pub trace: Vec<String>,
}

/// Runs one seed for `steps` operations, lets it settle, and checks that every client has its last states.
///
/// # Errors
/// What was violated. The same seed and steps always give the same.
pub fn run_seed(seed: u64, steps: u32, traced: bool) -> Result<Stats, Box<Failure>> {
    let mut rng = rng(seed);
    // A core, one shard, two, or three.
    let shards = rng.usize(..4);
    let mut world = World::new(seed, shards, traced);
    let mut run = || {
        for _ in 0..steps {
            world.apply(Op::random(&mut rng))?;
        }
        world.settle()
    };
    match run() {
        Ok(()) => Ok(world.stats()),
        Err(what) => Err(Box::new(Failure {
            seed,
            what,
            trace: world.trace(),
        })),
    }
}

/// As [`run_seed`], with a cluster of nodes.
///
/// # Errors
/// What was violated. The same seed and steps always give the same.
pub fn run_cluster_seed(seed: u64, steps: u32, traced: bool) -> Result<(Stats, ClusterCounts), Box<Failure>> {
    let mut rng = rng(seed);
    let mut world = ClusterWorld::new(seed, traced);
    let mut run = || {
        for _ in 0..steps {
            world.apply(ClusterOp::random(&mut rng))?;
        }
        world.settle()
    };
    match run() {
        Ok(()) => Ok(world.stats()),
        Err(what) => Err(Box::new(Failure {
            seed,
            what,
            trace: world.trace(),
        })),
    }
}

/// The source of a seed's operations.
pub fn rng(seed: u64) -> Rng {
    Rng::with_seed(seed)
}

/// Runs given operations: what a fuzzer does.
///
/// # Errors
/// What was violated.
pub fn run_ops(seed: u64, shards: usize, ops: impl IntoIterator<Item = Op>) -> Result<Stats, String> {
    let mut world = World::new(seed, shards, false);
    for op in ops {
        world.apply(op)?;
    }
    world.settle()?;
    Ok(world.stats())
}

/// As [`run_ops`], with a cluster of nodes.
///
/// # Errors
/// What was violated.
pub fn run_cluster_ops(seed: u64, ops: impl IntoIterator<Item = ClusterOp>) -> Result<(Stats, ClusterCounts), String> {
    let mut world = ClusterWorld::new(seed, false);
    for op in ops {
        world.apply(op)?;
    }
    world.settle()?;
    Ok(world.stats())
}
