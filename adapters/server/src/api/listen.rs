//! The API on a listener: its connections, and the orderly end of them.

use std::convert::Infallible;
use std::future::Future;
use std::io::{Error, ErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use entity_sync_bus::LogLimit;
use entity_sync_mio::Refused;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;

use super::{Api, Limits, Listener, Place};

/// How long nothing is accepted after the system refused, such as for want of files.
const REST: Duration = Duration::from_secs(1);

/// How long the head of a request may take for which there is no place, where others have more time.
const HEAD_TIME_LIMIT_OF_RESERVE: Duration = Duration::from_secs(5);

impl Api {
    /// Serves connections until `stop` is done, then finishes the requests that run. Beyond
    /// [`max_connections`](super::Limits::max_connections), who connects is told so, but for health checks. Beyond
    /// [`reserved_connections`](super::Limits::reserved_connections) as well, it waits until another one has left.
    pub async fn listen<L: Listener>(self, listener: L, stop: impl Future<Output = ()>) {
        let connections = GracefulShutdown::new();
        let limits = self.0.limits;
        let places = Places::new(limits);
        let full = LogLimit::default();
        let regular = http(limits.head_time_limit);
        // One request only: by the next one, there may be a place.
        let mut reserve = http(limits.head_time_limit.min(HEAD_TIME_LIMIT_OF_RESERVE));
        reserve.keep_alive(false);
        let mut stop = pin!(stop);
        loop {
            let (stream, place, permit) = tokio::select! {
                accepted = accept(&listener, &places) => accepted,
                () = &mut stop => break,
            };
            let open = self.0.connections.opened();
            let api = self.clone();
            let service = service_fn(move |request| {
                let api = api.clone();
                async move { Ok::<_, Infallible>(api.answer_in(place, request).await) }
            });
            // Else who sends requests and never reads would have its place for ever: hyper has no time limit on writing.
            let mut stream = TimeoutStream::new(stream);
            stream.set_write_timeout(Some(limits.write_time_limit));
            let http = match place {
                Place::Regular => &regular,
                Place::Reserve => {
                    warn(&full, limits);
                    &reserve
                }
            };
            let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service);
            let connection = connections.watch(connection);
            tokio::spawn(async move {
                // What a peer does wrong ends its connection, and there is nobody to tell.
                let _ = connection.await;
                drop((permit, open));
            });
        }
        drop(listener);
        connections.shutdown().await;
    }
}

/// The places of connections, of both kinds.
struct Places {
    regular: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
}

impl Places {
    fn new(limits: Limits) -> Self {
        let places = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Self {
            // Without one, nothing would ever be served.
            regular: places(limits.max_connections.max(1)),
            reserve: places(limits.reserved_connections),
        }
    }

    /// The next place of any kind, regular ones first.
    async fn take(&self) -> (Place, Option<OwnedSemaphorePermit>) {
        // They are never closed.
        tokio::select! {
            biased;
            permit = self.regular.clone().acquire_owned() => (Place::Regular, permit.ok()),
            permit = self.reserve.clone().acquire_owned() => (Place::Reserve, permit.ok()),
        }
    }
}

/// The next connection, and its place.
async fn accept<L: Listener>(listener: &L, places: &Places) -> (L::Stream, Place, Option<OwnedSemaphorePermit>) {
    let (place, permit) = places.take().await;
    loop {
        match listener.accept().await {
            Ok(stream) => {
                // A better one may have become free since it was waited for a connection.
                if place == Place::Reserve
                    && let Ok(permit) = places.regular.clone().try_acquire_owned()
                {
                    return (stream, Place::Regular, Some(permit));
                }
                return (stream, place, permit);
            }
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                let error = Refused(&error);
                tracing::warn!(%error, "the API can't accept connections");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

fn http(head_time_limit: Duration) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_time_limit);
    http
}

fn warn(limit: &LogLimit, limits: Limits) {
    if let Some(skipped) = limit.happened() {
        tracing::warn!(
            limit = limits.max_connections,
            skipped,
            "all connections to the API are in use, and others are refused: let callers use theirs again, or raise \
             --api-connections"
        );
    }
}

/// The next connection may be a good one.
fn is_of_connection(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests;
