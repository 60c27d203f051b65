use std::sync::atomic::Ordering;

use http_body_util::BodyExt;
use hyper::header::ALLOW;
use parking_lot::Mutex;
use serde_json::Value;

use entity_sync_mio::Severity;

use crate::store::Location;

use super::*;

mod trust;

/// The API on a store in memory, and what was told to whom.
struct Server {
    api: Api,
    store: Arc<Store>,
    committed: Arc<Mutex<Vec<EntityKey>>>,
    notified: Arc<Mutex<Vec<EntityKey>>>,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Server {
    fn new() -> Self {
        let (committed, notified) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<Vec<_>>>::default());
        let (on_commit, on_notify) = (Arc::clone(&committed), Arc::clone(&notified));
        let store = Store::open(&Location::Memory, move |keys| {
            on_commit.lock().extend_from_slice(keys);
        });
        let store = Arc::new(store.expect("opens"));
        let notify: Notify = Arc::new(move |keys| {
            if let Some(key) = keys.iter().find(|key| key.entity() == "unknown") {
                return Err(UnknownEntity { key: key.clone() });
            }
            on_notify.lock().extend_from_slice(keys);
            Ok(())
        });
        let mut parts = Parts::new(Some(Arc::clone(&store)), notify);
        parts.is_stored = Arc::new(|entity| entity != "elsewhere");
        Self {
            api: Api::new(parts),
            store,
            committed,
            notified,
        }
    }

    async fn send(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Answer {
        let request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).expect("a method"))
            .uri(path)
            .body(Full::new(body.into()))
            .expect("a request");
        let (parts, body) = self.api.answer(request).await.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8(body.into()).expect("text"),
        }
    }

    async fn put(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.send("PUT", path, body).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "").await
    }

    async fn notify(&self, body: impl Into<Bytes>) -> Answer {
        self.send("POST", "/notify", body).await
    }
}

impl Answer {
    #[track_caller]
    fn is(&self, status: u16, body: &str) {
        assert_eq!((self.status, self.body.as_str()), (status, body));
    }

    /// An error in its one shape, whose message and hint contain these texts.
    #[track_caller]
    fn fails(&self, status: u16, code: &str, message: &str, hint: &str) {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.header("content-type"), "application/json");
        let mut json: Value = serde_json::from_str(&self.body).expect("JSON");
        let error = json["error"].take();
        assert_eq!(error["code"], code);
        for (part, text) in [("message", message), ("hint", hint)] {
            let whole = error[part].as_str().expect("a string");
            assert!(whole.contains(text), "{text:?} is not in {whole:?}");
        }
        assert_eq!(error.as_object().map(serde_json::Map::len), Some(3));
    }

    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).map(HeaderValue::to_str);
        value.and_then(Result::ok).unwrap_or_default()
    }
}

fn key(entity: &str, id: &str) -> EntityKey {
    EntityKey::new(entity, id).expect("short")
}

#[tokio::test]
async fn put_get_and_delete() {
    let server = Server::new();
    let path = "/entities/items/100";
    server.put(path, r#"{"n":1}"#).await.is(201, "");
    server.put(path, r#"{"n":2}"#).await.is(204, "");
    let answer = server.get(path).await;
    answer.is(200, r#"{"n":2}"#);
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("cache-control"), "no-store");
    server.send("HEAD", path, "").await.is(200, "");
    server.send("DELETE", path, "").await.is(204, "");
    for method in ["GET", "DELETE"] {
        let answer = server.send(method, path, "").await;
        answer.fails(
            404,
            "not_found",
            "nothing is stored under this entity and id",
            "PUT it first; both are case-sensitive",
        );
    }
    // Told by the store, once for each change, and not by the API again.
    assert_eq!(*server.committed.lock(), vec![key("items", "100"); 3]);
    assert!(server.notified.lock().is_empty());
}

#[tokio::test]
async fn a_body_is_any_text() {
    let server = Server::new();
    for (body, content_type) in [
        ("5", "application/json"),
        (" [1, \"\u{e9}\"]\n", "application/json"),
        ("hello", "text/plain; charset=utf-8"),
        ("{\"a\":1} x", "text/plain; charset=utf-8"),
        ("\0", "text/plain; charset=utf-8"),
    ] {
        server.put("/entities/a/b", body.to_owned()).await;
        let answer = server.get("/entities/a/b").await;
        answer.is(200, body);
        assert_eq!(answer.header("content-type"), content_type);
    }
    let deep = "[".repeat(100_000);
    server.put("/entities/a/b", deep.clone()).await.is(204, "");
    server.get("/entities/a/b").await.is(200, &deep);
}

#[tokio::test]
async fn a_path_is_percent_decoded() {
    let server = Server::new();
    for (path, entity, id) in [
        ("/entities/items/a%2Fb", "items", "a/b"),
        ("/entities/items/a%2fb%3Fc%23", "items", "a/b?c#"),
        ("/entities/my%20items/%E2%98%83", "my items", "\u{2603}"),
        ("/entities/items/%25", "items", "%"),
        ("/entities/items/%252F", "items", "%2F"),
        ("/entities/items/a+b", "items", "a+b"),
        ("/entities/%2E%2E/%00", "..", "\0"),
        ("/entities/items/100?ignored=yes", "items", "100"),
    ] {
        let answer = server.put(path, id.to_owned() + "!").await;
        assert!(matches!(answer.status, 201 | 204), "{path}");
        let stored = server.store.get(&key(entity, id)).expect("reads");
        assert_eq!(stored, Some((id.to_owned() + "!").into_bytes()), "{path}");
        server.get(path).await.is(200, &(id.to_owned() + "!"));
    }
}

#[tokio::test]
async fn bad_paths_are_refused() {
    let server = Server::new();
    for path in ["/entities/items/100%", "/entities/items/%zz", "/entities/%1/x"] {
        let answer = server.put(path, "{}").await;
        let message = "a % in the path is not followed by two hexadecimal digits";
        answer.fails(400, "bad_path", message, "the id a/b is written a%2Fb");
    }
    for path in ["/entities/items/%ff", "/entities/%c3/x"] {
        let answer = server.get(path).await;
        let message = "the path is not UTF-8 text once it is percent-decoded";
        answer.fails(400, "bad_path", message, "percent-encoded");
    }
    let answer = server.put("/entities//100", "{}").await;
    let message = "the entity or the id is empty";
    answer.fails(400, "bad_path", message, "both of them non-empty");
    for path in [
        "/entities",
        "/entities/",
        "/entities/items",
        "/entities/items/",
        "/entities/items/a/b",
    ] {
        let answer = server.put(path, "{}").await;
        answer.fails(
            404,
            "no_such_path",
            "this path does not exist",
            "write /entities/{entity}/{id}, both of them non-empty and percent-encoded",
        );
    }
    for path in ["/", "/nope", "/notify/", "/Healthz"] {
        let answer = server.get(path).await;
        let hint = "there are PUT, GET and DELETE /entities/{entity}/{id}, POST /notify, and GET /cluster, /metrics, /healthz and /readyz";
        answer.fails(404, "no_such_path", "this path does not exist", hint);
    }
    assert!(server.committed.lock().is_empty());
}

#[tokio::test]
async fn other_methods_are_refused() {
    let server = Server::new();
    for (method, path, hint, allow) in [
        ("POST", "/entities/a/b", "use PUT, GET or DELETE", "PUT,GET,HEAD,DELETE"),
        (
            "OPTIONS",
            "/entities/a/b",
            "use PUT, GET or DELETE",
            "PUT,GET,HEAD,DELETE",
        ),
        ("GET", "/notify", "use POST", "POST"),
        ("DELETE", "/healthz", "use GET", "GET,HEAD"),
    ] {
        let answer = server.send(method, path, "{}").await;
        let message = format!("{method} is not possible on this path");
        answer.fails(405, "method_not_allowed", &message, hint);
        assert_eq!(answer.header(ALLOW.as_str()), allow);
    }
}

#[tokio::test]
async fn bad_bodies_are_refused() {
    let server = Server::new();
    let path = "/entities/items/100";
    let answer = server.put(path, "").await;
    answer.fails(400, "empty_body", "the body is empty", "use DELETE to remove it");
    let answer = server.put(path, b"abc\xff".to_vec()).await;
    let message = "the body is not UTF-8 text, from byte 3 on";
    answer.fails(400, "not_utf8", message, "send text in UTF-8");
    let answer = server.put(path, "x".repeat(MAX_ENTITY_BYTES + 1)).await;
    let message = "the body is larger than 1048576 bytes";
    answer.fails(413, "too_large", message, "send less at once");
    assert!(server.committed.lock().is_empty());
    server.put(path, "x".repeat(MAX_ENTITY_BYTES)).await.is(201, "");
}

#[tokio::test]
async fn notify_takes_one_key_or_many() {
    let server = Server::new();
    let one = r#" {"id":"100","entity":"items"} "#;
    server.notify(one).await.is(202, r#"{"accepted":1}"#);
    let many = r#"
        [{"entity":"items","id":"a/\u00e9"},{"entity":"","id":""},{"entity":"items","id":"100"}]"#;
    server.notify(many).await.is(202, r#"{"accepted":3}"#);
    server.notify("[]").await.is(202, r#"{"accepted":0}"#);
    let expected = [
        key("items", "100"),
        key("items", "a/\u{e9}"),
        key("", ""),
        key("items", "100"),
    ];
    assert_eq!(*server.notified.lock(), expected);
    assert!(server.committed.lock().is_empty());
}

#[tokio::test]
async fn notify_takes_all_or_nothing() {
    let server = Server::new();
    let good = r#"{"entity":"items","id":"100"}"#;
    for (bad, message) in [
        (
            r#"{"entity":"items","id":100}"#,
            "invalid type: integer `100`, expected a string",
        ),
        (
            r#"{"entity":"items","id":null}"#,
            "invalid type: null, expected a string",
        ),
        (r#"{"entity":"items"}"#, "missing field `id`"),
        (r#"{"entity":"a","id":"b","data":1}"#, "unknown field `data`"),
        (r#"{"entity":"a","id":"b","id":"c"}"#, "duplicate field `id`"),
        (r#"{"entity":"a","id":"\ud800"}"#, "at line 1 column"),
        ("\"items\"", "invalid type: string \"items\""),
        ("null", "invalid type: null"),
        ("{", "EOF while parsing an object"),
        ("{} x", "missing field `entity`"),
    ] {
        let in_an_array = format!("[{good},{bad}]");
        for body in [bad, &in_an_array] {
            let hint = "id are strings, in quotes even if they are numbers";
            let answer = server.notify(body.to_owned()).await;
            // Within an array a bracket is missing first.
            let message = if body == bad || !matches!(bad, "{") {
                message
            } else {
                "line 1"
            };
            answer.fails(400, "bad_notify", message, hint);
        }
    }
    let answer = server.notify("").await;
    answer.fails(400, "bad_notify", "EOF", "send {\"entity\":\"items\",\"id\":\"100\"}");
    let trailing = format!("{good} x");
    let answer = server.notify(trailing).await;
    answer.fails(400, "bad_notify", "trailing characters", "send");
    let answer = server.notify(b"\xff".to_vec()).await;
    answer.fails(400, "bad_notify", "line 1 column 1", "send");
    assert!(server.notified.lock().is_empty());
}

#[tokio::test]
async fn notify_has_limits() {
    let server = Server::new();
    let array = |count: usize| {
        let keys = vec![r#"{"entity":"items","id":"100"}"#; count];
        format!("[{}]", keys.join(","))
    };
    let answer = server.notify(array(MAX_NOTIFY_KEYS + 1)).await;
    let message = "10001 keys are too many for one request, none of them was accepted";
    answer.fails(400, "too_many_keys", message, "send at most 10000 at once");
    let long = format!(r#"{{"entity":"items","id":"{}"}}"#, "x".repeat(1 << 16));
    let answer = server.notify(long).await;
    let message = "entity and id together are 65541 bytes; clients can subscribe to 1024 at most";
    answer.fails(
        400,
        "key_too_long",
        message,
        "use a shorter id, or raise --max-key-bytes",
    );
    let answer = server.notify(" ".repeat(MAX_NOTIFY_BYTES + 1)).await;
    let message = "the body is larger than 4194304 bytes";
    answer.fails(413, "too_large", message, "send less at once");
    assert!(server.notified.lock().is_empty());
    let most = array(MAX_NOTIFY_KEYS);
    server.notify(most).await.is(202, r#"{"accepted":10000}"#);
    assert_eq!(server.notified.lock().len(), MAX_NOTIFY_KEYS);
}

#[tokio::test]
async fn health_follows_the_store() {
    let server = Server::new();
    server.get("/healthz").await.is(200, r#"{"status":"ok"}"#);
    server.store.close().expect("closes");
    let message = "the store is closed";
    let hint = "write again once it is back";
    let answer = server.get("/healthz").await;
    answer.fails(503, "stopping", message, hint);
    let answer = server.put("/entities/items/100", "{}").await;
    answer.fails(503, "stopping", message, hint);
}

#[test]
fn errors_of_the_store_have_a_status_each() {
    let reason = || "I/O error".to_owned();
    for (error, status, code) in [
        (StoreError::Full, 507, "disk_full"),
        (StoreError::Busy, 503, "busy"),
        (StoreError::Closed, 503, "stopping"),
        (StoreError::TooBig, 413, "too_large"),
        (StoreError::ReadOnly, 500, "read_only"),
        (StoreError::NotTold, 500, "not_told"),
        (StoreError::WriterGone, 500, "store_failed"),
        (StoreError::Other { reason: reason() }, 500, "store_failed"),
        (StoreError::Damaged { reason: reason() }, 500, "store_failed"),
    ] {
        let text = format!("{:?}", ApiError::from(error.clone()));
        assert!(text.contains(&format!("code: {code:?}")), "{text}");
        assert_eq!(ApiError::from(error).into_response().status(), status);
    }
}

#[tokio::test]
async fn a_key_that_nobody_can_subscribe_to_is_refused() {
    let server = Server::new();
    let path = |bytes: usize| format!("/entities/items/{}", "x".repeat(bytes));
    server.put(&path(1019), "1").await.is(201, "");
    for method in ["PUT", "GET", "DELETE"] {
        let answer = server.send(method, &path(1020), "1").await;
        let message = "entity and id together are 1025 bytes; clients can subscribe to 1024 at most";
        answer.fails(
            400,
            "key_too_long",
            message,
            "use a shorter id, or raise --max-key-bytes",
        );
    }
}

#[tokio::test]
async fn a_server_that_stops_is_not_ready_but_alive() {
    let mut server = Server::new();
    let parts = Parts::new(Some(Arc::clone(&server.store)), Arc::new(|_| Ok(())));
    let is_stopping = parts.is_stopping.clone();
    server.api = Api::new(parts);
    server.get("/readyz").await.is(200, r#"{"status":"ok"}"#);
    is_stopping.store(true, Ordering::Relaxed);
    assert_eq!(server.get("/readyz").await.status, 503);
    server.get("/healthz").await.is(200, r#"{"status":"ok"}"#);
}

#[tokio::test]
async fn what_is_kept_elsewhere_is_changed_there() {
    let server = Server::new();
    for (method, body) in [("PUT", "x"), ("GET", ""), ("DELETE", "")] {
        let answer = server.send(method, "/entities/elsewhere/1", body).await;
        let said = "\"elsewhere\" is not in this server's store: it is read from the source given by --resolver or the \
                    configuration file";
        answer.fails(409, "not_stored", said, "then send POST /notify");
    }
}

#[tokio::test]
async fn one_unknown_entity_is_too_many() {
    let server = Server::new();
    let body = r#"[{"entity":"items","id":"1"},{"entity":"unknown","id":"1"}]"#;
    let hint = "add it to the configuration file as [entities.NAME], or correct the name";
    let said = "\"unknown\" is no entity of this server; nothing was notified";
    server.notify(body).await.fails(400, "unknown_entity", said, hint);
    assert!(server.notified.lock().is_empty());
}

/// A body whose client goes away in the middle of it.
struct CutOff;

impl Body for CutOff {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, std::io::Error>>> {
        std::task::Poll::Ready(Some(Err(std::io::ErrorKind::UnexpectedEof.into())))
    }
}

#[tokio::test]
async fn half_a_body_changes_nothing() {
    let server = Server::new();
    for (method, path) in [("PUT", "/entities/items/1"), ("POST", "/notify")] {
        let request = Request::builder().method(method).uri(path).body(CutOff).expect("one");
        let (parts, body) = server.api.answer(request).await.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let answer = Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8(body.into()).expect("text"),
        };
        answer.fails(
            400,
            "incomplete_body",
            "the body could not be read to its end",
            "send the request again",
        );
    }
    assert!(server.committed.lock().is_empty() && server.notified.lock().is_empty());
}

#[tokio::test]
async fn a_body_that_says_that_it_is_too_large_is_not_read() {
    struct Endless;
    impl Body for Endless {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, std::io::Error>>> {
            panic!("it is read");
        }

        fn size_hint(&self) -> hyper::body::SizeHint {
            hyper::body::SizeHint::with_exact(1 << 40)
        }
    }
    let server = Server::new();
    let request = Request::builder().method("PUT").uri("/entities/items/1").body(Endless);
    let response = server.api.answer(request.expect("one")).await;
    assert_eq!(response.status(), 413);
}

#[tokio::test]
async fn health_says_which_parts_are_in_trouble_and_details_only_with_the_token() {
    let (health, store) = (Health::default(), Store::open(&Location::Memory, |_| {}));
    let mut parts = Parts::new(Some(Arc::new(store.expect("opens"))), Arc::new(|_| Ok(())));
    parts.health = health.clone();
    parts.token = Token::new("0123456789abcdef0123456789abcdef");
    let api = Api::new(parts);
    let ask = async |path: &str, token: Option<&str>| {
        let mut request = Request::get(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let answer = api
            .answer(request.body(Full::<Bytes>::default()).expect("a request"))
            .await;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice::<Value>(&body).expect("JSON"))
    };
    let token = Some("0123456789abcdef0123456789abcdef");
    let (broker, source) = (health.part("broker"), health.part("source"));
    broker.report(Severity::Degraded, "one of two is down");
    for path in ["/healthz", "/readyz"] {
        let (status, body) = ask(path, token).await;
        assert_eq!((status, body["status"].as_str()), (200, Some("degraded")));
        assert_eq!(body["troubles"][0]["message"], "one of two is down");
        let (status, body) = ask(path, None).await;
        assert_eq!((status, &body["troubles"][0]["severity"]), (200, &"degraded".into()));
        assert!(!body.to_string().contains("broker"), "{body}");
    }
    source.report(Severity::NotReady, "wrong password of me@db");
    assert_eq!(ask("/healthz", token).await.0, 200);
    let (status, body) = ask("/readyz", token).await;
    assert_eq!((status, &body["error"]["code"]), (503, &"not_ready".into()));
    assert_eq!(body["error"]["message"], "source: wrong password of me@db");
    let (status, body) = ask("/readyz", None).await;
    assert_eq!(status, 503);
    assert!(!body.to_string().contains("me@db"), "{body}");
    source.report(Severity::Dead, "thread died");
    assert_eq!(ask("/healthz", token).await.1["error"]["code"], "dead");
    drop(source);
    assert_eq!(ask("/readyz", token).await.0, 200);
}
