use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Request as HttpRequest;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;

use bytes::Bytes;
use entity_sync_mio::{Audience, EntityKey, Rows};
use hyper::header::HeaderValue;
use quick_cache::Weighter;

use super::*;

const LIMIT: Duration = Duration::from_millis(500);

/// A server of the application's, and what it was asked: the target, the token and the version.
struct Origin {
    address: std::net::SocketAddr,
    asked: Arc<Mutex<Vec<[String; 3]>>>,
    connections: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Origin {
    fn start(answer: impl Fn(&str) -> Response + Clone + Send + Sync + 'static) -> Self {
        Self::start_with(move |target| std::future::ready(answer(target)))
    }

    fn start_with<F>(answer: impl Fn(&str) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response> + Send,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let asked = Arc::<Mutex<Vec<_>>>::default();
        let of_server = asked.clone();
        let app = Router::new().fallback(move |request: HttpRequest| {
            let field = |name| {
                let value = request.headers().get(name).map(|it| it.to_str().expect("text"));
                value.unwrap_or_default().to_owned()
            };
            let target = request.uri().to_string();
            of_server
                .lock()
                .push([target.clone(), field("authorization"), field("if-none-match")]);
            let answer = answer.clone();
            async move {
                if target.contains("slow") {
                    tokio::time::sleep(LIMIT * 4).await;
                }
                let answering = answer(&target);
                answering.await
            }
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("set");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::<AtomicUsize>::default();
        let counted = connections.clone();
        runtime.spawn(async move {
            use axum::serve::ListenerExt;
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let listener = listener.tap_io(move |_| {
                counted.fetch_add(1, Ordering::SeqCst);
            });
            axum::serve(listener, app).await
        });
        Self {
            address,
            asked,
            connections,
            _runtime: runtime,
        }
    }

    fn reader(&self, path: &str, max_bytes: usize) -> TestReader {
        TestReader::new(&format!("http://{}{path}", self.address), max_bytes)
    }

    fn asked(&self) -> Vec<[String; 3]> {
        std::mem::take(&mut self.asked.lock())
    }
}

/// What reads, one after the other.
struct TestReader {
    asking: Asking,
    reader: Reader,
    health: Health,
    runtime: tokio::runtime::Runtime,
}

impl TestReader {
    fn new(template: &str, max_bytes: usize) -> Self {
        let plan = HttpPlan {
            reads: 4,
            limit: LIMIT,
            max_bytes,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let health = Health::default();
        let template = template.parse().expect("a template");
        Self {
            asking: asking(plan, 1, connect::connector(LIMIT).expect("certificates")),
            reader: Reader::new(template, &health).expect("a URL"),
            health,
            runtime: runtime.expect("a runtime"),
        }
    }

    fn read(&self, request: &Request) -> Result<Rows, ReadError> {
        self.runtime.block_on(self.reader.read(&self.asking, request))
    }

    fn troubles(&self) -> Vec<String> {
        let troubles = self.health.troubles();
        troubles.iter().map(|it| format!("{} {it}", it.severity)).collect()
    }
}

fn request(id: &str, secret: &str) -> Request {
    Request {
        key: EntityKey::new("my items", id).expect("short"),
        audience: Audience::Secret(secret.into()),
    }
}

fn one(row: &str) -> Result<Rows, ReadError> {
    Ok(Rows::one(row.to_owned()))
}

#[track_caller]
fn same(got: Result<Rows, ReadError>, expected: Result<Rows, ReadError>) {
    assert_eq!(format!("{got:?}"), format!("{expected:?}"));
}

#[test]
fn each_status_has_its_meaning() {
    let origin = Origin::start(|target| {
        let status: u16 = target
            .rsplit('/')
            .next()
            .and_then(|it| it.parse().ok())
            .expect("a status");
        let location = [("location", "/200")];
        (axum::http::StatusCode::from_u16(status).expect("one"), location, "body").into_response()
    });
    let reader = origin.reader("/{entity}/{id}", 100);
    same(reader.read(&request("200", "me")), one("body"));
    same(reader.read(&request("204", "")), Ok(Rows::none()));
    for status in ["404", "410"] {
        same(reader.read(&request(status, "")), Err(ReadError::NotFound));
    }
    same(reader.read(&request("403", "")), Err(ReadError::Denied));
    origin.asked();
    let failed = ["502", "503", "504", "408", "425", "500"];
    for status in failed {
        same(reader.read(&request(status, "me")), Err(ReadError::Failed));
    }
    let told = reader.troubles();
    assert!(told[0].starts_with("degraded") && told[0].contains("500"), "{told:?}");
    let rejected = ["201", "206", "301", "302", "304", "307", "400", "401", "405", "429"];
    for status in rejected {
        same(reader.read(&request(status, "me")), Err(ReadError::Rejected));
    }
    // A redirect would take the token along.
    assert_eq!(origin.asked().len(), failed.len() + rejected.len());
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1, "it is kept");
    let told = reader.troubles();
    assert!(
        told.len() == 1 && told[0].starts_with("degraded http 127.0.0.1:"),
        "{told:?}"
    );
    assert!(told[0].contains("429") && told[0].contains("--http-reads"), "{told:?}");
}

#[test]
fn what_only_an_operator_can_mend_is_told() {
    let status = Arc::new(AtomicUsize::new(401));
    let current = status.clone();
    let origin = Origin::start(move |_| {
        let status = u16::try_from(current.load(Ordering::SeqCst)).expect("a status");
        let encoding = if status == 200 { "gzip" } else { "identity" };
        let fields = [("location", "https://elsewhere/x"), ("content-encoding", encoding)];
        (axum::http::StatusCode::from_u16(status).expect("one"), fields, "body").into_response()
    });
    let reader = origin.reader("/{id}", 100);
    let rejects = |code: usize, secret: &str, said: &str| {
        status.store(code, Ordering::SeqCst);
        same(reader.read(&request("1", secret)), Err(ReadError::Rejected));
        let told = reader.troubles();
        assert!(
            told[0].contains(said) && told[0].contains("\"my items\" \"1\""),
            "{told:?}"
        );
        assert!(!told[0].contains("hidden"), "{told:?}");
    };
    rejects(401, "", "user:password@");
    rejects(401, "hidden", "answer 403");
    rejects(301, "", "https://elsewhere/x");
    rejects(200, "", "Content-Encoding \"gzip\", which was not asked for");
    std::thread::sleep(Duration::from_millis(2100));
    rejects(301, "", "https://elsewhere/x");
    assert!(!reader.health.is_ready(), "nothing has worked for a while");
    status.store(404, Ordering::SeqCst);
    same(reader.read(&request("2", "")), Err(ReadError::NotFound));
    assert!(reader.health.is_ready(), "it answers");
}

#[test]
fn ids_with_control_characters_may_be_bad_requests() {
    let origin = Origin::start(|_| axum::http::StatusCode::BAD_REQUEST.into_response());
    let reader = origin.reader("/rows?id={id}", 100);
    same(reader.read(&request("a\tb", "")), Err(ReadError::NotFound));
    same(reader.read(&request("a\0", "")), Err(ReadError::NotFound));
    same(reader.read(&request("a", "")), Err(ReadError::Rejected));
}

#[test]
fn a_password_in_the_template_is_sent_to_the_server_where_no_client_has_a_token() {
    let origin = Origin::start(|_| "x".into_response());
    let reader = TestReader::new(&format!("http://me:p%40ss@{}/{{id}}", origin.address), 100);
    same(reader.read(&request("1", "")), one("x"));
    same(reader.read(&request("1", "secret")), one("x"));
    let tokens: Vec<_> = origin.asked().into_iter().map(|[_, token, _]| token).collect();
    assert_eq!(tokens, ["Basic bWU6cEBzcw==", "Bearer secret"]);
}

#[test]
fn secrets_count_in_the_cache() {
    let weight = |secret: &str| {
        let name = (
            EntityKey::new("a", "1").expect("short"),
            Audience::Secret(secret.into()),
        );
        Weight.weight(&name, &(HeaderValue::from_static("v"), Bytes::from_static(b"row")))
    };
    let long = "s".repeat(60_000);
    assert_eq!(weight(&long) - weight(""), 60_000);
    // Those of many clients are no more than the memory that is meant for them.
    let reader = TestReader::new("http://127.0.0.1:1/{id}", 10);
    let known = &reader.asking.known;
    for client in 0..2000 {
        let secret = Audience::Secret(format!("{client} {long}").into());
        let key = EntityKey::new("a", "1").expect("short");
        known.insert(
            (key, secret),
            (HeaderValue::from_static("v"), Bytes::from_static(b"row")),
        );
    }
    let held: usize = known
        .iter()
        .map(|((_, audience), _)| format!("{audience:?}").len() + 60_000)
        .sum();
    assert!(
        held as u64 <= CACHE_BYTES && known.len() > 100,
        "{} entries",
        known.len()
    );
}

#[test]
fn names_are_encoded_and_the_secret_is_a_token() {
    let origin = Origin::start(|_| "x".into_response());
    let reader = origin.reader("/a/{entity}/{id}?of={id}", 100);
    same(reader.read(&request("b?c#d%e{id}", "me")), one("x"));
    let id = "b%3Fc%23d%25e%7Bid%7D";
    assert_eq!(
        origin.asked(),
        [[&format!("/a/my%20items/{id}?of={id}"), "Bearer me", ""]]
    );
    same(reader.read(&request("1", "")), one("x"));
    let public = Request {
        audience: Audience::Public,
        ..request("1", "")
    };
    same(reader.read(&public), one("x"));
    assert!(origin.asked().iter().all(|[_, token, _]| token.is_empty()));
    // What is no token: nobody is asked.
    same(reader.read(&request("1", "a\r\nx-admin: 1")), Err(ReadError::Denied));
    assert!(origin.asked().is_empty());
}

/// A server that decodes a path before it looks at it, as several proxies do, and then takes its steps.
fn decodes(target: &str) -> Response {
    let decoded = percent_encoding::percent_decode_str(target).decode_utf8_lossy();
    let (path, query) = decoded.split_once('?').unwrap_or((&decoded, ""));
    let mut segments = Vec::new();
    for segment in path.split(['/', '\\']) {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    match segments[..] {
        ["rows"] if !query.is_empty() => format!("row {query:?}").into_response(),
        ["api", entity, id] => format!("{entity} {id:?}").into_response(),
        ["files", .., last] => format!("file {last:?}").into_response(),
        _ => "not for clients".into_response(),
    }
}

#[test]
fn no_id_reaches_what_it_does_not_name() {
    let origin = Origin::start(decodes);
    let in_path = origin.reader("/api/{entity}/{id}", 100);
    same(in_path.read(&request("100", "")), one("my items \"100\""));
    same(in_path.read(&request("a b?c", "")), one("my items \"a b\""));
    origin.asked();
    for id in ["", ".", "..", "../../admin", "..\\..\\admin", "100/private", "1\0", "/"] {
        same(in_path.read(&request(id, "")), Err(ReadError::NotFound));
    }
    assert!(origin.asked().is_empty(), "nobody is asked");
    let in_query = origin.reader("/rows?id={id}", 100);
    for id in [".", "..", "../../admin", "100/private"] {
        same(
            in_query.read(&request(id, "")),
            one(&format!("row {:?}", format!("id={id}"))),
        );
    }
    same(in_query.read(&request("", "")), Err(ReadError::NotFound));
    let with_slashes = origin.reader("/files/{+id}", 100);
    same(with_slashes.read(&request("a/b", "")), one("file \"b\""));
    for id in ["a/../../admin", "..", "a//b", "/a"] {
        same(with_slashes.read(&request(id, "")), Err(ReadError::NotFound));
    }
}

#[test]
fn versions_spare_bodies_to_those_who_may_see_them() {
    let version = Arc::new(AtomicUsize::new(1));
    let current = version.clone();
    let origin = Origin::start(move |_| {
        let version = current.load(Ordering::SeqCst);
        match version {
            9 => axum::http::StatusCode::NOT_MODIFIED.into_response(),
            8 => axum::http::StatusCode::FORBIDDEN.into_response(),
            _ => ([("etag", format!("\"{version}\""))], format!("row {version}")).into_response(),
        }
    });
    let reader = origin.reader("/{id}", 100);
    same(reader.read(&request("1", "me")), one("row 1"));
    version.store(9, Ordering::SeqCst);
    same(reader.read(&request("1", "me")), one("row 1"));
    // Another one's row is not theirs, whatever the server says.
    same(reader.read(&request("1", "you")), Err(ReadError::Rejected));
    let versions: Vec<_> = origin.asked().into_iter().map(|[.., version]| version).collect();
    assert_eq!(versions, ["", "\"1\"", ""]);
    version.store(2, Ordering::SeqCst);
    same(reader.read(&request("1", "me")), one("row 2"));
    // Rights that are gone take the row along.
    version.store(8, Ordering::SeqCst);
    same(reader.read(&request("1", "me")), Err(ReadError::Denied));
    version.store(9, Ordering::SeqCst);
    same(reader.read(&request("1", "me")), Err(ReadError::Rejected));
}

#[test]
fn what_is_too_long_too_slow_or_gone_is_tried_again() {
    let origin = Origin::start(|_| "0123456789".into_response());
    let reader = origin.reader("/{id}", 10);
    same(reader.read(&request("1", "")), one("0123456789"));
    same(
        origin.reader("/{id}", 9).read(&request("1", "")),
        Err(ReadError::Failed),
    );
    same(reader.read(&request("slow", "")), Err(ReadError::Failed));
    let nobody = TestReader::new("http://127.0.0.1:1/{id}", 10);
    same(nobody.read(&request("1", "")), Err(ReadError::Failed));
    std::thread::sleep(Duration::from_millis(2100));
    same(nobody.read(&request("1", "")), Err(ReadError::Failed));
    let told = nobody.troubles();
    assert!(
        !nobody.health.is_ready() && told[0].contains("Connection refused"),
        "{told:?}"
    );
}

#[test]
fn a_server_that_answers_nothing_is_not_ready_and_one_slow_id_is_degraded() {
    let origin = Origin::start(|_| "x".into_response());
    let reader = origin.reader("/{id}", 10);
    for _ in 0..6 {
        same(reader.read(&request("slow", "")), Err(ReadError::Failed));
        same(reader.read(&request("1", "")), one("x"));
    }
    let told = reader.troubles();
    assert!(
        reader.health.is_ready() && told[0].starts_with("degraded") && told[0].contains("no answer within"),
        "{told:?}"
    );
    for _ in 0..6 {
        same(reader.read(&request("slow", "")), Err(ReadError::Failed));
    }
    let told = reader.troubles();
    assert!(
        !reader.health.is_ready() && told[0].contains("no answer within"),
        "{told:?}"
    );
    same(reader.read(&request("1", "")), one("x"));
    assert!(reader.health.is_ready());
}

#[test]
fn all_hosts_together_keep_as_many_connections_as_read() {
    let plan = HttpPlan {
        reads: 64,
        limit: LIMIT,
        max_bytes: 10,
    };
    let of = |urls: &[&str]| {
        let templates: Vec<Template> = urls.iter().map(|it| it.parse().expect("good")).collect();
        (plan.idle_per_host(hosts(&templates)), plan.files(&templates))
    };
    assert_eq!(of(&["http://a/{id}"]), (64, 64 + 64 + 1));
    assert_eq!(of(&["http://a/{id}", "http://a/x/{id}"]), (64, 64 + 64 + 2));
    let four = ["http://a/{id}", "http://b/{id}", "https://a/{id}", "http://a:81/{id}"];
    assert_eq!(of(&four), (16, 64 + 64 + 4));
    let many: Vec<_> = (0..100).map(|host| format!("http://h{host}/{{id}}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert_eq!(of(&many), (1, 64 + 100 + 100));
}

#[test]
fn secrets_that_a_server_quotes_are_not_shown() {
    let locations = [
        "https://elsewhere/login/open-sesame-1001",
        "https://elsewhere/OPEN-SESAME-1001/x",
        "https://elsewhere/login?token=sesame-1001&key=of-the-template",
        "https://me:p%40ssword@elsewhere/x",
        "https://elsewhere/p@ssword",
    ];
    for location in locations {
        let origin = Origin::start(move |_| (axum::http::StatusCode::FOUND, [("location", location)]).into_response());
        let template = format!("http://me:p%40ssword@{}/{{id}}?key=of-the-template", origin.address);
        let reader = TestReader::new(&template, 100);
        same(reader.read(&request("1", "open-sesame-1001")), Err(ReadError::Rejected));
        let told = reader.troubles().join("; ").to_lowercase();
        for secret in ["sesame", "ssword", "of-the-template"] {
            assert!(!told.contains(secret), "{location}: {told}");
        }
        assert!(
            told.contains("302") && told.contains("write where they lead into --resolver"),
            "{told}"
        );
    }
}

#[test]
fn a_kept_connection_that_was_closed_costs_no_failure() {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    // Answers once on each connection, and closes it when the next request comes.
    let server = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut buf = [0; 4096];
            let _ = stream.read(&mut buf).expect("a request");
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
                .expect("sent");
            if stream.read(&mut buf).is_ok_and(|read| read > 0) {
                drop(stream);
            }
        }
    });
    let reader = TestReader::new(&format!("http://{address}/{{id}}"), 10);
    same(reader.read(&request("1", "")), one("x"));
    same(reader.read(&request("1", "")), one("x"));
    drop(reader);
    server.join().expect("ends");
}

#[test]
fn a_server_is_tried_before_anyone_needs_it() {
    let origin = Origin::start(|_| "x".into_response());
    let health = Health::default();
    let good: Template = format!("http://{}/{{id}}", origin.address).parse().expect("good");
    let dead: Template = "http://127.0.0.1:1/{id}".parse().expect("good");
    let plan = HttpPlan {
        reads: 64,
        limit: Duration::from_secs(5),
        max_bytes: 100,
    };
    let _http = Http::start(&[good, dead], plan, &health).expect("starts");
    let deadline = Instant::now() + Duration::from_secs(20);
    while health.is_ready() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let told: Vec<_> = health.troubles().iter().map(ToString::to_string).collect();
    assert!(
        told.len() == 1 && told[0].contains("127.0.0.1:1 can't be reached"),
        "{told:?}"
    );
    assert_eq!(origin.asked().len(), 0, "a connection is enough");
}
