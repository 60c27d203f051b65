//! [`Queue`]: a queue without numbers between simulated nodes, such as NSQ: at least once for whoever is connected, and
//! nothing for whoever is not.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use entity_sync_core::Timestamp;
use entity_sync_core::cluster::Outcome;
use fastrand::Rng;

#[derive(Default)]
pub(crate) struct Queue {
    /// In the order in which they arrive.
    flying: BTreeMap<(Timestamp, u64), (usize, Parcel)>,
    sent: u64,
    faults: Faults,
    /// Who is not connected.
    away: BTreeSet<usize>,
    pub(crate) messages: u64,
    pub(crate) original: Original,
    /// What is there for the first who connects.
    backlog: Vec<Rc<[u8]>>,
}

/// A node of the Go original. It applies what it hears, and reads nothing again.
#[derive(Default)]
pub(crate) struct Original {
    away_until: Timestamp,
    /// What it heard last of each key's body.
    heard: BTreeMap<Rc<[u8]>, Timestamp>,
}

impl Original {
    fn is_away(&self, now: Timestamp) -> bool {
        now < self.away_until
    }

    /// Whether it has heard this body since.
    pub(crate) fn has_heard(&self, body: &[u8], since: Timestamp) -> bool {
        self.heard.get(body).is_some_and(|&at| at >= since)
    }
}

/// It tries to connect once a minute.
const ORIGINAL_RETRY: Duration = Duration::from_secs(60);

/// Of 100, so many.
#[derive(Clone, Copy)]
pub(crate) struct Faults {
    /// Never reach the queue, and whoever published them learns it.
    pub(crate) lost: u8,
    /// Reach it, and their answer is lost.
    pub(crate) unanswered: u8,
    /// Are delivered twice.
    pub(crate) repeated: u8,
    /// Are confirmed, and brought to nobody.
    pub(crate) swallowed: u8,
    /// Beyond so many that are on their way, all are.
    pub(crate) room: usize,
    /// Everything takes up to so long, each another time.
    pub(crate) delay: Duration,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            lost: 0,
            unanswered: 0,
            repeated: 0,
            swallowed: 0,
            room: usize::MAX,
            delay: Duration::ZERO,
        }
    }
}

/// What the queue brings a node.
#[derive(Clone, Debug)]
pub(crate) enum Parcel {
    Message(Rc<[u8]>),
    Receipt(u64, Outcome),
    /// The connection is lost.
    Gone,
}

impl Queue {
    pub(crate) fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    pub(crate) fn is_connected(&self, site: usize) -> bool {
        !self.away.contains(&site)
    }

    /// What was on its way to this node is lost, and so are the answers; it notices in a while.
    pub(crate) fn disconnect(&mut self, now: Timestamp, site: usize, rng: &mut Rng) {
        if !self.away.insert(site) {
            return;
        }
        let mine: Vec<_> = self
            .flying
            .iter()
            .filter(|(_, (to, _))| *to == site)
            .map(|(at, _)| *at)
            .collect();
        for at in mine {
            if let Some((_, Parcel::Receipt(number, _))) = self.flying.remove(&at) {
                self.send(now, site, Parcel::Receipt(number, Outcome::Lost), rng);
            }
        }
        self.send(now, site, Parcel::Gone, rng);
    }

    /// Nobody is connected, and what was on its way is lost.
    pub(crate) fn restart(&mut self, now: Timestamp, sites: usize, rng: &mut Rng) {
        (0..sites).for_each(|site| self.disconnect(now, site, rng));
        self.original.away_until = now + ORIGINAL_RETRY;
    }

    /// A node of the original publishes. What nobody is there for waits for the first who comes.
    pub(crate) fn publish_as_original(&mut self, now: Timestamp, body: &[u8], sites: usize, rng: &mut Rng) {
        let body: Rc<[u8]> = body.into();
        let mut is_heard = self.bring_to_original(now, &body);
        for to in (0..sites).filter(|to| !self.away.contains(to)).collect::<Vec<_>>() {
            is_heard = true;
            self.send(now, to, Parcel::Message(body.clone()), rng);
        }
        if !is_heard {
            self.backlog.push(body);
        }
    }

    /// It is back, and was the first.
    pub(crate) fn look_for_original(&mut self, now: Timestamp) {
        if !self.original.is_away(now) {
            for body in std::mem::take(&mut self.backlog) {
                self.bring_to_original(now, &body);
            }
        }
    }

    fn bring_to_original(&mut self, now: Timestamp, body: &Rc<[u8]>) -> bool {
        let is_there = !self.original.is_away(now);
        if is_there {
            self.original.heard.insert(body.clone(), now);
        }
        is_there
    }

    /// It hears everything from here on. Says whether it is yet to notice that it did not.
    pub(crate) fn connect(&mut self, now: Timestamp, site: usize, rng: &mut Rng) -> bool {
        self.away.remove(&site);
        for body in std::mem::take(&mut self.backlog) {
            self.send(now, site, Parcel::Message(body), rng);
        }
        let is_notice = |it: &(usize, Parcel)| it.0 == site && matches!(it.1, Parcel::Gone);
        let before = self.flying.len();
        self.flying.retain(|_, it| !is_notice(it));
        self.flying.len() < before
    }

    /// A node's process has ended.
    pub(crate) fn forget(&mut self, site: usize) {
        self.flying.retain(|_, (to, _)| *to != site);
    }

    /// Messages that wait for this node are dropped. Says whether there were any.
    pub(crate) fn overflow(&mut self, site: usize) -> bool {
        let before = self.flying.len();
        self.flying
            .retain(|_, (to, parcel)| *to != site || !matches!(parcel, Parcel::Message(_)));
        self.flying.len() < before
    }

    pub(crate) fn publish(
        &mut self,
        now: Timestamp,
        from: usize,
        number: u64,
        body: &[u8],
        sites: usize,
        rng: &mut Rng,
    ) {
        self.messages += 1;
        if !self.is_connected(from) || rng.u8(..100) < self.faults.lost {
            return self.send(now, from, Parcel::Receipt(number, Outcome::Lost), rng);
        }
        let body: Rc<[u8]> = body.into();
        if self.swallows(from, &body, rng) {
            self.send(now, from, Parcel::Receipt(number, Outcome::Confirmed), rng);
            return;
        }
        self.bring_to_original(now, &body);
        for to in (0..sites).filter(|to| !self.away.contains(to)).collect::<Vec<_>>() {
            let copies = if rng.u8(..100) < self.faults.repeated { 2 } else { 1 };
            for _ in 0..copies {
                self.send(now, to, Parcel::Message(body.clone()), rng);
            }
        }
        let outcome = match rng.u8(..100) < self.faults.unanswered {
            true => Outcome::Lost,
            false => Outcome::Confirmed,
        };
        self.send(now, from, Parcel::Receipt(number, outcome), rng);
    }

    /// Another message with the same body would be taken for this one that has come back: who has sent it, the body does
    /// not say.
    fn swallows(&self, from: usize, body: &[u8], rng: &mut Rng) -> bool {
        let messages = || self.flying.values().filter(|(_, it)| matches!(it, Parcel::Message(_)));
        let is_same = |(to, it): &(usize, Parcel)| *to == from && matches!(it, Parcel::Message(it) if **it == *body);
        (rng.u8(..100) < self.faults.swallowed || messages().count() >= self.faults.room) && !messages().any(is_same)
    }

    fn send(&mut self, now: Timestamp, to: usize, parcel: Parcel, rng: &mut Rng) {
        self.sent += 1;
        let at = now + self.faults.delay.mul_f64(rng.f64());
        self.flying.insert((at, self.sent), (to, parcel));
    }

    /// The next parcel that has arrived by `now` at a node for which `listens`.
    pub(crate) fn arrive(&mut self, now: Timestamp, listens: impl Fn(usize) -> bool) -> Option<(usize, Parcel)> {
        let due = self.flying.range(..=(now, u64::MAX));
        let (&at, _) = due.into_iter().find(|(_, (to, _))| listens(*to))?;
        self.flying.remove(&at)
    }
}
