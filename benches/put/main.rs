//! What a PUT costs beside SQLite alone: 64 clients write through the HTTP API as fast as they are answered, while others
//! watch; then the same rows are written in the same batches by bare SQLite with the same settings, in the same run.
//!
//! `cargo run --release -p entity-sync-benches --bin put`
#![allow(clippy::print_stdout, reason = "a program that prints")]

use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use entity_sync::api::{Parts, router};
use entity_sync::store::{Location, Store};
use entity_sync::{Entity, EntityKey, EntitySync, Handle, ReadError};

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
    let mut ratios = Vec::new();
    for _ in 0..arguments.pairs {
        let (ours, batches) = api(&arguments)?;
        let bare = sqlite(&batches)?;
        let writes = batches.iter().map(Vec::len).sum::<usize>();
        let ratio = ours.as_secs_f64() / bare.as_secs_f64();
        println!(
            "{writes} PUTs in {} batches: {:.0}/s, bare SQLite {:.0}/s, time {ratio:.2} of it; every watched key ended with its last row",
            batches.len(),
            writes as f64 / ours.as_secs_f64(),
            writes as f64 / bare.as_secs_f64(),
        );
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median {:.2}", ratios[ratios.len() / 2]);
    Ok(())
}

/// How long the clients took, and what was committed together.
fn api(arguments: &Arguments) -> Result<(Duration, Vec<Batch>), Box<dyn Error>> {
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
    let read = store.clone();
    let entity = Entity::read(move |request| {
        let row = read.get(&request.key).map_err(|_| ReadError::Failed)?;
        Ok(row.into_iter().collect())
    });
    let sync = EntitySync::builder()
        .listen("127.0.0.1:0")
        .others(entity.public())
        .start()?;
    handle.get_or_init(|| sync.handle().clone());

    let (tell, address) = mpsc::channel();
    let served = store.clone();
    std::thread::spawn(move || -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            let _ = tell.send(listener.local_addr()?);
            axum::serve(listener, router(Parts::new(Some(served), Arc::new(|_| Ok(()))))).await
        })
    });
    let address: SocketAddr = address.recv()?;

    let mut watcher = tungstenite::connect(format!("ws://{}/ws/entity-sync/", sync.addresses()[0]))?.0;
    for key in 0..arguments.keys {
        let subscribe = format!(r#"{{"action":"subscribe","body":{{"entity":"items","id":"{key}"}}}}"#);
        watcher.send(tungstenite::Message::text(subscribe))?;
    }
    while sync.handle().shard_counts().subscriptions < arguments.keys as u64 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let began = Instant::now();
    let clients = (0..arguments.clients).map(|client| {
        let (writes, keys) = (arguments.writes, arguments.keys);
        std::thread::spawn(move || write(address, client, writes, keys))
    });
    for client in clients.collect::<Vec<_>>() {
        client.join().map_err(|_| "a client panicked")??;
    }
    let took = began.elapsed();

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
    sync.shutdown(Duration::from_secs(1));
    Ok((took, batches))
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

/// One client that writes by hand, so that it costs little beside the server.
fn write(address: SocketAddr, client: usize, writes: usize, keys: usize) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut buffer = [0; 1024];
    for number in 0..writes {
        let id = (client * 7919 + number * 31) % keys;
        let body = format!(r#"{{"id":"{id}","by":{client},"n":{number}}}"#);
        let request = format!(
            "PUT /entities/items/{id} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        // Such an answer has no body, and comes in one piece.
        let read = stream.read(&mut buffer)?;
        if !buffer[..read].starts_with(b"HTTP/1.1 20") {
            let said = String::from_utf8_lossy(&buffer[..read]).into_owned();
            return Err(std::io::Error::other(said));
        }
    }
    Ok(())
}

/// How long SQLite takes for rows of the same kind in the same batches, without anything around it.
fn sqlite(batches: &[Batch]) -> Result<Duration, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let mut connection = rusqlite::Connection::open(folder.path().join("data.db"))?;
    connection.execute_batch(
        "PRAGMA journal_mode = wal; PRAGMA synchronous = full;
         CREATE TABLE entities (entity TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (entity, id)) STRICT",
    )?;
    let began = Instant::now();
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
    Ok(began.elapsed())
}
