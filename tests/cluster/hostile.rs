//! A peer that lies.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use entity_sync_tests::program::own_address;
use entity_sync_tests::{PATIENCE, wait_for};

use super::{Cluster, Costs, owned, settle};

/// Who connects is answered with what no ZeroMQ says, or what none says yet.
#[test]
fn a_peer_whose_place_another_program_had_is_heard_when_it_comes() {
    let mut cluster = Cluster::prepare(2);
    for index in 0..2 {
        let flags = cluster.mesh_flags(index);
        cluster.nodes[index].set_flags(flags);
    }
    let other = TcpListener::bind(cluster.nodes[1].bus()).unwrap();
    cluster.nodes[0].start();
    let answers: [&[u8]; 3] = [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        // A greeting as ZeroMQ's, of a mechanism that there is not; and a message before any handshake.
        b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NONSENSE\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\xff\xff\xff\xff\xff\xff\xff\xff",
    ];
    other.set_nonblocking(true).unwrap();
    for answer in answers {
        let mut connection = None;
        // It comes again after each of them.
        wait_for("a connection", || {
            connection = other.accept().ok();
            connection.is_some()
        });
        let (mut stream, _) = connection.unwrap();
        stream.write_all(answer).unwrap();
        // Until it has understood, and hung up or not.
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        while stream.read(&mut [0; 1024]).is_ok_and(|bytes| bytes > 0) {}
    }
    drop(other);
    cluster.nodes[1].start();
    cluster.wait_for_peers();
    let crowds = cluster.crowds(2, 10, 5);
    for id in 0..10 {
        cluster.nodes[1].put(id, &format!("{id} by the second"));
    }
    settle(&cluster.data(), &crowds);
    cluster.check_logs();
}

/// Sockets of the test's own: one that nodes take for a peer's, and one that hears the first node.
struct Hostile {
    // Before the context, which waits for them.
    sends: zmq::Socket,
    hears: Option<zmq::Socket>,
    address: String,
    context: zmq::Context,
}

impl Hostile {
    fn start() -> Self {
        let context = zmq::Context::new();
        let address = format!("{}:7000", own_address());
        let sends = context.socket(zmq::PUB).unwrap();
        sends.set_linger(0).unwrap();
        sends.bind(&format!("tcp://{address}")).unwrap();
        Self {
            sends,
            hears: None,
            address,
            context,
        }
    }

    /// Two nodes that hear each other and this.
    fn cluster(&mut self, secret: Option<&str>) -> Cluster {
        let mut cluster = Cluster::prepare(2);
        for index in 0..2 {
            let mut flags = cluster.mesh_flags(index);
            flags.extend(owned(&["--zmq-peer", &self.address]));
            flags.extend(owned(&["--node-name", &format!("node-{index}")]));
            if let Some(secret) = secret {
                let file = cluster.folder.path().join("secret");
                std::fs::write(&file, secret).unwrap();
                flags.extend(owned(&["--cluster-secret-file", file.to_str().unwrap()]));
            }
            cluster.nodes[index].set_flags(flags);
        }
        let hears = self.context.socket(zmq::SUB).unwrap();
        hears.set_rcvtimeo(100).unwrap();
        hears.set_subscribe(b"").unwrap();
        hears.connect(&format!("tcp://{}", cluster.nodes[0].bus())).unwrap();
        self.hears = Some(hears);
        cluster.start();
        cluster
    }

    /// What the first node says, until there are so many different changes and digests.
    fn record(&self, changes: usize, digests: usize) -> Recorded {
        let mut recorded = Recorded::default();
        let start = Instant::now();
        while recorded.changes.len() < changes || recorded.digests.len() < digests {
            assert!(start.elapsed() < PATIENCE, "{recorded:?}");
            let Ok(frame) = self.hears.as_ref().unwrap().recv_bytes(0) else {
                continue;
            };
            match message_of(&frame)[1] {
                1 => recorded.changes.insert(frame),
                _ => recorded.digests.insert(frame),
            };
        }
        recorded
    }

    /// Sends these again and again until a node has counted so many more.
    fn send_until<'a>(
        &self,
        frames: impl IntoIterator<Item = &'a Vec<u8>> + Clone,
        mut is_enough: impl FnMut() -> bool,
    ) {
        wait_for("the node to count", || {
            for frame in frames.clone() {
                self.sends.send(frame, 0).unwrap();
            }
            std::thread::sleep(Duration::from_millis(100));
            is_enough()
        });
    }
}

/// Frames: a topic, a zero, a message.
#[derive(Clone, Debug, Default)]
struct Recorded {
    changes: BTreeSet<Vec<u8>>,
    digests: BTreeSet<Vec<u8>>,
}

impl Recorded {
    fn all(&self) -> Vec<Vec<u8>> {
        self.changes.iter().chain(&self.digests).cloned().collect()
    }
}

fn message_of(frame: &[u8]) -> &[u8] {
    let end = frame.iter().position(|it| *it == 0).unwrap();
    &frame[end + 1..]
}

/// The same frame with another message.
fn with_message(frame: &[u8], message: &[u8]) -> Vec<u8> {
    let topic = frame.len() - message_of(frame).len();
    [&frame[..topic], message].concat()
}

#[test]
fn with_a_secret_what_is_forged_or_replayed_changes_nothing() {
    let mut hostile = Hostile::start();
    let mut cluster = hostile.cluster(Some("a secret of sixteen bytes and more\n"));
    let crowds = cluster.crowds(4, 20, 5);
    for id in 0..20 {
        cluster.nodes[0].put(id, &format!("{id} first"));
    }
    settle(&cluster.data(), &crowds);
    let recorded = hostile.record(2, 2);
    let node = &cluster.nodes[1];
    let before = (Costs::of(node), crowds[1].tally().rows, node.count("keys"));
    let has_changed = |cluster: &Cluster| {
        let node = &cluster.nodes[1];
        let costs = Costs::of(node).since(before.0);
        let now = (costs.reads, costs.repairs, crowds[1].tally().rows, node.count("keys"));
        now != (0, 0, before.1, before.2)
    };

    // A bit of each byte is another one: of version, kind, node, epoch, number, keys and proof.
    let mut forged = Vec::new();
    for frame in recorded.all() {
        let message = message_of(&frame);
        forged.extend((1..message.len()).map(|at| {
            let mut message = message.to_vec();
            message[at] ^= 0x10;
            with_message(&frame, &message)
        }));
        // No proof at all; and part of a message.
        forged.push(with_message(&frame, &message[..message.len() - 16]));
        forged.push(with_message(&frame, &message[..message.len() / 2]));
        forged.push(with_message(&frame, &[1]));
    }
    let count = forged.len() as u64;
    hostile.send_until(&forged, || node.count("forged") >= count);
    assert!(!has_changed(&cluster), "{:?}", Costs::of(node));

    // What the first node has said, once more: also to itself.
    let replayed = recorded.all();
    hostile.send_until(&replayed, || {
        node.count("repeated") >= 2 && node.count("old_digests") >= 2
    });
    let of_first = cluster.nodes[0].count("echoes");
    hostile.send_until(&replayed, || cluster.nodes[0].count("echoes") > of_first);
    assert!(!has_changed(&cluster), "{:?}", Costs::of(node));

    // And when it has become another run.
    cluster.nodes[0].stop();
    cluster.nodes[0].start();
    cluster.wait_for_peers();
    let node = &cluster.nodes[1];
    wait_for("the new run", || node.count("restarted_peers") == 1);
    wait_for("its repair", || node.count("repairs") >= 20);
    let epoch = node.cluster()["peers"][0]["epoch"].clone();
    let before = (Costs::of(node), crowds[1].tally().rows, node.count("keys"));
    hostile.send_until(&replayed, || node.count("old_epochs") >= 10);
    hostile.send_until(&replayed, || cluster.nodes[0].count("namesakes") >= 2);
    let costs = Costs::of(node).since(before.0);
    assert_eq!((costs.reads, costs.repairs, costs.runs), (0, 0, 0));
    assert_eq!((crowds[1].tally().rows, node.count("keys")), (before.1, before.2));
    assert_eq!(node.cluster()["peers"][0]["epoch"], epoch);
    assert_eq!(node.peers("alive"), 1);

    cluster.nodes[0].put(7, "7 at last");
    settle(&cluster.data(), &crowds);
    cluster.check_logs();
}

#[test]
fn other_versions_and_garbage_are_counted_and_hurt_nobody() {
    let mut hostile = Hostile::start();
    let cluster = hostile.cluster(None);
    let crowds = cluster.crowds(4, 20, 5);
    for id in 0..20 {
        cluster.nodes[0].put(id, &format!("{id} first"));
    }
    settle(&cluster.data(), &crowds);
    let recorded = hostile.record(2, 2);
    let node = &cluster.nodes[1];
    let before = Costs::of(node);

    let frames = recorded.all();
    let changed = |change: fn(&mut Vec<u8>)| -> Vec<Vec<u8>> {
        let change = |frame: &Vec<u8>| {
            let mut message = message_of(frame).to_vec();
            change(&mut message);
            with_message(frame, &message)
        };
        frames.iter().map(change).collect()
    };
    let newer = changed(|message| message[0] = 2);
    hostile.send_until(&newer, || node.count("other_versions") >= 4);
    let mut garbage = changed(|message| message[1] = 77);
    garbage.extend(changed(|message| message.truncate(20)));
    garbage.extend(changed(Vec::clear));
    hostile.send_until(&garbage, || node.count("malformed") >= 100);
    // libzmq hangs up on whoever sends so much, for ever if nobody tells it otherwise.
    let long = changed(|message| message.resize(4 << 20, 1));
    long.iter().for_each(|it| hostile.sends.send(it, 0).unwrap());
    let before_long = node.count("other_versions");
    hostile.send_until(&newer, || node.count("other_versions") > before_long);
    let costs = Costs::of(node).since(before);
    assert_eq!((costs.reads, costs.repairs, costs.runs), (0, 0, 0), "{costs:?}");
    assert_eq!(node.peers("alive"), 1);

    for id in 0..20 {
        cluster.nodes[0].put(id, &format!("{id} at last"));
    }
    settle(&cluster.data(), &crowds);
    cluster.check_logs();
}
