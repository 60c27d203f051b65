//! [`Entity`]: how one entity is read, for whom, and how it is delivered.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use entity_sync_mio::{AudienceRule, Delivery, EntityOptions, Pool, ReadError, Reply, Request, Resolver, Rows};
use tokio::runtime::Handle;

/// How an entity is read and delivered.
///
/// A read gives 0 to n rows, each of which is sent as one message. One read serves all clients with the same secret,
/// unless [`public`](Self::public) or [`audience`](Self::audience) widens that.
pub struct Entity {
    options: EntityOptions,
    source: Source,
}

type Read = Box<dyn Fn(&Request) -> Result<Rows, ReadError> + Send + Sync>;
type Future = Pin<Box<dyn std::future::Future<Output = Result<Rows, ReadError>> + Send>>;

enum Source {
    Threads(Read),
    Tasks(Handle, Box<dyn Fn(Request) -> Future + Send + Sync>),
    Own(Box<dyn Resolver>),
}

impl Entity {
    /// Reads on threads of the server's own, so that `read` may block.
    ///
    /// It is tried again later when it fails or panics; [`ReadError::NotFound`] and [`ReadError::Denied`] are answers.
    pub fn read(read: impl Fn(&Request) -> Result<Rows, ReadError> + Send + Sync + 'static) -> Self {
        Self::from(Source::Threads(Box::new(read)))
    }

    /// Reads in tasks of your tokio runtime, which needs its time driver. One that takes longer than `read_time_limit`
    /// (5 s) is dropped.
    pub fn read_async<F>(runtime: Handle, read: impl Fn(Request) -> F + Send + Sync + 'static) -> Self
    where
        F: std::future::Future<Output = Result<Rows, ReadError>> + Send + 'static,
    {
        let read = move |request| Box::pin(read(request)) as Future;
        Self::from(Source::Tasks(runtime, Box::new(read)))
    }

    /// Reads as you like: it is given the way to answer, and must not block. For memory and for queues of your own.
    pub fn resolver(resolver: impl Resolver + 'static) -> Self {
        Self::from(Source::Own(Box::new(resolver)))
    }

    fn from(source: Source) -> Self {
        let options = EntityOptions::default();
        Self { options, source }
    }

    /// One read serves everyone. The resolver is given nobody's secret.
    pub fn public(self) -> Self {
        self.audience(AudienceRule::Public)
    }

    /// Which subscribers share a read.
    pub fn audience(mut self, rule: AudienceRule) -> Self {
        self.options.audience = rule;
        self
    }

    /// A new subscription is answered with the present state.
    pub fn snapshot(mut self) -> Self {
        self.options.snapshot = true;
        self
    }

    /// One read and one push for each notify, in order; nothing is skipped. See [`Delivery::Every`].
    pub fn every(mut self) -> Self {
        self.options.delivery = Delivery::Every;
        self
    }

    /// Looks again after so long, for stores that may show an old state for a while, such as replicas.
    pub fn settle(mut self, after: Duration) -> Self {
        self.options.settle = Some(after);
        self
    }

    /// How many reads of it may run at the same time: 256 by default, and with [`read`](Self::read) one less than there
    /// are threads at most, so that a slow entity leaves one to the others.
    pub fn max_running_reads(mut self, reads: usize) -> Self {
        self.options.max_running_reads = reads;
        self
    }

    pub(super) fn into_parts(self, pool: &Pool, threads: usize, limit: Duration) -> (EntityOptions, Box<dyn Resolver>) {
        let Self { mut options, source } = self;
        let resolver: Box<dyn Resolver> = match source {
            Source::Threads(read) => {
                let most = threads.saturating_sub(1).max(1);
                options.max_running_reads = options.max_running_reads.min(most);
                Box::new(pool.resolver(read))
            }
            Source::Tasks(runtime, read) => Box::new(move |request: Request, reply: Reply| {
                let reading = read(request);
                // A reply that is dropped, as with the runtime, fails the read too.
                runtime.spawn(async move {
                    match tokio::time::timeout(limit, reading).await {
                        // Core counts and retries what can't be sent.
                        Ok(Ok(rows)) => drop(reply.rows(rows)),
                        Ok(Err(error)) => reply.fail(error),
                        // Core has given it up by itself.
                        Err(_) => reply.fail(ReadError::TimedOut),
                    }
                });
            }),
            Source::Own(resolver) => resolver,
        };
        (options, resolver)
    }
}

impl fmt::Debug for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entity")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Gives each read to its entity's resolver.
#[derive(Default)]
pub(crate) struct Routes {
    pub(crate) by_name: HashMap<String, Box<dyn Resolver>>,
    pub(crate) others: Option<Box<dyn Resolver>>,
}

impl Resolver for Routes {
    fn resolve(&self, request: Request, reply: Reply) {
        match self.by_name.get(request.key.entity()).or(self.others.as_ref()) {
            Some(resolver) => resolver.resolve(request, reply),
            // Nobody can subscribe to what is not registered.
            None => reply.fail(ReadError::NotFound),
        }
    }
}
