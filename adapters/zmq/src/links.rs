//! [`Links`]: which endpoints a node is to be connected to, and which it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use entity_sync_core::Timestamp;

use crate::config::ZmqConfig;
use crate::endpoint::{DnsName, Endpoint, Kind};

/// Addresses of one name that are made use of. DNS comes from the network too.
const MAX_ADDRESSES: usize = 1_000;

/// A connection that is not made again by libzmq within this is asked for anew.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// One of a node's two sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Publisher,
    Subscriber,
}

/// What is to be done with a socket.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Connect(Side, String),
    Disconnect(Side, String),
}

/// How many connections there are to be, and how many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkCounts {
    pub(crate) peers: u64,
    pub(crate) connected_peers: u64,
    pub(crate) brokers: u64,
    pub(crate) connected_brokers: u64,
}

#[derive(Default)]
pub(crate) struct Links {
    targets: Vec<Target>,
    names: Vec<DnsName>,
    brokers: usize,
    keep_vanished: Duration,
    /// How many targets have this address: it is connected to once.
    wanted: BTreeMap<(Side, String), usize>,
    up: BTreeSet<(Side, String)>,
    /// Of those that are wanted, which have been lost, or have failed in their handshake, and since when. libzmq tries most
    /// of them again by itself, but never one whose other side has said what no ZeroMQ says, or too much of it.
    down: BTreeMap<(Side, String), Timestamp>,
}

/// An endpoint of the configuration.
struct Target {
    side: Side,
    /// Of which broker. Without, of a peer.
    broker: Option<usize>,
    /// Whose addresses these are.
    name: Option<usize>,
    addresses: Vec<Known>,
}

struct Known {
    endpoint: String,
    /// Since when the name does not have it any more.
    gone_since: Option<Timestamp>,
}

impl Links {
    /// Of a configuration that was checked. Says what is to be connected to from the start.
    pub(crate) fn new(config: &ZmqConfig) -> (Self, Vec<Change>) {
        let mut links = Self {
            brokers: config.brokers.len(),
            keep_vanished: config.keep_vanished,
            ..Self::default()
        };
        let mut changes = Vec::new();
        for peer in &config.peers {
            links.add(Side::Subscriber, None, peer, &mut changes);
        }
        for name in &config.peer_names {
            links.add_name(Side::Subscriber, None, name);
        }
        for (broker, endpoints) in config.brokers.iter().enumerate() {
            links.add(Side::Publisher, Some(broker), &endpoints.frontend, &mut changes);
            links.add(Side::Subscriber, Some(broker), &endpoints.backend, &mut changes);
        }
        (links, changes)
    }

    fn add(&mut self, side: Side, broker: Option<usize>, endpoint: &Endpoint, changes: &mut Vec<Change>) {
        if let Kind::Named(name) = &endpoint.0 {
            // libzmq would look it up too, but on the thread that moves all bytes.
            return self.add_name(side, broker, name);
        }
        let endpoint = endpoint.to_string();
        changes.extend(want(&mut self.wanted, side, &endpoint));
        self.targets.push(Target {
            side,
            broker,
            name: None,
            addresses: vec![Known {
                endpoint,
                gone_since: None,
            }],
        });
    }

    fn add_name(&mut self, side: Side, broker: Option<usize>, name: &DnsName) {
        let known = self.names.iter().position(|it| it == name);
        let index = known.unwrap_or_else(|| {
            self.names.push(name.clone());
            self.names.len() - 1
        });
        self.targets.push(Target {
            side,
            broker,
            name: Some(index),
            addresses: Vec::new(),
        });
    }

    /// What is to be looked up.
    pub(crate) fn names(&self) -> &[DnsName] {
        &self.names
    }

    /// A name has these addresses now.
    pub(crate) fn resolved(&mut self, now: Timestamp, name: usize, addresses: &[SocketAddr]) -> Vec<Change> {
        let mut found: Vec<_> = addresses.iter().map(|&it| Endpoint::from(it).to_string()).collect();
        found.sort_unstable();
        found.dedup();
        if found.len() > MAX_ADDRESSES {
            let name = self.names.get(name).map(ToString::to_string);
            tracing::warn!(
                name,
                count = found.len(),
                "a name has too many addresses, the others are left out"
            );
            found.truncate(MAX_ADDRESSES);
        }
        let mut changes = Vec::new();
        for target in self.targets.iter_mut().filter(|it| it.name == Some(name)) {
            for endpoint in &found {
                match target.addresses.iter_mut().find(|it| it.endpoint == *endpoint) {
                    Some(known) => known.gone_since = None,
                    None => {
                        changes.extend(want(&mut self.wanted, target.side, endpoint));
                        target.addresses.push(Known {
                            endpoint: endpoint.clone(),
                            gone_since: None,
                        });
                    }
                }
            }
            let side = target.side;
            target.addresses.retain_mut(|known| {
                if found.binary_search(&known.endpoint).is_ok() {
                    return true;
                }
                let since = *known.gone_since.get_or_insert(now);
                if now.since(since) < self.keep_vanished {
                    return true;
                }
                if let Some(change) = unwant(&mut self.wanted, side, &known.endpoint) {
                    // libzmq does not tell of what it was asked for.
                    let key = (side, known.endpoint.clone());
                    self.up.remove(&key);
                    self.down.remove(&key);
                    changes.push(change);
                }
                false
            });
        }
        if changes.iter().any(|it| matches!(it, Change::Connect(..))) {
            changes = self.again(now, changes);
        }
        changes
    }

    /// A connection has come or gone. Those that others have made are not kept count of.
    pub(crate) fn set_up(&mut self, now: Timestamp, side: Side, endpoint: String, is_up: bool) {
        let key = (side, endpoint);
        if !self.wanted.contains_key(&key) {
            self.up.remove(&key);
        } else if is_up {
            self.down.remove(&key);
            self.up.insert(key);
        } else {
            self.up.remove(&key);
            self.down.entry(key).or_insert(now);
        }
    }

    /// What to do about connections that have not come back.
    pub(crate) fn overdue(&mut self, now: Timestamp) -> Vec<Change> {
        let is_any = self.down.values().any(|&since| now.since(since) >= AGAIN_AFTER);
        match is_any {
            true => self.again(now, Vec::new()),
            false => Vec::new(),
        }
    }

    /// All that are down are connected to anew, and `changes` made in between. libzmq keeps the address in memory of each
    /// session that it has given up, and takes whatever has that address for it when it is told to disconnect. So that is
    /// said of all of them before anything is connected to.
    fn again(&mut self, now: Timestamp, changes: Vec<Change>) -> Vec<Change> {
        let all: Vec<_> = self.down.keys().cloned().collect();
        self.down.values_mut().for_each(|since| *since = now);
        let disconnects = all.iter().map(|(side, it)| Change::Disconnect(*side, it.clone()));
        let connects = all.iter().map(|(side, it)| Change::Connect(*side, it.clone()));
        disconnects.chain(changes).chain(connects).collect()
    }

    pub(crate) fn counts(&self) -> LinkCounts {
        let of_peers = self.targets.iter().filter(|it| it.broker.is_none());
        let peers: BTreeSet<_> = of_peers.flat_map(|it| &it.addresses).map(|it| &it.endpoint).collect();
        let is_up = |endpoint: &str| self.up.contains(&(Side::Subscriber, endpoint.to_owned()));
        let is_connected = |broker: &usize| {
            let mut sides = self.targets.iter().filter(|it| it.broker == Some(*broker));
            sides.all(|target| {
                let mut addresses = target.addresses.iter();
                addresses.any(|it| self.up.contains(&(target.side, it.endpoint.clone())))
            })
        };
        LinkCounts {
            peers: peers.len() as u64,
            connected_peers: peers.iter().filter(|it| is_up(it)).count() as u64,
            brokers: self.brokers as u64,
            connected_brokers: (0..self.brokers).filter(is_connected).count() as u64,
        }
    }
}

fn want(wanted: &mut BTreeMap<(Side, String), usize>, side: Side, endpoint: &str) -> Option<Change> {
    let count = wanted.entry((side, endpoint.to_owned())).or_default();
    *count += 1;
    (*count == 1).then(|| Change::Connect(side, endpoint.to_owned()))
}

fn unwant(wanted: &mut BTreeMap<(Side, String), usize>, side: Side, endpoint: &str) -> Option<Change> {
    let key = (side, endpoint.to_owned());
    let count = wanted.get_mut(&key)?;
    *count -= 1;
    if *count > 0 {
        return None;
    }
    wanted.remove(&key);
    Some(Change::Disconnect(side, key.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BrokerEndpoints;

    const SUB: Side = Side::Subscriber;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::START + Duration::from_secs(seconds)
    }

    fn addresses(last: &[u8]) -> Vec<SocketAddr> {
        last.iter().map(|&last| ([10, 0, 0, last], 5).into()).collect()
    }

    fn connect(last: u8) -> Change {
        Change::Connect(SUB, format!("tcp://10.0.0.{last}:5"))
    }

    fn disconnect(last: u8) -> Change {
        Change::Disconnect(SUB, format!("tcp://10.0.0.{last}:5"))
    }

    fn config(change: impl FnOnce(&mut ZmqConfig)) -> ZmqConfig {
        let mut config = ZmqConfig::default();
        change(&mut config);
        config
    }

    #[test]
    fn an_address_is_connected_to_once_whoever_has_it() {
        let (mut links, changes) = Links::new(&config(|it| {
            it.peers = vec!["tcp://10.0.0.1:5".parse().expect("good"); 2];
            it.peers.push("tcp://nodes:5".parse().expect("good"));
            it.peer_names = vec!["nodes:5".parse().expect("good"), "others:5".parse().expect("good")];
        }));
        assert_eq!(changes, [connect(1)]);
        assert_eq!(links.names().len(), 2);
        assert_eq!(links.resolved(at(0), 0, &addresses(&[1, 2, 2])), [connect(2)]);
        assert_eq!(links.resolved(at(0), 1, &addresses(&[2, 3])), [connect(3)]);
        assert_eq!(links.counts().peers, 3);
    }

    #[test]
    fn what_has_vanished_is_disconnected_after_a_while() {
        let (mut links, _) = Links::new(&config(|it| it.peer_names = vec!["nodes:5".parse().expect("good")]));
        assert_eq!(links.resolved(at(0), 0, &addresses(&[1, 2])), [connect(1), connect(2)]);
        links.set_up(at(0), SUB, "tcp://10.0.0.2:5".to_owned(), true);
        assert_eq!(links.counts().connected_peers, 1);
        assert_eq!(links.resolved(at(10), 0, &addresses(&[1])), []);
        // It is back in time.
        assert_eq!(links.resolved(at(60), 0, &addresses(&[1, 2])), []);
        assert_eq!(links.resolved(at(70), 0, &[]), []);
        assert_eq!(links.resolved(at(129), 0, &addresses(&[1])), []);
        assert_eq!(links.resolved(at(130), 0, &addresses(&[1])), [disconnect(2)]);
        assert_eq!((links.counts().peers, links.counts().connected_peers), (1, 0));
        assert_eq!(links.resolved(at(140), 0, &addresses(&[1, 2])), [connect(2)]);
    }

    #[test]
    fn a_name_has_no_end_of_addresses() {
        let (mut links, _) = Links::new(&config(|it| it.peer_names = vec!["nodes:5".parse().expect("good")]));
        let many: Vec<SocketAddr> = (0..2_000u16).map(|port| ([10, 0, 0, 1], 1 + port).into()).collect();
        assert_eq!(links.resolved(at(0), 0, &many).len(), MAX_ADDRESSES);
    }

    #[test]
    fn a_broker_is_connected_when_both_its_sides_are() {
        let broker = |last: u8| BrokerEndpoints {
            frontend: format!("tcp://10.0.0.{last}:5").parse().expect("good"),
            backend: format!("tcp://10.0.0.{last}:6").parse().expect("good"),
        };
        let (mut links, changes) = Links::new(&config(|it| it.brokers = vec![broker(1), broker(2)]));
        assert_eq!(changes.len(), 4);
        let connected = |links: &Links| links.counts().connected_brokers;
        links.set_up(at(0), Side::Publisher, "tcp://10.0.0.1:5".to_owned(), true);
        links.set_up(at(0), SUB, "tcp://10.0.0.2:6".to_owned(), true);
        assert_eq!(connected(&links), 0);
        links.set_up(at(0), SUB, "tcp://10.0.0.1:6".to_owned(), true);
        assert_eq!(connected(&links), 1);
        links.set_up(at(0), Side::Publisher, "tcp://10.0.0.1:5".to_owned(), false);
        assert_eq!(connected(&links), 0);
        // Of nobody that was asked for.
        links.set_up(at(0), SUB, "tcp://10.0.0.9:6".to_owned(), true);
        assert_eq!(links.counts().connected_peers, 0);
    }
    #[test]
    fn what_does_not_come_back_is_connected_to_anew() {
        let (mut links, _) = Links::new(&config(|it| {
            it.peers = (1..4).map(|it| addresses(&[it])[0].into()).collect();
            it.peer_names = vec!["nodes:5".parse().expect("good")];
        }));
        let endpoint = |last: u8| format!("tcp://10.0.0.{last}:5");
        // One that was never reached is left to libzmq.
        assert_eq!(links.overdue(at(100)), []);
        links.set_up(at(100), SUB, endpoint(1), true);
        links.set_up(at(101), SUB, endpoint(1), false);
        links.set_up(at(104), SUB, endpoint(2), false);
        links.set_up(at(104), SUB, endpoint(9), false);
        assert_eq!(links.overdue(at(105)), []);
        let both = [disconnect(1), disconnect(2), connect(1), connect(2)];
        assert_eq!(links.overdue(at(106)), both);
        assert_eq!(links.overdue(at(110)), []);
        links.set_up(at(110), SUB, endpoint(2), true);
        assert_eq!(links.overdue(at(111)), [disconnect(1), connect(1)]);
        let new = links.resolved(at(112), 0, &addresses(&[4]));
        assert_eq!(new, [disconnect(1), connect(4), connect(1)]);
        links.set_up(at(113), SUB, endpoint(1), true);
        assert_eq!(links.overdue(at(200)), []);
    }
}
