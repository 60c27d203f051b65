//! [`Clients`]: many clients that write over HTTP, each as fast as it is answered, on one thread: so many threads that block
//! would cost more than the server.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::Arguments;

pub(crate) struct Clients {
    poll: Poll,
    streams: Vec<TcpStream>,
    /// How many each has sent.
    sent: Vec<usize>,
    writes: usize,
    keys: usize,
}

/// One side of a connection, polled under the client's number.
pub(crate) fn register(poll: &Poll, stream: std::net::TcpStream, client: usize) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let mut stream = TcpStream::from_std(stream);
    poll.registry()
        .register(&mut stream, Token(client), Interest::READABLE)?;
    Ok(stream)
}

impl Clients {
    pub(crate) fn connect(address: SocketAddr, arguments: &Arguments) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut streams = Vec::new();
        for client in 0..arguments.clients {
            // Connected by the time that it is needed.
            let stream = std::net::TcpStream::connect(address)?;
            streams.push(register(&poll, stream, client)?);
        }
        Ok(Self {
            poll,
            sent: vec![0; streams.len()],
            streams,
            writes: arguments.writes,
            keys: arguments.keys,
        })
    }

    /// Until each has been answered all its writes.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        for client in 0..self.streams.len() {
            self.send(client)?;
        }
        let mut left = self.streams.len();
        let mut events = Events::with_capacity(self.streams.len());
        let mut buffer = [0; 1024];
        while left > 0 {
            self.poll.poll(&mut events, None)?;
            for event in &events {
                let Token(client) = event.token();
                let read = match self.streams[client].read(&mut buffer) {
                    Ok(read) => read,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    Err(error) => return Err(error),
                };
                // Such an answer has no body, and comes in one piece.
                if !buffer[..read].starts_with(b"HTTP/1.1 20") {
                    let said = String::from_utf8_lossy(&buffer[..read]).into_owned();
                    return Err(io::Error::other(said));
                }
                if self.sent[client] < self.writes {
                    self.send(client)?;
                } else {
                    left -= 1;
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, client: usize) -> io::Result<()> {
        let number = self.sent[client];
        self.sent[client] += 1;
        let id = (client * 7919 + number * 31) % self.keys;
        let body = format!(r#"{{"id":"{id}","by":{client},"n":{number}}}"#);
        let request = format!(
            "PUT /entities/items/{id} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        // One request is in flight, so there is room.
        self.streams[client].write_all(request.as_bytes())
    }
}
