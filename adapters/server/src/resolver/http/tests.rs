use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Request as HttpRequest;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;

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
                answer(&target)
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

    fn reader(&self, path: &str, max_bytes: usize) -> HttpReader {
        let template = format!("http://{}{path}", self.address).parse().expect("a template");
        HttpReader::new(template, LIMIT, max_bytes, 4, &Health::default())
    }

    fn asked(&self) -> Vec<[String; 3]> {
        std::mem::take(&mut self.asked.lock())
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
    for status in ["401", "403"] {
        same(reader.read(&request(status, "")), Err(ReadError::Denied));
    }
    origin.asked();
    for status in ["201", "206", "301", "302", "304", "307", "400", "429", "500", "503"] {
        same(reader.read(&request(status, "me")), Err(ReadError::Failed));
    }
    // A redirect would take the token along.
    assert_eq!(origin.asked().len(), 10);
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1, "it is kept");
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
    same(reader.read(&request("1", "you")), Err(ReadError::Failed));
    let versions: Vec<_> = origin.asked().into_iter().map(|[.., version]| version).collect();
    assert_eq!(versions, ["", "\"1\"", ""]);
    version.store(2, Ordering::SeqCst);
    same(reader.read(&request("1", "me")), one("row 2"));
    // Rights that are gone take the row along.
    version.store(8, Ordering::SeqCst);
    same(reader.read(&request("1", "me")), Err(ReadError::Denied));
    version.store(9, Ordering::SeqCst);
    same(reader.read(&request("1", "me")), Err(ReadError::Failed));
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
    let nobody = HttpReader::new(
        "http://127.0.0.1:1/{id}".parse().expect("good"),
        LIMIT,
        10,
        1,
        &Health::default(),
    );
    same(nobody.read(&request("1", "")), Err(ReadError::Failed));
}
