//! The binary with rows from a slow HTTP server: who waits for whom.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use entity_sync_tests::{Client, wait_for};

use crate::binary::Process;

/// A server that takes this long for each read, of which it runs as many as it is asked for.
const DELAY: Duration = Duration::from_millis(50);

#[derive(Clone)]
struct Slow {
    address: SocketAddr,
    /// Ids in the order in which they were asked for.
    asked: Arc<Mutex<Vec<String>>>,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Slow {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let slow = Self {
            address: listener.local_addr().unwrap(),
            asked: Arc::default(),
            running: Arc::default(),
            most: Arc::default(),
        };
        let server = slow.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let server = server.clone();
                std::thread::spawn(move || server.serve(stream.unwrap()));
            }
        });
        slow
    }

    fn serve(&self, stream: TcpStream) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut stream = stream;
        while let Some(Ok(request)) = lines.next() {
            while lines.next().is_some_and(|line| line.is_ok_and(|it| !it.is_empty())) {}
            let id = request.split(['/', ' ']).nth(2).unwrap().to_owned();
            let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(running, Ordering::SeqCst);
            self.asked.lock().unwrap().push(id.clone());
            std::thread::sleep(DELAY);
            self.running.fetch_sub(1, Ordering::SeqCst);
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{id}", id.len());
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn process(&self, reads: &str) -> Process {
        let resolver = format!("http=http://{}/{{id}}", self.address);
        Process::start_with(
            ":memory:",
            &["--resolver", &resolver, "--snapshot", "--http-reads", reads],
        )
    }

    fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// How many others were asked for between `since` and this one.
    fn before(&self, since: usize, id: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked[since..].iter().position(|it| it == id).unwrap()
    }
}

fn crowd(process: &Process) -> Client {
    let mut crowd = Client::connect(process.clients);
    for id in 0..999 {
        crowd.subscribe("items", &format!("crowd-{id}"));
    }
    crowd
}

#[test]
fn one_clients_many_new_keys_hold_up_nobody_else() {
    let slow = Slow::start();
    let process = slow.process("8");
    let mut other = Client::connect(process.clients);
    other.subscribe("items", "other");
    assert_eq!(other.row(), "other");
    let _crowd = crowd(&process);
    wait_for("the crowd", || slow.count() > 50);
    let since = slow.count();
    let begin = Instant::now();
    assert_eq!(
        process.call("POST", "/notify", r#"{"entity":"items","id":"other"}"#).0,
        202
    );
    assert_eq!(other.row(), "other");
    let took = begin.elapsed();
    let others = slow.before(since, "other");
    println!(
        "a push took {took:?}, behind {others} reads of the crowd, of which {} have begun",
        slow.count()
    );
    assert!(others <= 24, "behind {others} reads");
    // Another one who is new waits for its turns only.
    let since = slow.count();
    let mut new = Client::connect(process.clients);
    for id in ["a", "b", "c"] {
        new.subscribe("items", id);
    }
    let mut rows = [new.row(), new.row(), new.row()];
    rows.sort();
    assert_eq!(rows, ["a", "b", "c"]);
    let others = slow.before(since, "c");
    assert!(others <= 48 && slow.count() < 900, "behind {others} reads");
}

#[test]
fn as_many_reads_run_as_were_asked_for() {
    let slow = Slow::start();
    let process = slow.process("200");
    let begin = Instant::now();
    let mut crowd = crowd(&process);
    for _ in 0..999 {
        crowd.row();
    }
    let took = begin.elapsed();
    let most = slow.most.load(Ordering::SeqCst);
    println!("999 reads of {DELAY:?} took {took:?}, {most} at once");
    assert!((100..=200).contains(&most), "{most} at once");
}
