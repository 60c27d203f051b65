//! What happens when nothing happens: pings, dead peers, upgrades and closes that don't get done.
//!
//! All deadlines of one kind are equally long, so that each kind is a queue in order of deadline. The exception are
//! peers that have been silent for long, of which there are few. Entries of connections that have moved on are
//! dropped when they come up.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use super::{ConnId, Phase, Shard};
use crate::config::Config;
use crate::time::Timestamp;
use crate::ws::{OpCode, control_frame};

/// How long a connection waits for reads that it alone asked for, before it asks for more (they may be failing).
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Timers {
    upgrades: Queue,
    pings: Queue,
    closes: Queue,
    /// Connections that wait for reads which they alone asked for.
    asked: Queue,
    /// Peers that may be dead before their next ping.
    silent: BinaryHeap<Reverse<(Timestamp, ConnId)>>,
}

struct Queue {
    length: Duration,
    entries: VecDeque<(Timestamp, ConnId)>,
}

impl Timers {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            upgrades: Queue::new(config.upgrade_time_limit),
            pings: Queue::new(config.ping_interval),
            closes: Queue::new(config.close_time_limit),
            asked: Queue::new(PATIENCE),
            silent: BinaryHeap::new(),
        }
    }

    pub(super) fn opened(&mut self, now: Timestamp, conn: ConnId) {
        self.upgrades.push(now, conn);
        self.pings.push(now, conn);
    }

    pub(super) fn closing(&mut self, now: Timestamp, conn: ConnId) {
        self.closes.push(now, conn);
    }

    pub(super) fn asked(&mut self, now: Timestamp, conn: ConnId) {
        self.asked.push(now, conn);
    }

    pub(super) fn poll(&self) -> Option<Timestamp> {
        let queues = [&self.upgrades, &self.pings, &self.closes, &self.asked];
        let silent = self.silent.peek().map(|&Reverse((at, _))| at);
        let fronts = queues.into_iter().filter_map(|queue| queue.entries.front());
        fronts.map(|&(at, _)| at).chain(silent).min()
    }
}

impl Queue {
    fn new(length: Duration) -> Self {
        Self {
            length,
            entries: VecDeque::new(),
        }
    }

    fn push(&mut self, now: Timestamp, conn: ConnId) {
        self.entries.push_back((now + self.length, conn));
    }

    fn pop(&mut self, now: Timestamp) -> Option<ConnId> {
        self.entries
            .pop_front_if(|&mut (at, _)| at <= now)
            .map(|(_, conn)| conn)
    }
}

impl Shard {
    pub(super) fn timers_passed(&mut self) {
        let now = self.now;
        while let Some(conn) = self.timers.upgrades.pop(now) {
            self.end_if(conn, |phase| phase == Phase::Upgrading);
        }
        while let Some(conn) = self.timers.closes.pop(now) {
            self.end_if(conn, |phase| matches!(phase, Phase::Closing | Phase::Lingering));
        }
        while let Some(conn) = self.timers.asked.pop(now) {
            self.stop_waiting(conn);
        }
        while let Some(&Reverse((at, conn))) = self.timers.silent.peek() {
            if at > now {
                break;
            }
            self.timers.silent.pop();
            self.look_for_life(conn);
        }
        while let Some(conn) = self.timers.pings.pop(now) {
            self.ping(conn);
        }
    }

    fn end_if(&mut self, conn: ConnId, condition: impl Fn(Phase) -> bool) {
        if self.conns.get(conn.0).is_some_and(|it| condition(it.phase)) {
            self.counters.dead_peers.add_alone(1);
            self.end(conn);
        }
    }

    fn ping(&mut self, conn: ConnId) {
        self.look_for_life(conn);
        let Some(state) = self.conns.get_mut(conn.0) else {
            return;
        };
        self.timers.pings.push(self.now, conn);
        // One ping that still waits to be sent says as much as two.
        let waiting = state.extra.as_ref().map_or(0, |it| it.outbox.control_bytes());
        if state.phase == Phase::Open && waiting == 0 {
            let ping = control_frame(OpCode::Ping, &[]);
            state.extra().outbox.push_control(ping);
            self.make_ready(conn);
        }
    }

    /// Ends a connection whose peer has been silent for too long, or makes sure to look again in time.
    pub(super) fn look_for_life(&mut self, conn: ConnId) {
        let Some(state) = self.conns.get_mut(conn.0) else {
            return;
        };
        if state.pauses.hides_life() {
            state.last_alive = self.now;
        }
        let dead_at = state.last_alive + self.node.config().dead_after;
        if dead_at <= self.now {
            self.counters.dead_peers.add_alone(1);
            self.end(conn);
        } else if dead_at < self.now + self.node.config().ping_interval {
            self.timers.silent.push(Reverse((dead_at, conn)));
        }
    }
}
