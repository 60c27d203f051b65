//! [`Streams`]: what the driver reads from and writes to, by connection, and who of them has something to tell.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use entity_sync_core::{Chunk, ConnId, Sent};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Anything that bytes go to and come from.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

#[derive(Default)]
pub(crate) struct Streams {
    /// By [`ConnId::index`].
    slots: Vec<Option<Stream>>,
    ready: Arc<Ready>,
    /// Those that were written to since they were flushed.
    unflushed: Vec<ConnId>,
}

struct Stream {
    conn: ConnId,
    io: Box<dyn Io>,
    caller: Arc<Caller>,
    waker: Waker,
    /// A write is to be tried again.
    is_blocked: bool,
    has_unflushed: bool,
    is_shutting_down: bool,
}

/// Connections that may read, write or flush again.
#[derive(Default)]
struct Ready(Mutex<ReadyList>);

#[derive(Default)]
struct ReadyList {
    conns: Vec<ConnId>,
    driver: Option<Waker>,
}

/// What a stream's waker is: it lists the connection.
struct Caller {
    conn: ConnId,
    is_listed: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Caller {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_listed.swap(true, Ordering::AcqRel) {
            return;
        }
        let driver = {
            let mut list = self.ready.0.lock();
            list.conns.push(self.conn);
            // Those behind the first find it awake.
            list.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

impl Streams {
    /// Takes a stream in, as one that may have something to read.
    pub(crate) fn insert(&mut self, conn: ConnId, io: Box<dyn Io>) {
        let caller = Arc::new(Caller {
            conn,
            is_listed: AtomicBool::new(false),
            ready: self.ready.clone(),
        });
        let waker = Waker::from(caller.clone());
        waker.wake_by_ref();
        let index = conn.index();
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(Stream {
            conn,
            io,
            caller,
            waker,
            is_blocked: false,
            has_unflushed: false,
            is_shutting_down: false,
        });
    }

    pub(crate) fn remove(&mut self, conn: ConnId) {
        if self.get(conn).is_some() {
            self.slots[conn.index()] = None;
        }
    }

    /// Those that have called since the last time.
    pub(crate) fn take_ready(&mut self) -> Vec<ConnId> {
        let conns = std::mem::take(&mut self.ready.0.lock().conns);
        for &conn in &conns {
            if let Some(stream) = self.get(conn) {
                // Before it is asked anything: what happens from now on lists it again.
                stream.caller.is_listed.store(false, Ordering::Release);
            }
        }
        conns
    }

    /// Has this waker called when a stream is ready. Says whether one is already.
    pub(crate) fn call(&mut self, driver: &Waker) -> bool {
        let mut list = self.ready.0.lock();
        list.driver = Some(driver.clone());
        !list.conns.is_empty()
    }

    /// Lists it as if it had called.
    pub(crate) fn list(&mut self, conn: ConnId) {
        if let Some(stream) = self.get(conn) {
            stream.waker.wake_by_ref();
        }
    }

    /// `None` when there is nothing to read now; 0 at the end.
    pub(crate) fn read(&mut self, conn: ConnId, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(Stream { io, waker, .. }) = self.get(conn) else {
            return Ok(None);
        };
        let mut buffer = ReadBuf::new(buffer);
        match Pin::new(io).poll_read(&mut Context::from_waker(waker), &mut buffer) {
            Poll::Ready(Ok(())) => Ok(Some(buffer.filled().len())),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(None),
        }
    }

    /// Whether a write that found no room may find some now. Says so once.
    pub(crate) fn take_blocked(&mut self, conn: ConnId) -> bool {
        self.get(conn)
            .is_some_and(|stream| std::mem::take(&mut stream.is_blocked))
    }

    /// Writes the chunks in order, as much as goes.
    pub(crate) fn write(&mut self, conn: ConnId, chunks: &[Chunk<'_>]) -> Sent {
        let Some(stream) = self.get(conn) else {
            return Sent::Closed;
        };
        let mut written = 0;
        for chunk in chunks {
            let mut rest = chunk.as_slice();
            while !rest.is_empty() {
                let io = Pin::new(&mut stream.io);
                match io.poll_write(&mut Context::from_waker(&stream.waker), rest) {
                    Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => return Sent::Closed,
                    Poll::Ready(Ok(bytes)) => {
                        written += bytes;
                        rest = rest.get(bytes..).unwrap_or_default();
                    }
                    Poll::Pending => {
                        stream.is_blocked = true;
                        self.note_unflushed(conn, written);
                        return if written == 0 {
                            Sent::Busy
                        } else {
                            Sent::Partial(written)
                        };
                    }
                }
            }
        }
        self.note_unflushed(conn, written);
        Sent::All
    }

    /// Pushes on whatever streams buffer by themselves. Calls `failed` for those that can't.
    pub(crate) fn flush_all(&mut self, mut failed: impl FnMut(ConnId)) {
        for conn in std::mem::take(&mut self.unflushed) {
            if self.flush(conn).is_err() {
                failed(conn);
            }
        }
    }

    /// Goes on with a flush or an end that could not be finished before.
    pub(crate) fn resume(&mut self, conn: ConnId) -> io::Result<()> {
        self.flush(conn)?;
        if self.get(conn).is_some_and(|it| it.is_shutting_down) {
            self.shut_down(conn);
        }
        Ok(())
    }

    /// Closes the sending side, behind all that was written.
    pub(crate) fn shut_down(&mut self, conn: ConnId) {
        if let Some(stream) = self.get(conn) {
            let io = Pin::new(&mut stream.io);
            let polled = io.poll_shutdown(&mut Context::from_waker(&stream.waker));
            // If the peer is gone already, reading will tell.
            stream.is_shutting_down = polled.is_pending();
        }
    }

    fn flush(&mut self, conn: ConnId) -> io::Result<()> {
        let Some(stream) = self.get(conn).filter(|it| it.has_unflushed) else {
            return Ok(());
        };
        match Pin::new(&mut stream.io).poll_flush(&mut Context::from_waker(&stream.waker)) {
            Poll::Ready(result) => {
                stream.has_unflushed = false;
                result
            }
            // The stream calls when it can go on.
            Poll::Pending => Ok(()),
        }
    }

    fn note_unflushed(&mut self, conn: ConnId, written: usize) {
        if let Some(stream) = self.get(conn)
            && written > 0
            && !std::mem::replace(&mut stream.has_unflushed, true)
        {
            self.unflushed.push(conn);
        }
    }

    fn get(&mut self, conn: ConnId) -> Option<&mut Stream> {
        self.slots
            .get_mut(conn.index())?
            .as_mut()
            .filter(|stream| stream.conn == conn)
    }
}
