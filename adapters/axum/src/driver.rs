//! [`Driver`]: one task that drives a guest shard for all streams that are more than a socket.
//!
//! A turn is a reactor's: take in who came; read from those that have something; do what the shard says.

use std::collections::VecDeque;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use entity_sync_core::{ConnId, Input, Opening, Output, Timestamp};
use entity_sync_mio::Guest;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::streams::{Io, Streams};

const READ_BUFFER_BYTES: usize = 16 * 1024;
/// Reads from one stream in one turn.
const READS_PER_TURN: usize = 4;
const NEWCOMERS_PER_TURN: usize = 64;
/// A turn ends after so many writes, give or take one broadcast's worth: other tasks want to run.
const WRITES_PER_TURN: usize = 1024;
/// A turn's reading ends after so long, however much each of those costs who have something to say. The rest comes first in
/// the next turn.
const READ_TIME_PER_TURN: Duration = Duration::from_millis(2);
const ACT_TIME_PER_TURN: Duration = Duration::from_millis(4);

/// A stream whose upgrade was answered.
pub(crate) struct Newcomer {
    pub(crate) stream: Box<dyn Io>,
    pub(crate) client: Client,
}

/// What its request said of a client.
pub(crate) struct Client {
    pub(crate) secret: Option<Arc<str>>,
    pub(crate) peer: Option<IpAddr>,
    pub(crate) wants_snapshots: bool,
}

/// Ends when the server is shut down, or all who could send a newcomer and all connections are gone.
pub(crate) struct Driver {
    guest: Guest,
    newcomers: mpsc::Receiver<Newcomer>,
    /// Nobody can come any more.
    is_closed: bool,
    streams: Streams,
    /// Those that have called, and when the first `left` of them did at the latest.
    called: VecDeque<ConnId>,
    left: usize,
    left_since: Timestamp,
    /// All that had come by then was read.
    read_until: Timestamp,
    buffer: Box<[u8]>,
    /// May go off too early, never too late.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Driver {
    pub(crate) fn new(guest: Guest, newcomers: mpsc::Receiver<Newcomer>) -> Self {
        Self {
            guest,
            newcomers,
            is_closed: false,
            streams: Streams::default(),
            called: VecDeque::new(),
            left: 0,
            left_since: Timestamp::START,
            read_until: Timestamp::START,
            buffer: vec![0; READ_BUFFER_BYTES].into(),
            timer: None,
        }
    }

    /// Says whether all who came were taken in.
    fn admit(&mut self, cx: &mut Context<'_>) -> bool {
        for _ in 0..NEWCOMERS_PER_TURN {
            match self.newcomers.poll_recv(cx) {
                Poll::Ready(Some(newcomer)) => self.take_in(newcomer),
                Poll::Ready(None) => {
                    self.is_closed = true;
                    return true;
                }
                Poll::Pending => return true,
            }
        }
        false
    }

    fn take_in(&mut self, newcomer: Newcomer) {
        let mut opening = Opening::default();
        opening.peer = newcomer.client.peer;
        opening.is_upgraded = true;
        opening.secret = newcomer.client.secret;
        opening.wants_snapshots = newcomer.client.wants_snapshots;
        let now = self.guest.now();
        match self.guest.shard().open_with(now, &opening) {
            Ok(conn) => {
                let client = self.guest.shard().client_id(conn);
                tracing::debug!(%client, peer = ?opening.peer, "connected");
                self.streams.insert(conn, newcomer.stream);
            }
            Err(refused) => tracing::debug!(peer = ?opening.peer, %refused, "connection refused"),
        }
    }

    fn attend(&mut self) {
        let began = self.guest.now();
        self.called.extend(self.streams.take_ready());
        if self.left == 0 {
            (self.left, self.left_since) = (self.called.len(), began);
        }
        for _ in 0..self.called.len() {
            let Some(conn) = self.called.pop_front() else {
                break;
            };
            self.attend_to(conn);
            self.left = self.left.saturating_sub(1);
            if self.guest.now().since(began) >= READ_TIME_PER_TURN {
                break;
            }
        }
        if self.left == 0 {
            self.read_until = self.left_since;
        }
    }

    fn attend_to(&mut self, conn: ConnId) {
        let now = self.guest.now();
        if self.streams.take_blocked(conn) {
            self.guest.shard().handle(now, Input::Writable { conn });
        }
        if self.streams.resume(conn).is_err() {
            return self.guest.shard().handle(now, Input::Closed { conn });
        }
        for _ in 0..READS_PER_TURN {
            if self.guest.shard().is_paused(conn) {
                return;
            }
            let input = match self.streams.read(conn, &mut self.buffer) {
                Ok(None) => return,
                Ok(Some(0)) => Input::Eof { conn },
                Ok(Some(bytes)) => Input::Received {
                    conn,
                    bytes: &mut self.buffer[..bytes],
                },
                Err(_) => Input::Closed { conn },
            };
            let is_over = !matches!(input, Input::Received { .. });
            self.guest.shard().handle(now, input);
            if is_over {
                return;
            }
        }
        // The rest in the next turn, so that one loud client starves nobody.
        self.streams.list(conn);
    }

    /// Does what the shard says. Says whether that was all.
    fn act(&mut self) -> bool {
        let Self {
            guest,
            streams,
            read_until,
            ..
        } = self;
        guest.shard().handle_timeout(*read_until);
        let began = guest.now();
        let mut now = began;
        let mut writes = 0;
        let mut is_done = false;
        while writes < WRITES_PER_TURN && now.since(began) < ACT_TIME_PER_TURN && !is_done {
            writes += 1;
            now = guest.now();
            match guest.shard().poll_output(now) {
                None => is_done = true,
                Some(Output::Broadcast(broadcast)) => broadcast.for_each(|conn, chunk| {
                    writes += 1;
                    streams.write(conn, &[chunk])
                }),
                Some(Output::Flush(flush)) => flush.write(|conn, chunks| streams.write(conn, chunks)),
                Some(Output::Resume(conn)) => streams.list(conn),
                Some(Output::Shutdown(conn)) => streams.shut_down(conn),
                Some(Output::Close(conn)) => {
                    streams.remove(conn);
                    let client = guest.shard().client_id(conn);
                    tracing::debug!(%client, "disconnected");
                }
            }
        }
        let mut has_failed = false;
        streams.flush_all(|conn| {
            has_failed = true;
            guest.shard().handle(now, Input::Closed { conn });
        });
        is_done && !has_failed
    }

    /// Says whether it is time for another turn already.
    fn is_due(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(after) = self.guest.timeout() else {
            return false;
        };
        if after.is_zero() {
            return true;
        }
        let at = Instant::now() + after;
        let timer = match &mut self.timer {
            Some(timer) => {
                if timer.is_elapsed() || timer.deadline() > at {
                    timer.as_mut().reset(at);
                }
                timer
            }
            none => none.insert(Box::pin(sleep_until(at))),
        };
        timer.as_mut().poll(cx).is_ready()
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.guest.set_waker(cx.waker());
        let has_admitted_all = this.admit(cx);
        if this.guest.has_stopped() {
            return Poll::Ready(());
        }
        this.attend();
        let is_done = this.act() && has_admitted_all;
        if this.is_closed && this.guest.shard().connections() == 0 && is_done {
            return Poll::Ready(());
        }
        // Called in any case, as it sets the waker.
        let is_called = this.streams.call(cx.waker());
        if is_called || !this.called.is_empty() || !is_done || this.is_due(cx) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}
