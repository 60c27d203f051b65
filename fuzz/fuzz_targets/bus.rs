//! Messages of a bus by bytes: whatever comes, and in whatever time, a cluster doesn't panic and doesn't grow.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::task::Waker;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use entity_sync_core::cluster::{Cluster, ClusterConfig, ClusterInput, ClusterOutput, ClusterSecret, Epoch, NodeId};
use entity_sync_core::{Config, EntityKey, Node, Reply, Request, Resolve, Seed, Timestamp};
use libfuzzer_sys::fuzz_target;

const MAX_PEERS: usize = 3;

struct Nobody;

impl Resolve for Nobody {
    fn resolve(&self, _: Request, _: Reply) {}
}

/// What another node really said: a digest, changes, and a digest that tells of them. Unsigned, and signed.
static SAID: LazyLock<[Vec<Vec<u8>>; 2]> = LazyLock::new(|| [false, true].map(|is_signed| real_messages(is_signed)));

fn cluster(number: u64, is_signed: bool) -> (Node, Cluster) {
    let (node, _) = Node::new(
        Config::new(Seed(1, number)),
        Arc::new(Nobody),
        vec![Waker::noop().clone()],
    );
    let epoch = Epoch {
        started_ms: 1_000,
        nonce: number,
    };
    let mut config = ClusterConfig::new(NodeId(number), epoch);
    config.buckets = 16;
    config.max_peers = MAX_PEERS;
    config.forget_after = Duration::from_secs(5);
    if is_signed {
        config.secret = ClusterSecret::new(b"a secret of sufficient length", "es").ok();
    }
    let cluster = Cluster::new(node.clone(), config, Timestamp::START, Waker::noop().clone());
    (node, cluster.expect("rules that can be followed"))
}

fn take_messages(cluster: &mut Cluster) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    while let Some(output) = cluster.poll_output() {
        if let ClusterOutput::Publish { message, .. } = output {
            messages.push(message.to_vec());
        }
    }
    messages
}

fn real_messages(is_signed: bool) -> Vec<Vec<u8>> {
    let (node, mut cluster) = cluster(1, is_signed);
    let mut said = Vec::new();
    for id in 0..4 {
        cluster.handle(Timestamp::START, ClusterInput::Reached);
        cluster.handle_timeout(Timestamp::START);
        said.extend(take_messages(&mut cluster));
        let key = EntityKey::new("items", &id.to_string()).expect("short");
        node.notify(Timestamp::START, &key).expect("any entity");
        said.extend(take_messages(&mut cluster));
    }
    said
}

/// What the fuzzer does.
#[derive(Arbitrary, Debug)]
enum Step<'a> {
    /// Bytes of its own.
    Bytes(&'a [u8]),
    /// A message that was really said.
    Said {
        which: u8,
    },
    /// The same, with some bytes changed.
    Changed {
        which: u8,
        at: u16,
        with: &'a [u8],
    },
    Advance {
        ms: u16,
    },
    Connect(bool),
}

fuzz_target!(|bytes: &[u8]| {
    let mut unstructured = Unstructured::new(bytes);
    let is_signed = unstructured.arbitrary().unwrap_or(false);
    let said = &SAID[usize::from(is_signed)];
    let (_, mut cluster) = cluster(2, is_signed);
    let mut now = Timestamp::START;
    cluster.handle(now, ClusterInput::Connected);
    cluster.handle(now, ClusterInput::Message(&said[0]));
    let forged = |cluster: &Cluster| cluster.view().counters().forged.get();
    while let Ok(step) = unstructured.arbitrary::<Step<'_>>() {
        let mut is_forged = false;
        let before = forged(&cluster);
        let known = cluster.view().counters().digests.get() + cluster.view().counters().messages.get();
        match step {
            Step::Bytes(bytes) => {
                // The fuzzer learns what was really said from what it is compared with.
                is_forged = is_signed && !said.iter().any(|it| it == bytes);
                cluster.handle(now, ClusterInput::Message(bytes));
            }
            Step::Said { which } => {
                cluster.handle(now, ClusterInput::Message(&said[usize::from(which) % said.len()]));
            }
            Step::Changed { which, at, with } => {
                let mut message = said[usize::from(which) % said.len()].clone();
                let at = usize::from(at) % message.len();
                let end = message.len().min(at + with.len());
                message[at..end].copy_from_slice(&with[..end - at]);
                is_forged = is_signed && !said.contains(&message);
                cluster.handle(now, ClusterInput::Message(&message));
            }
            Step::Advance { ms } => now = now + Duration::from_millis(ms.into()),
            Step::Connect(true) => cluster.handle(now, ClusterInput::Connected),
            Step::Connect(false) => cluster.handle(now, ClusterInput::Disconnected),
        }
        if is_forged {
            let counters = cluster.view().counters();
            assert_eq!(
                known,
                counters.digests.get() + counters.messages.get(),
                "it is believed"
            );
        }
        assert!(is_signed || before == forged(&cluster), "nothing is signed");
        if cluster.poll_timeout() <= now {
            cluster.handle_timeout(now);
            assert!(
                cluster.poll_timeout() > now,
                "it asks for a time-out that has been handled"
            );
        }
        take_messages(&mut cluster);
        assert!(cluster.view().status().peers.len() <= MAX_PEERS);
        if unstructured.is_empty() {
            break;
        }
    }
});
