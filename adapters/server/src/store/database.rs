//! The SQLite file: opening it, telling whether it is ours, and the statements on it.

#[cfg(test)]
mod tests;

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use entity_sync_core::EntityKey;
use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags, OptionalExtension, TransactionBehavior};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;

use super::{Location, StoreError};

/// The format of the file that this release writes and reads, kept in `PRAGMA user_version`.
pub const FORMAT: i32 = 1;

/// How long a statement waits for another process that has the file locked.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// `PRAGMA application_id`: the letters "EnSy". It tells our files from other SQLite databases.
const APPLICATION_ID: i32 = 0x456E_5379;

/// Not `WITHOUT ROWID`, although entities are found by their key only: bodies within the tree of keys leave it few keys per
/// page, which made writes two to seven times as slow, and reads of 1 KB bodies six times.
const SCHEMA: &str = "
    CREATE TABLE entities (
        entity TEXT NOT NULL,
        id TEXT NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (entity, id)
    ) STRICT";

/// A write-ahead log that grew beyond this while readers kept it from starting anew is cut back to it.
const WAL_LIMIT_BYTES: i64 = 64 << 20;

/// Opens the connection that writes, and creates the file or table where there is none.
pub(super) fn open(location: &Location) -> Result<Connection, StoreError> {
    match location {
        Location::Memory => {
            let mut connection = Connection::open_in_memory()?;
            create(&mut connection)?;
            Ok(connection)
        }
        Location::File(path) => {
            let path = absolute(path)?;
            open_file(&path).map_err(|error| error.at(path))
        }
    }
}

/// Who may read and write a file that is created. SQLite gives the files beside it the same.
const MODE: u32 = 0o600;

fn open_file(path: &Path) -> Result<Connection, OpenError> {
    // Never one that exists: closing it would give up the locks that this process may hold on it.
    let created = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path);
    // What it is that can't be created, SQLite says as well.
    let exists = created.is_err_and(|error| error.kind() == ErrorKind::AlreadyExists);
    if exists {
        check_writable(path)?;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Looked at before anything is changed: somebody else's file must stay as it is.
    let owner = owner(&connection)?;
    match owner {
        Owner::Us | Owner::Nobody => {}
        Owner::Newer(format) => return Err(OpenError::Newer(format)),
        Owner::Other => return Err(OpenError::NotOurs),
    }
    // SQLite falls back to reading only, silently.
    if connection.is_readonly(MAIN_DB)? {
        return Err(OpenError::ReadOnly);
    }
    if let Owner::Nobody = owner {
        create(&mut connection)?;
    }
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        return Err(OpenError::NoWal);
    }
    // FULL syncs the log at each commit, so that an answered write survives the loss of power.
    connection.pragma_update(None, "synchronous", "full")?;
    // This pragma answers with the value it took.
    connection.pragma_update_and_check(None, "journal_size_limit", WAL_LIMIT_BYTES, |_| Ok(()))?;
    probe(&connection)?;
    Ok(connection)
}

/// Before SQLite looks: what it creates beside a file that is read-only is read-only too, and would stay so after the file
/// was made writable.
fn check_writable(path: &Path) -> Result<(), OpenError> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        // One that is not there yet is none to worry about, and anything else SQLite meets itself.
        let may_write = accessat(CWD, &name, Access::WRITE_OK, AtFlags::EACCESS);
        if let Err(Errno::ACCESS | Errno::ROFS | Errno::PERM) = may_write {
            return Err(OpenError::ReadOnlyFile(name.into()));
        }
    }
    Ok(())
}

enum Owner {
    Us,
    Nobody,
    Newer(i32),
    Other,
}

fn owner(connection: &Connection) -> rusqlite::Result<Owner> {
    // One statement, so that it sees one state of a file that another process is just creating.
    let sql = "SELECT (SELECT application_id FROM pragma_application_id),
                      (SELECT user_version FROM pragma_user_version),
                      (SELECT count(*) FROM sqlite_schema)";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let (application, format, tables): (i32, i32, i64) = connection.query_row(sql, [], read)?;
    Ok(match (application, format) {
        (APPLICATION_ID, FORMAT) => Owner::Us,
        (APPLICATION_ID, newer) if newer > FORMAT => Owner::Newer(newer),
        (0, 0) if tables == 0 => Owner::Nobody,
        _ => Owner::Other,
    })
}

fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been faster.
    if let Owner::Nobody = owner(&transaction)? {
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", FORMAT)?;
        transaction.execute_batch(SCHEMA)?;
    }
    transaction.commit()
}

/// The path with its directory resolved. It must be absolute: SQLite gives names such as `:memory:` or `file:x?mode=ro` a
/// meaning of their own, and an empty one a temporary file.
fn absolute(path: &Path) -> Result<PathBuf, StoreError> {
    let not_a_file = || StoreError::NotAFile { path: path.to_owned() };
    let name = path.file_name().ok_or_else(not_a_file)?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let absolute = match directory.canonicalize() {
        Ok(directory) => directory.join(name),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let directory = directory.to_owned();
            return Err(StoreError::DirectoryMissing { directory });
        }
        Err(error) => {
            return Err(StoreError::CannotOpen {
                path: path.to_owned(),
                reason: error.to_string(),
            });
        }
    };
    if absolute.is_dir() {
        return Err(not_a_file());
    }
    Ok(absolute)
}

/// An error of opening that doesn't know yet which file it is about.
enum OpenError {
    Newer(i32),
    NotOurs,
    ReadOnly,
    ReadOnlyFile(PathBuf),
    NoWal,
    Sqlite(rusqlite::Error),
}

impl OpenError {
    fn at(self, path: PathBuf) -> StoreError {
        let error = match self {
            Self::Newer(format) => return StoreError::Newer { path, format },
            Self::NotOurs => return StoreError::NotOurs { path },
            Self::ReadOnly => return StoreError::ReadOnly,
            Self::ReadOnlyFile(path) => {
                let reason = "it is read-only".to_owned();
                return StoreError::CannotOpen { path, reason };
            }
            Self::NoWal => {
                let reason = "its file system can't hold a write-ahead log".to_owned();
                return StoreError::CannotOpen { path, reason };
            }
            Self::Sqlite(error) => error,
        };
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => StoreError::NotADatabase { path },
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => StoreError::CannotOpen {
                path,
                reason: error.to_string(),
            },
            _ => error.into(),
        }
    }
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// A few connections that only read: as many threads read at once, beside the writer.
pub(super) struct Readers {
    idle: Receiver<Connection>,
    back: Sender<Connection>,
}

impl Readers {
    pub(super) fn open(path: &Path, count: usize) -> Result<Self, StoreError> {
        let path = absolute(path)?;
        let (back, idle) = bounded(count);
        for _ in 0..count {
            let connection = Self::connect(&path).map_err(|error| error.at(path.clone()))?;
            // It fits: the channel has room for all.
            let _ = back.try_send(connection);
        }
        Ok(Self { idle, back })
    }

    fn connect(path: &Path) -> Result<Connection, OpenError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(connection)
    }

    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Calls `read` with a connection, after waiting for one if need be.
    pub(super) fn with<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        // Both ends live as long as `self`, so neither call can fail.
        let connection = self.idle.recv().map_err(|_| StoreError::Closed)?;
        let result = read(&connection);
        let _ = self.back.try_send(connection);
        Ok(result?)
    }
}

/// Reads one body.
pub(super) fn get(connection: &Connection, key: &EntityKey) -> rusqlite::Result<Option<Vec<u8>>> {
    connection
        .prepare_cached("SELECT body FROM entities WHERE entity = ?1 AND id = ?2")?
        .query_row([key.entity(), key.id()], |row| Ok(row.get_ref(0)?.as_bytes()?.to_vec()))
        .optional()
}

/// Reads several bodies in one transaction, until they have `most_bytes`: the first one at least.
pub(super) fn get_many<'a>(
    connection: &Connection,
    keys: impl ExactSizeIterator<Item = &'a EntityKey>,
    most_bytes: usize,
) -> rusqlite::Result<Vec<rusqlite::Result<Option<Vec<u8>>>>> {
    let mut bodies = Vec::with_capacity(keys.len());
    // Reads by itself in a transaction if there is but one.
    let transaction = if keys.len() > 1 {
        Some(Reading::begin(connection)?)
    } else {
        None
    };
    let mut bytes = 0;
    for key in keys {
        let body = get(connection, key);
        bytes += body.as_ref().map_or(0, |body| body.as_ref().map_or(0, Vec::len));
        bodies.push(body);
        if bytes >= most_bytes {
            break;
        }
    }
    drop(transaction);
    Ok(bodies)
}

/// A transaction that only reads, from its first statement until it is dropped. rusqlite's own would prepare its statements
/// anew each time.
struct Reading<'a>(&'a Connection);

impl<'a> Reading<'a> {
    fn begin(connection: &'a Connection) -> rusqlite::Result<Self> {
        connection.prepare_cached("BEGIN")?.execute([])?;
        Ok(Self(connection))
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        // After some errors SQLite has ended it by itself.
        if !self.0.is_autocommit() {
            let ended = self.0.prepare_cached("COMMIT").and_then(|mut it| it.execute([]));
            // It read only, so there is nothing to undo but the transaction itself.
            if ended.is_err() && !self.0.is_autocommit() {
                let _ = self.0.execute_batch("ROLLBACK");
            }
        }
    }
}

/// A number that changes whenever another connection has committed something, and not by what this one does.
pub(super) fn version_of_others(connection: &Connection) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("PRAGMA data_version")?
        .query_row([], |row| row.get(0))
}

/// Reads as little as shows that reading works.
pub(super) fn probe(connection: &Connection) -> rusqlite::Result<()> {
    connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM entities)")?
        .query_row([], |_| Ok(()))
}

/// Stores `body` and says whether the key was there before.
pub(super) fn put(connection: &Connection, key: &EntityKey, body: &str) -> rusqlite::Result<bool> {
    let values = [key.entity(), key.id(), body];
    let replaced = connection
        .prepare_cached("UPDATE entities SET body = ?3 WHERE entity = ?1 AND id = ?2")?
        .execute(values)?;
    if replaced == 0 {
        connection
            .prepare_cached("INSERT INTO entities (entity, id, body) VALUES (?1, ?2, ?3)")?
            .execute(values)?;
    }
    Ok(replaced > 0)
}

/// Deletes the key and says whether it was there.
pub(super) fn delete(connection: &Connection, key: &EntityKey) -> rusqlite::Result<bool> {
    let deleted = connection
        .prepare_cached("DELETE FROM entities WHERE entity = ?1 AND id = ?2")?
        .execute([key.entity(), key.id()])?;
    Ok(deleted > 0)
}

/// How a checkpoint treats readers that are in its way.
pub(super) enum Checkpoint {
    /// Moves what it can without waiting.
    Passive,
    /// Waits for readers, so that the log starts anew.
    Restart,
    /// Waits for readers, and leaves an empty log.
    Truncate,
}

/// Moves what is in the log into the file.
pub(super) fn checkpoint(connection: &Connection, kind: Checkpoint) -> rusqlite::Result<()> {
    let sql = match kind {
        Checkpoint::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
        Checkpoint::Restart => "PRAGMA wal_checkpoint(RESTART)",
        Checkpoint::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
    };
    // Its row says how far it came. What readers kept in the log is as safe there.
    connection.query_row(sql, [], |_| Ok(()))
}
