//! [`Handshakes`]: the connections of a shard that have not finished their upgrade, and which of them gives way to another.
//!
//! Silent connections cost a peer nothing. So there are only so many, and once half of the places are taken, an address has
//! only a share of them: beyond its share, its own oldest gives way to its newest; when all places are taken, the oldest of
//! all does. A peer that upgrades is done within a moment, which each connection has: accepting rests until the oldest of all
//! has had one, and beyond its address's share a newcomer ends if the oldest has not. While there is room, many clients may
//! come at once from one address, as they do through a proxy.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use hashbrown::HashMap;

use super::ConnId;
use crate::admission::network_of;
use crate::config::Config;
use crate::hash::Seed;
use crate::time::Timestamp;

/// How long a connection has, however many others come.
const GRACE: Duration = Duration::from_secs(1);

/// An address's part of its share on each shard, unless its whole share is smaller: many clients may be behind one proxy, and
/// a driver accepts several before it reads from the first.
const MIN_PER_ADDRESS: usize = 256;

/// How long a driver waits before it asks again whether some have finished.
const PAUSE: Duration = Duration::from_millis(20);

pub(super) struct Handshakes {
    limit: usize,
    limit_per_address: usize,
    limit_bytes: usize,
    pending: HashMap<ConnId, Pending, Seed>,
    /// Of all requests.
    bytes: usize,
    /// The oldest first, with some that have finished. The first one has not.
    order: VecDeque<ConnId>,
    by_address: HashMap<Option<IpAddr>, Queue, Seed>,
}

struct Pending {
    since: Timestamp,
    address: Option<IpAddr>,
    /// Length of what has come of its request.
    bytes: usize,
}

/// Those of one address, as in [`Handshakes::order`].
#[derive(Default)]
struct Queue {
    count: usize,
    order: VecDeque<ConnId>,
}

impl Handshakes {
    /// For one of so many shards, which have an equal part of the limits each.
    pub(super) fn new(config: &Config, shards: usize) -> Self {
        let part = |all: usize| all.div_ceil(shards.max(1)).max(1);
        Self {
            limit: part(config.max_upgrading),
            limit_per_address: part(config.max_upgrading_per_address)
                .max(config.max_upgrading_per_address.min(MIN_PER_ADDRESS)),
            limit_bytes: part(config.max_upgrade_bytes),
            pending: HashMap::with_hasher(config.seed),
            bytes: 0,
            order: VecDeque::new(),
            by_address: HashMap::with_hasher(config.seed),
        }
    }

    /// Whether another one may be accepted now; if not, when to ask again.
    pub(super) fn may_accept(&self, now: Timestamp) -> Result<(), Timestamp> {
        if self.pending.len() < self.limit {
            return Ok(());
        }
        let oldest = self.order.front().and_then(|conn| self.pending.get(conn));
        match oldest.map(|it| it.since + GRACE) {
            Some(at) if at > now => Err(at.min(now + PAUSE)),
            _ => Ok(()),
        }
    }

    /// A connection begins. Says which one has to end for it, or that it has to end itself.
    pub(super) fn begin(&mut self, now: Timestamp, conn: ConnId, peer: Option<IpAddr>) -> Option<ConnId> {
        let address = peer.map(network_of);
        let queue = self.by_address.entry(address).or_default();
        let is_crowded = self.pending.len() >= self.limit / 2;
        let gives_way = if is_crowded && queue.count >= self.limit_per_address {
            let oldest = queue.order.front();
            let had_time = |it: &&ConnId| self.pending.get(*it).is_some_and(|it| it.since + GRACE <= now);
            Some(oldest.filter(had_time).unwrap_or(&conn))
        } else if self.pending.len() >= self.limit {
            self.order.front()
        } else {
            None
        };
        let gives_way = gives_way.copied();
        queue.count += 1;
        queue.order.push_back(conn);
        self.order.push_back(conn);
        let pending = Pending {
            since: now,
            address,
            bytes: 0,
        };
        self.pending.insert(conn, pending);
        gives_way
    }

    /// So much of a connection's request has come, and not its end.
    pub(super) fn holds(&mut self, conn: ConnId, bytes: usize) {
        if let Some(pending) = self.pending.get_mut(&conn) {
            self.bytes = self.bytes - pending.bytes + bytes;
            pending.bytes = bytes;
        }
    }

    /// A connection that has to end, since all requests together are too long: one that holds bytes, of the address of `conn`
    /// if there is one. `conn`, whose request was just added to, is the last that does.
    pub(super) fn beyond_bytes(&self, conn: ConnId) -> Option<ConnId> {
        if self.bytes <= self.limit_bytes {
            return None;
        }
        let address = self.pending.get(&conn)?.address;
        let holds = |it: &&ConnId| **it != conn && self.pending.get(*it).is_some_and(|it| it.bytes > 0);
        let is_own = |it: &&ConnId| holds(it) && self.pending.get(*it).is_some_and(|it| it.address == address);
        let others = || self.order.iter();
        let oldest = others().find(is_own).or_else(|| others().find(holds));
        Some(oldest.copied().unwrap_or(conn))
    }

    /// A connection has finished or ended. Others are ignored.
    pub(super) fn end(&mut self, conn: ConnId) {
        let Some(Pending { address, bytes, .. }) = self.pending.remove(&conn) else {
            return;
        };
        self.bytes -= bytes;
        tidy(&mut self.order, &self.pending, self.pending.len());
        if let Some(queue) = self.by_address.get_mut(&address) {
            queue.count -= 1;
            if queue.count == 0 {
                self.by_address.remove(&address);
            } else {
                tidy(&mut queue.order, &self.pending, queue.count);
            }
        }
    }
}

/// Drops those that have finished: from the front all, and from behind when they are many.
fn tidy(order: &mut VecDeque<ConnId>, pending: &HashMap<ConnId, Pending, Seed>, count: usize) {
    while order.front().is_some_and(|conn| !pending.contains_key(conn)) {
        order.pop_front();
    }
    if order.len() > 2 * count + 64 {
        order.retain(|conn| pending.contains_key(conn));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshakes(limit: usize, per_address: usize) -> Handshakes {
        let mut config = Config::new(Seed(1, 2));
        config.max_upgrading = limit;
        config.max_upgrading_per_address = per_address;
        config.max_upgrade_bytes = 100;
        Handshakes::new(&config, 1)
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::START + Duration::from_millis(ms)
    }

    fn conn(number: u64) -> ConnId {
        ConnId::from_u64(number)
    }

    fn address(last: u8) -> Option<IpAddr> {
        Some([192, 0, 2, last].into())
    }

    #[test]
    fn beyond_its_share_an_address_pays_with_its_own_oldest() {
        let mut it = handshakes(6, 2);
        assert_eq!(it.begin(at(0), conn(9), address(9)), None);
        for number in 0..2 {
            assert_eq!(it.begin(at(0), conn(number), address(1)), None);
        }
        for number in 2..9 {
            let now = at(number * 1000);
            assert_eq!(it.begin(now, conn(number), address(1)), Some(conn(number - 2)));
            it.end(conn(number - 2));
        }
        // What has finished is not counted, and an IPv6 /64 is one address.
        it.end(conn(7));
        assert_eq!(it.begin(at(8000), conn(20), address(1)), None);
        let v6 = |last: u16| Some(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]));
        assert_eq!(it.begin(at(0), conn(30), v6(1)), None);
        assert_eq!(it.begin(at(0), conn(31), v6(2)), None);
        assert_eq!(it.begin(at(1000), conn(32), v6(3)), Some(conn(30)));
    }

    #[test]
    fn while_half_of_the_places_are_free_an_address_may_have_more() {
        let mut it = handshakes(10, 2);
        for number in 0..5 {
            assert_eq!(it.begin(at(0), conn(number), address(1)), None);
        }
        assert_eq!(it.begin(at(0), conn(5), address(1)), Some(conn(5)));
        it.end(conn(5));
        // The other half is for others.
        assert_eq!(it.begin(at(0), conn(6), address(2)), None);
    }

    #[test]
    fn within_its_first_second_none_gives_way_to_a_newcomer() {
        let mut it = handshakes(4, 2);
        for number in 0..2 {
            assert_eq!(it.begin(at(0), conn(number), address(1)), None);
        }
        assert_eq!(it.begin(at(999), conn(2), address(1)), Some(conn(2)));
        it.end(conn(2));
        // One that upgrades makes room at once.
        it.end(conn(0));
        assert_eq!(it.begin(at(999), conn(3), address(1)), None);
        assert_eq!(it.begin(at(1000), conn(4), address(1)), Some(conn(1)));
    }

    #[test]
    fn however_many_shards_there_are_an_address_may_have_several() {
        let mut config = Config::new(Seed(1, 2));
        for (shards, expected) in [(1, 1024), (4, 256), (64, 256)] {
            assert_eq!(Handshakes::new(&config, shards).limit_per_address, expected);
        }
        config.max_upgrading_per_address = 10;
        assert_eq!(Handshakes::new(&config, 64).limit_per_address, 10);
    }

    #[test]
    fn when_all_places_are_taken_the_oldest_gives_way_once_it_had_time() {
        let mut it = handshakes(3, 3);
        for number in 0..3 {
            let begun = it.begin(at(number * 100), conn(number), address(number as u8));
            assert_eq!(begun, None);
        }
        assert_eq!(it.may_accept(at(200)), Err(at(220)));
        assert_eq!(it.may_accept(at(990)), Err(at(1000)));
        assert_eq!(it.may_accept(at(1000)), Ok(()));
        assert_eq!(it.begin(at(1000), conn(3), address(3)), Some(conn(0)));
        it.end(conn(0));
        assert_eq!(it.may_accept(at(1000)), Err(at(1020)));
        it.end(conn(2));
        assert_eq!(it.may_accept(at(1000)), Ok(()));
    }

    #[test]
    fn requests_together_have_a_limit_and_the_oldest_gives_way() {
        let mut it = handshakes(10, 10);
        for number in 0..3 {
            it.begin(at(0), conn(number), address(1));
            it.holds(conn(number), 30);
        }
        assert_eq!(it.beyond_bytes(conn(2)), None);
        it.holds(conn(2), 90);
        assert_eq!(it.beyond_bytes(conn(2)), Some(conn(0)));
        it.end(conn(0));
        assert_eq!(it.beyond_bytes(conn(2)), Some(conn(1)));
        it.end(conn(1));
        assert_eq!(it.beyond_bytes(conn(2)), None);
        it.holds(conn(2), 101);
        assert_eq!(it.beyond_bytes(conn(2)), Some(conn(2)));
        it.end(conn(2));
        assert_eq!(it.bytes, 0);
    }

    #[test]
    fn requests_that_are_too_long_are_paid_for_by_those_who_send_them() {
        let mut it = handshakes(10, 10);
        for (number, last) in [(0, 1), (1, 2), (2, 2), (3, 3)] {
            it.begin(at(0), conn(number), address(last));
        }
        it.holds(conn(1), 60);
        it.holds(conn(3), 60);
        // Neither the oldest, which holds nothing, nor a neighbour that holds nothing.
        assert_eq!(it.beyond_bytes(conn(3)), Some(conn(1)));
        it.holds(conn(2), 1);
        assert_eq!(it.beyond_bytes(conn(2)), Some(conn(1)), "its own address's");
    }

    #[test]
    fn those_that_have_finished_take_no_memory() {
        let mut it = handshakes(10, 10);
        it.begin(at(0), conn(0), address(1));
        for number in 1..10_000 {
            it.begin(at(0), conn(number), address((number % 200) as u8));
            it.end(conn(number));
        }
        assert!(it.order.len() < 100);
        assert_eq!(it.by_address.len(), 1);
        it.end(conn(0));
        assert!(it.order.is_empty() && it.by_address.is_empty() && it.pending.is_empty());
    }
}
