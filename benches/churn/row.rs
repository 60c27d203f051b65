//! [`Row`]: what the server says of a key, so that a client can check it: the state's number, for whom it was read, and of
//! which key.

use entity_sync_benches::wire::MIN_ROW_BYTES;

use crate::keys::Key;

/// A row as text: the state in [`MIN_ROW_BYTES`] digits, the secret, entity and id, and what fills it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) state: u64,
    pub(crate) secret: u32,
    pub(crate) key: Key,
}

impl Row {
    /// `None` for a row that no steady client may see: its secret or its key is none of theirs.
    pub(crate) fn parse(row: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(row).ok()?.split(' ');
        let mut next = || parts.next();
        let (state, secret, entity, id) = (next()?, next()?, next()?, next()?);
        Some(Self {
            state: state.parse().ok()?,
            secret: parse_secret(secret)?,
            key: Key::parse(entity, id)?,
        })
    }
}

/// The row that [`Row::parse`] reads, of at least `len` bytes.
pub(crate) fn row(state: u64, secret: &str, entity: &str, id: &str, len: usize) -> Vec<u8> {
    let mut row = format!("{state:0MIN_ROW_BYTES$} {secret} {entity} {id} ").into_bytes();
    row.resize(row.len().max(len), b'x');
    row
}

/// Secrets are numbered, so that a row tells how old its secret is. Clients with the same number share an audience. Number 0
/// is that of a client which has sent none.
pub(crate) fn secret(number: u32) -> String {
    match number {
        0 => String::new(),
        number => format!("s{number}"),
    }
}

fn parse_secret(secret: &str) -> Option<u32> {
    match secret {
        "" => Some(0),
        secret => secret.strip_prefix('s')?.parse().ok(),
    }
}
