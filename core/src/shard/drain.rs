//! [`Drain`]: all connections are ended, at an even pace and with a hint when to come back, so that the nodes they go to
//! next are not hit by all of them at once.

use std::time::Duration;

use super::{ConnId, Phase, Shard};
use crate::time::Timestamp;
use crate::ws::close_frame;

/// How [`Shard::drain`] ends connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainOptions {
    /// The close code: 1012, service restart, or 1001, going away.
    pub code: u16,
    /// The close frames are spread over so long.
    pub over: Duration,
    /// Each client is asked to come back after a time of its own below this one: the reason of its close frame is
    /// `retry in N ms`. Zero gives no reason.
    pub retry_within: Duration,
}

impl Default for DrainOptions {
    /// Close frames with 1012 at once, and clients that come back within 5 s.
    fn default() -> Self {
        Self {
            code: 1012,
            over: Duration::ZERO,
            retry_within: Duration::from_secs(5),
        }
    }
}

pub(super) struct Drain {
    options: DrainOptions,
    began: Timestamp,
    /// Those still to be ended, the next one last.
    rest: Vec<ConnId>,
    total: usize,
}

impl Drain {
    /// When the next connection is to be ended.
    pub(super) fn poll(&self) -> Option<Timestamp> {
        if self.rest.is_empty() {
            return None;
        }
        let ended = (self.total - self.rest.len()) as f64;
        Some(self.began + self.options.over.mul_f64(ended / self.total as f64))
    }
}

impl Shard {
    /// Ends all connections and takes no more: at an even pace each is sent what it has queued and then a close frame.
    /// They are gone as their peers take that, at the latest `close_time_limit` after the last close frame. Those
    /// that have not upgraded yet end at once.
    ///
    /// Rows that are still being read are not waited for. Calling it again changes the pace of those that are left.
    pub fn drain(&mut self, now: Timestamp, options: DrainOptions) {
        self.advance(now);
        let all: Vec<ConnId> = self.conns.iter().map(|(id, _)| ConnId(id)).collect();
        let is_upgrading = |conn: &ConnId| self.conns.get(conn.0).is_some_and(|it| it.phase == Phase::Upgrading);
        let (upgrading, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(is_upgrading);
        for conn in upgrading {
            self.end(conn);
        }
        self.drain = Some(Drain {
            options,
            began: self.now,
            total: rest.len(),
            rest,
        });
        self.drain_on();
    }

    /// Whether [`drain`](Self::drain) was called.
    pub fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// Ends those whose time has come.
    pub(super) fn drain_on(&mut self) {
        // The rest at the next call, for which it is time already.
        for _ in 0..self.node.config().work_budget.max(1) {
            let Some(drain) = &mut self.drain else {
                return;
            };
            if drain.poll().is_none_or(|at| at > self.now) {
                return;
            }
            let Some(conn) = drain.rest.pop() else {
                return;
            };
            let DrainOptions { code, retry_within, .. } = drain.options;
            let within_ms = u64::try_from(retry_within.as_millis()).unwrap_or(u64::MAX);
            let chance = self.node.config().seed.hash_of(&(self.index, conn));
            let reason = match chance.checked_rem(within_ms) {
                Some(ms) => format!("retry in {ms} ms"),
                None => String::new(),
            };
            self.close_orderly(conn, close_frame(Some(code), &reason));
        }
    }
}
