//! [`PasserBy`]: one connection that behaves as no good client does.

use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use entity_sync_benches::wire;
use fastrand::Rng;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::keys::Key;
use crate::row;

/// What they did, all together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Connections begun.
    pub(crate) opened: u64,
    /// Those whose upgrade was answered.
    pub(crate) upgraded: u64,
    /// Connections that could not be begun, as all ports were taken.
    pub(crate) out_of_ports: u64,
    pub(crate) subscribed: u64,
    pub(crate) unsubscribed: u64,
    pub(crate) secrets: u64,
    /// Messages that mean nothing.
    pub(crate) garbage: u64,
    /// Frames that the protocol forbids.
    pub(crate) violations: u64,
    pub(crate) stalls: u64,
    pub(crate) half_closed: u64,
    pub(crate) reset: u64,
    /// Closed without a close frame.
    pub(crate) vanished: u64,
    /// Sent a close frame.
    pub(crate) said_goodbye: u64,
    /// The server closed first.
    pub(crate) ended_by_server: u64,
}

/// Secrets that they choose from; steady clients get to the first ones too, so they share audiences.
const SECRETS: u32 = 20;

/// Subscriptions in one go: many make the server queue rows for those that don't read.
const MOST_SUBSCRIPTIONS: usize = 200;

/// The kernel makes a little more of it. A small buffer is full soon.
const SMALL_BUFFER_BYTES: usize = 4096;

/// Messages that the server has to put up with.
const GARBAGE: [&str; 10] = [
    "",
    "{",
    "null",
    "[1,2]",
    "hello",
    r#"{"action":"dance","body":{}}"#,
    r#"{"action":"subscribe"}"#,
    r#"{"action":"subscribe","body":7}"#,
    r#"{"action":"secret","body":{"a":"b"}}"#,
    r#"{"action":"unsubscribe","body":{"entity":"never","id":"subscribed"}}"#,
];

/// What the server may hang up on.
const VIOLATIONS: [&[u8]; 5] = [
    // Not masked.
    b"\x81\x05hello",
    // Reserved bits.
    b"\xf1\x80\0\0\0\0",
    // A continuation of nothing.
    b"\x80\x80\0\0\0\0",
    // Text that is not UTF-8.
    b"\x81\x82\0\0\0\0\xff\xfe",
    // A length that nobody has.
    b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",
];

const CLOSE: &[u8] = &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    /// The request, or some of it, is sent.
    Requested,
    Open,
    /// It said that it has no more to say.
    Leaving,
}

pub(crate) struct PasserBy {
    stream: TcpStream,
    state: State,
    is_upgraded: bool,
    is_stalled: bool,
    /// Subscriptions that may be taken back.
    keys: Vec<Key>,
}

impl PasserBy {
    /// Begins to connect. `None` when there is no port left for the moment.
    pub(crate) fn open(
        address: SocketAddr,
        registry: &Registry,
        token: Token,
        rng: &mut Rng,
        counts: &mut Counts,
    ) -> io::Result<Option<Self>> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if rng.bool() {
            socket.set_recv_buffer_size(SMALL_BUFFER_BYTES)?;
        }
        match socket.connect(&address.into()) {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                counts.out_of_ports += 1;
                return Ok(None);
            }
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            result => result?,
        }
        let mut stream = TcpStream::from_std(socket.into());
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        counts.opened += 1;
        Ok(Some(Self {
            stream,
            state: State::Connecting,
            is_upgraded: false,
            is_stalled: false,
            keys: Vec::new(),
        }))
    }

    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Whether it takes what comes.
    pub(crate) fn reads(&self) -> bool {
        !self.is_stalled && self.state != State::Connecting
    }

    pub(crate) fn received(&mut self, bytes: &[u8], counts: &mut Counts) {
        if !self.is_upgraded && bytes.starts_with(wire::UPGRADED) {
            self.is_upgraded = true;
            counts.upgraded += 1;
            if self.state == State::Requested {
                self.state = State::Open;
            }
        }
    }

    /// The socket has become writable: if that is because it is connected, asks for the upgrade.
    pub(crate) fn connected(mut self, rng: &mut Rng, counts: &mut Counts) -> Option<Self> {
        if self.state != State::Connecting || self.stream.peer_addr().is_err() {
            return Some(self);
        }
        self.state = State::Requested;
        match rng.u8(..20) {
            0 => self.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", counts),
            // It never says the rest.
            1 => {
                let some = rng.usize(..wire::UPGRADE.len());
                self.send(&wire::UPGRADE[..some], counts)
            }
            // It doesn't wait for the answer.
            2..8 => {
                self.state = State::Open;
                self.send(wire::UPGRADE, counts)
            }
            _ => self.send(wire::UPGRADE, counts),
        }
    }

    /// Does anything; `None` when that was the last.
    pub(crate) fn act(mut self, rng: &mut Rng, own: u32, counts: &mut Counts) -> Option<Self> {
        if self.is_stalled {
            self.is_stalled = rng.u8(..4) > 0;
        }
        if self.state != State::Open {
            // Under load the server takes its time to answer: most wait for it.
            return match rng.u8(..100) {
                0 => self.reset(counts),
                1 => self.vanish(counts),
                _ => Some(self),
            };
        }
        match rng.u8(..100) {
            0..30 => {
                let count = rng.usize(1..=8);
                self.subscribe(count, rng, own, counts)
            }
            30..34 => {
                let count = rng.usize(1..=MOST_SUBSCRIPTIONS);
                self.subscribe(count, rng, own, counts)
            }
            34..46 => self.unsubscribe(rng, own, counts),
            46..60 => {
                counts.secrets += 1;
                let secret = rng.u32(..SECRETS);
                self.send(&wire::secret(&row::secret(secret)), counts)
            }
            60..68 => {
                counts.garbage += 1;
                let text = GARBAGE[rng.usize(..GARBAGE.len())];
                self.send(&wire::client_frame(wire::TEXT, text.as_bytes()), counts)
            }
            68..72 => self.send(wire::PING, counts),
            72..75 => {
                counts.violations += 1;
                let violation = VIOLATIONS[rng.usize(..VIOLATIONS.len())];
                self.send(violation, counts)
            }
            75..82 => {
                counts.stalls += 1;
                self.is_stalled = true;
                Some(self)
            }
            82..86 => {
                counts.half_closed += 1;
                self.state = State::Leaving;
                // If the peer is gone already, reading will tell.
                let _ = self.stream.shutdown(Shutdown::Write);
                Some(self)
            }
            86..91 => self.reset(counts),
            91..96 => self.vanish(counts),
            _ => {
                counts.said_goodbye += 1;
                self.state = State::Leaving;
                // Half of them don't wait for the answer.
                self.send(CLOSE, counts).filter(|_| rng.bool())
            }
        }
    }

    fn subscribe(mut self, count: usize, rng: &mut Rng, own: u32, counts: &mut Counts) -> Option<Self> {
        counts.subscribed += count as u64;
        let keys: Vec<_> = (0..count).map(|_| Key::random(rng, own)).collect();
        let messages: Vec<_> = keys
            .iter()
            .map(|key| wire::subscribe(key.entity(), &key.id()))
            .collect();
        self.keys.extend(keys);
        self.send(&messages.concat(), counts)
    }

    fn unsubscribe(mut self, rng: &mut Rng, own: u32, counts: &mut Counts) -> Option<Self> {
        counts.unsubscribed += 1;
        let key = if self.keys.is_empty() {
            Key::random(rng, own)
        } else {
            self.keys.swap_remove(rng.usize(..self.keys.len()))
        };
        self.send(&wire::unsubscribe(key.entity(), &key.id()), counts)
    }

    fn reset(self, counts: &mut Counts) -> Option<Self> {
        counts.reset += 1;
        // Without it the close is an ordinary one, which does no harm.
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        None
    }

    fn vanish(self, counts: &mut Counts) -> Option<Self> {
        counts.vanished += 1;
        None
    }

    /// Whoever can't say all of it leaves in the middle of a frame.
    fn send(mut self, bytes: &[u8], counts: &mut Counts) -> Option<Self> {
        match self.stream.write(bytes) {
            Ok(sent) if sent == bytes.len() => Some(self),
            _ => self.vanish(counts),
        }
    }
}
