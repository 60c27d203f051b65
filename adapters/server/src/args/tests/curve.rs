//! The flags for keys of CURVE.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use entity_sync_zmq::{Curve, CurveKeyPair, CurveSecretKey};

use super::*;
use crate::cluster::BusOptions;

/// The keys in the documentation of zmq_curve(7).
const SECRET: &str = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs";
const PUBLIC: &str = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID";
const BROKER: &str = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7";

const MESH: [&str; 2] = ["--bus=zmq", "--zmq-bind=10.0.0.1:7000"];
const AT_BROKER: [&str; 2] = ["--bus=zmq", "--zmq-broker=10.0.0.1:1,10.0.0.1:2"];

fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().expect("text")
}

fn curve(args: &[&str]) -> Option<Box<Curve>> {
    match ok(args).cluster.expect("a bus was given").bus {
        BusOptions::Zmq { curve, .. } => curve,
        other => panic!("{other:?}"),
    }
}

fn broker(args: &[&str]) -> BrokerOptions {
    match Task::parse([&["entity-sync", "broker"], args].concat()).expect("valid") {
        (Task::Broker(options), _) => options,
        _ => panic!("another task"),
    }
}

#[test]
fn one_file_is_all_that_a_mesh_needs() {
    let secret = file(&format!("{SECRET}\n"));
    let keys = CurveKeyPair::from(SECRET.parse::<CurveSecretKey>().expect("a key"));
    let flags = ["--zmq-curve-secret-file", path(&secret)];
    let given = curve(&[&MESH[..], &flags].concat()).expect("keys");
    assert_eq!(given.server_key.to_z85(), PUBLIC);
    assert_eq!(given.server.as_ref().expect("it is one, too").allowed, [keys.public]);
    assert_eq!(*given, Curve::shared(keys));
    // So it is when the configuration says it.
    let config = file(&format!("zmq-curve-secret-file = '{}'", path(&secret)));
    let from_file = curve(&[&MESH[..], &["--config", path(&config)]].concat());
    assert_eq!(from_file.as_ref(), Some(&given));
    let shown = format!("{:?}", ok(&[&MESH[..], &flags].concat()));
    assert!(shown.contains(PUBLIC) && !shown.contains(SECRET), "{shown}");
}

#[test]
fn nodes_at_brokers_may_have_keys_of_their_own() {
    let secret = file(SECRET);
    let flags = [&AT_BROKER[..], &["--zmq-curve-secret-file", path(&secret)]].concat();
    assert_eq!(curve(&flags).expect("keys").server_key.to_z85(), PUBLIC);
    let server = file(&format!("# all brokers\n\n  {BROKER} until May\n"));
    let own = [&flags[..], &["--zmq-curve-server-key-file", path(&server)]].concat();
    let own = curve(&own).expect("keys");
    assert_eq!(
        (own.server_key.to_z85(), own.client.public.to_z85()),
        (BROKER.into(), PUBLIC.into())
    );

    let keys = ["--zmq-curve-secret-file", path(&secret)];
    let shared = broker(&keys).curve.expect("keys");
    assert_eq!(shared.allowed, [shared.keys.public]);
    let nodes = file(&format!("{BROKER}\n{PUBLIC} the second\n"));
    let listed = broker(&[&keys[..], &["--zmq-curve-allow-file", path(&nodes)]].concat());
    let listed: Vec<_> = listed
        .curve
        .expect("keys")
        .allowed
        .iter()
        .map(|it| it.to_z85())
        .collect();
    assert_eq!(listed, [BROKER, PUBLIC]);
    assert_eq!(broker(&[]).curve, None);
}

#[test]
fn keys_that_cannot_be_used_are_refused_with_what_to_do() {
    let secret = file(SECRET);
    let keys = ["--zmq-curve-secret-file", path(&secret)];
    let with = |flags: &[&'static str], more: &[&str], said: &str| {
        let all: Vec<_> = flags.iter().chain(more).copied().collect();
        refused(&all, said);
    };
    with(
        &MESH,
        &["--zmq-curve-secret-file=/nowhere"],
        "the file with keys of CURVE, /nowhere, can't be read (No such file or directory (os error 2)); entity-sync zmq-keys \
         writes keys (--zmq-curve-secret-file)",
    );
    for mode in [0o604, 0o602] {
        std::fs::set_permissions(secret.path(), Permissions::from_mode(mode)).expect("set");
        let said = format!(
            "other users of this machine may read or write the secret key in {0}: chmod 600 {0}",
            path(&secret)
        );
        with(&MESH, &keys, &said);
        refused(&[&["broker"], &keys[..]].concat(), &said);
    }
    // As Kubernetes gives a file to a group.
    std::fs::set_permissions(secret.path(), Permissions::from_mode(0o440)).expect("set");
    ok(&[&MESH[..], &keys].concat());
    for text in ["", "short", &SECRET[1..]] {
        let bad = file(text);
        let said = format!(
            "there is no secret key of CURVE in {}: a key of CURVE is 40 characters of Z85, such as `entity-sync zmq-keys` \
             writes, or 32 bytes; write a new one with: entity-sync zmq-keys FILE",
            path(&bad)
        );
        with(&MESH, &["--zmq-curve-secret-file", path(&bad)], &said);
    }

    let empty = file("# nobody yet\n");
    let two = file(&format!("{BROKER}\n{PUBLIC}"));
    let third = file(&format!("{BROKER}\n\n#{PUBLIC}"));
    for (file, said) in [
        (path(&two), "there are 2 public keys in "),
        (path(&empty), "there are 0 public keys in "),
        (path(&third), "there is no public key of CURVE in line 3 of "),
        (
            "/nowhere",
            "can't be read (No such file or directory (os error 2)); entity-sync zmq-keys writes keys (--zmq-curve-server-key-file)",
        ),
    ] {
        with(
            &AT_BROKER,
            &[keys[0], keys[1], "--zmq-curve-server-key-file", file],
            said,
        );
    }
    let allow = ["--zmq-curve-allow-file", path(&empty)];
    refused(
        &[&["broker"], &keys[..], &allow].concat(),
        &format!(
            "no node may connect, as there is no key in {}: write the nodes' public keys into it",
            path(&empty)
        ),
    );
}

#[test]
fn keys_go_with_nothing_that_they_contradict() {
    let secret = file(SECRET);
    let keys = ["--zmq-curve-secret-file", path(&secret)];
    let other = file(BROKER);
    let server = ["--zmq-curve-server-key-file", path(&other)];
    let needs =
        " needs --zmq-curve-secret-file, a key of its own for this process: write one with: entity-sync zmq-keys FILE";
    refused(
        &[&AT_BROKER[..], &server].concat(),
        &format!("--zmq-curve-server-key-file{needs}"),
    );
    let allow = ["--zmq-curve-allow-file", path(&other)];
    refused(
        &[&["broker"], &allow[..]].concat(),
        &format!("--zmq-curve-allow-file{needs}"),
    );
    refused(
        &[&MESH[..], &keys, &server].concat(),
        "those with --zmq-bind all have the same --zmq-curve-secret-file, so leave it out",
    );
    refused(
        &[&MESH[..], &AT_BROKER[1..], &keys].concat(),
        "a node either binds, as one of a mesh, or connects to brokers: leave --zmq-bind or --zmq-broker out",
    );
    let both =
        "with --zmq-curve-secret-file nobody connects without authentication: leave --zmq-allow-unauthenticated out";
    refused(&[&MESH[..], &keys, &["--zmq-allow-unauthenticated"]].concat(), both);
    refused(&[&["broker", "--zmq-allow-unauthenticated"], &keys[..]].concat(), both);
    for flags in [keys, server] {
        let said = format!("{0} is for --bus zmq: add that, or leave {0} out", flags[0]);
        refused(&flags, &said);
        refused(&[&["--bus=nats", "--nats=nats://a"], &flags[..]].concat(), &said);
    }
}

#[test]
fn a_file_for_new_keys_is_asked_for() {
    let (task, _) = Task::parse(["entity-sync", "zmq-keys", "node.key"]).expect("valid");
    assert!(matches!(task, Task::ZmqKeys(path) if path.as_os_str() == "node.key"));
    refused(&["zmq-keys"], "required arguments were not provided");
}
