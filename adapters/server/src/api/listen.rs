//! The API on a listener: its connections, and the orderly end of them.

use std::convert::Infallible;
use std::future::Future;
use std::io::{Error, ErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;

use super::Api;

/// How long nothing is accepted after the system refused, such as for want of files.
const REST: Duration = Duration::from_secs(1);

impl Api {
    /// Serves connections until `stop` is done, then finishes the requests that run. Beyond
    /// [`max_connections`](super::Limits::max_connections), who connects waits until another one has left.
    pub async fn listen(self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let connections = GracefulShutdown::new();
        let limits = self.0.limits;
        let places = Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS)));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.head_time_limit);
        let mut stop = pin!(stop);
        loop {
            let (stream, place) = tokio::select! {
                accepted = accept(&listener, &places) => accepted,
                () = &mut stop => break,
            };
            // Without it, an answer is no less right.
            let _ = stream.set_nodelay(true);
            let api = self.clone();
            let service = service_fn(move |request| {
                let api = api.clone();
                async move { Ok::<_, Infallible>(api.answer(request).await) }
            });
            // Else who sends requests and never reads would have its place for ever: hyper has no time limit on writing.
            let mut stream = TimeoutStream::new(stream);
            stream.set_write_timeout(Some(limits.write_time_limit));
            let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service);
            let connection = connections.watch(connection);
            tokio::spawn(async move {
                // What a peer does wrong ends its connection, and there is nobody to tell.
                let _ = connection.await;
                drop(place);
            });
        }
        drop(listener);
        connections.shutdown().await;
    }
}

/// The next connection, and its place.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // It is never closed.
    let place = places.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "the API can't accept connections");
                tokio::time::sleep(REST).await;
            }
        }
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
