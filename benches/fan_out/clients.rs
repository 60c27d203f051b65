//! [`Clients`]: thousands of receivers on one epoll instance, which count what they get.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use entity_sync_benches::machine::now_ns;
use entity_sync_benches::wire::{self, Frame, take_frame};
use mio::{Events, Interest, Poll, Token};

/// What came, of all rows together. Rows are numbered from 1.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) rows: u64,
    /// Numbers that were passed over: losses where rounds are awaited, conflation in a burst.
    pub(crate) skipped: u64,
    /// The same number again: duplicates where rounds are awaited.
    pub(crate) repeated: u64,
    /// A lower number than one before, which is always an error.
    pub(crate) reversed: u64,
}

impl Tally {
    pub(crate) fn is_exact(&self) -> bool {
        self.is_in_order() && (self.skipped, self.repeated) == (0, 0)
    }

    pub(crate) fn is_in_order(&self) -> bool {
        self.reversed == 0
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rows,
            skipped,
            repeated,
            reversed,
        } = self;
        write!(
            f,
            "{rows} received, {skipped} skipped, {repeated} repeated, {reversed} out of order"
        )
    }
}

/// When the first and the last client got a row, by [`now_ns`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) first_ns: u64,
    pub(crate) last_ns: u64,
}

/// Receivers of numbered rows.
pub(crate) struct Clients {
    poll: Poll,
    events: Events,
    clients: Vec<Client>,
    buffer: Vec<u8>,
    tally: Tally,
}

struct Client {
    stream: mio::net::TcpStream,
    /// The beginning of a frame.
    partial: Vec<u8>,
    /// The number of the newest row.
    newest: u64,
}

impl Clients {
    pub(crate) fn new(streams: Vec<TcpStream>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut clients = Vec::with_capacity(streams.len());
        for (index, stream) in streams.into_iter().enumerate() {
            stream.set_nonblocking(true)?;
            let mut stream = mio::net::TcpStream::from_std(stream);
            poll.registry()
                .register(&mut stream, Token(index), Interest::READABLE)?;
            clients.push(Client {
                stream,
                partial: Vec::new(),
                newest: 0,
            });
        }
        Ok(Self {
            poll,
            events: Events::with_capacity(1024),
            clients,
            buffer: vec![0; 256 * 1024],
            tally: Tally::default(),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Receives until every client has the row `number` or a later one.
    ///
    /// # Errors
    /// When `patience` is over, with the number of clients that lack it.
    pub(crate) fn wait_for(&mut self, number: u64, patience: Duration) -> io::Result<Round> {
        let deadline = Instant::now() + patience;
        let mut round = Round {
            first_ns: 0,
            last_ns: 0,
        };
        let mut missing = self.clients.iter().filter(|it| it.newest < number).count();
        let all = missing;
        while missing > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let error = format!("{missing} of {all} clients did not get row {number}; {}", self.tally);
                return Err(io::Error::new(ErrorKind::TimedOut, error));
            }
            self.receive(left, |before, after| {
                if before < number && number <= after {
                    missing -= 1;
                    if round.first_ns == 0 {
                        round.first_ns = now_ns();
                    }
                    if missing == 0 {
                        round.last_ns = now_ns();
                    }
                }
            })?;
        }
        Ok(round)
    }

    /// Receives whatever still comes within `time`.
    pub(crate) fn drain(&mut self, time: Duration) -> io::Result<()> {
        let deadline = Instant::now() + time;
        while let left = deadline.saturating_duration_since(Instant::now())
            && !left.is_zero()
        {
            self.receive(left, |_, _| {})?;
        }
        Ok(())
    }

    /// One wait, and reads from each socket that has something. Calls `on` with a client's newest number before and after.
    fn receive(&mut self, timeout: Duration, mut on: impl FnMut(u64, u64)) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        for event in &self.events {
            let client = &mut self.clients[event.token().0];
            let before = client.newest;
            loop {
                let bytes = match client.stream.read(&mut self.buffer) {
                    Ok(0) => return Err(io::Error::other("the server closed a connection")),
                    Ok(bytes) => bytes,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                client.take(&self.buffer[..bytes], &mut self.tally)?;
                // Edge-triggered: less than asked for says that the socket is empty.
                if bytes < self.buffer.len() {
                    break;
                }
            }
            on(before, client.newest);
        }
        Ok(())
    }
}

impl Client {
    fn take(&mut self, received: &[u8], tally: &mut Tally) -> io::Result<()> {
        let mut earlier = std::mem::take(&mut self.partial);
        let mut bytes = if earlier.is_empty() {
            received
        } else {
            earlier.extend_from_slice(received);
            &earlier
        };
        while let Some(frame) = take_frame(&mut bytes) {
            match frame {
                Frame::Text(row) => {
                    if let Some(number) = wire::number_of(row) {
                        self.count(number, tally);
                    }
                }
                Frame::Ping => self.stream.write_all(wire::CLIENT_PONG)?,
                Frame::Pong(_) | Frame::Other => {}
            }
        }
        self.partial = bytes.to_vec();
        Ok(())
    }

    fn count(&mut self, number: u64, tally: &mut Tally) {
        tally.rows += 1;
        if number < self.newest {
            tally.reversed += 1;
        } else if number == self.newest {
            tally.repeated += 1;
        } else {
            tally.skipped += number - self.newest - 1;
            self.newest = number;
        }
    }
}
