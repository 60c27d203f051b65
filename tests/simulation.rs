//! The simulator on a fixed set of seeds and a few random ones. `planted` in its crate shows that it finds bugs.

use std::time::{SystemTime, UNIX_EPOCH};

use entity_sync_simulation::{ClusterOp, ClusterWorld, run_cluster_seed, run_seed};

#[test]
fn guarantees_hold_on_every_seed() {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let random = clock.as_nanos() as u64;
    println!("random seeds from {random}");
    for seed in (0..400).chain(random..random + 100) {
        if let Err(failure) = run_seed(seed, 400, false) {
            panic!(
                "seed {seed}: {}\nreplay: cargo run -p entity-sync-simulation -- --seed {seed}",
                failure.what
            );
        }
    }
}

#[test]
fn guarantees_hold_in_a_cluster_on_every_seed() {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let random = clock.as_nanos() as u64;
    println!("random seeds from {random}");
    for seed in (0..150).chain(random..random + 50) {
        if let Err(failure) = run_cluster_seed(seed, 400, false) {
            panic!(
                "seed {seed}: {}\nreplay: cargo run -p entity-sync-simulation -- --cluster --seed {seed}",
                failure.what
            );
        }
    }
}

#[test]
fn a_seed_of_a_cluster_replays_exactly() {
    let trace = |seed| {
        let mut world = ClusterWorld::new(seed, true);
        let mut rng = entity_sync_simulation::rng(seed);
        for _ in 0..300 {
            world.apply(ClusterOp::random(&mut rng)).unwrap();
        }
        world.settle().unwrap();
        (world.trace(), world.traffic())
    };
    assert_eq!(trace(7), trace(7));
    assert_ne!(trace(7), trace(8));
}

#[test]
fn a_seed_replays_exactly() {
    let trace = |seed| {
        let mut world = entity_sync_simulation::World::new(seed, 2, true);
        let mut rng = entity_sync_simulation::rng(seed);
        for _ in 0..500 {
            world.apply(entity_sync_simulation::Op::random(&mut rng)).unwrap();
        }
        world.trace()
    };
    assert_eq!(trace(7), trace(7));
    assert_ne!(trace(7), trace(8));
}
