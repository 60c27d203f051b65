//! Two embedded servers on a queue of one's own, of both kinds: the examples of the documentation.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use entity_sync::{Entity, EntityKey, EntitySync, Rows};
use entity_sync_bus::{
    Bus, Inbox, Join, NotSent, PlainBus, PlainConfig, PlainInbox, Receipt, cluster_config, numbered, plain,
};
use entity_sync_tests::{Client, wait_for};

/// Who hears of which topic, and what may go wrong.
struct Memory<I>(Arc<Mutex<State<I>>>);

struct State<I> {
    topics: HashMap<String, Vec<I>>,
    /// Nothing gets through, and nobody is told.
    is_cut: bool,
    published: Vec<Vec<u8>>,
    /// What was to be published meanwhile.
    lost: Vec<Vec<u8>>,
}

impl<I> Memory<I> {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            topics: HashMap::new(),
            is_cut: false,
            published: Vec::new(),
            lost: Vec::new(),
        })))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State<I>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<I> Clone for Memory<I> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct MemoryBus {
    memory: Memory<Inbox>,
    inbox: Option<Inbox>,
}

impl Bus for MemoryBus {
    fn start(&mut self, inbox: Inbox) {
        inbox.connected();
        self.inbox = Some(inbox);
    }

    fn subscribe(&mut self, topic: &str) {
        let mut state = self.memory.state();
        state
            .topics
            .entry(topic.to_owned())
            .or_default()
            .extend(self.inbox.clone());
    }

    fn publish(&mut self, topic: &str, message: &[u8]) -> Result<(), NotSent> {
        let mut state = self.memory.state();
        if state.is_cut {
            state.lost.push(message.to_vec());
            return Err(NotSent);
        }
        for inbox in state.topics.get(topic).into_iter().flatten() {
            inbox.message(message.to_vec());
        }
        Ok(())
    }
}

impl PlainBus for Memory<PlainInbox> {
    fn start(&mut self, topics: &[String], inbox: PlainInbox) {
        for topic in topics {
            self.state()
                .topics
                .entry(topic.clone())
                .or_default()
                .push(inbox.clone());
        }
        inbox.connected();
    }

    fn publish(&mut self, topic: &str, body: &[u8], receipt: Receipt) {
        let mut state = self.state();
        if state.is_cut {
            return;
        }
        state.published.push(body.to_vec());
        for inbox in state.topics.get(topic).into_iter().flatten() {
            inbox.message(body.to_vec());
        }
        receipt.confirm();
    }
}

/// What both servers read.
type Store = Arc<Mutex<u64>>;

fn start(store: &Store, bus: impl Join + 'static) -> EntitySync {
    let store = store.clone();
    let read = Entity::read(move |_| {
        let version = *store.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Rows::one(version.to_string()))
    });
    EntitySync::builder()
        .listen("127.0.0.1:0")
        .entity("items", read)
        .bus(bus)
        .start()
        .unwrap()
}

fn change(store: &Store, on: &EntitySync) -> String {
    let version = {
        let mut version = store.lock().unwrap_or_else(PoisonError::into_inner);
        *version += 1;
        *version
    };
    on.notify(&EntityKey::new("items", "100").unwrap()).unwrap();
    version.to_string()
}

fn subscribed(server: &EntitySync) -> Client {
    let mut client = Client::connect(server.addresses()[0]);
    client.subscribe("items", "100");
    wait_for("the subscription", || server.handle().shard_counts().subscriptions == 1);
    client
}

#[test]
fn numbered_messages_repair_what_the_queue_loses() {
    let memory = Memory::new();
    let store = Store::default();
    let servers = [(); 2].map(|()| {
        let mut config = cluster_config();
        config.heartbeat = Duration::from_millis(50);
        let bus = MemoryBus {
            memory: memory.clone(),
            inbox: None,
        };
        start(&store, numbered(bus, config))
    });
    wait_for("them to know each other", || {
        servers
            .iter()
            .all(|it| it.cluster().unwrap().status().counts.digests > 0)
    });
    let mut clients = servers.each_ref().map(subscribed);
    for server in &servers {
        let row = change(&store, server);
        for client in &mut clients {
            // Who has just met another node looks at everything again, and may push what was before.
            client.rows_until(&row);
        }
    }
    memory.state().is_cut = true;
    let row = change(&store, &servers[0]);
    assert_eq!(clients[0].row(), row);
    // Names can be read in messages.
    let is_change = |message: &Vec<u8>| message.windows(5).any(|it| it == b"items");
    wait_for("the change to be lost", || memory.state().lost.iter().any(is_change));
    memory.state().is_cut = false;
    assert_eq!(clients[1].row(), row);
    // It is counted after it has begun.
    wait_for("the repair to be counted", || {
        let counts = servers[1].cluster().unwrap().status().counts;
        counts.gaps > 0 && counts.repairs > 0
    });
    let [first, second] = servers;
    first
        .shutdown(Duration::from_secs(1))
        .expect("no bus, or one that has all");
    wait_for("the other to hear that it has left", || {
        let peers = second.cluster().unwrap().status().peers;
        peers.iter().any(|peer| peer.state.as_str() == "left")
    });
}

/// A plain queue that is connected at once, and panics over the first message.
struct Panics;

impl PlainBus for Panics {
    fn start(&mut self, _: &[String], inbox: PlainInbox) {
        inbox.connected();
    }

    fn publish(&mut self, _: &str, _: &[u8], _receipt: Receipt) {
        panic!("as buses do");
    }
}

#[test]
fn a_node_whose_bus_panics_serves_its_own_clients() {
    let store = Store::default();
    let mut config = PlainConfig::default();
    // Nobody waits for echoes that will not come.
    config.confirm_within = Duration::from_secs(3600);
    let server = start(&store, plain(Panics, config));
    let cluster = server.cluster().unwrap().clone();
    wait_for("it to be connected", || cluster.has_been_connected());
    let mut client = subscribed(&server);
    for _ in 0..3 {
        let row = change(&store, &server);
        // Everything is looked at once after connecting, which may push what was before.
        client.rows_until(&row);
    }
    assert!(!cluster.status().is_connected);
    let start = Instant::now();
    let _ = server.shutdown(Duration::from_secs(60));
    assert!(
        start.elapsed() < Duration::from_secs(50),
        "it has waited for a bus that is gone"
    );
}

#[test]
fn a_plain_queue_brings_each_its_own() {
    let memory = Memory::<PlainInbox>::new();
    let store = Store::default();
    let servers = [(); 2].map(|()| start(&store, plain(memory.clone(), PlainConfig::default())));
    wait_for("them to be connected", || {
        servers.iter().all(|it| it.cluster().unwrap().has_been_connected())
    });
    let mut clients = servers.each_ref().map(subscribed);
    for server in &servers {
        let row = change(&store, server);
        for client in &mut clients {
            // Everything is looked at once after connecting, which may push what was before.
            client.rows_until(&row);
        }
    }
    assert_eq!(memory.state().published[0], br#"{"entity":"items","id":"100"}"#);
    // What the queue does not take is applied here, and published when it does.
    memory.state().is_cut = true;
    let row = change(&store, &servers[0]);
    assert_eq!(clients[0].row(), row);
    memory.state().is_cut = false;
    let row = change(&store, &servers[0]);
    // The one that was refused, or the newer one, whichever is read first.
    while clients[1].row() != row {}
}
