//! What there is to say of a cluster, as JSON and for the metrics page.

use entity_sync_bus::{ClusterView, Hearing, PeerState};
use serde_json::{Value, json};

use crate::metrics::Number;

/// What `GET /cluster` answers, but for the troubles.
pub(crate) fn to_json(view: &ClusterView) -> Value {
    let status = view.status();
    let peers: Vec<_> = status
        .peers
        .iter()
        .map(|peer| {
            json!({
                "node": peer.node.to_string(),
                "name": peer.name,
                "epoch": peer.epoch.to_string(),
                "state": peer.state.as_str(),
                "heard_ms_ago": peer.heard_ago.as_millis() as u64,
                "buckets": peer.used_buckets,
                "messages": peer.messages,
                "missing": peer.missing,
                "gaps": peer.gaps,
            })
        })
        .collect();
    // On a plain queue nodes don't know of each other.
    let identity = status.identity.as_ref();
    let counts = status
        .counts
        .iter()
        .map(|(name, _, value)| (name.to_owned(), value.into()));
    json!({
        "node": identity.map(|it| it.node.to_string()),
        "name": identity.map(|it| it.name.as_str()),
        "epoch": identity.map(|it| it.epoch.to_string()),
        "connected": status.is_connected,
        "has_been_connected": status.has_been_connected,
        "hears_itself": hears_itself(status.hearing),
        "waiting_repairs": status.waiting_repairs,
        "peers": peers,
        "counts": Value::Object(counts.collect()),
    })
}

/// `null` if it can't be told, or not yet.
fn hears_itself(hearing: Hearing) -> Option<bool> {
    match hearing {
        Hearing::NotExpected | Hearing::Waiting => None,
        Hearing::Hears => Some(true),
        Hearing::Deaf => Some(false),
    }
}

/// What is counted, for the metrics page.
pub(crate) fn numbers(view: &ClusterView) -> Vec<Number> {
    let status = view.status();
    let alive = status
        .peers
        .iter()
        .filter(|peer| peer.state == PeerState::Alive)
        .count();
    let missing = status.peers.iter().map(|peer| peer.missing).sum();
    let mut numbers: Vec<_> = status
        .counts
        .iter()
        .map(|(name, help, value)| (format!("cluster_{name}").into(), help, value))
        .collect();
    numbers.extend([
        (
            "cluster_connected".into(),
            "Whether the bus is connected.",
            u64::from(status.is_connected),
        ),
        (
            "cluster_deaf".into(),
            "Whether the bus is connected but brings back nothing that this node publishes.",
            u64::from(status.hearing == Hearing::Deaf),
        ),
        ("cluster_peers".into(), "Other nodes that are heard.", alive as u64),
        (
            "cluster_missing_messages".into(),
            "Messages that peers have sent and that have not come.",
            missing,
        ),
        (
            "cluster_waiting_repairs".into(),
            "Reads that wait for their turn because a change may have been missed.",
            status.waiting_repairs as u64,
        ),
    ]);
    numbers
}
