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
}

/// Of 100, so many.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    /// Never reach the queue, and whoever published them learns it.
    pub(crate) lost: u8,
    /// Reach it, and their answer is lost.
    pub(crate) unanswered: u8,
    /// Are delivered twice.
    pub(crate) repeated: u8,
    /// Everything takes up to so long, each another time.
    pub(crate) delay: Duration,
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

    /// It hears everything from here on. Says whether it is yet to notice that it did not.
    pub(crate) fn connect(&mut self, site: usize) -> bool {
        self.away.remove(&site);
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
