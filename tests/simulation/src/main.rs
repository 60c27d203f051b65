//! Runs one seed of the simulation, or searches many.
#![allow(clippy::print_stdout, reason = "a program that reports")]

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use entity_sync_core::cluster::ClusterCounts;
use entity_sync_simulation::{ClusterWorld, Failure, PlainWorld, Stats, World, run_seed};

/// Runs entity-sync-core against simulated clients, drivers and store.
#[derive(Parser)]
struct Args {
    /// Replay this seed and print its trace.
    #[arg(long)]
    seed: Option<u64>,
    /// Run so many seeds, from `--from` on.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run so many seeds more, taken from the clock.
    #[arg(long, default_value_t = 0)]
    random: u64,
    /// Run a cluster of nodes, instead of one.
    #[arg(long)]
    cluster: bool,
    /// Run nodes on a queue without numbers, instead of one.
    #[arg(long, conflicts_with = "cluster")]
    plain: bool,
    /// Operations for each seed.
    #[arg(long, default_value_t = 400)]
    steps: u32,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(seed) = args.seed {
        return match args.run(seed, true) {
            Ok((stats, counts)) => {
                println!("seed {seed}: no violation, {stats:?} {counts:?}");
                ExitCode::SUCCESS
            }
            Err(failure) => {
                for line in &failure.trace {
                    println!("{line}");
                }
                println!("seed {seed}: {}", failure.what);
                ExitCode::FAILURE
            }
        };
    }
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    let random = clock.map_or(0, |now| now.as_nanos() as u64) & !0xffff_ffff;
    if args.random > 0 {
        println!("random seeds from {random}");
    }
    let seeds = (args.from..args.from + args.seeds).chain(random..random + args.random);
    let mut sum = (Stats::default(), ClusterCounts::default());
    let mut run = 0;
    for seed in seeds {
        match args.run(seed, false) {
            Ok((stats, counts)) => {
                run += 1;
                sum.0 += stats;
                sum.1 += counts;
            }
            Err(failure) => {
                println!("seed {seed}: {}", failure.what);
                println!(
                    "replay: cargo run --release -p entity-sync-simulation -- {}--steps {} --seed {seed}",
                    args.kind(),
                    args.steps
                );
                println!("found after {run} clean seeds");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{run} seeds, no violation, {:?}", sum.0);
    if args.cluster || args.plain {
        println!("{:?}", sum.1);
    }
    ExitCode::SUCCESS
}

impl Args {
    fn run(&self, seed: u64, traced: bool) -> Result<(Stats, ClusterCounts), Box<Failure>> {
        match (self.cluster, self.plain) {
            (true, _) => run_seed::<ClusterWorld>(seed, self.steps, traced),
            (_, true) => run_seed::<PlainWorld>(seed, self.steps, traced),
            _ => run_seed::<World>(seed, self.steps, traced),
        }
    }

    /// The flag that says what is run.
    fn kind(&self) -> &'static str {
        match (self.cluster, self.plain) {
            (true, _) => "--cluster ",
            (_, true) => "--plain ",
            _ => "",
        }
    }
}
