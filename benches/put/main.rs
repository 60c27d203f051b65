//! What a PUT costs beside SQLite alone: 64 clients write through the HTTP API as fast as they are answered, at a port of this
//! machine and at a socket in its file system, while others watch; then the same rows are written in the same batches by bare SQLite with the same settings, in the same run. Last come
//! requests of the same bytes that are answered without being looked at: what the kernel takes to carry them.
//!
//! `cargo run --release -p entity-sync-benches --bin put`
#![allow(clippy::print_stdout, reason = "a program that prints")]

mod clients;
mod echo;
mod transport;

use std::error::Error;
use std::net::TcpStream;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use clients::Clients;
use entity_sync::api::{Api, Parts};
use entity_sync::store::{Location, Store, StoreResolver};
use entity_sync::{Entity, EntityKey, EntitySync, Handle};
use rustix::time::{ClockId, clock_gettime};
use transport::{Tcp, Transport, Unix};

/// What a PUT costs beside SQLite alone
#[derive(Parser)]
struct Arguments {
    /// How many clients write
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// How many rows each of them writes, one after the other
    #[arg(long, default_value_t = 500)]
    writes: usize,
    /// How many keys they write to
    #[arg(long, default_value_t = 1000)]
    keys: usize,
    /// How many pairs of runs
    #[arg(long, default_value_t = 5)]
    pairs: usize,
}

/// What was committed together.
type Batch = Vec<EntityKey>;

type Batches = Arc<Mutex<Vec<Batch>>>;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    measure::<Tcp>(&arguments)?;
    measure::<Unix>(&arguments)
}

fn measure<T: Transport>(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let mut ratios = Vec::new();
    for _ in 0..arguments.pairs {
        let Served {
            spent: ours,
            half,
            most,
            batches,
        } = api::<T>(arguments)?;
        let bare = sqlite(&batches)?;
        let echo = echo::echo::<T>(arguments)?;
        let writes = batches.iter().map(Vec::len).sum::<usize>() as f64;
        let ratio = ours.wall.as_secs_f64() / bare.wall.as_secs_f64();
        let micros = |spent: Duration| spent.as_secs_f64() * 1e6 / writes;
        let rate = |spent: &Spent| writes / spent.wall.as_secs_f64();
        println!(
            "{writes} PUTs {} in {} batches: {:.0}/s, half of them in {} µs and 99 of 100 in {}; bare SQLite {:.0}/s, time \
             {ratio:.2} of it; CPU per PUT {:.1} µs and the clients' {:.1}, bare SQLite {:.1}; requests answered by nobody {:.0}/s, CPU {:.1} µs and the clients' {:.1}; every \
             watched key ended with its last row",
            T::NAME,
            batches.len(),
            rate(&ours),
            half.as_micros(),
            most.as_micros(),
            rate(&bare),
            micros(ours.cpu),
            micros(ours.clients),
            micros(bare.cpu),
            rate(&echo),
            micros(echo.cpu),
            micros(echo.clients),
        );
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median {}: {:.2}", T::NAME, ratios[ratios.len() / 2]);
    Ok(())
}

/// What the writes took.
struct Spent {
    wall: Duration,
    /// Of all threads but the clients'.
    cpu: Duration,
    clients: Duration,
}

impl Spent {
    /// What `run` takes, on this thread and on others.
    fn by<E>(run: impl FnOnce() -> Result<(), E>) -> Result<Self, E> {
        let now = || {
            (
                Instant::now(),
                cpu(ClockId::ProcessCPUTime),
                cpu(ClockId::ThreadCPUTime),
            )
        };
        let before = now();
        run()?;
        let after = now();
        let clients = after.2 - before.2;
        Ok(Self {
            wall: after.0 - before.0,
            cpu: (after.1 - before.1).saturating_sub(clients),
            clients,
        })
    }
}

fn cpu(of: ClockId) -> Duration {
    // It counts up from zero.
    Duration::try_from(clock_gettime(of)).unwrap_or_default()
}

/// What the API did.
struct Served {
    spent: Spent,
    /// What half of the answers took at most.
    half: Duration,
    /// And 99 of 100.
    most: Duration,
    batches: Vec<Batch>,
}

fn api<T: Transport>(arguments: &Arguments) -> Result<Served, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let batches = Batches::default();
    let handle = Arc::new(OnceLock::<Handle>::new());
    let (committed, told) = (batches.clone(), handle.clone());
    let store = Arc::new(Store::open(
        &Location::File(folder.path().join("data.db")),
        move |keys| {
            committed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(keys.to_vec());
            if let Some(handle) = told.get() {
                // Every name is an entity.
                let _ = handle.notify_many(keys);
            }
        },
    )?);
    // As the binary has it.
    let entity = Entity::resolver(StoreResolver::new(&store)?).max_running_reads(4096);
    let sync = EntitySync::builder()
        .listen("127.0.0.1:0")
        .others(entity.public())
        .start()?;
    handle.get_or_init(|| sync.handle().clone());

    let (tell, address) = mpsc::channel();
    let (served, path) = (store.clone(), folder.path().to_owned());
    let thread = std::thread::Builder::new().name("api".to_owned());
    thread.spawn(move || -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move {
            let (address, listener) = T::listen(&path).await?;
            let _ = tell.send(address);
            let api = Api::new(Parts::new(Some(served), Arc::new(|_| Ok(()))));
            api.listen(listener, std::future::pending()).await;
            Ok(())
        })
    })?;
    let address = address.recv()?;

    let mut watcher = tungstenite::connect(format!("ws://{}/ws/entity-sync/", sync.addresses()[0]))?.0;
    for key in 0..arguments.keys {
        let subscribe = format!(r#"{{"action":"subscribe","body":{{"entity":"items","id":"{key}"}}}}"#);
        watcher.send(tungstenite::Message::text(subscribe))?;
    }
    while sync.handle().shard_counts().subscriptions < arguments.keys as u64 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut clients = Clients::<T>::connect(&address, arguments)?;
    let spent = Spent::by(|| clients.run())?;
    let (half, most) = clients.took();

    // Every key that was written is pushed its last row, sooner or later.
    let batches = std::mem::take(&mut *batches.lock().unwrap_or_else(PoisonError::into_inner));
    let mut missing: std::collections::HashMap<String, String> = batches
        .iter()
        .flatten()
        .filter_map(|key| {
            let row = store.get(key).ok().flatten()?;
            Some((key.id().to_owned(), String::from_utf8(row).ok()?))
        })
        .collect();
    watcher.get_mut().set_read_timeout_of(Duration::from_secs(10))?;
    while !missing.is_empty() {
        if let tungstenite::Message::Text(row) = watcher.read()? {
            let id = row.split('"').nth(3).unwrap_or_default();
            if missing.get(id).is_some_and(|last| *last == row.as_str()) {
                missing.remove(id);
            }
        }
    }
    let _ = sync.shutdown(Duration::from_secs(1));
    Ok(Served {
        spent,
        half,
        most,
        batches,
    })
}

/// A stream's own time limit, through tungstenite's wrapper.
trait ReadTimeout {
    fn set_read_timeout_of(&mut self, limit: Duration) -> std::io::Result<()>;
}

impl ReadTimeout for tungstenite::stream::MaybeTlsStream<TcpStream> {
    fn set_read_timeout_of(&mut self, limit: Duration) -> std::io::Result<()> {
        match self {
            Self::Plain(stream) => stream.set_read_timeout(Some(limit)),
            _ => Ok(()),
        }
    }
}

/// What SQLite takes for rows of the same kind in the same batches, without anything around it.
fn sqlite(batches: &[Batch]) -> Result<Spent, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let mut connection = rusqlite::Connection::open(folder.path().join("data.db"))?;
    connection.execute_batch(
        "PRAGMA journal_mode = wal; PRAGMA synchronous = full;
         CREATE TABLE entities (entity TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (entity, id)) STRICT",
    )?;
    // There are no clients, so this thread is SQLite's.
    let spent = Spent::by(|| commit(&mut connection, batches))?;
    Ok(Spent {
        cpu: spent.cpu + spent.clients,
        clients: Duration::ZERO,
        ..spent
    })
}

fn commit(connection: &mut rusqlite::Connection, batches: &[Batch]) -> rusqlite::Result<()> {
    for (number, batch) in batches.iter().enumerate() {
        let transaction = connection.transaction()?;
        for key in batch {
            let body = format!(r#"{{"id":"{}","by":64,"n":{number}}}"#, key.id());
            transaction
                .prepare_cached(
                    "INSERT INTO entities VALUES (?1, ?2, ?3) ON CONFLICT (entity, id) DO UPDATE SET body = excluded.body",
                )?
                .execute([key.entity(), key.id(), &body])?;
        }
        transaction.commit()?;
    }
    Ok(())
}
