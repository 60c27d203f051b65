//! What clients send.

use crate::entities::entity_of;

pub(crate) fn upgrade(snapshots: bool) -> String {
    let query = if snapshots { "?snapshot=1" } else { "" };
    format!(
        "GET /ws/entity-sync/{query} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

pub(crate) fn subscription(action: &str, key: u8) -> String {
    let entity = entity_of(key);
    format!(r#"{{"action":"{action}","body":{{"entity":"{entity}","id":"{key}"}}}}"#)
}

/// A message that is the application's.
pub(crate) const PASSED: &str = r#"{"hello":1}"#;

pub(crate) fn secret(secret: &str) -> String {
    format!(r#"{{"action":"secret","body":"{secret}"}}"#)
}

pub(crate) fn text(payload: &str) -> Vec<u8> {
    frame(1, payload.as_bytes())
}

pub(crate) fn ping() -> Vec<u8> {
    frame(9, b"are you there")
}

pub(crate) fn pong() -> Vec<u8> {
    frame(10, b"")
}

pub(crate) fn close() -> Vec<u8> {
    frame(8, &1000u16.to_be_bytes())
}

/// A masked frame of less than 126 bytes.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
    let mut frame = vec![0x80 | opcode, 0x80 | payload.len() as u8];
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(a, b)| a ^ b));
    frame
}
