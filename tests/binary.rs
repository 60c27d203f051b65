//! The `entity-sync` binary as its users meet it: a process, real clients, and HTTP.

mod api;
mod logs;
mod operator;
mod threads;

use std::future::IntoFuture;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use entity_sync_tests::{Client, talk};

/// Where it is.
pub(crate) fn binary() -> PathBuf {
    entity_sync_tests::program::binary()
}

/// A running process. It is killed at the end of the test, if it hasn't ended by then.
pub(crate) struct Process {
    child: Child,
    pub(crate) clients: SocketAddr,
    pub(crate) api: SocketAddr,
}

impl Process {
    pub(crate) fn start(data: &str) -> Self {
        Self::start_with(data, &[])
    }

    pub(crate) fn start_with(data: &str, flags: &[&str]) -> Self {
        Self::start_from(&mut Command::new(binary()), data, flags)
    }

    fn start_from(command: &mut Command, data: &str, flags: &[&str]) -> Self {
        command
            .args(["--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--data", data])
            .args(match flags.contains(&"--reactors") {
                true => &[][..],
                false => &["--reactors", "2"],
            })
            .args(flags);
        Self::greeted(command)
    }

    /// Starts it, and waits until it says where it serves.
    fn greeted(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut greeting = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut after = |mark: &str| {
            let line = greeting.find(|line| line.contains(mark)).unwrap();
            let rest = line.split(mark).nth(1).unwrap();
            rest.split('/').next().unwrap().parse().unwrap()
        };
        let (clients, api) = (after("ws://"), after("http://"));
        // The line to try comes last.
        assert!(greeting.any(|line| line.starts_with("Try: curl -X P")));
        Self { child, clients, api }
    }

    pub(crate) fn call(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        self.try_call(method, path, body).unwrap()
    }

    fn try_call(&self, method: &str, path: &str, body: &str) -> Result<(u16, String), ureq::Error> {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.api))
            .body(body.to_owned())
            .unwrap();
        let mut response = agent.run(request)?;
        let text = response.body_mut().read_to_string()?;
        Ok((response.status().as_u16(), text))
    }

    /// Whether it was answered at all.
    pub(crate) fn try_put(&self, id: &str, row: &str) -> bool {
        let answer = self.try_call("PUT", &format!("/entities/items/{id}"), row);
        answer.is_ok_and(|(status, _)| [201, 204].contains(&status))
    }

    /// Asks it to stop, and gives its exit code.
    pub(crate) fn end(&mut self) -> Option<i32> {
        self.signal("-TERM");
        self.child.wait().unwrap().code()
    }

    pub(crate) fn put(&self, id: &str, row: &str) {
        let (status, _) = self.call("PUT", &format!("/entities/items/{id}"), row);
        assert!([201, 204].contains(&status), "{status}");
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the binary to its end, and gives its exit code and what it said.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    run_with(&binary(), arguments)
}

pub(crate) fn run_with(binary: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(binary).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn a_put_is_pushed_to_a_thousand_clients() {
    let process = Process::start(":memory:");
    let mut clients: Vec<_> = (0..1000).map(|_| Client::connect(process.clients)).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        // One read serves them all, whatever their secrets.
        client.secret(&format!("secret {index}"));
        client.subscribe("items", "100");
    }
    for client in &mut clients {
        client.sync();
    }
    for round in 0..5 {
        let row = format!(r#"{{"round":{round}}}"#);
        process.put("100", &row);
        for client in &mut clients {
            assert_eq!(client.row(), row);
        }
    }
}

#[test]
fn what_was_answered_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.db");
    let data = data.to_str().unwrap();
    let process = Process::start(data);
    for id in 0..100 {
        process.put(&id.to_string(), &format!("\"{id}\""));
    }
    process.signal("-KILL");
    drop(process);
    let process = Process::start(data);
    for id in 0..100 {
        let row = process.call("GET", &format!("/entities/items/{id}"), "");
        assert_eq!(row, (200, format!("\"{id}\"")));
    }
}

#[test]
fn a_signal_ends_it_in_good_order() {
    let mut process = Process::start(":memory:");
    let mut client = Client::connect(process.clients);
    client.subscribe("items", "1");
    client.sync();
    process.signal("-TERM");
    assert_eq!(client.close_code(), Some(1001));
    drop(client);
    assert_eq!(process.child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_keeps_it_from_starting_is_said() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let free = "127.0.0.1:0";
    let folder = tempfile::tempdir().unwrap();
    let letter = folder.path().join("letter.txt");
    std::fs::write(&letter, "Dear database, you are none. ".repeat(50)).unwrap();
    let start = |listen: &str, api: &str, data: &str| run(&["--listen", listen, "--api", api, "--data", data]);
    for (said, part) in [
        (
            start(&taken, free, ":memory:"),
            "another program already uses this port; stop it or choose another port (--listen)",
        ),
        (
            start(free, &taken, ":memory:"),
            "another program already uses this port; stop it or choose another port (--api)",
        ),
        (
            start("192.0.2.1:1", free, ":memory:"),
            "can't listen on 192.0.2.1:1: Cannot assign requested address",
        ),
        (
            start(free, free, "/no/such/folder/data.db"),
            "the directory /no/such/folder does not exist: create it, or choose another place for the data file",
        ),
        (
            start(free, free, letter.to_str().unwrap()),
            "letter.txt is not a SQLite database: it was left as it is",
        ),
    ] {
        assert_eq!(said.0, Some(1), "{}", said.1);
        assert!(
            said.1.starts_with("entity-sync: ") && said.1.contains(part),
            "{}",
            said.1
        );
    }
    // Nothing was joined or created before an address was found to be in use.
    let data = folder.path().join("data.db");
    for (listen, api, part) in [(&*taken, free, "(--listen)"), (free, &*taken, "(--api)")] {
        let bus = ["--bus", "zmq", "--zmq-bind", &taken];
        let rest = ["--listen", listen, "--api", api, "--data", data.to_str().unwrap()];
        let (code, said) = run(&[&bus[..], &rest].concat());
        assert_eq!(code, Some(1));
        assert!(
            said.contains("another program already uses this port") && said.contains(part),
            "{said}"
        );
        assert!(part == "(--listen)" || !data.exists(), "{said}");
        let _ = std::fs::remove_file(&data);
    }
    let (code, said) = run(&[
        "--bus",
        "zmq",
        "--zmq-bind",
        &taken,
        "--listen",
        free,
        "--api",
        free,
        "--data",
        data.to_str().unwrap(),
    ]);
    assert_eq!(code, Some(1));
    assert!(said.contains("the cluster can't be joined"), "{said}");
    for bus in [
        &[
            "--bus",
            "zmq",
            "--zmq-bind",
            "0.0.0.0:0",
            "--listen",
            free,
            "--api",
            free,
            "--data",
            data.to_str().unwrap(),
        ][..],
        &["broker", "--frontend", "0.0.0.0:0"],
    ] {
        let (code, said) = run(bus);
        assert_eq!(code, Some(1));
        assert!(said.contains("--zmq-allow-unauthenticated"), "{said}");
    }
    let (code, said) = run(&["--api", "0.0.0.0:8081"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("without a token anyone there could write"), "{said}");
    let (code, said) = run(&["--help"]);
    assert_eq!(code, Some(0));
    assert!(said.contains("curl -X PUT"), "{said}");
    // What nothing would come of is refused from wherever it is said.
    let mut command = Command::new(binary());
    let output = command.env("ENTITY_SYNC_REPAIR_RATE", "5").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    let told = "--repair-rate is for --bus zmq or nats or nsq: add one of these, or leave --repair-rate out";
    assert!(said.contains(told), "{said}");
}

#[test]
fn limits_of_the_system_are_said_with_what_to_do() {
    // After the standard streams there is a place for one file, which is all that it takes to load a program.
    let binary = binary();
    let limited = |files: u32, arguments: &[&str]| {
        // It ends by itself, and is not waited for if it doesn't.
        let script = format!(r#"ulimit -n {files}; exec timeout 30 "$0" "$@""#);
        let output = Command::new("sh")
            .args(["-c", &script])
            .arg(&binary)
            .args(arguments)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let told =
        "entity-sync: the system refused: Too many open files (os error 24); allow it more open files (ulimit -n)\n";
    for arguments in [&["--data", ":memory:"][..], &["broker"]] {
        assert_eq!(limited(4, arguments), (Some(1), told.to_owned()));
    }
    // Wherever it is that files run out, it is not an address that is to blame.
    let flags = "--data :memory: --listen 127.0.0.1:0 --api 127.0.0.1:0 --reactors 4";
    let flags: Vec<_> = flags.split(' ').collect();
    for files in (10..=30).step_by(4) {
        let (code, said) = limited(files, &flags);
        assert_eq!(code, Some(1), "{files}: {said}");
        assert!(said.contains("(ulimit -n)") && !said.contains("--"), "{files}: {said}");
    }
}

#[test]
fn the_log_tells_of_connections_reads_and_notifies_and_of_no_secret() {
    for format in ["text", "json"] {
        let mut command = Command::new(binary());
        command.stderr(Stdio::piped());
        let flags = ["--log", "trace", "--log-format", format];
        let mut process = Process::start_from(&mut command, ":memory:", &flags);
        let mut client = Client::connect(process.clients);
        client.secret("hush-hush");
        client.subscribe("items", "1");
        client.sync();
        process.put("1", "row");
        assert_eq!(client.row(), "row");
        drop(client);
        let log = BufReader::new(process.child.stderr.take().unwrap()).lines();
        process.end();
        let all: Vec<_> = log.map(Result::unwrap).collect();
        // Several threads write it: what is answered may be pushed before it is said.
        for part in ["connected", "notify", "read", "answered", "disconnected"] {
            assert!(all.iter().any(|line| line.contains(part)), "no {part:?} in {all:?}");
        }
        assert!(all.iter().all(|line| !line.contains("hush")), "{all:?}");
        assert_eq!(
            all.iter().all(|line| line.starts_with('{')),
            format == "json",
            "{all:?}"
        );
    }
}

#[test]
fn hostile_bytes_hurt_nobody_else() {
    let process = Process::start(":memory:");
    let mut client = Client::connect(process.clients);
    client.subscribe("items", "1");
    client.sync();
    let requests: [&[u8]; 7] = [
        b"\0\0\0\0\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /ws/entity-sync/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n",
        &[b'a'; 20_000],
        &[0x16, 3, 1, 2, 0, 1, 0, 1],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    for request in requests {
        let mut stream = TcpStream::connect(process.clients).unwrap();
        // The server may have hung up before all is sent.
        let _ = stream.write_all(request);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let answer = talk(&mut stream, b"\0never\0");
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    }
    let frames: [&[u8]; 6] = [
        b"\x81\x05hello",                                    // not masked
        b"\xff\x80\0\0\0\0",                                 // reserved bits
        b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", // a negative length
        b"\x82\xff\x00\x00\x00\xff\xff\xff\xff\xff\0\0\0\0", // a long one
        b"\x81\x82\0\0\0\0\xff\xfe",                         // not UTF-8
        b"\x88\x81\0\0\0\0\x03",                             // half a close code
    ];
    for frame in frames {
        let mut bad = Client::connect(process.clients);
        bad.stream().write_all(frame).unwrap();
        let answer = talk(bad.stream(), b"\0never\0");
        assert_eq!(answer.first(), Some(&0x88), "{answer:?}");
    }
    for message in [
        "",
        "{",
        "[]",
        "null",
        "5",
        r#"{"action":"foo"}"#,
        r#"{"action":"subscribe","body":{"id":5}}"#,
    ] {
        client.send(message);
    }
    assert_eq!(client.sync(), Vec::<String>::new());
    process.put("1", "still here");
    assert_eq!(client.row(), "still here");
}

#[test]
fn origins_and_paths_are_as_configured() {
    let process = Process::start_with(
        ":memory:",
        &["--path", "/live/", "--path", "/ws/", "--origin", "https://example.com"],
    );
    let ask = |path: &str, origin: &str| {
        let mut stream = TcpStream::connect(process.clients).unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{origin}\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            process.clients
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8(answer[9..].to_vec()).unwrap()
    };
    assert_eq!(ask("/live/", ""), "101");
    assert_eq!(ask("/ws/", "Origin: https://example.com\r\n"), "101");
    assert_eq!(ask("/ws/", "Origin: https://example.org\r\n"), "403");
    assert_eq!(ask("/ws/entity-sync/", ""), "404");
}

/// An application that keeps its rows to itself, and gives them to those who may see them.
#[test]
fn rows_over_http() {
    use axum::http::{HeaderMap, StatusCode};
    let runtime = crate::door::runtime();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let read = axum::routing::get(
        async |axum::extract::Path((entity, id)): axum::extract::Path<(String, String)>, headers: HeaderMap| {
            match headers.get("authorization").and_then(|it| it.to_str().ok()) {
                Some("Bearer good") => Ok(format!("{entity} {id}")),
                _ => Err(StatusCode::FORBIDDEN),
            }
        },
    );
    let app = axum::Router::new().route("/rows/{entity}/{id}", read);
    runtime.spawn(axum::serve(listener, app).into_future());

    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("none.db");
    let resolver = format!("http=http://{address}/rows/{{entity}}/{{id}}");
    let process = Process::start_with(data.to_str().unwrap(), &["--resolver", &resolver, "--snapshot"]);
    let mut good = Client::connect(process.clients);
    good.secret("good");
    good.subscribe("items", "a b");
    assert_eq!(good.row(), "items a b");
    let mut bad = Client::connect(process.clients);
    bad.secret("bad");
    bad.subscribe("items", "a b");
    bad.sync();
    assert_eq!(
        process.call("POST", "/notify", r#"{"entity":"items","id":"a b"}"#).0,
        202
    );
    assert_eq!(good.row(), "items a b");
    let denied = || {
        process
            .call("GET", "/metrics", "")
            .1
            .contains("entity_sync_denied_reads_total 2")
    };
    entity_sync_tests::wait_for("both reads to be denied", denied);
    assert_eq!(bad.sync(), [""; 0]);
    let (status, error) = process.call("PUT", "/entities/items/1", "x");
    assert_eq!(status, 409);
    assert!(error.contains("\"code\":\"not_stored\""), "{error}");
    assert!(!data.exists(), "there is no store");
}
