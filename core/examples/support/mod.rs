//! What the mock drivers share: a client's side of the conversation, in bytes.
#![allow(dead_code, reason = "each example uses a part")]

use std::collections::BTreeMap;

use entity_sync_core::{Config, EntityKey, Seed};

pub const UPGRADE: &[u8] = b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

pub fn config() -> Config {
    Config::new(Seed(1, 2))
}

pub fn key(id: &str) -> EntityKey {
    EntityKey::new("items", id).expect("a short key")
}

pub fn subscribe(id: &str) -> Vec<u8> {
    message(&format!(
        r#"{{"action":"subscribe","body":{{"entity":"items","id":"{id}"}}}}"#
    ))
}

/// A short masked text frame.
fn message(text: &str) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![0x81, 0x80 | text.len() as u8];
    frame.extend(mask);
    frame.extend(text.bytes().zip(mask.into_iter().cycle()).map(|(a, b)| a ^ b));
    frame
}

/// The rows in all that a client received: an HTTP response, and then frames.
pub fn rows(received: &[u8]) -> Vec<String> {
    let end = received.windows(4).position(|it| it == b"\r\n\r\n");
    let mut rest = &received[end.expect("a response") + 4..];
    let mut rows = Vec::new();
    while let [0x81, len, frame @ ..] = rest {
        let (row, after) = match len {
            126 => frame[2..].split_at(u16::from_be_bytes([frame[0], frame[1]]).into()),
            len => frame.split_at((*len).into()),
        };
        rows.push(String::from_utf8(row.to_vec()).expect("text"));
        rest = after;
    }
    assert!(rest.is_empty(), "something that isn't a whole text frame: {rest:?}");
    rows
}

/// Keys of the mock drivers' scenario.
pub const KEYS: usize = 5;

/// What a client of that scenario subscribes to.
pub fn keys_of(client: usize) -> [usize; 2] {
    [0, 1 + client % (KEYS - 1)]
}

/// Whole frames, whose rows (`KEY VERSION`) never go back and end with the newest of each key.
pub fn check(client: usize, received: &[u8], versions: &[u64; KEYS]) {
    let mut last = BTreeMap::new();
    for row in rows(received) {
        let (id, version) = row.split_once(' ').expect("a key and a version");
        let (id, version) = (id.parse().expect("a key"), version.parse().expect("a version"));
        let before = last.insert(id, version).unwrap_or(0);
        assert!(
            before <= version,
            "client {client}: {version} of key {id} came after {before}"
        );
    }
    let newest = keys_of(client).map(|id| (id, versions[id]));
    assert_eq!(last, BTreeMap::from(newest), "client {client} isn't up to date");
}

/// Xorshift.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}
