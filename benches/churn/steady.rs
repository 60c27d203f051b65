//! [`Steady`]: the clients that stay for the whole run and check every row they get.

use std::collections::HashSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use entity_sync_benches::machine::now_ns;
use entity_sync_benches::wire::{self, Frame, take_frame};
use mio::{Events, Interest, Poll, Token};

use crate::keys::Key;
use crate::row::{self, Row};

/// One client in so many changes its secret now and then.
const CHANGERS_ONE_IN: usize = 20;

/// What came, of all clients together. All but `rows` are errors.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) rows: u64,
    /// A state lower than one before.
    pub(crate) reversed: u64,
    /// Rows of a key that the client is not subscribed to, or that are none of the server's rows.
    pub(crate) foreign: u64,
    /// Rows for a secret that the client never had, or that it had replaced for certain.
    pub(crate) wrong_secret: u64,
    /// Connections that the server closed.
    pub(crate) closed: u64,
}

pub(crate) struct Steady {
    poll: Poll,
    events: Events,
    clients: Vec<Client>,
    buffer: Vec<u8>,
    tally: Tally,
    secrets_changed: u64,
}

struct Client {
    /// `None` once the server has closed it.
    stream: Option<mio::net::TcpStream>,
    /// The beginning of a frame.
    partial: Vec<u8>,
    key: Key,
    /// The newest row.
    state: u64,
    secret: u32,
    /// The secret that was sent last.
    sent_secret: u32,
    /// The newest secret that the server has certainly acted on: rows for an older one are wrong.
    synced_secret: u32,
}

impl Steady {
    /// `streams` are upgraded and subscribed to what [`key_of`] says.
    pub(crate) fn new(streams: Vec<TcpStream>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let count = streams.len();
        let mut clients = Vec::with_capacity(count);
        for (index, stream) in streams.into_iter().enumerate() {
            stream.set_nonblocking(true)?;
            let mut stream = mio::net::TcpStream::from_std(stream);
            poll.registry()
                .register(&mut stream, Token(index), Interest::READABLE)?;
            clients.push(Client {
                stream: Some(stream),
                partial: Vec::new(),
                key: key_of(index, count),
                state: 0,
                secret: 0,
                sent_secret: 0,
                synced_secret: 0,
            });
        }
        Ok(Self {
            poll,
            events: Events::with_capacity(1024),
            clients,
            buffer: vec![0; 256 * 1024],
            tally: Tally::default(),
            secrets_changed: 0,
        })
    }

    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    pub(crate) fn secrets_changed(&self) -> u64 {
        self.secrets_changed
    }

    /// How many clients change their secrets.
    pub(crate) fn changers(&self) -> usize {
        self.clients.len().div_ceil(CHANGERS_ONE_IN)
    }

    /// Audiences that these clients make up: what remains on the server when nobody else is there.
    pub(crate) fn audiences(&self) -> usize {
        let open = self.clients.iter().filter(|it| it.stream.is_some());
        open.map(|it| (it.key, it.sent_secret)).collect::<HashSet<_>>().len()
    }

    /// One of the changers gets its next secret.
    pub(crate) fn change_a_secret(&mut self, rng: &mut fastrand::Rng) -> io::Result<()> {
        let index = rng.usize(..self.changers()) * CHANGERS_ONE_IN;
        self.secrets_changed += 1;
        self.clients[index].change_secret()
    }

    /// Receives until the server has certainly acted on every secret.
    pub(crate) fn sync_secrets(&mut self, patience: Duration) -> io::Result<usize> {
        self.receive_until(patience, |it| it.synced_secret == it.sent_secret)
    }

    /// Receives until every client's newest row has the state of its key in `states`. Gives how many lack it when
    /// `patience` is over.
    pub(crate) fn wait_for_states(&mut self, states: &[u64], patience: Duration) -> io::Result<usize> {
        let own = (self.clients.len() / 2) as u32;
        self.receive_until(patience, |it| {
            let newest = it.key.index(own).and_then(|index| states.get(index));
            newest == Some(&it.state)
        })
    }

    /// How many clients' newest row is not for their last secret.
    pub(crate) fn with_an_old_secret(&self) -> usize {
        self.clients.iter().filter(|it| it.secret != it.sent_secret).count()
    }

    /// Receives whatever comes within `time`.
    pub(crate) fn receive_for(&mut self, time: Duration) -> io::Result<()> {
        let deadline = Instant::now() + time;
        while let left = deadline.saturating_duration_since(Instant::now())
            && !left.is_zero()
        {
            self.receive(left)?;
        }
        Ok(())
    }

    fn receive_until(&mut self, patience: Duration, is_done: impl Fn(&Client) -> bool) -> io::Result<usize> {
        let deadline = Instant::now() + patience;
        loop {
            let missing = self.clients.iter().filter(|it| !is_done(it)).count();
            let left = deadline.saturating_duration_since(Instant::now());
            if missing == 0 || left.is_zero() {
                return Ok(missing);
            }
            self.receive(left)?;
        }
    }

    /// One wait, and reads from each socket that has something.
    fn receive(&mut self, timeout: Duration) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        for event in &self.events {
            let client = &mut self.clients[event.token().0];
            while let Some(stream) = &mut client.stream {
                let bytes = match stream.read(&mut self.buffer) {
                    Ok(bytes) => bytes,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
                    Err(error) => return Err(error),
                };
                if bytes == 0 {
                    client.stream = None;
                    self.tally.closed += 1;
                    break;
                }
                client.take(&self.buffer[..bytes], &mut self.tally)?;
                // Edge-triggered: less than asked for says that the socket is empty.
                if bytes < self.buffer.len() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// What the client with this index is subscribed to: the first half to the shared key, the others each to its own.
pub(crate) fn key_of(index: usize, count: usize) -> Key {
    match index.checked_sub(count / 2) {
        None => Key::Shared,
        Some(own) => Key::Own(own as u32),
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
                Frame::Text(row) => self.check(row, tally),
                Frame::Ping => self.send(wire::CLIENT_PONG)?,
                Frame::Pong(payload) => self.take_pong(payload)?,
                Frame::Other => {}
            }
        }
        self.partial = bytes.to_vec();
        Ok(())
    }

    fn check(&mut self, row: &[u8], tally: &mut Tally) {
        tally.rows += 1;
        let Some(row) = Row::parse(row).filter(|row| row.key == self.key) else {
            tally.foreign += 1;
            return;
        };
        if !(self.synced_secret..=self.sent_secret).contains(&row.secret) {
            tally.wrong_secret += 1;
        }
        // Across secrets too: a read for a new secret begins after those that were delivered for the old one.
        if row.state < self.state {
            tally.reversed += 1;
        }
        self.state = row.state;
        self.secret = row.secret;
    }

    fn change_secret(&mut self) -> io::Result<()> {
        self.sent_secret += 1;
        let secret = wire::secret(&row::secret(self.sent_secret));
        self.send(&[secret, ping(Stage::First, self.sent_secret)].concat())
    }

    /// A pong may overtake rows that are on their way already. The turn which sends the first one sends those too, before
    /// it reads the second ping: so only the second pong says that the old secret is gone.
    fn take_pong(&mut self, payload: &[u8]) -> io::Result<()> {
        match parse_pong(payload) {
            Some((Stage::First, secret)) => self.send(&ping(Stage::Second, secret)),
            Some((Stage::Second, secret)) => {
                self.synced_secret = self.synced_secret.max(secret);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A few bytes, for which there is room unless the server reads nothing any more.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Some(stream) => match stream.write_all(bytes) {
                // Reading will tell.
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(()),
                result => result,
            },
            None => Ok(()),
        }
    }
}

/// Of the two pings that follow a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    First,
    Second,
}

fn ping(stage: Stage, secret: u32) -> Vec<u8> {
    let [a, b, c, d] = secret.to_be_bytes();
    wire::client_frame(wire::PING_BYTE, &[stage as u8, a, b, c, d])
}

fn parse_pong(payload: &[u8]) -> Option<(Stage, u32)> {
    let (stage, secret) = payload.split_first()?;
    let stage = [Stage::First, Stage::Second]
        .into_iter()
        .find(|it| *it as u8 == *stage)?;
    Some((stage, u32::from_be_bytes(secret.try_into().ok()?)))
}

/// Seconds since then, by the clock of both processes.
pub(crate) fn seconds_since(ns: u64) -> f64 {
    now_ns().saturating_sub(ns) as f64 / 1e9
}
