//! [`Link`]: one connection to an nsqd, from its first bytes on.

use std::io::{self, ErrorKind};

use serde::Deserialize;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::error::{Answer, Awaited, Said, SessionError};
use crate::status::{Nsqd, Shared};
use crate::wire::{self, Frame};

/// How much is read at a time, and how much may wait to be written before more is added.
const CHUNK_BYTES: usize = 16 * 1024;

/// A connection to an nsqd that knows who we are. Heartbeats are answered and seen by nobody else.
pub(crate) struct Link {
    stream: TcpStream,
    received: Vec<u8>,
    /// How much of `received` is used up.
    used: usize,
    /// What is to be written. Whoever adds to it calls [`turn`](Self::turn) afterwards.
    pub(crate) outgoing: Vec<u8>,
    max_frame_bytes: usize,
    /// No whole frame for as long as this, and it is dead: nsqd sends a heartbeat in half of it.
    silence: std::time::Duration,
    timeout: std::time::Duration,
    heard_at: Instant,
    /// When bytes were last written, or when there was first something to write after there was nothing.
    wrote_at: Option<Instant>,
    /// How many messages it sends at a time at most.
    pub(crate) max_ready: u16,
}

/// What of nsqd's answer to `IDENTIFY` is of interest.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Features {
    auth_required: bool,
    max_rdy_count: Option<u64>,
    tls_v1: bool,
    deflate: bool,
    snappy: bool,
}

impl Link {
    /// Connects and introduces us.
    pub(crate) async fn open(shared: &Shared, nsqd: &Nsqd) -> Result<Self, SessionError> {
        let config = &shared.config;
        let deadline = Instant::now() + config.timeout;
        let stream = timeout_at(deadline, TcpStream::connect(&nsqd.address))
            .await
            .map_err(|_| SessionError::Timeout(Awaited::Connection))?
            .map_err(SessionError::Connect)?;
        // Whoever can't have it is slower, and that is all.
        let _ = stream.set_nodelay(true);
        let mut link = Self {
            stream,
            received: Vec::new(),
            used: 0,
            outgoing: wire::MAGIC.to_vec(),
            max_frame_bytes: wire::frame_bytes(config.max_message_bytes),
            silence: config.heartbeat * 2,
            timeout: config.timeout,
            heard_at: Instant::now(),
            wrote_at: None,
            max_ready: u16::MAX,
        };
        wire::identify(&mut link.outgoing, &shared.identity);
        link.max_ready = match link.answer(deadline).await? {
            // An nsqd without feature negotiation.
            wire::OK => u16::MAX,
            json => {
                let features: Features =
                    serde_json::from_slice(json).map_err(|_| SessionError::Unexpected(Said::new(json)))?;
                if features.auth_required {
                    return Err(SessionError::AuthRequired);
                }
                if features.tls_v1 || features.deflate || features.snappy {
                    return Err(SessionError::Unexpected(Said::new(json)));
                }
                features
                    .max_rdy_count
                    .map_or(u16::MAX, |it| u16::try_from(it).unwrap_or(u16::MAX))
            }
        };
        Ok(link)
    }

    /// What is answered to the one command that is not answered yet.
    pub(crate) async fn answer(&mut self, deadline: Instant) -> Result<&[u8], SessionError> {
        while !self.has_frame()? {
            self.turn(Some(deadline)).await?;
        }
        match self.frame()? {
            Some(Frame::Response(data)) => Ok(data),
            Some(Frame::Error(data)) => Err(SessionError::Answer(Answer::new(data))),
            Some(Frame::Message(message)) => Err(SessionError::Unexpected(Said::new(message.body))),
            None => Err(SessionError::Closed),
        }
    }

    /// The next frame of what was received.
    pub(crate) fn frame(&mut self) -> Result<Option<Frame<'_>>, SessionError> {
        if !self.has_frame()? {
            return Ok(None);
        }
        let Some((frame, bytes)) = wire::decode(&self.received[self.used..], self.max_frame_bytes)? else {
            return Ok(None);
        };
        self.used += bytes;
        Ok(Some(frame))
    }

    /// Whether a frame is there. Answers heartbeats.
    fn has_frame(&mut self) -> Result<bool, SessionError> {
        while let Some((frame, bytes)) = wire::decode(&self.received[self.used..], self.max_frame_bytes)? {
            // Whole frames only: one that never ends must not keep a connection alive that says nothing.
            self.heard_at = Instant::now();
            if frame != Frame::Response(wire::HEARTBEAT) {
                return Ok(true);
            }
            self.used += bytes;
            wire::nop(&mut self.outgoing);
        }
        Ok(false)
    }

    /// Whether more may be added to what is to be written.
    pub(crate) fn has_room(&self) -> bool {
        self.outgoing.len() < CHUNK_BYTES
    }

    /// Writes what is to be written, until something was received. May be dropped at any time, and called again.
    pub(crate) async fn turn(&mut self, answer_by: Option<Instant>) -> Result<(), SessionError> {
        self.received.drain(..self.used);
        self.used = 0;
        // A connection in a flood must not keep the others waiting.
        tokio::task::consume_budget().await;
        loop {
            self.flush()?;
            let interest = match (self.outgoing.is_empty(), self.has_room()) {
                (true, _) => Interest::READABLE,
                (false, true) => Interest::READABLE | Interest::WRITABLE,
                // Whoever doesn't read is not read from, or answers to heartbeats would pile up.
                (false, false) => Interest::WRITABLE,
            };
            let (deadline, awaited) = self.deadline(answer_by);
            let ready = match timeout_at(deadline, self.stream.ready(interest)).await {
                Ok(ready) => ready.map_err(SessionError::Io)?,
                Err(_) => return Err(SessionError::Timeout(awaited)),
            };
            if ready.is_readable() && self.has_room() {
                self.received.reserve(CHUNK_BYTES);
                match self.stream.try_read_buf(&mut self.received) {
                    Ok(0) => return Err(SessionError::Closed),
                    Ok(_) => return Ok(()),
                    Err(error) if is_for_later(&error) => {}
                    Err(error) => return Err(SessionError::Io(error)),
                }
            }
        }
    }

    fn flush(&mut self) -> Result<(), SessionError> {
        while !self.outgoing.is_empty() {
            match self.stream.try_write(&self.outgoing) {
                Ok(0) => return Err(SessionError::Closed),
                Ok(bytes) => {
                    self.outgoing.drain(..bytes);
                    self.wrote_at = Some(Instant::now());
                }
                Err(error) if is_for_later(&error) => {
                    self.wrote_at.get_or_insert_with(Instant::now);
                    return Ok(());
                }
                Err(error) => return Err(SessionError::Io(error)),
            }
        }
        self.wrote_at = None;
        Ok(())
    }

    fn deadline(&self, answer_by: Option<Instant>) -> (Instant, Awaited) {
        let room_by = self.wrote_at.map(|it| it + self.timeout);
        [(room_by, Awaited::Room), (answer_by, Awaited::Answer)]
            .into_iter()
            .filter_map(|(deadline, awaited)| deadline.map(|it| (it, awaited)))
            .fold((self.heard_at + self.silence, Awaited::Heartbeat), |a, b| {
                if b.0 < a.0 { b } else { a }
            })
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
