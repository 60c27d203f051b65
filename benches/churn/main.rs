//! `churn`: steady clients get every last state while others connect, subscribe, change secrets and vanish at random, under
//! changes as fast as they go; and the server's process neither panics nor grows.
//!
//! The server runs in a process of its own. Half of the steady clients share one key, the others have one each. All rows
//! that a steady client gets are checked; see [`steady::Tally`].
#![allow(clippy::print_stdout, reason = "a program that reports")]

mod churners;
mod complaints;
mod keys;
mod memory;
mod passer_by;
mod row;
mod server;
mod steady;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use entity_sync_benches::connect::{connect_upgraded, subscribe};
use entity_sync_benches::machine::raise_file_limit;
use entity_sync_benches::process::Process;
use entity_sync_benches::report::line;

use churners::Churners;
use complaints::Complaints;
use memory::Memory;
use passer_by::Counts;
use steady::{Steady, Tally, key_of, seconds_since};

/// Whether steady clients get every last state while others come and go, and what that costs in memory.
#[derive(Debug, Parser)]
#[command(name = "churn")]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,

    /// Clients on one shared key, and as many on a key of their own each.
    #[arg(long, default_value = "5000")]
    steady: NonZeroU32,

    /// How long it goes on.
    #[arg(long, default_value = "60")]
    seconds: NonZeroU32,

    /// Connections at a time that come and go.
    #[arg(long, default_value = "500")]
    churners: NonZeroUsize,

    /// Threads that serve connections.
    #[arg(long, default_value = "2")]
    reactors: NonZeroUsize,

    /// Bytes of a row, unless what it says takes more.
    #[arg(long, default_value_t = 100)]
    payload: usize,

    /// What chance begins with; a new one each time by default. The same one gives the same choices, though not at the
    /// same moments.
    #[arg(long)]
    seed: Option<u64>,

    /// Seconds that any step may take before the run has failed.
    #[arg(long, default_value_t = 60)]
    patience: u64,
}

#[derive(Debug, clap::Subcommand)]
enum Role {
    /// The other process: driven through its standard input.
    #[command(hide = true)]
    Server(server::Options),
}

/// Between two looks at the server's memory.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);

/// Tables and buffers have their sizes after so long, or a third of a shorter run.
const WARM_UP: Duration = Duration::from_secs(10);

/// How often each steady client that changes its secret does so in a run.
const CHANGES_PER_RUN: usize = 10;

/// What comes too often, or to the wrong client, may come late.
const DRAIN: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.role {
        Some(Role::Server(options)) => server::run(options).map(|()| true),
        None => churn(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // If nobody listens, the exit code still tells.
            let _ = writeln!(io::stderr(), "churn: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What went wrong, for people.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn expect(&mut self, is_so: bool, otherwise: impl FnOnce() -> String) {
        if !is_so {
            self.0.push(otherwise());
        }
    }
}

/// Says whether all was as it should be.
fn churn(args: &Args) -> io::Result<bool> {
    raise_file_limit()?;
    let steady = args.steady.get();
    let patience = Duration::from_secs(args.patience);
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    println!(
        "{steady} clients on one key, {steady} on one each; {} others come and go for {} s; seed {seed}",
        args.churners, args.seconds
    );
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut server, complaints, address) = spawn(args, rng.u64(..))?;
    let mut clients = open_steady_clients(address, steady, patience)?;
    let files = server.ask::<usize>("files")?;

    let churners = Churners::start(address, args.churners.get(), steady, rng.u64(..))?;
    server.ask::<u64>("start")?;
    let mut memory = run(args, &mut server, &mut clients, &mut rng)?;
    let mut failures = Failures::default();

    // The last changes are made while others still come and go.
    let stopped_ns = server.ask::<u64>("stop")?;
    let states = server.ask_for_all::<u64>("states")?;
    let missing = clients.wait_for_states(&states, patience)?;
    let settled = seconds_since(stopped_ns);
    failures.expect(missing == 0, || {
        format!("{missing} clients did not get the last state in {} s", args.patience)
    });
    let counts = server.ask_for_all::<u64>("counts")?;
    let rows = clients.tally().rows;

    let churned = churners.stop()?;
    let lost = clients.sync_secrets(patience)?;
    failures.expect(lost == 0, || format!("{lost} clients got no pong"));
    // A client whose secret changed when nothing changed any more has seen the last state under the one before. One
    // change more must reach each under its last secret.
    let again_ns = server.ask::<u64>("again")?;
    let states = server.ask_for_all::<u64>("states")?;
    let missing = clients.wait_for_states(&states, patience)?;
    let again = seconds_since(again_ns);
    failures.expect(missing == 0, || {
        format!("{missing} clients did not get one change more in {} s", args.patience)
    });

    let audiences = clients.audiences();
    let (flights, left_files) = wait_until_left(&mut server, &mut clients, audiences, files, patience)?;
    failures.expect(flights == audiences, || {
        format!("the server has {flights} flights; the steady clients make up {audiences}")
    });
    failures.expect(left_files <= files, || {
        format!("the server has {left_files} open files; it had {files} before the others came")
    });
    clients.receive_for(DRAIN)?;
    memory.push(server.ask("rss")?);
    failures.expect(!memory.has_grown(), || "the server's memory has grown".to_owned());
    let old = clients.with_an_old_secret();
    failures.expect(old == 0, || {
        format!("{old} clients' last row is not for their last secret")
    });

    let status = server.quit()?;
    failures.expect(status.success(), || format!("the server's process ended with {status}"));
    let panics = complaints.panics()?;
    failures.expect(panics == 0, || format!("the server panicked {panics} times"));
    let tally = clients.tally();
    check_tally(&tally, &mut failures);
    check_that_it_was_a_test(&counts, &churned, &mut failures);

    print_server(&counts, f64::from(args.seconds.get()));
    line("steady", "rows received", &rows.to_string());
    line("", "rows that were wrong", &errors_of(&tally));
    line("", "secrets changed", &clients.secrets_changed().to_string());
    line("", "s to the last state", &format!("{settled:.3}"));
    line("", "s to one change more", &format!("{again:.3}"));
    print_churned(&churned);
    line("server after", "flights", &format!("{flights} (expected {audiences})"));
    line(
        "",
        "open files",
        &format!("{left_files} ({files} before the others came)"),
    );
    line("", "MiB first, max, last", &memory.to_string());
    line("", "panics", &panics.to_string());
    if failures.0.is_empty() {
        line("result", "ok", "");
    }
    for failure in &failures.0 {
        line("result", "FAILED", failure);
    }
    Ok(failures.0.is_empty())
}

fn spawn(args: &Args, seed: u64) -> io::Result<(Process, Complaints, SocketAddr)> {
    let role = [
        "server".to_owned(),
        format!("--steady={}", args.steady),
        format!("--payload={}", args.payload),
        format!("--reactors={}", args.reactors),
        format!("--seed={seed}"),
    ];
    let mut server = Process::spawn(&role, Stdio::piped())?;
    let stderr = server.take_stderr();
    let complaints = Complaints::listen(stderr.ok_or_else(|| io::Error::other("the server has no standard error"))?);
    let address = server.answer()?;
    Ok((server, complaints, address))
}

fn open_steady_clients(address: SocketAddr, steady: u32, patience: Duration) -> io::Result<Steady> {
    let count = steady as usize * 2;
    let mut streams = connect_upgraded(address, count, patience)?;
    subscribe(&mut streams, |index| {
        let key = key_of(index, count);
        (key.entity().to_owned(), key.id())
    })?;
    Steady::new(streams)
}

/// The time of churn: receives, changes secrets, and looks at the server's memory.
fn run(args: &Args, server: &mut Process, clients: &mut Steady, rng: &mut fastrand::Rng) -> io::Result<Memory> {
    let mut memory = Memory::default();
    let time = Duration::from_secs(args.seconds.get().into());
    let began = Instant::now();
    let mut next_sample = WARM_UP.min(time / 3);
    let all_changes = clients.changers() * CHANGES_PER_RUN;
    let mut changes = 0;
    while let passed = began.elapsed()
        && passed < time
    {
        clients.receive_for(Duration::from_millis(10))?;
        let due = all_changes as f64 * passed.as_secs_f64() / time.as_secs_f64();
        while changes < due as usize {
            changes += 1;
            clients.change_a_secret(rng)?;
        }
        if passed >= next_sample {
            next_sample = passed + SAMPLE_INTERVAL;
            memory.push(server.ask("rss")?);
        }
    }
    Ok(memory)
}

/// Waits until the server has forgotten those that came and went. Gives its flights and its open files.
fn wait_until_left(
    server: &mut Process,
    clients: &mut Steady,
    flights: usize,
    files: usize,
    patience: Duration,
) -> io::Result<(usize, usize)> {
    let deadline = Instant::now() + patience;
    loop {
        let now = (server.ask("flights")?, server.ask("files")?);
        if (now.0 == flights && now.1 <= files) || Instant::now() > deadline {
            return Ok(now);
        }
        clients.receive_for(Duration::from_millis(50))?;
    }
}

fn check_tally(tally: &Tally, failures: &mut Failures) {
    let Tally {
        rows: _,
        reversed,
        foreign,
        wrong_secret,
        closed,
    } = tally;
    failures.expect(*reversed == 0, || format!("{reversed} rows were older than one before"));
    failures.expect(*foreign == 0, || format!("{foreign} rows were of another key"));
    failures.expect(*wrong_secret == 0, || {
        format!("{wrong_secret} rows were for another secret")
    });
    failures.expect(*closed == 0, || {
        format!("the server closed {closed} steady connections")
    });
}

/// Where nothing happened, nothing was shown.
fn check_that_it_was_a_test(counts: &[u64], churned: &Counts, failures: &mut Failures) {
    let &[_, reads, failed, timed_out] = counts else {
        failures.0.push("the server counts something else".to_owned());
        return;
    };
    failures.expect(reads > 0, || "nothing was read".to_owned());
    failures.expect(failed + timed_out == 0, || {
        format!("{failed} reads failed, {timed_out} took too long")
    });
    failures.expect(
        churned.upgraded > 0 && churned.reset > 0 && churned.vanished > 0,
        || "nobody came and went".to_owned(),
    );
}

fn print_server(counts: &[u64], seconds: f64) {
    let &[notifies, reads, ..] = counts else {
        return;
    };
    let rate = notifies as f64 / seconds;
    line("server", "notifies", &format!("{notifies} ({rate:.0} per second)"));
    line("", "reads", &reads.to_string());
    line(
        "",
        "reads per notify",
        &format!("{:.3}", reads as f64 / notifies as f64),
    );
}

fn errors_of(tally: &Tally) -> String {
    let Tally {
        reversed,
        foreign,
        wrong_secret,
        ..
    } = tally;
    format!("{reversed} going back, {foreign} of another key, {wrong_secret} for another secret")
}

fn print_churned(it: &Counts) {
    line(
        "churners",
        "connections",
        &format!(
            "{} ({} upgraded, {} found no port)",
            it.opened, it.upgraded, it.out_of_ports
        ),
    );
    line(
        "",
        "subscribed, unsubscribed",
        &format!("{}, {}", it.subscribed, it.unsubscribed),
    );
    line("", "secrets changed", &it.secrets.to_string());
    line(
        "",
        "garbage, violations, stalls",
        &format!("{}, {}, {}", it.garbage, it.violations, it.stalls),
    );
    line(
        "",
        "how they left",
        &format!(
            "{} half-closed, {} reset, {} vanished, {} with a close frame; the server closed {} first",
            it.half_closed, it.reset, it.vanished, it.said_goodbye, it.ended_by_server
        ),
    );
}
