//! The application's entities: one of each kind that there is. Keys are numbers, of which each kind has its own.

use std::sync::Arc;
use std::time::Duration;

use entity_sync_core::{Audience, AudienceRule, Delivery, Entities, EntityKey, EntityOptions};

pub(crate) const KEYS: u8 = 10;

/// How long the store of the settling entity may show old states.
pub(crate) const SETTLE: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The same for everyone, whatever their secret.
    Public,
    BySecret,
    /// Every notify is delivered.
    Every,
    /// New subscriptions get the present state.
    Snapshot,
    /// The store lags behind.
    Settling,
    /// Not registered.
    Unknown,
}

pub(crate) fn kind_of(key: u8) -> Kind {
    match key {
        0 | 1 => Kind::Public,
        2..=4 => Kind::BySecret,
        5 | 6 => Kind::Every,
        7 => Kind::Snapshot,
        8 => Kind::Settling,
        _ => Kind::Unknown,
    }
}

pub(crate) fn entity_of(key: u8) -> &'static str {
    match kind_of(key) {
        Kind::Public | Kind::BySecret => "items",
        Kind::Every => "ticks",
        Kind::Snapshot => "prices",
        Kind::Settling => "replicated",
        Kind::Unknown => "nobody's",
    }
}

pub(crate) fn key_of(number: u8) -> EntityKey {
    // Short, so it can't be refused.
    EntityKey::new(entity_of(number), &number.to_string()).unwrap_or_else(|_| unreachable!())
}

pub(crate) fn number_of(key: &EntityKey) -> u8 {
    key.id().parse().unwrap_or(u8::MAX)
}

/// Reads of one entity that may run at the same time.
pub(crate) fn max_running_reads(seed: u64) -> usize {
    1 + (seed % 4) as usize
}

pub(crate) fn entities(seed: u64) -> Entities {
    let mut plain = EntityOptions::default();
    plain.max_running_reads = max_running_reads(seed);
    let mut items = plain.clone();
    items.audience = AudienceRule::Custom(Arc::new(|key, secret| match kind_of(number_of(key)) {
        Kind::Public => Audience::Public,
        _ => Audience::Secret(secret.into()),
    }));
    let mut ticks = plain.clone();
    ticks.delivery = Delivery::Every;
    let mut prices = plain.clone();
    prices.snapshot = true;
    let mut replicated = plain;
    replicated.settle = Some(SETTLE);
    Entities::none()
        .with("items", items)
        .with("ticks", ticks)
        .with("prices", prices)
        .with("replicated", replicated)
}
