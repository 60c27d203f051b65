//! What requests are made of, checked: a key from the path, a text or keys from the body.

use std::error::Error;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use entity_sync_core::EntityKey;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body;
use hyper::header::{EXPECT, HeaderMap};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use tokio::time::timeout;

use super::error::ApiError;
use super::{Limits, MAX_ENTITY_BYTES, MAX_NOTIFY_BYTES, MAX_NOTIFY_KEYS};

/// The key that the path names.
pub(super) fn key(entity: &str, id: &str) -> Result<EntityKey, ApiError> {
    // Decoding would take a broken escape for the text itself, and one key would have two spellings.
    if has_broken_escape(entity) || has_broken_escape(id) {
        return Err(ApiError::bad_path(
            "a % in the path is not followed by two hexadecimal digits",
        ));
    }
    // Clients and `POST /notify` may name an empty part; in a path it is a slip, such as an unset variable.
    if entity.is_empty() || id.is_empty() {
        return Err(ApiError::bad_path("the entity or the id is empty"));
    }
    let not_text = |_| ApiError::bad_path("the path is not UTF-8 text once it is percent-decoded");
    let entity = percent_decode_str(entity).decode_utf8().map_err(not_text)?;
    let id = percent_decode_str(id).decode_utf8().map_err(not_text)?;
    Ok(EntityKey::new(&entity, &id)?)
}

fn has_broken_escape(path: &str) -> bool {
    path.split('%').skip(1).any(|after| {
        let digits = after.as_bytes().get(..2);
        !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// How long a body is read that nobody wants.
const DISCARD_TIME_LIMIT: Duration = Duration::from_secs(5);

/// Reads a body away, so that its sender reads the answer: closing a connection before all has been read may break it off.
pub(super) async fn discard<B>(headers: &HeaderMap, body: B)
where
    B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
{
    // Who asks before it sends has sent nothing, and need not.
    if headers.contains_key(EXPECT) {
        return;
    }
    let mut body = pin!(Limited::new(body, MAX_NOTIFY_BYTES));
    let read = async { while let Some(Ok(_)) = body.frame().await {} };
    // However it ends, it is answered now.
    let _ = timeout(DISCARD_TIME_LIMIT, read).await;
}

/// A body that is text, and not empty.
pub(super) async fn text<B>(body: B, limits: Limits) -> Result<String, ApiError>
where
    B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
{
    let body = bytes(body, MAX_ENTITY_BYTES, limits).await?;
    if body.is_empty() {
        return Err(ApiError::empty_body());
    }
    String::from_utf8(body.into()).map_err(|error| ApiError::not_utf8(error.utf8_error().valid_up_to()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedKey {
    entity: String,
    id: String,
}

/// A body that names keys: all of them good ones, or it is refused as a whole.
pub(super) async fn keys<B>(body: B, limits: Limits) -> Result<Vec<EntityKey>, ApiError>
where
    B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
{
    let body = bytes(body, MAX_NOTIFY_BYTES, limits).await?;
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
    Ok(keys?)
}

async fn bytes<B>(body: B, limit: usize, limits: Limits) -> Result<Bytes, ApiError>
where
    B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
{
    // What says so itself need not be read.
    if body.size_hint().lower() > limit as u64 {
        return Err(ApiError::too_large(limit));
    }
    match timeout(limits.body_time_limit, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::too_large(limit)),
        Ok(Err(_)) => Err(ApiError::incomplete_body()),
        Err(_) => Err(ApiError::slow_body(limits.body_time_limit)),
    }
}
