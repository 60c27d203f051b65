//! The one thread that writes. It commits together what waits together, since a commit costs a sync of the disk and a
//! write costs next to nothing.

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use crossbeam_channel::Receiver;
use entity_sync_core::EntityKey;
use parking_lot::Mutex;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::OwnedSemaphorePermit;

use super::StoreError;
use super::answers::{Answers, Reply};
use super::database::{self, Checkpoint};
use super::queue::{Held, Queues};
use super::resolver;

/// The most writes of one transaction.
pub(super) const BATCH_WRITES: usize = 1024;

/// A transaction that holds this many bytes takes no further write.
pub(super) const BATCH_BYTES: usize = 8 << 20;

/// Reads of more bytes than this are left to the threads that read, as they would hold up the next batch.
const ANSWER_BYTES: usize = 1 << 20;

/// From this many pages in the log on, they are moved into the file: SQLite's own default.
const CHECKPOINT_PAGES: i32 = 1000;

/// From this many pages on, the move waits for readers, as the log would otherwise grow as long as somebody reads.
const RESTART_PAGES: i32 = 16 * 1024;

/// One change, and who waits for it.
pub(super) struct Write {
    pub(super) key: EntityKey,
    /// `None` deletes.
    pub(super) body: Option<String>,
    /// Told whether the key was there before.
    pub(super) reply: Reply,
    /// Its share of what may wait, given back when the write is answered.
    pub(super) _permit: OwnedSemaphorePermit,
}

pub(super) struct Writer<F> {
    connection: Arc<Mutex<Connection>>,
    on_commit: F,
    writes: Receiver<Write>,
    queues: Arc<Queues>,
    /// What [`database::version_of_others`] was.
    version_of_others: Cell<Option<i64>>,
    /// The length of the log, which SQLite tells with each commit.
    log_pages: Arc<AtomicI32>,
    restart_at: i32,
}

impl<F: Fn(&[EntityKey])> Writer<F> {
    pub(super) fn new(
        connection: Arc<Mutex<Connection>>,
        on_commit: F,
        writes: Receiver<Write>,
        queues: Arc<Queues>,
    ) -> Result<Self, StoreError> {
        let log_pages = Arc::new(AtomicI32::new(0));
        let heard = Arc::clone(&log_pages);
        // It replaces SQLite's automatic checkpoint, for which the callers of the commit would have to wait.
        connection.lock().wal_hook(Some(move |_: &mut _, pages| {
            heard.store(pages, Ordering::Relaxed);
            Ok(())
        }))?;
        Ok(Self {
            connection,
            on_commit,
            writes,
            queues,
            version_of_others: Cell::new(None),
            log_pages,
            restart_at: RESTART_PAGES,
        })
    }

    /// Works until the last sender is gone and everything it sent is done.
    pub(super) fn run(mut self) {
        let mut batch = Vec::new();
        while let Ok(first) = self.writes.recv() {
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(write) = next {
                bytes += write.body.as_ref().map_or(0, String::len);
                batch.push(write);
                let full = batch.len() >= BATCH_WRITES || bytes >= BATCH_BYTES;
                next = if full { None } else { self.writes.try_recv().ok() };
            }
            self.commit_tell_answer(&mut batch);
            self.checkpoint();
        }
    }

    /// In this order: nobody is told of a change that could still be lost, and who is answered knows that it was told.
    fn commit_tell_answer(&mut self, batch: &mut Vec<Write>) {
        let mut results = Vec::with_capacity(batch.len());
        // Unlocked again before `on_commit`, which may read.
        commit(&mut self.connection.lock(), batch, &mut results);
        let changed: Vec<EntityKey> = batch
            .iter()
            .zip(&results)
            .filter(|(write, result)| match result {
                Ok(existed) => write.body.is_some() || *existed,
                Err(_) => false,
            })
            .map(|(write, _)| write.key.clone())
            .collect();
        // What is read because of it is answered below, or by a thread that is woken once for all.
        let reads = self.queues.hold();
        let told = changed.is_empty() || catch_unwind(AssertUnwindSafe(|| (self.on_commit)(&changed))).is_ok();
        let mut written = HashMap::new();
        // After an error it is for the file to say what is in it.
        let is_known = !reads.is_empty() && results.iter().all(Result::is_ok);
        let mut answers = Vec::with_capacity(batch.len());
        for (write, result) in batch.drain(..).zip(results) {
            let answer = match result {
                Ok(_) if !told => Err(StoreError::NotTold),
                result => result,
            };
            answers.push((write.reply, answer));
            if is_known {
                written.insert(write.key, write.body);
            }
        }
        Answers::send(answers);
        if is_known {
            self.answer_reads(&reads, &written);
        }
    }

    /// What was just written is what a read would find, unless somebody else has written since; then the file is read.
    fn answer_reads(&self, reads: &Held, written: &HashMap<EntityKey, Option<String>>) {
        let bytes: usize = written.values().flatten().map(String::len).sum();
        if bytes > ANSWER_BYTES {
            return;
        }
        let mut is_ours = true;
        // A key that was written twice is read twice, and the second time is asked for once the first is answered.
        for _ in 0..2 {
            let asked = reads.take(|key| written.contains_key(key));
            if asked.is_empty() {
                return;
            }
            let bodies: Vec<_> = {
                let connection = self.connection.lock();
                // Only after the reads were taken: one that is asked for later may be because of what somebody else has written.
                is_ours &= self.is_alone(&connection);
                let body = |key: &EntityKey| match written.get(key) {
                    Some(body) if is_ours => Ok(body.clone().map(String::into_bytes)),
                    _ => database::get(&connection, key).map_err(StoreError::from),
                };
                asked.iter().map(|((key, _), _)| body(key)).collect()
            };
            resolver::answer_all(asked.into_iter().zip(bodies).map(|((_, reply), body)| (reply, body)));
        }
    }

    /// Whether nobody else has written since this was last asked.
    fn is_alone(&self, connection: &Connection) -> bool {
        let version = database::version_of_others(connection).ok();
        let before = self.version_of_others.replace(version);
        version.is_some() && version == before
    }

    fn checkpoint(&mut self) {
        let pages = self.log_pages.load(Ordering::Relaxed);
        if pages < CHECKPOINT_PAGES {
            self.restart_at = RESTART_PAGES;
            return;
        }
        let kind = if pages < self.restart_at {
            Checkpoint::Passive
        } else {
            // A reader that stays in the way costs one wait, not one with each batch.
            self.restart_at = pages.saturating_add(RESTART_PAGES);
            Checkpoint::Restart
        };
        // A failure leaves everything in the log, from where the next commit tries again.
        let _ = database::checkpoint(&self.connection.lock(), kind);
    }
}

/// Writes the batch and appends one result for each write: whether its key was there before.
///
/// A transaction that fails as a whole is tried again in halves, so that a write that can't be done costs only itself.
fn commit(connection: &mut Connection, batch: &[Write], results: &mut Vec<Result<bool, StoreError>>) {
    match commit_together(connection, batch) {
        Ok(all) => results.extend(all),
        Err(Failure::Inside(_)) if batch.len() > 1 => {
            let (first, second) = batch.split_at(batch.len() / 2);
            commit(connection, first, results);
            commit(connection, second, results);
        }
        Err(Failure::Begin(error) | Failure::Inside(error)) => {
            let error = StoreError::from(error);
            results.extend(batch.iter().map(|_| Err(error.clone())));
        }
    }
}

enum Failure {
    /// The transaction couldn't begin, whatever was to be written.
    Begin(rusqlite::Error),
    /// What was written made it fail, perhaps.
    Inside(rusqlite::Error),
}

fn commit_together(connection: &mut Connection, batch: &[Write]) -> Result<Vec<Result<bool, StoreError>>, Failure> {
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(Failure::Begin)?;
    let mut results = Vec::with_capacity(batch.len());
    for write in batch {
        let result = match &write.body {
            Some(body) => database::put(&transaction, &write.key, body),
            None => database::delete(&transaction, &write.key),
        };
        match result {
            // After some errors SQLite has rolled everything back; after others only that statement.
            Err(error) if transaction.is_autocommit() => return Err(Failure::Inside(error)),
            result => results.push(result.map_err(StoreError::from)),
        }
    }
    transaction.commit().map_err(Failure::Inside)?;
    Ok(results)
}
