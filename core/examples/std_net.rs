//! A complete server on one thread, with nothing but `std::net`: the smallest driver there is. It looks at every socket
//! once a millisecond instead of being told, and is otherwise what any driver is.
//!
//! Run `cargo run -p entity-sync-core --example std_net`, subscribe with any WebSocket client on
//! `ws://127.0.0.1:8080/ws/entity-sync/` by sending `{"action":"subscribe","body":{"entity":"items","id":"100"}}`, and
//! type `100` here: item 100 has changed.
// A driver does what core may not.
#![allow(clippy::disallowed_types, clippy::disallowed_methods)]

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::task::Waker;
use std::time::{Duration, Instant};

use entity_sync_core::{Chunk, Config, ConnId, Core, CoreOutput, EntityKey, Input, Output};
use entity_sync_core::{Reply, Request, Rows, Seed, Sent, Timestamp};

type Sockets = HashMap<ConnId, TcpStream>;

/// Serves until `changes` is closed. `resolve` gets the reads; it may keep the reply and answer later.
pub fn serve(
    listener: &TcpListener,
    clock: impl Fn() -> Timestamp,
    config: Config,
    changes: &Receiver<EntityKey>,
    mut resolve: impl FnMut(Request, Reply),
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut core = Core::new(config, Waker::noop().clone());
    let mut sockets = Sockets::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // 1. Feed what happened.
        let now = clock();
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true)?;
            if let Ok(conn) = core.open(now) {
                sockets.insert(conn, stream);
            }
        }
        for (&conn, stream) in &mut sockets {
            core.handle(now, Input::Writable { conn });
            if core.is_paused(conn) {
                continue;
            }
            let input = match stream.read(&mut buffer) {
                Ok(0) => Input::Eof { conn },
                Ok(n) => {
                    let bytes = &mut buffer[..n];
                    Input::Received { conn, bytes }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(_) => Input::Closed { conn },
            };
            core.handle(now, input);
        }
        loop {
            match changes.try_recv() {
                // Every name is an entity here.
                Ok(key) => drop(core.notify(now, &key)),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        core.handle_timeout(now);
        // 2. Do what it says.
        while let Some(output) = core.poll_output(now) {
            match output {
                CoreOutput::Read(request, reply) => resolve(request, reply),
                CoreOutput::Shard(Output::Broadcast(broadcast)) => {
                    broadcast.for_each(|conn, chunk| write(&sockets, conn, &[chunk]));
                }
                CoreOutput::Shard(Output::Flush(flush)) => {
                    flush.write(|conn, chunks| write(&sockets, conn, chunks));
                }
                // Step 1 asks each turn.
                CoreOutput::Shard(Output::Resume(_)) => {}
                CoreOutput::Shard(Output::Shutdown(conn)) => {
                    let _ = sockets.get(&conn).map(|stream| stream.shutdown(Shutdown::Write));
                }
                CoreOutput::Shard(Output::Close(conn)) => drop(sockets.remove(&conn)),
            }
        }
        // 3. Sleep. A real driver sleeps until an event, or poll_timeout.
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn write(sockets: &Sockets, conn: ConnId, chunks: &[Chunk<'_>]) -> Sent {
    let slices: Vec<_> = chunks.iter().map(|chunk| IoSlice::new(chunk.as_slice())).collect();
    let Some(mut stream) = sockets.get(&conn) else {
        return Sent::Closed;
    };
    match stream.write_vectored(&slices) {
        Ok(n) if n == slices.iter().map(|slice| slice.len()).sum::<usize>() => Sent::All,
        Ok(n) => Sent::Partial(n),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Sent::Busy,
        Err(_) => Sent::Closed,
    }
}

#[allow(dead_code, reason = "tests use serve alone")]
fn main() -> io::Result<()> {
    let start = Instant::now();
    let clock = move || Timestamp::after_start(start.elapsed());
    let (notify, changes) = channel();
    std::thread::spawn(move || {
        let ids = io::stdin().lines().map_while(Result::ok);
        for key in ids.filter_map(|id| EntityKey::new("items", &id).ok()) {
            let _ = notify.send(key);
        }
    });
    let seed = |n: u64| std::hash::RandomState::new().hash_one(n);
    let config = Config::new(Seed(seed(0), seed(1)));
    let listener = TcpListener::bind("127.0.0.1:8080")?;
    serve(&listener, clock, config, &changes, |request, reply| {
        let row = format!(r#"{{"id":{:?},"read":"{:?}"}}"#, request.key.id(), start.elapsed());
        let _ = reply.send(clock(), Ok(Rows::one(row)));
    })
}
