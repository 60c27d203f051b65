//! The application: a store of versions, and reads of it that end when the simulation says so.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use entity_sync_core::{Audience, Reply, Request, Resolve, Rows, Timestamp};

use crate::entities::{Kind, kind_of, number_of};

/// A moment of the simulation: every event has its own.
pub(crate) type Tick = u64;

/// Reads that the machine handed over and the simulation has not looked at yet.
#[derive(Default)]
pub(crate) struct Requests {
    all: Mutex<Vec<(Request, Reply)>>,
    /// The next call is to panic.
    panics: AtomicBool,
}

impl Resolve for Requests {
    fn resolve(&self, request: Request, reply: Reply) {
        if self.panics.swap(false, Ordering::SeqCst) {
            // A panic, without the message on standard error.
            resume_unwind(Box::new("on purpose"));
        }
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((request, reply));
    }
}

impl Requests {
    pub(crate) fn take(self: &Arc<Self>) -> Vec<(Request, Reply)> {
        std::mem::take(&mut self.all.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn panic_next(&self, panics: bool) {
        self.panics.store(panics, Ordering::SeqCst);
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
    /// When each version of a key came to be; the first one has always been.
    pub(crate) versions: BTreeMap<u8, Vec<Timestamp>>,
    pub(crate) reads: Vec<Read>,
    /// Reads whose rows must never be seen: they had been given up when the answer came.
    pub(crate) given_up: BTreeSet<Tick>,
}

impl Store {
    pub(crate) fn change(&mut self, now: Timestamp, key: u8) {
        self.versions.entry(key).or_default().push(now);
    }

    pub(crate) fn version(&self, key: u8) -> u64 {
        self.versions.get(&key).map_or(0, |changes| changes.len() as u64)
    }

    /// What a replica shows that is so far behind as `at`.
    pub(crate) fn version_at(&self, key: u8, at: Timestamp) -> u64 {
        let changes = self.versions.get(&key).map_or(&[][..], Vec::as_slice);
        changes.partition_point(|&change| change <= at) as u64
    }
}

/// The rows of one version: its number decides how many and how long, so that a replay sees the same. One version in
/// nine has none.
pub(crate) fn rows(read: &Read, has_ticks: bool) -> Rows {
    let count = row_count(read.name.0, read.version);
    (0..count)
        .map(|index| {
            let row = Row {
                key: read.name.0,
                secret: read.name.1.clone(),
                // Rows of the same state must be the same where that is to be noticed.
                read_began: match kind_of(read.name.0) {
                    Kind::Settling => 0,
                    _ if !has_ticks => 0,
                    _ => read.began,
                },
                version: read.version,
                index,
                count,
            };
            row.to_bytes((read.version as usize * 37 + index as usize * 101) % 260)
        })
        .collect()
}

pub(crate) fn row_count(key: u8, version: u64) -> u32 {
    match version % 9 {
        // What is counted must be seen.
        8 if kind_of(key) == Kind::Every => 1,
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
    (number_of(&request.key), secret)
}

/// Stands for [`Audience::Public`] in rows.
pub(crate) const PUBLIC: &str = "public";

/// As whom a client with this secret is read for.
pub(crate) fn audience_name(key: u8, secret: &str) -> Name {
    let name = if kind_of(key) == Kind::Public { PUBLIC } else { secret };
    (key, name.to_owned())
}
