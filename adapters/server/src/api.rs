//! The HTTP API of the application's side: write, read and delete entities, and notify of changes made elsewhere.
//!
//! | request | answers |
//! | --- | --- |
//! | `PUT /entities/{entity}/{id}`, the body any UTF-8 text up to 1 MiB | 201 created, 204 replaced |
//! | `GET /entities/{entity}/{id}` | 200 with the body |
//! | `DELETE /entities/{entity}/{id}` | 204 |
//! | `POST /notify`, the body `{"entity":"items","id":"100"}` or an array of such | 202 `{"accepted":1}` |
//! | `GET /healthz` | 200 `{"status":"ok"}` while the store answers and no part of the process has died, else 503 |
//! | `GET /readyz` | the same, and 503 while a part can't do its work, such as a database that can't be reached; until a bus was connected; and from the moment on that the server is being shut down |
//! | `GET /cluster` | 200 with what this node knows of the others, 404 if it is alone |
//! | `GET /metrics` | what is counted, for Prometheus |
//!
//! With a [`Token`], whoever doesn't send it as a bearer token is refused (401), but for the two health checks.
//! Requests that web pages send are refused (403): it is for programs. Paths are percent-decoded, so an id may hold anything: `a/b` is written `a%2Fb`. Errors are JSON, whatever went wrong:
//! `{"error":{"code":"not_found","message":"…","hint":"…"}}`.
//!
//! Of more than 1,024 connections at once, the one that has had nothing to do for longest is closed. If all of them are busy, the
//! next 64 are answered their health checks and everything else with 503, and closed;
//! beyond that, they wait. A body that takes longer than 30 seconds is answered with 408, and
//! a connection that has sent no whole head for 60 seconds, or read nothing of its answers for 30, is closed ([`Limits`]).
//! What is answered before its body was read is read away for a while, so that the answer arrives. All connections together
//! hold a sixteenth of the machine's memory: beyond it, the answer is 503 with `Retry-After`.
//!
//! Without a [`Token`], `Host` must be an IP address, `localhost` or one of [`Parts::hosts`] (else 403): a web page may have its
//! own name lead here.
//!
//! It is on hyper without a framework: with six routes there is little to share, and a framework took a quarter of the time
//! of a request.

mod address;
mod connections;
mod error;
mod extract;
mod health;
mod listen;
mod listener;
mod memory;
mod route;
#[cfg(test)]
mod tests;
mod token;
mod wire;

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use entity_sync_bus::ClusterView;
use entity_sync_core::{EntityKey, Hosts, UnknownEntity};
use entity_sync_mio::Health;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN,
};
use hyper::http::request;
use hyper::{Method, Request, Response, StatusCode};
use tokio::task::spawn_blocking;

use crate::cluster;
use crate::store::{Store, StoreError};
pub use address::Address;
pub use connections::Connections;
use error::ApiError;
use extract::Reading;
pub use listener::{Listener, UnixSocket, bind_port};
use memory::Memory;
use route::Route;
pub use token::Token;

/// The most bytes that the body of an entity may have.
pub const MAX_ENTITY_BYTES: usize = 1 << 20;

/// The most keys that one `POST /notify` may name.
pub const MAX_NOTIFY_KEYS: usize = 10_000;

/// The most bytes that the body of one `POST /notify` may have.
pub const MAX_NOTIFY_BYTES: usize = 4 << 20;

/// The most bytes that the head of a request may have.
pub const MAX_HEAD_BYTES: usize = 64 << 10;

/// What `POST /notify` calls.
pub type Notify = Arc<dyn Fn(&[EntityKey]) -> Result<(), UnknownEntity> + Send + Sync>;

type Answer = Response<Full<Bytes>>;

/// Where a connection is among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Regular,
    /// All regular places are taken: for health checks only, so that a full server isn't taken for a dead one.
    Reserve,
}

/// How much callers may ask of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Connections at the same time. At least one.
    pub max_connections: usize,
    /// Connections beyond these that are accepted all the same: they are answered one request each, with 503 if it is no health
    /// check. Without any, who connects waits at once.
    pub reserved_connections: usize,
    /// How long the head of a request may take, and how long a connection may wait for the next one. Then it is closed.
    pub head_time_limit: Duration,
    /// How long the body of a request may take. Then it is answered with 408.
    pub body_time_limit: Duration,
    /// Length of a key, entity and id together, in bytes: what clients may subscribe to.
    pub max_key_bytes: usize,
    /// Bytes of requests and answers that are held at the same time, of all connections. Beyond it, requests are answered with
    /// 503.
    pub max_bytes: usize,
    /// How long a caller may take none of the bytes that wait for it. Then its connection is closed.
    pub write_time_limit: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            reserved_connections: 64,
            head_time_limit: Duration::from_secs(60),
            body_time_limit: Duration::from_secs(30),
            max_key_bytes: 1024,
            max_bytes: memory::default_limit(),
            write_time_limit: Duration::from_secs(30),
        }
    }
}

/// What the API is made of.
#[non_exhaustive]
pub struct Parts {
    /// Where entities are, if there is a store.
    pub store: Option<Arc<Store>>,
    /// Whether the entities of this name are in the store, and not somewhere else.
    pub is_stored: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    /// What `POST /notify` calls.
    pub notify: Notify,
    /// What `GET /metrics` answers.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// What happens in the cluster, if it is one of one.
    pub cluster: Option<Arc<ClusterView>>,
    /// What callers must know. Without it, serve the API on a loopback address only.
    pub token: Option<Token>,
    /// Which names callers may call the server by, if there is no token.
    pub hosts: Hosts,
    /// How much callers may ask for.
    pub limits: Limits,
    /// How many connections there are, for others to read.
    pub connections: Arc<Connections>,
    /// Which parts of the process are in trouble.
    pub health: Health,
    /// The server is being shut down.
    pub is_stopping: Arc<AtomicBool>,
}

impl Parts {
    /// The API of a store that has all entities, or none; without metrics and without a token.
    pub fn new(store: Option<Arc<Store>>, notify: Notify) -> Self {
        Self {
            store,
            is_stored: Arc::new(|_| true),
            notify,
            metrics: Arc::new(String::new),
            cluster: None,
            token: None,
            hosts: Hosts::Named(Vec::new()),
            limits: Limits::default(),
            connections: Arc::default(),
            health: Health::default(),
            is_stopping: Arc::default(),
        }
    }

    /// The store, if it has this.
    fn store_of(&self, key: &EntityKey) -> Result<&Arc<Store>, ApiError> {
        let store = self.store.as_ref().filter(|_| (self.is_stored)(key.entity()));
        store.ok_or_else(|| ApiError::not_stored(key.entity()))
    }
}

/// The API as a service. Cloning gives another handle.
///
/// [`Parts::notify`] is called for `POST /notify` only. Changes made here are told to the store's own `on_commit`, once they are
/// safe. It is called on a thread that serves other requests too, so it must return soon.
#[derive(Clone)]
pub struct Api {
    parts: Arc<Parts>,
    memory: Arc<Memory>,
}

impl Api {
    /// The API that these make up.
    pub fn new(parts: Parts) -> Self {
        Self {
            memory: Memory::new(parts.limits.max_bytes),
            parts: Arc::new(parts),
        }
    }

    /// Answers one request. It needs a tokio runtime with its timer, for reads that block and bodies that don't come.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
    {
        self.answer_in(Place::Regular, request).await
    }

    async fn answer_in<B>(&self, place: Place, request: Request<B>) -> Answer
    where
        B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
    {
        let is_head = request.method() == Method::HEAD;
        let (parts, body) = request.into_parts();
        let mut body = pin!(body);
        let mut reading = Reading::new(body.as_mut());
        let mut response = match self.serve(place, &parts, &mut reading).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        };
        if !reading.is_over() {
            // What comes of it is read away, and nothing after it.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        if is_head {
            let length = response.body().size_hint().exact().unwrap_or_default();
            response.headers_mut().insert(CONTENT_LENGTH, length.into());
            *response.body_mut() = Full::default();
        }
        response
    }

    async fn serve<B>(
        &self,
        place: Place,
        parts: &request::Parts,
        body: &mut Reading<'_, B>,
    ) -> Result<Answer, ApiError>
    where
        B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
    {
        extract::check_length(parts)?;
        self.ask_for_host(parts)?;
        refuse_web_pages(&parts.headers)?;
        let path = parts.uri.path();
        let route = Route::of(path);
        if place == Place::Reserve && !route.is_some_and(Route::is_open) {
            self.parts.connections.refuse();
            return Err(ApiError::too_many_connections(self.parts.limits.max_connections));
        }
        let route = route.ok_or_else(|| ApiError::no_such_path(path))?;
        if !route.is_open() {
            self.ask_for_token(&parts.headers)?;
        }
        let method = &parts.method;
        let reads = method == Method::GET || method == Method::HEAD;
        match route {
            Route::Entity { entity, id } if *method == Method::PUT => self.put(self.key(entity, id)?, body).await,
            Route::Entity { entity, id } if reads => self.get(self.key(entity, id)?).await,
            Route::Entity { entity, id } if *method == Method::DELETE => self.delete(self.key(entity, id)?).await,
            Route::Notify if *method == Method::POST => self.notify(body).await,
            Route::Metrics if reads => Ok(self.metrics(&parts.headers)),
            Route::Cluster if reads => self.cluster(),
            Route::Health if reads => self.health(&parts.headers).await,
            Route::Ready if reads => self.ready(&parts.headers).await,
            _ => Err(ApiError::method_not_allowed(method, route)),
        }
    }

    async fn put<B>(&self, key: EntityKey, body: &mut Reading<'_, B>) -> Result<Answer, ApiError>
    where
        B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
    {
        let store = self.parts.store_of(&key)?;
        let (body, _held) = extract::text(body, self.parts.limits, self.memory.hold()).await?;
        let written = store.put(key, body).await?;
        Ok(empty(if written.created {
            StatusCode::CREATED
        } else {
            StatusCode::NO_CONTENT
        }))
    }

    async fn get(&self, key: EntityKey) -> Result<Answer, ApiError> {
        let store = self.parts.store_of(&key)?.clone();
        let read = move || {
            let body = store.get(&key)?;
            Ok(body.map(|body| (content_type(&body), body)))
        };
        let (content_type, body) = blocking(read).await?.ok_or_else(ApiError::not_found)?;
        let mut held = self.memory.hold();
        if !held.grow(body.len()) {
            return Err(ApiError::no_memory());
        }
        let headers = [
            (CONTENT_TYPE, content_type),
            // A state is true for the moment only.
            (CACHE_CONTROL, "no-store"),
        ];
        Ok(response(StatusCode::OK, headers, held.with(body)))
    }

    async fn delete(&self, key: EntityKey) -> Result<Answer, ApiError> {
        if self.parts.store_of(&key)?.delete(key).await? {
            Ok(empty(StatusCode::NO_CONTENT))
        } else {
            Err(ApiError::not_found())
        }
    }

    async fn notify<B>(&self, body: &mut Reading<'_, B>) -> Result<Answer, ApiError>
    where
        B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
    {
        let (keys, _held) = extract::keys(body, self.parts.limits, self.memory.hold()).await?;
        if !keys.is_empty() {
            (self.parts.notify)(&keys)?;
        }
        let accepted = format!(r#"{{"accepted":{}}}"#, keys.len());
        Ok(json(StatusCode::ACCEPTED, accepted))
    }

    fn metrics(&self, headers: &HeaderMap) -> Answer {
        let (content_type, text) = crate::metrics::in_format(headers, (self.parts.metrics)());
        response(StatusCode::OK, [(CONTENT_TYPE, content_type)], text)
    }

    fn key(&self, entity: &str, id: &str) -> Result<EntityKey, ApiError> {
        extract::key(entity, id, self.parts.limits.max_key_bytes)
    }

    fn cluster(&self) -> Result<Answer, ApiError> {
        let cluster = self.parts.cluster.as_ref().ok_or_else(ApiError::no_cluster)?;
        let mut shown = cluster::to_json(cluster);
        shown["troubles"] = health::shown(&self.parts.health.troubles(), true);
        Ok(json(StatusCode::OK, shown.to_string()))
    }

    /// Whoever has the token is no web page. Without one, the name tells a page that had its own name lead here.
    fn ask_for_host(&self, request: &request::Parts) -> Result<(), ApiError> {
        if self.parts.token.is_some() {
            return Ok(());
        }
        let target = request.uri.authority().map(|it| it.as_str().as_bytes());
        let fields = request.headers.get_all(HOST).into_iter().map(HeaderValue::as_bytes);
        let given = target.into_iter().chain(fields.filter(|_| target.is_none()));
        match given.map(<[u8]>::trim_ascii).find(|host| !self.parts.hosts.allow(host)) {
            Some(host) => Err(ApiError::untrusted_host(&String::from_utf8_lossy(host))),
            None => Ok(()),
        }
    }

    fn ask_for_token(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        match &self.parts.token {
            Some(token) if !token.is_in(headers) => Err(ApiError::no_token()),
            _ => Ok(()),
        }
    }
}

/// Any web page that a user of this machine opens can send requests to loopback addresses. Browsers say when a page is behind
/// a request; programs don't.
fn refuse_web_pages(headers: &HeaderMap) -> Result<(), ApiError> {
    let site = headers.get("sec-fetch-site");
    if headers.contains_key(ORIGIN) || site.is_some_and(|site| site != "none") {
        return Err(ApiError::web_page());
    }
    Ok(())
}

/// Reads of the store wait for the disk, which other requests must not wait for.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let stopped = |error: tokio::task::JoinError| StoreError::Other {
        reason: error.to_string(),
    };
    spawn_blocking(read).await.map_err(stopped)?
}

fn content_type(body: &[u8]) -> &'static str {
    if serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok() {
        "application/json"
    } else {
        "text/plain; charset=utf-8"
    }
}

fn empty(status: StatusCode) -> Answer {
    response(status, [], Bytes::new())
}

fn json(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    response(status, [(CONTENT_TYPE, "application/json")], body)
}

fn response(
    status: StatusCode,
    headers: impl IntoIterator<Item = (HeaderName, &'static str)>,
    body: impl Into<Bytes>,
) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}
