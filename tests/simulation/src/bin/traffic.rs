//! What nodes of a cluster say to each other, in bytes per second, and what hearing it costs: with and without interest.
//!
//! Nothing is random and nothing is lost: so many nodes on a virtual clock, each with a cluster that is told of everything
//! at once. First all of them speak; then some of them hear all of it again, and the time that takes is measured.
#![allow(clippy::print_stdout, reason = "a program that reports")]

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

use clap::Parser;
use entity_sync_core::cluster::{Cluster, ClusterConfig, ClusterInput, ClusterOutput, Epoch, NodeId};
use entity_sync_core::{Config, EntityKey, Input, Node, Reply, Request, Resolve, Seed, Shard, Timestamp};
use rustix::time::{ClockId, clock_gettime};

const BUCKETS: u32 = 1024;
const KEYS: usize = 10_000;
/// Nodes whose hearing is measured.
const HEARERS: usize = 4;
const UPGRADE: &[u8] = b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Prints bytes per second and node, sent and received, and the CPU time of a received message.
#[derive(Parser)]
struct Args {
    /// Seconds that are simulated.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// So many nodes; may be given several times.
    #[arg(long, default_values_t = [10, 100])]
    nodes: Vec<usize>,
}

/// Reads never end, so that each key is read but once: what is measured is how a message finds its keys.
#[derive(Default)]
struct Reads(Mutex<Vec<Reply>>);

impl Resolve for Reads {
    fn resolve(&self, _: Request, reply: Reply) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(reply);
    }
}

struct Member {
    node: Node,
    shard: Shard,
    cluster: Cluster,
    heard: BTreeSet<String>,
    // Kept, so that no read ends.
    _reads: Arc<Reads>,
}

/// A message, and its topic.
struct Said {
    from: usize,
    topic: String,
    message: Vec<u8>,
}

impl Member {
    fn new(number: usize, by_interest: bool) -> Result<Self, Box<dyn Error>> {
        let mut config = Config::new(Seed(1, number as u64));
        config.max_subscriptions = KEYS;
        let reads = Arc::<Reads>::default();
        let (node, mut shards) = Node::new(config, reads.clone(), vec![Waker::noop().clone()]);
        let shard = shards.pop().ok_or("no shard")?;
        let epoch = Epoch {
            started_ms: 1,
            nonce: 1,
        };
        let mut config = ClusterConfig::new(NodeId(number as u64), epoch);
        config.buckets = BUCKETS;
        config.by_interest = by_interest;
        config.name = format!("node-{number:03}");
        let mut cluster = Cluster::new(node.clone(), config, Timestamp::START, Waker::noop().clone())?;
        cluster.handle(Timestamp::START, ClusterInput::Connected);
        Ok(Self {
            node,
            shard,
            cluster,
            heard: BTreeSet::new(),
            _reads: reads,
        })
    }

    /// Its clients are subscribed to so many keys, spread over all that there are.
    fn hold(&mut self, count: usize, keys: &[EntityKey]) -> Result<(), Box<dyn Error>> {
        let now = Timestamp::START;
        let conn = self.shard.open(now)?;
        let bytes = &mut UPGRADE.to_vec();
        self.shard.handle(now, Input::Received { conn, bytes });
        for key in keys.iter().step_by(KEYS / count) {
            let (entity, id) = (key.entity(), key.id());
            let text = format!(r#"{{"action":"subscribe","body":{{"entity":"{entity}","id":"{id}"}}}}"#);
            let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
            frame.extend(text.as_bytes());
            let bytes = &mut frame;
            self.shard.handle(now, Input::Received { conn, bytes });
        }
        Ok(())
    }

    fn speak(&mut self, from: usize, said: &mut Vec<Said>) {
        while let Some(output) = self.cluster.poll_output() {
            match output {
                ClusterOutput::Publish { topic, message } => said.push(Said {
                    from,
                    topic: topic.to_owned(),
                    message: message.to_vec(),
                }),
                ClusterOutput::Subscribe(topic) => _ = self.heard.insert(topic.to_owned()),
                ClusterOutput::Unsubscribe(topic) => _ = self.heard.remove(topic),
            }
        }
    }

    fn hear(&mut self, now: Timestamp, own: usize, said: &[Said]) -> Heard {
        let heard = said
            .iter()
            .filter(|it| it.from != own && self.heard.contains(&it.topic));
        let heard: Vec<_> = heard.collect();
        let begun = cpu_time();
        for it in &heard {
            self.cluster.handle(now, ClusterInput::Message(&it.message));
        }
        Heard {
            messages: heard.len() as f64,
            bytes: heard.iter().map(|it| bytes_of(it)).sum(),
            cpu: cpu_time().saturating_sub(begun),
        }
    }
}

#[derive(Default)]
struct Heard {
    messages: f64,
    bytes: f64,
    cpu: Duration,
}

impl Heard {
    fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.cpu += other.cpu;
    }

    fn us_per_message(&self) -> String {
        match self.messages {
            0.0 => "–".to_owned(),
            messages => format!("{:.2}", self.cpu.as_secs_f64() * 1e6 / messages),
        }
    }
}

/// What a bus moves, its own framing aside.
fn bytes_of(said: &Said) -> f64 {
    (said.topic.len() + said.message.len()) as f64
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// What is simulated.
#[derive(Clone, Copy)]
struct Case {
    nodes: usize,
    by_interest: bool,
    /// Buckets that each node has published to before.
    used: u32,
    /// Notifies per second, of all nodes together.
    rate: u32,
    /// Keys that each node's clients are subscribed to.
    held: usize,
}

fn run(case: Case, seconds: u32, keys: &[EntityKey]) -> Result<(), Box<dyn Error>> {
    let members = (0..case.nodes).map(|number| Member::new(number, case.by_interest));
    let mut members: Vec<_> = members.collect::<Result<_, _>>()?;
    let mut before = Vec::new();
    for (number, member) in members.iter_mut().enumerate() {
        let mut used = BTreeSet::new();
        for key in keys {
            if key.bucket(BUCKETS) < case.used && used.insert(key.bucket(BUCKETS)) {
                member.node.notify(Timestamp::START, key)?;
            }
        }
        // All that came before is told of by its first digest.
        member.speak(number, &mut Vec::new());
        member.cluster.handle(Timestamp::START, ClusterInput::Reached);
        member.cluster.handle_timeout(Timestamp::START);
        member.speak(number, &mut before);
    }
    for (number, member) in members.iter_mut().enumerate().take(HEARERS) {
        member.hold(case.held, keys)?;
        member.speak(number, &mut Vec::new());
    }

    let (mut changes, mut digests) = (Vec::new(), Vec::new());
    let mut notified = 0u32;
    for ms in 1..=u64::from(seconds) * 1000 {
        let now = Timestamp::START + Duration::from_millis(ms);
        while u64::from(notified) < ms * u64::from(case.rate) / 1000 {
            let number = notified as usize % case.nodes;
            // No pattern of nodes and keys.
            let key = &keys[notified.wrapping_mul(2_654_435_761) as usize % KEYS];
            members[number].node.notify(now, key)?;
            members[number].speak(number, &mut changes);
            notified += 1;
        }
        for (number, member) in members.iter_mut().enumerate() {
            if member.cluster.poll_timeout() <= now {
                member.cluster.handle_timeout(now);
                member.speak(number, &mut digests);
            }
        }
    }

    let (mut of_changes, mut of_digests) = (Heard::default(), Heard::default());
    for (number, member) in members.iter_mut().enumerate().take(HEARERS) {
        member.hear(Timestamp::START, number, &before);
        of_changes.add(&member.hear(Timestamp::START, number, &changes));
        of_digests.add(&member.hear(Timestamp::START, number, &digests));
    }
    let sent: f64 = changes.iter().chain(&digests).map(bytes_of).sum();
    let per_node = |sum: f64, nodes: usize| sum / nodes as f64 / f64::from(seconds);
    let of_all = |of: fn(&Heard) -> f64| of(&of_changes) + of(&of_digests);
    let cpu = of_all(|it| it.cpu.as_secs_f64() * 1e6);
    println!(
        "| {} | {} | {} | {} | {} | {:.0} | {:.0} | {:.0} | {} | {} | {:.0} |",
        case.nodes,
        case.used,
        case.rate,
        case.held,
        if case.by_interest { "on" } else { "off" },
        per_node(sent, case.nodes),
        per_node(of_all(|it| it.bytes), HEARERS),
        per_node(of_changes.messages, HEARERS),
        of_changes.us_per_message(),
        of_digests.us_per_message(),
        per_node(cpu, HEARERS),
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let keys: Vec<_> = (0..KEYS)
        .map(|id| EntityKey::new("items", &id.to_string()))
        .collect::<Result<_, _>>()?;
    println!("Each node publishes its bytes once; in a full mesh it sends a copy to each that hears them.");
    println!();
    println!(
        "| nodes | used buckets | notifies/s | held keys | interest | B/s published | B/s received | changes/s received \
         | CPU µs/change | CPU µs/digest | CPU µs/s |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for &nodes in &args.nodes {
        for used in [0, 64, 1024] {
            let case = Case {
                nodes,
                by_interest: false,
                used,
                rate: 0,
                held: 100,
            };
            run(case, args.seconds, &keys)?;
        }
        for rate in [100, 1000] {
            for held in [100, 10_000] {
                for by_interest in [false, true] {
                    let case = Case {
                        nodes,
                        by_interest,
                        used: BUCKETS,
                        rate,
                        held,
                    };
                    run(case, args.seconds, &keys)?;
                }
            }
        }
    }
    Ok(())
}
