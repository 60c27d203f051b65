//! What it costs to find out which of 100,000 held keys are to be read again, and to begin those reads; beside a notify of
//! each, which is the cheapest way to have a key read. The resolver does nothing, and no read ends.
//!
//! `cargo bench -p entity-sync-benches --bench repair`
#![allow(clippy::print_stdout, reason = "a program that reports")]

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

use entity_sync_core::cluster::{Cluster, ClusterConfig, ClusterInput, ClusterOutput, Epoch, NodeId};
use entity_sync_core::{
    Config, Entities, EntityKey, EntityOptions, Input, Node, Reply, Request, Resolve, Seed, Shard, Timestamp,
};
use rustix::time::{ClockId, clock_gettime};

const KEYS: usize = 100_000;
const ROUNDS: usize = 7;
const NOW: Timestamp = Timestamp::START;
const UPGRADE: &[u8] = b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

struct Reads(Mutex<Vec<Reply>>);

impl Resolve for Reads {
    fn resolve(&self, _: Request, reply: Reply) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(reply);
    }
}

struct World {
    node: Node,
    // Kept, as are the reads: their ends are not what is measured.
    _shard: Shard,
    reads: Arc<Reads>,
    cluster: Cluster,
}

/// A node whose clients hold all keys, and which has heard of nobody.
fn world(keys: &[EntityKey]) -> Result<World, Box<dyn Error>> {
    let mut config = Config::new(Seed(1, 2));
    config.max_subscriptions = KEYS;
    let mut items = EntityOptions::default();
    // All at once: reads that wait for their turns would cost the same later.
    items.max_running_reads = KEYS;
    config.entities = Entities::none().with("items", items);
    let reads = Arc::new(Reads(Mutex::new(Vec::with_capacity(KEYS))));
    let (node, mut shards) = Node::new(config, reads.clone(), vec![Waker::noop().clone()]);
    let mut config = ClusterConfig::new(NodeId(1), epoch());
    // As fast as it goes.
    config.repair_rate = u32::MAX;
    let cluster = Cluster::new(node.clone(), config, NOW, Waker::noop().clone())?;
    let mut shard = shards.pop().ok_or("no shard")?;
    let conn = shard.open(NOW)?;
    let bytes = &mut UPGRADE.to_vec();
    shard.handle(NOW, Input::Received { conn, bytes });
    for key in keys {
        let (entity, id) = (key.entity(), key.id());
        let text = format!(r#"{{"action":"subscribe","body":{{"entity":"{entity}","id":"{id}"}}}}"#);
        let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
        frame.extend(text.as_bytes());
        let bytes = &mut frame;
        shard.handle(NOW, Input::Received { conn, bytes });
    }
    Ok(World {
        node,
        _shard: shard,
        reads,
        cluster,
    })
}

fn epoch() -> Epoch {
    Epoch {
        started_ms: 1,
        nonce: 1,
    }
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

fn measure(does: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<Duration, Box<dyn Error>> {
    let begun = cpu_time();
    does()?;
    Ok(cpu_time().saturating_sub(begun))
}

/// A peer is heard that nobody knew, so that everything is due.
fn repair(world: &mut World) -> Result<(), Box<dyn Error>> {
    let (node, _) = Node::new(Config::new(Seed(3, 4)), Arc::new(Reads(Mutex::default())), vec![]);
    let config = ClusterConfig::new(NodeId(2), epoch());
    let mut peer = Cluster::new(node, config, NOW, Waker::noop().clone())?;
    peer.handle(NOW, ClusterInput::Connected);
    peer.handle_timeout(NOW);
    while let Some(output) = peer.poll_output() {
        if let ClusterOutput::Publish { message, .. } = output {
            world.cluster.handle(NOW, ClusterInput::Message(message));
        }
    }
    world.cluster.handle_timeout(NOW + Duration::from_millis(100));
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let keys: Vec<_> = (0..KEYS)
        .map(|id| EntityKey::new("items", &id.to_string()))
        .collect::<Result<_, _>>()?;
    let mut ratios = Vec::new();
    println!("{KEYS} keys, CPU µs per key:");
    for _ in 0..ROUNDS {
        let notified = world(&keys)?;
        let of_notifies = measure(|| {
            for key in &keys {
                notified.node.notify(NOW, key)?;
            }
            Ok(())
        })?;
        let mut repaired = world(&keys)?;
        let of_repair = measure(|| repair(&mut repaired))?;
        for world in [&notified, &repaired] {
            let reads = world.reads.0.lock().unwrap_or_else(PoisonError::into_inner);
            if reads.len() != KEYS {
                return Err(format!("{} reads have begun, not {KEYS}", reads.len()).into());
            }
        }
        let per_key = |time: Duration| time.as_secs_f64() * 1e6 / KEYS as f64;
        let ratio = of_repair.as_secs_f64() / of_notifies.as_secs_f64();
        println!(
            "notify {:.3}, due and repair {:.3} ({:.0} ms for all), ratio {ratio:.2}",
            per_key(of_notifies),
            per_key(of_repair),
            of_repair.as_secs_f64() * 1e3,
        );
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.2}", ratios[ROUNDS / 2]);
    Ok(())
}
