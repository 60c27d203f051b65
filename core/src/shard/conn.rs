//! [`Conn`]: what a shard keeps for every connection, and [`Extra`], what few of them need.

use std::collections::VecDeque;

use super::pause::Pauses;
use crate::outbox::Outbox;
use crate::subscriptions::TopicId;
use crate::time::Timestamp;
use crate::ws::Decoder;

/// What the shard keeps for every connection; see `docs/architecture.md` for its bytes.
pub(super) struct Conn {
    /// What few connections need at any one time.
    pub(super) extra: Option<Box<Extra>>,
    /// It was set when the connection was opened, and the client has no say in it.
    pub(super) is_secret_fixed: bool,
    /// Each of its subscriptions is answered with the present state, whatever its entity says.
    pub(super) wants_snapshots: bool,
    pub(super) last_alive: Timestamp,
    /// When its changes of the secret will count no more.
    pub(super) secrets_until: Timestamp,
    pub(super) phase: Phase,
    /// The socket is full: wait for [`Input::Writable`].
    pub(super) blocked: bool,
    /// It stands in `ready`.
    pub(super) listed: bool,
    /// It stands in `urgent`.
    pub(super) is_urgent: bool,
    pub(super) pauses: Pauses,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its HTTP request is awaited.
    Upgrading,
    /// It speaks WebSocket.
    Open,
    /// The last bytes for it are queued; nothing from it counts any more.
    Closing,
    /// All is sent and our side is closed; the peer's end is awaited, so that it isn't reset while it still reads.
    Lingering,
}

#[derive(Default)]
pub(super) struct Extra {
    /// Bytes to be worked on: the beginning of an HTTP request, or frames behind what the connection's turn may cost.
    pub(super) held: Vec<u8>,
    /// The beginning of a WebSocket message.
    pub(super) decoder: Decoder,
    /// Of those two, the bytes that are in the sum of all.
    pub(super) counted: usize,
    pub(super) outbox: Outbox,
    /// Topics of which rows were withheld.
    pub(super) dirty: VecDeque<TopicId>,
    /// Reads asked for by this connection alone that have not come.
    pub(super) wanted: u32,
    /// How many there may be; 0 is 1.
    pub(super) max_wanted: u32,
    /// The bytes of rows that were queued when others found no room behind them; 0 once those are asked for again. They are when
    /// half of that has gone: large rows that a slow client has no room for would be read over and over.
    pub(super) refused_at: usize,
    /// [`Timers`] will look after those reads.
    pub(super) is_timed: bool,
}

impl Conn {
    pub(super) fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Gives back what is not needed any more: an idle connection owns no buffer.
    pub(super) fn tidy(&mut self) {
        if self.extra.as_ref().is_some_and(|extra| extra.is_idle()) {
            self.extra = None;
        }
    }

    /// Nothing is queued and the socket isn't full: a group may be written straight away.
    pub(super) fn is_clear(&self) -> bool {
        !self.blocked && self.extra.as_ref().is_none_or(|extra| extra.outbox.is_empty())
    }

    pub(super) fn unlist(&mut self, is_urgent: bool) {
        if is_urgent {
            self.is_urgent = false;
        } else {
            self.listed = false;
        }
    }

    pub(super) fn can_flush(&self) -> bool {
        !self.blocked
            && self
                .extra
                .as_ref()
                .is_some_and(|extra| !extra.outbox.is_empty() && !extra.outbox.is_lent())
    }
}

impl Extra {
    /// What is kept of the client's bytes.
    pub(super) fn input_bytes(&self) -> usize {
        self.held.capacity() + self.decoder.kept_bytes()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.held.is_empty()
            && self.decoder.is_idle()
            && self.counted == 0
            && self.outbox.is_empty()
            && self.dirty.is_empty()
            && self.wanted == 0
    }
}
