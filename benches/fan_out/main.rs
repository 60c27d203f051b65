//! `fan-out`: what one change costs when many clients are told of it, over real sockets, beside the kernel's floor.
//!
//! The server runs in a process of its own, so that its CPU time is nobody else's. Rounds alternate: in one, Entity Sync
//! pushes a row to every client; in the other, the same process writes the same bytes to as many plain sockets in a bare
//! loop. Both see the same machine at the same time, so their ratio means something where neither number does.
#![allow(clippy::print_stdout, reason = "a program that reports")]

#[path = "../../adapters/axum/examples/login/app.rs"]
mod app;
mod clients;
mod login;
mod series;
mod server;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use clap::Parser;
use entity_sync_benches::connect::{connect, connect_upgraded, connect_with, subscribe};
use entity_sync_benches::machine::raise_file_limit;
use entity_sync_benches::process::Process;
use entity_sync_benches::report::line;
use entity_sync_benches::wire;

use clients::{Clients, Round};
use series::Series;

/// The entity that all clients subscribe to; its ids are numbers from 0.
const ENTITY: &str = "items";

/// What a push to many clients costs, beside bare writes of the same bytes.
#[derive(Debug, Parser)]
#[command(name = "fan-out")]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,

    /// Clients, all subscribed to one key. As many plain sockets are opened for the floor.
    #[arg(long, default_value = "5000")]
    clients: NonZeroUsize,

    /// Keys that each client subscribes to. In each round all of them change, at once.
    #[arg(long, default_value = "1")]
    keys: NonZeroUsize,

    /// Bytes of a row; at least 20, which is what its number takes.
    #[arg(long, default_value_t = 100)]
    payload: usize,

    /// Rounds of each kind; with --burst, notifies.
    #[arg(long, default_value = "200")]
    rounds: NonZeroU32,

    /// Rounds of each kind that come before and are not counted.
    #[arg(long, default_value_t = 5)]
    warm_up: u32,

    /// Threads that serve connections. The floor has one, so more than one here is no fair comparison.
    #[arg(long, default_value = "1")]
    reactors: NonZeroUsize,

    /// Has each client subscribe to a key of its own too, which never changes, to see what that costs in memory.
    #[arg(long)]
    own_keys: bool,

    /// Notifies as fast as it goes and waits for nobody; checks that each client ends with the last state.
    #[arg(long)]
    burst: bool,

    /// Opens as many clients through axum too, behind the login of its example, and compares them with the reactors' own.
    #[arg(long, conflicts_with = "burst")]
    axum: bool,

    /// Seconds that any step may take before the run has failed.
    #[arg(long, default_value_t = 20)]
    patience: u64,
}

#[derive(Debug, clap::Subcommand)]
enum Role {
    /// The other process: driven through its standard input.
    #[command(hide = true)]
    Server(server::Options),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.role {
        Some(Role::Server(options)) => server::run(&options).map(|()| true),
        None => measure(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // If nobody listens, the exit code still tells.
            let _ = writeln!(io::stderr(), "fan-out: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether every client got what it should.
fn measure(args: &Args) -> io::Result<bool> {
    raise_file_limit()?;
    let count = args.clients.get();
    let patience = Duration::from_secs(args.patience);
    let mut server = Server::spawn(args)?;

    let empty = server.process.ask::<u64>("rss")?;
    let began = server.process.ask::<u64>("cpu")?;
    let mut connected = connect_upgraded(server.address, count, patience)?;
    let (idle, upgraded) = (server.process.ask::<u64>("rss")?, server.process.ask::<u64>("cpu")?);
    for id in 0..args.keys.get() {
        subscribe(&mut connected, |_| (ENTITY.to_owned(), id.to_string()))?;
    }
    let (subscribed, ready) = (server.process.ask::<u64>("rss")?, server.process.ask::<u64>("cpu")?);
    let mut own = None;
    if args.own_keys {
        subscribe(&mut connected, |index| (ENTITY.to_owned(), format!("own{index:06}")))?;
        own = Some(server.process.ask::<u64>("rss")?);
    }
    let clients = Clients::new(connected)?;

    let row_bytes = args.payload.max(wire::MIN_ROW_BYTES);
    println!("{count} clients on {} key(s), rows of {row_bytes} bytes", args.keys);
    let each = |total: u64, before: u64| total.saturating_sub(before) as f64 / count as f64;
    let subscriptions = count * args.keys.get();
    line(
        "connecting",
        "server CPU µs/upgrade",
        &format!("{:.3}", each(upgraded, began)),
    );
    line(
        "",
        "server CPU µs/subscription",
        &format!("{:.3}", ready.saturating_sub(upgraded) as f64 / subscriptions as f64),
    );
    line("memory", "bytes/idle connection", &format!("{:.0}", each(idle, empty)));
    line(
        "",
        "bytes/subscribed connection",
        &format!("{:.0}", each(subscribed, empty)),
    );

    if let Some(own) = own {
        line(
            "",
            "bytes/subscription of an own key",
            &format!("{:.0}", each(own, subscribed)),
        );
    }

    let by_axum = match server.axum {
        Some(address) => Some(through_axum(args, address, patience)?),
        None => None,
    };
    let is_good = if args.burst {
        burst(args, &mut server, clients, patience)?
    } else {
        rounds(args, &mut server, clients, by_axum, patience)?
    };
    server.process.quit()?;
    Ok(is_good)
}

/// One side of the comparison: its sockets, the command that sends to them, and what came of it.
struct Side {
    command: String,
    /// Rows that each client gets in a round.
    rows: u64,
    clients: Clients,
    cpu_us: Series,
    first_us: Series,
    last_us: Series,
    per_second: Series,
}

impl Side {
    fn new(command: &str, rows: u64, clients: Clients) -> Self {
        Self {
            command: format!("{command} {rows}"),
            rows,
            clients,
            cpu_us: Series::default(),
            first_us: Series::default(),
            last_us: Series::default(),
            per_second: Series::default(),
        }
    }

    /// Has its rows sent to every client and waits for them. Gives the server's CPU time by row and receiver, in µs.
    fn round(&mut self, server: &mut Server, number: u64, patience: Duration) -> io::Result<f64> {
        let count = self.clients.len() as f64 * self.rows as f64;
        let before = server.process.ask::<u64>("cpu")?;
        server.process.tell(&self.command)?;
        let Round { first_ns, last_ns } = self.clients.wait_for(number * self.rows, patience)?;
        let started_ns = server.process.answer::<u64>()?;
        // The server may still be on its way back to sleep, which is part of the price.
        std::thread::sleep(Duration::from_millis(2));
        let cpu_us = server.process.ask::<u64>("cpu")?.saturating_sub(before) as f64 / count;
        let since = |at: u64| at.saturating_sub(started_ns) as f64 / 1000.0;
        self.cpu_us.push(cpu_us);
        self.first_us.push(since(first_ns));
        self.last_us.push(since(last_ns));
        self.per_second.push(count / (since(last_ns) / 1e6));
        Ok(cpu_us)
    }

    fn forget(&mut self) {
        for series in [
            &mut self.cpu_us,
            &mut self.first_us,
            &mut self.last_us,
            &mut self.per_second,
        ] {
            *series = Series::default();
        }
    }

    fn print(&self, name: &str, unit: &str) {
        line(name, &format!("server CPU µs/{unit}"), &self.cpu_us.spread(3));
        line("", &format!("{unit} per second"), &self.per_second.spread(0));
        line("", "first client after µs", &self.first_us.percentiles());
        line("", "last client after µs", &self.last_us.percentiles());
    }
}

/// As many clients, each of which has logged in.
fn through_axum(args: &Args, address: SocketAddr, patience: Duration) -> io::Result<Clients> {
    let request = login::upgrade_request(address)?;
    let mut connected = connect_with(&request, address, args.clients.get(), patience)?;
    for id in 0..args.keys.get() {
        subscribe(&mut connected, |_| (ENTITY.to_owned(), id.to_string()))?;
    }
    Clients::new(connected)
}

fn rounds(
    args: &Args,
    server: &mut Server,
    clients: Clients,
    by_axum: Option<Clients>,
    patience: Duration,
) -> io::Result<bool> {
    let count = args.clients.get();
    server.process.tell(&format!("accept {count}"))?;
    let plain = connect(server.floor, count, patience)?;
    server.process.answer::<usize>()?;
    let rows = args.keys.get() as u64;
    let mut push = Side::new("notify", rows, clients);
    let mut floor = Side::new("floor", rows, Clients::new(plain)?);

    let mut axum = by_axum.map(|clients| Side::new("notify-axum", rows, clients));

    let (mut ratio, mut axum_ratio) = (Series::default(), Series::default());
    for number in 1..=u64::from(args.warm_up) + u64::from(args.rounds.get()) {
        // Each goes first in every other round, so that none always finds the others' traces in the caches.
        let is_even = number % 2 == 0;
        let (mut push_us, mut axum_us) = (0.0, 0.0);
        if is_even {
            push_us = push.round(server, number, patience)?;
        }
        if let Some(axum) = &mut axum {
            axum_us = axum.round(server, number, patience)?;
        }
        if !is_even {
            push_us = push.round(server, number, patience)?;
        }
        let floor_us = floor.round(server, number, patience)?;
        if number == u64::from(args.warm_up) {
            [Some(&mut push), Some(&mut floor), axum.as_mut()]
                .into_iter()
                .flatten()
                .for_each(Side::forget);
        } else if number > u64::from(args.warm_up) {
            ratio.push(push_us / floor_us);
            axum_ratio.push(axum_us / push_us);
        }
    }
    // What comes too often comes late.
    for side in [Some(&mut push), Some(&mut floor), axum.as_mut()].into_iter().flatten() {
        side.clients.drain(Duration::from_millis(200))?;
    }

    println!("{} rounds of each kind; median (lowest to highest)", args.rounds);
    push.print("push", "delivery");
    if let Some(axum) = &axum {
        axum.print("push by axum", "delivery");
    }
    floor.print("floor", "send");
    line("push / floor", "ratio of CPU, by pairs", &ratio.spread(3));
    let mut is_exact = true;
    if let Some(axum) = &axum {
        line("by axum / push", "ratio of CPU, by pairs", &axum_ratio.spread(3));
        let tally = axum.clients.tally();
        line("push by axum", "rows", &tally.to_string());
        is_exact = tally.is_exact();
    }
    let (push, floor) = (push.clients.tally(), floor.clients.tally());
    line("push", "rows", &push.to_string());
    line("floor", "rows", &floor.to_string());
    Ok(is_exact && push.is_exact() && floor.is_exact())
}

fn burst(args: &Args, server: &mut Server, mut clients: Clients, patience: Duration) -> io::Result<bool> {
    let notifies = args.rounds.get();
    let before = server.process.ask::<u64>("cpu")?;
    server.process.tell(&format!("notify {notifies}"))?;
    let Round { first_ns, last_ns } = clients.wait_for(notifies.into(), patience)?;
    let started_ns = server.process.answer::<u64>()?;
    let cpu_us = server.process.ask::<u64>("cpu")?.saturating_sub(before) as f64;
    clients.drain(Duration::from_millis(200))?;
    let tally = clients.tally();

    let seconds = last_ns.saturating_sub(started_ns) as f64 / 1e9;
    let rows = tally.rows as f64;
    println!("a burst of {notifies} notifies; each client has the last state");
    line("push", "seconds to the last state", &format!("{seconds:.3}"));
    let first_us = first_ns.saturating_sub(started_ns) / 1000;
    line("", "first with it after µs", &first_us.to_string());
    line("", "server CPU µs/row", &format!("{:.3}", cpu_us / rows));
    line("", "rows per second", &format!("{:.0}", rows / seconds));
    line("", "rows per client", &format!("{:.1}", rows / clients.len() as f64));
    line("", "rows", &tally.to_string());
    Ok(tally.is_in_order())
}

/// The other process, and where it listens.
struct Server {
    process: Process,
    address: SocketAddr,
    floor: SocketAddr,
    /// Where axum listens, if it does.
    axum: Option<SocketAddr>,
}

impl Server {
    fn spawn(args: &Args) -> io::Result<Self> {
        let payload = args.payload.to_string();
        let reactors = args.reactors.to_string();
        let keys = args.keys.to_string();
        let mut role = vec![
            "server",
            "--payload",
            &payload,
            "--reactors",
            &reactors,
            "--keys",
            &keys,
        ];
        if args.axum {
            role.push("--axum");
        }
        let role: Vec<_> = role.into_iter().map(str::to_owned).collect();
        let mut process = Process::spawn(&role, Stdio::inherit())?;
        let (address, floor) = (process.answer()?, process.answer()?);
        let axum = if args.axum { Some(process.answer()?) } else { None };
        Ok(Self {
            address,
            floor,
            axum,
            process,
        })
    }
}
