//! The few bytes of HTTP and WebSocket that both sides of the benchmark need. Nothing here is shared with the server under
//! test.

/// A row begins with its number in so many digits.
pub(crate) const MIN_ROW_BYTES: usize = 20;

/// Asks for protocol v1.
pub(crate) const UPGRADE: &[u8] = b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Entity and id that all clients subscribe to.
pub(crate) const KEY: (&str, &str) = ("items", "100");

/// An empty ping, masked.
pub(crate) const PING: &[u8] = &[0x89, 0x80, 0, 0, 0, 0];

/// The server's answer to it.
pub(crate) const PONG: &[u8] = &[0x8a, 0];

/// A client's answer to a server's empty ping, masked.
pub(crate) const CLIENT_PONG: &[u8] = &[0x8a, 0x80, 0, 0, 0, 0];

/// The state of the entity with this number, as a row of `len` bytes.
pub(crate) fn row(number: u64, len: usize) -> Vec<u8> {
    let mut row = format!("{number:0MIN_ROW_BYTES$}").into_bytes();
    row.resize(len.max(MIN_ROW_BYTES), b'x');
    row
}

/// The same as an unmasked text frame: what a server sends.
pub(crate) fn frame(row: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x81];
    match row.len() {
        len @ ..126 => frame.push(len as u8),
        len @ ..0x1_0000 => {
            frame.push(126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(row);
    frame
}

/// The message that subscribes to [`KEY`], masked with zeros.
pub(crate) fn subscribe() -> Vec<u8> {
    let (entity, id) = KEY;
    let text = format!(r#"{{"action":"subscribe","body":{{"entity":"{entity}","id":"{id}"}}}}"#);
    let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
    frame.extend(text.bytes());
    frame
}

/// What a server's frame was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A row, with the number that it begins with.
    Row(u64),
    /// A ping without payload.
    Ping,
    /// Anything else.
    Other,
}

/// Takes a whole frame off the front of `bytes`; `None` if there is none.
pub(crate) fn take_frame(bytes: &mut &[u8]) -> Option<Frame> {
    let &[first, len, ref rest @ ..] = *bytes else {
        return None;
    };
    let (len, rest) = match len {
        126 => {
            let (len, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*len)), rest)
        }
        127 => {
            let (len, rest) = rest.split_first_chunk()?;
            (usize::try_from(u64::from_be_bytes(*len)).ok()?, rest)
        }
        len => (usize::from(len), rest),
    };
    let (payload, rest) = rest.split_at_checked(len)?;
    *bytes = rest;
    let number = || std::str::from_utf8(payload.get(..MIN_ROW_BYTES)?).ok()?.parse().ok();
    Some(match first {
        0x81 => number().map_or(Frame::Other, Frame::Row),
        0x89 if payload.is_empty() => Frame::Ping,
        _ => Frame::Other,
    })
}
