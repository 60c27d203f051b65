//! [`Reactor`]: one thread with one epoll instance, its own listeners and connections, and its own shard.
//!
//! A turn: wait; tell the shard what happened; do what it says. Events are edge-triggered, so a socket is read until it
//! has nothing more, but only a little in one turn: the rest stays on a list, so that one loud client starves nobody.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use entity_sync_core::{ConnId, Input, Opening, Output, Shard, Timestamp};
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use tracing::Span;

use crate::adopt::{Adopted, Inbox};
use crate::clock::Clock;
use crate::heard::Heard;
use crate::sockets::Sockets;
use crate::{ReactorCounts, Stop};

pub(crate) const WAKER: Token = Token(usize::MAX);
/// Listeners have the tokens below [`WAKER`]. No connection has: its upper half would be the last of 2³² generations.
const MAX_LISTENERS: usize = 1024;

const EVENTS: usize = 1024;
const READ_BUFFER_BYTES: usize = 64 * 1024;
/// Reads from one socket in one turn.
const READS_PER_TURN: usize = 4;
/// A turn's reading ends after so long, however much each of those costs who have something to say: others wait for what
/// they are to be sent. The rest comes first in the next turn.
const READ_TIME_PER_TURN: Duration = Duration::from_millis(2);
const ACCEPTS_PER_TURN: usize = 64;
/// A turn ends after so many writes, give or take one broadcast's worth, or after so long: others want to be heard.
const WRITES_PER_TURN: usize = 1024;
const ACT_TIME_PER_TURN: Duration = Duration::from_millis(4);
/// When the process is out of files, accepting rests for so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Adopted connections taken in one turn.
const ADOPTIONS_PER_TURN: usize = 256;

pub(crate) struct Reactor {
    shard: Shard,
    poll: Poll,
    listeners: Vec<Listener>,
    sockets: Sockets,
    /// Of each connection, if anyone wants to hear of them: the sockets are to stay small.
    spans: HashMap<ConnId, Span>,
    /// Sockets that may have more to read.
    readable: VecDeque<ConnId>,
    heard: Heard,
    buffer: Vec<u8>,
    clock: Clock,
    /// Connections that were accepted elsewhere.
    inbox: Arc<Inbox>,
    counters: Arc<ReactorCounters>,
    stop: Arc<Stop>,
    is_stopping: bool,
    accept_paused_until: Option<Instant>,
}

/// What a reactor counts.
#[derive(Debug, Default)]
pub(crate) struct ReactorCounters {
    accepted: AtomicU64,
    adopted: AtomicU64,
    out_of_files: AtomicU64,
    accept_pauses: AtomicU64,
    turns: AtomicU64,
}

impl ReactorCounters {
    pub(crate) fn add_to(&self, sum: &mut ReactorCounts) {
        sum.accepted += self.accepted.load(Ordering::Relaxed);
        sum.adopted += self.adopted.load(Ordering::Relaxed);
        sum.out_of_files += self.out_of_files.load(Ordering::Relaxed);
        sum.accept_pauses += self.accept_pauses.load(Ordering::Relaxed);
        sum.turns += self.turns.load(Ordering::Relaxed);
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

struct Listener {
    socket: TcpListener,
    is_readable: bool,
}

impl Reactor {
    pub(crate) fn new(
        shard: Shard,
        poll: Poll,
        listeners: Vec<TcpListener>,
        inbox: Arc<Inbox>,
        counters: Arc<ReactorCounters>,
        clock: Clock,
        stop: Arc<Stop>,
    ) -> io::Result<Self> {
        if listeners.len() > MAX_LISTENERS {
            return Err(io::Error::other("more than 1,024 addresses"));
        }
        let mut listeners: Vec<_> = listeners
            .into_iter()
            .map(|socket| Listener {
                socket,
                is_readable: false,
            })
            .collect();
        for (index, listener) in listeners.iter_mut().enumerate() {
            let token = Token(WAKER.0 - 1 - index);
            poll.registry()
                .register(&mut listener.socket, token, Interest::READABLE)?;
        }
        Ok(Self {
            shard,
            poll,
            listeners,
            sockets: Sockets::default(),
            spans: HashMap::new(),
            readable: VecDeque::new(),
            heard: Heard::default(),
            buffer: vec![0; READ_BUFFER_BYTES],
            clock,
            inbox,
            counters,
            stop,
            is_stopping: false,
            accept_paused_until: None,
        })
    }

    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        let mut is_done = false;
        loop {
            match self.poll.poll(&mut events, self.timeout(is_done)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The epoll instance itself is broken, which no waiting mends: whoever supervises the thread reports it.
                Err(error) => resume_unwind(Box::new(format!("its events can't be waited for: {error}"))),
            }
            count(&self.counters.turns);
            self.note(&events);
            self.accept();
            let has_adopted_all = self.adopt();
            self.read();
            let is_over = self.stop.is_requested() && self.has_stopped();
            self.shard.handle_timeout(self.heard.until());
            // The last to leave are seen off, too.
            is_done = self.act() && has_adopted_all;
            if is_over {
                return;
            }
        }
    }

    /// How long to sleep: not at all while anything is left over from this turn.
    fn timeout(&self, is_done: bool) -> Option<Duration> {
        if !is_done || !self.readable.is_empty() || self.can_accept() {
            return Some(Duration::ZERO);
        }
        let now = self.clock.now();
        let shard = self.shard.poll_timeout().map(|at| at.since(now));
        let accept = self
            .accept_paused_until
            .map(|until| until.saturating_duration_since(Instant::now()));
        let stop = self.is_stopping.then(|| self.stop.time_left());
        [shard, accept, stop].into_iter().flatten().min()
    }

    fn note(&mut self, events: &Events) {
        let now = self.clock.now();
        let mut count = 0;
        for event in events {
            count += 1;
            let Token(token) = event.token();
            if token == WAKER.0 {
                continue;
            }
            if let Some(listener) = self.listeners.get_mut(WAKER.0 - 1 - token) {
                listener.is_readable = true;
                continue;
            }
            let conn = ConnId::from_u64(token as u64);
            if event.is_writable() {
                self.shard.handle(now, Input::Writable { conn });
            }
            if (event.is_readable() || event.is_read_closed() || event.is_error()) && self.sockets.list(conn) {
                self.readable.push_back(conn);
            }
        }
        let (sockets, unread) = (self.shard.connections(), self.readable.len());
        self.heard.told(now, count, EVENTS, sockets, unread);
    }

    fn can_accept(&self) -> bool {
        self.accept_paused_until.is_none() && self.listeners.iter().any(|it| it.is_readable)
    }

    fn accept(&mut self) {
        if self.accept_paused_until.is_some_and(|until| until <= Instant::now()) {
            self.accept_paused_until = None;
        }
        if !self.can_accept() {
            return;
        }
        let now = self.clock.now();
        // Listeners are changed in place while connections are taken in, which needs the whole reactor.
        let mut listeners = std::mem::take(&mut self.listeners);
        for listener in listeners.iter_mut().filter(|it| it.is_readable) {
            if let Err(pause) = self.accept_from(listener, now) {
                self.accept_paused_until = Some(Instant::now() + pause);
                break;
            }
        }
        self.listeners = listeners;
    }

    /// # Errors
    /// How long accepting has to rest. What is connected goes on; the others wait in the kernel's queue.
    fn accept_from(&mut self, listener: &mut Listener, now: Timestamp) -> Result<(), Duration> {
        for _ in 0..ACCEPTS_PER_TURN {
            if let Err(at) = self.shard.may_accept(now) {
                count(&self.counters.accept_pauses);
                return Err(at.since(now));
            }
            match listener.socket.accept() {
                Ok((stream, peer)) => {
                    count(&self.counters.accepted);
                    let mut opening = Opening::default();
                    opening.peer = Some(peer.ip());
                    self.take_in(now, stream, &opening);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    listener.is_readable = false;
                    break;
                }
                // This one connection failed before we took it.
                Err(error) if is_about_the_peer(&error) => {}
                // Out of files or memory.
                Err(_) => {
                    count(&self.counters.out_of_files);
                    return Err(ACCEPT_PAUSE);
                }
            }
        }
        Ok(())
    }

    /// Takes in what was accepted elsewhere. Says whether that was all.
    fn adopt(&mut self) -> bool {
        let now = self.clock.now();
        for _ in 0..ADOPTIONS_PER_TURN {
            let Some(Adopted {
                stream,
                mut received,
                is_upgraded,
                secret,
                peer,
                wants_snapshots,
            }) = self.inbox.pop()
            else {
                return true;
            };
            count(&self.counters.adopted);
            let mut opening = Opening::default();
            opening.peer = peer.or_else(|| Some(stream.peer_addr().ok()?.ip()));
            opening.is_upgraded = is_upgraded;
            opening.secret = secret;
            opening.wants_snapshots = wants_snapshots;
            let conn = self.take_in(now, mio::net::TcpStream::from_std(stream), &opening);
            if let Some(conn) = conn
                && !received.is_empty()
            {
                let bytes = &mut received[..];
                self.shard.handle(now, Input::Received { conn, bytes });
            }
        }
        false
    }

    fn take_in(&mut self, now: Timestamp, stream: mio::net::TcpStream, opening: &Opening) -> Option<ConnId> {
        let conn = match self.shard.open_with(now, opening) {
            Ok(conn) => conn,
            Err(refused) => {
                tracing::debug!(peer = ?opening.peer, %refused, "connection refused");
                return None;
            }
        };
        // Frames are written whole, so there is nothing to gain by waiting for more.
        let _ = stream.set_nodelay(true);
        if self.sockets.insert(self.poll.registry(), conn, stream).is_err() {
            self.shard.handle(now, Input::Closed { conn });
            return None;
        }
        let span = tracing::debug_span!("connection", client = %self.shard.client_id(conn), peer = ?opening.peer);
        if !span.is_disabled() {
            span.in_scope(|| tracing::debug!("connected"));
            self.spans.insert(conn, span);
        }
        Some(conn)
    }

    fn read(&mut self) {
        let began = self.clock.now();
        // Those that are put back belong to the next turn.
        for _ in 0..self.readable.len() {
            let Some(conn) = self.readable.pop_front() else {
                break;
            };
            self.heard.read_one();
            if self.read_from(conn) {
                self.readable.push_back(conn);
            } else {
                self.sockets.unlist(conn);
            }
            if self.clock.now().since(began) >= READ_TIME_PER_TURN {
                break;
            }
        }
    }

    /// Says whether there may be more to read.
    fn read_from(&mut self, conn: ConnId) -> bool {
        let now = self.clock.now();
        for _ in 0..READS_PER_TURN {
            if self.shard.is_paused(conn) {
                return false;
            }
            let input = match self.sockets.read(conn, &mut self.buffer) {
                Ok(None) => return false,
                Ok(Some(0)) => Input::Eof { conn },
                Ok(Some(bytes)) => Input::Received {
                    conn,
                    bytes: &mut self.buffer[..bytes],
                },
                Err(_) => Input::Closed { conn },
            };
            let is_over = !matches!(input, Input::Received { .. });
            // What a client says is heard within its span; what it is sent is not, as nothing is looked up on that way.
            let span = if self.spans.is_empty() {
                None
            } else {
                self.spans.get(&conn)
            };
            let shard = &mut self.shard;
            match span {
                Some(span) => span.in_scope(|| shard.handle(now, input)),
                None => shard.handle(now, input),
            }
            if is_over {
                return false;
            }
        }
        true
    }

    /// Does what the shard says. Says whether that was all.
    fn act(&mut self) -> bool {
        let Self {
            shard,
            sockets,
            spans,
            readable,
            clock,
            ..
        } = self;
        let mut writes = 0;
        let began = clock.now();
        let mut now = began;
        while writes < WRITES_PER_TURN && now.since(began) < ACT_TIME_PER_TURN {
            writes += 1;
            now = clock.now();
            match shard.poll_output(now) {
                None => return true,
                Some(Output::Broadcast(broadcast)) => broadcast.for_each(|conn, chunk| {
                    writes += 1;
                    sockets.write(conn, chunk)
                }),
                Some(Output::Flush(flush)) => {
                    flush.write(|conn, chunks| sockets.write_gathered(conn, chunks));
                }
                Some(Output::Resume(conn)) => {
                    if sockets.list(conn) {
                        readable.push_back(conn);
                    }
                }
                Some(Output::Shutdown(conn)) => sockets.shut_down(conn),
                Some(Output::Close(conn)) => {
                    sockets.remove(conn);
                    if let Some(span) = spans.remove(&conn) {
                        span.in_scope(|| tracing::debug!("disconnected"));
                    }
                }
            }
        }
        false
    }

    /// Begins to stop, or says whether it is over.
    fn has_stopped(&mut self) -> bool {
        if !self.is_stopping {
            self.is_stopping = true;
            self.listeners.clear();
            self.inbox.close();
            if let Some(options) = self.stop.drain() {
                self.shard.drain(self.clock.now(), options);
            }
        }
        self.shard.connections() == 0 || self.stop.time_left().is_zero()
    }
}

impl Drop for Reactor {
    /// Whoever hands over a connection from now on is told.
    fn drop(&mut self) {
        self.inbox.close();
    }
}

fn is_about_the_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::PermissionDenied
    )
}
