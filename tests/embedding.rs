//! The examples of `docs/migrating.md`, which are those of the Go original's README, run.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use entity_sync::{Audience, Builder, Entity, EntityKey, EntitySync, ReadError, Request, Rows};
use entity_sync_tests::{Client, wait_for};

fn key(entity: &str, id: &str) -> EntityKey {
    EntityKey::new(entity, id).unwrap()
}

fn start(builder: Builder) -> EntitySync {
    builder.listen("127.0.0.1:0").start().unwrap()
}

fn subscribed(sync: &EntitySync, secret: &str, entity: &str, id: &str) -> Client {
    let mut client = Client::connect(sync.addresses()[0]);
    client.secret(secret);
    client.subscribe(entity, id);
    client.sync();
    client
}

#[test]
fn one_row() {
    let fetch = |id: &str| Some(format!(r#"{{"id":"{id}"}}"#));
    let sync = start(EntitySync::builder().entity(
        "items",
        Entity::read(move |request| match fetch(request.key.id()) {
            Some(item) => Ok(Rows::one(item)),
            None => Err(ReadError::NotFound),
        }),
    ));
    let mut client = subscribed(&sync, "", "items", "100");
    sync.notify(&key("items", "100")).unwrap();
    assert_eq!(client.row(), r#"{"id":"100"}"#);
    sync.shutdown(Duration::from_secs(1))
        .expect("no bus, or one that has all");
    assert_eq!(client.close_code(), Some(1001));
}

#[test]
fn several_rows() {
    let report = Entity::read(|request| {
        let report = format!(r#"{{"report":"{}"}}"#, request.key.id());
        let user = r#"{"user":"7"}"#.to_owned();
        let department = r#"{"department":"3"}"#.to_owned();
        Ok([report, user, department].into_iter().collect())
    });
    let sync = start(EntitySync::builder().entity("report", report));
    let mut client = subscribed(&sync, "", "report", "1");
    sync.notify(&key("report", "1")).unwrap();
    let rows = [client.row(), client.row(), client.row()];
    assert_eq!(rows, [r#"{"report":"1"}"#, r#"{"user":"7"}"#, r#"{"department":"3"}"#]);
}

#[test]
fn a_secret_is_checked() {
    let report = Entity::read(|request| match &request.audience {
        Audience::Secret(secret) if &**secret == "session 42" => Ok(Rows::one("for your eyes")),
        _ => Err(ReadError::Denied),
    });
    let sync = start(EntitySync::builder().entity("report", report));
    let mut good = subscribed(&sync, "session 42", "report", "1");
    let mut bad = subscribed(&sync, "guess", "report", "1");
    sync.notify(&key("report", "1")).unwrap();
    assert_eq!(good.row(), "for your eyes");
    assert_eq!(bad.sync(), [""; 0]);
}

#[test]
fn other_messages_pass_through() {
    let (heard, messages) = mpsc::channel();
    let sync = start(
        EntitySync::builder()
            .others(Entity::read(|_| Ok(Rows::none())))
            .on_message(move |message| {
                let text = String::from_utf8_lossy(message.payload().as_bytes()).into_owned();
                heard.send((message.secret().to_owned(), text)).unwrap();
                message.client().send_text("thank you").unwrap();
            }),
    );
    let mut client = subscribed(&sync, "me", "items", "1");
    client.send(r#"{"hello":"world"}"#);
    let said = ("me".to_owned(), r#"{"hello":"world"}"#.to_owned());
    assert_eq!(messages.recv().unwrap(), said);
    assert_eq!(client.row(), "thank you");
}

/// A push of a key to a client that is subscribed to it, and how long it takes.
fn push(sync: &EntitySync, client: &mut Client) -> Duration {
    let start = Instant::now();
    sync.notify(&key("items", "1")).unwrap();
    client.row();
    start.elapsed()
}

/// Secrets, and the numbers that came with them.
type Heard = Arc<Mutex<Vec<(String, u64)>>>;

fn numbers() -> (Heard, impl Fn(&str, &[u8]) + Send + Sync) {
    let heard = Heard::default();
    let hear = heard.clone();
    let note = move |secret: &str, bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let number = text
            .split(':')
            .nth(1)
            .and_then(|it| it.split([',', '}']).next()?.parse().ok());
        hear.lock().unwrap().push((secret.to_owned(), number.unwrap()));
    };
    (heard, note)
}

#[test]
fn a_handler_that_blocks_holds_up_nobody_but_its_own_client() {
    let (heard, note) = numbers();
    let sync = start(
        EntitySync::builder()
            .reactors(NonZeroUsize::MIN)
            .others(Entity::read(|_| Ok(Rows::one("row"))))
            .on_message(move |message| {
                if message.secret() == "slow" {
                    std::thread::sleep(Duration::from_millis(500));
                }
                note(message.secret(), message.payload().as_bytes());
            }),
    );
    let mut slow = subscribed(&sync, "slow", "items", "2");
    let mut other = subscribed(&sync, "quick", "items", "1");
    for number in 0..6 {
        slow.send(&format!(r#"{{"n":{number}}}"#));
    }
    let begin = Instant::now();
    let mut worst = Duration::ZERO;
    let mut said = 0;
    while begin.elapsed() < Duration::from_secs(2) {
        worst = worst.max(push(&sync, &mut other));
        other.send(&format!(r#"{{"n":{said}}}"#));
        said += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("worst push beside a handler of 500 ms: {worst:?}");
    assert!(worst < Duration::from_millis(400), "{worst:?}");
    let of = |who: &str| -> Vec<u64> {
        let heard = heard.lock().unwrap();
        heard.iter().filter(|it| it.0 == who).map(|it| it.1).collect()
    };
    wait_for("all messages", || {
        of("slow").len() == 6 && of("quick").len() as u64 == said
    });
    // In order, each.
    assert_eq!(of("slow"), (0..6).collect::<Vec<_>>());
    assert_eq!(of("quick"), (0..said).collect::<Vec<_>>());
}

/// Far more than any socket takes: whoever sends it waits, once the queue is full, and it is all handled in the end.
#[test]
fn a_client_that_sends_faster_than_its_messages_are_handled_is_slowed_down() {
    const MESSAGES: u64 = 600;
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let (heard, note) = numbers();
    let at_gate = gate.clone();
    let sync = start(
        EntitySync::builder()
            .reactors(NonZeroUsize::MIN)
            .others(Entity::read(|_| Ok(Rows::one("row"))))
            .on_message(move |message| {
                if message.secret() == "flood" {
                    let (is_open, opened) = &*at_gate;
                    let is_open = is_open.lock().unwrap();
                    drop(opened.wait_while(is_open, |is_open| !*is_open).unwrap());
                }
                note(message.secret(), message.payload().as_bytes());
            }),
    );
    let mut other = subscribed(&sync, "other", "items", "1");
    let mut flood = subscribed(&sync, "flood", "items", "2");
    let sent = Arc::new(AtomicU64::new(0));
    let counted = sent.clone();
    let thread = std::thread::spawn(move || {
        let filler = "x".repeat(60_000);
        for number in 0..MESSAGES {
            flood.send(&format!(r#"{{"n":{number},"x":"{filler}"}}"#));
            counted.fetch_add(1, Ordering::SeqCst);
        }
        flood
    });
    // Its sender waits.
    let mut before = u64::MAX;
    wait_for("the sender to be held up", || {
        std::thread::sleep(Duration::from_millis(300));
        let now = sent.load(Ordering::SeqCst);
        std::mem::replace(&mut before, now) == now && now > 0
    });
    let held_up_at = sent.load(Ordering::SeqCst);
    let taken = sync.handle().shard_counts().messages;
    println!("held up after {held_up_at} of {MESSAGES} messages of 60 KB, {taken} of which were taken");
    assert!(taken <= 20, "{taken} messages of 60 KB in memory");
    assert!(held_up_at < MESSAGES / 2, "{held_up_at}");
    // Others go on.
    other.send(r#"{"n":7}"#);
    wait_for("the other", || heard.lock().unwrap().contains(&("other".to_owned(), 7)));
    push(&sync, &mut other);
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    let count = || heard.lock().unwrap().iter().filter(|it| it.0 == "flood").count() as u64;
    wait_for("all of them", || count() == MESSAGES);
    let heard = heard.lock().unwrap();
    let of_flood: Vec<_> = heard.iter().filter(|it| it.0 == "flood").map(|it| it.1).collect();
    assert_eq!(of_flood, (0..MESSAGES).collect::<Vec<_>>());
    drop(thread.join().unwrap());
}

#[test]
fn a_handler_that_panics_is_counted_and_the_next_message_handled() {
    let (heard, note) = numbers();
    let sync = start(
        EntitySync::builder()
            .others(Entity::read(|_| Ok(Rows::none())))
            .on_message(move |message| {
                note(message.secret(), message.payload().as_bytes());
                if message.payload().as_bytes() == br#"{"n":1}"# {
                    panic!("as a test wants it to");
                }
            }),
    );
    let mut client = subscribed(&sync, "me", "items", "1");
    for number in 0..3 {
        client.send(&format!(r#"{{"n":{number}}}"#));
    }
    wait_for("all messages", || heard.lock().unwrap().len() == 3);
    assert_eq!(sync.handle().counters().message_panics.get(), 1);
    assert!(sync.handle().health().is_alive());
}

#[test]
fn a_shutdown_waits_for_messages_within_its_time() {
    for (timeout, handled) in [(10_000, 3), (300, 1)] {
        let (heard, note) = numbers();
        let (begun, has_begun) = mpsc::channel();
        let sync = start(
            EntitySync::builder()
                .others(Entity::read(|_| Ok(Rows::none())))
                .on_message(move |message| {
                    let _ = begun.send(());
                    note(message.secret(), message.payload().as_bytes());
                    std::thread::sleep(Duration::from_millis(1_000));
                }),
        );
        let mut client = subscribed(&sync, "me", "items", "1");
        for number in 0..3 {
            client.send(&format!(r#"{{"n":{number}}}"#));
        }
        client.sync();
        has_begun.recv().unwrap();
        let start = Instant::now();
        drop(client);
        sync.shutdown(Duration::from_millis(timeout)).unwrap();
        assert!(
            start.elapsed() < Duration::from_millis(timeout + 2_500),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(heard.lock().unwrap().len(), handled, "{timeout} ms");
    }
}

#[test]
fn a_direct_handler_is_called_on_the_reactor() {
    let (heard, on) = mpsc::channel();
    let sync = start(
        EntitySync::builder()
            .others(Entity::read(|_| Ok(Rows::none())))
            .on_message(|_| panic!("the later one counts"))
            .on_message_direct(move |_| heard.send(std::thread::current().name().map(str::to_owned)).unwrap()),
    );
    let mut client = subscribed(&sync, "", "items", "1");
    client.send(r#"{"hello":"world"}"#);
    let name = on.recv().unwrap().unwrap();
    assert!(name.contains("reactor"), "{name}");
}

/// Two servers, and a queue of the application's between them.
#[test]
fn a_queue_of_your_own() {
    let servers = [(); 2].map(|()| {
        let items = Entity::read(|request| Ok(Rows::one(request.key.id().to_owned())));
        Arc::new(start(EntitySync::builder().entity("items", items)))
    });
    let (publish, subscribe) = mpsc::channel::<(String, String)>();
    let subscribers = servers.clone();
    let subscriber = std::thread::spawn(move || {
        // Every server hears every message. After a gap it would call `handle().reread_all()`.
        for (entity, id) in subscribe {
            for server in &subscribers {
                server.notify(&key(&entity, &id)).unwrap();
            }
        }
    });
    let mut clients = servers.each_ref().map(|server| subscribed(server, "", "items", "100"));
    publish.send(("items".to_owned(), "100".to_owned())).unwrap();
    for client in &mut clients {
        assert_eq!(client.row(), "100");
    }
    // A gap: nobody was told, and all is read again.
    for (server, client) in servers.iter().zip(&mut clients) {
        server.handle().reread_all();
        assert_eq!(client.row(), "100");
    }
    drop(publish);
    subscriber.join().unwrap();
}

#[test]
fn reads_in_tasks_of_a_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let items = Entity::read_async(runtime.handle().clone(), |request: Request| async move {
        tokio::time::sleep(Duration::from_millis(1)).await;
        match request.key.id() {
            "hangs" => std::future::pending().await,
            "panics" => panic!("on purpose"),
            id => Ok(Rows::one(id.to_owned())),
        }
    });
    let sync = start(
        EntitySync::builder()
            .entity("items", items.public().snapshot())
            .configure(|config| config.core.read_time_limit = Duration::from_millis(20)),
    );
    let mut client = Client::connect(sync.addresses()[0]);
    client.subscribe("items", "hangs");
    client.subscribe("items", "panics");
    client.subscribe("items", "100");
    assert_eq!(client.row(), "100");
    entity_sync_tests::wait_for("reads given up and failed", || {
        let counts = sync.handle().counters().snapshot();
        counts.timed_out_reads + counts.failed_reads >= 4
    });
    // The runtime ends, and with it every read that is under way.
    drop(runtime);
    sync.shutdown(Duration::from_secs(1))
        .expect("no bus, or one that has all");
}
