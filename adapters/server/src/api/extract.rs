//! What requests are made of, checked: a key from the path, a text or keys from the body.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use entity_sync_core::EntityKey;
use serde::Deserialize;

use super::error::ApiError;
use super::{MAX_ENTITY_BYTES, MAX_NOTIFY_BYTES, MAX_NOTIFY_KEYS};

/// The key that the path names.
pub(super) struct Key(pub(super) EntityKey);

impl<S: Send + Sync> FromRequestParts<S> for Key {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        // Decoding would take a broken escape for the text itself, and one key would have two spellings.
        if has_broken_escape(parts.uri.path()) {
            return Err(ApiError::bad_path(
                "a % in the path is not followed by two hexadecimal digits",
            ));
        }
        let Path((entity, id)) = Path::<(String, String)>::from_request_parts(parts, state).await?;
        // Clients and `POST /notify` may name an empty part; in a path it is a slip, such as an unset variable.
        if entity.is_empty() || id.is_empty() {
            return Err(ApiError::bad_path("the entity or the id is empty"));
        }
        Ok(Self(EntityKey::new(&entity, &id)?))
    }
}

fn has_broken_escape(path: &str) -> bool {
    path.split('%').skip(1).any(|after| {
        let digits = after.as_bytes().get(..2);
        !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// A body that is text, and not empty.
pub(super) struct Text(pub(super) String);

impl<S: Send + Sync> FromRequest<S> for Text {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| ApiError::body(&rejection, MAX_ENTITY_BYTES))?;
        if body.is_empty() {
            return Err(ApiError::empty_body());
        }
        match String::from_utf8(body.into()) {
            Ok(text) => Ok(Self(text)),
            Err(error) => Err(ApiError::not_utf8(error.utf8_error().valid_up_to())),
        }
    }
}

/// A body that names keys: all of them good ones, or it is refused as a whole.
pub(super) struct Keys(pub(super) Vec<EntityKey>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedKey {
    entity: String,
    id: String,
}

impl<S: Send + Sync> FromRequest<S> for Keys {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| ApiError::body(&rejection, MAX_NOTIFY_BYTES))?;
        // Looked at first, since an error then names what is wrong with the key, and where.
        let named: Vec<NamedKey> = if body.trim_ascii_start().starts_with(b"[") {
            serde_json::from_slice(&body)
        } else {
            serde_json::from_slice(&body).map(|key| vec![key])
        }
        .map_err(|error| ApiError::bad_notify(error.to_string()))?;
        if named.len() > MAX_NOTIFY_KEYS {
            return Err(ApiError::too_many_keys(named.len()));
        }
        let keys: Result<_, _> = named.iter().map(|key| EntityKey::new(&key.entity, &key.id)).collect();
        Ok(Self(keys?))
    }
}
