//! The flags of a cluster.

use super::*;
use crate::cluster::BusOptions;

fn cluster(args: &[&str]) -> ClusterOptions {
    ok(args).cluster.expect("a bus was given")
}

#[test]
fn a_bus_has_what_it_needs() {
    let bus = cluster(&[
        "--bus=zmq",
        "--zmq-bind=127.0.0.1:7001",
        "--zmq-peer=tcp://[::1]:7002",
        "--zmq-peer=node-3:7001",
        "--zmq-peer-dns=nodes.local:7000",
        "--zmq-broker=10.0.0.1:1,10.0.0.1:2",
        "--prefix=shop",
        "--heartbeat-ms=250",
        "--node-name=a",
        "--repair-rate=7",
        "--sweep-every-seconds=60",
    ]);
    let BusOptions::Zmq {
        bind,
        peers,
        peer_names,
        brokers,
        curve,
        allow_unauthenticated,
    } = &bus.bus
    else {
        panic!("{bus:?}");
    };
    assert!(!allow_unauthenticated && curve.is_none());
    assert_eq!((bind.len(), peers.len(), peer_names.len(), brokers.len()), (1, 2, 1, 1));
    assert_eq!(
        (&*bus.prefix, bus.heartbeat.as_millis(), bus.repair_rate),
        ("shop", 250, 7)
    );
    assert_eq!(
        (bus.node_name.as_deref(), bus.sweep_every.map(|it| it.as_secs())),
        (Some("a"), Some(60))
    );
    let nats = cluster(&["--bus=nats", "--nats=nats://a,nats://b"]);
    assert!(matches!(nats.bus, BusOptions::Nats { servers, .. } if servers.len() == 2));
    let nats = cluster(&["--bus=nats", "--nats=nats://hush:hush@a,hush@b,tls://hush@c:4222"]);
    let shown = format!("{nats:?}");
    assert!(shown.contains(r#"["nats://a", "b", "tls://c:4222"]"#), "{shown}");
    assert!(!shown.contains("hush"), "{shown}");
    let options = ok(&["--bus=nsq", "--nsqd=127.0.0.1:4150", "--entity=items,people"]);
    assert_eq!(options.others, None);
    assert_eq!(options.entities.keys().collect::<Vec<_>>(), ["items", "people"]);
    let nsq = cluster(&[
        "--bus=nsq",
        "--nsqd=tcp://a:4150,b:4150",
        "--entity=items",
        "--nsqd-max-pending=50",
    ]);
    assert!(matches!(nsq.bus, BusOptions::Nsq { nsqd, max_pending: Some(50) } if nsqd.len() == 2));
    assert_eq!(ok(&["--bus=none"]).cluster, None);
}

#[test]
fn nothing_listens_twice_to_an_address() {
    refused(
        &["--bus=zmq", "--zmq-bind=127.0.0.1:7001,tcp://127.0.0.1:7001"],
        "tcp://127.0.0.1:7001 is given twice: remove one, or choose another address (--zmq-bind)",
    );
    refused(
        &["broker", "--frontend=127.0.0.1:7101"],
        "tcp://127.0.0.1:7101 is given twice: remove one, or choose another address (--frontend, --backend)",
    );
    let any = [
        "entity-sync",
        "broker",
        "--frontend=127.0.0.1:*",
        "--backend=127.0.0.1:*",
    ];
    assert!(Task::parse(any).is_ok());
}

#[test]
fn what_a_bus_lacks_is_said() {
    refused(&["--bus=carrier-pigeon"], "[possible values: none, zmq, nats, nsq]");
    refused(
        &["--bus=zmq", "--zmq-peer=10.0.0.1:7000"],
        "this --bus needs --zmq-bind, or --zmq-broker if nodes meet at brokers",
    );
    refused(
        &["--bus=nats"],
        "this --bus needs --nats, such as --nats nats://127.0.0.1:4222",
    );
    refused(&["--bus=nsq"], "this --bus needs --nsqd, such as --nsqd 127.0.0.1:4150");
    refused(
        &["--bus=nsq", "--nsqd=127.0.0.1:4150"],
        "this --bus needs the entities, each of which is a topic: --entity items --entity people",
    );
    refused(
        &["--zmq-bind=127.0.0.1:7000"],
        "--zmq-bind is for --bus zmq: add that, or leave --zmq-bind out",
    );
    refused(&["--bus=zmq", "--nats=nats://a"], "--nats is for --bus nats: add that");
    refused(&["--bus=nats", "--nsqd=a:1"], "--nsqd is for --bus nsq: add that");
    refused(
        &["--bus=none", "--nsqd-max-pending=5"],
        "--nsqd-max-pending is for --bus nsq: add that",
    );
    for (flag, buses, others) in [
        ("--prefix=shop", "zmq or nats", &["none", "nsq"][..]),
        ("--heartbeat-ms=100", "zmq or nats", &["none", "nsq"]),
        ("--node-name=a", "zmq or nats", &["none", "nsq"]),
        ("--cluster-secret-file=/nowhere", "zmq or nats", &["none", "nsq"]),
        ("--repair-rate=7", "zmq or nats or nsq", &["none"]),
        ("--sweep-every-seconds=60", "zmq or nats or nsq", &["none"]),
        ("--postgres-publish=true", "zmq or nats or nsq", &["none"]),
    ] {
        let name = flag.split('=').next().expect("a name");
        for other in others {
            let bus = format!("--bus={other}");
            let said = format!("{name} is for --bus {buses}: add one of these, or leave {name} out");
            refused(
                &[&bus, "--nsqd=127.0.0.1:4150", "--entity=items", flag][if *other == "nsq" { 0..4 } else { 3..4 }],
                &said,
            );
            // So it is when the file says it.
            let file = file(&format!(
                "{} = '{}'",
                &name[2..],
                flag.split_once('=').expect("a value").1
            ));
            refused(&["--config", file.path().to_str().expect("text")], &said);
        }
    }
    refused(&["--zmq-bind=here"], "invalid value 'here' for '--zmq-bind <ADDR>'");
    for flag in [
        "--zmq-peer=*:1",
        "--zmq-peer=0.0.0.0:1",
        "--zmq-peer=[::]:1",
        "--zmq-broker=10.0.0.1:1,0.0.0.0:2",
    ] {
        refused(
            &[flag],
            "to connect, HOST is an address or a name, not *, 0.0.0.0 or [::], which only say where to bind",
        );
    }
    refused(
        &["--zmq-broker=10.0.0.1:1"],
        "write both sides of the broker: FRONTEND,BACKEND, such as 10.0.0.1:7100,10.0.0.1:7101",
    );
    refused(&["--heartbeat-ms=5"], "write a number of milliseconds from 10 to 60000");
    refused(&["--node-name="], "write a name of 1 to 64 bytes");
    refused(&["--repair-rate=0"], "0 is not in 1..");
    refused(
        &["--bus=zmq", "--zmq-bind=127.0.0.1:1", "--cluster-secret-file=/nowhere"],
        "the file with the cluster's secret, /nowhere, can't be read (No such file or directory (os error 2)); write one \
         with: umask 077; head -c 32 /dev/urandom | base64 > /nowhere, and give all nodes the same",
    );
    // A line's end is none of it.
    for (secret, bytes) in [("", 0), ("0123456789abcde\n", 15)] {
        let file = file(secret);
        let path = file.path().to_str().expect("text");
        refused(
            &["--bus=nats", "--nats=nats://a", "--cluster-secret-file", path],
            &format!(
                "the cluster's secret in {path} has {bytes} bytes, and needs at least 16; write one with: umask 077; head -c 32 \
                 /dev/urandom | base64 > {path}, and give all nodes the same"
            ),
        );
    }
    refused(
        &["broker", "--frontend=nowhere"],
        "invalid value 'nowhere' for '--frontend <ADDR>'",
    );
}

#[test]
fn a_cluster_has_defaults_and_a_secret() {
    let bus = cluster(&["--bus=nats", "--nats=nats://a"]);
    let defaults = entity_sync_bus::cluster_config();
    assert_eq!((&bus.prefix, bus.heartbeat), (&defaults.prefix, defaults.heartbeat));
    assert_eq!((bus.repair_rate, bus.sweep_every), (defaults.repair_rate, None));
    let help = parse(&["--help"]).expect_err("help");
    for text in [
        format!("nodes of a cluster [default: {}]", defaults.prefix),
        format!("within two of them [default: {}]", defaults.heartbeat.as_millis()),
        format!("may have been missed [default: {}]", defaults.repair_rate),
    ] {
        assert!(help.contains(&text), "{text} is not in {help}");
    }
    let file = file("0123456789abcdef\n");
    let path = file.path().to_str().expect("text");
    let bus = cluster(&["--bus=nats", "--nats=nats://a", "--cluster-secret-file", path]);
    assert_eq!(bus.secret.expect("there is one").0, b"0123456789abcdef");
}

#[test]
fn nodes_of_a_cluster_share_their_rows() {
    const BUS: [&str; 2] = ["--bus=zmq", "--zmq-bind=127.0.0.1:7001"];
    refused(
        &[&BUS[..], &["--data=:memory:"]].concat(),
        "with --data :memory: each node of a cluster would have rows of its own: name a file that all of them share \
         (--data), or where all of them read (--resolver), or leave --bus out",
    );
    // Where nothing is read from it, it is not opened.
    ok(&[&BUS[..], &["--data=:memory:", "--resolver=http=http://a/{id}"]].concat());
    let file = file("[entities.notes]\nresolver = 'store'\n");
    let path = file.path().to_str().expect("text");
    let some = ["--data=:memory:", "--resolver=http=http://a/{id}", "--config", path];
    refused(
        &[&BUS[..], &some].concat(),
        "each node of a cluster would have rows of its own",
    );
}
