//! Reads of a [`Node`]: how they begin, end, fail, take too long and are tried again.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use smallvec::SmallVec;

use super::gate::{Entry, Why};
use super::stripe::{Alarm, Stripe};
use super::{MAX_DEPTH, NEVER, Node, STRIPES, Start, Starts, Wakes};
use crate::entity::EntityIndex;
use crate::flights::{Backoff, Fingerprint, Flight, FlightId, Lane, Ticket};
use crate::frame::{Group, RowError, RowLimits, Rows};
use crate::resolve::{ReadError, ReadId, Reply, Request};
use crate::slots::SlotId;
use crate::sync::Ordering;
use crate::time::Timestamp;

impl Node {
    /// A read has been answered. Shards are woken at once if that is not to be put off.
    pub(crate) fn finish(
        &self,
        now: Timestamp,
        read: ReadId,
        result: Result<Rows, ReadError>,
        mut put_off: Option<&mut Wakes>,
    ) -> Result<(), RowError> {
        self.set_clock(now);
        let limits = RowLimits {
            rows: self.0.config.max_rows_per_read,
            bytes: self.0.config.max_read_bytes.min(u32::MAX as usize),
        };
        // Frames are built before the lock is taken. An answer that turns out to be late was built for nothing; that is rare.
        let group = match &result {
            Ok(rows) => Group::build(rows, limits).map_err(ReadError::BadRows),
            Err(error) if error.is_final() => Ok(Group::empty()),
            Err(error) => Err(error.clone()),
        };
        let bad_rows = match &group {
            Err(ReadError::BadRows(error)) => Err(*error),
            _ => Ok(()),
        };
        let options = self.0.entities.options(read.entity);
        let (settle, looks) = (options.settle, self.looks(options));
        let fingerprint = match &group {
            Ok(group) if looks => Some(Fingerprint(self.seed().fingerprint(group.bytes()))),
            _ => None,
        };
        let ReadId { flight: id, ticket, .. } = read;
        let counters = &self.0.counters;
        let mut starts = Starts::new();
        let mut marked = SmallVec::<[u32; 8]>::new();
        let next;
        {
            let mut guard = self.lock(id.stripe);
            let stripe = &mut *guard;
            let Some(it) = stripe.flights.get_mut(id.slot).filter(|it| it.is_running(ticket)) else {
                counters.late_reads.add(1);
                return bad_rows;
            };
            // Before this flight's next read: those that wait come first.
            next = self.0.entities.of(read.entity).leave();
            match group {
                Ok(group) => {
                    match result {
                        Err(ReadError::Denied) => counters.denied_reads.add(1),
                        Err(ReadError::NotFound) => counters.not_found_reads.add(1),
                        _ => {}
                    }
                    let finished = it.finish(ticket, group, fingerprint, |shard| marked.push(shard));
                    if finished.is_unchanged {
                        counters.silent_unchanged.add(1);
                    }
                    if !finished.is_silent
                        && let Some(settle) = settle
                        && it.settle_at(now + settle)
                    {
                        self.set_alarm(now + settle, id.slot, Alarm::Settle, &mut stripe.alarms);
                    }
                    let why = if it.is_notified() { Why::Notified } else { Why::Again };
                    self.start_if_due(now, id, it, why, &mut stripe.limits, &mut starts);
                }
                Err(error) => {
                    counters.failed_reads.add(1);
                    let soon = error != ReadError::Rejected;
                    self.retry_later(now, id.slot, it, soon, &mut stripe.alarms);
                }
            }
            self.remove_if_over(stripe, id);
            stripe.forget_ended_limits();
        }
        // Before the application is asked for further reads, which may take time.
        for shard in marked {
            if let Some(port) = self.0.ports.get(shard as usize) {
                port.mark(id, put_off.as_deref_mut());
            }
        }
        self.call_up(now, read.entity, next, &mut starts);
        for start in &mut starts {
            start.read.depth = read.depth + 1;
        }
        if read.depth < MAX_DEPTH {
            self.hand_over(now, starts);
        } else {
            self.start_later(starts);
        }
        bad_rows
    }

    /// When the timekeeper has to call [`Self::handle_timeout`].
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        let deadline = self.0.deadline.load(Ordering::SeqCst);
        (deadline != NEVER).then_some(Timestamp::from_nanos(deadline))
    }

    /// Gives up reads that are over their time limit and begins those whose backoff has passed.
    pub(crate) fn handle_timeout(&self, now: Timestamp) {
        self.set_clock(now);
        let Some(deadline) = self.poll_timeout().filter(|&at| at <= now) else {
            return;
        };
        // Who comes so late was held up, as by SIGSTOP. Answers that came meanwhile may still wait to be read: that time
        // counts against no read, and there is a moment to read them in.
        let late = now.since(deadline);
        let tolerance = self.0.config.read_time_limit / 8;
        let more_time = if late > tolerance {
            late + tolerance
        } else {
            Duration::ZERO
        };
        let latest = now + self.0.config.read_time_limit;
        // Cleared before the stripes are looked at: a deadline that is set meanwhile stays.
        self.0.deadline.store(NEVER, Ordering::SeqCst);
        let mut starts = Starts::new();
        let mut turns = SmallVec::<[(EntityIndex, FlightId); 8]>::new();
        for number in 0..STRIPES {
            let mut guard = self.lock(number);
            let stripe = &mut *guard;
            if !more_time.is_zero() {
                // Not beyond those that begin now: they stay in order.
                for (limit, ..) in &mut stripe.limits {
                    *limit = latest.min(*limit + more_time);
                }
            }
            while let Some(&(limit, slot, ticket)) = stripe.limits.front() {
                let running = stripe.flights.get_mut(slot).filter(|it| it.is_running(ticket));
                match running {
                    Some(_) if limit > now => break,
                    Some(flight) => {
                        self.0.counters.timed_out_reads.add(1);
                        let entity = flight.entity;
                        let next = self.0.entities.of(entity).leave();
                        turns.extend(next.map(|next| (entity, next)));
                        self.retry_later(now, slot, flight, true, &mut stripe.alarms);
                        stripe.limits.pop_front();
                        self.remove_if_over(stripe, FlightId { stripe: number, slot });
                    }
                    None => {
                        stripe.limits.pop_front();
                    }
                }
            }
            while let Some(&Reverse((at, slot, alarm))) = stripe.alarms.peek() {
                if at > now {
                    break;
                }
                stripe.alarms.pop();
                let Some(flight) = stripe.flights.get_mut(slot) else {
                    continue;
                };
                match alarm {
                    Alarm::Retry => flight.resume(),
                    Alarm::Settle => {
                        if let Some(later) = flight.settle(now) {
                            stripe.alarms.push(Reverse((later, slot, Alarm::Settle)));
                        }
                    }
                }
                let id = FlightId { stripe: number, slot };
                self.start_if_due(now, id, flight, Why::Again, &mut stripe.limits, &mut starts);
            }
            let next_limit = stripe.limits.front().map(|&(limit, ..)| limit);
            let next_alarm = stripe.alarms.peek().map(|&Reverse((at, ..))| at);
            if let Some(next) = next_limit.into_iter().chain(next_alarm).min() {
                self.0.deadline.fetch_min(next.as_nanos(), Ordering::SeqCst);
            }
        }
        for (entity, next) in turns {
            self.call_up(now, entity, Some(next), &mut starts);
        }
        self.hand_over(now, starts);
    }

    pub(super) fn start_if_due(
        &self,
        now: Timestamp,
        id: FlightId,
        flight: &mut Flight,
        why: Why,
        limits: &mut VecDeque<(Timestamp, SlotId, Ticket)>,
        starts: &mut Starts,
    ) {
        let gate = self.0.entities.of(flight.entity);
        if let Some(turn) = flight.turn()
            && let Some(earlier) = gate.hasten(id, turn, why)
        {
            flight.queue(earlier);
        }
        if !flight.is_due() {
            return;
        }
        let limit = self.0.entities.options(flight.entity).max_running_reads;
        match gate.enter(id, limit, why) {
            Entry::Begin => self.begin(now, id, flight, why.lane(), limits, starts),
            Entry::Wait(turn) => {
                self.0.counters.queued_reads.add(1);
                flight.queue(turn);
            }
        }
    }

    /// Begins a read, which has its place among those of its entity.
    fn begin(
        &self,
        now: Timestamp,
        id: FlightId,
        flight: &mut Flight,
        lane: Lane,
        limits: &mut VecDeque<(Timestamp, SlotId, Ticket)>,
        starts: &mut Starts,
    ) {
        let ticket = Ticket(self.0.ticket.fetch_add(1, Ordering::SeqCst) + 1);
        flight.start(ticket);
        if flight.runs_silently() {
            self.0.counters.silent_reads.add(1);
        }
        let limit = now + self.0.config.read_time_limit;
        limits.push_back((limit, id.slot, ticket));
        self.wake_by(limit);
        starts.push(Start {
            read: ReadId {
                flight: id,
                ticket,
                entity: flight.entity,
                depth: 0,
                answers_notify: lane == Lane::Notified,
            },
            request: Request {
                key: flight.key.clone(),
                audience: flight.audience.clone(),
            },
        });
    }

    /// It is this flight's turn: it begins its read, or gives its place to the next that waits.
    fn call_up(&self, now: Timestamp, entity: EntityIndex, mut next: Option<FlightId>, starts: &mut Starts) {
        while let Some(id) = next {
            {
                let mut guard = self.lock(id.stripe);
                let stripe = &mut *guard;
                if let Some(flight) = stripe.flights.get_mut(id.slot)
                    && let Some(lane) = flight.call_up()
                {
                    return self.begin(now, id, flight, lane, &mut stripe.limits, starts);
                }
            }
            // It has gone since its turn came, or needs no read any more.
            next = self.0.entities.of(entity).leave();
        }
    }

    /// Not `soon` means after the longest backoff.
    fn retry_later(
        &self,
        now: Timestamp,
        slot: SlotId,
        flight: &mut Flight,
        soon: bool,
        alarms: &mut BinaryHeap<Reverse<(Timestamp, SlotId, Alarm)>>,
    ) {
        let failures = flight.fail();
        let backoff = Backoff {
            first: self.0.config.retry_first,
            max: self.0.config.retry_max,
        };
        let chance = self.seed().hash_of(&(slot, failures));
        let until = backoff.until(now, if soon { failures } else { u32::MAX }, chance);
        self.set_alarm(until, slot, Alarm::Retry, alarms);
    }

    pub(super) fn set_alarm(
        &self,
        at: Timestamp,
        slot: SlotId,
        alarm: Alarm,
        alarms: &mut BinaryHeap<Reverse<(Timestamp, SlotId, Alarm)>>,
    ) {
        alarms.push(Reverse((at, slot, alarm)));
        self.wake_by(at);
    }

    pub(super) fn remove_if_over(&self, stripe: &mut Stripe, id: FlightId) {
        let Some(flight) = stripe.remove_if_over(id.slot) else {
            return;
        };
        if let Some(turn) = flight.turn() {
            self.0.entities.of(flight.entity).forget(id, turn);
        }
        if let Some(outgoing) = self.outgoing() {
            outgoing.has_flight_no_more(&flight.key);
        }
    }

    /// Calls the resolver for reads that have begun in the books. No lock is held: it may answer at once.
    pub(super) fn hand_over(&self, now: Timestamp, starts: impl IntoIterator<Item = Start>) {
        for start in starts {
            self.0.counters.reads.add(1);
            let reply = Reply::new(self.clone(), start.read, now);
            let resolve = || self.0.resolver.resolve(start.request, reply);
            // Whoever notified, and the reactor that found the read necessary, are not to suffer for it. The reply that
            // the panic drops fails the read.
            if catch_unwind(AssertUnwindSafe(resolve)).is_err() {
                self.0.counters.resolver_panics.add(1);
            }
        }
    }

    /// Sees to it that the timekeeper calls [`Self::handle_timeout`] at `deadline` or before.
    fn wake_by(&self, deadline: Timestamp) {
        let deadline = deadline.as_nanos();
        if self.0.deadline.fetch_min(deadline, Ordering::SeqCst) > deadline
            && let Some(port) = self.timekeeper()
        {
            port.wake();
        }
    }
}
