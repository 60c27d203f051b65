//! The binary's API and the commands that call it, at a port and at a socket.

use super::*;

#[test]
fn the_api_writes_reads_deletes_and_notifies() {
    let process = Process::start(":memory:");
    let mut client = Client::connect(process.clients);
    client.subscribe("items", "a/b ü");
    client.sync();
    let path = "/entities/items/a%2Fb%20%C3%BC";
    assert_eq!(process.call("PUT", path, "\"1\"").0, 201);
    assert_eq!(client.row(), "\"1\"");
    assert_eq!(process.call("PUT", path, "\"2\"").0, 204);
    assert_eq!(client.row(), "\"2\"");
    assert_eq!(process.call("GET", path, ""), (200, "\"2\"".to_owned()));
    let notify = r#"[{"entity":"items","id":"a/b ü"}]"#;
    assert_eq!(
        process.call("POST", "/notify", notify),
        (202, r#"{"accepted":1}"#.to_owned())
    );
    assert_eq!(client.row(), "\"2\"");
    assert_eq!(process.call("DELETE", path, "").0, 204);
    assert_eq!(process.call("GET", path, "").0, 404);
    // Nothing is pushed for what is gone, and the connection lives on.
    assert_eq!(client.sync(), Vec::<String>::new());
    assert_eq!(
        process.call("GET", "/healthz", ""),
        (200, r#"{"status":"ok"}"#.to_owned())
    );
    let (status, error) = process.call("POST", "/notify", r#"{"entity":"items","id":100}"#);
    assert_eq!(status, 400);
    assert!(error.contains("hint"), "{error}");
}

#[test]
fn commands_ask_the_server_and_no_proxy() {
    let process = Process::start(":memory:");
    process.put("1", "row");
    // Nobody answers there.
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", proxy.local_addr().unwrap());
    let mut command = Command::new(binary());
    for name in [
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        command.env(name, &url);
    }
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    let output = command
        .args(["get", "items/1", "--api", &process.api.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!((output.status.code(), &*said), (Some(0), "row\n"));
}

#[test]
fn client_commands_take_from_the_environment_what_they_take_as_a_flag() {
    for api in ["http://127.0.0.1:1", "localhost:1"] {
        let mut command = Command::new(binary());
        command.args(["get", "items/1"]).env("ENTITY_SYNC_API", api);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("no server answers at http://"), "{said}");
    }
}

#[test]
fn the_api_may_be_a_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api");
    let api = format!("unix:{}", path.display());
    let flags = [
        "--listen",
        "127.0.0.1:0",
        "--data",
        ":memory:",
        "--reactors",
        "1",
        "--api",
        &api,
    ];
    let start = || {
        let mut child = Command::new(binary())
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let greeting = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut greeting = greeting.skip_while(|line| !line.contains("  API  "));
        assert_eq!(greeting.next(), Some(format!("  API      {api}")));
        let curl = format!("Try: curl -X PUT --unix-socket {} http://localhost/", path.display());
        assert!(greeting.any(|line| line.starts_with(&curl)));
        child
    };
    let mut killed = start();
    assert_eq!(
        run(&["put", "items/1", "row", "--api", &api]),
        (Some(0), "created\n".to_owned())
    );
    assert_eq!(run(&["get", "items/1", "--api", &api]), (Some(0), "row\n".to_owned()));
    let (code, said) = run(&flags);
    assert_eq!(code, Some(1));
    let told = format!(
        "can't listen on {api}: another program already uses this path; stop it or choose another path (--api)"
    );
    assert!(said.contains(&told), "{said}");
    killed.kill().unwrap();
    killed.wait().unwrap();
    // What it has left is in nobody's way.
    assert!(path.exists());
    let mut ended = start();
    let (code, said) = run(&["notify", "items/1", "--api", &api]);
    assert_eq!((code, &*said), (Some(0), "accepted 1\n"));
    let pid = ended.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(ended.wait().unwrap().code(), Some(0));
    assert!(!path.exists());
    std::fs::write(&path, "a letter").unwrap();
    let long = format!("/tmp/{}", "x".repeat(103));
    for (path, told) in [
        (
            path.to_str().unwrap(),
            "there is a file that is no socket; remove it or choose another path",
        ),
        (
            "/no/such/folder/api",
            "its directory does not exist; create it or choose another path",
        ),
        (
            &long,
            "the path of a socket has 107 bytes at most; choose a shorter one",
        ),
    ] {
        let api = format!("unix:{path}");
        let (code, said) = run(&[&flags[..flags.len() - 1], &[&api]].concat());
        assert_eq!(code, Some(1));
        assert_eq!(said, format!("entity-sync: can't listen on {api}: {told} (--api)\n"));
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"a letter");
}

#[test]
fn a_full_api_says_so_to_callers_and_operators() {
    let mut command = Command::new(binary());
    command.stderr(Stdio::piped()).env("ENTITY_SYNC_API_CONNECTIONS", "1");
    let mut process = Process::start_from(&mut command, ":memory:", &[]);
    let mut holder = TcpStream::connect(process.api).unwrap();
    holder.set_read_timeout(Some(entity_sync_tests::PATIENCE)).unwrap();
    holder
        .write_all(
            b"PUT /entities/items/1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n",
        )
        .unwrap();
    // Its body is waited for: a connection that had nothing to do would give way.
    assert!(holder.read(&mut [0; 512]).unwrap() > 0);
    let (status, error) = process.call("PUT", "/entities/items/1", "x");
    assert_eq!(status, 503, "{error}");
    assert!(error.contains("\"code\":\"too_many_connections\"") && error.contains("--api-connections"));
    assert_eq!(process.call("GET", "/healthz", "").0, 200);
    drop(holder);
    let counted = || {
        let (status, text) = process.call("GET", "/metrics", "");
        let has = |line: &str| text.lines().any(|it| it.starts_with(line));
        status == 200
            && has("# TYPE entity_sync_api_connections gauge")
            && has("entity_sync_api_connections ")
            && has("entity_sync_api_refused_connections_total ")
            && !has("entity_sync_api_refused_connections_total 0")
    };
    entity_sync_tests::wait_for("a place, and the numbers", counted);
    let mut log = String::new();
    let mut stderr = process.child.stderr.take().unwrap();
    process.end();
    stderr.read_to_string(&mut log).unwrap();
    assert_eq!(log.matches("all connections to the API are in use").count(), 1, "{log}");
}

#[test]
fn clients_leave_files_to_the_api() {
    // 128 files for the whole process, of which it reserves half for what isn't a client.
    let mut limited = Command::new("sh");
    limited.args(["-c", r#"ulimit -n 128; exec "$0" "$@""#]).arg(binary());
    let process = Process::start_from(&mut limited, ":memory:", &[]);
    let sockets: Vec<_> = (0..200).map(|_| TcpStream::connect(process.clients).unwrap()).collect();
    let mut client = None;
    for mut socket in sockets {
        // Those that found no place were dropped.
        socket.set_read_timeout(Some(entity_sync_tests::PATIENCE)).unwrap();
        let request = "GET /ws/entity-sync/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let upgraded = socket.write_all(request.as_bytes()).is_ok() && socket.read(&mut [0; 129]).is_ok_and(|n| n > 0);
        if upgraded && client.is_none() {
            client = Some(socket);
        }
        // Each is answered, one way or the other.
        process.put("1", "x");
    }
    assert!(client.is_some(), "not one client was served");
}
