//! [`Admission`]: which connections are let in, counted over all shards of a node.
//!
//! What passes soon (too many new ones per second) makes drivers wait before they accept, and the kernel's queue holds the
//! clients. What may last (too many in total, too many from one address) refuses. Those that have not upgraded are each
//! shard's own: see `shard/handshakes`.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

use crate::config::Config;
use crate::hash::Seed;
use crate::sync::{AtomicUsize, Mutex, Ordering, lock};
use crate::time::Timestamp;

pub(crate) struct Admission {
    open: AtomicUsize,
    rate: Mutex<Rate>,
    /// Only kept when there is a limit for it.
    by_address: Mutex<HashMap<IpAddr, u32, Seed>>,
}

/// A bucket that holds a second's worth of connections and fills at that rate.
struct Rate {
    /// When the bucket would have been empty.
    empty_at: Timestamp,
}

/// Why a connection was refused. Drop its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused {
    /// `max_connections` are open.
    TooManyConnections,
    /// `max_connections_per_address` are open from its address.
    TooManyFromAddress,
    /// The shard is being drained.
    Draining,
}

/// A new connection, for [`Shard::open_with`](crate::Shard::open_with).
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Opening {
    /// Where it comes from, for `max_connections_per_address`.
    pub peer: Option<IpAddr>,
    /// Someone else has answered the upgrade request already: what comes first are frames.
    pub is_upgraded: bool,
    /// Who the client is, as whoever accepted it has found out (by a cookie, say). It takes the place of the secret that
    /// clients send, and the client can't change it.
    pub secret: Option<Arc<str>>,
    /// Each new subscription is answered with the present state, as the query of the upgrade request has asked: see
    /// [`asks_for_snapshots`](crate::asks_for_snapshots). A request that is read here is looked at here.
    pub wants_snapshots: bool,
}

impl fmt::Debug for Opening {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening")
            .field("peer", &self.peer)
            .field("is_upgraded", &self.is_upgraded)
            .field("wants_snapshots", &self.wants_snapshots)
            .finish_non_exhaustive()
    }
}

impl Admission {
    pub(crate) fn new(seed: Seed) -> Self {
        Self {
            open: AtomicUsize::new(0),
            rate: Mutex::new(Rate {
                empty_at: Timestamp::START,
            }),
            by_address: Mutex::new(HashMap::with_hasher(seed)),
        }
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether a driver may accept now; if not, when to ask again.
    pub(crate) fn may_accept(&self, now: Timestamp, config: &Config) -> Result<(), Timestamp> {
        let Some(interval) = interval_of(config.max_accepts_per_second) else {
            return Ok(());
        };
        let rate = lock(&self.rate);
        let full_at = rate.empty_at + interval;
        // A full bucket is a second's worth: as far as the next connection may be ahead of its time.
        if full_at.since(now) > Duration::from_secs(1) {
            return Err(now + full_at.since(now + Duration::from_secs(1)));
        }
        Ok(())
    }

    pub(crate) fn enter(&self, now: Timestamp, config: &Config, opening: &Opening) -> Result<(), Refused> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= config.max_connections {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Refused::TooManyConnections);
        }
        if let Some(peer) = counted(config, opening.peer) {
            let mut by_address = lock(&self.by_address);
            let count = by_address.get(&peer).copied().unwrap_or_default();
            if count as usize >= config.max_connections_per_address {
                self.open.fetch_sub(1, Ordering::Relaxed);
                return Err(Refused::TooManyFromAddress);
            }
            by_address.insert(peer, count + 1);
        }
        if let Some(interval) = interval_of(config.max_accepts_per_second) {
            let mut rate = lock(&self.rate);
            rate.empty_at = rate.empty_at.max(now) + interval;
        }
        Ok(())
    }

    pub(crate) fn leave(&self, config: &Config, peer: Option<IpAddr>) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(peer) = counted(config, peer) {
            let mut by_address = lock(&self.by_address);
            if let Some(count) = by_address.get_mut(&peer) {
                *count -= 1;
                if *count == 0 {
                    by_address.remove(&peer);
                }
            }
        }
    }
}

/// What a peer is counted as for `max_connections_per_address`. `None` if there is no limit.
pub(crate) fn counted(config: &Config, peer: Option<IpAddr>) -> Option<IpAddr> {
    if config.max_connections_per_address == usize::MAX {
        return None;
    }
    peer.map(network_of)
}

/// An IPv4 address, or the /64 that an IPv6 client usually has to itself.
pub(crate) fn network_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

/// The time between two connections at this rate; `None` if there is no limit.
fn interval_of(per_second: u32) -> Option<Duration> {
    Duration::from_secs(1).checked_div(per_second)
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooManyConnections => "the limit of open connections is reached",
            Self::TooManyFromAddress => "the limit of open connections from this address is reached",
            Self::Draining => "no more connections are taken: this is being shut down",
        })
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut config = Config::new(Seed(1, 2));
        config.max_connections = 3;
        config.max_accepts_per_second = 0;
        config.max_connections_per_address = 2;
        config
    }

    fn from(peer: &str) -> Opening {
        Opening {
            peer: Some(peer.parse().unwrap()),
            is_upgraded: true,
            ..Opening::default()
        }
    }

    #[test]
    fn each_limit_holds_and_gives_back() {
        let (config, now) = (config(), Timestamp::START);
        let it = Admission::new(config.seed);
        let one = from("192.0.2.1");
        assert_eq!(it.enter(now, &config, &one), Ok(()));
        assert_eq!(it.enter(now, &config, &from("::ffff:192.0.2.1")), Ok(()));
        assert_eq!(it.enter(now, &config, &one), Err(Refused::TooManyFromAddress));
        assert_eq!(it.enter(now, &config, &from("2001:db8::1")), Ok(()));
        assert_eq!(
            it.enter(now, &config, &from("192.0.2.9")),
            Err(Refused::TooManyConnections)
        );
        it.leave(&config, one.peer);
        assert_eq!(it.enter(now, &config, &one), Ok(()));
        it.leave(&config, one.peer);
        it.leave(&config, one.peer);
        assert_eq!(it.enter(now, &config, &from("2001:db8::2")), Ok(()), "of the same /64");
        it.leave(&config, from("2001:db8::1").peer);
        it.leave(&config, from("2001:db8::1").peer);
        assert!(lock(&it.by_address).is_empty());
        assert_eq!(it.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_second_may_bring_as_many_as_its_rate_and_a_burst_of_as_many() {
        let mut config = config();
        config.max_connections = 1000;
        config.max_accepts_per_second = 10;
        let it = Admission::new(config.seed);
        let mut now = Timestamp::START + Duration::from_secs(100);
        let mut accepted = Vec::new();
        for _ in 0..50 {
            while let Err(at) = it.may_accept(now, &config) {
                assert!(at > now);
                now = at;
            }
            assert_eq!(it.enter(now, &config, &Opening::default()), Ok(()));
            accepted.push(now);
        }
        let in_first_second = accepted
            .iter()
            .filter(|at| at.since(accepted[0]) < Duration::from_secs(1))
            .count();
        assert!((10..=20).contains(&in_first_second), "{in_first_second}");
        let took = now.since(accepted[0]);
        assert!(took >= Duration::from_millis(3900), "{took:?}");
        assert!(took <= Duration::from_millis(4100), "{took:?}");
    }
}
