//! [`Crowd`]: many clients of one node, on one thread. They come back when their connection ends, as real clients do.
//!
//! Rows are texts that begin with the id of their key and a space. A client holds what came last of a key *on its present
//! connection*: what it was told before that ended counts for nothing, so that it is [stale](Crowd::stale) unless the
//! snapshot for its subscription, or a later push, has told it the newest state since.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use tungstenite::handshake::MidHandshake;
use tungstenite::handshake::client::ClientHandshake;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Bytes, Error, HandshakeError, Message, WebSocket};

use crate::data::Rows;

/// Between two attempts to connect.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// A connection that is not made within this is given up, and tried again.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

const TICK: Duration = Duration::from_millis(50);

/// Dropping it hangs up.
pub struct Crowd {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    is_over: AtomicBool,
    clients: Mutex<Clients>,
}

#[derive(Default)]
struct Clients {
    all: Vec<Held>,
    tally: Tally,
}

/// What came, of all clients together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Rows received.
    pub rows: u64,
    /// Connections that were made.
    pub connections: u64,
    /// Subscriptions that were sent.
    pub subscriptions: u64,
    /// Rows of keys that their receiver is not subscribed to.
    pub foreign: u64,
}

/// What one client knows.
#[derive(Default)]
struct Held {
    ids: Vec<u32>,
    /// The newest row of each id, on the present connection.
    rows: Vec<Option<String>>,
    /// Whether the node has taken in all of its subscriptions.
    is_subscribed: bool,
}

impl Crowd {
    /// A client for each list of ids, of the entity `items`, that it is to be subscribed to.
    pub fn start(node: SocketAddr, clients: impl IntoIterator<Item = Vec<u32>>) -> Self {
        let held = |ids: Vec<u32>| Held {
            rows: vec![None; ids.len()],
            ids,
            is_subscribed: false,
        };
        let all: Vec<_> = clients.into_iter().map(held).collect();
        let driver = Driver {
            node,
            poll: Poll::new().unwrap(),
            sockets: all.iter().map(|_| Socket::Down(Instant::now())).collect(),
        };
        let shared = Arc::new(Shared {
            is_over: AtomicBool::new(false),
            clients: Mutex::new(Clients {
                all,
                tally: Tally::default(),
            }),
        });
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || driver.run(&of_thread));
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// How many are connected, and have their subscriptions.
    pub fn subscribed(&self) -> usize {
        self.shared.lock().all.iter().filter(|it| it.is_subscribed).count()
    }

    /// Whether all are.
    pub fn is_subscribed(&self) -> bool {
        self.shared.lock().all.iter().all(|it| it.is_subscribed)
    }

    pub fn tally(&self) -> Tally {
        self.shared.lock().tally
    }

    /// Subscriptions that all of them have together when they are connected.
    pub fn subscriptions(&self) -> u64 {
        let clients = self.shared.lock();
        clients.all.iter().map(|it| it.ids.len() as u64).sum()
    }

    /// Who does not hold these rows: of each key of theirs, the newest state.
    pub fn stale(&self, truth: &Rows) -> Vec<String> {
        let clients = self.shared.lock();
        let mut stale = Vec::new();
        for (number, client) in clients.all.iter().enumerate() {
            if !client.is_subscribed {
                stale.push(format!("client {number} is not connected"));
                continue;
            }
            for (id, row) in client.ids.iter().zip(&client.rows) {
                let newest = truth.get(&id.to_string());
                if row.as_ref() != newest {
                    stale.push(format!("client {number} holds {row:?} of {id}, which is {newest:?}"));
                }
            }
        }
        stale
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's own.
struct Driver {
    node: SocketAddr,
    poll: Poll,
    sockets: Vec<Socket>,
}

enum Socket {
    /// Until it is tried again.
    Down(Instant),
    Connecting(TcpStream, Instant),
    Upgrading(MidHandshake<ClientHandshake<TcpStream>>, Instant),
    Open(Box<WebSocket<TcpStream>>),
}

impl Driver {
    fn run(mut self, shared: &Shared) {
        let mut events = Events::with_capacity(1024);
        let mut next_look = Instant::now();
        while !shared.is_over.load(Ordering::Relaxed) {
            if next_look <= Instant::now() {
                self.look_after_all(shared);
                next_look = Instant::now() + TICK;
            }
            match self.poll.poll(&mut events, Some(TICK)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result.unwrap(),
            }
            for event in &events {
                self.go_on(event.token().0, shared);
            }
        }
    }

    /// Connects those that are to, and gives up what takes too long.
    fn look_after_all(&mut self, shared: &Shared) {
        let now = Instant::now();
        for index in 0..self.sockets.len() {
            match &self.sockets[index] {
                Socket::Down(until) if *until <= now => self.connect(index),
                Socket::Connecting(_, until) | Socket::Upgrading(_, until) if *until <= now => {
                    self.hang_up(index, shared);
                }
                _ => {}
            }
        }
    }

    fn connect(&mut self, index: usize) {
        let until = Instant::now() + CONNECT_WITHIN;
        let connected = TcpStream::connect(self.node).and_then(|mut stream| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(index), interest)?;
            Ok(stream)
        });
        self.sockets[index] = match connected {
            Ok(stream) => Socket::Connecting(stream, until),
            Err(_) => Socket::Down(Instant::now() + RETRY_AFTER),
        };
    }

    fn hang_up(&mut self, index: usize, shared: &Shared) {
        // Not all at the same moment.
        let until = Instant::now() + RETRY_AFTER + RETRY_AFTER.mul_f64((index % 16) as f64 / 16.0);
        self.sockets[index] = Socket::Down(until);
        let client = &mut shared.lock().all[index];
        client.is_subscribed = false;
        client.rows.fill(None);
    }

    /// Something has happened to its socket.
    fn go_on(&mut self, index: usize, shared: &Shared) {
        let down = Socket::Down(Instant::now());
        let next = match std::mem::replace(&mut self.sockets[index], down) {
            Socket::Down(until) => Some(Socket::Down(until)),
            Socket::Connecting(stream, until) => match (stream.take_error(), stream.peer_addr()) {
                (Ok(None), Ok(_)) => {
                    // What comes is small, and there are thousands.
                    let config = WebSocketConfig::default().read_buffer_size(4096);
                    let url = format!("ws://{}/ws/entity-sync/", self.node);
                    let started = tungstenite::client::client_with_config(url, stream, Some(config));
                    open(index, shared, started, until)
                }
                (Ok(None), Err(error)) if error.kind() == ErrorKind::NotConnected => {
                    Some(Socket::Connecting(stream, until))
                }
                _ => None,
            },
            Socket::Upgrading(handshake, until) => open(index, shared, handshake.handshake(), until),
            Socket::Open(socket) => receive(index, shared, socket),
        };
        match next {
            Some(next) => self.sockets[index] = next,
            None => self.hang_up(index, shared),
        }
    }
}

type Upgraded<T> = Result<(WebSocket<TcpStream>, T), HandshakeError<ClientHandshake<TcpStream>>>;

fn open<T>(index: usize, shared: &Shared, upgraded: Upgraded<T>, until: Instant) -> Option<Socket> {
    let mut socket = match upgraded {
        Ok((socket, _)) => Box::new(socket),
        Err(HandshakeError::Interrupted(handshake)) => return Some(Socket::Upgrading(handshake, until)),
        Err(HandshakeError::Failure(_)) => return None,
    };
    let ids = {
        let mut clients = shared.lock();
        let ids = clients.all[index].ids.clone();
        clients.tally.connections += 1;
        clients.tally.subscriptions += ids.len() as u64;
        ids
    };
    for id in ids {
        let text = format!(r#"{{"action":"subscribe","body":{{"entity":"items","id":"{id}"}}}}"#);
        still_open(socket.write(Message::text(text)))?;
    }
    still_open(socket.write(Message::Ping(Bytes::from_static(b"subscribed"))))?;
    receive(index, shared, socket)
}

/// Takes in all that has come, and sends what waits.
fn receive(index: usize, shared: &Shared, mut socket: Box<WebSocket<TcpStream>>) -> Option<Socket> {
    loop {
        match socket.read() {
            Ok(Message::Text(row)) => {
                let mut clients = shared.lock();
                let Clients { all, tally } = &mut *clients;
                tally.rows += 1;
                let id = row.split(' ').next().and_then(|it| it.parse().ok());
                let client = &mut all[index];
                match client.ids.iter().position(|it| Some(*it) == id) {
                    Some(place) => client.rows[place] = Some(row.to_string()),
                    None => tally.foreign += 1,
                }
            }
            Ok(Message::Pong(_)) => shared.lock().all[index].is_subscribed = true,
            Ok(Message::Close(_)) => return None,
            Ok(_) => {}
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => break,
            Err(_) => return None,
        }
    }
    still_open(socket.flush())?;
    Some(Socket::Open(socket))
}

/// `None` if the connection has ended. What there is no room for now is sent when there is.
fn still_open(sent: tungstenite::Result<()>) -> Option<()> {
    match sent {
        Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Some(()),
        result => result.ok(),
    }
}
