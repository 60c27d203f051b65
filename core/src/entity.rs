//! [`Entities`]: which entities there are, who may share a read of them, and how they are delivered.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::hash::Fnv;
use crate::key::EntityKey;
use crate::resolve::Audience;

/// The entities of an application. By default every name is one, with the default [`EntityOptions`].
///
/// ```
/// use entity_sync_core::{Delivery, Entities, EntityOptions};
///
/// let mut prices = EntityOptions::default();
/// prices.snapshot = true;
/// let mut ticks = EntityOptions::default();
/// ticks.delivery = Delivery::Every;
/// let entities = Entities::none().with("prices", prices).with("ticks", ticks);
/// ```
#[derive(Clone, Debug)]
pub struct Entities {
    by_name: BTreeMap<Arc<str>, EntityOptions>,
    others: Option<EntityOptions>,
}

/// How one entity is read and delivered.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EntityOptions {
    /// Which subscribers share a read.
    pub audience: AudienceRule,
    /// What a client is sent of many changes.
    pub delivery: Delivery,
    /// Whether a new subscription is answered with the present state. Protocol v1's original did not, so it is off.
    pub snapshot: bool,
    /// For stores that may show an old state for a while (lagging replicas): each read is followed by another one after
    /// so long, whose rows are delivered only if they differ.
    pub settle: Option<Duration>,
    /// Reads that may run at the same time, so that a slow entity leaves room for the others. At least 1. Those that
    /// have to wait begin in the order in which they became due. Set it below the number of threads that read.
    ///
    /// Of entities that are not registered by name, each has this many for itself, except that with more than a few of
    /// them, some share.
    pub max_running_reads: usize,
}

/// Which subscribers of a key share a read. Rows read for one audience are never sent to another.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum AudienceRule {
    /// Those with the same secret.
    #[default]
    BySecret,
    /// All.
    Public,
    /// Those for whom this gives the same audience. It is asked before the read and must always give the same answer for
    /// the same arguments. Where it panics, the subscription is refused, or ends.
    Custom(AudienceOf),
}

/// Chooses the audience of a key for a client with a secret.
pub type AudienceOf = Arc<dyn Fn(&EntityKey, &str) -> Audience + Send + Sync>;

/// What a client is sent of many changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivery {
    /// The newest state. States in between are skipped when changes come faster than they can be read or sent.
    #[default]
    Latest,
    /// One read and one push for each notify, in order. A client that falls behind its outbox limit is closed with code
    /// 1013, as nothing can be skipped for it.
    Every,
}

impl Entities {
    /// Every name is an entity, with these options unless [`with`](Self::with) gives it others.
    pub fn any(options: EntityOptions) -> Self {
        Self {
            by_name: BTreeMap::new(),
            others: Some(options),
        }
    }

    /// No name is an entity but those added [`with`](Self::with): to notify of another is an error, and who
    /// subscribes to one is never pushed anything.
    pub fn none() -> Self {
        Self {
            by_name: BTreeMap::new(),
            others: None,
        }
    }

    /// Registers an entity, or replaces its options.
    pub fn with(mut self, name: &str, options: EntityOptions) -> Self {
        self.by_name.insert(name.into(), options);
        self
    }
}

impl Default for Entities {
    fn default() -> Self {
        Self::any(EntityOptions::default())
    }
}

impl Default for EntityOptions {
    fn default() -> Self {
        Self {
            audience: AudienceRule::default(),
            delivery: Delivery::default(),
            snapshot: false,
            settle: None,
            max_running_reads: 256,
        }
    }
}

impl AudienceRule {
    /// `None` if the application's rule panics.
    pub(crate) fn audience_of(&self, key: &EntityKey, secret: &Arc<str>) -> Option<Audience> {
        Some(match self {
            Self::BySecret => Audience::Secret(secret.clone()),
            Self::Public => Audience::Public,
            // It is shown nothing that could be half changed.
            Self::Custom(rule) => catch_unwind(AssertUnwindSafe(|| rule(key, secret))).ok()?,
        })
    }
}

impl fmt::Debug for AudienceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BySecret => "BySecret",
            Self::Public => "Public",
            Self::Custom(_) => "Custom",
        })
    }
}

/// Where an entity's options stand in a [`Registry`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EntityIndex(u32);

/// [`Entities`] once a node has them: each with whatever `T` the node keeps for it.
pub(crate) struct Registry<T> {
    by_name: BTreeMap<Arc<str>, EntityIndex>,
    /// The first of the [`OTHERS`] places for entities that are not registered by name.
    others: Option<EntityIndex>,
    all: Box<[(EntityOptions, T)]>,
}

/// Clients choose names, so that not every name can have a place of its own.
const OTHERS: u32 = 64;

impl<T: Default> Registry<T> {
    pub(crate) fn new(entities: &Entities) -> Self {
        let mut all = Vec::new();
        let mut add = |options: &EntityOptions| {
            all.push((options.clone(), T::default()));
            EntityIndex((all.len() - 1) as u32)
        };
        let others = entities.others.as_ref().map(|options| {
            let first = add(options);
            for _ in 1..OTHERS {
                add(options);
            }
            first
        });
        let by_name = entities.by_name.iter();
        let by_name = by_name.map(|(name, options)| (name.clone(), add(options))).collect();
        Self {
            by_name,
            others,
            all: all.into(),
        }
    }

    pub(crate) fn find(&self, name: &str) -> Option<EntityIndex> {
        // Most applications either register nothing or few.
        let found = if self.by_name.is_empty() {
            None
        } else {
            self.by_name.get(name).copied()
        };
        found.or_else(|| {
            let mut hash = Fnv::default();
            hash.write(name.as_bytes());
            let hash = hash.finish();
            Some(EntityIndex(self.others?.0 + (hash ^ (hash >> 32)) as u32 % OTHERS))
        })
    }

    /// The names of all entities, if no other name is one.
    pub(crate) fn names(&self) -> Option<impl Iterator<Item = &str>> {
        self.others.is_none().then(|| self.by_name.keys().map(|name| &**name))
    }

    pub(crate) fn options(&self, index: EntityIndex) -> &EntityOptions {
        &self.all[index.0 as usize].0
    }

    pub(crate) fn of(&self, index: EntityIndex) -> &T {
        &self.all[index.0 as usize].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_find_their_own_options_then_those_of_others() {
        let every = EntityOptions {
            delivery: Delivery::Every,
            ..EntityOptions::default()
        };
        let any = Registry::<()>::new(&Entities::default().with("ticks", every.clone()));
        let delivery = |name| any.find(name).map(|index| any.options(index).delivery);
        assert_eq!(delivery("ticks"), Some(Delivery::Every));
        assert_eq!(delivery("items"), Some(Delivery::Latest));
        let places: std::collections::BTreeSet<_> = (0..1000).map(|id| any.find(&format!("e{id}"))).collect();
        assert_eq!(places.len(), OTHERS as usize);
        let few = Registry::<()>::new(&Entities::none().with("ticks", every));
        assert!(few.find("ticks").is_some());
        assert_eq!(few.find("items"), None);
    }
}
