//! The state machine by operations: the simulator's, in an order of the fuzzer's choosing.
#![no_main]

use arbitrary::Arbitrary;
use entity_sync_simulation::{Op, World, run_ops};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Plan {
    seed: u64,
    shards: u8,
    ops: Vec<Op>,
}

fuzz_target!(|plan: Plan| {
    let Plan { seed, shards, ops } = plan;
    let mut world = World::new(seed, usize::from(shards % 4), false);
    if let Err(violation) = run_ops(&mut world, ops.into_iter().take(500)) {
        panic!("{violation}");
    }
});
