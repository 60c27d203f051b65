//! The words that drivers and shards speak in.

use std::fmt;

use super::{Broadcast, Flush};
use crate::slots::SlotId;

/// A connection of one shard. Once it has ended, its id finds nothing, ever again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub(crate) SlotId);

/// What a driver tells a shard. What is said of a connection that no longer exists is ignored and counted.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input<'a> {
    /// Bytes came in. They are unmasked in place and may be overwritten.
    Received {
        /// From whom.
        conn: ConnId,
        /// The bytes, in any portions.
        bytes: &'a mut [u8],
    },
    /// The peer will send no more (it closed its side).
    Eof {
        /// Who.
        conn: ConnId,
    },
    /// The socket takes bytes again, after [`Sent::Partial`] or [`Sent::Busy`]. Needless calls are harmless.
    Writable {
        /// Which.
        conn: ConnId,
    },
    /// A write that was [`Sent::Taken`] is over.
    Written {
        /// Whose.
        conn: ConnId,
        /// How many of the bytes were written. The rest is offered again, at once; so on a full socket say this only
        /// when it has become writable.
        bytes: usize,
    },
    /// The socket failed or was reset.
    Closed {
        /// Which.
        conn: ConnId,
    },
}

/// What a shard wants done. A driver must know them all, so a new one is a breaking change on purpose.
#[must_use = "outputs are to be acted upon"]
pub enum Output<'a> {
    /// Write the same bytes to many connections.
    Broadcast(Broadcast<'a>),
    /// Write what one connection has queued.
    Flush(Flush<'a>),
    /// Read from this connection again: what arrived while [`Shard::is_paused`](super::Shard::is_paused) was true has
    /// caused no event that is still to come. Needless reads are harmless.
    Resume(ConnId),
    /// Close the sending side once all that was handed over is sent, and go on receiving: the peer is to see the end
    /// after all the rest.
    Shutdown(ConnId),
    /// Drop the socket. This comes exactly once for every connection that was opened, whoever ended it, and the id is
    /// stale by then.
    Close(ConnId),
}

/// How a write went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The driver needs the bytes no more: all were written, or are in buffers of its own.
    All,
    /// The first so many bytes were written, and the socket is full: [`Input::Writable`] follows.
    Partial(usize),
    /// Nothing was written for now (the socket is full, a TLS record is outstanding): [`Input::Writable`] follows.
    Busy,
    /// The driver holds clones of the chunks and writes them by itself: [`Input::Written`] follows.
    Taken,
    /// The connection is gone.
    Closed,
}

impl ConnId {
    /// A number for a driver's own tables: small, dense, and used again by later connections.
    pub fn index(self) -> usize {
        self.0.index as usize
    }

    /// The id as a number, for an event queue's token.
    pub fn to_u64(self) -> u64 {
        u64::from(self.0.generation) << 32 | u64::from(self.0.index)
    }

    /// The id that gave this number.
    pub fn from_u64(number: u64) -> Self {
        Self(SlotId {
            index: number as u32,
            generation: (number >> 32) as u32,
        })
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0.index, self.0.generation)
    }
}

impl fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broadcast(_) => f.write_str("Broadcast"),
            Self::Flush(flush) => write!(f, "Flush({:?})", flush.conn()),
            Self::Resume(conn) => write!(f, "Resume({conn:?})"),
            Self::Shutdown(conn) => write!(f, "Shutdown({conn:?})"),
            Self::Close(conn) => write!(f, "Close({conn:?})"),
        }
    }
}
