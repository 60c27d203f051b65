//! [`entity_sync_core::wire::decode`] a second time, on simd-json. It was the other candidate for that function; now the
//! two check each other, in `cargo test` and in the fuzz target `codec`.
//!
//! Both give the same result for all bytes; the comparison skips nothing. simd-json alone rejects four classes of messages
//! that Go's `encoding/json`, and so core, accepts:
//!
//! | class | here |
//! | --- | --- |
//! | bytes that are not UTF-8 in a string | a second attempt, each invalid byte replaced by U+FFFD |
//! | a `\u` escape of a lone surrogate | a second attempt, `\ufffd` in its place |
//! | an integer below -2^63 or above 2^64 - 1, a number whose `f64` would be infinite | a second attempt, its digits cut: nobody reads numbers |
//! | more than 1,024 levels of nesting | simd-json's limit is raised |
//!
//! A second attempt starts from the message as received, as simd-json unescapes strings in place.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::mem;

use entity_sync_core::EntityKey;
use entity_sync_core::wire::{ClientMessage, WireError};
use simd_json::{Buffers, ErrorType, Node, StaticNode, Tape};

/// How many bytes [`decode_in_place`] needs behind the message.
pub const PADDING: usize = simd_json::INPUT_PADDING;

/// Decodes the payload of one message by the same rules as [`entity_sync_core::wire::decode`].
///
/// # Errors
/// The same ones.
pub fn decode(message: &[u8]) -> Result<ClientMessage, WireError> {
    MEMORY.with_borrow_mut(|memory| {
        let decoded = match memory.decode_copy(message) {
            Err(Rejected::BySimdJson) => memory.decode_copy(&tame(message)),
            decoded => decoded,
        };
        decoded.map_err(WireError::from)
    })
}

/// Decodes the message `buffer[..len]` without a copy. [`PADDING`] more bytes of any content follow it.
///
/// For comparing speed, as the most that simd-json could give: the message is scribbled over, so there is no second
/// attempt, and what would need one is a syntax error.
///
/// # Errors
/// As for [`decode`].
///
/// # Panics
/// When the padding is missing.
pub fn decode_in_place(buffer: &mut [u8], len: usize) -> Result<ClientMessage, WireError> {
    assert!(buffer.len() >= len + PADDING, "no padding");
    MEMORY.with_borrow_mut(|memory| memory.decode_in_place(buffer, len).map_err(WireError::from))
}

thread_local! {
    // Kept, as a server would: for a short message, allocating them again costs about as much as decoding.
    static MEMORY: RefCell<Memory> = RefCell::new(Memory {
        copy: Vec::new(),
        buffers: Buffers::with_max_depth(0, usize::MAX),
        tape: Tape(Vec::new()),
    });
}

struct Memory {
    copy: Vec<u8>,
    buffers: Buffers,
    /// Empty between messages.
    tape: Tape<'static>,
}

enum Rejected {
    ByTheRules(WireError),
    /// For something that the rules may allow.
    BySimdJson,
}

impl From<WireError> for Rejected {
    fn from(error: WireError) -> Self {
        Self::ByTheRules(error)
    }
}

impl From<Rejected> for WireError {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::ByTheRules(error) => error,
            Rejected::BySimdJson => Self::Syntax,
        }
    }
}

impl Memory {
    fn decode_copy(&mut self, message: &[u8]) -> Result<ClientMessage, Rejected> {
        let mut copy = mem::take(&mut self.copy);
        copy.clear();
        copy.extend_from_slice(message);
        copy.resize(message.len() + PADDING, b' ');
        let decoded = self.decode_in_place(&mut copy, message.len());
        self.copy = copy;
        decoded
    }

    fn decode_in_place(&mut self, buffer: &mut [u8], len: usize) -> Result<ClientMessage, Rejected> {
        let mut tape = mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        let decoded = match simd_json::fill_tape_padded(buffer, len, &mut self.buffers, &mut tape) {
            Ok(()) => decode_message(&tape.0).map_err(Rejected::ByTheRules),
            Err(error) => Err(match error.error() {
                ErrorType::InvalidNumber | ErrorType::InvalidUtf8 | ErrorType::InvalidUnicodeCodepoint => {
                    Rejected::BySimdJson
                }
                _ => Rejected::ByTheRules(WireError::Syntax),
            }),
        };
        self.tape = tape.reset();
        decoded
    }
}

/// A tape exists, so the whole syntax is good: the first wrong type decides.
fn decode_message(tape: &[Node<'_>]) -> Result<ClientMessage, WireError> {
    let mut action = "";
    let mut body = None;
    match tape {
        [Node::Object { .. }, inner @ ..] => {
            for (name, value) in members(inner) {
                if name.eq_ignore_ascii_case("action") {
                    set_string(&mut action, value)?;
                } else if name.eq_ignore_ascii_case("body") {
                    body = Some(value);
                }
            }
        }
        [Node::Static(StaticNode::Null)] => {}
        _ => return Err(WireError::Type),
    }
    let body = body.ok_or(WireError::Type);
    match action {
        "" => Ok(ClientMessage::PassThrough),
        "subscribe" => decode_key(body?).map(ClientMessage::Subscribe),
        "unsubscribe" => decode_key(body?).map(ClientMessage::Unsubscribe),
        "secret" => {
            let mut secret = "";
            set_string(&mut secret, body?)?;
            Ok(ClientMessage::Secret(secret.to_owned()))
        }
        _ => Err(WireError::UnknownAction),
    }
}

fn decode_key(body: &[Node<'_>]) -> Result<EntityKey, WireError> {
    let mut entity = "";
    let mut id = "";
    match body {
        [Node::Object { .. }, inner @ ..] => {
            for (name, value) in members(inner) {
                if name.eq_ignore_ascii_case("entity") {
                    set_string(&mut entity, value)?;
                } else if name.eq_ignore_ascii_case("id") {
                    set_string(&mut id, value)?;
                }
            }
        }
        [Node::Static(StaticNode::Null)] => {}
        _ => return Err(WireError::Type),
    }
    Ok(EntityKey::new(entity, id)?)
}

/// `null` leaves the string as it was.
fn set_string<'m>(string: &mut &'m str, value: &[Node<'m>]) -> Result<(), WireError> {
    match value {
        [Node::String(text)] => *string = text,
        [Node::Static(StaticNode::Null)] => {}
        _ => return Err(WireError::Type),
    }
    Ok(())
}

/// The members of an object, from the nodes inside of it, in document order and with all duplicates.
fn members<'t, 'm>(mut nodes: &'t [Node<'m>]) -> impl Iterator<Item = (&'m str, &'t [Node<'m>])> {
    std::iter::from_fn(move || {
        let (name, rest) = nodes.split_first()?;
        let Node::String(name) = name else {
            unreachable!("names are strings");
        };
        let inner = match rest.first() {
            Some(Node::Object { count, .. } | Node::Array { count, .. }) => *count,
            _ => 0,
        };
        let (value, rest) = rest.split_at(1 + inner);
        nodes = rest;
        Some((*name, value))
    })
}

/// The same message to the rules, in terms that simd-json accepts. What was bad syntax remains so.
fn tame(message: &[u8]) -> Vec<u8> {
    let mut utf8 = Vec::with_capacity(message.len());
    for chunk in message.utf8_chunks() {
        utf8.extend_from_slice(chunk.valid().as_bytes());
        for _ in chunk.invalid() {
            utf8.extend_from_slice("\u{fffd}".as_bytes());
        }
    }

    let mut tamed = Vec::with_capacity(utf8.len());
    let mut rest = &utf8[..];
    let mut in_string = false;
    let mut digits = 0;
    while let [first, ..] = rest {
        digits = if first.is_ascii_digit() { digits + 1 } else { 0 };
        let mut take = 1;
        match first {
            b'"' => in_string = !in_string,
            b'\\' if in_string => match (utf16_unit(rest), rest.get(6..).and_then(utf16_unit)) {
                (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => take = 12,
                (Some(0xd800..0xe000), _) => {
                    tamed.extend_from_slice(br"\ufffd");
                    rest = &rest[6..];
                    continue;
                }
                // Whatever is escaped, it isn't the end of the string.
                _ => take = 2,
            },
            // The first two digits show whether there is a zero in front that may not be there.
            b'0'..=b'9' if !in_string && digits > 2 => {
                rest = &rest[1..];
                continue;
            }
            _ => {}
        }
        let (taken, left) = rest.split_at(take.min(rest.len()));
        tamed.extend_from_slice(taken);
        rest = left;
    }
    tamed
}

/// The number in a `\u` escape.
fn utf16_unit(escape: &[u8]) -> Option<u16> {
    let hex = escape.strip_prefix(br"\u")?.get(..4)?;
    hex.iter().try_fold(0, |unit, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        Some(unit << 4 | digit as u16)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// simd-json as it is rejects each; with what is done about it, the result is that of core.
    fn is_only_rejected_by_simd_json(message: &[u8], reason: ErrorType) {
        let mut copy = message.to_vec();
        let rejected = simd_json::to_tape(&mut copy).map(drop);
        assert_eq!(rejected.as_ref().map_err(|error| error.error()), Err(&reason));
        let decoded = decode(message);
        assert!(decoded.is_ok());
        assert_eq!(decoded, entity_sync_core::wire::decode(message));
    }

    #[test]
    fn simd_json_rejects_invalid_utf8() {
        is_only_rejected_by_simd_json(b"{\"action\":\"secret\",\"body\":\"\xe2\x98\"}", ErrorType::InvalidUtf8);
        is_only_rejected_by_simd_json(b"{\"\xff\":\"\xed\xa0\x80\"}", ErrorType::InvalidUtf8);
    }

    #[test]
    fn simd_json_rejects_lone_surrogates() {
        for text in [
            r"\ud800",
            r"\udc00A",
            r"\ud800\n",
            r"\ud800\ud83d\ude00\ude00",
            r"\\\udfff",
        ] {
            let message = format!(r#"{{"action":"secret","{text}":0,"body":"{text}"}}"#);
            is_only_rejected_by_simd_json(message.as_bytes(), ErrorType::InvalidUnicodeCodepoint);
        }
    }

    #[test]
    fn simd_json_rejects_large_numbers() {
        let long = "9".repeat(400);
        for number in [
            "1e999",
            "-1.5E+400",
            "18446744073709551616",
            "-9223372036854775809",
            &long,
            &format!("{long}.0"),
        ] {
            let message = format!(r#"{{"x":[{number}],"action":"secret","body":"{number}"}}"#);
            is_only_rejected_by_simd_json(message.as_bytes(), ErrorType::InvalidNumber);
        }
    }

    #[test]
    fn simd_json_rejects_deep_nesting() {
        for depth in [1_024, 100_000] {
            let message = format!(r#"{{"x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
            is_only_rejected_by_simd_json(message.as_bytes(), ErrorType::DepthLimitExceeded);
        }
    }

    #[test]
    fn only_decode_in_place_has_no_second_attempt() {
        let message = br#"{"x":1e999}"#;
        let mut buffer = message.to_vec();
        buffer.resize(message.len() + PADDING, b'}');
        assert_eq!(decode_in_place(&mut buffer, message.len()), Err(WireError::Syntax));
        assert_eq!(decode(message), Ok(ClientMessage::PassThrough));
    }
}
