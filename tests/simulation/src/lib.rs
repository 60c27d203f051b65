//! Runs entity-sync-core with simulated clients, drivers, store and clock. Everything follows from one seed, so that a
//! seed which fails fails again; the guarantees of the design (G1 to G4 and G6) and the tables' own invariants are
//! asserted after every step; in a cluster, G5 whenever faults stop.
//!
//! The same operations drive the fuzzer, which takes them from its bytes ([`run_ops`]).

mod client;
mod cluster;
mod entities;
mod flag;
mod home;
mod machine;
mod op;
mod plain;
mod store;
mod wire;
mod world;

use entity_sync_core::cluster::ClusterCounts;
use fastrand::Rng;

pub use cluster::{ClusterOp, ClusterWorld};
pub use op::{Answer, Driver, Op, Saying, Target};
pub use plain::{PlainOp, PlainWorld};
pub use world::{Stats, World};

/// Something that a seed's operations can be applied to.
pub trait Simulation: Sized {
    /// One thing that happens.
    type Op;

    /// What the seed says, before anything has happened.
    fn of_seed(seed: u64, rng: &mut Rng, traced: bool) -> Self;

    /// Draws an operation.
    fn random(rng: &mut Rng) -> Self::Op;

    /// Does one thing and asserts what must be so at every moment.
    ///
    /// # Errors
    /// What was violated.
    fn apply(&mut self, op: Self::Op) -> Result<(), String>;

    /// Lets all faults stop, and asserts that everyone gets their last states.
    ///
    /// # Errors
    /// What was violated.
    fn settle(&mut self) -> Result<(), String>;

    /// What happened so far.
    fn stats(&self) -> Stats;

    /// What the clusters have counted so far.
    fn counts(&self) -> ClusterCounts {
        ClusterCounts::default()
    }

    /// What was done, if it was asked for.
    fn trace(&self) -> Vec<String>;
}

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
pub fn run_seed<S: Simulation>(seed: u64, steps: u32, traced: bool) -> Result<(Stats, ClusterCounts), Box<Failure>> {
    let mut rng = Rng::with_seed(seed);
    let mut simulation = S::of_seed(seed, &mut rng, traced);
    let result = run_ops(&mut simulation, (0..steps).map(|_| S::random(&mut rng)));
    result.map_err(|what| {
        Box::new(Failure {
            seed,
            what,
            trace: simulation.trace(),
        })
    })
}

/// Runs given operations, such as a fuzzer's, and lets it settle.
///
/// # Errors
/// What was violated.
pub fn run_ops<S: Simulation>(
    simulation: &mut S,
    ops: impl IntoIterator<Item = S::Op>,
) -> Result<(Stats, ClusterCounts), String> {
    for op in ops {
        simulation.apply(op)?;
    }
    simulation.settle()?;
    Ok((simulation.stats(), simulation.counts()))
}
