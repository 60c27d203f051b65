//! A driver in the manner of TLS, without the cryptography: what it takes becomes one record, and it takes nothing more
//! until that record has left. Time is counted in turns and chance comes from a seed, so that every run is the same.
//!
//! | core says | this driver | with a TLS library |
//! | --- | --- | --- |
//! | `Broadcast`, `Flush` | at most one record of the bytes, see below | `writer().write_vectored()`, then `write_tls` |
//! | `Shutdown` | the client has it once its last record has left | `close_notify` behind that record, and `shutdown(2)` |
//! | `Close` | hangs up | drop the session and its socket |
//!
//! - [`Sent::All`]: the bytes are in the record. They needn't have left: the core is done with them, not the client.
//! - [`Sent::Partial`]: the record was too short for them.
//! - [`Sent::Busy`]: a record is outstanding, or the library has one of its own to send first.
//! - [`Input::Writable`]: the record has left. After `Sent::All` nobody waits for that, and it does no harm.
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
    Chunk, ConnId, Core, CoreOutput, DrainOptions, EntityKey, Input, Output, Reply, Rows, Sent, Timestamp,
};
use support::{KEYS, Random, check, keys_of};

const CLIENTS: usize = 50;
const CHANGES: u64 = 2_000;
/// The most plaintext of one record.
const RECORD: usize = 256;
/// A close frame of the server with code 1001.
const GOING_AWAY: &[u8] = b"\x88\x02\x03\xe9";

#[derive(Default)]
struct Session {
    /// The plaintext of the record that is being written; empty if it is the library's own.
    record: Option<Vec<u8>>,
    /// Our side is closed, behind the record.
    is_shut: bool,
    /// The plaintext that reached the client.
    received: Vec<u8>,
}

impl Session {
    fn write(&mut self, chunks: &[Chunk<'_>], random: &mut Random) -> Sent {
        assert!(!self.is_shut, "a write after the end");
        if self.record.is_none() && random.below(8) == 0 {
            // A change of keys, say. Whoever answers Busy has to be Writable later.
            self.record = Some(Vec::new());
        }
        if self.record.is_some() {
            return Sent::Busy;
        }
        let len = chunks.iter().map(|chunk| chunk.as_slice().len()).sum::<usize>();
        let bytes = chunks.iter().flat_map(Chunk::as_slice).take(RECORD);
        self.record = Some(bytes.copied().collect());
        if len > RECORD { Sent::Partial(RECORD) } else { Sent::All }
    }
}

/// Plays the scenario, checks what each client received, and tells what was counted.
pub fn run() -> String {
    let mut config = support::config();
    // Room for about one row: whatever else a slow client is owed is withheld, and read again when it drains.
    config.max_outbox_bytes = 500;
    let mut core = Core::new(config, Waker::noop().clone());
    let (mut sessions, mut random) = (BTreeMap::<ConnId, Session>::new(), Random(1));
    let mut reads = Vec::<(EntityKey, Reply, String)>::new();
    let (mut versions, mut turn, mut records) = ([0; KEYS], 0, 0);
    for client in 0..CLIENTS {
        let conn = core.open(Timestamp::START).expect("fewer than the limit");
        let subscriptions = keys_of(client).map(|id| support::subscribe(&id.to_string()));
        let bytes = &mut [support::UPGRADE, &subscriptions.concat()].concat();
        core.handle(Timestamp::START, Input::Received { conn, bytes });
        sessions.insert(conn, Session::default());
    }
    while !sessions.is_empty() {
        turn += 1;
        assert!(turn < 10 * CHANGES, "it doesn't come to an end");
        let now = Timestamp::START + Duration::from_micros(100 * turn);
        // 1. Feed what happened.
        if turn <= CHANGES {
            let id = random.below(KEYS);
            versions[id] = turn;
            let _ = core.notify(now, &support::key(&id.to_string()));
        } else if reads.is_empty() && sessions.values().all(|it| it.record.is_none()) {
            // Nothing is on its way any more. Saying it again does no harm.
            let mut options = DrainOptions::default();
            options.code = 1001;
            options.retry_within = Duration::ZERO;
            core.drain(now, options);
        }
        for (&conn, session) in &mut sessions {
            if random.below(10) > 0 {
                continue;
            }
            if let Some(record) = session.record.take() {
                records += 1;
                session.received.extend(record);
                core.handle(now, Input::Writable { conn });
            } else if session.is_shut {
                // The client has seen the end and hangs up.
                core.handle(now, Input::Eof { conn });
            }
        }
        if !reads.is_empty() && random.below(3) == 0 {
            let (_, reply, row) = reads.swap_remove(random.below(reads.len()));
            reply.send(now, Ok(Rows::one(row))).expect("a good row");
        }
        core.handle_timeout(now);
        // 2. Do what it says.
        while let Some(output) = core.poll_output(now) {
            let mut write = |conn, chunks: &[Chunk<'_>]| match sessions.get_mut(&conn) {
                Some(session) => session.write(chunks, &mut random),
                None => Sent::Closed,
            };
            match output {
                CoreOutput::Read(request, reply) => {
                    assert!(reads.iter().all(|(key, ..)| *key != request.key), "two reads at once");
                    // The slowest store there is: it answers late, and with what was there when the read began.
                    let id: usize = request.key.id().parse().expect("a number");
                    let (version, width) = (versions[id], random.below(400));
                    reads.push((request.key, reply, format!("{id} {version:0width$}")));
                }
                CoreOutput::Shard(Output::Broadcast(broadcast)) => {
                    broadcast.for_each(|conn, chunk| write(conn, &[chunk]));
                }
                CoreOutput::Shard(Output::Flush(flush)) => flush.write(write),
                // Nobody is paused here, as each says little.
                CoreOutput::Shard(Output::Resume(_)) => {}
                CoreOutput::Shard(Output::Shutdown(conn)) => {
                    sessions.get_mut(&conn).expect("an open connection").is_shut = true;
                }
                CoreOutput::Shard(Output::Close(conn)) => {
                    let session = sessions.remove(&conn).expect("the one Close of its connection");
                    let rows = session
                        .received
                        .strip_suffix(GOING_AWAY)
                        .expect("a close frame at the end");
                    check(conn.index(), rows, &versions);
                }
            }
        }
        // 3. Sleep: nobody does between turns. A real driver waits for its sockets, at most until poll_timeout.
    }
    let (reads, shard) = (core.node().counters().reads.get(), core.shard().counters().snapshot());
    format!(
        "{CHANGES} changes, {reads} reads, {} deliveries ({} conflated, {} withheld), {records} records",
        shard.deliveries, shard.conflated, shard.dirty_marks
    )
}

#[allow(dead_code, reason = "tests use run alone")]
fn main() {
    println!("tls: {}", run());
}
