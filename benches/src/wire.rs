//! The few bytes of HTTP and WebSocket that both sides of the programs need. Nothing here is shared with the server under
//! test.

/// A row begins with its number in so many digits.
pub const MIN_ROW_BYTES: usize = 20;

/// Asks for protocol v1.
pub const UPGRADE: &[u8] = b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// The beginning of the response when the server agrees.
pub const UPGRADED: &[u8] = b"HTTP/1.1 101 ";

/// An empty ping, masked.
pub const PING: &[u8] = &[0x89, 0x80, 0, 0, 0, 0];

/// The server's answer to it.
pub const PONG: &[u8] = &[0x8a, 0];

/// A client's answer to a server's empty ping, masked.
pub const CLIENT_PONG: &[u8] = &[0x8a, 0x80, 0, 0, 0, 0];

/// The state of the entity with this number, as a row of `len` bytes.
pub fn row(number: u64, len: usize) -> Vec<u8> {
    let mut row = format!("{number:0MIN_ROW_BYTES$}").into_bytes();
    row.resize(len.max(MIN_ROW_BYTES), b'x');
    row
}

/// The same as an unmasked text frame: what a server sends.
pub fn frame(row: &[u8]) -> Vec<u8> {
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

/// The message that subscribes to a key.
pub fn subscribe(entity: &str, id: &str) -> Vec<u8> {
    key_message("subscribe", entity, id)
}

/// The message that ends a subscription.
pub fn unsubscribe(entity: &str, id: &str) -> Vec<u8> {
    key_message("unsubscribe", entity, id)
}

/// The message that says who reads.
pub fn secret(secret: &str) -> Vec<u8> {
    client_frame(TEXT, format!(r#"{{"action":"secret","body":"{secret}"}}"#).as_bytes())
}

fn key_message(action: &str, entity: &str, id: &str) -> Vec<u8> {
    let text = format!(r#"{{"action":"{action}","body":{{"entity":"{entity}","id":"{id}"}}}}"#);
    client_frame(TEXT, text.as_bytes())
}

/// First byte of a whole text message.
pub const TEXT: u8 = 0x81;
/// First byte of a ping.
pub const PING_BYTE: u8 = 0x89;

/// A frame as a client sends it, masked with zeros.
///
/// # Panics
/// When the payload has 64 KiB or more, which no client here sends.
pub fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match u8::try_from(payload.len()) {
        Ok(len @ ..126) => frame.push(0x80 | len),
        _ => {
            assert!(payload.len() < 0x1_0000, "too long for a client");
            frame.push(0x80 | 126);
            frame.extend((payload.len() as u16).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// The number that a row begins with.
pub fn number_of(row: &[u8]) -> Option<u64> {
    std::str::from_utf8(row.get(..MIN_ROW_BYTES)?).ok()?.parse().ok()
}

/// What a server's frame was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A text message, such as a row.
    Text(&'a [u8]),
    /// A ping without payload.
    Ping,
    /// A pong with its payload.
    Pong(&'a [u8]),
    /// Anything else.
    Other,
}

/// Takes a whole frame off the front of `bytes`; `None` if there is none.
pub fn take_frame<'a>(bytes: &mut &'a [u8]) -> Option<Frame<'a>> {
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
    Some(match first {
        0x81 => Frame::Text(payload),
        0x89 if payload.is_empty() => Frame::Ping,
        0x8a => Frame::Pong(payload),
        _ => Frame::Other,
    })
}
