//! Backpressure on a client: reading from its socket stops, so that TCP slows down the client and nobody else.
//!
//! A connection may be paused for several reasons at once, and is read from again when none is left.

use super::{ConnId, Shard};

/// Why a connection is not read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// It has sent more than one turn's work; the rest is held and worked on in later turns.
    Backlog = 1,
    /// It has changed its secret more often than `max_secret_changes` in `secret_window`.
    SecretRate = 2,
    /// The application has more of its messages than it can take.
    Application = 4,
}

/// The reasons for which a connection is not read from: a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pauses(u8);

impl Pauses {
    pub(super) fn any(self) -> bool {
        self.0 != 0
    }

    pub(super) fn has(self, why: Pause) -> bool {
        self.0 & why as u8 != 0
    }

    pub(super) fn besides(self, why: Pause) -> bool {
        self.0 & !(why as u8) != 0
    }

    pub(super) fn is_only(self, why: Pause) -> bool {
        self.0 == why as u8
    }

    /// Signs of life may lie unread through no fault of the client's.
    pub(super) fn hides_life(self) -> bool {
        self.any()
    }

    fn set(&mut self, why: Pause) {
        self.0 |= why as u8;
    }

    fn clear(&mut self, why: Pause) {
        self.0 &= !(why as u8);
    }
}

impl Shard {
    /// Whether the driver is to leave unread what this connection's socket has, until
    /// [`Output::Resume`](super::Output::Resume). Ask before each read: [`handle`](Self::handle) may change it for its
    /// connection. Bytes that are handed over nevertheless are held, up to a limit at which the connection is closed.
    pub fn is_paused(&self, conn: ConnId) -> bool {
        self.conns.get(conn.0).is_some_and(|it| it.pauses.any())
    }

    /// Reading from a connection stops.
    pub(super) fn pause(&mut self, conn: ConnId, why: Pause) {
        if let Some(state) = self.conns.get_mut(conn.0) {
            if !state.pauses.any() {
                self.counters.read_pauses.add_alone(1);
            }
            state.pauses.set(why);
        }
    }

    /// One reason not to read from a connection is gone.
    pub(super) fn resume(&mut self, conn: ConnId, why: Pause) {
        let patient_now = self.patient_now();
        if let Some(state) = self.conns.get_mut(conn.0)
            && state.pauses.has(why)
        {
            state.pauses.clear(why);
            if !state.pauses.any() {
                // What it has sent meanwhile could not be seen.
                state.last_alive = patient_now;
                self.resumed.push_back(conn);
            } else {
                self.list_backlog(conn);
            }
        }
    }

    /// No reason not to read from a connection is left: nothing that it says is acted on any more, and its end is awaited.
    pub(super) fn resume_all(&mut self, conn: ConnId) {
        if let Some(state) = self.conns.get_mut(conn.0)
            && std::mem::take(&mut state.pauses).any()
        {
            self.resumed.push_back(conn);
        }
    }

    /// The next connection to be read from again.
    pub(super) fn next_resumed(&mut self) -> Option<ConnId> {
        while let Some(conn) = self.resumed.pop_front() {
            // It may have been paused anew, or have ended.
            if self.conns.get(conn.0).is_some_and(|it| !it.pauses.any()) {
                return Some(conn);
            }
        }
        None
    }
}
