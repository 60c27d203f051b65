//! What requests are made of, checked: a key from the path, a text or keys from the body.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut};
use entity_sync_core::EntityKey;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use hyper::http::request;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use tokio::time::timeout;

use super::error::ApiError;
use super::memory::Held;
use super::{Limits, MAX_ENTITY_BYTES, MAX_HEAD_BYTES, MAX_NOTIFY_BYTES, MAX_NOTIFY_KEYS};

/// The key that the path names.
pub(super) fn key(entity: &str, id: &str, max_bytes: usize) -> Result<EntityKey, ApiError> {
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
    checked(&entity, &id, max_bytes)
}

/// A key that clients may subscribe to.
fn checked(entity: &str, id: &str, max_bytes: usize) -> Result<EntityKey, ApiError> {
    let length = entity.len() + id.len();
    let key = EntityKey::new(entity, id).ok().filter(|_| length <= max_bytes);
    key.ok_or_else(|| ApiError::key_too_long(length, max_bytes))
}

/// Refuses a head that is too long. hyper reads a longer one, so that this is what answers it.
pub(super) fn check_length(request: &request::Parts) -> Result<(), ApiError> {
    let target = request.uri.path_and_query().map_or(0, |it| it.as_str().len());
    let fields = request.headers.iter();
    let fields: usize = fields.map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if target + fields > MAX_HEAD_BYTES {
        return Err(ApiError::head_too_large());
    }
    Ok(())
}

fn has_broken_escape(path: &str) -> bool {
    path.split('%').skip(1).any(|after| {
        let digits = after.as_bytes().get(..2);
        !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// A body that is being read.
pub(super) struct Reading<'b, B> {
    body: Pin<&'b mut B>,
    is_over: bool,
}

impl<'b, B: Body> Reading<'b, B> {
    pub(super) fn new(body: Pin<&'b mut B>) -> Self {
        let is_over = body.is_end_stream();
        Self { body, is_over }
    }

    /// Whether all of it was read.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }
}

impl<B: Body> Body for Reading<'_, B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = self.body.as_mut().poll_frame(cx);
        self.is_over |= matches!(polled, Poll::Ready(None)) || self.body.is_end_stream();
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that is text, and not empty.
pub(super) async fn text<B>(body: &mut Reading<'_, B>, limits: Limits, held: Held) -> Result<(String, Held), ApiError>
where
    B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
{
    let (body, held) = bytes(body, MAX_ENTITY_BYTES, limits, held).await?;
    if body.is_empty() {
        return Err(ApiError::empty_body());
    }
    let text = String::from_utf8(body);
    let text = text.map_err(|error| ApiError::not_utf8(error.utf8_error().valid_up_to()))?;
    Ok((text, held))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedKey {
    entity: String,
    id: String,
}

/// A body that names keys: all of them good ones, or it is refused as a whole.
pub(super) async fn keys<B>(
    body: &mut Reading<'_, B>,
    limits: Limits,
    held: Held,
) -> Result<(Vec<EntityKey>, Held), ApiError>
where
    B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
{
    let (body, held) = bytes(body, MAX_NOTIFY_BYTES, limits, held).await?;
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
    let keys = named
        .iter()
        .map(|named| checked(&named.entity, &named.id, limits.max_key_bytes));
    Ok((keys.collect::<Result<_, _>>()?, held))
}

async fn bytes<B>(
    body: &mut Reading<'_, B>,
    limit: usize,
    limits: Limits,
    mut held: Held,
) -> Result<(Vec<u8>, Held), ApiError>
where
    B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
{
    // What says so itself need not be read.
    if body.size_hint().lower() > limit as u64 {
        return Err(ApiError::too_large(limit));
    }
    let read = async {
        let mut whole = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::incomplete_body())?;
            // Trailers say nothing here.
            let Ok(data) = frame.into_data() else { continue };
            if whole.len() + data.remaining() > limit {
                return Err(ApiError::too_large(limit));
            }
            if !held.grow(data.remaining()) {
                return Err(ApiError::no_memory());
            }
            whole.put(data);
        }
        Ok((whole, held))
    };
    let slow = |_| ApiError::slow_body(limits.body_time_limit);
    timeout(limits.body_time_limit, read).await.map_err(slow)?
}
