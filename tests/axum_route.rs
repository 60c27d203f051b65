//! The route for axum and hyper, in whatever way its clients come. What clients say and hear then is in `conformance`.

use std::future::{Future, IntoFuture, poll_fn};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use bytes::Bytes;
use entity_sync_axum::{Peer, Secret, Upgrader};
use entity_sync_mio::{Audience, Config, EntityKey, Origins, Reply, Rows, Server};
use entity_sync_tests::{Client, PATIENCE, talk, wait_for};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio_rustls::rustls;

use crate::conformance::case::{REQUEST, frame, masked};
use crate::door::{Door, runtime};

const SUBSCRIBE: &str = r#"{"action":"subscribe","body":{"id":"100","entity":"items"}}"#;

fn key() -> EntityKey {
    EntityKey::new("items", "100").unwrap()
}

/// A server that listens to nothing and whose rows are the secrets of those who read them.
fn server(change: impl FnOnce(&mut Config)) -> Server {
    let mut config = Config::new([]);
    change(&mut config);
    Server::start(config, |request: entity_sync_mio::Request, reply: Reply| {
        let Audience::Secret(secret) = request.audience else {
            panic!("an audience that nobody configured")
        };
        reply.rows(Rows::one(format!("for {secret:?}"))).unwrap();
    })
    .unwrap()
}

/// Serves the route, behind a middleware that lets nobody in without a name, and says who it is.
fn serve(runtime: &Runtime, upgrader: &Upgrader) -> SocketAddr {
    async fn authenticate(mut request: Request, next: Next) -> Result<Response, StatusCode> {
        let name = request.headers().get("x-name").ok_or(StatusCode::UNAUTHORIZED)?;
        let secret = Secret::new(name.to_str().unwrap());
        request.extensions_mut().insert(secret);
        Ok(next.run(request).await)
    }
    let app = Router::new()
        .route("/ws", upgrader.route())
        .layer(from_fn(authenticate));
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(axum::serve(listener, app).into_future());
    address
}

/// What is answered to a request, up to the end of its head and this text.
fn exchange(address: SocketAddr, request: &str, text: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let response = talk(&mut stream, format!("\r\n\r\n{text}").as_bytes());
    (stream, String::from_utf8(response).unwrap())
}

#[test]
fn requests_are_answered_as_by_the_reactors() {
    let server = server(|config| config.core.upgrade.origins = Origins::List(vec!["https://a.example".to_owned()]));
    let runtime = runtime();
    let address = serve(&runtime, &Upgrader::new(server.handle()));
    let good = REQUEST
        .replace("/ws/entity-sync/", "/ws")
        .replace("Host", "X-Name: me\r\nHost");
    let with = |old: &str, new: &str| {
        assert!(good.contains(old));
        good.replace(old, new)
    };
    let bad = "Bad Request\n";
    #[rustfmt::skip]
    let rows = [
        (good.clone(), 101, ""),
        (with("GET /ws ", "GET /ws?a=b "), 101, ""),
        (with("GET /ws ", "GET http://a.example/ws?a=b "), 101, ""),
        (with("X-Name: me", "X-Name: me\r\nOrigin: HTTPS://A.example"), 101, ""),
        (with("X-Name: me", "X-Name: me\r\nOrigin: https://b.example"), 403, "Forbidden\n"),
        (with("X-Name: me", "X-Name: me\r\nOrigin: http://127.0.0.1:8081"), 403, "Forbidden\n"),
        (with("Connection: Upgrade", "Connection: keep-alive"), 400, bad),
        (with("Upgrade: websocket", "Upgrade: h2c"), 400, bad),
        (with("Version: 13", "Version: 8"), 400, bad),
        (with("ozdXINuS7gRXM2loRNMN8Q==", "short"), 400, bad),
        (with("Sec-WebSocket-Key", "X-Key"), 400, bad),
        (with("X-Name: me", "X-Name: me\r\nContent-Length: 3") + "abc", 400, bad),
        (with("GET", "POST").replace("X-Name: me", "X-Name: me\r\nContent-Length: 0"), 405, "Method Not Allowed\n"),
        // The middleware's.
        (with("X-Name: me\r\n", ""), 401, ""),
    ];
    for (request, status, text) in rows {
        let (_, response) = exchange(address, &request, text);
        assert_eq!(response[9..12].parse(), Ok(status), "{request}");
        assert_eq!(
            response.contains("sec-websocket-version: 13"),
            [400, 403, 405].contains(&status)
        );
        if status == 101 {
            assert!(response.contains("sec-websocket-accept: ZYud57x53lMRng1FXzD2lkbc7o0=\r\n"));
        }
    }
}

#[test]
fn the_middleware_says_who_it_is_and_nobody_else() {
    for door in [Door::Axum, Door::AxumGuest] {
        let server = server(|_| {});
        let open = door.open_with(&server, |router| {
            router.layer(from_fn(|mut request: Request, next: Next| {
                request.extensions_mut().insert(Secret::new("by cookie"));
                next.run(request)
            }))
        });
        let mut client = Client::connect(open.address);
        client.secret("another");
        client.subscribe("items", "100");
        client.sync();
        server.handle().notify(&key()).unwrap();
        assert_eq!(client.row(), r#"for "by cookie""#);
        assert_eq!(client.sync(), [""; 0]);
        // The client answers its close frame only afterwards.
        server.shutdown(Duration::from_millis(200));
        assert_eq!(client.close_code(), Some(1001), "{door:?}");
        assert_answered(open.address, "503");
    }
}

fn assert_answered(address: SocketAddr, status: &str) {
    let (_, response) = exchange(address, REQUEST, "");
    assert_eq!(&response[9..12], status);
}

#[test]
fn a_full_server_says_so_and_limits_hold_for_addresses() {
    for door in [Door::Axum, Door::AxumGuest] {
        let server = server(|config| {
            config.core.max_connections = 2;
            config.core.max_connections_per_address = 1;
        });
        let open = door.open_with(&server, |router| {
            router.layer(from_fn(|mut request: Request, next: Next| {
                // As a proxy would say it.
                if let Some(address) = request.headers().get("origin") {
                    let address = address.to_str().unwrap().trim_start_matches("http://").parse().unwrap();
                    request.extensions_mut().insert(Peer(address));
                    request.headers_mut().remove("origin");
                }
                next.run(request)
            }))
        });
        let connect = |from: &str| {
            let request = REQUEST.replace("Host", &format!("Origin: http://{from}\r\nHost"));
            exchange(open.address, &request, "").0
        };
        let first = connect("10.0.0.1");
        wait_for("the first", || server.handle().shard_counts().connections == 1);
        // The second of one address is dropped; one of another is let in.
        assert_eq!(talk(&mut connect("10.0.0.1"), b"never"), b"");
        let second = connect("10.0.0.2");
        wait_for("the second", || server.handle().shard_counts().connections == 2);
        assert_answered(open.address, "503");
        drop((first, second));
        wait_for("both to leave", || server.handle().shard_counts().connections == 0);
        assert_answered(open.address, "101");
    }
}

/// Speaks the protocol over any stream: subscribes, is pushed a row and closes.
async fn speak(server: &Server, stream: &mut (impl AsyncRead + AsyncWrite + Unpin), expected: &str) {
    stream.write_all(&masked(0x81, SUBSCRIBE.as_bytes())).await.unwrap();
    stream.write_all(&masked(0x89, b"?")).await.unwrap();
    stream.flush().await.unwrap();
    let pong = b"\x8a\x01?";
    let mut received = [0; 3];
    stream.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, pong);
    let handle = server.handle().clone();
    tokio::task::spawn_blocking(move || handle.notify(&key()).unwrap())
        .await
        .unwrap();
    let row = frame(expected.as_bytes());
    let mut received = vec![0; row.len()];
    stream.read_exact(&mut received).await.unwrap();
    assert_eq!(received, row);
    // A polite goodbye is answered, and then the stream ends.
    stream.write_all(&masked(0x88, &1000_u16.to_be_bytes())).await.unwrap();
    stream.flush().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"\x88\x02\x03\xe8");
}

/// Reads a response's head.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn within<T>(runtime: &Runtime, future: impl Future<Output = T>) -> T {
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.unwrap() })
}

#[test]
fn plain_hyper_hands_over_too() {
    let server = server(|_| {});
    let upgrader = Upgrader::new(server.handle());
    let runtime = runtime();
    within(&runtime, async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
                let response: http::Response<Full<Bytes>> = upgrader.upgrade(&mut request);
                std::future::ready(Ok::<_, std::convert::Infallible>(response))
            });
            let http = hyper::server::conn::http1::Builder::new();
            http.serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await
                .unwrap();
        });
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(REQUEST.as_bytes()).await.unwrap();
        assert!(head(&mut stream).await.starts_with("HTTP/1.1 101 "));
        speak(&server, &mut stream, r#"for """#).await;
    });
    assert_eq!(server.handle().reactor_counts().adopted, 1);
}

#[test]
fn without_upgrades_it_says_what_is_wrong() {
    let server = server(|_| {});
    let upgrader = Upgrader::new(server.handle());
    let request = axum::http::Request::get("/ws")
        .header("host", "x")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "ozdXINuS7gRXM2loRNMN8Q==");
    let response: Response<String> = upgrader.upgrade(&mut request.body(Body::empty()).unwrap());
    assert_eq!(response.status(), 426);
    assert!(response.body().contains("is not served with upgrades"));
}

#[test]
fn tls_that_ends_in_the_process() {
    let server = server(|_| {});
    let upgrader = Upgrader::new(server.handle());
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = certified.cert.der().clone();
    let secret = rustls::pki_types::PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let accept = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], secret)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let connect = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let runtime = runtime();
    within(&runtime, async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(accept));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let stream = acceptor.accept(stream).await.unwrap();
                let app = Router::new().route("/ws/entity-sync/", upgrader.route());
                let service = hyper_util::service::TowerToHyperService::new(app);
                tokio::spawn(async move {
                    let http = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
                    http.serve_connection_with_upgrades(TokioIo::new(stream), service)
                        .await
                        .unwrap();
                });
            }
        });
        let connector = tokio_rustls::TlsConnector::from(Arc::new(connect));
        for _ in 0..3 {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let name = "localhost".try_into().unwrap();
            let mut stream = connector.connect(name, stream).await.unwrap();
            stream.write_all(REQUEST.as_bytes()).await.unwrap();
            assert!(head(&mut stream).await.starts_with("HTTP/1.1 101 "));
            speak(&server, &mut stream, r#"for """#).await;
        }
    });
    assert_eq!(server.handle().reactor_counts().adopted, 0);
}

/// One HTTP/2 connection with a WebSocket in each of two streams.
#[test]
fn http_2() {
    let server = server(|_| {});
    let runtime = runtime();
    let address = serve(&runtime, &Upgrader::new(server.handle()));
    within(&runtime, async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        let mut connection = Box::pin(connection);
        // The settings that allow it come first.
        while !client.is_extended_connect_protocol_enabled() {
            poll_fn(|cx| {
                let _ = connection.as_mut().poll(cx);
                std::task::Poll::Ready(())
            })
            .await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::spawn(connection);
        let request = |origin: &str| {
            let request = http::Request::builder()
                .method("CONNECT")
                .uri(format!("http://{address}/ws"))
                .version(http::Version::HTTP_2)
                .extension(h2::ext::Protocol::from_static("websocket"))
                .header("sec-websocket-version", "13")
                .header("x-name", "me")
                .header("origin", origin);
            request.body(()).unwrap()
        };
        let same = format!("https://{address}");
        for origin in [&*same, &same] {
            let (response, mut send) = client.send_request(request(origin), false).unwrap();
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers().get("sec-websocket-accept"), None);
            let mut body = response.into_body();
            let hello = [masked(0x81, SUBSCRIBE.as_bytes()), masked(0x89, b"?")].concat();
            send.send_data(hello.into(), false).unwrap();
            let mut received = Vec::new();
            let expected = frame(br#"for "me""#);
            while received != [b"\x8a\x01?", &*expected].concat() {
                let data = body.data().await.unwrap().unwrap();
                received.extend_from_slice(&data);
                if received == b"\x8a\x01?" {
                    server.handle().notify(&key()).unwrap();
                }
            }
            send.send_data(masked(0x88, &1000_u16.to_be_bytes()).into(), false)
                .unwrap();
            let mut rest = Vec::new();
            while let Some(data) = body.data().await {
                rest.extend_from_slice(&data.unwrap());
            }
            assert_eq!(rest, b"\x88\x02\x03\xe8", "and then the stream ends");
        }
        let (response, _) = client.send_request(request("https://b.example"), false).unwrap();
        assert_eq!(response.await.unwrap().status(), 403);
    });
}

/// The runtime on which a guest lives may end before the server: its connections end, and another may take its place.
#[test]
fn a_runtime_that_ends_gives_its_guest_back() {
    let server = server(|_| {});
    let upgrader = Upgrader::new(server.handle());
    for _ in 0..2 {
        let runtime = runtime();
        let open = Door::AxumGuest.open_on(runtime, &upgrader, |router| router);
        let mut client = Client::connect(open.address);
        client.subscribe("items", "100");
        client.sync();
        server.handle().notify(&key()).unwrap();
        assert_eq!(client.row(), r#"for """#);
        drop(open);
        wait_for("the connection to be forgotten", || {
            server.handle().shard_counts().connections == 0 && server.handle().flights() == 0
        });
    }
    assert!(server.handle().take_guest().is_some());
}

/// Whoever takes a guest and doesn't drive it can't hold up the server for longer than it was told to wait.
#[test]
fn a_guest_that_nobody_drives_is_waited_for_no_longer_than_said() {
    let server = server(|_| {});
    let handle = server.handle().clone();
    let guest = handle.take_guest().unwrap();
    assert!(handle.take_guest().is_none());
    let (done, is_done): (_, Receiver<()>) = mpsc::channel();
    std::thread::spawn(move || {
        server.shutdown(Duration::from_millis(50));
        done.send(()).unwrap();
    });
    is_done.recv_timeout(PATIENCE).unwrap();
    drop(guest);
    assert!(handle.take_guest().is_none(), "after the end");
}
