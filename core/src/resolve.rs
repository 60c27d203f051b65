//! The user's side of a read: [`Resolve`] is given a [`Request`] and answers it through a [`Reply`].

use std::fmt;
use std::sync::Arc;

use crate::entity::EntityIndex;
use crate::flights::{FlightId, Ticket};
use crate::frame::{RowError, Rows};
use crate::key::EntityKey;
use crate::node::{Node, Wakes};
use crate::time::Timestamp;

/// The subscribers of a key that may share one read.
///
/// It is chosen before the read, by the entity's [`AudienceRule`](crate::AudienceRule). Rows resolved for one audience
/// are never sent to another.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Audience {
    /// Everyone with this secret (empty when the client sent none): the default.
    Secret(Arc<str>),
    /// Everyone with this name, such as a tenant or a role. The resolver gets the name and nobody's secret.
    Named(Arc<str>),
    /// Everyone.
    Public,
}

impl fmt::Debug for Audience {
    /// Without the secret, which is often a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(secret) if secret.is_empty() => f.write_str("Secret(none)"),
            Self::Secret(_) => f.write_str("Secret(…)"),
            Self::Named(name) => f.debug_tuple("Named").field(name).finish(),
            Self::Public => f.write_str("Public"),
        }
    }
}

/// What to read, for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The entity to read.
    pub key: EntityKey,
    /// For whom.
    pub audience: Audience,
}

/// The application's way to read entities.
///
/// It is called on whichever thread found the read necessary, a reactor among them, so it must not block: hand the work
/// to a pool or a task, or answer at once from memory.
pub trait Resolve: Send + Sync {
    /// Reads `request.key` afresh and sends the rows through `reply`, now or later, from any thread.
    fn resolve(&self, request: Request, reply: Reply);
}

/// Why a read gave no rows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadError {
    /// There is no such entity (any more). That is an answer: nothing is tried again, and rows of earlier reads that are
    /// still queued are taken back. Protocol v1 has no way to tell the client.
    NotFound,
    /// This audience may not see the entity. That is an answer too, with the same effect.
    Denied,
    /// It failed for the moment and is tried again, with backoff, as long as anyone is subscribed.
    Failed,
    /// The source rejects the request, and will do so until somebody changes its or this server's configuration: wrong
    /// credentials, a query that it does not understand. Tried again after the longest backoff each time.
    Rejected,
    /// The reply was dropped unanswered: the resolver panicked or forgot. Tried again likewise.
    Dropped,
    /// The time limit passed. Tried again likewise; an answer that still comes is discarded.
    TimedOut,
    /// The rows can't be sent. Tried again likewise, as a later state may be better.
    BadRows(RowError),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("there is no such entity"),
            Self::Denied => f.write_str("the audience may not see the entity"),
            Self::Failed => f.write_str("the read failed"),
            Self::Rejected => f.write_str("the source rejects the read until its configuration is changed"),
            Self::Dropped => f.write_str("the read's reply was dropped without an answer"),
            Self::TimedOut => f.write_str("the read took longer than its time limit"),
            Self::BadRows(error) => write!(f, "the read's rows can't be sent: {error}"),
        }
    }
}

impl ReadError {
    /// Whether it says how things are, so that trying again would not help.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::NotFound | Self::Denied)
    }
}

impl std::error::Error for ReadError {}

/// The way to answer one [`Request`]. Dropping it counts as [`ReadError::Dropped`].
#[must_use = "dropping a reply fails the read"]
pub struct Reply {
    node: Node,
    read: ReadId,
    /// Nobody tells the time when the reply is dropped. It is not before this.
    started: Timestamp,
    answered: bool,
}

/// A read that has begun.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadId {
    pub(crate) flight: FlightId,
    pub(crate) ticket: Ticket,
    pub(crate) entity: EntityIndex,
    /// A notify led to it.
    pub(crate) answers_notify: bool,
    /// How many answers led to it without a pause: an answer may begin the next read, which may be answered at once.
    pub(crate) depth: u32,
}

impl Reply {
    pub(crate) fn new(node: Node, read: ReadId, started: Timestamp) -> Self {
        Self {
            node,
            read,
            started,
            answered: false,
        }
    }

    /// Whether the read follows a notify. Where reads wait for the application's resources, let such reads take turns with
    /// the others, or a change waits until a crowd of new subscribers has been read for.
    pub fn answers_notify(&self) -> bool {
        self.read.answers_notify
    }

    /// Answers the read. The frames are built here, on the caller's thread.
    ///
    /// # Errors
    /// [`RowError`] when the rows can't be sent; the read then counts as failed and is tried again later.
    pub fn send(mut self, now: Timestamp, result: Result<Rows, ReadError>) -> Result<(), RowError> {
        self.answered = true;
        self.node.finish(now, self.read, result, None)
    }

    /// Answers one of many reads likewise: the shards are woken only when `wakes` is dropped.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn send_with(
        mut self,
        now: Timestamp,
        result: Result<Rows, ReadError>,
        wakes: &mut Wakes,
    ) -> Result<(), RowError> {
        self.answered = true;
        self.node.finish(now, self.read, result, Some(wakes))
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            // Only rows can be refused, and there are none.
            let now = self.started.max(self.node.clock());
            let _ = self.node.finish(now, self.read, Err(ReadError::Dropped), None);
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").finish_non_exhaustive()
    }
}
