//! What a cluster over ZeroMQ costs beside bare libzmq: two nodes, or two bare sockets, move the same bytes over loopback in
//! the same run.
//!
//! `cargo run --release -p entity-sync-benches --bin zmq`
#![allow(clippy::print_stdout, reason = "a program that prints")]

mod bare;
mod cost;
mod latency;
mod nodes;
mod push;

use std::error::Error;
use std::time::Duration;

use clap::Parser;
use entity_sync_benches::report::line;

/// What a cluster over ZeroMQ costs beside bare libzmq
#[derive(Parser)]
struct Arguments {
    /// How many messages each side moves in a run
    #[arg(long, default_value_t = 200_000)]
    messages: usize,
    /// How many keys each message tells of
    #[arg(long, default_value_t = 1)]
    keys: usize,
    /// How many pairs of runs, ours and bare
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Notifies per second whose latency is measured
    #[arg(long, default_values_t = [1_000, 10_000])]
    rates: Vec<u32>,
    /// How long each of them lasts; 0 leaves them out
    #[arg(long, default_value_t = 3)]
    seconds: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let (major, minor, patch) = zmq::version();
    line("libzmq", "version", &format!("{major}.{minor}.{patch}"));
    costs(&arguments)?;
    for &rate in &arguments.rates {
        latencies(&arguments, rate)?;
    }
    Ok(())
}

fn costs(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let frames = cost::record(arguments.messages, arguments.keys)?;
    let bytes: usize = frames.iter().map(Vec::len).sum();
    let size = bytes / frames.len();
    line(
        "cost",
        "messages, keys, bytes each",
        &format!("{} {} {size}", frames.len(), arguments.keys),
    );
    // The first pair warms up.
    let mut pairs = Vec::new();
    for index in 0..=arguments.pairs {
        let ours = cost::ours(frames.len(), arguments.keys)?;
        let floor = cost::bare(&frames, bare::Framing::One)?;
        let floor_of_two = cost::bare(&frames, bare::Framing::Two)?;
        if index > 0 {
            pairs.push((ours, floor, floor_of_two));
        }
    }
    let per = frames.len() as f64;
    for (what, of) in [
        (
            "notify",
            &(|it: &cost::Cost| it.notify_ns) as &dyn Fn(&cost::Cost) -> u64,
        ),
        ("sender's bus", &|it| it.sender_ns - it.notify_ns),
        ("receiver's bus", &|it| it.receiver_ns),
        ("both buses", &|it| it.sender_ns - it.notify_ns + it.receiver_ns),
        ("whole process", &|it| it.process_ns),
    ] {
        let ours: Vec<_> = pairs.iter().map(|(ours, ..)| of(ours) as f64 / per).collect();
        let floor: Vec<_> = pairs.iter().map(|(_, floor, _)| of(floor) as f64 / per).collect();
        let two: Vec<_> = pairs.iter().map(|(.., two)| of(two) as f64 / per).collect();
        let ratios: Vec<_> = ours.iter().zip(&floor).map(|(ours, floor)| ours / floor).collect();
        line("ours", &format!("CPU ns/message, {what}"), &spread(&ours, 0));
        if what == "notify" {
            continue;
        }
        line("bare", &format!("CPU ns/message, {what}"), &spread(&floor, 0));
        line("bare, 2 frames", &format!("CPU ns/message, {what}"), &spread(&two, 0));
        line("ratio", &format!("by pairs, {what}"), &spread(&ratios, 2));
    }
    let rate = |it: &cost::Cost| per / it.seconds / 1000.0;
    line(
        "ours",
        "thousand messages/s",
        &spread(&pairs.iter().map(|(it, ..)| rate(it)).collect::<Vec<_>>(), 0),
    );
    line(
        "bare",
        "thousand messages/s",
        &spread(&pairs.iter().map(|(_, it, _)| rate(it)).collect::<Vec<_>>(), 0),
    );
    Ok(())
}

fn latencies(arguments: &Arguments, rate: u32) -> Result<(), Box<dyn Error>> {
    let count = usize::try_from(u64::from(rate) * arguments.seconds)?;
    if count == 0 {
        return Ok(());
    }
    let pace = Duration::from_secs(1) / rate;
    let mut rounds = Vec::new();
    for index in 0..=arguments.pairs {
        let round = [
            push::ours(count, pace)?,
            latency::ours(count, pace)?,
            latency::bare(count, pace)?,
            push::bare(count, pace)?,
        ];
        // The first one warms up.
        if index > 0 {
            rounds.push(round);
        }
    }
    let of = format!("{rate}/s");
    for (what, share) in [("p50", 0.5), ("p99", 0.99)] {
        let at = |it: &[u64]| it[((it.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
        let all = |which: usize| rounds.iter().map(|round| at(&round[which])).collect::<Vec<_>>();
        let [pushed, looked_up, hop, hop_and_socket] = [0, 1, 2, 3].map(all);
        for (name, values) in [
            ("ours, notify to push", &pushed),
            ("ours, notify to look-up", &looked_up),
            ("bare hop", &hop),
            ("bare hop, then a socket", &hop_and_socket),
        ] {
            line(&of, &format!("{what} µs, {name}"), &spread(values, 1));
        }
        for (name, ours, floor) in [
            ("push by bare hop", &pushed, &hop),
            ("push by bare hop and socket", &pushed, &hop_and_socket),
            ("look-up by bare hop", &looked_up, &hop),
        ] {
            let ratios: Vec<_> = ours.iter().zip(floor).map(|(ours, floor)| ours / floor).collect();
            line(&of, &format!("{what} ratio by rounds, {name}"), &spread(&ratios, 2));
        }
    }
    Ok(())
}

/// The median, and the lowest and highest beside it.
fn spread(values: &[f64], digits: usize) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (first, last) = (
        sorted.first().copied().unwrap_or_default(),
        sorted.last().copied().unwrap_or_default(),
    );
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    format!("{median:.digits$}  ({first:.digits$} to {last:.digits$})")
}
