//! [`ClusterSecret`]: what proves that a message comes from a node of the same cluster.

use std::fmt;

/// Bytes that a proof adds to a message.
pub(super) const MAC_BYTES: usize = 16;

/// A secret that all nodes of a cluster share. With it, each message carries a keyed MAC (BLAKE3, 128 bits) over all of it,
/// and messages without a good one are dropped and counted.
#[derive(Clone)]
pub struct ClusterSecret([u8; 32]);

impl ClusterSecret {
    /// Makes a key of a secret of any length, such as a file's content. Only nodes with the same secret and the same
    /// `prefix` understand each other.
    ///
    /// # Errors
    /// [`ShortSecret`] with less than 16 bytes, which is less than what the MAC is worth.
    pub fn new(secret: &[u8], prefix: &str) -> Result<Self, ShortSecret> {
        if secret.len() < 16 {
            return Err(ShortSecret { bytes: secret.len() });
        }
        let mut deriving = blake3::Hasher::new_derive_key("entity-sync 2026 cluster messages v1");
        deriving.update(&(prefix.len() as u64).to_le_bytes());
        deriving.update(prefix.as_bytes());
        deriving.update(secret);
        Ok(Self(*deriving.finalize().as_bytes()))
    }

    pub(super) fn sign(&self, message: &mut Vec<u8>) {
        let mac = blake3::keyed_hash(&self.0, message);
        message.extend_from_slice(&mac.as_bytes()[..MAC_BYTES]);
    }

    /// The message without its proof, if that is good.
    pub(super) fn verify<'a>(&self, signed: &'a [u8]) -> Option<&'a [u8]> {
        let (message, mac) = signed.split_last_chunk::<MAC_BYTES>()?;
        let expected = blake3::keyed_hash(&self.0, message);
        let expected = expected.as_bytes().first_chunk::<MAC_BYTES>()?;
        // Every byte is looked at, so that the time it takes tells nothing.
        constant_time_eq::constant_time_eq_16(mac, expected).then_some(message)
    }
}

/// A secret that is too short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortSecret {
    /// Its length.
    pub bytes: usize,
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(…)")
    }
}

impl fmt::Display for ShortSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the cluster secret has {} bytes, and needs at least 16; `openssl rand -hex 32` makes a good one",
            self.bytes
        )
    }
}

impl std::error::Error for ShortSecret {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_changed_in_any_bit_is_refused() {
        let secret = ClusterSecret::new(b"0123456789abcdef", "es").expect("long");
        let mut message = b"hello".to_vec();
        secret.sign(&mut message);
        assert_eq!(secret.verify(&message), Some(&b"hello"[..]));
        for bit in 0..message.len() * 8 {
            let mut changed = message.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(secret.verify(&changed), None);
        }
        assert_eq!(secret.verify(&message[..15]), None);
        let others = [
            ClusterSecret::new(b"0123456789abcdeF", "es"),
            ClusterSecret::new(b"0123456789abcdef", "other"),
            ClusterSecret::new(b"s0123456789abcdef", "e"),
        ];
        for other in others {
            assert_eq!(other.expect("long").verify(&message), None);
        }
        assert_eq!(
            ClusterSecret::new(b"short", "es").expect_err("short"),
            ShortSecret { bytes: 5 }
        );
    }
}
