//! [`Links`]: which endpoints a node is to be connected to, and which it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use entity_sync_bus::LogLimit;
use entity_sync_core::Timestamp;

use crate::config::{BrokerEndpoints, ZmqConfig};
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
    places: Vec<Place>,
    keep_vanished: Duration,
    connections: Connections,
    /// Since it was last counted what there is.
    has_changed: bool,
    too_many: LogLimit,
}

/// A peer or a broker of the configuration, which an operator knows by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its endpoints, as they were given.
    pub(crate) name: String,
    pub(crate) is_broker: bool,
}

/// What is to be connected to.
type Connections = BTreeMap<(Side, String), Connection>;

/// An address is connected to once, whoever has it.
#[derive(Default)]
struct Connection {
    /// How many targets have it.
    wanted_by: usize,
    state: State,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// It was never there.
    #[default]
    New,
    Up,
    /// It has been lost, or has failed in its handshake, and was asked for anew at this time at the latest. libzmq tries most
    /// of them again by itself, but never one whose other side has said what no ZeroMQ says, or too much of it.
    Down(Timestamp),
}

/// An endpoint of the configuration.
struct Target {
    side: Side,
    /// Whose it is. None: of a name that has the addresses of all others.
    place: Option<usize>,
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
            keep_vanished: config.keep_vanished,
            has_changed: true,
            ..Self::default()
        };
        let mut changes = Vec::new();
        for peer in &config.peers {
            let place = links.add_place(peer.to_string(), false);
            links.add(Side::Subscriber, place, peer, &mut changes);
        }
        for name in &config.peer_names {
            links.add_name(Side::Subscriber, None, name);
        }
        for BrokerEndpoints { frontend, backend } in &config.brokers {
            let place = links.add_place(format!("{frontend},{backend}"), true);
            links.add(Side::Publisher, place, frontend, &mut changes);
            links.add(Side::Subscriber, place, backend, &mut changes);
        }
        (links, changes)
    }

    fn add_place(&mut self, name: String, is_broker: bool) -> Option<usize> {
        self.places.push(Place { name, is_broker });
        Some(self.places.len() - 1)
    }

    fn add(&mut self, side: Side, place: Option<usize>, endpoint: &Endpoint, changes: &mut Vec<Change>) {
        if let Kind::Named(name) = &endpoint.0 {
            // libzmq would look it up too, but on the thread that moves all bytes.
            return self.add_name(side, place, name);
        }
        let endpoint = endpoint.to_string();
        changes.extend(want(&mut self.connections, side, &endpoint));
        self.targets.push(Target {
            side,
            place,
            name: None,
            addresses: vec![Known {
                endpoint,
                gone_since: None,
            }],
        });
    }

    fn add_name(&mut self, side: Side, place: Option<usize>, name: &DnsName) {
        let known = self.names.iter().position(|it| it == name);
        let index = known.unwrap_or_else(|| {
            self.names.push(name.clone());
            self.names.len() - 1
        });
        self.targets.push(Target {
            side,
            place,
            name: Some(index),
            addresses: Vec::new(),
        });
    }

    /// What is to be connected to, and is not.
    pub(crate) fn not_up(&self, side: Side) -> impl Iterator<Item = &str> {
        let all = self.connections.iter();
        all.filter(move |((of, _), it)| *of == side && it.state != State::Up)
            .map(|((_, endpoint), _)| &**endpoint)
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
            if let Some(skipped) = self.too_many.happened() {
                let count = found.len();
                tracing::warn!(
                    name,
                    count,
                    skipped,
                    "a name has too many addresses, the others are left out"
                );
            }
            found.truncate(MAX_ADDRESSES);
        }
        let mut changes = Vec::new();
        for target in self.targets.iter_mut().filter(|it| it.name == Some(name)) {
            for endpoint in &found {
                match target.addresses.iter_mut().find(|it| it.endpoint == *endpoint) {
                    Some(known) => known.gone_since = None,
                    None => {
                        changes.extend(want(&mut self.connections, target.side, endpoint));
                        self.has_changed = true;
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
                changes.extend(unwant(&mut self.connections, side, &known.endpoint));
                self.has_changed = true;
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
        let Some(connection) = self.connections.get_mut(&(side, endpoint)) else {
            return;
        };
        connection.state = match connection.state {
            _ if is_up => State::Up,
            State::Down(since) => State::Down(since),
            State::New | State::Up => State::Down(now),
        };
        self.has_changed = true;
    }

    /// What to do about connections that have not come back.
    pub(crate) fn overdue(&mut self, now: Timestamp) -> Vec<Change> {
        let is_overdue = |it: &Connection| matches!(it.state, State::Down(since) if now.since(since) >= AGAIN_AFTER);
        match self.connections.values().any(is_overdue) {
            true => self.again(now, Vec::new()),
            false => Vec::new(),
        }
    }

    /// All that are down are connected to anew, and `changes` made in between. libzmq keeps the address in memory of each
    /// session that it has given up, and takes whatever has that address for it when it is told to disconnect. So that is
    /// said of all of them before anything is connected to.
    fn again(&mut self, now: Timestamp, changes: Vec<Change>) -> Vec<Change> {
        let (mut disconnects, mut connects) = (Vec::new(), Vec::new());
        for ((side, endpoint), connection) in &mut self.connections {
            if let State::Down(since) = &mut connection.state {
                *since = now;
                disconnects.push(Change::Disconnect(*side, endpoint.clone()));
                connects.push(Change::Connect(*side, endpoint.clone()));
            }
        }
        let (vanished, others): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|it| matches!(it, Change::Disconnect(..)));
        let disconnects = disconnects.into_iter().chain(vanished);
        disconnects.chain(others).chain(connects).collect()
    }

    /// How many there are, if that may have changed since this was last asked.
    pub(crate) fn changed_counts(&mut self) -> Option<LinkCounts> {
        std::mem::take(&mut self.has_changed).then(|| self.counts())
    }

    /// The peers and brokers that the configuration names.
    pub(crate) fn places(&self) -> &[Place] {
        &self.places
    }

    /// Whether the place at this index is connected, with this side. A peer has no side to publish to.
    pub(crate) fn is_connected(&self, place: usize, side: Side) -> bool {
        let mut targets = self
            .targets
            .iter()
            .filter(|it| it.place == Some(place) && it.side == side);
        targets.all(|it| it.addresses.iter().any(|known| self.is_up(side, &known.endpoint)))
    }

    fn is_up(&self, side: Side, endpoint: &str) -> bool {
        let connection = self.connections.get(&(side, endpoint.to_owned()));
        connection.is_some_and(|it| it.state == State::Up)
    }

    pub(crate) fn counts(&self) -> LinkCounts {
        let is_broker = |place: usize| self.places.get(place).is_some_and(|it| it.is_broker);
        let of_peers = self.targets.iter().filter(|it| !it.place.is_some_and(is_broker));
        let peers: BTreeSet<_> = of_peers.flat_map(|it| &it.addresses).map(|it| &it.endpoint).collect();
        let brokers = (0..self.places.len()).filter(|&it| is_broker(it));
        let is_connected =
            |it: &usize| self.is_connected(*it, Side::Publisher) && self.is_connected(*it, Side::Subscriber);
        LinkCounts {
            peers: peers.len() as u64,
            connected_peers: peers.iter().filter(|it| self.is_up(Side::Subscriber, it)).count() as u64,
            brokers: brokers.clone().count() as u64,
            connected_brokers: brokers.filter(is_connected).count() as u64,
        }
    }
}

fn want(connections: &mut Connections, side: Side, endpoint: &str) -> Option<Change> {
    let connection = connections.entry((side, endpoint.to_owned())).or_default();
    connection.wanted_by += 1;
    (connection.wanted_by == 1).then(|| Change::Connect(side, endpoint.to_owned()))
}

/// libzmq does not tell of the end of what it was asked to end, and so it is forgotten here.
fn unwant(connections: &mut Connections, side: Side, endpoint: &str) -> Option<Change> {
    let key = (side, endpoint.to_owned());
    let connection = connections.get_mut(&key)?;
    connection.wanted_by -= 1;
    if connection.wanted_by > 0 {
        return None;
    }
    connections.remove(&key);
    Some(Change::Disconnect(side, key.1))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(links.changed_counts().is_some());
        assert_eq!(links.resolved(at(10), 0, &addresses(&[1])), []);
        assert_eq!(links.changed_counts(), None);
        // It is back in time.
        assert_eq!(links.resolved(at(60), 0, &addresses(&[1, 2])), []);
        assert_eq!(links.resolved(at(70), 0, &[]), []);
        assert_eq!(links.resolved(at(129), 0, &addresses(&[1])), []);
        assert_eq!(links.resolved(at(130), 0, &addresses(&[1])), [disconnect(2)]);
        let counts = links.changed_counts().expect("changed");
        assert_eq!((counts.peers, counts.connected_peers), (1, 0));
        assert_eq!(links.resolved(at(140), 0, &addresses(&[1, 2])), [connect(2)]);
        // Before another one is connected to: see `again`.
        assert_eq!(links.resolved(at(150), 0, &addresses(&[1])), []);
        assert_eq!(
            links.resolved(at(210), 0, &addresses(&[1, 3])),
            [disconnect(2), connect(3)]
        );
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
        assert_eq!(links.changed_counts().map(|it| it.connected_brokers), Some(0));
        assert_eq!(links.places()[1].name, "tcp://10.0.0.2:5,tcp://10.0.0.2:6");
        let sides = [Side::Publisher, SUB].map(|side| [0, 1].map(|place| links.is_connected(place, side)));
        assert_eq!(sides, [[false, false], [true, true]]);
        // Of nobody that was asked for.
        links.set_up(at(0), SUB, "tcp://10.0.0.9:6".to_owned(), true);
        assert_eq!((links.changed_counts(), links.counts().connected_peers), (None, 0));
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
