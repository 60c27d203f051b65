//! [`decode`]: what a v1 client says, read by the rules of Go's `encoding/json`, which the original used.
//!
//! Where those differ from what a JSON library does by default: names match whatever their ASCII case, the last of
//! several members with the same name counts, `null` for a string changes nothing, a wrong type anywhere among the known
//! names rejects the message, and what is not Unicode becomes U+FFFD instead of an error.
//!
//! Two known differences: Go rejects more than 10,000 levels of nesting in fields that nobody reads; here there is no such
//! limit, and no recursion either. And a message in a text frame never gets here unless it is valid UTF-8.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::key::{EntityKey, KeyTooLong};

/// A message from a v1 client.
#[derive(Clone, PartialEq, Eq)]
pub enum ClientMessage {
    /// Push this entity whenever it changes.
    Subscribe(EntityKey),
    /// Don't any more.
    Unsubscribe(EntityKey),
    /// What the resolver decides with what this client may see. It replaces the one before, for all subscriptions.
    Secret(String),
    /// It has no action, so it is for the application, exactly as received.
    PassThrough,
}

/// Why a message was rejected. The client isn't told; the connection stays open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WireError {
    /// It is not one JSON value.
    Syntax,
    /// It is not an object, a known field has the wrong type, or an action that needs a body has none.
    Type,
    /// There is no such action. The names of actions are case-sensitive.
    UnknownAction,
    /// `entity` and `id` together exceed [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES).
    KeyTooLong,
}

/// Decodes the payload of one text or binary message.
///
/// # Errors
/// [`WireError`] for whatever the original ignored.
pub fn decode(message: &[u8]) -> Result<ClientMessage, WireError> {
    let text = decode_utf8(message);
    let Some(Envelope { action, body }) = Envelope::decode(&text)? else {
        return Ok(ClientMessage::PassThrough);
    };
    let body = body.ok_or(WireError::Type);
    match &*action {
        "" => Ok(ClientMessage::PassThrough),
        "subscribe" => decode_key(body?).map(ClientMessage::Subscribe),
        "unsubscribe" => decode_key(body?).map(ClientMessage::Unsubscribe),
        "secret" => {
            let mut secret = Cow::Borrowed("");
            set_string(&mut secret, body?)?;
            Ok(ClientMessage::Secret(secret.into_owned()))
        }
        _ => Err(WireError::UnknownAction),
    }
}

/// Decodes the body of one message of the Go original's queue: a key by the same rules, such as
/// `{"entity":"items","id":"100"}`.
///
/// # Errors
/// [`WireError`] for whatever the original logged and dropped.
pub fn decode_entity_key(body: &[u8]) -> Result<EntityKey, WireError> {
    let text = decode_utf8(body);
    let text = text.trim_matches(JSON_WHITESPACE);
    if text.starts_with('n') && text != "null" {
        return Err(WireError::Syntax);
    }
    decode_key(text)
}

/// The outer object.
#[derive(Default)]
struct Envelope<'a> {
    action: Cow<'a, str>,
    /// JSON, not looked into until the action is known.
    body: Option<&'a str>,
}

impl<'a> Envelope<'a> {
    /// `None` for a `null` in place of the object.
    fn decode(text: &'a str) -> Result<Option<Self>, WireError> {
        if !text.trim_start_matches(JSON_WHITESPACE).starts_with('{') {
            let value: &RawValue = serde_json::from_str(text).map_err(|_| WireError::Syntax)?;
            return match value.get() {
                "null" => Ok(None),
                _ => Err(WireError::Type),
            };
        }
        let mut envelope = Self::default();
        // The whole message must be good JSON before a type can be wrong.
        let mut types = Ok(());
        for_each_member(text, |name, value| {
            if name.eq_ignore_ascii_case("action") {
                types = types.and(set_string(&mut envelope.action, value));
            } else if name.eq_ignore_ascii_case("body") {
                envelope.body = Some(value);
            }
        })?;
        types.map(|()| Some(envelope))
    }
}

fn decode_key(body: &str) -> Result<EntityKey, WireError> {
    let mut entity = Cow::Borrowed("");
    let mut id = Cow::Borrowed("");
    match body.as_bytes().first() {
        Some(b'{') => {
            let mut types = Ok(());
            for_each_member(body, |name, value| {
                if name.eq_ignore_ascii_case("entity") {
                    types = types.and(set_string(&mut entity, value));
                } else if name.eq_ignore_ascii_case("id") {
                    types = types.and(set_string(&mut id, value));
                }
            })?;
            types?;
        }
        // null
        Some(b'n') => {}
        _ => return Err(WireError::Type),
    }
    Ok(EntityKey::new(&entity, &id)?)
}

/// Assigns a JSON value to a string as Go does: `null` leaves it as it was.
fn set_string<'a>(string: &mut Cow<'a, str>, value: &'a str) -> Result<(), WireError> {
    match value.as_bytes().first() {
        Some(b'"') => *string = decode_string(value)?,
        Some(b'n') => {}
        _ => return Err(WireError::Type),
    }
    Ok(())
}

const JSON_WHITESPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// Calls `member` with the decoded name and the JSON value of each member of the object `json`, in document order. When
/// it returns `Ok`, the whole of `json` was good.
fn for_each_member<'a>(json: &'a str, member: impl FnMut(&str, &'a str)) -> Result<(), WireError> {
    struct Members<F>(F);

    impl<'a, F: FnMut(&str, &'a str)> Visitor<'a> for Members<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<(), A::Error> {
            // Raw names too: asked for strings, serde_json would reject lone surrogates; asked for bytes, it would accept
            // raw control characters.
            while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                let name = decode_string(name.get()).map_err(serde::de::Error::custom)?;
                (self.0)(&name, value.get());
            }
            Ok(())
        }
    }

    let mut deserializer = serde_json::Deserializer::from_str(json);
    deserializer
        .deserialize_map(Members(member))
        .and_then(|()| deserializer.end())
        .map_err(|_| WireError::Syntax)
}

/// Decodes a JSON string whose syntax was checked. Lone surrogates become U+FFFD each.
fn decode_string(json: &str) -> Result<Cow<'_, str>, WireError> {
    struct Unescaped;

    impl Visitor<'_> for Unescaped {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_bytes<E>(self, wtf8: &[u8]) -> Result<String, E> {
            // Surrogates are all that can be invalid here: three bytes each, of which the first is always this one.
            Ok(replace_invalid(wtf8, |byte| byte == 0xed))
        }
    }

    let quoted = json.strip_prefix('"').and_then(|json| json.strip_suffix('"'));
    match quoted {
        Some(plain) if !plain.contains('\\') => Ok(Cow::Borrowed(plain)),
        _ => serde_json::Deserializer::from_str(json)
            .deserialize_bytes(Unescaped)
            .map(Cow::Owned)
            .map_err(|_| WireError::Syntax),
    }
}

/// Go replaces each byte that is not part of a valid character, where Rust's lossy decoding may replace up to three at once.
fn decode_utf8(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(replace_invalid(bytes, |_| true)),
    }
}

/// Puts U+FFFD in the place of each invalid byte that `counts`, and nothing in the place of the others.
fn replace_invalid(bytes: &[u8], counts: impl Fn(u8) -> bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        let invalid = chunk.invalid().iter().filter(|&&byte| counts(byte));
        text.extend(invalid.map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

impl fmt::Debug for ClientMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subscribe(key) => write!(f, "Subscribe({key:?})"),
            Self::Unsubscribe(key) => write!(f, "Unsubscribe({key:?})"),
            // Often a token, and debug output ends up in logs.
            Self::Secret(_) => f.write_str("Secret(..)"),
            Self::PassThrough => f.write_str("PassThrough"),
        }
    }
}

impl From<KeyTooLong> for WireError {
    fn from(_: KeyTooLong) -> Self {
        Self::KeyTooLong
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syntax => "not one JSON value",
            Self::Type => "a field has the wrong type or is missing",
            Self::UnknownAction => "unknown action",
            Self::KeyTooLong => "entity and id are too long",
        })
    }
}

impl std::error::Error for WireError {}

#[cfg(test)]
mod tests;
