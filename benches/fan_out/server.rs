//! The process that is measured: Entity Sync on one listener, plain sockets on another, and commands on standard input.
//!
//! Each command is answered with one line when it is done:
//!
//! | command | does | answers |
//! | --- | --- | --- |
//! | `notify N` | changes the entity and notifies, N times | when it began, in ns |
//! | `floor N` | writes a row to each plain socket, N times | when it began, in ns |
//! | `accept N` | accepts N plain sockets | N |
//! | `cpu` | | CPU time of this process so far, in µs |
//! | `rss` | | anonymous memory of this process, in bytes |
//! | `quit` | ends; so does the end of the input | nothing |

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use entity_sync_benches::machine::{anonymous_bytes, cpu_us, now_ns, raise_file_limit};
use entity_sync_benches::process::answer;
use entity_sync_benches::wire;
use entity_sync_mio::{Config, EntityKey, Reply, Request, Rows, Server};

use crate::ENTITY;

/// What the measuring process wants.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    payload: usize,
    #[arg(long)]
    reactors: NonZeroUsize,
    #[arg(long)]
    keys: NonZeroUsize,
}

/// Serves until it is told to quit.
pub(crate) fn run(options: &Options) -> io::Result<()> {
    raise_file_limit()?;
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let payload = options.payload;
    // The number of each key's newest row.
    let states: Arc<[AtomicU64]> = (0..options.keys.get()).map(|_| AtomicU64::new(0)).collect();
    let mut config = Config::new([anywhere]);
    config.reactors = options.reactors;
    let newest = states.clone();
    let server = Server::start(config, move |request: Request, reply: Reply| {
        let state = request.key.id().parse().ok().and_then(|id: usize| newest.get(id));
        let number = state.map_or(0, |state| state.load(Ordering::SeqCst));
        // The row is UTF-8; if it is too long, the clients that don't get it will tell.
        let _ = reply.rows(Rows::one(wire::row(number, payload)));
    })
    .map_err(io::Error::other)?;
    let floor = TcpListener::bind(anywhere)?;

    let mut commands = Commands {
        server: &server,
        keys: (0..states.len())
            .map(|id| EntityKey::new(ENTITY, &id.to_string()).map_err(io::Error::other))
            .collect::<io::Result<_>>()?,
        states,
        notifies: 0,
        floor: Vec::new(),
        floor_rounds: 0,
        payload,
    };
    for address in server.addresses() {
        answer(address)?;
    }
    answer(floor.local_addr()?)?;
    for line in io::stdin().lines() {
        let line = line?;
        let (command, number) = line.split_once(' ').unwrap_or((&line, "0"));
        let number: u64 = number.parse().map_err(io::Error::other)?;
        match command {
            "notify" => answer(commands.notify(number))?,
            "floor" => answer(commands.floor(number)?)?,
            "accept" => {
                commands.accept(&floor, number)?;
                answer(number)?;
            }
            "cpu" => answer(cpu_us())?,
            "rss" => answer(anonymous_bytes()?)?,
            "quit" => break,
            _ => return Err(io::Error::other(format!("unknown command {line:?}"))),
        }
    }
    Ok(())
}

struct Commands<'a> {
    server: &'a Server,
    keys: Vec<EntityKey>,
    states: Arc<[AtomicU64]>,
    notifies: u64,
    floor: Vec<TcpStream>,
    floor_rounds: u64,
    payload: usize,
}

impl Commands<'_> {
    /// The keys change in turn.
    fn notify(&mut self, count: u64) -> u64 {
        let began = now_ns();
        for _ in 0..count {
            let id = (self.notifies % self.keys.len() as u64) as usize;
            self.notifies += 1;
            self.states[id].store(self.notifies, Ordering::SeqCst);
            // Every name is an entity here.
            let _ = self.server.handle().notify(&self.keys[id]);
        }
        began
    }

    /// What no server can do without: one write per receiver.
    fn floor(&mut self, count: u64) -> io::Result<u64> {
        let began = now_ns();
        for _ in 0..count {
            self.floor_rounds += 1;
            let frame = wire::frame(&wire::row(self.floor_rounds, self.payload));
            for socket in &mut self.floor {
                // Blocking sockets: one call, unless the frame is larger than what the kernel buffers.
                socket.write_all(&frame)?;
            }
        }
        Ok(began)
    }

    fn accept(&mut self, listener: &TcpListener, count: u64) -> io::Result<()> {
        for _ in 0..count {
            let (socket, _) = listener.accept()?;
            socket.set_nodelay(true)?;
            self.floor.push(socket);
        }
        Ok(())
    }
}
