//! [`ApiError`]: every answer of the API that says no.

use std::borrow::Cow;
use std::time::Duration;

use entity_sync_core::UnknownEntity;
use hyper::header::{ALLOW, CONNECTION, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Method, Response, StatusCode};
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
    /// Nothing can follow on the connection.
    closes: bool,
    /// It says when to send the request again.
    retries: bool,
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
            closes: false,
            retries: false,
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
            format!(
                "{entity:?} is not in this server's store: it is read from the source given by --resolver or the \
                 configuration file"
            ),
            "change it there, then send POST /notify",
        )
    }

    /// What hyper can't read, and answers with this status by itself.
    pub(super) fn unreadable(status: u16) -> Self {
        let error = match status {
            414 => Self::new(
                StatusCode::URI_TOO_LONG,
                "url_too_long",
                "the path is too long",
                "an entity and an id have 1024 bytes at most, unless --max-key-bytes says otherwise",
            ),
            431 => Self::head_too_large(),
            _ => Self::new(
                StatusCode::BAD_REQUEST,
                "bad_request",
                "the request is not good HTTP/1.1",
                "send a line such as GET /healthz HTTP/1.1 and headers, each of them a name, a colon and a value, with no \
                 spaces before the colon; HTTP/2 is not spoken here",
            ),
        };
        Self { closes: true, ..error }
    }

    pub(super) fn head_too_large() -> Self {
        let most = super::MAX_HEAD_BYTES;
        let error = Self::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "head_too_large",
            format!("the head of the request has more than {most} bytes or 100 headers"),
            "send fewer or shorter headers; cookies are of no use here",
        );
        Self { closes: true, ..error }
    }

    pub(super) fn no_memory() -> Self {
        let error = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no_memory",
            "the requests that are being answered take all memory that they may have together",
            "send the request again later, and fewer at once, or raise --max-api-bytes",
        );
        Self {
            closes: true,
            retries: true,
            ..error
        }
    }

    pub(super) fn untrusted_host(host: &str) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "untrusted_host",
            format!(
                "the host name {host:?} is not allowed: a hostile web page could resolve its own name to this server"
            ),
            "call the server localhost or by its IP address, or allow the name with --allowed-host; callers with a token \
             (--api-token-file) may use any name",
        )
    }

    pub(super) fn key_too_long(length: usize, limit: usize) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "key_too_long",
            format!("entity and id together are {length} bytes; clients can subscribe to {limit} at most"),
            "use a shorter id, or raise --max-key-bytes",
        )
    }

    pub(super) fn too_many_connections(limit: usize) -> Self {
        let error = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_connections",
            format!("all {limit} connections that this server allows to its API are in use"),
            "send the request again later; keep a pool of connections in your application and use them again, or raise \
             --api-connections",
        );
        Self { retries: true, ..error }
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
        let error = Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "slow_body",
            format!("the body did not arrive within {limit:?}"),
            "send the request again, with all of its body at once",
        );
        // The rest of the request is not waited for.
        Self { closes: true, ..error }
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

impl ApiError {
    /// The body, and the answer without it.
    pub(super) fn into_parts(self) -> (String, Response<()>) {
        let body = self.body();
        (body, self.into_response().map(drop))
    }

    fn body(&self) -> String {
        let error = json!({ "code": self.code, "message": self.message, "hint": self.hint });
        json!({ "error": error }).to_string()
    }

    pub(super) fn into_response(self) -> Answer {
        let mut response = super::json(self.status, self.body());
        if self.closes {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        if self.retries {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        }
        if let Some(allow) = self.allow {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}
