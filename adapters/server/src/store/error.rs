//! [`StoreError`]: what can go wrong with the store, and what to do about it.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use rusqlite::ErrorCode;

/// Why the store can't be opened, or couldn't do what it was asked.
///
/// Its `Display` is [`message`](Self::message) followed by [`hint`](Self::hint).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// The directory for the file doesn't exist.
    DirectoryMissing {
        /// The directory that was looked for.
        directory: PathBuf,
    },
    /// The path names a directory, or nothing.
    NotAFile {
        /// As it was given.
        path: PathBuf,
    },
    /// The file is something else than a SQLite database.
    NotADatabase {
        /// The file.
        path: PathBuf,
    },
    /// The file is another application's SQLite database. It was not changed.
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a newer release. It was not changed.
    Newer {
        /// The file.
        path: PathBuf,
        /// The format that it has; this release reads [`FORMAT`](super::FORMAT).
        format: i32,
    },
    /// The system doesn't let us open the file.
    CannotOpen {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The file can be read but not written.
    ReadOnly,
    /// The disk is full. Nothing was written; reads go on.
    Full,
    /// Another process kept the file locked for longer than [`BUSY_TIMEOUT`](super::BUSY_TIMEOUT).
    Busy,
    /// SQLite found the file damaged.
    Damaged {
        /// What SQLite says.
        reason: String,
    },
    /// The body is larger than SQLite can hold.
    TooBig,
    /// The change is stored, but `on_commit` panicked, so subscribers may not have been told.
    NotTold,
    /// The store was closed before the write began. Nothing was written.
    Closed,
    /// The thread that writes is gone. A write that was under way may or may not be stored.
    WriterGone,
    /// Anything else, such as a disk that fails. A write that was under way may or may not be stored.
    Other {
        /// What SQLite or the system says.
        reason: String,
    },
}

impl StoreError {
    /// What happened.
    pub fn message(&self) -> Cow<'static, str> {
        match self {
            Self::DirectoryMissing { directory } => {
                format!("the directory {} does not exist", directory.display()).into()
            }
            Self::NotAFile { path } => format!("{:?} is not the name of a file", path.display().to_string()).into(),
            Self::NotADatabase { path } => format!("{} is not a SQLite database", path.display()).into(),
            Self::NotOurs { path } => format!("{} belongs to another application", path.display()).into(),
            Self::Newer { path, format } => format!(
                "{} has format {format}, and this release knows up to format {}",
                path.display(),
                super::FORMAT
            )
            .into(),
            Self::CannotOpen { path, reason } => format!("{} can't be opened ({reason})", path.display()).into(),
            Self::ReadOnly => "the data file can't be written".into(),
            Self::Full => "the disk that holds the data file is full".into(),
            Self::Busy => "another process keeps the data file locked".into(),
            Self::Damaged { reason } => format!("the data file is damaged ({reason})").into(),
            Self::TooBig => "the body is larger than the store can hold".into(),
            Self::NotTold => "the change is stored, but its subscribers may not have been told".into(),
            Self::Closed => "the store is closed, nothing was written".into(),
            Self::WriterGone => "the thread that writes is gone".into(),
            Self::Other { reason } => format!("the store failed ({reason})").into(),
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::DirectoryMissing { .. } => "create it, or choose another place for the data file",
            Self::NotAFile { .. } => "name a file, such as ./entity-sync.db; it is created if it is missing",
            Self::NotADatabase { .. } | Self::NotOurs { .. } => {
                "it was left as it is; choose another file, which is created if it is missing"
            }
            Self::Newer { .. } => "it was left as it is; run the release that wrote it, or a later one",
            Self::CannotOpen { .. } => {
                "this user needs read and write permission on the file and on its directory, where \
                 SQLite keeps a -wal and a -shm file beside it, and the disk must not be mounted read-only"
            }
            Self::ReadOnly => {
                "give this user write permission on the file and its directory, and check that the \
                 disk is not mounted read-only"
            }
            Self::Full => "free some space, then write again; reads go on meanwhile",
            Self::Busy => "end the other process's transaction, then write again",
            Self::Damaged { .. } => "stop the server, and restore the file from a backup",
            Self::TooBig => "split the entity into smaller ones",
            Self::NotTold => "notify of the key, or write it again",
            Self::Closed => "the server is stopping; write again once it is back",
            Self::WriterGone => "restart the server, then read the entity to see what is stored",
            Self::Other { .. } => "check the disk and the system's log, then read the entity to see what is stored",
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.message(), self.hint())
    }
}

impl std::error::Error for StoreError {}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(ErrorCode::ReadOnly) => Self::ReadOnly,
            Some(ErrorCode::TooBig) => Self::TooBig,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged {
                reason: error.to_string(),
            },
            _ => Self::Other {
                reason: error.to_string(),
            },
        }
    }
}
