//! [`ApiError`]: every answer of the API that says no.

use std::borrow::Cow;
use std::time::Duration;

use entity_sync_core::{KeyTooLong, UnknownEntity};
use hyper::header::{ALLOW, CONNECTION, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, StatusCode};
use serde_json::json;

use super::Answer;
use super::route::Route;
use crate::store::StoreError;

/// Answered as `{"error":{"code":"…","message":"…","hint":"…"}}`.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    /// For programs. It never changes between releases.
    code: &'static str,
    /// For people: what happened.
    message: Cow<'static, str>,
    /// For people: what to do.
    hint: Cow<'static, str>,
    /// The methods that there are, if it was none of them.
    allow: Option<&'static str>,
}

const PATHS: &str = "there are PUT, GET and DELETE /entities/{entity}/{id}, POST /notify, and GET /cluster, /metrics, /healthz and /readyz";

const ENTITY_PATH: &str = "write /entities/{entity}/{id}, both of them non-empty and percent-encoded: the id \
     a/b is written a%2Fb";

const NOTIFY_SHAPE: &str = "send {\"entity\":\"items\",\"id\":\"100\"} or an array of such objects: entity and \
     id are strings, in quotes even if they are numbers, and there are no other fields";

impl ApiError {
    fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
        hint: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            hint: hint.into(),
            allow: None,
        }
    }

    pub(super) fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "nothing is stored under this entity and id",
            "PUT it first; both are case-sensitive",
        )
    }

    pub(super) fn no_cluster() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "no_cluster",
            "this server is one of no cluster",
            "start it with --bus: entity-sync --help says how",
        )
    }

    pub(super) fn not_connected() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not_connected",
            "the bus has not been connected yet: this node would not hear of changes on the others",
            "start the bus, or correct its address; the server goes on trying",
        )
    }

    pub(super) fn not_stored(entity: &str) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "not_stored",
            format!("this server does not keep {entity:?}: it reads it where --resolver or the configuration file say"),
            "change it there, and tell of the change with POST /notify",
        )
    }

    pub(super) fn too_many_connections(limit: usize) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_connections",
            format!("all {limit} connections that this server allows to its API are in use"),
            "send the request again later; keep a pool of connections in your application and use them again, or raise \
             --api-connections",
        )
    }

    pub(super) fn web_page() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "web_page",
            "a web page sent this request, and the API is for programs only",
            "send it from your server or from a command line; web pages subscribe over WebSocket",
        )
    }

    pub(super) fn no_token() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "no_token",
            "the request does not carry the API's token",
            "send the header Authorization: Bearer and the line that is in the server's --api-token-file",
        )
    }

    pub(super) fn no_such_path(path: &str) -> Self {
        let hint = if path.starts_with("/entities") {
            ENTITY_PATH
        } else {
            PATHS
        };
        Self::new(StatusCode::NOT_FOUND, "no_such_path", "this path does not exist", hint)
    }

    pub(super) fn method_not_allowed(method: &Method, route: Route<'_>) -> Self {
        let (hint, allow) = match route {
            Route::Entity { .. } => ("use PUT, GET or DELETE", "PUT,GET,HEAD,DELETE"),
            Route::Notify => ("use POST", "POST"),
            Route::Health | Route::Ready | Route::Metrics | Route::Cluster => ("use GET", "GET,HEAD"),
        };
        let error = Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            format!("{method} is not possible on this path"),
            hint,
        );
        Self {
            allow: Some(allow),
            ..error
        }
    }

    pub(super) fn bad_path(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_path", message, ENTITY_PATH)
    }

    pub(super) fn bad_notify(message: impl Into<Cow<'static, str>>) -> Self {
        let message = message.into();
        Self::new(StatusCode::BAD_REQUEST, "bad_notify", message, NOTIFY_SHAPE)
    }

    pub(super) fn too_many_keys(count: usize) -> Self {
        let most = super::MAX_NOTIFY_KEYS;
        Self::new(
            StatusCode::BAD_REQUEST,
            "too_many_keys",
            format!("{count} keys are too many for one request, none of them was accepted"),
            format!("send at most {most} at once, and the rest in further requests"),
        )
    }

    pub(super) fn empty_body() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "empty_body",
            "the body is empty",
            "send the entity's new content, usually JSON, or use DELETE to remove it",
        )
    }

    pub(super) fn not_utf8(position: usize) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "not_utf8",
            format!("the body is not UTF-8 text, from byte {position} on"),
            "send text in UTF-8, as browsers receive it as text; encode binary content, such as with base64",
        )
    }

    pub(super) fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("the body is larger than {limit} bytes"),
            "send less at once",
        )
    }

    pub(super) fn incomplete_body() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "incomplete_body",
            "the body could not be read to its end",
            "send the request again",
        )
    }

    pub(super) fn slow_body(limit: Duration) -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "slow_body",
            format!("the body did not arrive within {limit:?}"),
            "send the request again, with all of its body at once",
        )
    }

    /// Whatever keeps the store from answering, the server is of no use to its callers now.
    pub(super) fn unhealthy(error: StoreError) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            ..error.into()
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let (status, code) = match &error {
            StoreError::Full => (StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
            StoreError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            StoreError::Closed => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            StoreError::TooBig => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            StoreError::ReadOnly => (StatusCode::INTERNAL_SERVER_ERROR, "read_only"),
            StoreError::NotTold => (StatusCode::INTERNAL_SERVER_ERROR, "not_told"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "store_failed"),
        };
        Self::new(status, code, error.message(), error.hint())
    }
}

impl From<UnknownEntity> for ApiError {
    fn from(error: UnknownEntity) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "unknown_entity",
            format!(
                "{:?} is no entity of this server; nothing was notified",
                error.key.entity()
            ),
            "add it to the configuration file as [entities.NAME], or correct the name",
        )
    }
}

impl From<KeyTooLong> for ApiError {
    fn from(error: KeyTooLong) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "key_too_long",
            error.to_string(),
            "use a shorter id",
        )
    }
}

impl ApiError {
    pub(super) fn into_response(self) -> Answer {
        let error = json!({
            "error": { "code": self.code, "message": self.message, "hint": self.hint }
        });
        let mut response = super::json(self.status, error.to_string());
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        }
        if self.status == StatusCode::REQUEST_TIMEOUT {
            // The rest of the request is not waited for.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        if let Some(allow) = self.allow {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}
