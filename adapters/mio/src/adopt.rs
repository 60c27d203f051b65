//! [`Inbox`]: connections that were accepted elsewhere and are handed to a reactor.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;

use parking_lot::Mutex;

/// How many connections wait for a reactor at most. A reactor takes them once a turn.
const MAX_WAITING: usize = 4096;

/// A connection that was accepted elsewhere, with what was already read from it.
#[non_exhaustive]
pub struct Adopted {
    /// Its socket.
    pub stream: TcpStream,
    /// What was read from it and not used: what comes first here.
    pub received: Vec<u8>,
    /// The upgrade request has been answered with 101 by whoever accepted it, so that `received` and what follows are
    /// frames. Otherwise it begins with the request.
    pub is_upgraded: bool,
    /// Who the client is, as whoever accepted it has found out: see
    /// [`Opening::secret`](entity_sync_core::Opening::secret).
    pub secret: Option<Arc<str>>,
    /// Where the client is, if that isn't what the socket says, as behind a proxy: for `max_connections_per_address`.
    pub peer: Option<IpAddr>,
    /// Each new subscription is answered with the present state: the query of a request that was answered elsewhere
    /// [asked for it](crate::asks_for_snapshots).
    pub wants_snapshots: bool,
}

impl Adopted {
    /// A connection from which nothing was read yet.
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            received: Vec::new(),
            is_upgraded: false,
            secret: None,
            peer: None,
            wants_snapshots: false,
        }
    }

    /// A connection whose upgrade request was answered, with the bytes that were read behind the request.
    pub fn upgraded(stream: TcpStream, received: Vec<u8>) -> Self {
        Self {
            received,
            is_upgraded: true,
            ..Self::new(stream)
        }
    }
}

impl fmt::Debug for Adopted {
    /// Without the secret and what was received, which may hold one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adopted")
            .field("stream", &self.stream)
            .field("is_upgraded", &self.is_upgraded)
            .finish_non_exhaustive()
    }
}

/// Why a connection was not adopted. It is given back.
#[derive(Debug)]
pub struct AdoptError {
    /// What was to be adopted.
    pub adopted: Adopted,
    /// Why not.
    pub reason: AdoptFailure,
}

/// Why a connection was not adopted.
#[derive(Debug)]
#[non_exhaustive]
pub enum AdoptFailure {
    /// The reactors have ended, or are about to.
    Stopped,
    /// Too many wait already: the reactors can't keep up. Try again later.
    Full,
    /// The socket can't be made ready for an event loop.
    Socket(io::Error),
}

/// What waits for one reactor.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    connections: VecDeque<Adopted>,
    is_closed: bool,
}

impl Inbox {
    pub(crate) fn push(&self, adopted: Adopted) -> Result<(), AdoptError> {
        let refuse = |adopted, reason| Err(AdoptError { adopted, reason });
        if let Err(error) = adopted.stream.set_nonblocking(true) {
            return refuse(adopted, AdoptFailure::Socket(error));
        }
        let mut waiting = self.waiting.lock();
        if waiting.is_closed {
            return refuse(adopted, AdoptFailure::Stopped);
        }
        if waiting.connections.len() >= MAX_WAITING {
            return refuse(adopted, AdoptFailure::Full);
        }
        waiting.connections.push_back(adopted);
        Ok(())
    }

    pub(crate) fn pop(&self) -> Option<Adopted> {
        self.waiting.lock().connections.pop_front()
    }

    /// No more are taken, and those that wait are dropped.
    pub(crate) fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.is_closed = true;
        waiting.connections.clear();
    }
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            AdoptFailure::Stopped => f.write_str("the connection can't be adopted: the server is being shut down"),
            AdoptFailure::Full => {
                f.write_str("the connection can't be adopted: too many wait already; try again later")
            }
            AdoptFailure::Socket(error) => write!(f, "the connection can't be adopted: {error}"),
        }
    }
}

impl std::error::Error for AdoptError {}
