//! The API on a listener: its connections, their places, and the orderly end of them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io::{Error, ErrorKind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use entity_sync_bus::LogLimit;
use entity_sync_mio::Refused;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use super::error::ApiError;
use super::wire::{Answering, Order, State, Wire};
use super::{Api, Limits, Listener, Place};

/// How long nothing is accepted after the system refused, such as for want of files.
const REST: Duration = Duration::from_secs(1);

/// How long the head of a request may take for which there is no place, where others have more time.
const HEAD_TIME_LIMIT_OF_RESERVE: Duration = Duration::from_secs(5);

/// How long a connection without a place waits until it is looked again whether another gives way.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What is read away of a request that was answered before its end, so that its sender reads the answer: a connection that is
/// closed before all was read is broken off by the system (RFC 9112, section 9.6).
const LINGER_BYTES: u64 = 64 << 20;
const LINGER_TIME_LIMIT: Duration = Duration::from_secs(10);

/// Who sends nothing for so long has read the answer, or never will.
const LINGER_PAUSE: Duration = Duration::from_secs(2);

/// hyper's buffer for a head, and for what it has read of a body: more than a head may have, which the service judges.
const BUFFER_BYTES: usize = 2 * super::MAX_HEAD_BYTES;

impl Api {
    /// Serves connections until `stop` is done, then finishes the requests that run. Beyond
    /// [`max_connections`](super::Limits::max_connections), the one that has had nothing to do for longest gives way. If all of
    /// them are busy, who connects is told so, but for health checks; and beyond
    /// [`reserved_connections`](super::Limits::reserved_connections) as well, it waits until another one has left.
    pub async fn listen<L: Listener>(self, listener: L, stop: impl Future<Output = ()>) {
        let limits = self.parts.limits;
        let places = Places::new(limits);
        let served = Arc::new(Served {
            api: self,
            order: Arc::default(),
            open: Mutex::default(),
            full: LogLimit::default(),
            tls: LogLimit::default(),
            regular: http(limits.head_time_limit, true),
            // One request only: by the next one, there may be a place.
            reserve: http(limits.head_time_limit.min(HEAD_TIME_LIMIT_OF_RESERVE), false),
        });
        let (stopping, stopped) = watch::channel(false);
        let mut stop = pin!(stop);
        for number in 0.. {
            let accepted = async {
                let stream = accept(&listener).await;
                (stream, places.take(&served).await)
            };
            let (stream, (place, permit)) = tokio::select! {
                accepted = accepted => accepted,
                () = &mut stop => break,
            };
            let connection = served.clone().serve(number, stream, place, stopped.clone());
            tokio::spawn(async move {
                connection.await;
                drop(permit);
            });
        }
        drop((listener, stopped));
        let _ = stopping.send(true);
        stopping.closed().await;
    }
}

/// What all connections share.
struct Served {
    api: Api,
    order: Arc<Order>,
    open: Mutex<HashMap<u64, (Place, Arc<State>)>>,
    full: LogLimit,
    tls: LogLimit,
    regular: http1::Builder,
    reserve: http1::Builder,
}

impl Served {
    async fn serve<S>(self: Arc<Self>, number: u64, stream: S, place: Place, mut stopped: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let connections = &self.api.parts.connections;
        let _open = connections.opened();
        let state = Arc::new(State::new(&self.order, self.api.memory.hold()));
        self.open.lock().insert(number, (place, state.clone()));
        let wire = Wire::new(
            stream,
            state.clone(),
            self.order.clone(),
            self.api.parts.limits.write_time_limit,
        );
        tokio::select! {
            () = self.answer(wire, place, &state, stopped.clone()) => {}
            () = gives_way(&state) => connections.gave_way(),
            () = stops(&mut stopped, &state) => {}
        }
        self.open.lock().remove(&number);
    }

    /// Until the connection ends, all of its answers included.
    async fn answer<S>(&self, wire: Wire<S>, place: Place, state: &Arc<State>, mut stopped: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let http = match place {
            Place::Regular => &self.regular,
            Place::Reserve => {
                self.warn();
                &self.reserve
            }
        };
        let service = service_fn(|request: Request<Incoming>| {
            state.begin();
            let (api, state) = (self.api.clone(), state.clone());
            async move {
                let answer = api.answer_in(place, request).await;
                Ok::<Response<Answering>, Infallible>(answer.map(|body| state.answer(body)))
            }
        });
        let mut connection = http.serve_connection(TokioIo::new(wire), service);
        let mut stops = pin!(async {
            // An error means that the sender is gone, which is the end as well.
            let _ = stopped.wait_for(|it| *it).await;
        });
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = &mut stops => {
                Pin::new(&mut connection).graceful_shutdown();
                (&mut connection).await
            }
        };
        let mut wire = connection.into_parts().io.into_inner();
        // From here on others go before it.
        state.rest(&self.order);
        if state.is_tls() {
            return self.hint_at_tls();
        }
        let error = match ended {
            _ if state.has_no_room() => Some(ApiError::no_memory()),
            Ok(()) => None,
            Err(error) => match state.withheld() {
                Some(status) => Some(ApiError::unreadable(status)),
                // Such as HTTP/2.
                None if error.is_parse() && !state.has_asked.load(Ordering::Relaxed) => Some(ApiError::unreadable(400)),
                // What a peer does wrong otherwise ends its connection, and there is nobody to tell.
                None => return,
            },
        };
        let is_at_end = wire.is_at_end();
        let mut stream = wire.socket();
        if let Some(error) = error
            && stream.write_all(&text_of(error)).await.is_err()
        {
            return;
        }
        if stream.shutdown().await.is_ok() && !is_at_end {
            linger(stream).await;
        }
    }

    fn warn(&self) {
        if let Some(skipped) = self.full.happened() {
            tracing::warn!(
                limit = self.api.parts.limits.max_connections,
                skipped,
                "all connections to the API are in use and new ones are refused: make callers reuse connections, or \
                 raise --api-connections"
            );
        }
    }

    fn hint_at_tls(&self) {
        if let Some(skipped) = self.tls.happened() {
            tracing::warn!(
                skipped,
                "a connection to the API began with TLS, which this port does not speak: use http:// instead of https://, or \
                 let a proxy end TLS in front of it"
            );
        }
    }

    /// Asks the connection of this kind of place that has had nothing to do for longest to end. One that never sent a request
    /// goes before all that did. Says whether there is one.
    fn make_room(&self, of: Place) -> bool {
        let open = self.open.lock();
        let idle = open
            .values()
            .filter(|(place, _)| *place == of)
            .filter_map(|(_, state)| {
                let since = state.idle_since()?;
                Some((state.has_asked.load(Ordering::Relaxed), since, state))
            });
        let longest = idle.min_by_key(|&(has_asked, since, _)| (has_asked, since));
        if let Some((.., state)) = longest {
            state.gives_way.notify_one();
        }
        longest.is_some()
    }
}

/// Until it is asked to end while it has nothing to do.
async fn gives_way(state: &State) {
    loop {
        state.gives_way.notified().await;
        if state.idle_since().is_some() {
            return;
        }
    }
}

/// Until all are asked to end and it has had nothing to do for a moment: hyper waits for a head that has begun.
async fn stops(stopped: &mut watch::Receiver<bool>, state: &State) {
    // An error means that the sender is gone, which is the end as well.
    let _ = stopped.wait_for(|it| *it).await;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if state.idle_since().is_some() {
            return;
        }
    }
}

/// Reads away what still comes, until the peer has closed its side.
async fn linger<R: AsyncRead>(stream: Pin<&mut R>) {
    let mut stream = stream.take(LINGER_BYTES);
    let mut buffer = vec![0; 8 << 10];
    let read_away = async { while let Ok(Ok(1..)) = timeout(LINGER_PAUSE, stream.read(&mut buffer)).await {} };
    let _ = timeout(LINGER_TIME_LIMIT, read_away).await;
}

/// A whole answer, for what is no request to hyper.
fn text_of(error: ApiError) -> Vec<u8> {
    let (body, response) = error.into_parts();
    let status = response.status();
    let mut text = format!(
        "HTTP/1.1 {} {}\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default()
    )
    .into_bytes();
    for (name, value) in response.headers() {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    text.extend_from_slice(body.as_bytes());
    text
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

    /// A place for a connection that was accepted: a regular one, of which one is made free if need be and possible.
    async fn take(&self, served: &Served) -> (Place, Option<OwnedSemaphorePermit>) {
        loop {
            for (place, permits) in [(Place::Regular, &self.regular), (Place::Reserve, &self.reserve)] {
                if let Ok(permit) = permits.clone().try_acquire_owned() {
                    return (place, Some(permit));
                }
                if served.make_room(place)
                    && let Ok(Ok(permit)) = timeout(LOOK_AGAIN, permits.clone().acquire_owned()).await
                {
                    return (place, Some(permit));
                }
            }
            // One of those that are busy may end, or be done.
            tokio::select! {
                permit = self.regular.clone().acquire_owned() => return (Place::Regular, permit.ok()),
                permit = self.reserve.clone().acquire_owned() => return (Place::Reserve, permit.ok()),
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }
}

/// The next connection.
async fn accept<L: Listener>(listener: &L) -> L::Stream {
    loop {
        match listener.accept().await {
            Ok(stream) => return stream,
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                let error = Refused(&error);
                tracing::warn!(%error, "the API can't accept connections");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

fn http(head_time_limit: Duration, keep_alive: bool) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(head_time_limit)
        .keep_alive(keep_alive)
        .max_buf_size(BUFFER_BYTES)
        // Who has closed its side after a request still reads.
        .half_close(true);
    http
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
