//! Nodes with real clients, whose messages the tests carry by hand.

mod digests;
mod echoes;
mod frozen;
mod hearing;
mod interest;
mod plain;
mod repairing;
mod strangers;
mod telling;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;

use super::*;
use crate::config::Config;
use crate::entity::{Entities, EntityOptions};
use crate::frame::Rows;
use crate::hash::Seed;
use crate::key::EntityKey;
use crate::resolve::{Reply, Request, Resolve};
use crate::shard::{Input, Output, Sent, Shard};
use crate::sync::{Mutex, lock};
use crate::{ConnId, Delivery};

const UPGRADE: &[u8] = b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

fn at(ms: u64) -> Timestamp {
    Timestamp::START + Duration::from_millis(ms)
}

fn key(id: impl ToString) -> EntityKey {
    EntityKey::new("items", &id.to_string()).expect("short")
}

/// Keys of one bucket.
fn keys_of(bucket: u32, buckets: u32) -> impl Iterator<Item = EntityKey> {
    (0..)
        .map(|id: u32| key(id))
        .filter(move |it| it.bucket(buckets) == bucket)
}

/// The application's store: what each id is, and the reads that the test has not answered yet.
#[derive(Default)]
struct Store {
    states: Mutex<BTreeMap<String, String>>,
    reads: Mutex<Vec<(Request, Reply)>>,
}

impl Resolve for Store {
    fn resolve(&self, request: Request, reply: Reply) {
        lock(&self.reads).push((request, reply));
    }
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A node with its store and one shard, and what its clients have received.
struct Site {
    store: Arc<Store>,
    node: Node,
    shard: Shard,
    received: Vec<String>,
    woken: Arc<Flag>,
}

impl Site {
    /// With entities as the tests use them: `items`, `ticks` of which every notify counts, and `lagging` that settles.
    fn new() -> Self {
        let mut config = Config::new(Seed(1, 2));
        config.max_subscriptions = 100_000;
        config.max_key_bytes = 4096;
        let (mut every, mut settling) = (EntityOptions::default(), EntityOptions::default());
        every.delivery = Delivery::Every;
        settling.settle = Some(Duration::from_millis(200));
        config.entities = Entities::none()
            .with("items", EntityOptions::default())
            .with("ticks", every)
            .with("lagging", settling);
        let store = Arc::<Store>::default();
        let (node, mut shards) = Node::new(config, store.clone(), vec![Waker::noop().clone()]);
        Self {
            store,
            node,
            shard: shards.remove(0),
            received: Vec::new(),
            woken: Arc::default(),
        }
    }

    fn connect(&mut self) -> ConnId {
        let conn = self.shard.open(at(0)).expect("there is room");
        let bytes = &mut UPGRADE.to_vec();
        self.shard.handle(at(0), Input::Received { conn, bytes });
        self.poll(at(0));
        conn
    }

    fn say(&mut self, conn: ConnId, action: &str, key: &EntityKey) {
        let (entity, id) = (key.entity(), key.id());
        self.say_text(
            conn,
            &format!(r#"{{"action":"{action}","body":{{"entity":"{entity}","id":"{id}"}}}}"#),
        );
    }

    fn say_text(&mut self, conn: ConnId, text: &str) {
        let mut frame = vec![0x81, 0xfe];
        frame.extend((text.len() as u16).to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(text.as_bytes());
        let bytes = &mut frame;
        self.shard.handle(at(0), Input::Received { conn, bytes });
        self.poll(at(0));
    }

    /// A client that is subscribed to these.
    fn client(&mut self, keys: &[EntityKey]) -> ConnId {
        let conn = self.connect();
        for key in keys {
            self.say(conn, "subscribe", key);
        }
        conn
    }

    fn notify(&self, now: Timestamp, key: &EntityKey) {
        self.node.notify(now, key).expect("registered");
    }

    /// From now on, reads find this.
    fn set(&self, key: &EntityKey, state: &str) {
        lock(&self.store.states).insert(key.id().to_owned(), state.to_owned());
    }

    /// The ids that are being read, in the order in which the reads began.
    fn reads(&self) -> Vec<String> {
        let reads = lock(&self.store.reads);
        reads.iter().map(|(request, _)| request.key.id().to_owned()).collect()
    }

    /// Answers all reads, and those that this makes due, and says which ids they were of.
    fn answer(&mut self, now: Timestamp) -> Vec<String> {
        let mut ids = Vec::new();
        loop {
            let reads = std::mem::take(&mut *lock(&self.store.reads));
            if reads.is_empty() {
                return ids;
            }
            for (request, reply) in reads {
                let id = request.key.id().to_owned();
                let states = lock(&self.store.states);
                let row = format!("{id}={}", states.get(&id).map_or("old", String::as_str));
                drop(states);
                ids.push(id);
                reply.send(now, Ok(Rows::one(row))).expect("good rows");
            }
            self.poll(now);
        }
    }

    /// What clients have received since this was last asked.
    fn received(&mut self) -> Vec<String> {
        std::mem::take(&mut self.received)
    }

    fn poll(&mut self, now: Timestamp) {
        let Self { shard, received, .. } = self;
        while let Some(output) = shard.poll_output(now) {
            let mut see = |bytes: &[u8]| {
                let text = match bytes {
                    [0x81, 126, _, _, text @ ..] | [0x81, _, text @ ..] => text,
                    _ => return Sent::All,
                };
                received.push(str::from_utf8(text).expect("text").to_owned());
                Sent::All
            };
            match output {
                Output::Broadcast(broadcast) => broadcast.for_each(|_, chunk| see(chunk.as_slice())),
                Output::Flush(flush) => flush.write(|_, chunks| {
                    for chunk in chunks {
                        see(chunk.as_slice());
                    }
                    Sent::All
                }),
                Output::Resume(_) | Output::Shutdown(_) | Output::Close(_) => panic!("nobody leaves"),
            }
        }
    }

    /// The cluster's waker was called since this was last asked.
    fn was_woken(&self) -> bool {
        self.woken.0.swap(false, Ordering::SeqCst)
    }
}

/// A site in a cluster.
struct Member {
    site: Site,
    cluster: Cluster,
}

impl std::ops::Deref for Member {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl std::ops::DerefMut for Member {
    fn deref_mut(&mut self) -> &mut Site {
        &mut self.site
    }
}

fn epoch(started_ms: u64) -> Epoch {
    Epoch { started_ms, nonce: 1 }
}

fn config(number: u64) -> ClusterConfig {
    let mut config = ClusterConfig::new(NodeId(number), epoch(1_000));
    config.buckets = 4;
    config
}

/// What a cluster wants done, to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Publish(String, Vec<u8>),
    Subscribe(String),
    Unsubscribe(String),
}

impl Member {
    fn new(config: ClusterConfig) -> Self {
        Self::of(Site::new(), config)
    }

    fn of(site: Site, config: ClusterConfig) -> Self {
        let waker = Waker::from(site.woken.clone());
        let mut cluster = Cluster::new(site.node.clone(), config, at(0), waker).expect("good rules");
        cluster.handle(at(0), ClusterInput::Connected);
        Self { site, cluster }
    }

    fn says(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        while let Some(output) = self.cluster.poll_output() {
            said.push(match output {
                ClusterOutput::Publish { topic, message } => Said::Publish(topic.to_owned(), message.to_vec()),
                ClusterOutput::Subscribe(topic) => Said::Subscribe(topic.to_owned()),
                ClusterOutput::Unsubscribe(topic) => Said::Unsubscribe(topic.to_owned()),
            });
        }
        said
    }

    /// The messages that it publishes.
    fn publishes(&mut self) -> Vec<Vec<u8>> {
        let message = |said| match said {
            Said::Publish(_, message) => Some(message),
            _ => None,
        };
        self.says().into_iter().filter_map(message).collect()
    }

    fn hear(&mut self, now: Timestamp, messages: &[Vec<u8>]) {
        for message in messages {
            self.cluster.handle(now, ClusterInput::Message(message));
        }
    }

    /// Does what is due, a digest whether it is due or not, and gives what it publishes.
    fn beat(&mut self, now: Timestamp) -> Vec<Vec<u8>> {
        self.cluster.handle(now, ClusterInput::Reached);
        self.cluster.handle_timeout(now);
        self.publishes()
    }

    /// Does what is due from `from` to `to`, as often as it asks for it, and says nothing to anybody.
    fn pass(&mut self, from: u64, to: u64) {
        for ms in from..=to {
            if self.cluster.poll_timeout() <= at(ms) {
                self.cluster.handle_timeout(at(ms));
                self.publishes();
            }
        }
    }

    fn counts(&self) -> ClusterCounts {
        self.cluster.view().counters().snapshot()
    }

    fn peer(&self, number: u64) -> &Peer {
        &self.cluster.peers[&NodeId(number)]
    }
}

/// Each hears the other's first digest, and has repaired what that made it doubt.
fn acquaint(members: &mut [&mut Member]) {
    for from in 0..members.len() {
        let said = members[from].beat(at(0));
        for (to, member) in members.iter_mut().enumerate() {
            if to != from {
                member.hear(at(0), &said);
            }
        }
    }
    for member in members {
        member.pass(1, 100);
        member.answer(at(100));
        member.received();
    }
}

fn pair(buckets: u32) -> (Member, Member) {
    let of = |number| {
        let mut config = config(number);
        config.buckets = buckets;
        Member::new(config)
    };
    let (mut a, mut b) = (of(1), of(2));
    acquaint(&mut [&mut a, &mut b]);
    (a, b)
}

/// The sections of a message: bucket, number and ids.
fn sections(message: &[u8]) -> Vec<(u32, u64, Vec<String>)> {
    let Ok((_, Body::Changes(mut sections))) = message::decode(message, None) else {
        return Vec::new();
    };
    let mut said = Vec::new();
    while let Some(section) = sections.next().expect("good") {
        let ids = (0..section.keys).map(|_| sections.key().expect("good"));
        let ids = ids.map(|key| key.text()[key.entity_len()..].to_owned()).collect();
        said.push((section.bucket, section.number, ids));
    }
    said
}

/// The entries of a digest, and whether it says goodbye.
fn digest(message: &[u8]) -> Option<(Vec<(u32, u64)>, bool)> {
    match message::decode(message, None) {
        Ok((_, Body::Digest(digest))) => Some((digest.entries().collect(), digest.is_leaving)),
        _ => None,
    }
}
