//! A standard error that can't be written, or that nobody reads, costs lines of the log and nothing else.

use std::fs::File;
use std::io::pipe;

use entity_sync_tests::wait_for;

use super::*;

/// What a log may come up against.
fn bad_logs() -> [(&'static str, Stdio); 3] {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let (reader, closed) = pipe().unwrap();
    drop(reader);
    let read_only = File::open("/dev/null").unwrap();
    [
        ("full", full().into()),
        ("closed", closed.into()),
        ("not writable", read_only.into()),
    ]
}

/// A number of its metrics page.
fn metric(process: &Process, name: &str) -> u64 {
    let (_, page) = process.call("GET", "/metrics", "");
    let line = page.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().parse().unwrap()
}

fn subscribed(process: &Process, id: &str) -> Client {
    let mut client = Client::connect(process.clients);
    client.subscribe("items", id);
    client.sync();
    client
}

#[test]
fn it_serves_and_drains_with_a_log_that_cannot_be_written() {
    for (what, stderr) in bad_logs() {
        let mut command = Command::new(binary());
        command.stderr(stderr);
        // Every turn of a reactor logs something, and so does a bus.
        let flags = ["--log", "trace", "--bus", "nats", "--nats", "nats://127.0.0.1:1"];
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data.db");
        let mut process = Process::start_from(&mut command, data.to_str().unwrap(), &flags);
        let mut client = subscribed(&process, "1");
        client.send("not json");
        process.put("1", "row");
        assert_eq!(client.row(), "row", "{what}");
        assert!(metric(&process, "entity_sync_log_lines_dropped_total") > 0, "{what}");
        assert_eq!(metric(&process, "entity_sync_dead_threads_total"), 0, "{what}");
        let (status, body) = process.call("GET", "/healthz", "");
        assert!(
            status == 200 && body.contains("standard error can't be written"),
            "{what}: {body}"
        );
        process.signal("-TERM");
        assert_eq!(client.close_code(), Some(1001), "{what}");
        drop(client);
        assert_eq!(process.child.wait().unwrap().code(), Some(0), "{what}");
    }
}

#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    let (mut reader, writer) = pipe().unwrap();
    let mut command = Command::new(binary());
    command.stderr(writer);
    let mut process = Process::start_from(&mut command, ":memory:", &["--log", "trace"]);
    // The pipe's other end is in there, too.
    drop(command);
    let mut client = subscribed(&process, "1");
    let mut loud = Client::connect(process.clients);
    for round in 0..40 {
        for _ in 0..500 {
            loud.send("not json");
        }
        let row = round.to_string();
        process.put("1", &row);
        assert_eq!(client.row(), row);
    }
    loud.sync();
    let dropped = metric(&process, "entity_sync_log_lines_dropped_total");
    // Once it is read, it says what is missing.
    let log = std::thread::spawn(move || {
        let mut log = Vec::new();
        reader
            .read_to_end(&mut log)
            .map(|_| String::from_utf8_lossy(&log).into_owned())
    });
    wait_for("the log", || {
        process.put("1", "x");
        client.row();
        log.is_finished() || metric(&process, "entity_sync_log_lines_dropped_total") == dropped
    });
    drop((client, loud));
    assert_eq!(process.end(), Some(0));
    let log = log.join().unwrap().unwrap();
    assert!(
        log.contains("not json") || log.contains("message rejected"),
        "nothing was logged"
    );
    assert_eq!(log.contains("lines of this log were dropped"), dropped > 0, "{dropped}");
}

#[test]
fn the_end_waits_for_no_reader() {
    let (reader, writer) = pipe().unwrap();
    let mut command = Command::new(binary());
    command.stderr(writer);
    let mut process = Process::start_from(&mut command, ":memory:", &["--log", "trace"]);
    drop(command);
    let mut client = subscribed(&process, "1");
    for _ in 0..1000 {
        process.put("1", "row");
        client.row();
    }
    drop(client);
    assert_eq!(process.end(), Some(0));
    drop(reader);
}

#[test]
fn a_broker_needs_no_log() {
    for (what, stderr) in bad_logs() {
        let mut broker = Command::new(binary())
            .args(["broker", "--frontend", "127.0.0.1:0", "--backend", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut greeting = BufReader::new(broker.stdout.take().unwrap()).lines();
        assert!(
            greeting.any(|line| line.unwrap().starts_with("Nodes connect")),
            "{what}"
        );
        let pid = broker.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert_eq!(broker.wait().unwrap().code(), Some(0), "{what}");
    }
}

#[test]
fn no_command_panics_on_what_it_cannot_write() {
    let closed = || {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    for (arguments, code) in [
        ("completions bash", 0),
        ("--help", 0),
        ("--version", 0),
        ("--no-such-flag", 2),
        ("get items/1 --api 127.0.0.1:1", 1),
        ("--api 127.0.0.1:0 --data /no/such/folder/x.db", 1),
    ] {
        let run = |out: Stdio, err: Stdio| {
            let mut command = Command::new(binary());
            let command = command.args(arguments.split(' ')).stdout(out).stderr(err);
            command.status().unwrap().code()
        };
        assert_eq!(run(closed(), closed()), Some(code), "{arguments}");
        // Nobody is to think that a script which was not written is one.
        let on_full = if arguments.starts_with("completions") { 1 } else { code };
        assert_eq!(run(full(), full()), Some(on_full), "{arguments}");
    }
}
