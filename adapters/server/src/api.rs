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
//! Of more than 1,024 connections at once, the next 64 are answered their health checks and everything else with 503, and closed;
//! beyond that, they wait. A body that takes longer than 30 seconds is answered with 408, and
//! a connection that has sent no whole head for 60 seconds, or read nothing of its answers for 30, is closed ([`Limits`]).
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
mod route;
#[cfg(test)]
mod tests;
mod token;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use entity_sync_bus::ClusterView;
use entity_sync_core::{EntityKey, UnknownEntity};
use entity_sync_mio::Health;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use hyper::{Method, Request, Response, StatusCode};
use tokio::task::spawn_blocking;

use crate::cluster;
use crate::store::{Store, StoreError};
pub use address::Address;
pub use connections::Connections;
use error::ApiError;
pub use listener::{Listener, UnixSocket};
use route::Route;
pub use token::Token;

/// The most bytes that the body of an entity may have.
pub const MAX_ENTITY_BYTES: usize = 1 << 20;

/// The most keys that one `POST /notify` may name.
pub const MAX_NOTIFY_KEYS: usize = 10_000;

/// The most bytes that the body of one `POST /notify` may have.
pub const MAX_NOTIFY_BYTES: usize = 4 << 20;

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
pub struct Api(Arc<Parts>);

impl Api {
    /// The API that these make up.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
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
        let mut response = match self.serve(place, request).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        };
        if is_head {
            let length = response.body().size_hint().exact().unwrap_or_default();
            response.headers_mut().insert(CONTENT_LENGTH, length.into());
            *response.body_mut() = Full::default();
        }
        response
    }

    async fn serve<B>(&self, place: Place, request: Request<B>) -> Result<Answer, ApiError>
    where
        B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
    {
        refuse_web_pages(request.headers())?;
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let route = Route::of(path);
        if place == Place::Reserve && !route.is_some_and(Route::is_open) {
            self.0.connections.refuse();
            extract::discard(&parts.headers, body).await;
            return Err(ApiError::too_many_connections(self.0.limits.max_connections));
        }
        let route = route.ok_or_else(|| ApiError::no_such_path(path))?;
        if !route.is_open() {
            self.ask_for_token(&parts.headers)?;
        }
        let method = &parts.method;
        let reads = method == Method::GET || method == Method::HEAD;
        match route {
            Route::Entity { entity, id } if *method == Method::PUT => {
                let key = extract::key(entity, id)?;
                self.put(key, body).await
            }
            Route::Entity { entity, id } if reads => self.get(extract::key(entity, id)?).await,
            Route::Entity { entity, id } if *method == Method::DELETE => self.delete(extract::key(entity, id)?).await,
            Route::Notify if *method == Method::POST => self.notify(body).await,
            Route::Metrics if reads => Ok(self.metrics()),
            Route::Cluster if reads => self.cluster(),
            Route::Health if reads => self.health(&parts.headers).await,
            Route::Ready if reads => self.ready(&parts.headers).await,
            _ => Err(ApiError::method_not_allowed(method, route)),
        }
    }

    async fn put<B>(&self, key: EntityKey, body: B) -> Result<Answer, ApiError>
    where
        B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
    {
        let store = self.0.store_of(&key)?;
        let body = extract::text(body, self.0.limits).await?;
        let written = store.put(key, body).await?;
        Ok(empty(if written.created {
            StatusCode::CREATED
        } else {
            StatusCode::NO_CONTENT
        }))
    }

    async fn get(&self, key: EntityKey) -> Result<Answer, ApiError> {
        let store = self.0.store_of(&key)?.clone();
        let read = move || {
            let body = store.get(&key)?;
            Ok(body.map(|body| (content_type(&body), body)))
        };
        let (content_type, body) = blocking(read).await?.ok_or_else(ApiError::not_found)?;
        let headers = [
            (CONTENT_TYPE, content_type),
            // A state is true for the moment only.
            (CACHE_CONTROL, "no-store"),
        ];
        Ok(response(StatusCode::OK, headers, body))
    }

    async fn delete(&self, key: EntityKey) -> Result<Answer, ApiError> {
        if self.0.store_of(&key)?.delete(key).await? {
            Ok(empty(StatusCode::NO_CONTENT))
        } else {
            Err(ApiError::not_found())
        }
    }

    async fn notify<B>(&self, body: B) -> Result<Answer, ApiError>
    where
        B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
    {
        let keys = extract::keys(body, self.0.limits).await?;
        if !keys.is_empty() {
            (self.0.notify)(&keys)?;
        }
        let accepted = format!(r#"{{"accepted":{}}}"#, keys.len());
        Ok(json(StatusCode::ACCEPTED, accepted))
    }

    fn metrics(&self) -> Answer {
        let headers = [(CONTENT_TYPE, crate::metrics::CONTENT_TYPE)];
        response(StatusCode::OK, headers, (self.0.metrics)())
    }

    fn cluster(&self) -> Result<Answer, ApiError> {
        let cluster = self.0.cluster.as_ref().ok_or_else(ApiError::no_cluster)?;
        Ok(json(StatusCode::OK, cluster::to_json(cluster)))
    }

    fn ask_for_token(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        match &self.0.token {
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
