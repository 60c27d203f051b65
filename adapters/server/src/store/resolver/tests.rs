use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use entity_sync_core::EntityKey;
use entity_sync_mio::Handle;
use tungstenite::{Message, WebSocket};

use crate::store::{Location, READERS};
use crate::{Entity, EntitySync};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

/// A store, a server that pushes what is in it, and one client of that.
struct Pushed {
    store: Arc<Store>,
    sync: EntitySync,
    socket: WebSocket<TcpStream>,
    subscriptions: u64,
}

fn key(id: impl ToString) -> EntityKey {
    EntityKey::new("items", &id.to_string()).expect("short")
}

impl Pushed {
    /// `after_commit` is called before subscribers are told.
    fn new(location: &Location, after_commit: impl Fn() + Send + 'static) -> Self {
        let handle = Arc::new(OnceLock::<Handle>::new());
        let told = handle.clone();
        let store = Store::open(location, move |keys| {
            after_commit();
            if let Some(handle) = told.get() {
                handle.notify_many(keys).expect("every name is an entity");
            }
        });
        let store = Arc::new(store.expect("opens"));
        let resolver = StoreResolver::new(&store).expect("starts");
        let sync = EntitySync::builder()
            .listen("127.0.0.1:0")
            .others(Entity::resolver(resolver).public().max_running_reads(4096))
            .start()
            .expect("starts");
        handle.get_or_init(|| sync.handle().clone());
        let address = sync.addresses()[0];
        let stream = TcpStream::connect(address).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let url = format!("ws://{address}/ws/entity-sync/");
        let socket = tungstenite::client(url, stream).expect("upgrades").0;
        Self {
            store,
            sync,
            socket,
            subscriptions: 0,
        }
    }

    fn subscribe(&mut self, id: impl ToString) {
        let id = id.to_string();
        let text = format!(r#"{{"action":"subscribe","body":{{"entity":"items","id":"{id}"}}}}"#);
        self.socket.send(Message::text(text)).expect("sent");
        self.subscriptions += 1;
        let begun = Instant::now();
        while self.sync.handle().shard_counts().subscriptions < self.subscriptions {
            assert!(begun.elapsed() < PATIENCE, "no subscription");
            thread::yield_now();
        }
    }

    fn put(&self, id: impl ToString, body: &str) {
        wait(self.store.put(key(id), body.to_owned())).expect("put");
    }

    /// Writes one key several times in one batch, mostly.
    fn put_together(&self, bodies: [&str; 2]) {
        let put = |key, body: &str| self.store.put(key, body.to_owned());
        let held = self.store.connection.lock();
        let [one, two] = bodies.map(|body| put(key(1), body));
        let (first, one, two, ()) = wait(async {
            // Each is queued in turn, and nothing can be committed before the last of them is.
            tokio::join!(put(key("first"), "{}"), one, two, async { drop(held) })
        });
        for written in [first, one, two] {
            written.expect("put");
        }
    }

    /// `None` if none comes in that time.
    fn row_within(&mut self, time: Duration) -> Option<String> {
        self.socket.get_ref().set_read_timeout(Some(time)).expect("set");
        let row = match self.socket.read() {
            Ok(Message::Text(row)) => Some(row.to_string()),
            _ => None,
        };
        self.socket.get_ref().set_read_timeout(Some(PATIENCE)).expect("set");
        row
    }

    fn row(&mut self) -> String {
        let begun = Instant::now();
        loop {
            // Pings keep coming.
            assert!(begun.elapsed() < PATIENCE, "no row");
            match self.socket.read().expect("a message") {
                Message::Text(row) => return row.to_string(),
                Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn wait<T>(future: impl std::future::Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(future)
}

#[test]
fn what_was_just_written_is_pushed_without_reading_it() {
    let directory = tempfile::tempdir().expect("a directory");
    for location in [Location::Memory, Location::File(directory.path().join("data.db"))] {
        let mut pushed = Pushed::new(&location, || {});
        pushed.subscribe(1);
        // The first one tells nothing of what others do.
        pushed.put(1, "first");
        assert_eq!(pushed.row(), "first");
        let readers = pushed.store.clone();
        // All connections that read are busy, so that reading would wait.
        let (tell, told) = mpsc::channel::<()>();
        let told = Arc::new(Mutex::new(told));
        thread::scope(|scope| {
            for _ in 0..READERS {
                let (readers, told) = (&readers, told.clone());
                scope.spawn(move || {
                    let Some(readers) = &readers.readers else { return };
                    let busy = readers.with(|_| {
                        // An error is the end as well.
                        let _ = told.lock().expect("no panic").recv();
                        Ok(())
                    });
                    busy.expect("a connection");
                });
            }
            let begun = Instant::now();
            while readers.readers.as_ref().is_some_and(|it| it.idle() > 0) {
                assert!(begun.elapsed() < PATIENCE);
                thread::yield_now();
            }
            for n in 0..100 {
                pushed.put(1, &n.to_string());
                assert_eq!(pushed.row(), n.to_string());
            }
            wait(pushed.store.delete(key(1))).expect("deleted");
            pushed.put(1, "again");
            assert_eq!(pushed.row(), "again");
            pushed.put_together(["one", "two"]);
            // Read for each of them, or the next read would have to wait.
            pushed.put(1, "three");
            while pushed.row() != "three" {}
            drop(tell);
        });
    }
}

#[test]
fn what_another_process_wrote_since_is_not_overlooked() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data.db");
    let interfere = Arc::new(AtomicBool::new(false));
    let (now, other_path) = (interfere.clone(), path.clone());
    let mut pushed = Pushed::new(&Location::File(path), move || {
        if now.load(Ordering::Relaxed) {
            let other = rusqlite::Connection::open(&other_path).expect("opens");
            other.busy_timeout(PATIENCE).expect("set");
            other
                .execute("UPDATE entities SET body = 'theirs'", [])
                .expect("written");
        }
    });
    pushed.subscribe(1);
    for _ in 0..3 {
        pushed.put(1, "ours");
        assert_eq!(pushed.row(), "ours");
    }
    for _ in 0..3 {
        interfere.store(true, Ordering::Relaxed);
        pushed.put(1, "ours");
        assert_eq!(pushed.row(), "theirs");
        // Read for each of them, as often as they are committed together.
        pushed.put_together(["ours", "ours, too"]);
        let mut last = String::new();
        while let Some(row) = pushed.row_within(Duration::from_millis(300)) {
            last = row;
        }
        assert_eq!(last, "theirs");
        interfere.store(false, Ordering::Relaxed);
        pushed.put(1, "ours");
        assert_eq!(pushed.row(), "ours");
    }
}

#[test]
fn many_and_large_rows_are_read_by_the_threads() {
    let mut pushed = Pushed::new(&Location::Memory, || {});
    // More than one transaction reads.
    let large = "x".repeat(1 << 20);
    for id in 0..10 {
        pushed.put(id, &format!("{id}{large}"));
        pushed.subscribe(id);
    }
    for id in 10..500 {
        pushed.put(id, &id.to_string());
        pushed.subscribe(id);
    }
    let keys: Vec<_> = (0..500).map(key).collect();
    pushed.sync.notify_many(&keys).expect("known");
    let mut rows: Vec<String> = (0..500).map(|_| pushed.row()).collect();
    rows.sort();
    let mut expected: Vec<String> = (10..500).map(|id| id.to_string()).collect();
    expected.extend((0..10).map(|id| format!("{id}{large}")));
    expected.sort();
    assert!(rows == expected);
}

#[test]
fn a_store_ends_although_its_server_is_told_of_its_commits() {
    let pushed = Pushed::new(&Location::Memory, || {});
    let queue = pushed.store.queues.hold().first().expect("one");
    let Pushed { store, sync, .. } = pushed;
    sync.shutdown(Duration::from_secs(1)).expect("there is no bus");
    drop(store);
    let begun = Instant::now();
    while queue.strong_count() > 0 {
        assert!(begun.elapsed() < PATIENCE, "its threads go on");
        thread::yield_now();
    }
}
