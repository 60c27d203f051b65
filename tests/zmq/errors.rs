//! What can't be started says why, and what to do.

use std::error::Error;
use std::task::Waker;

use entity_sync_bus::StartError;
use entity_sync_core::Timestamp;
use entity_sync_zmq::{
    Broker, BrokerConfig, BrokerEndpoints, Curve, CurveKeyPair, CurveServer, Endpoint, ZmqBus, ZmqConfig, ZmqError,
};

use super::{address, bare_node, cluster, mesh};

fn start(config: &ZmqConfig) -> Result<ZmqBus, StartError> {
    let (node, _) = bare_node();
    let waker = Waker::noop().clone();
    ZmqBus::new(config, cluster(|_| {}), node, Timestamp::START, waker)
}

fn said(config: &ZmqConfig) -> String {
    let error = start(config).unwrap_err();
    assert!(matches!(error, StartError::Bus(_)), "{error:?}");
    error.to_string()
}

fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap()
}

#[test]
fn what_cannot_be_bound_to_is_told_with_the_reason() {
    let taken = address();
    let _holder = start(&mesh(&taken, &[])).unwrap();
    let in_use = said(&mesh(&taken, &[]));
    assert_eq!(
        in_use,
        format!("can't bind to {taken}: another program already uses this address; stop it or choose another address")
    );
    // Twice within a node, too; the first of them is given back.
    let free = address();
    let mut twice = mesh(&free, &[]);
    twice.bind.push(taken.clone());
    assert!(said(&twice).contains("another program already uses this address"));
    drop(start(&mesh(&free, &[])).unwrap());

    for (text, why) in [
        ("tcp://192.0.2.1:5555", "no such address or interface"),
        ("tcp://nosuchnic:5555", "no such address or interface"),
        ("ipc:///no/such/folder/socket", "its folder doesn't exist"),
        ("tcp://node.example.com:5555", "HOST is an address of this machine"),
        ("ipc:///proc/socket", "can't bind to ipc:///proc/socket"),
    ] {
        let mut config = mesh(&endpoint(text), &[]);
        config.allow_unauthenticated = true;
        let said = said(&config);
        assert!(said.contains(why), "{said}");
    }
}

/// libzmq keeps whatever a peer subscribes to, as much as it sends: with 40 MB, a process grew to 1,246 MB.
#[test]
fn without_authentication_only_this_machine_may_connect() {
    let refused = |error: &str, text: &str| {
        let bind = format!("other machines can reach {text}, and without CURVE ");
        assert!(
            error.starts_with(&bind) && error.contains("--zmq-allow-unauthenticated"),
            "{error}"
        );
    };
    for text in [
        "tcp://*:0",
        "tcp://0.0.0.0:0",
        "tcp://[::]:0",
        "tcp://192.0.2.1:5555",
        "tcp://eth0:5555",
    ] {
        let open = endpoint(text);
        let mut second = mesh(&address(), &[]);
        second.bind.push(open.clone());
        for config in [mesh(&open, &[]), second] {
            refused(&said(&config), &open.to_string());
        }
        for (frontend, backend) in [(&open, &address()), (&address(), &open)] {
            let error = Broker::start(&BrokerConfig::new(frontend.clone(), backend.clone())).unwrap_err();
            refused(&error.to_string(), &open.to_string());
        }
    }
    // If it is asked for, or authenticated.
    let any = endpoint("tcp://*:0");
    let mut config = mesh(&any, &[]);
    config.allow_unauthenticated = true;
    drop(start(&config).unwrap());
    let keys = || CurveKeyPair::generate().unwrap();
    let (server, client) = (keys(), keys());
    let mut config = mesh(&any, &[]);
    config.curve = Some(Curve {
        server_key: server.public,
        client,
        server: Some(CurveServer {
            keys: server.clone(),
            allowed: Vec::new(),
        }),
    });
    drop(start(&config).unwrap());
    let mut broker = BrokerConfig::new(any.clone(), any.clone());
    broker.allow_unauthenticated = true;
    drop(Broker::start(&broker).unwrap());
    broker.allow_unauthenticated = false;
    broker.curve = Some(CurveServer {
        keys: server,
        allowed: Vec::new(),
    });
    drop(Broker::start(&broker).unwrap());
}

#[test]
fn what_makes_no_sense_is_refused() {
    assert!(said(&ZmqConfig::default()).contains("no other node could receive from this one"));
    let any = endpoint("tcp://*:5555");
    assert!(said(&mesh(&address(), &[&any])).contains("not *"));
    let mut config = ZmqConfig::default();
    config.brokers = vec![BrokerEndpoints {
        frontend: address(),
        backend: any,
    }];
    assert!(said(&config).contains("not *"));
    let mut bad = cluster(|_| {});
    bad.buckets = 3;
    let (node, _) = bare_node();
    let waker = Waker::noop().clone();
    let error = ZmqBus::new(
        &mesh(&address(), &[]),
        bad,
        node.clone(),
        Timestamp::START,
        waker.clone(),
    )
    .unwrap_err();
    assert!(matches!(error, StartError::Join(_)), "{error:?}");
    // A bus that did not start has not taken the node; one that did has.
    let taken = mesh(&address(), &[]);
    let _holder = start(&taken).unwrap();
    ZmqBus::new(&taken, cluster(|_| {}), node.clone(), Timestamp::START, waker.clone()).unwrap_err();
    let _bus = ZmqBus::new(
        &mesh(&address(), &[]),
        cluster(|_| {}),
        node.clone(),
        Timestamp::START,
        waker.clone(),
    )
    .unwrap();
    let again = ZmqBus::new(&mesh(&address(), &[]), cluster(|_| {}), node, Timestamp::START, waker).unwrap_err();
    assert!(again.to_string().contains("has a bus already"), "{again}");
}

#[test]
fn curve_asks_for_what_it_needs() {
    let Ok(client) = CurveKeyPair::generate() else {
        assert!(matches!(CurveKeyPair::generate(), Err(ZmqError::NoCurve)));
        return;
    };
    let curve = Curve {
        server_key: client.public,
        client,
        server: None,
    };
    let mut config = mesh(&address(), &[]);
    config.curve = Some(curve);
    assert!(said(&config).contains("a node that binds needs the keys"));
    config.brokers = vec![BrokerEndpoints {
        frontend: address(),
        backend: address(),
    }];
    assert!(said(&config).contains("leave out one of them"));
    let secret = config.curve.unwrap().client.secret.to_z85();
    assert!(!format!("{:?}", mesh(&address(), &[])).contains(&secret));
}

#[test]
fn a_brokers_errors_are_the_same() {
    let (a, b) = (address(), address());
    let _broker = Broker::start(&BrokerConfig::new(a.clone(), b.clone())).unwrap();
    let error = Broker::start(&BrokerConfig::new(a, address())).unwrap_err();
    assert!(
        error.to_string().contains("another program already uses this address"),
        "{error}"
    );
    assert!(error.source().is_some());
    let error = Broker::start(&BrokerConfig::new(address(), endpoint("tcp://node.example.com:5555"))).unwrap_err();
    assert!(matches!(error, ZmqError::Endpoint(_)), "{error}");
}
