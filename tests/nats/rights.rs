//! Nodes whose user may not do what a node does.

use std::time::Duration;

use entity_sync_bus::{Health, Join, Member, cluster_config, numbered};
use entity_sync_nats::{Nats, NatsAuth};
use entity_sync_tests::nats::Nats as Server;
use entity_sync_tests::wait_for;

use super::with_auth;
use crate::zmq::bare_node;

fn rights(publish: &str, subscribe: &str) -> String {
    let permissions = format!("permissions {{ publish: {publish:?}, subscribe: {subscribe:?} }}");
    format!("authorization {{ users: [ {{ user: ann, password: pw, {permissions} }} ] }}")
}

fn join(server: &Server, health: &Health) -> Box<dyn Member> {
    let auth = NatsAuth::UserPassword {
        user: "ann".to_owned(),
        password: "pw".to_owned(),
    };
    let bus = Nats::new(&with_auth(server, auth)).unwrap();
    let mut rules = cluster_config();
    rules.heartbeat = Duration::from_millis(100);
    let (node, clock) = bare_node();
    Box::new(numbered(bus, rules))
        .join(node, clock, health.clone())
        .unwrap()
}

/// It is connected, and neither the server nor the protocol calls that an error that ends anything.
#[test]
fn a_node_without_rights_is_not_ready_and_says_which_are_missing() {
    for (publish, subscribe, missing) in [
        ("other", ">", "may not publish to \"entity-sync.all\":"),
        (">", "other", "may not subscribe to \"entity-sync.all\":"),
    ] {
        let Some(server) = Server::start_with(&rights(publish, subscribe)) else {
            return;
        };
        let health = Health::default();
        let member = join(&server, &health);
        let troubles = || health.troubles().iter().map(ToString::to_string).collect::<Vec<_>>();
        let says = |text: &str| troubles().iter().any(|it| it.contains(text));
        assert!(!health.is_ready());
        wait_for("the permission that is missing", || says(missing));
        assert!(member.view().is_connected() && !health.is_ready());
        wait_for("it to be deaf", || says("does not come back"));
        // Who grants it need not restart the node.
        server.configure(&rights(">", ">"));
        server.signal("HUP");
        wait_for("it to be well", || troubles().is_empty());
    }
}
