//! The hashes of the core: a keyed one for tables whose keys clients choose, and a stable one for buckets. The key comes
//! from the configuration, since core has no entropy of its own.

use std::hash::{BuildHasher, Hash};

use siphasher::sip::SipHasher13;
use siphasher::sip128;

use crate::resolve::Audience;

/// The process's secret seed for hashing and jitter. Draw it at random when the process starts, so that a client can't
/// choose keys that collide.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub u64, pub u64);

impl Seed {
    /// A keyed 64-bit hash of `value`.
    pub(crate) fn hash_of(self, value: &(impl Hash + ?Sized)) -> u64 {
        self.hash_one(value)
    }

    /// 128 keyed bits of `bytes`, for telling contents apart: nobody can choose two that collide.
    pub(crate) fn fingerprint(self, bytes: &[u8]) -> u128 {
        sip128::SipHasher13::new_with_keys(self.0, self.1).hash(bytes).as_u128()
    }
}

/// Keyed hashes of a key, and of the pair that it makes with an audience. Both halves of a topic keep them, since keys and
/// secrets may be long and a client makes its topics change often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NameHash {
    pub(crate) key: u64,
    pub(crate) name: u64,
}

impl NameHash {
    #[cfg(test)]
    pub(crate) fn of(seed: Seed, key: &crate::key::EntityKey, audience: &Audience) -> Self {
        Self::new(seed, seed.hash_of(key), seed.hash_of_audience(audience))
    }

    pub(crate) fn new(seed: Seed, key_hash: u64, audience_hash: u64) -> Self {
        Self {
            key: key_hash,
            name: seed.hash_of(&(key_hash, audience_hash)),
        }
    }
}

impl Seed {
    /// That of a secret is that of its text.
    pub(crate) fn hash_of_audience(self, audience: &Audience) -> u64 {
        match audience {
            Audience::Secret(secret) => self.hash_of(&**secret),
            other => self.hash_of(other),
        }
    }
}

impl BuildHasher for Seed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(secret)")
    }
}

/// FNV-1a, 64 bits: the same in every process and release, and not safe against chosen input.
pub(crate) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(crate) fn finish(&self) -> u64 {
        self.0
    }
}
