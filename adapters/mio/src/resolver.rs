//! The application's side of a read, with the clock filled in.

use entity_sync_core::{EntityKey, ReadError, Request, Resolve, RowError, Rows, Wakes};
use entity_sync_runtime::LogLimit;
use tracing::Span;

use crate::clock::Clock;

/// The application's way to read entities.
///
/// It is called on whichever thread found the read necessary, a reactor among them, so it must not block: hand the work
/// to a pool or a task, or answer at once from memory. Any `Fn(Request, Reply)` is a resolver:
///
/// ```
/// use entity_sync_mio::{Reply, Request, Rows};
///
/// let resolver = |request: Request, reply: Reply| {
///     // Read request.key from your store.
///     if let Err(error) = reply.rows(Rows::one(r#"{"name":"bicycle"}"#)) {
///         eprintln!("{:?}: {error}", request.key);
///     }
/// };
/// # let _: &dyn entity_sync_mio::Resolver = &resolver;
/// ```
pub trait Resolver: Send + Sync {
    /// Reads `request.key` afresh and answers through `reply`, now or later, from any thread.
    fn resolve(&self, request: Request, reply: Reply);
}

impl<F: Fn(Request, Reply) + Send + Sync> Resolver for F {
    fn resolve(&self, request: Request, reply: Reply) {
        self(request, reply);
    }
}

/// Rows that can't be sent, by what is wrong with them.
static BAD_ROWS: LogLimit = LogLimit::new();

/// So many answers are given before the reactors are woken for them, which then write while the next are given.
const ANSWERS_PER_WAKE: usize = 64;

/// The way to answer one request. Dropping it fails the read, which is then tried again later.
#[derive(Debug)]
#[must_use = "dropping a reply fails the read"]
pub struct Reply {
    inner: entity_sync_core::Reply,
    clock: Clock,
    /// For the log.
    key: EntityKey,
    /// From the read's beginning to its answer.
    span: Span,
}

impl Reply {
    /// Whether the read follows a notify. Where reads wait for resources of yours, let such reads take turns with the others,
    /// or a change waits until a crowd of new subscribers has been read for.
    pub fn answers_notify(&self) -> bool {
        self.inner.answers_notify()
    }

    /// Answers with rows. The frames are built here, on the caller's thread.
    ///
    /// # Errors
    /// [`RowError`] when the rows can't be sent; the read then counts as failed and is tried again later.
    pub fn rows(self, rows: Rows) -> Result<(), RowError> {
        self.answer(Ok(rows), None)
    }

    /// Says that the read failed for the moment. It is tried again, with backoff, as long as anyone is subscribed.
    pub fn fail(self, error: ReadError) {
        // Only rows can be refused, and there are none.
        let _ = self.answer(Err(error), None);
    }

    /// Answers many reads, in this order. To wake a reactor for each of them would cost more than the answers; so it is woken
    /// once for some dozens. What [`rows`](Self::rows) would have refused counts as failed.
    ///
    /// While `answers` is asked for the next one, the reactors may be waiting for it: it must not block.
    pub fn answer_all(answers: impl IntoIterator<Item = (Self, Result<Rows, ReadError>)>) {
        let mut answers = answers.into_iter().peekable();
        while answers.peek().is_some() {
            let mut wakes = Wakes::new();
            for (reply, result) in answers.by_ref().take(ANSWERS_PER_WAKE) {
                let _ = reply.answer(result, Some(&mut wakes));
            }
        }
    }

    fn answer(self, result: Result<Rows, ReadError>, put_off: Option<&mut Wakes>) -> Result<(), RowError> {
        let failed = result.as_ref().err().cloned();
        let now = self.clock.now();
        let sent = match put_off {
            None => self.inner.send(now, result),
            Some(wakes) => self.inner.send_with(now, result, wakes),
        };
        self.span.in_scope(|| match (&sent, failed) {
            (Ok(()), None) => tracing::debug!("answered"),
            (Ok(()), Some(error)) => tracing::debug!(%error, "no rows"),
            (Err(error), _) => warn(&self.key, error),
        });
        sent
    }
}

fn warn(key: &EntityKey, error: &RowError) {
    let kind = match error {
        RowError::NotUtf8 { .. } => "not UTF-8",
        RowError::TooMany { .. } => "too many",
        _ => "too long",
    };
    if let Some(untold) = BAD_ROWS.of_kind(kind) {
        let (entity, id) = (key.entity(), key.id());
        tracing::warn!(
            entity,
            id,
            untold,
            "the rows can't be sent, and are read again later: {error}"
        );
    }
}

/// Gives core's replies the clock.
pub(crate) struct Clocked<R> {
    pub(crate) resolver: R,
    pub(crate) clock: Clock,
}

impl<R: Resolver> Resolve for Clocked<R> {
    fn resolve(&self, request: Request, reply: entity_sync_core::Reply) {
        // An audience shows no secret.
        let (key, audience) = (&request.key, &request.audience);
        let span = tracing::debug_span!("read", entity = key.entity(), id = key.id(), ?audience);
        let reply = Reply {
            inner: reply,
            clock: self.clock,
            key: key.clone(),
            span: span.clone(),
        };
        span.in_scope(|| self.resolver.resolve(request, reply));
    }
}
