//! [`Sockets`]: the sockets of one reactor, by connection, and the writes on them.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;

use entity_sync_core::{Chunk, ConnId, Sent};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use smallvec::SmallVec;

#[derive(Default)]
pub(crate) struct Sockets {
    /// By [`ConnId::index`].
    slots: Vec<Option<Socket>>,
}

struct Socket {
    conn: ConnId,
    stream: TcpStream,
    /// It stands in the reactor's list of sockets to read from.
    listed: bool,
}

impl Sockets {
    pub(crate) fn insert(&mut self, registry: &Registry, conn: ConnId, mut stream: TcpStream) -> io::Result<()> {
        let interests = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut stream, token_of(conn), interests)?;
        let index = conn.index();
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(Socket {
            conn,
            stream,
            listed: false,
        });
        Ok(())
    }

    /// Closes a socket, which also takes it out of epoll.
    pub(crate) fn remove(&mut self, conn: ConnId) {
        if self.get(conn).is_some() {
            self.slots[conn.index()] = None;
        }
    }

    /// Notes that a socket is listed for reading; false if it was already, or is gone.
    pub(crate) fn list(&mut self, conn: ConnId) -> bool {
        self.get(conn)
            .is_some_and(|socket| !std::mem::replace(&mut socket.listed, true))
    }

    pub(crate) fn unlist(&mut self, conn: ConnId) {
        if let Some(socket) = self.get(conn) {
            socket.listed = false;
        }
    }

    pub(crate) fn shut_down(&mut self, conn: ConnId) {
        if let Some(socket) = self.get(conn) {
            // If the peer is gone already, reading will tell.
            let _ = socket.stream.shutdown(Shutdown::Write);
        }
    }

    /// `None` when there is nothing to read now; 0 at the end.
    pub(crate) fn read(&mut self, conn: ConnId, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(socket) = self.get(conn) else {
            return Ok(None);
        };
        loop {
            match socket.stream.read(buffer) {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn write(&mut self, conn: ConnId, chunk: Chunk<'_>) -> Sent {
        let bytes = chunk.as_slice();
        self.write_with(conn, bytes.len(), |stream| stream.write(bytes))
    }

    pub(crate) fn write_gathered(&mut self, conn: ConnId, chunks: &[Chunk<'_>]) -> Sent {
        if let [chunk] = chunks {
            return self.write(conn, *chunk);
        }
        let slices: SmallVec<[IoSlice<'_>; 64]> = chunks.iter().map(|chunk| IoSlice::new(chunk.as_slice())).collect();
        let len = slices.iter().map(|slice| slice.len()).sum();
        self.write_with(conn, len, |stream| stream.write_vectored(&slices))
    }

    fn write_with(
        &mut self,
        conn: ConnId,
        len: usize,
        mut write: impl FnMut(&mut TcpStream) -> io::Result<usize>,
    ) -> Sent {
        let Some(socket) = self.get(conn) else {
            return Sent::Closed;
        };
        loop {
            return match write(&mut socket.stream) {
                Ok(bytes) if bytes == len => Sent::All,
                // A short write means that the socket is full: an event will say when it isn't.
                Ok(bytes) => Sent::Partial(bytes),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => Sent::Busy,
                Err(_) => Sent::Closed,
            };
        }
    }

    fn get(&mut self, conn: ConnId) -> Option<&mut Socket> {
        self.slots
            .get_mut(conn.index())?
            .as_mut()
            .filter(|socket| socket.conn == conn)
    }
}

pub(crate) fn token_of(conn: ConnId) -> Token {
    Token(conn.to_u64() as usize)
}
