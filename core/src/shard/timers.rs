//! What happens when nothing happens: pings, dead peers, upgrades and closes that don't get done.
//!
//! All deadlines of one kind are equally long, so that each kind is a queue in order of deadline. The exception are
//! peers that have been silent for long, of which there are few. Entries of connections that have moved on are
//! dropped when they come up.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use super::pause::Pause;
use super::{ConnId, Phase, Shard};
use crate::config::Config;
use crate::time::Timestamp;
use crate::ws::{OpCode, control_frame};

/// How long a connection waits for reads that it alone asked for, before it asks for more (they may be failing).
const PATIENCE: Duration = Duration::from_secs(1);

const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);

/// Deadlines, in the time of the shard's [`Patience`](crate::patience::Patience).
pub(super) struct Timers {
    upgrades: Queue,
    closes: Queue,
    /// Connections that wait for reads which they alone asked for.
    asked: Queue,
    /// Second and later pings: each comes one interval after the one before was due, so that none leaves its phase.
    pings: Queue,
    /// First pings. Each connection has a phase of its own, however many came at once.
    first_pings: BinaryHeap<Reverse<(Timestamp, ConnId)>>,
    /// Connections that changed their secret too often.
    secret_rates: Queue,
    /// Peers that may be dead before their next ping.
    silent: BinaryHeap<Reverse<(Timestamp, ConnId)>>,
    /// The shortest time that a peer is given for anything.
    shortest: Duration,
}

struct Queue {
    length: Duration,
    entries: VecDeque<(Timestamp, ConnId)>,
}

impl Timers {
    pub(super) fn new(config: &Config) -> Self {
        // No peer is judged before it was asked and has had as long again to answer.
        let ping_interval = config.ping_interval.min(config.dead_after / 2).max(SHORTEST_INTERVAL);
        let to_answer = config.dead_after.saturating_sub(ping_interval);
        Self {
            upgrades: Queue::new(config.upgrade_time_limit),
            closes: Queue::new(config.close_time_limit),
            asked: Queue::new(PATIENCE),
            pings: Queue::new(ping_interval),
            first_pings: BinaryHeap::new(),
            secret_rates: Queue::new(secret_interval(config).unwrap_or_default()),
            silent: BinaryHeap::new(),
            shortest: to_answer.min(config.upgrade_time_limit).min(config.close_time_limit),
        }
    }

    pub(super) fn shortest(&self) -> Duration {
        self.shortest
    }

    /// `chance` is any number.
    pub(super) fn opened(&mut self, now: Timestamp, conn: ConnId, chance: u64) {
        self.upgrades.push(now, conn);
        let half = self.pings.length / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        let at = now + half + Duration::from_nanos(chance % nanos.max(1));
        self.first_pings.push(Reverse((at, conn)));
    }

    pub(super) fn closing(&mut self, now: Timestamp, conn: ConnId) {
        self.closes.push(now, conn);
    }

    pub(super) fn asked(&mut self, now: Timestamp, conn: ConnId) {
        self.asked.push(now, conn);
    }

    pub(super) fn secret_rate(&mut self, now: Timestamp, conn: ConnId) {
        self.secret_rates.push(now, conn);
    }

    pub(super) fn poll(&self) -> Option<Timestamp> {
        let queues = [
            &self.upgrades,
            &self.pings,
            &self.closes,
            &self.asked,
            &self.secret_rates,
        ];
        let heaps = [&self.silent, &self.first_pings];
        let fronts = queues.into_iter().filter_map(Queue::front);
        fronts.chain(heaps.into_iter().filter_map(first_of)).min()
    }

    /// The next ping that is due, and when it was.
    fn next_ping(&mut self, now: Timestamp) -> Option<(Timestamp, ConnId)> {
        let first = first_of(&self.first_pings).filter(|&at| at <= now);
        let later = self.pings.front().filter(|&at| at <= now);
        // In order of time, so that the next ones are, too.
        if first.is_some_and(|first| later.is_none_or(|later| first <= later)) {
            self.first_pings.pop().map(|Reverse(it)| it)
        } else {
            later.and_then(|_| self.pings.entries.pop_front())
        }
    }
}

fn first_of(heap: &BinaryHeap<Reverse<(Timestamp, ConnId)>>) -> Option<Timestamp> {
    heap.peek().map(|&Reverse((at, _))| at)
}

/// How long one change of the secret counts; `None` if there is no limit on them.
pub(super) fn secret_interval(config: &Config) -> Option<Duration> {
    config.secret_window.checked_div(config.max_secret_changes)
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

    fn front(&self) -> Option<Timestamp> {
        self.entries.front().map(|&(at, _)| at)
    }

    fn pop(&mut self, now: Timestamp) -> Option<ConnId> {
        self.entries
            .pop_front_if(|&mut (at, _)| at <= now)
            .map(|(_, conn)| conn)
    }
}

impl Shard {
    /// Patient time has passed until `now`.
    pub(super) fn timers_passed(&mut self, now: Timestamp) {
        while let Some(conn) = self.timers.upgrades.pop(now) {
            self.end_if(conn, |phase| phase == Phase::Upgrading);
        }
        while let Some(conn) = self.timers.closes.pop(now) {
            self.end_if(conn, |phase| matches!(phase, Phase::Closing | Phase::Lingering));
        }
        while let Some(conn) = self.timers.asked.pop(now) {
            self.stop_waiting(conn);
        }
        while let Some(conn) = self.timers.secret_rates.pop(now) {
            self.resume(conn, Pause::SecretRate);
        }
        while first_of(&self.timers.silent).is_some_and(|at| at <= now)
            && let Some(Reverse((_, conn))) = self.timers.silent.pop()
        {
            self.look_for_life(now, conn);
        }
        while let Some((at, conn)) = self.timers.next_ping(now) {
            self.ping(now, at, conn);
        }
    }

    fn end_if(&mut self, conn: ConnId, condition: impl Fn(Phase) -> bool) {
        if self.conns.get(conn.0).is_some_and(|it| condition(it.phase)) {
            self.counters.dead_peers.add_alone(1);
            self.end(conn);
        }
    }

    /// A ping was due `at` this time.
    fn ping(&mut self, now: Timestamp, at: Timestamp, conn: ConnId) {
        self.look_for_life(now, conn);
        let Some(state) = self.conns.get_mut(conn.0) else {
            return;
        };
        self.timers.pings.push(at, conn);
        // One ping that still waits to be sent says as much as two.
        let waiting = state.extra.as_ref().map_or(0, |it| it.outbox.control_bytes());
        if state.phase == Phase::Open && waiting == 0 {
            let ping = control_frame(OpCode::Ping, &[]);
            state.extra().outbox.push_control(ping);
            self.make_ready(conn);
        }
    }

    /// Ends a connection whose peer has been silent for too long, or makes sure to look again in time.
    pub(super) fn look_for_life(&mut self, now: Timestamp, conn: ConnId) {
        let Some(state) = self.conns.get_mut(conn.0) else {
            return;
        };
        if state.pauses.hides_life() {
            state.last_alive = now;
        }
        let dead_at = state.last_alive + self.node.config().dead_after;
        if dead_at <= now {
            self.counters.dead_peers.add_alone(1);
            self.end(conn);
        } else if dead_at < now + self.timers.pings.length {
            self.timers.silent.push(Reverse((dead_at, conn)));
        }
    }
}
