//! The HTTP API of the application's side: write, read and delete entities, and notify of changes made elsewhere.
//!
//! | request | answers |
//! | --- | --- |
//! | `PUT /entities/{entity}/{id}`, the body any UTF-8 text up to 1 MiB | 201 created, 204 replaced |
//! | `GET /entities/{entity}/{id}` | 200 with the body |
//! | `DELETE /entities/{entity}/{id}` | 204 |
//! | `POST /notify`, the body `{"entity":"items","id":"100"}` or an array of such | 202 `{"accepted":1}` |
//! | `GET /healthz` | 200 `{"status":"ok"}` while the store answers, else 503 |
//! | `GET /readyz` | the same, and 503 from the moment on that the server is being shut down |
//! | `GET /metrics` | what is counted, for Prometheus |
//!
//! With a [`Token`], whoever doesn't send it as a bearer token is refused (401), but for the two health checks.
//! Requests that web pages send are refused (403): it is for programs. Paths are percent-decoded, so an id may hold anything: `a/b` is written `a%2Fb`. Errors are JSON, whatever went wrong:
//! `{"error":{"code":"not_found","message":"…","hint":"…"}}`.

mod error;
mod extract;
#[cfg(test)]
mod tests;
mod token;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ORIGIN};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use entity_sync_core::{EntityKey, UnknownEntity};
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::store::{Store, StoreError};
use error::ApiError;
use extract::{Key, Keys, Text};
pub use token::Token;

/// The most bytes that the body of an entity may have.
pub const MAX_ENTITY_BYTES: usize = 1 << 20;

/// The most keys that one `POST /notify` may name.
pub const MAX_NOTIFY_KEYS: usize = 10_000;

/// The most bytes that the body of one `POST /notify` may have.
pub const MAX_NOTIFY_BYTES: usize = 4 << 20;

/// What `POST /notify` calls.
pub type Notify = Arc<dyn Fn(&[EntityKey]) -> Result<(), UnknownEntity> + Send + Sync>;

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
    /// What callers must know. Without it, serve the API on a loopback address only.
    pub token: Option<Token>,
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
            token: None,
            is_stopping: Arc::default(),
        }
    }

    /// The store, if it has this.
    fn store_of(&self, key: &EntityKey) -> Result<&Arc<Store>, ApiError> {
        let store = self.store.as_ref().filter(|_| (self.is_stored)(key.entity()));
        store.ok_or_else(|| ApiError::not_stored(key.entity()))
    }
}

/// The API as a service.
///
/// `notify` is called for `POST /notify` only. Changes made here are told to the store's own `on_commit`, once they are
/// safe. It is called on a thread that serves other requests too, so it must return soon.
pub fn router(parts: Parts) -> Router {
    let api = Arc::new(parts);
    let entity = put(put_entity)
        .get(get_entity)
        .delete(delete_entity)
        .layer(DefaultBodyLimit::max(MAX_ENTITY_BYTES));
    let notify_route = post(post_notify).layer(DefaultBodyLimit::max(MAX_NOTIFY_BYTES));
    Router::new()
        .route("/entities/{entity}/{id}", entity)
        .route("/notify", notify_route)
        .route("/metrics", get(metrics))
        // What comes before this asks for the token, if there is one.
        .route_layer(middleware::from_fn_with_state(api.clone(), ask_for_token))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(no_such_path)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(refuse_web_pages))
        .with_state(api)
}

type Api = Arc<Parts>;

async fn put_entity(State(api): State<Api>, Key(key): Key, Text(body): Text) -> Result<StatusCode, ApiError> {
    let written = api.store_of(&key)?.put(key, body).await?;
    Ok(if written.created {
        StatusCode::CREATED
    } else {
        StatusCode::NO_CONTENT
    })
}

async fn get_entity(State(api): State<Api>, Key(key): Key) -> Result<Response, ApiError> {
    let store = api.store_of(&key)?.clone();
    let read = move || {
        let body = store.get(&key)?;
        Ok(body.map(|body| (content_type(&body), body)))
    };
    let (content_type, body) = blocking(read).await?.ok_or_else(ApiError::not_found)?;
    let headers = [
        (CONTENT_TYPE, content_type),
        // A state is true for the moment only.
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, Body::from(body)).into_response())
}

async fn delete_entity(State(api): State<Api>, Key(key): Key) -> Result<StatusCode, ApiError> {
    if api.store_of(&key)?.delete(key).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::not_found())
    }
}

async fn post_notify(State(api): State<Api>, Keys(keys): Keys) -> Result<Response, ApiError> {
    if !keys.is_empty() {
        (api.notify)(&keys)?;
    }
    Ok((StatusCode::ACCEPTED, Json(json!({ "accepted": keys.len() }))).into_response())
}

async fn healthz(State(api): State<Api>) -> Result<Response, ApiError> {
    if let Some(store) = api.store.clone() {
        blocking(move || store.ping()).await.map_err(ApiError::unhealthy)?;
    }
    Ok(Json(json!({ "status": "ok" })).into_response())
}

async fn readyz(state: State<Api>) -> Result<Response, ApiError> {
    if state.is_stopping.load(Ordering::Relaxed) {
        return Err(ApiError::unhealthy(StoreError::Closed));
    }
    healthz(state).await
}

async fn metrics(State(api): State<Api>) -> Response {
    let headers = [(CONTENT_TYPE, HeaderValue::from_static(crate::metrics::CONTENT_TYPE))];
    (headers, (api.metrics)()).into_response()
}

async fn ask_for_token(State(api): State<Api>, request: Request, next: Next) -> Result<Response, ApiError> {
    match &api.token {
        Some(token) if !token.is_in(request.headers()) => Err(ApiError::no_token()),
        _ => Ok(next.run(request).await),
    }
}

/// Any web page that a user of this machine opens can send requests to loopback addresses. Browsers say when a page is behind a request; programs don't.
async fn refuse_web_pages(request: Request, next: Next) -> Result<Response, ApiError> {
    let headers = request.headers();
    let site = headers.get("sec-fetch-site");
    if headers.contains_key(ORIGIN) || site.is_some_and(|site| site != "none") {
        return Err(ApiError::web_page());
    }
    Ok(next.run(request).await)
}

async fn no_such_path(request: Request) -> ApiError {
    ApiError::no_such_path(request.uri().path())
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::method_not_allowed(request.method(), request.uri().path())
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

fn content_type(body: &[u8]) -> HeaderValue {
    HeaderValue::from_static(if serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok() {
        "application/json"
    } else {
        "text/plain; charset=utf-8"
    })
}
