//! [`Bus`]: what carries messages between simulated nodes: late, twice, out of order, or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use entity_sync_core::Timestamp;
use fastrand::Rng;

/// Old messages that are kept to come again.
const MAX_REMEMBERED: usize = 500;

#[derive(Default)]
pub(crate) struct Bus {
    /// In the order in which they arrive.
    flying: BTreeMap<(Timestamp, u64), Flying>,
    sent: u64,
    faults: Faults,
    cuts: BTreeSet<(usize, usize)>,
    /// Whose next message nobody gets.
    losers: BTreeSet<usize>,
    /// Who has no connection.
    disconnected: BTreeSet<usize>,
    /// Topics that are heard, by node.
    subscriptions: BTreeSet<(usize, String)>,
    remembered: Vec<Remembered>,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) lost: u8,
    pub(crate) repeated: u8,
    pub(crate) delay: Duration,
}

#[derive(Clone)]
pub(crate) struct Flying {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) message: Rc<[u8]>,
    pub(crate) origin: Origin,
}

/// Where a message comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A node published it, as the so many-th message of all.
    Published(u64),
    /// Nobody said it.
    Garbage,
}

/// A message that was published, and as the how many-th.
pub(crate) type Remembered = (u64, Rc<[u8]>);

impl Bus {
    pub(crate) fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        self.cuts.insert((a.min(b), a.max(b)));
    }

    /// The next message of this node reaches nobody.
    pub(crate) fn lose_next(&mut self, site: usize) {
        self.losers.insert(site);
    }

    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
        self.losers.clear();
    }

    pub(crate) fn is_connected(&self, site: usize) -> bool {
        !self.disconnected.contains(&site)
    }

    pub(crate) fn set_connected(&mut self, site: usize, is_connected: bool) {
        if is_connected {
            self.disconnected.remove(&site);
        } else {
            self.disconnected.insert(site);
        }
    }

    pub(crate) fn subscribe(&mut self, site: usize, topic: &str, is_on: bool) {
        let subscription = (site, topic.to_owned());
        if is_on {
            self.subscriptions.insert(subscription);
        } else {
            self.subscriptions.remove(&subscription);
        }
    }

    /// A node's process has ended.
    pub(crate) fn forget(&mut self, site: usize) {
        self.subscriptions.retain(|(of, _)| *of != site);
        self.flying.retain(|_, flying| flying.to != site);
    }

    pub(crate) fn publish(&mut self, now: Timestamp, from: usize, topic: &str, message: &[u8], rng: &mut Rng) {
        let message: Rc<[u8]> = message.into();
        self.messages += 1;
        let number = self.messages;
        if self.remembered.len() < MAX_REMEMBERED {
            self.remembered.push((number, message.clone()));
        } else {
            let at = rng.usize(..MAX_REMEMBERED);
            self.remembered[at] = (number, message.clone());
        }
        self.bytes += message.len() as u64;
        if self.losers.remove(&from) {
            return;
        }
        let heard_by: Vec<usize> = self
            .subscriptions
            .iter()
            .filter(|(_, of)| of == topic)
            .map(|(site, _)| *site)
            .collect();
        for to in heard_by {
            let is_cut = self.cuts.contains(&(from.min(to), from.max(to)));
            if is_cut || !self.is_connected(from) || !self.is_connected(to) || rng.u8(..100) < self.faults.lost {
                continue;
            }
            let copies = if rng.u8(..100) < self.faults.repeated { 2 } else { 1 };
            for _ in 0..copies {
                let delay = self.faults.delay.mul_f64(rng.f64());
                let flying = Flying {
                    from,
                    to,
                    message: message.clone(),
                    origin: Origin::Published(number),
                };
                self.fly(now + delay, flying);
            }
        }
    }

    pub(crate) fn fly(&mut self, at: Timestamp, flying: Flying) {
        self.sent += 1;
        self.flying.insert((at, self.sent), flying);
    }

    /// The next message that has arrived by `now` at a node for which `listens`.
    pub(crate) fn arrive(&mut self, now: Timestamp, listens: impl Fn(usize) -> bool) -> Option<Flying> {
        let due = self.flying.range(..=(now, u64::MAX));
        let (&at, _) = due.into_iter().find(|(_, flying)| listens(flying.to))?;
        self.flying.remove(&at)
    }

    pub(crate) fn remembered(&self, message: usize) -> Option<Remembered> {
        let at = message.checked_rem(self.remembered.len())?;
        Some(self.remembered[at].clone())
    }
}
