//! Encrypted connections, and who is admitted.

use entity_sync_tests::wait_for;
use entity_sync_zmq::{Broker, BrokerConfig, BrokerEndpoints, Curve, CurveKeyPair, CurveServer, ZmqConfig, ZmqError};

use super::{Loop, Peer, Store, address, mesh};

/// Keys of the accepting side, and of two who may connect.
struct Keys {
    server: CurveServer,
    clients: [CurveKeyPair; 2],
}

impl Keys {
    fn new() -> Option<Self> {
        let pair = || match CurveKeyPair::generate() {
            Ok(pair) => Some(pair),
            Err(ZmqError::NoCurve) => {
                println!("this libzmq has no CURVE: not tested");
                assert!(std::env::var_os("REQUIRE_SERVERS").is_none(), "CI's libzmq has CURVE");
                None
            }
            Err(other) => panic!("{other}"),
        };
        let clients = [pair()?, pair()?];
        Some(Self {
            server: CurveServer {
                keys: pair()?,
                allowed: clients.iter().map(|it| it.public).collect(),
            },
            clients,
        })
    }

    fn of(&self, client: &CurveKeyPair) -> Option<Curve> {
        Some(Curve {
            client: client.clone(),
            server_key: self.server.keys.public,
            server: Some(self.server.clone()),
        })
    }
}

#[test]
fn in_a_mesh_only_listed_keys_are_admitted() {
    let Some(keys) = Keys::new() else { return };
    let store = Store::default();
    let [a, b, c, d] = [address(), address(), address(), address()];
    let with = |mut config: ZmqConfig, curve: Option<Curve>| {
        config.curve = curve;
        config
    };
    let node = Peer::start(&store, with(mesh(&a, &[&b]), keys.of(&keys.clients[0])));
    let friend = Loop::start(&with(mesh(&b, &[&a]), keys.of(&keys.clients[1])), |_| {});
    // With a key that is on no list, and with none at all: they don't hear the node, and it does not hear them.
    let stranger = Loop::start(
        &with(mesh(&c, &[&a]), keys.of(&CurveKeyPair::generate().unwrap())),
        |_| {},
    );
    let naked = Loop::start(&with(mesh(&d, &[&a]), None), |_| {});
    node.wait_for_peers(1);
    friend.wait_for_peers(1);
    let mut client = node.client(&["1"]);
    for round in 0..10 {
        let row = format!("round {round}");
        store.put("1", &row);
        friend.notify("1");
        client.rows_until(&row);
        node.notify("2");
    }
    wait_for("a refusal", || stranger.links.status().refused > 0);
    wait_for("what the friend hears", || friend.counts().keys > 0);
    for other in [&stranger, &naked] {
        assert_eq!(other.counts().digests, 0);
        assert_eq!(other.links.status().connected_peers, 0);
    }
}

#[test]
fn whoever_connects_to_a_node_with_another_server_key_hears_nothing() {
    let (Some(keys), Some(others)) = (Keys::new(), Keys::new()) else {
        return;
    };
    let (a, b) = (address(), address());
    let mut of_node = mesh(&a, &[]);
    of_node.curve = keys.of(&keys.clients[0]);
    let node = Loop::start(&of_node, |_| {});
    let mut of_victim = mesh(&b, &[&a]);
    of_victim.curve = keys.of(&keys.clients[1]);
    of_victim.curve.as_mut().unwrap().server_key = others.server.keys.public;
    let victim = Loop::start(&of_victim, |_| {});
    for _ in 0..20 {
        node.notify("1");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!((victim.counts().digests, victim.links.status().connected_peers), (0, 0));
}

#[test]
fn a_broker_admits_only_listed_keys() {
    let Some(keys) = Keys::new() else { return };
    let store = Store::default();
    let (frontend, backend) = (address(), address());
    let mut of_broker = BrokerConfig::new(frontend.clone(), backend.clone());
    of_broker.curve = Some(keys.server.clone());
    let broker = Broker::start(&of_broker).unwrap();
    let config = |client: Option<&CurveKeyPair>| {
        let mut config = ZmqConfig::default();
        config.brokers = vec![BrokerEndpoints {
            frontend: frontend.clone(),
            backend: backend.clone(),
        }];
        config.curve = client.map(|client| Curve {
            client: client.clone(),
            server_key: keys.server.keys.public,
            server: None,
        });
        config
    };
    let node = Peer::start(&store, config(Some(&keys.clients[0])));
    let friend = Loop::start(&config(Some(&keys.clients[1])), |_| {});
    let stranger = Loop::start(&config(Some(&CurveKeyPair::generate().unwrap())), |_| {});
    let naked = Loop::start(&config(None), |_| {});
    node.wait_for_peers(1);
    friend.wait_for_peers(1);
    let mut client = node.client(&["1"]);
    store.put("1", "encrypted");
    friend.notify("1");
    client.rows_until("encrypted");
    wait_for("a refusal", || stranger.links.status().refused > 0);
    for other in [&stranger, &naked] {
        other.notify("1");
        assert!(!other.view.has_been_connected());
        assert_eq!(other.counts().digests, 0);
    }
    assert_eq!(node.member.view().status().peers.len(), 1);
    drop(broker);
}
