//! How much of a client's input is worked on at once. What a client sends costs what it makes the shard do, not its
//! bytes; so each connection has a budget of work, and what lies behind it waits for the connection's next turn.
//!
//! Connections with such a backlog take turns, one at each [`Shard::poll_output`], and aren't read from.

use super::pause::Pause;
use super::{ConnId, Phase, Shard, TRY_AGAIN_LATER};
use crate::ws::close_frame;

/// What a driver may hand over of a connection that it should not read from: more than it can have begun to read.
const MAX_HELD_BYTES: usize = 1024 * 1024;

impl Shard {
    /// Frames have come in: acts on them, as far as the budget goes.
    pub(super) fn received_frames(&mut self, conn: ConnId, bytes: &mut [u8]) {
        let mut rest = bytes;
        if !self.is_paused(conn) && !self.has_orders() {
            let taken = self.act_on_frames(conn, rest);
            rest = rest.get_mut(taken..).unwrap_or_default();
        }
        if !rest.is_empty() {
            self.hold(conn, rest);
        }
    }

    /// Something costs this many units, each about what a short message does.
    pub(super) fn spend(&mut self, units: usize) {
        self.work_left = self.work_left.saturating_sub(units);
    }

    /// Whether there are bytes that a connection's next turn is to work on.
    pub(super) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Gives one connection with a backlog its turn.
    pub(super) fn work_on_backlog(&mut self) {
        while let Some(conn) = self.backlog.pop_front() {
            let state = self.conns.get_mut(conn.0).filter(|it| it.phase == Phase::Open);
            // Who is paused for another reason as well is listed again when that is gone.
            let Some(state) = state.filter(|it| it.pauses.is_only(Pause::Backlog)) else {
                continue;
            };
            let mut held = std::mem::take(&mut state.extra().held);
            let taken = self.act_on_frames(conn, &mut held);
            let Some(state) = self.conns.get_mut(conn.0).filter(|it| it.phase == Phase::Open) else {
                return;
            };
            held.drain(..taken);
            if held.is_empty() {
                state.tidy();
                self.resume(conn, Pause::Backlog);
            } else {
                state.extra().held = held;
                self.list_backlog(conn);
            }
            self.count_input(conn);
            return;
        }
    }

    /// Keeps bytes for the connection's next turn.
    fn hold(&mut self, conn: ConnId, bytes: &[u8]) {
        let Some(state) = self.conns.get_mut(conn.0).filter(|it| it.phase == Phase::Open) else {
            return;
        };
        let is_listed = state.pauses.has(Pause::Backlog);
        let held = &mut state.extra().held;
        if held.len() + bytes.len() > MAX_HELD_BYTES {
            self.counters.refused_input.add_alone(1);
            return self.close(conn, close_frame(Some(TRY_AGAIN_LATER), "sent too much at once"));
        }
        held.extend_from_slice(bytes);
        if !is_listed {
            self.pause(conn, Pause::Backlog);
            self.list_backlog(conn);
        }
    }

    /// Has a connection wait for its next turn, unless it is paused for another reason as well.
    pub(super) fn list_backlog(&mut self, conn: ConnId) {
        if self
            .conns
            .get(conn.0)
            .is_some_and(|it| it.pauses.is_only(Pause::Backlog))
        {
            self.backlog.push_back(conn);
        }
    }
}
