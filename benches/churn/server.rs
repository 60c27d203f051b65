//! The process under test: Entity Sync with states in memory, a thread that changes them as fast as it goes, and commands
//! on standard input.
//!
//! Each command is answered with one line when it is done:
//!
//! | command | does | answers |
//! | --- | --- | --- |
//! | `start` | begins to change random keys | 0 |
//! | `stop` | ends that | when it had ended, in ns |
//! | `again` | changes each key of a steady client once | when it had ended, in ns |
//! | `states` | | the numbers of the states: of the shared key, and of each own key |
//! | `counts` | | notifies, reads, failed reads and timed-out reads so far |
//! | `flights` | | audiences of entities with subscribers or a running read |
//! | `files` | | open files of this process |
//! | `rss` | | anonymous memory of this process, in bytes |
//! | `quit` | ends; so does the end of the input | nothing |

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use entity_sync_benches::machine::{anonymous_bytes, now_ns, open_files, raise_file_limit};
use entity_sync_benches::process::answer;
use entity_sync_mio::{Audience, Config, EntityKey, Handle, Reply, Request, Rows, Server};

use crate::keys::{Key, OTHERS};
use crate::row;

/// What the measuring process wants.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    steady: u32,
    #[arg(long)]
    payload: usize,
    #[arg(long)]
    reactors: NonZeroUsize,
    #[arg(long)]
    seed: u64,
}

/// Serves until it is told to quit.
pub(crate) fn run(options: &Options) -> io::Result<()> {
    raise_file_limit()?;
    let entities = Arc::new(Entities::new(options.steady)?);
    let mut config = Config::new([SocketAddr::from((Ipv4Addr::LOCALHOST, 0))]);
    config.reactors = options.reactors;
    let (states, payload) = (entities.clone(), options.payload);
    let server = Server::start(config, move |request: Request, reply: Reply| {
        // A row that is refused counts as a failed read, which the other process asks for.
        let _ = reply.rows(Rows::one(states.row(&request, payload)));
    })
    .map_err(io::Error::other)?;
    for address in server.addresses() {
        answer(address)?;
    }

    let handle = server.handle();
    let mut changes = None;
    for line in io::stdin().lines() {
        match line?.as_str() {
            "start" => {
                changes = Some(Changes::start(&entities, handle, options.seed));
                answer(0)?;
            }
            "stop" => {
                if let Some(changes) = changes.take() {
                    changes.stop()?;
                }
                answer(now_ns())?;
            }
            "again" => {
                for index in 0..entities.of_steady_clients {
                    entities.change(index, handle);
                }
                answer(now_ns())?;
            }
            "states" => answer(entities.states_text())?,
            "counts" => {
                let it = handle.counters();
                let [notifies, reads, failed, timed_out] =
                    [&it.notifies, &it.reads, &it.failed_reads, &it.timed_out_reads].map(|it| it.get());
                answer(format_args!("{notifies} {reads} {failed} {timed_out}"))?;
            }
            "flights" => answer(handle.flights())?,
            "files" => answer(open_files()?)?,
            "rss" => answer(anonymous_bytes()?)?,
            "quit" => break,
            line => return Err(io::Error::other(format!("unknown command {line:?}"))),
        }
    }
    Ok(())
}

/// All that changes, each with the number of its state.
struct Entities {
    keys: Vec<EntityKey>,
    states: Vec<AtomicU64>,
    own: u32,
    /// The first so many: the shared key and the own keys.
    of_steady_clients: usize,
}

impl Entities {
    fn new(own: u32) -> io::Result<Self> {
        let keys = Key::all(own)
            .map(|key| EntityKey::new(key.entity(), &key.id()).map_err(io::Error::other))
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            states: keys.iter().map(|_| AtomicU64::new(0)).collect(),
            keys,
            own,
            of_steady_clients: own as usize + 1,
        })
    }

    /// The change comes first, so that a read which begins after the notify sees it.
    fn change(&self, index: usize, handle: &Handle) {
        self.states[index].fetch_add(1, Ordering::SeqCst);
        // Every name is an entity here.
        let _ = handle.notify(&self.keys[index]);
    }

    fn row(&self, request: &Request, payload: usize) -> Vec<u8> {
        let (entity, id) = (request.key.entity(), request.key.id());
        let secret = match &request.audience {
            Audience::Secret(secret) => secret,
            Audience::Named(_) | Audience::Public => "not asked for",
        };
        let index = Key::parse(entity, id).and_then(|key| key.index(self.own));
        let state = index.map_or(0, |index| self.states[index].load(Ordering::SeqCst));
        row::row(state, secret, entity, id, payload)
    }

    /// A random one, the shared key more often than others.
    fn random(&self, rng: &mut fastrand::Rng) -> usize {
        match rng.u8(..16) {
            0 => 0,
            1 => self.of_steady_clients + rng.usize(..OTHERS as usize),
            _ => 1 + rng.usize(..self.own as usize),
        }
    }

    fn states_text(&self) -> String {
        let states = self.states.iter().take(self.of_steady_clients);
        let states: Vec<_> = states.map(|it| it.load(Ordering::SeqCst).to_string()).collect();
        states.join(" ")
    }
}

/// The thread that changes keys as fast as it goes.
struct Changes {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Changes {
    fn start(entities: &Arc<Entities>, handle: &Handle, seed: u64) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (entities, handle, stop) = (entities.clone(), handle.clone(), is_over.clone());
        let thread = std::thread::spawn(move || {
            let mut rng = fastrand::Rng::with_seed(seed);
            while !stop.load(Ordering::Relaxed) {
                entities.change(entities.random(&mut rng), &handle);
            }
        });
        Self { is_over, thread }
    }

    fn stop(self) -> io::Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| io::Error::other("a notify panicked"))
    }
}
