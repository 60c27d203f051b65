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

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A connection whose request is being read, until [`finish`].
async fn busy(api: SocketAddr) -> TcpStream {
    let mut stream = send(
        api,
        "PUT /entities/busy/1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
    )
    .await;
    let mut answer = [0; 25];
    let read = timeout(PATIENCE, stream.read_exact(&mut answer)).await;
    read.expect("answered in time").expect("readable");
    assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream
}

/// The beginning of what is answered.
async fn status(stream: &mut TcpStream) -> String {
    let mut answer = [0; 12];
    let read = timeout(PATIENCE, stream.read_exact(&mut answer)).await;
    read.expect("answered in time").expect("readable");
    String::from_utf8(answer.into()).expect("text")
}

async fn finish(stream: &mut TcpStream) {
    stream.write_all(b"abc").await.expect("takes it");
    assert!(status(stream).await.starts_with("HTTP/1.1 20"));
}

/// The status and the code of an answer that says no, which must be in the one shape.
fn error_of(answer: &str) -> (u16, String) {
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {answer:?}"));
    assert!(head.contains("content-type: application/json"), "{head}");
    let json: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let error = json["error"].as_object().expect("an error");
    assert!(error["message"].is_string() && error["hint"].is_string(), "{body}");
    let status = head.get(9..12).and_then(|it| it.parse().ok()).expect("a status");
    (status, error["code"].as_str().expect("a code").to_owned())
}

#[tokio::test]
async fn of_too_many_busy_connections_the_last_waits_for_a_place() {
    let api = serve(|limits| {
        limits.max_connections = 2;
        limits.reserved_connections = 0;
    })
    .await;
    let (mut first, mut second) = (busy(api).await, busy(api).await);
    let mut third = send(api, HEALTH).await;
    let early = timeout(Duration::from_millis(200), third.read_u8()).await;
    assert!(early.is_err(), "there was no place");
    finish(&mut first).await;
    healthy(&mut third).await;
    // Those that are busy keep their places.
    finish(&mut second).await;
}

#[tokio::test]
async fn connections_that_have_nothing_to_do_give_way() {
    let (api, connections) = serve_counted(|limits| {
        limits.max_connections = 3;
        limits.reserved_connections = 1;
    })
    .await;
    let mut kept = send(api, HEALTH).await;
    healthy(&mut kept).await;
    let mut idle = Vec::new();
    for count in 0..40 {
        // Silent ones, and ones with half a head.
        idle.push(send(api, if count % 2 == 0 { "" } else { "GET /healthz HT" }).await);
        let answer = rest(send(api, &HEALTH.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    }
    let put = "PUT /entities/a/b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 1\r\n\r\n1";
    let answer = rest(send(api, put).await).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer:?}");
    assert_eq!(connections.refused(), 0);
    assert!(connections.closed_for_others() >= 30, "{connections:?}");
    // One that was of use is the last to go.
    kept.write_all(HEALTH.as_bytes()).await.expect("takes it");
    healthy(&mut kept).await;
}

#[tokio::test]
async fn without_a_place_there_are_only_health_checks() {
    let (api, connections) = serve_counted(|limits| {
        limits.max_connections = 1;
        limits.reserved_connections = 1;
    })
    .await;
    let mut first = busy(api).await;

    let put = "PUT /entities/a/b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n";
    let with_body = format!("{put}1");
    let asks_first = put.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    let metrics = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let nowhere = "GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for request in [&with_body, &asks_first, metrics, nowhere] {
        let answer = rest(send(api, request).await).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(
            head.contains("connection: close") && head.contains("retry-after: 1"),
            "{head}"
        );
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

    // One that says nothing keeps nobody from the reserve.
    let _idle = send(api, "").await;
    let answer = rest(send(api, &with_body).await).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    // A place that is free again is as good as before.
    finish(&mut first).await;
    drop(first);
    let mut again = send(api, &with_body).await;
    assert_eq!(status(&mut again).await, "HTTP/1.1 201");
}

#[tokio::test]
async fn a_body_without_a_place_is_read_away() {
    let api = serve(|limits| limits.max_connections = 1).await;
    let _first = busy(api).await;
    let parts = ["x", "y", "z"].map(|it| it.repeat(1000));
    let mut put = send(
        api,
        "PUT /entities/a/b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000\r\n\r\n",
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

/// Sends a head and then so much of a body, as programs do that read nothing before they have sent all.
async fn refused<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, head: &str, bytes: usize) -> (u16, String) {
    let sent = async {
        stream.write_all(head.as_bytes()).await?;
        for _ in 0..bytes / 8192 {
            stream.write_all(&[b'x'; 8192]).await?;
        }
        stream.write_all(&vec![b'x'; bytes % 8192]).await
    };
    timeout(PATIENCE, sent)
        .await
        .expect("in time")
        .expect("all of it is taken");
    let mut text = String::new();
    let read = timeout(PATIENCE, stream.read_to_string(&mut text)).await;
    read.expect("closed in time").expect("not broken off");
    error_of(&text)
}

#[tokio::test]
async fn refusals_of_large_bodies_arrive() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("api");
    let store = Store::open(&Location::Memory, |_| {}).expect("opens");
    let parts = Parts::new(Some(Arc::new(store)), Arc::new(|_| Ok(())));
    let socket = super::super::UnixSocket::bind(&path).expect("bound");
    tokio::spawn(Api::new(parts).listen(socket, std::future::pending()));
    let api = serve(|_| {}).await;
    let (exact, large) = ((1 << 20) + 1, 12 << 20);
    for (line, field, bytes, expected) in [
        ("PUT /entities/items/1", "X: y", exact, (413, "too_large")),
        ("PUT /entities/items/1", "X: y", large, (413, "too_large")),
        ("PUT /entities/items/%zz", "X: y", large, (400, "bad_path")),
        ("PUT /entities/items/1", "Origin: null", large, (403, "web_page")),
        ("PUT /nowhere", "X: y", large, (404, "no_such_path")),
        ("POST /entities/items/1", "X: y", large, (405, "method_not_allowed")),
        ("POST /notify", "X: y", large, (413, "too_large")),
    ] {
        let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{field}\r\nContent-Length: {bytes}\r\n\r\n");
        let tcp = TcpStream::connect(api).await.expect("connects");
        let expected = (expected.0, expected.1.to_owned());
        assert_eq!(refused(tcp, &head, bytes).await, expected, "{line}");
        let unix = tokio::net::UnixStream::connect(&path).await.expect("connects");
        assert_eq!(refused(unix, &head, bytes).await, expected, "{line} over a socket");
    }
}

#[tokio::test]
async fn what_can_not_be_read_is_answered_in_the_same_shape() {
    let api = serve(|_| {}).await;
    let with = |field: &str| HEALTH.replace("\r\n\r\n", &format!("\r\n{field}\r\n\r\n"));
    for (request, expected) in [
        ("hello\r\n\r\n".to_owned(), (400, "bad_request")),
        (
            "GET / HTTP/1.1\r\nHost localhost\r\n\r\n".to_owned(),
            (400, "bad_request"),
        ),
        ("GET / HTTP/3.7\r\n\r\n".to_owned(), (400, "bad_request")),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), (400, "bad_request")),
        (with("Content-Length: x"), (400, "bad_request")),
        (
            format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(66_000)),
            (414, "url_too_long"),
        ),
        (
            with(&"A: b\r\n".repeat(120)).replace("\r\n\r\n\r\n", "\r\n\r\n"),
            (431, "head_too_large"),
        ),
        (with(&format!("A: {}", "x".repeat(70_000))), (431, "head_too_large")),
        (with(&format!("A: {}", "x".repeat(300_000))), (431, "head_too_large")),
    ] {
        let shown = &request[..request.len().min(60)];
        let answer = rest(send(api, &request).await).await;
        assert_eq!(error_of(&answer), (expected.0, expected.1.to_owned()), "{shown}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
    // After a good one, on the same connection.
    let mut stream = send(api, HEALTH).await;
    healthy(&mut stream).await;
    stream.write_all(b"hello\r\n\r\n").await.expect("takes it");
    assert_eq!(error_of(&rest(stream).await).0, 400);
}

#[tokio::test]
async fn a_stored_text_may_look_like_an_answer() {
    let api = serve(|_| {}).await;
    let body = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n".repeat(10_000);
    let put = format!(
        "PUT /entities/a/b HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert!(rest(send(api, &put).await).await.starts_with("HTTP/1.0 201 "));
    let gets = "GET /entities/a/b HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(3);
    let last = "GET /entities/a/b HTTP/1.0\r\n\r\n";
    let answer = rest(send(api, &(gets + last)).await).await;
    assert_eq!(answer.matches(&body).count(), 4);
}

#[tokio::test]
async fn who_closes_its_side_after_a_request_is_answered() {
    let api = serve(|_| {}).await;
    for (request, status) in [
        (HEALTH, "200"),
        (
            "PUT /entities/a/b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n1",
            "201",
        ),
        ("GET /entities/a/b HTTP/1.1\r\nHost: localhost\r\n\r\n", "200"),
    ] {
        let mut stream = send(api, request).await;
        stream.shutdown().await.expect("half closed");
        let answer = rest(stream).await;
        assert_eq!(answer.get(9..12), Some(status), "{request}: {answer}");
    }
    // Half a request is none.
    let mut stream = send(api, "GET /heal").await;
    stream.shutdown().await.expect("half closed");
    assert_eq!(rest(stream).await, "");
}

#[tokio::test]
async fn tls_at_a_plain_port_is_closed_at_once() {
    let api = serve(|_| {}).await;
    let mut stream = TcpStream::connect(api).await.expect("connects");
    stream
        .write_all(b"\x16\x03\x01\x02\x00\x01\x00")
        .await
        .expect("takes it");
    let mut answer = Vec::new();
    let ended = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    // Whether it is broken off or ends.
    assert!(ended.is_ok() && answer.is_empty(), "{answer:?}");
}

#[tokio::test]
async fn all_requests_together_have_a_limit() {
    let api = serve(|limits| limits.max_bytes = 100_000).await;
    let put = |bytes: usize| {
        let body = "x".repeat(bytes);
        format!(
            "PUT /entities/a/b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n{body}"
        )
    };
    assert!(rest(send(api, &put(90_000)).await).await.starts_with("HTTP/1.1 201 "));
    let answer = rest(send(api, &put(200_000)).await).await;
    assert_eq!(error_of(&answer), (503, "no_memory".to_owned()));
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    // A body that is on its way, and heads.
    let mut held = send(api, put(90_000).split_at(80_000).0).await;
    let mut heads = Vec::new();
    for _ in 0..4 {
        heads.push(send(api, &format!("GET /healthz HTTP/1.1\r\nA: {}", "x".repeat(9_000))).await);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let answer = rest(
        send(
            api,
            &HEALTH.replace("\r\n\r\n", &format!("\r\nA: {}\r\n\r\n", "x".repeat(30_000))),
        )
        .await,
    )
    .await;
    assert_eq!(error_of(&answer), (503, "no_memory".to_owned()));
    drop(heads);
    tokio::time::sleep(Duration::from_millis(300)).await;
    held.write_all(put(90_000).split_at(80_000).1.as_bytes())
        .await
        .expect("takes it");
    assert!(rest(held).await.starts_with("HTTP/1.1 204 "));
    assert!(rest(send(api, &put(90_000)).await).await.starts_with("HTTP/1.1 204 "));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_answered() {
    let api = serve(|limits| limits.body_time_limit = Duration::from_millis(50)).await;
    for request in [
        "PUT /entities/a/b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc",
        "POST /notify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n",
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
    let mut slow = send(
        api,
        &"GET /entities/a/b HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(gets),
    )
    .await;
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
