use std::fs;
use std::future::Future;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::*;

type Told = Arc<Mutex<Vec<EntityKey>>>;

fn key(id: impl ToString) -> EntityKey {
    EntityKey::new("items", &id.to_string()).expect("short")
}

fn runtime() -> Runtime {
    Builder::new_current_thread().build().expect("a runtime")
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(future)
}

fn put(store: &Store, id: impl ToString, body: &str) -> Result<Written, StoreError> {
    wait(store.put(key(id), body.to_owned()))
}

fn open(path: &Path) -> Store {
    Store::open(&Location::File(path.to_owned()), |_| {}).expect("opens")
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn sql(store: &Store, sql: &str) {
    store.connection.lock().execute_batch(sql).expect("valid");
}

/// Queues `writes` while the writer is held up, so that all but the first, at least, make one batch.
fn in_one_batch(
    store: &Arc<Store>,
    writes: impl IntoIterator<Item = (EntityKey, Option<String>)>,
) -> Vec<Result<bool, StoreError>> {
    let runtime = runtime();
    let held = store.connection.lock();
    let first = queue(&runtime, store, (key("first"), Some("{}".to_owned())));
    let sent = store.writes.read().clone().expect("open");
    let begun = Instant::now();
    while !sent.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        thread::yield_now();
    }
    let waiting: Vec<_> = writes.into_iter().map(|write| queue(&runtime, store, write)).collect();
    assert_eq!(sent.len(), waiting.len());
    drop(held);
    runtime.block_on(async {
        first.await.expect("no panic").expect("written");
        let mut results = Vec::new();
        for answer in waiting {
            results.push(answer.await.expect("no panic"));
        }
        results
    })
}

fn queue(
    runtime: &Runtime,
    store: &Arc<Store>,
    (key, body): (EntityKey, Option<String>),
) -> JoinHandle<Result<bool, StoreError>> {
    let store = Arc::clone(store);
    let write = runtime.spawn(async move { store.write(key, body).await });
    // One turn brings the write to where it waits for its answer.
    runtime.block_on(tokio::task::yield_now());
    write
}

#[test]
fn writes_reads_and_deletes() {
    let directory = directory();
    for location in [Location::Memory, Location::File(directory.path().join("data.db"))] {
        let store = Store::open(&location, |_| {}).expect("opens");
        assert_eq!(store.get(&key(1)), Ok(None));
        assert_eq!(put(&store, 1, "a"), Ok(Written { created: true }));
        assert_eq!(put(&store, 1, "b"), Ok(Written { created: false }));
        assert_eq!(store.get(&key(1)), Ok(Some(b"b".to_vec())));
        assert_eq!(wait(store.delete(key(1))), Ok(true));
        assert_eq!(wait(store.delete(key(1))), Ok(false));
        assert_eq!(store.get(&key(1)), Ok(None));
        assert_eq!(store.ping(), Ok(()));
    }
}

#[test]
fn keys_and_bodies_hold_any_text() {
    let store = Store::open(&Location::Memory, |_| {}).expect("opens");
    let texts = ["", "a/b", "'; --", "\0", "a\0b", "\u{1F600}", "%", "A", "a"];
    let pairs = || texts.iter().flat_map(|a| texts.map(|b| (*a, b)));
    let body = |entity: &str, id: &str| format!("{entity}|{id}\0");
    for (entity, id) in pairs() {
        let key = EntityKey::new(entity, id).expect("short");
        assert!(wait(store.put(key, body(entity, id))).expect("put").created);
    }
    for (entity, id) in pairs() {
        let key = EntityKey::new(entity, id).expect("short");
        assert_eq!(store.get(&key), Ok(Some(body(entity, id).into_bytes())));
    }
}

#[test]
fn answered_writes_survive_a_reopen_and_a_kill() {
    let directory = directory();
    let path = directory.path().join("data.db");
    let store = open(&path);
    for i in 0..100 {
        put(&store, i, &format!("{{\"n\":{i}}}")).expect("put");
    }
    // The files as they are is what a killed process leaves behind.
    let copy = directory.path().join("killed.db");
    for end in ["", "-wal"] {
        let name = |path: &Path| format!("{}{end}", path.display());
        fs::copy(name(&path), name(&copy)).expect("copied");
    }
    drop(store);
    for path in [path, copy] {
        let store = open(&path);
        for i in 0..100 {
            let body = format!("{{\"n\":{i}}}").into_bytes();
            assert_eq!(store.get(&key(i)), Ok(Some(body)));
        }
    }
}

#[test]
fn each_change_is_told_once_after_it_can_be_read_and_before_its_answer() {
    const CALLERS: usize = 64;
    const WRITES: usize = 20;
    let directory = directory();
    let path = directory.path().join("data.db");
    let told = Told::default();
    let reader = Mutex::new(None);
    let (heard, file) = (Arc::clone(&told), path.clone());
    let store = Store::open(&Location::File(path), move |keys| {
        let mut reader = reader.lock();
        let reader = reader.get_or_insert_with(|| Connection::open(&file).expect("opens"));
        for key in keys {
            let body = database::get(reader, key).expect("reads");
            assert!(body.is_some(), "{key:?} can't be read yet");
        }
        heard.lock().extend_from_slice(keys);
    })
    .expect("opens");
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (store, told) = (&store, &told);
            scope.spawn(move || {
                for i in 0..WRITES {
                    let id = format!("{caller}-{i}");
                    assert_eq!(put(store, &id, "{}"), Ok(Written { created: true }));
                    assert!(told.lock().contains(&key(&id)), "answered before it was told");
                }
            });
        }
    });
    let mut ids: Vec<_> = told.lock().iter().map(|key| key.id().to_owned()).collect();
    assert_eq!(ids.len(), CALLERS * WRITES);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), CALLERS * WRITES);
}

#[test]
fn what_waits_together_is_committed_together_in_order() {
    let batches = Arc::new(Mutex::new(Vec::<Vec<EntityKey>>::new()));
    let heard = Arc::clone(&batches);
    let store = Store::open(&Location::Memory, move |keys| heard.lock().push(keys.to_vec()));
    let store = Arc::new(store.expect("opens"));
    let body = |text: &str| Some(text.to_owned());
    let writes = [
        (key(1), body("a")),
        (key(2), body("a")),
        (key(1), body("b")),
        (key(2), None),
        (key(3), None),
    ];
    let results = in_one_batch(&store, writes);
    let existed = [false, false, true, true, false];
    assert_eq!(results, existed.map(Ok));
    assert_eq!(store.get(&key(1)), Ok(Some(b"b".to_vec())));
    // The deletion of 3 found nothing, so nothing changed.
    let batches = batches.lock();
    assert_eq!(batches.concat(), [key("first"), key(1), key(2), key(1), key(2)]);
    // The first may have waited for the others, if this thread was quick.
    assert!(batches.len() <= 2, "{batches:?}");
}

#[test]
fn a_bad_write_costs_only_itself() {
    // SQLite undoes only the statement after the one, and the whole transaction after the other.
    for kind in ["ABORT", "ROLLBACK"] {
        let told = Told::default();
        let heard = Arc::clone(&told);
        let store = Store::open(&Location::Memory, move |keys| {
            heard.lock().extend_from_slice(keys);
        });
        let store = Arc::new(store.expect("opens"));
        sql(
            &store,
            &format!(
                "CREATE TRIGGER refuse BEFORE INSERT ON entities WHEN NEW.id = 'bad'
                 BEGIN SELECT RAISE({kind}, 'refused'); END"
            ),
        );
        let ids = ["a", "b", "bad", "c", "d"];
        let results = in_one_batch(&store, ids.map(|id| (key(id), Some("{}".to_owned()))));
        for (id, result) in ids.iter().zip(results) {
            if *id == "bad" {
                let reason = "refused".to_owned();
                assert_eq!(result, Err(StoreError::Other { reason }));
                assert_eq!(store.get(&key(id)), Ok(None));
            } else {
                assert_eq!(result, Ok(false));
                assert_eq!(store.get(&key(id)), Ok(Some(b"{}".to_vec())));
            }
        }
        assert_eq!(*told.lock(), ["first", "a", "b", "c", "d"].map(key));
    }
}

#[test]
fn a_full_disk_refuses_what_does_not_fit_and_reads_go_on() {
    let directory = directory();
    let store = Arc::new(open(&directory.path().join("data.db")));
    put(&store, "small", "old").expect("put");
    sql(&store, "PRAGMA max_page_count = 8");
    let large = "x".repeat(1 << 20);
    assert_eq!(put(&store, "large", &large), Err(StoreError::Full));
    let writes = ["small", "large", "other"].map(|id| {
        let body = if id == "large" { &large } else { "new" };
        (key(id), Some(body.to_owned()))
    });
    let results = in_one_batch(&store, writes);
    assert_eq!(results, [Ok(true), Err(StoreError::Full), Ok(false)]);
    assert_eq!(store.get(&key("small")), Ok(Some(b"new".to_vec())));
    assert_eq!(store.get(&key("large")), Ok(None));
    sql(&store, "PRAGMA max_page_count = 1000000");
    put(&store, "large", &large).expect("there is room again");
}

#[test]
fn a_file_that_turns_read_only_is_an_error_and_reads_go_on() {
    let directory = directory();
    let store = open(&directory.path().join("data.db"));
    put(&store, 1, "old").expect("put");
    sql(&store, "PRAGMA query_only = on");
    assert_eq!(put(&store, 1, "new"), Err(StoreError::ReadOnly));
    assert_eq!(store.get(&key(1)), Ok(Some(b"old".to_vec())));
}

#[test]
fn another_process_may_hold_the_file_for_a_while() {
    let directory = directory();
    let path = directory.path().join("data.db");
    let store = open(&path);
    let other = Connection::open(&path).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("locks");
    store
        .connection
        .lock()
        .busy_timeout(Duration::from_millis(10))
        .expect("set");
    assert_eq!(put(&store, 1, "{}"), Err(StoreError::Busy));
    assert_eq!(store.get(&key(1)), Ok(None));
    other.execute_batch("COMMIT").expect("unlocks");
    put(&store, 1, "{}").expect("free again");
}

#[test]
fn a_reader_that_stays_does_not_stop_writes() {
    let directory = directory();
    let path = directory.path().join("data.db");
    let store = open(&path);
    put(&store, 0, "old").expect("put");
    let other = Connection::open(&path).expect("opens");
    other.execute_batch("BEGIN; SELECT * FROM entities").expect("reads");
    let body = "x".repeat(1 << 20);
    for i in 0..8 {
        put(&store, i, &body).expect("put");
    }
    let seen = database::get(&other, &key(0)).expect("reads");
    assert_eq!(seen, Some(b"old".to_vec()));
}

#[test]
fn a_panic_of_on_commit_is_told_to_the_caller() {
    let store = Store::open(&Location::Memory, |keys| {
        assert!(keys[0].id() != "bad", "an on_commit that fails on purpose");
    })
    .expect("opens");
    assert_eq!(put(&store, "bad", "{}"), Err(StoreError::NotTold));
    assert_eq!(store.get(&key("bad")), Ok(Some(b"{}".to_vec())));
    put(&store, "good", "{}").expect("the writer goes on");
}

#[test]
fn on_commit_may_hold_the_last_handle() {
    let slot = Arc::new(Mutex::new(None::<Arc<Store>>));
    let (own, (gone, is_gone)) = (Arc::clone(&slot), bounded(1));
    let store = Store::open(&Location::Memory, move |_| {
        drop(own.lock().take());
        let _ = gone.send(());
    });
    let store = Arc::new(store.expect("opens"));
    *slot.lock() = Some(Arc::clone(&store));
    let runtime = runtime();
    drop(queue(&runtime, &store, (key(1), Some("{}".to_owned()))));
    drop((store, runtime));
    is_gone.recv_timeout(Duration::from_secs(10)).expect("no deadlock");
}

#[test]
fn close_finishes_what_waits_and_refuses_the_rest() {
    let directory = directory();
    let path = directory.path().join("data.db");
    let store = Arc::new(open(&path));
    let runtime = runtime();
    let held = store.connection.lock();
    let writes: Vec<_> = (0..100)
        .map(|i| queue(&runtime, &store, (key(i), Some("{}".to_owned()))))
        .collect();
    thread::scope(|scope| {
        let closing = scope.spawn(|| store.close());
        while store.writes.read().is_some() {
            thread::yield_now();
        }
        assert_eq!(put(&store, "late", "{}"), Err(StoreError::Closed));
        drop(held);
        assert_eq!(closing.join().expect("no panic"), Ok(()));
    });
    for write in writes {
        let answer = runtime.block_on(write).expect("no panic");
        assert_eq!(answer, Ok(false));
    }
    assert_eq!(store.close(), Ok(()));
    assert_eq!(store.ping(), Err(StoreError::Closed));
    assert_eq!(store.get(&key(99)), Ok(Some(b"{}".to_vec())));
    let log = fs::metadata(format!("{}-wal", path.display())).expect("a log");
    assert_eq!(log.len(), 0);
}

#[test]
fn many_threads_read_while_others_write() {
    let directory = directory();
    let store = open(&directory.path().join("data.db"));
    put(&store, 1, "0").expect("put");
    thread::scope(|scope| {
        for _ in 0..2 * READERS {
            scope.spawn(|| {
                let mut last = 0;
                while last < 200 {
                    let body = store.get(&key(1)).expect("reads").expect("is there");
                    let text = String::from_utf8(body).expect("text");
                    let now: u32 = text.parse().expect("a number");
                    assert!(now >= last, "a read went back in time");
                    last = now;
                }
            });
        }
        for i in 1..=200 {
            put(&store, 1, &i.to_string()).expect("put");
        }
    });
}

#[test]
fn errors_say_what_to_do() {
    let path = || "/data/x.db".into();
    for (error, text) in [
        (
            StoreError::DirectoryMissing {
                directory: "/data".into(),
            },
            "the directory /data does not exist: create it, or choose another place for the data file",
        ),
        (
            StoreError::NotOurs { path: path() },
            "/data/x.db belongs to another application: it was left as it is; choose another file, \
             which is created if it is missing",
        ),
        (
            StoreError::Newer {
                path: path(),
                format: 2,
            },
            "/data/x.db has format 2, and this release knows up to format 1: it was left as it is; \
             run the release that wrote it, or a later one",
        ),
        (
            StoreError::Full,
            "the disk that holds the data file is full: free some space, then write again; reads go \
             on meanwhile",
        ),
        (
            StoreError::NotAFile { path: "/".into() },
            "\"/\" is not the name of a file: name a file, such as ./entity-sync.db; it is created if it is missing",
        ),
        (
            StoreError::NotADatabase { path: path() },
            "/data/x.db is not a SQLite database: it was left as it is; choose another file, which is created if it is \
             missing",
        ),
        (
            StoreError::CannotOpen {
                path: path(),
                reason: "no".to_owned(),
            },
            "/data/x.db can't be opened (no): this user needs read and write permission on the file and on its \
             directory, where SQLite keeps a -wal and a -shm file beside it, and the disk must not be mounted read-only",
        ),
        (
            StoreError::ReadOnly,
            "the data file can't be written: give this user write permission on the file and its directory, and check \
             that the disk is not mounted read-only",
        ),
        (
            StoreError::Busy,
            "another process keeps the data file locked: end the other process's transaction, then write again",
        ),
        (
            StoreError::Damaged {
                reason: "bad page".to_owned(),
            },
            "the data file is damaged (bad page): stop the server, and restore the file from a backup",
        ),
        (
            StoreError::TooBig,
            "the body is larger than the store can hold: split the entity into smaller ones",
        ),
        (
            StoreError::NotTold,
            "the change is stored, but its subscribers may not have been told: notify of the key, or write it again",
        ),
        (
            StoreError::Closed,
            "the store is closed, nothing was written: the server is stopping; write again once it is back",
        ),
        (
            StoreError::WriterGone,
            "the thread that writes is gone: restart the server, then read the entity to see what is stored",
        ),
        (
            StoreError::Other {
                reason: "I/O error".to_owned(),
            },
            "the store failed (I/O error): check the disk and the system's log, then read the entity to see what is stored",
        ),
    ] {
        assert_eq!(error.to_string(), text);
    }
}
