//! The examples of `docs/migrating.md`, which are those of the Go original's README, run.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use entity_sync::{Audience, Builder, Entity, EntityKey, EntitySync, ReadError, Request, Rows};
use entity_sync_tests::Client;

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
