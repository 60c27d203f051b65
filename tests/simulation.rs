//! The simulator on a fixed set of seeds and a few random ones. `planted` in its crate shows that it finds bugs.

use std::time::{SystemTime, UNIX_EPOCH};

use entity_sync_simulation::{ClusterWorld, PlainWorld, Simulation, World, run_seed};
use fastrand::Rng;

/// Runs seeds of one kind, for which the simulator has a flag.
fn run_all<S: Simulation>(flag: &str, fixed: u64, more: u64) {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let random = clock.as_nanos() as u64;
    println!("random seeds from {random}");
    for seed in (0..fixed).chain(random..random + more) {
        if let Err(failure) = run_seed::<S>(seed, 400, false) {
            panic!(
                "seed {seed}: {}\nreplay: cargo run -p entity-sync-simulation -- {flag}--seed {seed}",
                failure.what
            );
        }
    }
}

#[test]
fn guarantees_hold_on_every_seed() {
    run_all::<World>("", 400, 100);
}

#[test]
fn guarantees_hold_in_a_cluster_on_every_seed() {
    run_all::<ClusterWorld>("--cluster ", 150, 50);
}

#[test]
fn guarantees_hold_on_a_plain_queue_on_every_seed() {
    run_all::<PlainWorld>("--plain ", 150, 50);
}

/// What a seed does, step by step.
fn trace_of<S: Simulation>(seed: u64) -> Vec<String> {
    let mut rng = Rng::with_seed(seed);
    let mut simulation = S::of_seed(seed, &mut rng, true);
    for _ in 0..300 {
        simulation.apply(S::random(&mut rng)).unwrap();
    }
    simulation.settle().unwrap();
    simulation.trace()
}

#[test]
fn a_seed_replays_exactly() {
    for trace in [trace_of::<World>, trace_of::<ClusterWorld>, trace_of::<PlainWorld>] {
        assert_eq!(trace(7), trace(7));
        assert_ne!(trace(7), trace(8));
    }
}
