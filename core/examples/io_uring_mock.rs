//! A driver in the manner of io_uring, on a ring that is only pretended: writes are handed in, and complete later, in any
//! order and often in part. Time is counted in turns and chance comes from a seed, so that every run is the same.
//!
//! | core says | this driver | on a real ring |
//! | --- | --- | --- |
//! | `Broadcast` | a clone of the shared frame per receiver, [`Sent::Taken`] | a `SEND` each, submitted together |
//! | `Flush` | clones of all chunks, [`Sent::Taken`] | one `SENDMSG` |
//! | `Shutdown` | doesn't come: nobody is sent away | `SHUTDOWN` |
//! | `Close` | forgets the socket, and keeps the buffers of its write | cancel; `CLOSE` after the completion |
//!
//! And the other way: a completed write is [`Input::Written`], however short; one that failed is [`Input::Closed`].
//! A clone costs a reference count: a row for fifty clients is in memory once, for as long as any of them needs it.
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    clippy::print_stdout,
    reason = "a driver does what core may not"
)]
#![allow(unreachable_pub, clippy::duplicate_mod, reason = "tests include this as a module")]

mod support;

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::Duration;

use entity_sync_core::{
    Bytes, Chunk, ConnId, Core, CoreOutput, EntityKey, Input, Output, Reply, Rows, Sent, Timestamp,
};
use support::{KEYS, Random, check, keys_of};

const CLIENTS: usize = 50;
const CHANGES: u64 = 2_000;

/// The bytes that reached each client.
type Sockets = BTreeMap<ConnId, Vec<u8>>;

/// Writes that were handed in and have not completed.
#[derive(Default)]
struct Ring(BTreeMap<ConnId, Vec<Bytes>>);

impl Ring {
    fn submit(&mut self, conn: ConnId, chunks: &[Chunk<'_>]) -> Sent {
        let earlier = self.0.insert(conn, chunks.iter().map(Chunk::to_bytes).collect());
        // Two writes at once to one socket could complete in the wrong order.
        assert!(earlier.is_none(), "{conn:?} was given a second write");
        Sent::Taken
    }

    /// Any of the writes completes: its bytes have reached the client, or the first few of them.
    fn complete(&mut self, random: &mut Random, sockets: &mut Sockets) -> Option<(ConnId, usize)> {
        let conn = *self.0.keys().nth(random.below(CLIENTS))?;
        let bytes = self.0.remove(&conn)?.concat();
        let written = (1 + random.below(2 * bytes.len())).min(bytes.len());
        if let Some(received) = sockets.get_mut(&conn) {
            received.extend_from_slice(&bytes[..written]);
        }
        Some((conn, written))
    }
}

/// Plays the scenario, checks what each client received, and tells what was counted.
pub fn run() -> String {
    let mut config = support::config();
    // Room for about one row: whatever else a slow client is owed is withheld, and read again when it drains.
    config.max_outbox_bytes = 500;
    let mut core = Core::new(config, Waker::noop().clone());
    let (mut ring, mut sockets, mut random) = (Ring::default(), Sockets::new(), Random(1));
    let mut reads = Vec::<(EntityKey, Reply, String)>::new();
    let (mut versions, mut turn, mut completions) = ([0; KEYS], 0, 0);
    for client in 0..CLIENTS {
        let conn = core.open(Timestamp::START).expect("fewer than the limit");
        let subscriptions = keys_of(client).map(|id| support::subscribe(&id.to_string()));
        let bytes = &mut [support::UPGRADE, &subscriptions.concat()].concat();
        core.handle(Timestamp::START, Input::Received { conn, bytes });
        sockets.insert(conn, Vec::new());
    }
    while turn <= CHANGES || !reads.is_empty() || !ring.0.is_empty() {
        turn += 1;
        assert!(turn < 10 * CHANGES, "it doesn't come to rest");
        let now = Timestamp::START + Duration::from_micros(100 * turn);
        // 1. Feed what happened.
        if turn <= CHANGES {
            let id = random.below(KEYS);
            versions[id] = turn;
            let _ = core.notify(now, &support::key(&id.to_string()));
        }
        for _ in 0..random.below(8) {
            if let Some((conn, bytes)) = ring.complete(&mut random, &mut sockets) {
                completions += 1;
                core.handle(now, Input::Written { conn, bytes });
            }
        }
        if turn == CHANGES / 2 {
            // Some sockets fail. The ring still holds writes for them, which complete when they like.
            for &conn in sockets.keys().take(5) {
                core.handle(now, Input::Closed { conn });
            }
        }
        if !reads.is_empty() && random.below(3) == 0 {
            let (_, reply, row) = reads.swap_remove(random.below(reads.len()));
            reply.send(now, Ok(Rows::one(row))).expect("a good row");
        }
        core.handle_timeout(now);
        // 2. Do what it says.
        while let Some(output) = core.poll_output(now) {
            match output {
                CoreOutput::Read(request, reply) => {
                    assert!(reads.iter().all(|(key, ..)| *key != request.key), "two reads at once");
                    // The slowest store there is: it answers late, and with what was there when the read began.
                    let id: usize = request.key.id().parse().expect("a number");
                    let (version, width) = (versions[id], random.below(400));
                    reads.push((request.key, reply, format!("{id} {version:0width$}")));
                }
                CoreOutput::Shard(Output::Broadcast(broadcast)) => {
                    broadcast.for_each(|conn, chunk| ring.submit(conn, &[chunk]));
                }
                CoreOutput::Shard(Output::Flush(flush)) => flush.write(|conn, chunks| ring.submit(conn, chunks)),
                // Nobody is paused here, as each says little.
                CoreOutput::Shard(Output::Resume(_)) => {}
                CoreOutput::Shard(Output::Shutdown(conn)) => panic!("{conn:?} is sent away"),
                CoreOutput::Shard(Output::Close(conn)) => drop(sockets.remove(&conn)),
            }
        }
        // 3. Sleep: nobody does between turns. A real driver waits for completions, at most until poll_timeout.
    }
    for (conn, received) in &sockets {
        check(conn.index(), received, &versions);
    }
    let (reads, shard) = (core.node().counters().reads.get(), core.shard().counters().snapshot());
    assert!(
        shard.stale_inputs > 0,
        "no write completed after the end of its connection"
    );
    format!(
        "{CHANGES} changes, {reads} reads, {} deliveries ({} conflated, {} withheld), {completions} completions",
        shard.deliveries, shard.conflated, shard.dirty_marks
    )
}

#[allow(dead_code, reason = "tests use run alone")]
fn main() {
    println!("io_uring: {}", run());
}
