//! [`EntityKey`]: what a client subscribes to and an application notifies.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::hash::Fnv;

/// The most bytes that `entity` and `id` of one key may have together.
///
/// A client message is limited to 64 KiB by default, so no v1 client meets this limit before that one.
pub const MAX_KEY_BYTES: usize = 64 * 1024;

/// Names one entity: a type (`"items"`) and an id within it (`"100"`).
///
/// Identity is the pair: `items.a`/`b` and `items`/`a.b` are different keys. Cloning is a reference count. Both parts
/// may be empty and hold any UTF-8, as with the Go original.
#[derive(Clone)]
pub struct EntityKey {
    /// `entity` immediately followed by `id`: one allocation per key.
    text: Arc<str>,
    /// Length of `entity` in bytes, which makes the pair out of the text.
    entity_len: u32,
    /// Stable across processes, since nodes of a cluster must agree on buckets.
    stable_hash: u32,
}

impl EntityKey {
    /// Makes a key.
    ///
    /// # Errors
    /// [`KeyTooLong`] when both parts together exceed [`MAX_KEY_BYTES`].
    pub fn new(entity: &str, id: &str) -> Result<Self, KeyTooLong> {
        let bytes = entity.len() + id.len();
        if bytes > MAX_KEY_BYTES {
            return Err(KeyTooLong { bytes });
        }
        let mut text = String::with_capacity(bytes);
        text.push_str(entity);
        text.push_str(id);
        let entity_len = entity.len() as u32;
        Ok(Self {
            stable_hash: stable_hash(&text, entity_len),
            text: text.into(),
            entity_len,
        })
    }

    /// The entity's type, such as `"items"`.
    pub fn entity(&self) -> &str {
        &self.text[..self.entity_len as usize]
    }

    /// The id within its type, such as `"100"`.
    pub fn id(&self) -> &str {
        &self.text[self.entity_len as usize..]
    }

    /// Length of both parts together, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    /// The bucket of this key among `buckets`: the same on every node and in every release.
    ///
    /// `buckets` of 0 counts as 1.
    pub fn bucket(&self, buckets: u32) -> u32 {
        self.stable_hash % buckets.max(1)
    }

    pub(crate) fn as_ref(&self) -> KeyRef<'_> {
        KeyRef {
            text: &self.text,
            entity_len: self.entity_len,
            stable_hash: self.stable_hash,
        }
    }
}

/// A key that stands in somebody else's bytes: looking it up takes no allocation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyRef<'a> {
    // First, since it is compared first.
    stable_hash: u32,
    entity_len: u32,
    text: &'a str,
}

impl<'a> KeyRef<'a> {
    /// `text` is the entity immediately followed by the id, of which the first has `entity_len` bytes. `None` if there is
    /// no such place in it.
    pub(crate) fn new(text: &'a str, entity_len: usize) -> Option<Self> {
        if !text.is_char_boundary(entity_len) {
            return None;
        }
        let entity_len = u32::try_from(entity_len).ok()?;
        Some(Self {
            text,
            entity_len,
            stable_hash: stable_hash(text, entity_len),
        })
    }

    pub(crate) fn text(&self) -> &'a str {
        self.text
    }

    pub(crate) fn entity_len(&self) -> usize {
        self.entity_len as usize
    }

    pub(crate) fn bucket(&self, buckets: u32) -> u32 {
        self.stable_hash % buckets.max(1)
    }
}

fn stable_hash(text: &str, entity_len: u32) -> u32 {
    let mut hash = Fnv::default();
    hash.write(&entity_len.to_le_bytes());
    hash.write(text.as_bytes());
    let hash = hash.finish();
    (hash ^ (hash >> 32)) as u32
}

impl PartialEq<KeyRef<'_>> for EntityKey {
    fn eq(&self, other: &KeyRef<'_>) -> bool {
        self.as_ref() == *other
    }
}

impl PartialEq for EntityKey {
    fn eq(&self, other: &Self) -> bool {
        self.entity_len == other.entity_len && self.stable_hash == other.stable_hash && self.text == other.text
    }
}

impl Eq for EntityKey {}

impl Hash for EntityKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_ref().hash(state);
    }
}

impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Not the stable hash: that one has no secret key, and clients choose ids.
        state.write_u32(self.entity_len);
        state.write(self.text.as_bytes());
    }
}

impl fmt::Debug for EntityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}", self.entity(), self.id())
    }
}

/// `entity` and `id` together are longer than [`MAX_KEY_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTooLong {
    /// The length that was asked for, in bytes.
    pub bytes: usize,
}

impl fmt::Display for KeyTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "entity and id together are {} bytes; the limit is {MAX_KEY_BYTES}",
            self.bytes
        )
    }
}

impl std::error::Error for KeyTooLong {}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(entity: &str, id: &str) -> EntityKey {
        EntityKey::new(entity, id).expect("short")
    }

    #[test]
    fn identity_is_the_pair() {
        assert_eq!(key("items", "100"), key("items", "100"));
        assert_ne!(key("items.a", "b"), key("items", "a.b"));
        assert_ne!(key("items1", "00"), key("items", "100"));
        assert_ne!(key("", "x"), key("x", ""));
    }

    #[test]
    fn the_bucket_never_changes_between_releases() {
        // Written down, not computed: a change here splits a cluster during a rolling upgrade.
        assert_eq!(key("items", "100").bucket(1024), 51);
        assert_eq!(key("", "").bucket(1024), 394);
        assert_eq!(key("items", "100").bucket(0), 0);
    }

    #[test]
    fn buckets_spread() {
        let mut used = [0u32; 64];
        for i in 0..64_000 {
            used[key("items", &i.to_string()).bucket(64) as usize] += 1;
        }
        assert!(used.iter().all(|&n| (700..1300).contains(&n)), "{used:?}");
    }

    #[test]
    fn long_keys_are_refused() {
        let long = "x".repeat(MAX_KEY_BYTES);
        assert!(EntityKey::new("", &long).is_ok());
        assert_eq!(
            EntityKey::new("a", &long).expect_err("too long").bytes,
            MAX_KEY_BYTES + 1
        );
    }
}
