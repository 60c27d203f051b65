use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::super::{Connections, Parts};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::store::{Location, Store};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves the API of an empty store for as long as the test runs.
async fn serve(change: impl FnOnce(&mut Limits)) -> SocketAddr {
    serve_counted(change).await.0
}

/// The same, with what it counts.
async fn serve_counted(change: impl FnOnce(&mut Limits)) -> (SocketAddr, Arc<Connections>) {
    let store = Store::open(&Location::Memory, |_| {}).expect("opens");
    let mut parts = Parts::new(Some(Arc::new(store)), Arc::new(|_| Ok(())));
    change(&mut parts.limits);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let connections = parts.connections.clone();
    tokio::spawn(Api::new(parts).listen(listener, std::future::pending()));
    (address, connections)
}

/// A connection on which this was sent.
async fn send(to: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("takes it");
    stream
}

/// Reads until the API closes the connection.
async fn rest(mut stream: TcpStream) -> String {
    let mut text = String::new();
    let read = timeout(PATIENCE, stream.read_to_string(&mut text)).await;
    read.expect("closed in time").expect("text");
    text
}

/// Reads until there is a whole answer to a health check.
async fn healthy(stream: &mut TcpStream) {
    let mut text = Vec::new();
    while !text.ends_with(br#"{"status":"ok"}"#) {
        let read = timeout(PATIENCE, stream.read_buf(&mut text)).await;
        let count = read.expect("answered in time").expect("readable");
        assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&text));
    }
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn of_too_many_connections_the_last_waits_for_a_place() {
    let api = serve(|limits| {
        limits.max_connections = 2;
        limits.reserved_connections = 0;
    })
    .await;
    let mut first = send(api, HEALTH).await;
    healthy(&mut first).await;
    let mut second = send(api, HEALTH).await;
    healthy(&mut second).await;
    let mut third = send(api, HEALTH).await;
    let early = timeout(Duration::from_millis(200), third.read_u8()).await;
    assert!(early.is_err(), "there was no place");
    drop(first);
    healthy(&mut third).await;
    // Those that have places keep them.
    second.write_all(HEALTH.as_bytes()).await.expect("takes it");
    healthy(&mut second).await;
}

#[tokio::test]
async fn without_a_place_there_are_only_health_checks() {
    let (api, connections) = serve_counted(|limits| {
        limits.max_connections = 1;
        limits.reserved_connections = 1;
    })
    .await;
    let mut first = send(api, HEALTH).await;
    healthy(&mut first).await;

    let put = "PUT /entities/a/b HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n";
    let with_body = format!("{put}1");
    let asks_first = put.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    let metrics = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    let nowhere = "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n";
    for request in [&with_body, &asks_first, metrics, nowhere] {
        let answer = rest(send(api, request).await).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(head.contains("connection: close"), "{head}");
        let error: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(
            error,
            serde_json::json!({ "error": {
                "code": "too_many_connections",
                "message": "all 1 connections that this server allows to its API are in use",
                "hint": "send the request again later; keep a pool of connections in your application and use them again, \
                         or raise --api-connections",
            }})
        );
    }
    for path in ["/healthz", "/readyz"] {
        let answer = rest(send(api, &HEALTH.replace("/healthz", path)).await).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
    assert_eq!((connections.open() > 0, connections.refused()), (true, 4));

    // Beyond the reserve, who connects waits.
    let idle = send(api, "").await;
    let mut waits = send(api, &with_body).await;
    let early = timeout(Duration::from_millis(200), waits.read_u8()).await;
    assert!(early.is_err(), "there was no place");
    assert_eq!(connections.open(), 2);
    // A place that is free again is as good as before.
    drop(first);
    let mut answer = [0; 12];
    let read = timeout(PATIENCE, waits.read_exact(&mut answer)).await;
    read.expect("answered in time").expect("readable");
    assert_eq!(&answer, b"HTTP/1.1 201");
    drop(idle);
}

#[tokio::test]
async fn a_body_without_a_place_is_read_before_it_is_answered() {
    let api = serve(|limits| limits.max_connections = 1).await;
    let mut first = send(api, HEALTH).await;
    healthy(&mut first).await;
    let parts = ["x", "y", "z"].map(|it| it.repeat(1000));
    let mut put = send(
        api,
        "PUT /entities/a/b HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n",
    )
    .await;
    for part in parts {
        // Were the connection closed by now, the system would break it off, and with it the answer.
        tokio::time::sleep(Duration::from_millis(50)).await;
        put.write_all(part.as_bytes()).await.expect("takes it");
    }
    let answer = rest(put).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_answered() {
    let api = serve(|limits| limits.body_time_limit = Duration::from_millis(50)).await;
    for request in [
        "PUT /entities/a/b HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
        "POST /notify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n",
    ] {
        let answer = rest(send(api, request).await).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
        assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
        assert!(head.contains("connection: close"), "{head}");
        let error: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(
            error,
            serde_json::json!({ "error": {
                "code": "slow_body",
                "message": "the body did not arrive within 50ms",
                "hint": "send the request again, with all of its body at once",
            }})
        );
    }
    // Nothing was written.
    let gone = rest(send(api, "GET /entities/a/b HTTP/1.0\r\n\r\n").await).await;
    assert!(gone.starts_with("HTTP/1.0 404 "), "{gone}");
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let api = serve(|limits| limits.head_time_limit = Duration::from_millis(50)).await;
    assert_eq!(rest(send(api, "GET /heal").await).await, "");
    // So does the next one on a connection that was of use.
    let answer = rest(send(api, HEALTH).await).await;
    assert!(answer.ends_with(r#"{"status":"ok"}"#), "{answer}");
}

#[tokio::test]
async fn who_never_reads_loses_its_place() {
    let api = serve(|limits| {
        limits.max_connections = 1;
        limits.write_time_limit = Duration::from_millis(100);
    })
    .await;
    let mut deaf = send(api, HEALTH).await;
    // Far more answers than the buffers of both ends take.
    let pipeline = HEALTH.repeat(10_000);
    let sending = async { while deaf.write_all(pipeline.as_bytes()).await.is_ok() {} };
    timeout(PATIENCE, sending).await.expect("closed in time");
    healthy(&mut send(api, HEALTH).await).await;
}

#[tokio::test]
async fn who_reads_slowly_is_waited_for() {
    let api = serve(|limits| limits.write_time_limit = Duration::from_secs(2)).await;
    let body = "x".repeat(1 << 20);
    let put = format!(
        "PUT /entities/a/b HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let stored = rest(send(api, &put).await).await;
    assert!(stored.starts_with("HTTP/1.0 201 "), "{stored}");
    // More than is sent ahead, read bit by bit for longer than the limit.
    let gets = 30;
    let mut slow = send(api, &"GET /entities/a/b HTTP/1.1\r\nHost: x\r\n\r\n".repeat(gets)).await;
    let mut buffer = vec![0; 1 << 20];
    let mut read = 0;
    while read < gets << 20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let count = timeout(PATIENCE, slow.read(&mut buffer)).await;
        let count = count.expect("in time").expect("not cut off");
        assert!(count > 0, "closed after {read} bytes");
        read += count;
    }
}
