//! Faults of a single node, each of which is tried once: what it comes up against must hurt nobody but those whom it is about.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed drill")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write, pipe};
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use entity_sync::args::Task;
use entity_sync::serve::serve;
use entity_sync::{Audience, AudienceRule, Entity, EntityKey, EntitySync, Rows};
use entity_sync_benches::report::line;
use entity_sync_tests::Client;
use entity_sync_tests::node::{agent, call};
use entity_sync_tests::program::binary;
use entity_sync_tests::sabotage::sabotage;

const CLIENTS: usize = 50;
const PATIENCE: Duration = Duration::from_secs(30);

/// Every drill, by its name.
const ALL: [(&str, fn()); 5] = [
    ("a log on /dev/full", log_on_a_full_disk),
    ("a log that nobody reads", log_that_nobody_reads),
    ("a stop of 4 s by a signal", stop_by_a_signal),
    ("a reactor that dies", dead_reactor),
    ("a rule of audiences that panics", panicking_rule),
];

/// Tries all, and says whether all went well.
pub(crate) fn run() -> bool {
    ALL.iter().fold(true, |so_far, (name, drill)| {
        let begun = Instant::now();
        // Why it failed is on standard error.
        let is_good = catch_unwind(AssertUnwindSafe(drill)).is_ok();
        let said = if is_good { "nobody else was hurt" } else { "FAILED" };
        line(
            "drills",
            name,
            &format!("{said} ({:.1} s)", begun.elapsed().as_secs_f64()),
        );
        so_far && is_good
    })
}

/// A server alone, with clients of one key. It is killed when it is dropped.
struct Alone {
    child: Child,
    api: SocketAddr,
    clients: SocketAddr,
}

impl Alone {
    fn start(command: &mut Command, flags: &[&str]) -> Self {
        command
            .args([
                "--listen",
                "127.0.0.1:0",
                "--api",
                "127.0.0.1:0",
                "--reactors",
                "2",
                "--data",
                ":memory:",
            ])
            .args(flags);
        Self::greeted(command)
    }

    fn greeted(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let mut after = |mark: &str| {
            let found = lines.find_map(|line| Some(line.split_once(mark)?.1.split('/').next()?.parse().unwrap()));
            found.unwrap()
        };
        let (clients, api) = (after("ws://"), after("http://"));
        Self { child, api, clients }
    }

    fn connect(&self) -> Vec<Client> {
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| Client::connect(self.clients)).collect();
        for client in &mut clients {
            client.subscribe("items", "1");
            client.sync();
        }
        clients
    }

    fn put(&self, row: &str) {
        let (status, _) = call(&agent(PATIENCE), self.api, "PUT", "/entities/items/1", row).unwrap();
        assert!([201, 204].contains(&status), "{status}");
    }

    fn metric(&self, name: &str) -> u64 {
        let (_, page) = call(&agent(PATIENCE), self.api, "GET", "/metrics", "").unwrap();
        let value = page
            .lines()
            .find_map(|it| it.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap()
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Waits for its end, and gives its exit code.
    fn end(mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status.code(),
                None => assert!(begun.elapsed() < PATIENCE, "it does not end"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Pushes while much is logged, and then an orderly end.
fn served_with(stderr: Stdio) {
    let alone = Alone::start(Command::new(binary()).stderr(stderr), &["--log", "trace"]);
    let mut clients = alone.connect();
    let mut loud = Client::connect(alone.clients);
    for round in 0..20 {
        for _ in 0..200 {
            loud.send("not json");
        }
        let row = round.to_string();
        alone.put(&row);
        for client in &mut clients {
            client.rows_until(&row);
        }
    }
    assert_eq!(alone.metric("entity_sync_dead_threads_total"), 0);
    drop((clients, loud));
    alone.signal("-TERM");
    assert_eq!(alone.end(), Some(0));
}

fn log_on_a_full_disk() {
    served_with(File::options().write(true).open("/dev/full").unwrap().into());
}

fn log_that_nobody_reads() {
    let (unread, stderr) = pipe().unwrap();
    served_with(stderr.into());
    drop(unread);
}

/// Nobody who answers is dropped for it, though more time has passed than the silent have.
fn stop_by_a_signal() {
    let flags = ["--ping-interval", "1", "--dead-after", "3"];
    let alone = Alone::start(&mut Command::new(binary()), &flags);
    let mut clients = alone.connect();
    let opened = alone.metric("entity_sync_opened_total");
    alone.signal("-STOP");
    std::thread::sleep(Duration::from_secs(4));
    alone.signal("-CONT");
    for round in 0..3 {
        std::thread::sleep(Duration::from_millis(200));
        let row = round.to_string();
        alone.put(&row);
        for client in &mut clients {
            client.rows_until(&row);
        }
    }
    assert_eq!(alone.metric("entity_sync_connections"), CLIENTS as u64);
    assert_eq!(alone.metric("entity_sync_opened_total"), opened);
}

/// The process ends, says why, and is not taken for one that ended well.
fn dead_reactor() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let alone = Alone::greeted(command.arg("--victim").arg("reactor-0"));
    let begun = Instant::now();
    let mut streams = Vec::new();
    // Sooner or later, one comes to that reactor.
    while let Ok(mut stream) = TcpStream::connect(alone.clients) {
        assert!(begun.elapsed() < PATIENCE, "it lives on");
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
        streams.push(stream);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(alone.end(), Some(1));
}

/// The server in which a thread dies: called in a process of its own. Says whether it ended well.
pub(crate) fn serve_with_a_victim(victim: &str) -> bool {
    sabotage(victim);
    let flags = "entity-sync --listen 127.0.0.1:0 --api 127.0.0.1:0 --reactors 2 --data :memory:";
    match Task::parse(flags.split(' ')) {
        Ok((Task::Serve(options), _)) => serve(&options).is_ok(),
        _ => false,
    }
}

/// Whose key it is about is refused, and all others are served.
fn panicking_rule() {
    let rule = AudienceRule::Custom(Arc::new(|key: &EntityKey, secret: &str| {
        assert!(key.id() != "bad", "this rule panics, as a drill wants it to");
        Audience::Secret(secret.into())
    }));
    let entity = Entity::read(|request| Ok(Rows::one(format!("{:?}", request.key.id())))).audience(rule);
    let sync = EntitySync::builder()
        .listen("127.0.0.1:0")
        .entity("items", entity)
        .start()
        .unwrap();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| Client::connect(sync.addresses()[0])).collect();
    for client in &mut clients {
        client.subscribe("items", "bad");
        client.subscribe("items", "1");
        client.secret("another");
        client.subscribe("items", "bad");
        client.sync();
    }
    for id in ["bad", "1"] {
        sync.notify(&EntityKey::new("items", id).unwrap()).unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.row(), "\"1\"");
    }
    let counts = sync.handle().shard_counts();
    assert_eq!(
        (counts.handler_panics, counts.connections),
        (2 * CLIENTS as u64, CLIENTS as u64)
    );
    assert!(sync.handle().health().is_alive());
    sync.shutdown(Duration::from_secs(1)).unwrap();
}
