//! [`StoreResolver`]: what reads a store for a server.

use std::fmt;
use std::io;
use std::sync::{Arc, Weak};

use entity_sync_core::{ReadError, Request, Rows};
use entity_sync_mio::{Reply, Resolver};

use super::queue::{Asked, Queue};
use super::{Store, StoreError};

/// Threads that read: a disk answers several reads sooner than one after the other.
const THREADS: usize = 4;

/// A transaction that has read this many bytes reads no further, since they are all held until it ends.
const BATCH_BYTES: usize = 4 << 20;

/// Reads a [`Store`] for a server.
///
/// To begin a read costs SQLite more than the read itself, and to wake a thread costs more than both. Reads that wait together
/// are therefore done in one transaction, which begins after the last of them was asked for. And those that follow from a
/// write need none, as long as no other process writes to the file: what was just written is what would be read.
///
/// Each server needs one of its own: a read that is asked for while the same one waits takes its place, as its server has then
/// given that one up. Two servers on one resolver would take each other's reads. Several resolvers of one store are as good
/// as one.
///
/// It does not keep the store, whose `on_commit` will usually lead back to the server and so to this: once the store is
/// dropped, reads fail. It has threads of its own, which end when it is dropped; reads that wait then fail too.
pub struct StoreResolver(Arc<Queue>);

impl StoreResolver {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system gives none. Those that were started end again.
    pub fn new(store: &Arc<Store>) -> io::Result<Self> {
        let resolver = Self(Arc::new(Queue::new(THREADS)));
        let health = store.health.clone();
        for _ in 0..THREADS {
            let (store, queue) = (Arc::downgrade(store), resolver.0.clone());
            entity_sync_runtime::spawn_restarting("store-reader", &health, move || work(&store, &queue))?;
        }
        store.queues.add(&resolver.0);
        Ok(resolver)
    }
}

impl Resolver for StoreResolver {
    fn resolve(&self, request: Request, reply: Reply) {
        self.0.push((request.key, request.audience), reply);
    }
}

impl Drop for StoreResolver {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn work(store: &Weak<Store>, queue: &Queue) {
    while let Some(asked) = queue.next() {
        // Replies that are dropped fail their reads.
        if let Some(store) = store.upgrade() {
            read(&store, asked);
        }
    }
}

fn read(store: &Store, mut asked: Asked) {
    while !asked.is_empty() {
        let bodies = store.get_many(asked.iter().map(|((key, _), _)| key), BATCH_BYTES);
        // Only now that the transaction is over: core may take its time, and come back for further reads.
        let rest = asked.split_off(bodies.len().min(asked.len()));
        answer_all(bodies.into_iter().zip(asked).map(|(body, (_, reply))| (reply, body)));
        asked = rest;
    }
}

/// Gives reads what the store has.
pub(super) fn answer_all(answers: impl Iterator<Item = (Reply, Result<Option<Vec<u8>>, StoreError>)>) {
    Reply::answer_all(answers.map(|(reply, body)| {
        let rows = match body {
            // The API lets in nothing that can't be sent, and what another program put there is tried again later.
            Ok(Some(row)) => Ok(Rows::one(row)),
            Ok(None) => Err(ReadError::NotFound),
            Err(_) => Err(ReadError::Failed),
        };
        (reply, rows)
    }));
}

impl fmt::Debug for StoreResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreResolver").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
