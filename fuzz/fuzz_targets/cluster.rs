//! Several nodes and the bus between them, by operations: the simulator's, in an order of the fuzzer's choosing.
#![no_main]

use arbitrary::Arbitrary;
use entity_sync_simulation::{ClusterOp, ClusterWorld, run_ops};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Plan {
    seed: u64,
    ops: Vec<ClusterOp>,
}

fuzz_target!(|plan: Plan| {
    let Plan { seed, ops } = plan;
    if let Err(violation) = run_ops(&mut ClusterWorld::new(seed, false), ops.into_iter().take(200)) {
        panic!("{violation}");
    }
});
