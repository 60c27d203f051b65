use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use clap::Parser;
use entity_sync_mio::{AudienceRule, Config, Entities, EntityOptions, Reply, Request, Rows, Server};

use super::api::{Call, call};
use super::watch::{Watch, watch};
use super::*;
use crate::api::{Address, Api, Parts, Token, UnixSocket};
use crate::store::{Location, Store};

#[derive(Parser)]
struct Calls {
    #[command(subcommand)]
    call: Call,
}

#[derive(Parser)]
struct Watches {
    #[command(flatten)]
    watch: Watch,
}

/// What a call prints, or what its user is told.
fn say(args: &[&str], input: &[u8]) -> Result<String, String> {
    let calls = Calls::try_parse_from([&["entity-sync"], args].concat()).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    call(&calls.call, &mut &input[..], &mut out).map_err(|error| error.to_string())?;
    Ok(String::from_utf8(out).expect("text"))
}

/// Serves the API on a free port for as long as the test runs.
fn serve(token: Option<&str>) -> String {
    serve_at(None, token)
}

/// Or at a socket.
fn serve_at(socket: Option<&Path>, token: Option<&str>) -> String {
    let (told, address) = mpsc::channel();
    let socket = socket.map(Path::to_owned);
    let token = token.and_then(Token::new);
    std::thread::spawn(move || {
        let store = Arc::new(Store::open(&Location::Memory, |_| {}).expect("opens"));
        let mut parts = Parts::new(Some(store), Arc::new(|_| Ok(())));
        parts.token = token;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async move {
            let api = Api::new(parts);
            if let Some(path) = socket {
                let listener = UnixSocket::bind(&path).expect("a socket");
                let _ = told.send(Address::Unix(path).to_string());
                return api.listen(listener, std::future::pending()).await;
            }
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let _ = told.send(listener.local_addr().expect("an address").to_string());
            api.listen(listener, std::future::pending()).await;
        });
    });
    address.recv().expect("it serves")
}

#[test]
fn calls_do_what_they_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let api = serve(None);
    calls_do_what_they_say_at(&api, &format!("http://{api}/"));
    let api = serve_at(Some(&folder.path().join("api")), None);
    calls_do_what_they_say_at(&api, &api);
}

fn calls_do_what_they_say_at(api: &str, url: &str) {
    let ok = |text: &str| Ok(text.to_owned());
    assert_eq!(
        say(&["put", "items/a/b %2F é", "{}", "--api", api], b""),
        ok("created\n")
    );
    assert_eq!(say(&["put", "items/a/b %2F é", "--api", url], b"[1]"), ok("replaced\n"));
    assert_eq!(say(&["get", "items/a/b %2F é", "--api", api], b""), ok("[1]\n"));
    assert_eq!(say(&["put", "items/1", "-", "--api", api], b"x\n"), ok("created\n"));
    assert_eq!(say(&["get", "items/1", "--api", api], b""), ok("x\n"));
    assert_eq!(say(&["delete", "items/1", "--api", api], b""), ok("deleted\n"));
    assert_eq!(
        say(&["notify", "items/1", "items/2", "--api", api], b""),
        ok("accepted 2\n")
    );
    for (args, input, said) in [
        (
            &["get", "items/1"][..],
            &b""[..],
            "nothing is stored under this entity and id: PUT it first; both are case-sensitive",
        ),
        (
            &["put", "items/1"],
            b"",
            "the body is empty: send the entity's new content, usually JSON, or use DELETE to remove it",
        ),
        (
            &["put", "items/1"],
            b"\xff",
            "the body is not UTF-8 text; encode binary content, such as with base64",
        ),
    ] {
        assert_eq!(say(&[args, &["--api", api]].concat(), input), Err(said.to_owned()));
    }
}

#[test]
fn errors_of_calls_say_what_to_do() {
    for bad in ["items", "items/", "/1", ""] {
        let said = say(&["get", bad], b"").expect_err("refused");
        let text = "write an entity and an id with a slash between them, such as items/100";
        assert!(said.contains(text), "{said}");
    }
    for bad in [
        "127.0.0.1",
        "a b:1",
        "127.0.0.1:1/x",
        "https://",
        "https://a/x",
        "ftp://127.0.0.1:1",
        "unix:",
        &format!("unix:/{}", "x".repeat(200)),
    ] {
        assert_eq!(
            say(&["get", "items/1", "--api", bad], b""),
            Err(format!(
                "{bad:?} is not a valid API address: write a host and a port, such as 127.0.0.1:8081, or \
                 https://sync.example.com for TLS, or unix:/run/entity-sync/api.sock for a socket (--api)"
            ))
        );
    }
    let nobody = TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("an address")
        .to_string();
    let url = "unix:/run/api".to_owned();
    assert_eq!(
        ClientError::NotAllowed { url }.to_string(),
        "this user may not connect to unix:/run/api: do it as the socket's owner or as a member of its group"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let socket = format!("unix:{}/api", folder.path().display());
    assert_eq!(
        say(&["get", "items/1", "--api", &socket], b""),
        Err(format!(
            "no server answers at {socket} (No such file or directory (os error 2)); start one with: entity-sync, or name \
             another with --api"
        ))
    );
    let said = say(&["get", "items/1", "--api", &nobody], b"").expect_err("nobody answers");
    assert!(
        said.starts_with(&format!("no server answers at http://{nobody} (")),
        "{said}"
    );
    assert!(
        said.ends_with("start one with: entity-sync, or name another with --api"),
        "{said}"
    );
    let said = say(&["get", "items/1", "--api-token-file=/nowhere/token"], b"").expect_err("no file");
    assert_eq!(
        said,
        "/nowhere/token can't be read: No such file or directory (os error 2)"
    );
}

#[test]
fn tokens_are_sent() {
    let token = Some("0123456789abcdef");
    tokens_are_sent_to(&serve(token));
    let folder = tempfile::tempdir().expect("a folder");
    tokens_are_sent_to(&serve_at(Some(&folder.path().join("api")), token));
}

fn tokens_are_sent_to(api: &str) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let args = |token: &str| {
        std::fs::write(file.path(), token).expect("written");
        let path = file.path().to_str().expect("text");
        say(&["put", "items/1", "{}", "--api", api, "--api-token-file", path], b"")
    };
    assert_eq!(args("0123456789abcdef\n"), Ok("created\n".to_owned()));
    assert_eq!(
        args("0123456789abcdeg"),
        Err("the request does not carry the API's token: send the header Authorization: Bearer and the line that is in \
             the server's --api-token-file"
            .to_owned())
    );
    assert_eq!(
        args("a\nb"),
        Err(
            "the token can't be sent: the file must hold one line of visible ASCII characters (--api-token-file)"
                .to_owned()
        )
    );
}

/// Sends each line that is written.
struct Lines(Vec<u8>, Sender<String>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for &byte in bytes {
            if byte == b'\n' {
                let line = String::from_utf8(std::mem::take(&mut self.0)).expect("text");
                // As a pipe whose reader has gone.
                self.1.send(line).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
            } else {
                self.0.push(byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

type Watching = std::thread::JoinHandle<Result<(), String>>;

fn watching(args: &[&str]) -> (Receiver<String>, Receiver<String>, Watching) {
    let watches = Watches::try_parse_from([&["watch"], args].concat()).expect("valid");
    let ((row, rows), (status, statuses)) = (mpsc::channel(), mpsc::channel());
    let run = move || {
        let (mut out, mut err) = (Lines(Vec::new(), row), Lines(Vec::new(), status));
        watch(&watches.watch, &mut out, &mut err).map_err(|error| error.to_string())
    };
    (rows, statuses, std::thread::spawn(run))
}

/// A server that answers a subscription with the key and, unless it is public, the secret.
fn server(listen: &str) -> Server {
    let mut config = Config::new([listen.parse().expect("an address")]);
    // Snapshots are off: that the present state comes, the client has asked for.
    let mut options = EntityOptions::default();
    options.audience = AudienceRule::BySecret;
    config.core.entities = Entities::any(options);
    let read = |request: Request, reply: Reply| {
        let secret = match &request.audience {
            entity_sync_mio::Audience::Secret(secret) => secret.to_string(),
            _ => String::new(),
        };
        let _ = reply.rows(Rows::one(format!("{} for {secret}", request.key.id())));
    };
    Server::start(config, read).expect("starts")
}

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn watch_prints_rows_and_comes_back() {
    let first = server("127.0.0.1:0");
    let address = first.addresses()[0].to_string();
    let url = format!("ws://{address}/ws/entity-sync/");
    let secret = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(secret.path(), "me\n").expect("written");
    let path = secret.path().to_str().expect("text");
    let (rows, statuses, thread) = watching(&[&url, "items/100", "--secret-file", path]);
    let next = |from: &Receiver<String>| from.recv_timeout(PATIENCE).expect("a line");
    assert_eq!(next(&rows), "100 for me");
    assert_eq!(next(&statuses), format!("watching items/100 on {url}"));
    first.shutdown(Duration::from_secs(5));
    let line = next(&statuses);
    assert!(
        line.starts_with("disconnected (closed with 1001), trying again in 0."),
        "{line}"
    );
    let second = server(&address);
    assert_eq!(next(&rows), "100 for me");
    // Whoever reads the rows has gone, which it notices with the next one.
    drop(rows);
    let key = EntityKey::new("items", "100").expect("short");
    second.handle().notify(&key).expect("every name is an entity");
    assert_eq!(thread.join().expect("no panic"), Ok(()));
}

#[test]
fn watch_says_what_the_server_would_not_push() {
    let server = server("127.0.0.1:0");
    let url = format!("ws://{}/ws/entity-sync/", server.addresses()[0]);
    let keys: Vec<_> = (0..1001).map(|it| format!("items/{it}")).collect();
    let args: Vec<&str> = [&*url].into_iter().chain(keys.iter().map(|it| &**it)).collect();
    let said = watching(&args).2.join().expect("no panic");
    let told = "1001 keys are more than the server allows one connection to subscribe to, which is 1000; watch fewer at once, or \
                start the server with a higher --max-subscriptions";
    assert_eq!(said, Err(told.to_owned()));
    let long = format!("items/{}", "x".repeat(1020));
    let said = watching(&[&url, &long]).2.join().expect("no panic");
    assert!(said.is_err_and(|it| it.ends_with("which is 1024 bytes; start the server with a higher --max-key-bytes")));
}

#[test]
fn refusals_of_large_bodies_are_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("api");
    for api in [&serve(None), &serve_at(Some(&path), None)] {
        for bytes in [(1 << 20) + 1, 2 << 20, 20 << 20] {
            let said = say(&["put", "items/1", "--api", api], &vec![b'x'; bytes]);
            let told = "the body is larger than 1048576 bytes: send less at once";
            assert_eq!(said, Err(told.to_owned()), "{bytes} bytes to {api}");
        }
    }
}

#[test]
fn what_keeps_watch_from_connecting_is_said() {
    let server = server("127.0.0.1:0");
    let end = |url: &str| watching(&[url, "items/100"]).2.join().expect("no panic");
    let url = format!("ws://{}/nope", server.addresses()[0]);
    assert_eq!(
        end(&url),
        Err(format!(
            "{url} has no WebSocket (404); the path is /ws/entity-sync/ unless the server was given another"
        ))
    );
    for url in ["http://127.0.0.1:1/", "wss://", "127.0.0.1:8080", "", "ws://"] {
        assert_eq!(
            end(url),
            Err(format!(
                "{url:?} is no address of a WebSocket; write one such as ws://127.0.0.1:8080/ws/entity-sync/, or wss:// \
                 for TLS"
            ))
        );
    }
}

/// Ends TLS in front of `server` for as long as the test runs. Gives the address and the certificate, in PEM.
fn behind_tls(server: &str) -> (String, String) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let secret = rustls::pki_types::PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], secret)
        .expect("a good one");
    let (told, port) = mpsc::channel();
    let server = server.to_owned();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let _ = told.send(listener.local_addr().expect("an address").port());
            loop {
                let (client, _) = listener.accept().await.expect("a client");
                // One that doesn't trust it goes away.
                let Ok(mut client) = acceptor.accept(client).await else {
                    continue;
                };
                let mut behind = tokio::net::TcpStream::connect(&server).await.expect("the server");
                tokio::spawn(async move {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut behind).await;
                });
            }
        });
    });
    let port = port.recv().expect("it serves");
    (format!("localhost:{port}"), certified.cert.pem())
}

#[test]
fn tls_is_spoken_and_certificates_are_checked() {
    let file = |text: &str| {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        file
    };
    let (address, certificate) = behind_tls(&serve(None));
    let (right, api) = (file(&certificate), format!("https://{address}"));
    let (_, other) = behind_tls("127.0.0.1:1");
    let wrong = file(&other);
    let path = |file: &tempfile::NamedTempFile| file.path().to_str().expect("text").to_owned();
    let put = |ca: &str| say(&["put", "items/1", "{}", "--api", &api, "--ca", ca], b"");
    assert_eq!(put(&path(&right)), Ok("created\n".to_owned()));

    let server = server("127.0.0.1:0");
    let (address, certificate) = behind_tls(&server.addresses()[0].to_string());
    let (right, url) = (file(&certificate), format!("wss://{address}/ws/entity-sync/"));
    let (rows, statuses, thread) = watching(&[&url, "items/100", "--ca", &path(&right)]);
    assert_eq!(rows.recv_timeout(PATIENCE).expect("a line"), "100 for ");
    drop(rows);
    server
        .handle()
        .notify(&EntityKey::new("items", "100").expect("short"))
        .expect("known");
    assert_eq!(thread.join().expect("no panic"), Ok(()));
    drop(statuses);

    let watched = |args: &[&str]| {
        watching(&[&[&url[..], "items/100"], args].concat())
            .2
            .join()
            .expect("no panic")
    };
    for (said, url) in [
        (put(&path(&wrong)), &api),
        (say(&["get", "items/1", "--api", &api], b""), &api),
        (watched(&["--ca", &path(&wrong)]).map(|()| String::new()), &url),
        (watched(&[]).map(|()| String::new()), &url),
    ] {
        let said = said.expect_err("not trusted");
        assert!(
            said.starts_with(&format!("the certificate of {url} is not trusted (")),
            "{said}"
        );
        assert!(said.contains("give that authority's certificate with --ca"), "{said}");
    }
    for (text, reason) in [
        ("", "there is none in it"),
        ("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", ""),
        ("-----BEGIN CERTIFICATE-----\n", ""),
    ] {
        let bad = path(&file(text));
        std::fs::write(&bad, text).expect("written");
        for said in [put(&bad), watched(&["--ca", &bad]).map(|()| String::new())] {
            let said = said.expect_err("refused");
            assert!(said.starts_with(&format!("{bad} can't be used: {reason}")), "{said}");
            assert!(said.contains("it must hold one certificate or more in PEM"), "{said}");
        }
        std::fs::remove_file(&bad).expect("there");
    }
    let said = put("/nowhere/ca.pem").expect_err("no file");
    assert_eq!(
        said,
        "/nowhere/ca.pem can't be read: No such file or directory (os error 2)"
    );
}

/// Answers one request with these bytes.
fn answers(bytes: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().expect("a client");
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(bytes.as_bytes());
    });
    address
}

#[test]
fn servers_that_are_not_ours_are_told_apart() {
    let api = answers("HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops");
    assert_eq!(
        say(&["get", "items/1", "--api", &api], b""),
        Err(format!(
            "no server answers at http://{api} (it answered 500 Internal Server Error, but not as an Entity Sync API); \
             start one with: entity-sync, or name another with --api"
        ))
    );
    let url = format!("ws://{}/", answers("HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n"));
    let end = watching(&[&url, "items/100"]).2.join().expect("no panic");
    assert_eq!(end, Err(format!("{url} refuses a WebSocket (403)")));
}

#[test]
fn a_refusal_that_may_pass_is_waited_for() {
    use std::io::{Read, Write};
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("ws://{}/", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for status in [408, 425, 429, 503, 403] {
            let (mut stream, _) = listener.accept().expect("a client");
            let _ = stream.read(&mut [0; 4096]);
            let answer = format!("HTTP/1.1 {status} No\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let (_rows, statuses, thread) = watching(&[&url, "items/100"]);
    for status in [408, 425, 429, 503] {
        let said = statuses.recv_timeout(PATIENCE).expect("a line");
        assert_eq!(
            said,
            format!("disconnected (it answers {status}), trying again in 0.0 s")
        );
    }
    let end = thread.join().expect("no panic");
    assert_eq!(end, Err(format!("{url} refuses a WebSocket (403)")));
}

#[test]
fn what_can_not_be_printed_is_an_error() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let api = serve(None);
    let calls = Calls::try_parse_from(["entity-sync", "put", "items/1", "{}", "--api", &api]).expect("valid");
    let said = call(&calls.call, &mut std::io::empty(), &mut Full).map_err(|error| error.to_string());
    assert_eq!(said, Err("can't write: no storage space".to_owned()));
}
