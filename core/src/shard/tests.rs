//! A shard, spoken to in bytes.

mod admission;
mod backlog;
mod commands;
mod kept;
mod messages;
mod panics;
mod patience;
mod walks;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use super::conn::Extra;
use super::*;
use crate::client::{Incoming, InvalidCloseCode, PassThrough, Payload, Selector, SendError};
use crate::config::Config;
use crate::entity::{self, AudienceRule, Entities, EntityOptions};
use crate::frame::{Group, RowLimits, Rows};
use crate::key::EntityKey;
use crate::outbox::{Chunk, held_by};
use crate::resolve::{Audience, Reply, Request, Resolve};
use crate::sync::{Mutex, lock};

#[test]
fn a_connection_is_as_small_as_the_architecture_page_says() {
    assert_eq!(size_of::<Conn>(), 32);
    assert_eq!(Slots::<Conn>::SLOT_BYTES, 40);
    assert_eq!(Secrets::BYTES_PER_CONNECTION, 12);
    assert_eq!(size_of::<Extra>(), 256);
    assert_eq!(size_of::<(Timestamp, ConnId)>(), 16, "an entry of a timer queue");
    assert_eq!(Subscriptions::LIST_BYTES, 24);
    assert_eq!(Subscriptions::ENTRY_BYTES, 8);
    assert_eq!(Subscriptions::MEMBER_BYTES, 16);
}

const UPGRADE: &str = "GET /ws/entity-sync/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const NOT_FOUND: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Answers every read at once with the key, the secret if there is one, and the version.
#[derive(Default)]
struct Store {
    version: AtomicUsize,
    /// Bytes that follow in each row.
    padding: AtomicUsize,
}

impl Resolve for Store {
    fn resolve(&self, request: Request, reply: Reply) {
        let of = match &request.audience {
            Audience::Secret(secret) if !secret.is_empty() => format!(" of {secret}"),
            _ => String::new(),
        };
        let version = self.version.load(Ordering::Relaxed);
        let (entity, id) = (request.key.entity(), request.key.id());
        if id == "none" {
            return reply.send(Timestamp::START, Ok(Rows::none())).unwrap();
        }
        let mut row = format!("{entity}/{id}{of} v{version}");
        row.extend(std::iter::repeat_n(' ', self.padding.load(Ordering::Relaxed)));
        reply.send(Timestamp::START, Ok(Rows::one(row))).unwrap();
    }
}

/// The other end of a connection.
#[derive(Default)]
struct Peer {
    /// Bytes that its socket takes before it is full.
    room: Option<usize>,
    /// Writes fail.
    is_broken: bool,
    received: Vec<u8>,
    is_shut: bool,
    resumed: usize,
    closed: usize,
}

impl Peer {
    fn write(&mut self, chunks: &[Chunk<'_>]) -> Sent {
        if self.is_broken {
            return Sent::Closed;
        }
        let bytes: Vec<u8> = chunks.iter().flat_map(Chunk::as_slice).copied().collect();
        let sent = bytes.len().min(self.room.unwrap_or(usize::MAX));
        if let Some(room) = &mut self.room {
            *room -= sent;
        }
        self.received.extend_from_slice(&bytes[..sent]);
        match sent {
            _ if sent == bytes.len() => Sent::All,
            0 => Sent::Busy,
            _ => Sent::Partial(sent),
        }
    }
}

/// A node, its shards, and all connections that there ever were.
struct Net {
    node: Node,
    store: Arc<Store>,
    shards: Vec<Shard>,
    peers: BTreeMap<ClientId, Peer>,
    now: Timestamp,
}

impl Net {
    fn new(shards: usize, configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(Seed(1, 2));
        configure(&mut config);
        let store = Arc::new(Store::default());
        let wakers = vec![Waker::noop().clone(); shards];
        let (node, shards) = Node::new(config, store.clone(), wakers);
        Self {
            node,
            store,
            shards,
            peers: BTreeMap::new(),
            now: Timestamp::START,
        }
    }

    fn open(&mut self, shard: usize, opening: &Opening) -> Result<ClientId, Refused> {
        let conn = self.shards[shard].open_with(self.now, opening)?;
        let id = self.shards[shard].client_id(conn);
        assert!(self.peers.insert(id, Peer::default()).is_none());
        Ok(id)
    }

    /// Opens a connection and upgrades it.
    fn connect(&mut self, shard: usize) -> ClientId {
        self.connect_asking(shard, "")
    }

    /// With this query behind the path.
    fn connect_asking(&mut self, shard: usize, query: &str) -> ClientId {
        let id = self.open(shard, &Opening::default()).unwrap();
        self.receive(id, UPGRADE.replacen("sync/", &format!("sync/{query}"), 1));
        let response = std::mem::take(&mut self.peer(id).received);
        assert!(response.starts_with(b"HTTP/1.1 101 ") && response.ends_with(b"\r\n\r\n"));
        id
    }

    fn peer(&mut self, id: ClientId) -> &mut Peer {
        peer(&mut self.peers, id)
    }

    fn handle(&mut self, id: ClientId, input: Input<'_>) {
        self.shards[id.shard as usize].handle(self.now, input);
        self.run();
    }

    fn receive(&mut self, id: ClientId, bytes: impl AsRef<[u8]>) {
        let conn = id.conn;
        let bytes = &mut bytes.as_ref().to_vec()[..];
        self.handle(id, Input::Received { conn, bytes });
    }

    fn say(&mut self, id: ClientId, text: &str) {
        self.receive(id, frame(1, text.as_bytes()));
    }

    fn subscribe(&mut self, id: ClientId, entity: &str, key: &str) {
        let body = format!(r#"{{"entity":"{entity}","id":"{key}"}}"#);
        self.say(id, &format!(r#"{{"action":"subscribe","body":{body}}}"#));
    }

    fn secret(&mut self, id: ClientId, secret: &str) {
        self.say(id, &format!(r#"{{"action":"secret","body":"{secret}"}}"#));
    }

    /// The socket takes bytes without end, from now on.
    fn unblock(&mut self, id: ClientId) {
        self.peer(id).room = None;
        self.handle(id, Input::Writable { conn: id.conn });
    }

    fn eof(&mut self, id: ClientId) {
        self.handle(id, Input::Eof { conn: id.conn });
    }

    /// The entity has another version.
    fn change(&mut self, entity: &str, id: &str, version: usize) {
        self.store.version.store(version, Ordering::Relaxed);
        self.node.notify(self.now, &key(entity, id)).unwrap();
        self.run();
    }

    fn run(&mut self) {
        let Self {
            node,
            shards,
            peers,
            now,
            ..
        } = self;
        let mut rests = 0;
        while rests < shards.len() {
            rests = 0;
            for shard in &mut *shards {
                let shard_index = shard.index;
                let name = |conn| ClientId {
                    shard: shard_index,
                    conn,
                };
                let mut outputs = 0;
                while let Some(output) = shard.poll_output(*now) {
                    outputs += 1;
                    match output {
                        Output::Broadcast(broadcast) => {
                            broadcast.for_each(|conn, chunk| peer(peers, name(conn)).write(&[chunk]));
                        }
                        Output::Flush(flush) => flush.write(|conn, chunks| peer(peers, name(conn)).write(chunks)),
                        Output::Shutdown(conn) => peer(peers, name(conn)).is_shut = true,
                        Output::Resume(conn) => peer(peers, name(conn)).resumed += 1,
                        Output::Close(conn) => peer(peers, name(conn)).closed += 1,
                    }
                }
                rests += usize::from(outputs == 0 && !shard.has_backlog() && !shard.has_orders());
                shard.assert_consistent();
            }
        }
        node.assert_consistent();
    }

    /// Time passes until `now`, and what is due before is done when it is.
    fn wait_until(&mut self, now: Timestamp) {
        loop {
            let next = self.shards.iter().filter_map(Shard::poll_timeout).min();
            let Some(next) = next.filter(|&at| at < now) else {
                return self.freeze_until(now);
            };
            self.freeze_until(next.max(self.now));
        }
    }

    /// Time passes until `now`, and nobody looks.
    fn freeze_until(&mut self, now: Timestamp) {
        self.now = now;
        for shard in &mut self.shards {
            shard.handle_timeout(now);
        }
        self.run();
    }

    /// What a client was sent since this was last asked.
    fn frames(&mut self, id: ClientId) -> Vec<String> {
        let bytes = std::mem::take(&mut self.peer(id).received);
        let (mut rest, mut frames) = (&bytes[..], Vec::new());
        while let Some((&[first, len], tail)) = rest.split_first_chunk() {
            assert!(len < 126, "long frames are not needed here");
            let (payload, tail) = tail.split_at(len.into());
            rest = tail;
            let text = String::from_utf8_lossy(payload);
            frames.push(match first {
                0x81 => text.into_owned(),
                0x82 => format!("binary {payload:?}"),
                0x88 => {
                    let code = payload.first_chunk().map_or(0, |code| u16::from_be_bytes(*code));
                    let reason = payload.get(2..).map(String::from_utf8_lossy).unwrap_or_default();
                    format!("close {code} {reason}").trim_end().to_owned()
                }
                0x89 => "ping".to_owned(),
                0x8a => format!("pong {text}"),
                other => panic!("a frame that begins with {other:#x}"),
            });
        }
        assert!(rest.is_empty());
        frames
    }

    /// As [`Self::frames`], for several clients.
    fn all_frames<const N: usize>(&mut self, ids: [ClientId; N]) -> [Vec<String>; N] {
        ids.map(|id| self.frames(id))
    }

    /// Has been told to close its side, and then to drop the socket, once the peer did the same.
    fn has_ended(&mut self, id: ClientId) -> bool {
        assert!(self.peer(id).is_shut);
        assert_eq!(self.peer(id).closed, 0);
        self.eof(id);
        self.peer(id).closed == 1
    }

    fn counts(&self, shard: usize) -> crate::counters::ShardCounts {
        self.shards[shard].counters().snapshot()
    }
}

fn peer(peers: &mut BTreeMap<ClientId, Peer>, id: ClientId) -> &mut Peer {
    peers.get_mut(&id).unwrap()
}

/// A masked frame.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
    let len = payload.len() as u16;
    let mut frame = match len {
        0..126 => vec![0x80 | opcode, 0x80 | len as u8],
        _ => [&[0x80 | opcode, 0x80 | 126][..], &len.to_be_bytes()].concat(),
    };
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(a, b)| a ^ b));
    frame
}

fn key(entity: &str, id: &str) -> EntityKey {
    EntityKey::new(entity, id).unwrap()
}

fn options(change: impl FnOnce(&mut EntityOptions)) -> EntityOptions {
    let mut options = EntityOptions::default();
    change(&mut options);
    options
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::START + Duration::from_secs(seconds)
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_snapshot_goes_to_the_new_subscriber_alone() {
    let mut net = Net::new(1, |config| {
        config.entities = Entities::default().with("items", options(|it| it.snapshot = true));
    });
    let (a, b) = (net.connect(0), net.connect(0));
    net.store.version.store(1, Ordering::Relaxed);
    net.subscribe(a, "items", "1");
    assert_eq!(net.frames(a), ["items/1 v1"]);
    // The subscription exists already.
    net.subscribe(a, "items", "1");
    net.subscribe(a, "others", "1");
    assert_eq!(net.frames(a), NOTHING);
    net.subscribe(b, "items", "1");
    assert_eq!(net.all_frames([a, b]), [vec![], vec!["items/1 v1"]]);
    net.change("items", "1", 2);
    assert_eq!(net.all_frames([a, b]), [["items/1 v2"], ["items/1 v2"]]);
    assert_eq!(net.counts(0).targeted_reads, 2);
}

#[test]
fn a_connection_may_ask_for_snapshots_of_its_own() {
    let mut net = Net::new(1, |_| {});
    let (with, without) = (
        net.connect_asking(0, "?a=b&snapshot=1"),
        net.connect_asking(0, "?snapshot=0"),
    );
    net.store.version.store(1, Ordering::Relaxed);
    for id in [without, with] {
        net.subscribe(id, "items", "1");
    }
    assert_eq!(net.all_frames([with, without]), [vec!["items/1 v1"], vec![]]);
    net.change("items", "1", 2);
    assert_eq!(net.all_frames([with, without]), [["items/1 v2"], ["items/1 v2"]]);
    assert_eq!(net.counts(0).targeted_reads, 1);
    // As whoever answered the request may say.
    let opening = Opening {
        is_upgraded: true,
        wants_snapshots: true,
        ..Opening::default()
    };
    let told = net.open(0, &opening).unwrap();
    net.subscribe(told, "items", "1");
    assert_eq!(net.frames(told), ["items/1 v2"]);
}

#[test]
fn who_falls_behind_with_what_cannot_be_skipped_is_closed() {
    let mut net = Net::new(1, |config| {
        // That is two rows.
        let limits = RowLimits { rows: 1, bytes: 100 };
        let row = Group::build(&Rows::one("tick/1 v1"), limits).unwrap();
        config.max_outbox_bytes = 2 * held_by(&row);
        let every = options(|it| {
            it.delivery = entity::Delivery::Every;
            it.audience = AudienceRule::Public;
        });
        config.entities = Entities::default().with("tick", every);
    });
    let ids = [(); 4].map(|()| net.connect(0));
    let [slow, slower, fast, other] = ids;
    for id in [slow, slower, fast] {
        net.subscribe(id, "tick", "1");
    }
    net.subscribe(other, "item", "1");
    for id in [slow, slower, other] {
        net.peer(id).room = Some(0);
    }
    for version in 1..=2 {
        net.change("tick", "1", version);
        net.change("item", "1", version);
    }
    net.unblock(slow);
    assert_eq!(net.frames(slow), ["tick/1 v1", "tick/1 v2"]);
    assert_eq!(net.counts(0).fallen_behind, 0);
    net.peer(slow).room = Some(0);
    for version in 3..=4 {
        net.change("tick", "1", version);
        net.change("item", "1", version);
    }
    assert_eq!((net.counts(0).fallen_behind, net.counts(0).dirty_marks), (1, 0));
    for id in ids {
        net.unblock(id);
    }
    assert_eq!(net.frames(slow), ["tick/1 v3", "tick/1 v4"]);
    assert_eq!(net.frames(slower), ["close 1013 fell behind"]);
    assert_eq!(net.frames(fast), ["tick/1 v1", "tick/1 v2", "tick/1 v3", "tick/1 v4"]);
    assert_eq!(net.frames(other), ["item/1 v4"], "of this, states may be skipped");
    assert!(net.has_ended(slower));
    assert_eq!(net.counts(0).connections, 3);
}

#[test]
fn nobody_is_told_that_an_entity_is_unknown() {
    let mut net = Net::new(1, |config| {
        config.entities = Entities::none().with("items", EntityOptions::default());
    });
    let a = net.connect(0);
    net.subscribe(a, "item", "1");
    net.say(a, r#"{"action":"unsubscribe","body":{"entity":"item","id":"1"}}"#);
    assert_eq!(net.frames(a), NOTHING);
    let counts = net.counts(0);
    assert_eq!((counts.refused_subscriptions, counts.subscriptions), (1, 0));
    assert_eq!((counts.rejected_messages, net.node.flights()), (0, 0));
    assert!(net.node.notify(net.now, &key("item", "1")).is_err());
    net.subscribe(a, "items", "1");
    net.change("items", "1", 1);
    assert_eq!(net.frames(a), ["items/1 v1"]);
}

#[test]
fn refusals_tell_the_date_if_anyone_knows_it() {
    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    let answer = |config: fn(&mut Config), request: &str| {
        let mut net = Net::new(1, config);
        let id = net.open(0, &Opening::default()).unwrap();
        net.receive(id, request);
        String::from_utf8(std::mem::take(&mut net.peer(id).received)).unwrap()
    };
    let with_date = |config: &mut Config| config.http_date = Some(Arc::new(|| DATE.to_owned()));
    let field = format!("\r\nDate: {DATE}\r\n");
    for (request, status) in [(NOT_FOUND, "404"), ("nonsense\r\n\r\n", "400")] {
        let dated = answer(with_date, request);
        assert!(dated.starts_with(&format!("HTTP/1.1 {status} ")) && dated.contains(&field));
        let undated = answer(|_| {}, request);
        assert_eq!(dated.replace(&field, "\r\n"), undated);
    }
    assert!(!answer(with_date, UPGRADE).contains("Date"));
}

#[test]
fn a_client_that_stops_reading_costs_its_limit_and_ends_with_the_newest_of_a_thousand_keys() {
    const KEYS: usize = 1000;
    const VERSIONS: usize = 3;
    let mut net = Net::new(1, |_| {});
    net.store.padding.store(16 * 1024, Ordering::Relaxed);
    let stuck = net.connect(0);
    for id in 0..KEYS {
        net.subscribe(stuck, "items", &id.to_string());
    }
    net.peer(stuck).room = Some(0);
    let limit = net.node.config().max_outbox_bytes;
    let mut most = 0;
    for version in 1..=VERSIONS {
        net.store.version.store(version, Ordering::Relaxed);
        for id in 0..KEYS {
            net.node.notify(net.now, &key("items", &id.to_string())).unwrap();
            if id % 100 == 0 {
                net.run();
                most = most.max(net.shards[0].queued_bytes(stuck.conn).unwrap().0);
            }
        }
    }
    net.run();
    assert!((limit / 2..=limit).contains(&most), "{most} bytes were queued");
    // It reads, in portions, and no portion brings more than the limit either.
    let mut newest = BTreeMap::new();
    let mut unread = Vec::new();
    while newest.len() < KEYS {
        net.peer(stuck).room = Some(100_000);
        net.handle(stuck, Input::Writable { conn: stuck.conn });
        // Reads that it alone asked for are patient with each other.
        net.wait_until(net.now + Duration::from_millis(100));
        assert!(net.shards[0].queued_bytes(stuck.conn).unwrap().0 <= limit);
        unread.append(&mut net.peer(stuck).received);
        while let [0x81, 126, high, low, rest @ ..] = &unread[..]
            && let Some(row) = rest.get(..usize::from(u16::from_be_bytes([*high, *low])))
        {
            let text = String::from_utf8_lossy(row);
            let (id, version) = text.trim_end().split_once(" v").unwrap();
            let version: usize = version.parse().unwrap();
            assert!(newest.get(id).is_none_or(|&before| before <= version), "{id} goes back");
            if version == VERSIONS {
                newest.insert(id.to_owned(), version);
            }
            let end = 4 + row.len();
            unread.drain(..end);
        }
    }
    assert!(net.counts(0).dirty_marks >= (KEYS - limit / (16 * 1024)) as u64);
    let reads = net.node.counters().reads.get();
    assert!(reads <= (KEYS * (VERSIONS + 2)) as u64, "{reads} reads");
}
