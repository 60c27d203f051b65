//! [`Wire`]: the socket of one connection as hyper sees it, and [`State`], what the rest of the API knows of it.
//!
//! hyper answers by itself what it can't parse, without a body. Such an answer is withheld here, so that the connection can be
//! given one in the shape of all others. It is what is written while no answer of the service is on its way.

use std::io::{ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio_io_timeout::TimeoutStream;

use super::memory::Held;

/// The first byte of a TLS connection, which is none of HTTP's.
const TLS_HANDSHAKE: u8 = 0x16;

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct State {
    /// Since when it has had nothing to do, as a number that grows; 0 while a request is being answered.
    idle_since: AtomicU64,
    /// The service has a request that it has not answered.
    is_serving: AtomicBool,
    /// It has sent a request.
    pub(super) has_asked: AtomicBool,
    /// The service has answered, and not all of it is written.
    is_answering: AtomicBool,
    /// hyper has taken the last of that answer.
    is_taken: AtomicBool,
    /// The status of an answer that was withheld.
    withheld: AtomicU16,
    /// It began with TLS.
    is_tls: AtomicBool,
    /// It can't be held in memory.
    has_no_room: AtomicBool,
    /// The head that is being received, as bytes of the API's memory.
    head: Mutex<Option<Held>>,
    /// It has to end, if it has nothing to do.
    pub(super) gives_way: Notify,
}

/// Gives numbers in the order of events.
#[derive(Debug, Default)]
pub(super) struct Order(AtomicU64);

impl Order {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl State {
    pub(super) fn new(order: &Order, head: Held) -> Self {
        Self {
            idle_since: AtomicU64::new(order.next()),
            is_serving: AtomicBool::new(false),
            has_asked: AtomicBool::new(false),
            is_answering: AtomicBool::new(false),
            is_taken: AtomicBool::new(false),
            withheld: AtomicU16::new(0),
            is_tls: AtomicBool::new(false),
            has_no_room: AtomicBool::new(false),
            head: Mutex::new(Some(head)),
            gives_way: Notify::new(),
        }
    }

    /// `None` while a request is being answered.
    pub(super) fn idle_since(&self) -> Option<u64> {
        Some(self.idle_since.load(Ordering::Relaxed)).filter(|&it| it > 0)
    }

    /// A request has come. Its head, which hyper has taken apart, is held by nobody else any more.
    pub(super) fn begin(&self) {
        self.idle_since.store(0, Ordering::Relaxed);
        self.is_serving.store(true, Ordering::Relaxed);
        self.has_asked.store(true, Ordering::Relaxed);
        if let Some(head) = &mut *self.head.lock() {
            head.release();
        }
    }

    /// All is written, and the next request may come.
    pub(super) fn rest(&self, order: &Order) {
        self.idle_since.store(order.next(), Ordering::Relaxed);
    }

    /// The service answers.
    pub(super) fn answer(self: &Arc<Self>, body: Full<Bytes>) -> Answering {
        self.is_serving.store(false, Ordering::Relaxed);
        self.is_taken.store(false, Ordering::Relaxed);
        self.is_answering.store(true, Ordering::Relaxed);
        Answering {
            body,
            state: self.clone(),
        }
    }

    /// The status of an answer of hyper's that was withheld.
    pub(super) fn withheld(&self) -> Option<u16> {
        Some(self.withheld.load(Ordering::Relaxed)).filter(|&it| it > 0)
    }

    pub(super) fn is_tls(&self) -> bool {
        self.is_tls.load(Ordering::Relaxed)
    }

    pub(super) fn has_no_room(&self) -> bool {
        self.has_no_room.load(Ordering::Relaxed)
    }

    /// Bytes came in.
    fn received(&self, bytes: &[u8]) -> Result<()> {
        if !self.has_asked.load(Ordering::Relaxed) && bytes.first() == Some(&TLS_HANDSHAKE) {
            self.is_tls.store(true, Ordering::Relaxed);
            return Err(ErrorKind::InvalidData.into());
        }
        // Bodies are counted where they are put together.
        if self.idle_since().is_some()
            && let Some(head) = &mut *self.head.lock()
            && !head.grow(bytes.len())
        {
            self.has_no_room.store(true, Ordering::Relaxed);
            return Err(ErrorKind::OutOfMemory.into());
        }
        Ok(())
    }

    /// Whether what hyper writes is no answer of the service's. It is noted then.
    fn withholds(&self, bytes: &[u8]) -> bool {
        if self.is_answering.load(Ordering::Relaxed) {
            return false;
        }
        let status = bytes.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5));
        let status = status.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        match status {
            Some(status @ 400..) => {
                self.withheld.store(status, Ordering::Relaxed);
                true
            }
            _ => false,
        }
    }

    /// All that was written has left.
    fn flushed(&self, order: &Order) {
        if self.is_taken.swap(false, Ordering::Relaxed) {
            self.is_answering.store(false, Ordering::Relaxed);
            // The next request may have been there already.
            if !self.is_serving.load(Ordering::Relaxed) {
                self.rest(order);
            }
        }
    }
}

/// The body of an answer, which says when hyper has taken all of it.
#[derive(Debug)]
pub(super) struct Answering {
    body: Full<Bytes>,
    state: Arc<State>,
}

impl Body for Answering {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.state.is_taken.store(true, Ordering::Relaxed);
    }
}

/// A socket.
pub(super) struct Wire<S> {
    stream: Pin<Box<TimeoutStream<S>>>,
    state: Arc<State>,
    order: Arc<Order>,
    /// The peer has closed its side.
    is_at_end: bool,
}

impl<S: AsyncRead + AsyncWrite> Wire<S> {
    /// Who takes nothing of what is sent for so long is given up: hyper has no time limit on writing.
    pub(super) fn new(stream: S, state: Arc<State>, order: Arc<Order>, write_time_limit: Duration) -> Self {
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(write_time_limit));
        Self {
            stream: Box::pin(stream),
            state,
            order,
            is_at_end: false,
        }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.is_at_end
    }

    /// The socket itself, once hyper is done with it.
    pub(super) fn socket(&mut self) -> Pin<&mut TimeoutStream<S>> {
        self.stream.as_mut()
    }
}

impl<S: AsyncRead + AsyncWrite> AsyncRead for Wire<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let before = buf.filled().len();
        let read = self.stream.as_mut().poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = read {
            let bytes = buf.filled().get(before..).unwrap_or_default();
            if bytes.is_empty() && buf.remaining() > 0 {
                self.is_at_end = true;
            }
            self.state.received(bytes)?;
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        if self.state.withholds(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        self.stream.as_mut().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let first = bufs.iter().find(|it| !it.is_empty());
        if first.is_some_and(|first| self.state.withholds(first)) {
            return Poll::Ready(Ok(bufs.iter().map(|it| it.len()).sum()));
        }
        self.stream.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let flushed = self.stream.as_mut().poll_flush(cx);
        if let Poll::Ready(Ok(())) = flushed {
            self.state.flushed(&self.order);
        }
        flushed
    }

    /// The end is not hyper's: there may be an answer to come that is not its own.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_flush(cx)
    }
}
