//! A shard, spoken to in bytes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use super::conn::Extra;
use super::*;
use crate::client::{Incoming, InvalidCloseCode, PassThrough, Payload, Selector, SendError};
use crate::config::Config;
use crate::entity::{self, AudienceRule, Entities, EntityOptions};
use crate::frame::Rows;
use crate::key::EntityKey;
use crate::outbox::Chunk;
use crate::resolve::{Audience, Reply, Request, Resolve};
use crate::sync::{Mutex, lock};

#[test]
fn a_connection_is_as_small_as_the_architecture_page_says() {
    assert_eq!(size_of::<Conn>(), 40);
    assert_eq!(Slots::<Conn>::SLOT_BYTES, 48);
    assert_eq!(size_of::<Extra>(), 192);
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
        let id = self.open(shard, &Opening::default()).unwrap();
        self.receive(id, UPGRADE);
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
                        Output::Close(conn) => peer(peers, name(conn)).closed += 1,
                    }
                }
                rests += usize::from(outputs == 0);
                shard.assert_consistent();
            }
        }
        node.assert_consistent();
    }

    /// Time passes until `now`, without a look at what is due before.
    fn wait_until(&mut self, now: Timestamp) {
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
    assert!(payload.len() < 126);
    let mut frame = vec![0x80 | opcode, 0x80 | payload.len() as u8];
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

/// Who said what: with which secret, as text or not, and the bytes.
type Heard = Arc<Mutex<Vec<(ClientId, String, bool, Vec<u8>)>>>;

fn listen(config: &mut Config) -> Heard {
    let heard = Heard::default();
    let hear = heard.clone();
    config.on_message = Some(Arc::new(move |incoming: Incoming<'_>| {
        let is_text = matches!(incoming.payload(), Payload::Text(_));
        let bytes = incoming.payload().as_bytes().to_vec();
        lock(&hear).push((incoming.id(), incoming.secret().to_owned(), is_text, bytes));
    }));
    heard
}

#[test]
fn messages_without_an_action_are_passed_as_they_came() {
    let mut heard = Heard::default();
    let mut net = Net::new(2, |config| heard = listen(config));
    let (a, b) = (net.connect(0), net.connect(1));
    net.say(a, " {\"hello\" :\t1} ");
    net.secret(a, "s");
    net.receive(a, frame(2, b"{\"raw\":\"\xff\"}"));
    net.say(b, r#"{"action":""}"#);
    let expected = [
        (a, String::new(), true, b" {\"hello\" :\t1} ".to_vec()),
        (a, "s".to_owned(), false, b"{\"raw\":\"\xff\"}".to_vec()),
        (b, String::new(), true, br#"{"action":""}"#.to_vec()),
    ];
    assert_eq!(*lock(&heard), expected);
    // Neither these nor those with an action are anything else's.
    net.say(a, "not JSON");
    net.say(a, r#"{"action":"unknown"}"#);
    net.subscribe(a, "items", "1");
    assert_eq!(lock(&heard).len(), 3);
    let counts = net.counts(0);
    assert_eq!((counts.messages, counts.passed_messages), (6, 2));
    assert_eq!((counts.rejected_messages, counts.subscriptions), (2, 1));
}

#[test]
fn all_messages_are_passed_if_the_application_wants_them() {
    let mut heard = Heard::default();
    let mut net = Net::new(1, |config| {
        heard = listen(config);
        config.pass_through = PassThrough::All;
    });
    let a = net.connect(0);
    net.say(a, "not JSON");
    net.receive(a, frame(2, b"\xff\x00"));
    net.subscribe(a, "items", "1");
    net.secret(a, "s");
    net.say(a, "");
    let heard = lock(&heard);
    let texts: Vec<_> = heard.iter().map(|it| (it.2, &it.3[..])).collect();
    assert_eq!(texts[..2], [(true, &b"not JSON"[..]), (false, b"\xff\x00")]);
    assert!(texts[2].1.starts_with(br#"{"action":"subscribe""#));
    assert_eq!(texts[4], (true, &b""[..]));
    assert!(heard.iter().all(|it| it.0 == a && it.1.is_empty()));
    let counts = net.counts(0);
    assert_eq!((counts.passed_messages, counts.rejected_messages), (5, 0));
    assert_eq!(counts.subscriptions, 0);
}

#[test]
fn messages_for_nobody_are_counted_and_dropped() {
    let mut net = Net::new(1, |_| {});
    let a = net.connect(0);
    net.say(a, r#"{"hello":1}"#);
    let counts = net.counts(0);
    assert_eq!((counts.passed_messages, counts.rejected_messages), (0, 1));
    assert_eq!(net.frames(a), NOTHING);
}

#[test]
fn a_handler_that_panics_costs_nobody_the_connection() {
    let mut net = Net::new(1, |config| {
        config.on_message = Some(Arc::new(|_: Incoming<'_>| panic!("this handler panics")));
    });
    let (a, b) = (net.connect(0), net.connect(0));
    // All that comes at once, and what comes later.
    let passed = frame(1, br#"{"hello":1}"#);
    net.receive(a, [&passed[..], &frame(9, b"1"), &passed].concat());
    assert_eq!(net.frames(a), ["pong 1"]);
    net.receive(a, &passed);
    net.subscribe(a, "items", "1");
    net.subscribe(b, "items", "1");
    net.change("items", "1", 1);
    assert_eq!(net.all_frames([a, b]), [["items/1 v1"], ["items/1 v1"]]);
    let counts = net.counts(0);
    assert_eq!((counts.handler_panics, counts.passed_messages), (3, 3));
    assert_eq!(counts.connections, 2);
}

#[test]
fn messages_leave_in_the_order_in_which_they_were_sent() {
    let mut net = Net::new(2, |config| {
        config.on_message = Some(Arc::new(|incoming: Incoming<'_>| {
            let client = incoming.client();
            assert_eq!(client.id(), incoming.id());
            client.send_text("one").unwrap();
            client.send_binary(&[2, 0, 255]).unwrap();
            client.send_text("three").unwrap();
            if incoming.payload() == Payload::Text(r#"{"bye":1}"#) {
                client.close(4000, "bye").unwrap();
                client.send_text("too late").unwrap();
            }
        }));
    });
    let (a, b) = (net.connect(0), net.connect(1));
    net.say(a, r#"{"hello":1}"#);
    let three = ["one", "binary [2, 0, 255]", "three"];
    assert_eq!(net.all_frames([a, b]), [&three[..], &[]]);
    // From elsewhere, behind what is queued. Rows keep the place of those whose place they take.
    net.subscribe(b, "items", "1");
    net.peer(b).room = Some(0);
    net.change("items", "1", 1);
    net.node.client(b).send_text("after a row").unwrap();
    net.node.client(b).send_text("").unwrap();
    net.run();
    net.change("items", "1", 2);
    net.unblock(b);
    assert_eq!(net.all_frames([a, b]), [&[][..], &["items/1 v2", "after a row", ""]]);
    // The end comes after all that was sent before.
    net.peer(a).room = Some(0);
    net.say(a, r#"{"bye":1}"#);
    net.unblock(a);
    assert_eq!(net.frames(a), ["one", "binary [2, 0, 255]", "three", "close 4000 bye"]);
    assert!(net.has_ended(a));
    net.node.client(b).close(1000, "").unwrap();
    net.run();
    assert_eq!(net.frames(b), ["close 1000"]);
    assert!(net.has_ended(b));
    assert_eq!((net.counts(0).sent_messages, net.counts(1).sent_messages), (6, 2));
}

#[test]
fn messages_that_no_shard_has_taken_are_limited() {
    let mut net = Net::new(2, |config| config.max_handover_bytes = 100);
    let (a, b, c) = (net.connect(0), net.connect(0), net.connect(1));
    let clients = [a, b, c].map(|id| net.node.client(id));
    let long = "x".repeat(60);
    assert_eq!(clients[0].send_text(&long), Ok(()));
    assert_eq!(clients[0].send_text(&long), Err(SendError::Full));
    assert_eq!(
        clients[1].send_binary(&[0; 60]),
        Err(SendError::Full),
        "of the same shard"
    );
    assert_eq!(clients[2].send_text(&long), Ok(()), "of another one");
    // Up to the limit, with the two bytes of each header.
    assert_eq!(clients[1].send_text(&"y".repeat(37)), Err(SendError::Full));
    assert_eq!(clients[1].send_text(&"y".repeat(36)), Ok(()));
    assert_eq!(clients[1].send_text(""), Err(SendError::Full));
    // What is no message is always taken.
    clients[1].close(1000, "").unwrap();
    net.run();
    assert_eq!(net.all_frames([a, c]), [[&long[..]], [&long]]);
    assert_eq!(net.frames(b), ["y".repeat(36), "close 1000".to_owned()]);
    // One that exceeds it may go alone.
    assert_eq!(clients[0].send_text(&"z".repeat(120)), Ok(()));
    assert_eq!(clients[0].send_text(""), Err(SendError::Full));
    net.run();
    assert_eq!(clients[0].send_text(""), Ok(()));
    net.run();
    assert_eq!(net.frames(a), ["z".repeat(120), String::new()]);
}

#[test]
fn messages_beyond_the_outbox_end_the_connection() {
    let mut net = Net::new(1, |config| config.max_outbox_bytes = 100);
    let clients = [net.connect(0), net.connect(0), net.connect(0)];
    let [a, b, c] = clients;
    net.subscribe(b, "items", "1");
    // Of the first one's message, some has left; the second one's have rows in front of them.
    net.peer(a).room = Some(5);
    net.peer(b).room = Some(0);
    net.change("items", "1", 1);
    let long = "x".repeat(60);
    for id in clients {
        net.node.client(id).send_text(&long).unwrap();
        net.run();
    }
    assert_eq!(net.counts(0).fallen_behind, 0);
    for id in clients {
        net.node.client(id).send_text(&long).unwrap();
        net.node.client(id).send_text("more").unwrap();
        net.run();
    }
    assert_eq!(net.counts(0).fallen_behind, 2);
    assert_eq!(net.counts(0).subscriptions, 0);
    net.unblock(a);
    net.unblock(b);
    assert_eq!(net.frames(a), [&long[..], "close 1013 fell behind"]);
    assert_eq!(net.frames(b), ["close 1013 fell behind"]);
    assert_eq!(net.frames(c), [&long[..], &long, "more"]);
    assert!(net.has_ended(a) && net.has_ended(b));
    assert_eq!(net.shards[0].connections(), 1);
}

/// On two shards: one with the secret `s` and two keys, one without, and another with the secret.
fn three_clients() -> (Net, [ClientId; 3]) {
    let mut net = Net::new(2, |_| {});
    let ids = [0, 0, 1].map(|shard| net.connect(shard));
    let [a, b, c] = ids;
    net.secret(a, "s");
    net.secret(c, "s");
    for id in ids {
        net.subscribe(id, "items", "1");
    }
    net.subscribe(a, "items", "2");
    net.subscribe(b, "items", "3");
    assert!(net.all_frames(ids).iter().all(Vec::is_empty));
    (net, ids)
}

/// Of how many of these keys each client gets rows when all change.
fn subscriptions(net: &mut Net, ids: [ClientId; 3]) -> [usize; 3] {
    for id in ["1", "2", "3"] {
        net.change("items", id, 9);
    }
    net.all_frames(ids).map(|frames| frames.len())
}

#[test]
fn reads_are_repeated_for_those_who_are_named() {
    let (mut net, ids) = three_clients();
    let [a, b, c] = ids;
    let no_rows: Vec<String> = Vec::new();
    net.node.reread(net.now, &Selector::Key(key("items", "1")));
    net.run();
    let of_s = ["items/1 of s v0"];
    assert_eq!(net.frames(a), of_s);
    assert_eq!(net.frames(b), ["items/1 v0"]);
    assert_eq!(net.frames(c), of_s);
    net.node.reread(net.now, &Selector::Secret("s".into()));
    net.run();
    let mut rows = net.frames(a);
    rows.sort_unstable();
    assert_eq!(rows, ["items/1 of s v0", "items/2 of s v0"]);
    assert_eq!(net.all_frames([b, c]), [&[][..], &of_s]);
    net.node.reread(net.now, &Selector::Secret("".into()));
    net.run();
    let mut rows = net.frames(b);
    rows.sort_unstable();
    assert_eq!(rows, ["items/1 v0", "items/3 v0"]);
    assert_eq!(net.all_frames([a, c]), [no_rows.clone(), no_rows.clone()]);
    net.node.reread(net.now, &Selector::Client(c));
    net.run();
    assert_eq!(net.all_frames([a, b]), [no_rows.clone(), no_rows.clone()]);
    assert_eq!(net.frames(c), of_s);
    net.node.reread_all(net.now);
    net.run();
    assert_eq!(net.all_frames(ids).map(|frames| frames.len()), [2, 2, 1]);
    net.node.reread(net.now, &Selector::Key(key("items", "none")));
    net.node.reread(net.now, &Selector::Secret("none".into()));
    net.run();
    assert_eq!(net.all_frames(ids), [(); 3].map(|()| no_rows.clone()));
}

#[test]
fn subscriptions_end_for_those_who_are_named() {
    type Case = (fn([ClientId; 3]) -> Selector, [usize; 3]);
    let cases: [Case; 4] = [
        (|_| Selector::Key(key("items", "1")), [1, 1, 0]),
        (|_| Selector::Secret("s".into()), [0, 2, 0]),
        (|_| Selector::Secret("".into()), [2, 0, 1]),
        (|[a, ..]| Selector::Client(a), [0, 2, 1]),
    ];
    for (selector, left) in cases {
        let (mut net, ids) = three_clients();
        assert_eq!(subscriptions(&mut net, ids), [2, 2, 1]);
        let selector = selector(ids);
        net.node.unsubscribe(&selector);
        net.run();
        assert_eq!(net.all_frames(ids).concat(), NOTHING, "they are not told");
        assert_eq!(subscriptions(&mut net, ids), left, "{selector:?}");
        let sum: usize = net.shards.iter().map(Shard::subscriptions).sum();
        assert_eq!(sum, left.iter().sum::<usize>());
        // They may subscribe again.
        for id in ids {
            net.subscribe(id, "items", "1");
        }
        net.change("items", "1", 10);
        assert!(net.all_frames(ids).iter().all(|frames| frames.len() == 1));
    }
}

#[test]
fn who_changes_its_secret_meanwhile_is_meant_as_it_was() {
    for (selector, left) in [(Selector::Key(key("items", "1")), 1), (Selector::Secret("s".into()), 0)] {
        let (mut net, ids) = three_clients();
        net.node.unsubscribe(&selector);
        // Before its shard has looked at that.
        net.secret(ids[0], "other");
        assert_eq!(subscriptions(&mut net, ids)[0], left, "{selector:?}");
    }
}

#[test]
fn connections_end_for_those_who_are_named() {
    type Case = (fn([ClientId; 3]) -> Selector, [bool; 3]);
    let cases: [Case; 5] = [
        (|_| Selector::Key(key("items", "1")), [true, true, true]),
        (|_| Selector::Key(key("items", "2")), [true, false, false]),
        (|_| Selector::Secret("s".into()), [true, false, true]),
        (|_| Selector::Secret("".into()), [false, true, false]),
        (|[.., c]| Selector::Client(c), [false, false, true]),
    ];
    for (selector, ended) in cases {
        let (mut net, ids) = three_clients();
        let selector = selector(ids);
        net.node.disconnect(&selector, 3000, "enough").unwrap();
        net.run();
        for (id, ended) in ids.into_iter().zip(ended) {
            let frames = net.frames(id);
            assert_eq!(frames, ["close 3000 enough"][..usize::from(ended)], "{selector:?}");
            assert!(!ended || net.has_ended(id));
        }
        let left = ended.iter().filter(|ended| !**ended).count();
        let sum: usize = net.shards.iter().map(Shard::connections).sum();
        assert_eq!(sum, left);
    }
}

#[test]
fn a_close_code_that_may_not_be_sent_is_an_error() {
    let mut net = Net::new(1, |_| {});
    let a = net.connect(0);
    for code in [0, 999, 1004, 1005, 1006, 1014, 1015, 2999, 5000, u16::MAX] {
        let error = Err(InvalidCloseCode(code));
        assert_eq!(net.node.client(a).close(code, "x"), error);
        assert_eq!(net.node.disconnect(&Selector::Secret("".into()), code, "x"), error);
    }
    net.run();
    assert_eq!((net.frames(a).len(), net.shards[0].connections()), (0, 1));
}

#[test]
fn a_client_that_has_gone_is_not_another_one() {
    let mut net = Net::new(1, |_| {});
    let old = net.connect(0);
    net.handle(old, Input::Closed { conn: old.conn });
    assert_eq!(net.peer(old).closed, 1);
    let new = net.connect(0);
    assert_eq!(new.conn.index(), old.conn.index());
    assert_ne!(new, old);
    net.subscribe(new, "items", "1");
    let nowhere = ClientId { shard: 7, ..new };
    for id in [old, nowhere] {
        let selector = Selector::Client(id);
        net.node.client(id).send_text("hello").unwrap();
        net.node.client(id).send_binary(b"hello").unwrap();
        net.node.reread(net.now, &selector);
        net.node.unsubscribe(&selector);
        net.node.client(id).close(1000, "").unwrap();
        net.node.disconnect(&selector, 1000, "").unwrap();
        net.run();
    }
    net.receive(old, frame(9, b""));
    assert_eq!(net.frames(new), NOTHING);
    assert_eq!((net.shards[0].connections(), net.shards[0].subscriptions()), (1, 1));
    assert_eq!((net.peer(old).closed, net.counts(0).stale_inputs), (1, 1));
    net.change("items", "1", 1);
    assert_eq!(net.frames(new), ["items/1 v1"]);
}

#[test]
fn who_falls_behind_with_what_cannot_be_skipped_is_closed() {
    let mut net = Net::new(1, |config| {
        // Of rows with eleven bytes, header included, that is two.
        config.max_outbox_bytes = 30;
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
fn draining_ends_connections_at_an_even_pace() {
    let mut net = Net::new(1, |_| {});
    let ids = [(); 4].map(|()| net.connect(0));
    let upgrading = net.open(0, &Opening::default()).unwrap();
    for id in ids {
        net.subscribe(id, "items", "1");
    }
    net.now = at(3);
    // What is queued goes out before the end.
    net.peer(ids[0]).room = Some(0);
    net.change("items", "1", 1);
    assert_eq!(net.all_frames(ids).concat().len(), 3);
    let drain = DrainOptions {
        over: Duration::from_secs(4),
        ..DrainOptions::default()
    };
    assert!(!net.shards[0].is_draining());
    net.shards[0].drain(net.now, drain);
    net.run();
    assert!(net.shards[0].is_draining());
    assert_eq!(net.peer(upgrading).closed, 1);
    assert_eq!(net.open(0, &Opening::default()), Err(Refused::Draining));
    assert_eq!(net.shards[0].open(net.now), Err(Refused::Draining));
    assert_eq!(net.counts(0).refused_connections, 2);
    let mut hints = Vec::new();
    for ended in 1..=4 {
        net.unblock(ids[0]);
        let frames = net.all_frames(ids).concat();
        let closes: Vec<_> = frames.iter().filter(|it| it.starts_with("close")).collect();
        let [close] = closes[..] else {
            panic!("{frames:?}");
        };
        let hint = close.strip_prefix("close 1012 retry in ").unwrap();
        let hint: u64 = hint.strip_suffix(" ms").unwrap().parse().unwrap();
        assert!(hint < 5000);
        hints.push(hint);
        if ended == 4 {
            break;
        }
        let next = net.shards[0].poll_timeout().unwrap();
        assert_eq!(next, at(3 + ended));
        net.wait_until(at(3 + ended - 1) + Duration::from_nanos(999_999_999));
        assert_eq!(net.all_frames(ids).concat(), NOTHING, "too early");
        net.wait_until(next);
    }
    hints.dedup();
    assert_eq!(hints.len(), 4, "each has a time of its own");
    assert!(ids.into_iter().all(|id| net.has_ended(id)));
    assert_eq!(net.shards[0].connections(), 0);
    assert_eq!(net.counts(0).dead_peers, 0);
}

#[test]
fn what_is_queued_leaves_before_a_drained_connection_ends() {
    let mut net = Net::new(1, |_| {});
    let (a, b) = (net.connect(0), net.connect(0));
    for id in [a, b] {
        net.subscribe(id, "items", "1");
        net.peer(id).room = Some(0);
    }
    net.change("items", "1", 1);
    let at_once = DrainOptions {
        code: 1001,
        retry_within: Duration::ZERO,
        ..DrainOptions::default()
    };
    net.shards[0].drain(net.now, at_once);
    net.run();
    net.unblock(a);
    assert_eq!(net.frames(a), ["items/1 v1", "close 1001"]);
    assert!(net.has_ended(a));
    // Who takes nothing is not waited for for ever.
    let limit = net.shards[0].poll_timeout().unwrap();
    assert_eq!(limit, net.now + net.node.config().close_time_limit);
    net.wait_until(limit);
    assert_eq!((net.peer(b).closed, net.shards[0].connections()), (1, 0));
}

#[test]
fn draining_may_be_hastened_and_needs_no_connections() {
    let mut net = Net::new(2, |_| {});
    let ids = [(); 4].map(|()| net.connect(0));
    let slowly = DrainOptions {
        over: Duration::from_secs(3600),
        ..DrainOptions::default()
    };
    net.shards[0].drain(net.now, slowly);
    net.run();
    assert_eq!(net.all_frames(ids).concat().len(), 1);
    net.shards[0].drain(net.now, DrainOptions::default());
    net.run();
    let frames = net.all_frames(ids).concat();
    assert_eq!(frames.iter().filter(|it| it.starts_with("close 1012 ")).count(), 3);
    // The other shard has none, and goes on till it is told.
    let own = net.connect(1);
    net.eof(own);
    net.shards[1].drain(net.now, slowly);
    net.run();
    assert_eq!(net.open(1, &Opening::default()), Err(Refused::Draining));
    net.wait_until(at(20));
    assert!(net.shards[1].is_draining());
}

#[test]
fn a_connection_that_has_upgraded_elsewhere_speaks_in_frames_at_once() {
    let mut net = Net::new(1, |config| config.max_upgrading = 1);
    let opening = Opening {
        is_upgraded: true,
        ..Opening::default()
    };
    let (a, b) = (net.open(0, &opening).unwrap(), net.open(0, &opening).unwrap());
    assert_eq!(net.shards[0].may_accept(net.now), Ok(()), "these don't upgrade");
    net.subscribe(a, "items", "1");
    net.receive(b, frame(9, b"b"));
    net.change("items", "1", 1);
    assert_eq!(net.all_frames([a, b]), [["items/1 v1"], ["pong b"]]);
    net.wait_until(net.now + net.node.config().upgrade_time_limit);
    assert_eq!(net.shards[0].connections(), 2);
    // Its first bytes may be bad ones.
    let c = net.open(0, &opening).unwrap();
    net.receive(c, UPGRADE);
    assert!(net.frames(c)[0].starts_with("close 1002"));
    assert_eq!(net.counts(0).violations, 1);
}

#[test]
fn connections_are_limited_over_all_shards() {
    let mut net = Net::new(2, |config| config.max_connections = 2);
    let (a, _) = (net.connect(0), net.connect(1));
    for shard in [0, 1] {
        assert_eq!(net.open(shard, &Opening::default()), Err(Refused::TooManyConnections));
        assert_eq!(net.counts(shard).refused_connections, 1);
    }
    net.eof(a);
    net.connect(1);
    assert_eq!(net.open(0, &Opening::default()), Err(Refused::TooManyConnections));
    net.run();
}

#[test]
fn connections_of_one_address_are_limited_over_all_shards() {
    let mut net = Net::new(2, |config| config.max_connections_per_address = 2);
    let from = |peer: &str| Opening {
        peer: Some(peer.parse().unwrap()),
        ..Opening::default()
    };
    let one = from("192.0.2.1");
    let (a, _) = (net.open(0, &one).unwrap(), net.open(1, &one).unwrap());
    for shard in [0, 1] {
        assert_eq!(net.open(shard, &one), Err(Refused::TooManyFromAddress));
        net.open(shard, &from("192.0.2.2")).unwrap();
        net.open(shard, &Opening::default()).unwrap();
        net.run();
    }
    net.eof(a);
    net.open(1, &one).unwrap();
    assert_eq!(net.open(0, &one), Err(Refused::TooManyFromAddress));
    net.run();
}

#[test]
fn every_end_gives_back_what_was_admitted() {
    type End = (&'static str, fn(&mut Net, ClientId));
    let ends: [End; 14] = [
        ("end of file", |net, id| net.eof(id)),
        ("reset", |net, id| net.handle(id, Input::Closed { conn: id.conn })),
        ("bad request", |net, id| {
            net.receive(id, "nonsense\r\n\r\n");
            assert_eq!(net.shards[0].may_accept(net.now), Ok(()), "it doesn't upgrade any more");
            assert!(net.has_ended(id));
        }),
        ("another page", |net, id| {
            net.receive(id, NOT_FOUND);
            assert!(net.shards[0].may_accept(net.now).is_err(), "it may still upgrade");
            net.eof(id);
        }),
        ("another page, then no answer", |net, id| {
            net.receive(id, NOT_FOUND);
            net.wait_until(net.now + net.node.config().upgrade_time_limit);
        }),
        ("no request", |net, id| {
            net.receive(id, &UPGRADE[..20]);
            net.wait_until(net.now + net.node.config().upgrade_time_limit);
        }),
        ("broken socket", |net, id| {
            net.peer(id).is_broken = true;
            net.receive(id, UPGRADE);
        }),
        ("broken socket while refused", |net, id| {
            net.peer(id).is_broken = true;
            net.receive(id, "nonsense\r\n\r\n");
        }),
        ("upgrade, then the end", |net, id| {
            net.receive(id, UPGRADE);
            assert_eq!(net.shards[0].may_accept(net.now), Ok(()));
            net.eof(id);
        }),
        ("close frame, then silence", |net, id| {
            net.receive(id, UPGRADE);
            net.receive(id, frame(8, &1000u16.to_be_bytes()));
            assert!(net.peer(id).is_shut);
            net.wait_until(net.now + net.node.config().close_time_limit);
        }),
        ("violation", |net, id| {
            net.receive(id, UPGRADE);
            net.receive(id, [0xff; 10]);
            assert!(net.has_ended(id));
        }),
        ("silence", |net, id| {
            net.receive(id, UPGRADE);
            net.wait_until(net.now + net.node.config().dead_after);
        }),
        ("sent away while it upgrades", |net, id| {
            net.node.client(id).close(1000, "").unwrap();
            net.run();
        }),
        ("drained while it upgrades", |net, _| {
            net.shards[0].drain(net.now, DrainOptions::default());
            net.run();
        }),
    ];
    for (name, end) in ends {
        let mut net = Net::new(2, |config| {
            config.max_connections = 1;
            config.max_upgrading = 1;
            config.max_connections_per_address = 1;
        });
        let opening = Opening {
            peer: Some([192, 0, 2, 1].into()),
            ..Opening::default()
        };
        let id = net.open(0, &opening).unwrap();
        assert!(net.shards[1].may_accept(net.now).is_err());
        end(&mut net, id);
        assert_eq!(net.peer(id).closed, 1, "{name}");
        assert_eq!(net.node.admission().open(), 0, "{name}");
        assert_eq!(net.shards[1].may_accept(net.now), Ok(()), "{name}");
        let counts = net.counts(0);
        assert_eq!((counts.opened, counts.closed, counts.connections), (1, 1, 0), "{name}");
        // The next one finds room, by each of the limits.
        let next = net.open(1, &opening).unwrap();
        net.receive(next, UPGRADE);
        net.eof(next);
    }
}

#[test]
fn a_shard_that_is_gone_gives_back_what_was_admitted() {
    let mut net = Net::new(2, |config| {
        config.max_connections = 4;
        config.max_upgrading = 1;
        config.max_connections_per_address = 2;
    });
    let opening = Opening {
        peer: Some([192, 0, 2, 1].into()),
        ..Opening::default()
    };
    let upgraded = net.open(1, &opening).unwrap();
    net.receive(upgraded, UPGRADE);
    net.subscribe(upgraded, "items", "1");
    let closing = net.connect(1);
    net.node.client(closing).close(1000, "").unwrap();
    let stays = net.connect(0);
    net.subscribe(stays, "items", "1");
    net.open(1, &opening).unwrap();
    assert_eq!(net.node.admission().open(), 4);
    assert!(net.shards[0].may_accept(net.now).is_err());
    drop(net.shards.pop());
    assert_eq!(net.node.admission().open(), 1);
    assert_eq!(net.shards[0].may_accept(net.now), Ok(()));
    net.open(0, &opening).unwrap();
    net.open(0, &opening).unwrap();
    net.change("items", "1", 1);
    assert_eq!(net.frames(stays), ["items/1 v1"]);
    let gone = net.node.shard_counters().nth(1).unwrap();
    assert_eq!((gone.connections.get(), gone.subscriptions.get()), (0, 0));
    assert_eq!((gone.opened.get(), gone.closed.get()), (3, 3));
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
