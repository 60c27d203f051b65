//! `chaos`: a cluster of three processes of the binary, with clients on all of them and changes through all of them, whose
//! nodes are killed, stopped and cut off from each other at random. Again and again that is over, and then not one client
//! may be stale.
//!
//! Before that, each of some faults of a single node is tried once: `drills`.
//!
//! Clients come back when their node is gone, as real ones do, and the nodes send snapshots. So a client is *stale* unless,
//! of each of its keys, the last row that it got on its present connection is the one in the store. A client that is not
//! connected, or was told nothing of a key, is stale.
//!
//! `cargo run --release -p entity-sync-benches --bin chaos -- --seconds 300 --clients 1000`
#![allow(clippy::print_stdout, reason = "a program that reports")]

mod cluster;
mod drills;
mod faults;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use entity_sync_benches::machine::raise_file_limit;
use entity_sync_benches::report::line;
use entity_sync_tests::load::Load;

use cluster::{Cluster, NODES};
use faults::Faults;

/// Whether any client is stale after nodes were killed, stopped and cut off from each other at random
#[derive(Debug, Parser)]
#[command(name = "chaos")]
struct Args {
    /// How long there are faults, all together
    #[arg(long, default_value_t = 300)]
    seconds: u64,

    /// Clients of each node
    #[arg(long, default_value_t = 1000)]
    clients: u32,

    /// Keys that change
    #[arg(long, default_value_t = 1000)]
    keys: u32,

    /// Keys that each client is subscribed to
    #[arg(long, default_value_t = 5)]
    each: u32,

    /// Changes per second, at most
    #[arg(long, default_value_t = 200)]
    rate: u32,

    /// Seconds of faults before all clients are looked at
    #[arg(long, default_value_t = 30)]
    phase: u64,

    /// Seconds that a busy machine may take longer than it should until no client is stale
    #[arg(long, default_value_t = 10)]
    patience: u64,

    /// What chance begins with; a new one each time by default. The same one gives the same faults, though not at the same
    /// moments of the nodes
    #[arg(long)]
    seed: Option<u64>,

    /// Be the server in which the thread of this name dies, for a drill
    #[arg(long, hide = true)]
    victim: Option<String>,
}

/// Threads that change rows.
const WRITERS: u32 = 4;

/// Two heartbeats; a peer is missed; connections of the bus and of clients are made again.
const SHOULD_TAKE: Duration = Duration::from_millis(2 * 500 + 6 * 500 + 1000 + 500);

/// Keys that all nodes together repair per second.
const REPAIR_RATE: u32 = 10_000;

fn main() -> ExitCode {
    let args = Args::parse();
    let is_good = match &args.victim {
        Some(victim) => drills::serve_with_a_victim(victim),
        None => drills::run() & run(&args),
    };
    match is_good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Says whether no client was ever stale.
fn run(args: &Args) -> bool {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let mut rng = fastrand::Rng::with_seed(seed);
    println!(
        "{NODES} nodes with {} clients each, {} of {} keys each; faults for {} s; seed {seed}",
        args.clients, args.each, args.keys, args.seconds
    );
    if let Err(error) = raise_file_limit() {
        println!("the limit of open files stays as it is: {error}");
    }
    // Each node repairs its share, and all its keys may be due.
    let repair = Duration::from_secs_f64(f64::from(args.keys * NODES as u32) / f64::from(REPAIR_RATE));
    let within = SHOULD_TAKE + repair + Duration::from_secs(args.patience);
    let mut cluster = Cluster::start(args.clients, args.keys, args.each);
    let mut slowest = cluster.settle(Duration::from_secs(60));
    let mut faults = Faults::default();
    let mut changes = [0; 3];
    let mut left = Duration::from_secs(args.seconds);
    while slowest.is_some() && left > Duration::ZERO {
        let phase = left.min(Duration::from_secs(args.phase));
        left -= phase;
        let pause = Duration::from_secs_f64(f64::from(WRITERS) / f64::from(args.rate));
        let load = Load::start(&cluster.apis(), args.keys, WRITERS.into(), pause, rng.u64(..));
        let end = Instant::now() + phase;
        while Instant::now() < end {
            faults.go_on(&mut cluster, &mut rng);
            std::thread::sleep(Duration::from_millis(20));
        }
        faults.end(&mut cluster);
        let made = load.stop();
        for (sum, more) in changes.iter_mut().zip([made.done, made.refused, made.unanswered]) {
            *sum += more;
        }
        let took = cluster.settle(within);
        if let Some(took) = took {
            println!(
                "{:>4} s of faults left; nobody stale after {:.1} s",
                left.as_secs(),
                took.as_secs_f64()
            );
        }
        slowest = took.zip(slowest).map(|(it, before)| it.max(before));
    }
    for (kind, count) in &faults.counts {
        line("faults", kind, &count.to_string());
    }
    for (what, count) in ["done and notified", "refused", "not answered"].iter().zip(changes) {
        line("changes", what, &count.to_string());
    }
    cluster.report();
    match slowest {
        Some(slowest) => {
            let figure = format!("{:.1} of {:.1}", slowest.as_secs_f64(), within.as_secs_f64());
            line("convergence", "slowest, s", &figure);
            println!("not one client was stale");
            true
        }
        None => {
            println!("FAILED: there were stale clients {within:?} after the faults; --seed {seed}");
            false
        }
    }
}
