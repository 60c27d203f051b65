//! The process that is measured: Entity Sync on one listener, plain sockets on another, and commands on standard input.
//!
//! Each command is answered with one line when it is done:
//!
//! | command | does | answers |
//! | --- | --- | --- |
//! | `notify N` | changes the entity and notifies, N times | when it began, in ns |
//! | `notify-axum N` | the same for the clients that came by axum | when it began, in ns |
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

use crate::{ENTITY, login};

/// What the measuring process wants.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    payload: usize,
    #[arg(long)]
    reactors: NonZeroUsize,
    #[arg(long)]
    keys: NonZeroUsize,
    #[arg(long)]
    axum: bool,
}

/// Serves until it is told to quit.
pub(crate) fn run(options: &Options) -> io::Result<()> {
    raise_file_limit()?;
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let pushing = Pushing::start(options, [anywhere])?;
    let floor = TcpListener::bind(anywhere)?;
    answer(pushing.server.addresses()[0])?;
    answer(floor.local_addr()?)?;
    // Reactors of its own, so that what the two cost can be told apart.
    let (mut by_axum, mut axum) = (None, None);
    if options.axum {
        let pushing = Pushing::start(options, [])?;
        let served = login::serve(pushing.server.handle())?;
        answer(served.address)?;
        by_axum = Some(pushing);
        axum = Some(served);
    }

    let mut commands = Commands {
        pushing,
        by_axum,
        floor: Vec::new(),
        floor_rounds: 0,
        payload: options.payload,
    };
    for line in io::stdin().lines() {
        let line = line?;
        let (command, number) = line.split_once(' ').unwrap_or((&line, "0"));
        let number: u64 = number.parse().map_err(io::Error::other)?;
        match command {
            "notify" => answer(commands.pushing.notify(number))?,
            "notify-axum" => match &mut commands.by_axum {
                Some(pushing) => answer(pushing.notify(number))?,
                None => return Err(io::Error::other("axum was not asked for")),
            },
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
    drop(axum);
    Ok(())
}

/// Entity Sync, and the numbers that are its entities.
struct Pushing {
    server: Server,
    keys: Vec<EntityKey>,
    /// The number of each key's newest row.
    states: Arc<[AtomicU64]>,
    notifies: u64,
}

impl Pushing {
    fn start(options: &Options, listen: impl IntoIterator<Item = SocketAddr>) -> io::Result<Self> {
        let payload = options.payload;
        let states: Arc<[AtomicU64]> = (0..options.keys.get()).map(|_| AtomicU64::new(0)).collect();
        let mut config = Config::new(listen);
        config.reactors = options.reactors;
        let newest = states.clone();
        let server = Server::start(config, move |request: Request, reply: Reply| {
            let state = request.key.id().parse().ok().and_then(|id: usize| newest.get(id));
            let number = state.map_or(0, |state| state.load(Ordering::SeqCst));
            // The row is UTF-8; if it is too long, the clients that don't get it will tell.
            let _ = reply.rows(Rows::one(wire::row(number, payload)));
        })
        .map_err(io::Error::other)?;
        Ok(Self {
            server,
            keys: (0..states.len())
                .map(|id| EntityKey::new(ENTITY, &id.to_string()).map_err(io::Error::other))
                .collect::<io::Result<_>>()?,
            states,
            notifies: 0,
        })
    }

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
}

struct Commands {
    pushing: Pushing,
    by_axum: Option<Pushing>,
    floor: Vec<TcpStream>,
    floor_rounds: u64,
    payload: usize,
}

impl Commands {
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
