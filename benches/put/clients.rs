//! [`Clients`]: many clients that write over HTTP, each as fast as it is answered, on one thread: so many threads that block
//! would cost more than the server.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use crate::Arguments;
use crate::transport::Transport;

pub(crate) struct Clients<T: Transport> {
    poll: Poll,
    streams: Vec<T::Stream>,
    /// How many each has sent, and when the last one.
    sent: Vec<(usize, Instant)>,
    /// How long each answer took.
    took: Vec<Duration>,
    writes: usize,
    keys: usize,
}

impl<T: Transport> Clients<T> {
    pub(crate) fn connect(address: &T::Address, arguments: &Arguments) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut streams = Vec::new();
        for client in 0..arguments.clients {
            let mut stream = T::connect(address)?;
            T::register(&poll, &mut stream, client)?;
            streams.push(stream);
        }
        Ok(Self {
            poll,
            sent: vec![(0, Instant::now()); streams.len()],
            took: Vec::with_capacity(arguments.clients * arguments.writes),
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
                let (sent, at) = self.sent[client];
                self.took.push(at.elapsed());
                if sent < self.writes {
                    self.send(client)?;
                } else {
                    left -= 1;
                }
            }
        }
        Ok(())
    }

    /// How long half and 99 of 100 answers took at most.
    pub(crate) fn took(&mut self) -> (Duration, Duration) {
        self.took.sort_unstable();
        let at = |part: usize| self.took.get(self.took.len() * part / 100).copied().unwrap_or_default();
        (at(50), at(99))
    }

    fn send(&mut self, client: usize) -> io::Result<()> {
        let (number, _) = self.sent[client];
        self.sent[client] = (number + 1, Instant::now());
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
