//! The application: a store of versions, and reads of it that end when the simulation says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use entity_sync_core::{Audience, EntityKey, Reply, Request, Resolve, Rows};

/// A moment of the simulation: every event has its own.
pub(crate) type Tick = u64;

/// Reads that the machine handed over and the simulation has not looked at yet.
#[derive(Default)]
pub(crate) struct Requests(Mutex<Vec<(Request, Reply)>>);

impl Resolve for Requests {
    fn resolve(&self, request: Request, reply: Reply) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((request, reply));
    }
}

impl Requests {
    pub(crate) fn take(self: &Arc<Self>) -> Vec<(Request, Reply)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A read that has begun and not ended.
pub(crate) struct Read {
    pub(crate) name: Name,
    pub(crate) began: Tick,
    pub(crate) reply: Reply,
    /// What it saw of the store: the worst a real one may do is look at once and answer late.
    pub(crate) version: u64,
}

/// One audience of one key, as the simulation knows it.
pub(crate) type Name = (u8, String);

/// What stands in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) key: u8,
    pub(crate) secret: String,
    pub(crate) read_began: Tick,
    pub(crate) version: u64,
    pub(crate) index: u32,
    pub(crate) count: u32,
}

impl Row {
    fn to_bytes(&self, padding: usize) -> Bytes {
        let Self {
            key,
            secret,
            read_began,
            version,
            index,
            count,
        } = self;
        let pad = "x".repeat(padding);
        format!("{key} {secret} {read_began} {version} {index} {count} {pad}").into()
    }

    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(payload).ok()?;
        let mut parts = text.split(' ');
        Some(Self {
            key: parts.next()?.parse().ok()?,
            secret: parts.next()?.to_owned(),
            read_began: parts.next()?.parse().ok()?,
            version: parts.next()?.parse().ok()?,
            index: parts.next()?.parse().ok()?,
            count: parts.next()?.parse().ok()?,
        })
    }
}

#[derive(Default)]
pub(crate) struct Store {
    versions: BTreeMap<u8, u64>,
    pub(crate) reads: Vec<Read>,
    /// Reads whose rows must never be seen: they had been given up when the answer came.
    pub(crate) given_up: BTreeSet<Tick>,
}

impl Store {
    pub(crate) fn change(&mut self, key: u8) {
        *self.versions.entry(key).or_default() += 1;
    }

    pub(crate) fn version(&self, key: u8) -> u64 {
        self.versions.get(&key).copied().unwrap_or_default()
    }
}

/// The rows of one version: its number decides how many and how long, so that a replay sees the same. One version in
/// nine has none.
pub(crate) fn rows(read: &Read) -> Rows {
    let count = row_count(read.version);
    (0..count)
        .map(|index| {
            let row = Row {
                key: read.name.0,
                secret: read.name.1.clone(),
                read_began: read.began,
                version: read.version,
                index,
                count,
            };
            row.to_bytes((read.version as usize * 37 + index as usize * 101) % 260)
        })
        .collect()
}

pub(crate) fn row_count(version: u64) -> u32 {
    match version % 9 {
        0 => 2,
        8 => 0,
        n => 1 + (n % 3) as u32,
    }
}

pub(crate) fn name_of(request: &Request) -> Name {
    let secret = match &request.audience {
        Audience::Secret(secret) => secret.to_string(),
        Audience::Named(name) => name.to_string(),
        Audience::Public => PUBLIC.to_owned(),
    };
    (key_number(&request.key), secret)
}

/// Stands for [`Audience::Public`] in rows.
pub(crate) const PUBLIC: &str = "public";

pub(crate) fn key_of(number: u8) -> EntityKey {
    // Short, so it can't be refused.
    EntityKey::new("items", &number.to_string()).unwrap_or_else(|_| unreachable!())
}

fn key_number(key: &EntityKey) -> u8 {
    key.id().parse().unwrap_or(u8::MAX)
}

/// The first two keys are the same for everyone, whatever their secret.
pub(crate) fn is_public(key: u8) -> bool {
    key < 2
}
