//! The embedded store: entities in one SQLite file, or in memory.
//!
//! A write is answered when it is safe on disk and after `on_commit` was told of it:
//!
//! 1. [`put`](Store::put) and [`delete`](Store::delete) queue a write, after waiting while too much waits already.
//! 2. One thread takes all that waits and commits it in one transaction.
//! 3. It calls `on_commit` with the keys that changed. A read that begins from then on sees the change.
//! 4. It answers each caller.
//!
//! [`get`](Store::get) reads beside that, from any number of threads, and [`StoreResolver`] reads for a server.

mod answers;
mod database;
mod error;
mod queue;
mod resolver;
#[cfg(test)]
mod tests;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, TrySendError, bounded};
use entity_sync_core::EntityKey;
use entity_sync_mio::{Health, Refused};
use parking_lot::{Mutex, RwLock};
use rusqlite::Connection;
use tokio::sync::{Semaphore, oneshot};

use database::{Checkpoint, Readers};
use queue::Queues;
use writer::{Write, Writer};

pub use database::{BUSY_TIMEOUT, FORMAT};
pub use error::StoreError;
pub use resolver::StoreResolver;

/// How many threads can read a file at once; others wait for one of them.
const READERS: usize = 8;

/// How much may wait to be written, in KiB. Beyond it callers wait their turn.
const WAITING_KIB: usize = 64 * 1024;

/// What the smallest write counts as, in KiB, which limits the number of those that wait.
const LEAST_KIB: usize = 16;

/// Where a [`Store`] keeps its entities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// In this file, which is created if it is missing. SQLite keeps `-wal` and `-shm` files beside it.
    File(PathBuf),
    /// In memory, gone with the store.
    Memory,
}

/// What a [`put`](Store::put) did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The entity is new; otherwise its body was replaced.
    pub created: bool,
}

/// Entities by their key, each with one body of UTF-8 text, usually JSON.
pub struct Store {
    /// The connection that writes; in memory the only one there is.
    connection: Arc<Mutex<Connection>>,
    /// `None` in memory.
    readers: Option<Readers>,
    /// What servers ask for.
    queues: Arc<Queues>,
    /// `None` once closed. Its capacity is never reached, since `waiting` is spent first.
    writes: RwLock<Option<Sender<Write>>>,
    waiting: Arc<Semaphore>,
    writer: Mutex<Option<JoinHandle<()>>>,
    health: Health,
}

impl Store {
    /// Opens or creates the store at `location`.
    ///
    /// `on_commit` is called after each commit, on the thread that writes, with the key of every write and of every
    /// deletion that found something, in their order; a key that was written twice is in it twice. All writes wait for
    /// it, so it must return soon. It may [`get`](Self::get) what was written. It must not wait for a write, nor for a read
    /// through a [`StoreResolver`]: both go on only once it has returned.
    ///
    /// Other processes may use the file too, but only changes made here are told to `on_commit`.
    ///
    /// # Errors
    /// When there is no such directory, when the file is not ours, or when it can't be written.
    pub fn open(location: &Location, on_commit: impl Fn(&[EntityKey]) + Send + 'static) -> Result<Self, StoreError> {
        Self::open_with(location, &Health::default(), on_commit)
    }

    /// As [`open`](Self::open), and reports to `health` when one of its threads dies. Without the one that writes, nothing
    /// can be written any more; those that read start again.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_with(
        location: &Location,
        health: &Health,
        on_commit: impl Fn(&[EntityKey]) + Send + 'static,
    ) -> Result<Self, StoreError> {
        let connection = Arc::new(Mutex::new(database::open(location)?));
        let readers = match location {
            Location::File(path) => Some(Readers::open(path, READERS)?),
            Location::Memory => None,
        };
        let (sender, writes) = bounded(WAITING_KIB / LEAST_KIB);
        let queues = Arc::<Queues>::default();
        let writer = Writer::new(Arc::clone(&connection), on_commit, writes, Arc::clone(&queues))?;
        let thread = entity_sync_runtime::spawn("store-writer", health, move || writer.run()).map_err(|error| {
            StoreError::Other {
                reason: Refused(&error).to_string(),
            }
        })?;
        Ok(Self {
            connection,
            readers,
            queues,
            writes: RwLock::new(Some(sender)),
            waiting: Arc::new(Semaphore::new(WAITING_KIB)),
            writer: Mutex::new(Some(thread)),
            health: health.clone(),
        })
    }

    /// Stores `body` under `key`, in place of what was there.
    ///
    /// It needs no particular runtime. If the future is dropped, the write may or may not happen. Await it to its end or drop
    /// it: one that is neither holds up the answers to writes that were committed with it.
    ///
    /// # Errors
    /// [`StoreError::Full`], [`StoreError::Busy`], [`StoreError::ReadOnly`], [`StoreError::Closed`] and
    /// [`StoreError::TooBig`] say that nothing was written, [`StoreError::NotTold`] that it was. With any other error
    /// it may or may not have been.
    pub async fn put(&self, key: EntityKey, body: String) -> Result<Written, StoreError> {
        let existed = self.write(key, Some(body)).await?;
        Ok(Written { created: !existed })
    }

    /// Deletes `key`, and says whether it was there.
    ///
    /// # Errors
    /// As for [`put`](Self::put).
    pub async fn delete(&self, key: EntityKey) -> Result<bool, StoreError> {
        self.write(key, None).await
    }

    /// Reads the body under `key`, as of the last commit.
    ///
    /// It blocks: for the disk, and while more threads read than there are connections (8).
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn get(&self, key: &EntityKey) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|connection| database::get(connection, key))
    }

    /// Reads several bodies as of one moment, until they have `most_bytes`: the first one at least. Blocks as
    /// [`get`](Self::get) does.
    fn get_many<'a>(
        &self,
        keys: impl ExactSizeIterator<Item = &'a EntityKey>,
        most_bytes: usize,
    ) -> Vec<Result<Option<Vec<u8>>, StoreError>> {
        let count = keys.len();
        match self.read(|connection| database::get_many(connection, keys, most_bytes)) {
            Ok(bodies) => bodies.into_iter().map(|body| body.map_err(StoreError::from)).collect(),
            Err(error) => vec![Err(error); count],
        }
    }

    /// Reads as little as shows that the store can be read and is not closed. Blocks as [`get`](Self::get) does.
    ///
    /// # Errors
    /// When it can't be read, or is closed.
    pub fn ping(&self) -> Result<(), StoreError> {
        if self.writes.read().is_none() {
            return Err(StoreError::Closed);
        }
        self.read(database::probe)
    }

    /// Finishes the writes that were queued, refuses later ones, and leaves all in the one file. Reads go on.
    ///
    /// It blocks until then. Dropping the store does the same, but has nowhere to leave an error.
    ///
    /// # Errors
    /// When the log can't be moved into the file. Nothing is lost by it: the next open finds the log.
    pub fn close(&self) -> Result<(), StoreError> {
        self.waiting.close();
        drop(self.writes.write().take());
        // Locked until the end, so that a second caller waits too.
        let mut writer = self.writer.lock();
        let Some(thread) = writer.take() else {
            return Ok(());
        };
        // `on_commit` may have held the store's last handle, and no thread can wait for itself.
        if thread.thread().id() == std::thread::current().id() {
            return Ok(());
        }
        thread.join().map_err(|_| StoreError::WriterGone)?;
        let connection = self.connection.lock();
        Ok(database::checkpoint(&connection, Checkpoint::Truncate)?)
    }

    async fn write(&self, key: EntityKey, body: Option<String>) -> Result<bool, StoreError> {
        let kib = LEAST_KIB + body.as_ref().map_or(0, String::len) / 1024;
        let permits = u32::try_from(kib.min(WAITING_KIB)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.waiting)
            .acquire_many_owned(permits)
            .await
            .map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let write = Write {
            key,
            body,
            reply,
            _permit: permit,
        };
        match self.writes.read().as_ref() {
            Some(writes) => writes.try_send(write).map_err(|error| match error {
                TrySendError::Full(_) => StoreError::Busy,
                TrySendError::Disconnected(_) => StoreError::WriterGone,
            })?,
            None => return Err(StoreError::Closed),
        }
        let answers = answer.await.map_err(|_| StoreError::WriterGone)?;
        answers.own()
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        match &self.readers {
            Some(readers) => readers.with(read),
            None => Ok(read(&self.connection.lock())?),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Every answered write is already safe.
        let _ = self.close();
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}
