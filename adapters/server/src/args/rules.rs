//! [`EntityRules`]: how entities are read and delivered, as flags and the tables of the configuration file say together.

use std::collections::BTreeMap;

use clap::ValueEnum;
use entity_sync_mio::Delivery;

use super::file::{EntityTable, WhoShares};
use super::{ArgsError, Serve};
use crate::resolver::{Source, SourceError};

/// How an entity is read and delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntityRules {
    /// Where its rows come from. That of a database has its query.
    pub source: Source,
    /// Whether one read serves everyone, and not only those with the same secret.
    pub is_public: bool,
    /// Whether a new subscription is answered with the present state.
    pub snapshot: bool,
    /// What a client is sent of many changes.
    pub delivery: Delivery,
}

/// What clients are sent of many changes.
#[derive(Clone, Copy, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Which {
    Latest,
    Every,
}

type Rules = (Option<EntityRules>, BTreeMap<String, EntityRules>);

impl Serve {
    /// How entities are read and delivered: all others, and each that has a table.
    pub(super) fn rules(&self, tables: BTreeMap<String, EntityTable>) -> Result<Rules, ArgsError> {
        let default: Source = self.resolver.parse().map_err(ArgsError::Source)?;
        if let Some(name) = tables
            .keys()
            .find(|name| !self.entity.is_empty() && !self.entity.contains(name))
        {
            return Err(ArgsError::NoSuchEntity { name: name.clone() });
        }
        let mut entities = BTreeMap::new();
        for (name, table) in tables {
            let bad = |reason: &str| ArgsError::BadEntity {
                name: name.clone(),
                reason: reason.to_owned(),
            };
            let mut source = match &table.resolver {
                Some(given) => given.parse().map_err(|error: SourceError| bad(&error.to_string()))?,
                None => default.clone(),
            };
            match (&mut source, table.query.clone()) {
                (Source::Postgres { query, .. }, Some(given)) => *query = Some(given),
                (Source::Postgres { query: None, .. }, None) => {
                    return Err(bad("has no query: write query = \"SELECT …\""));
                }
                (_, Some(_)) => {
                    return Err(bad(
                        "has a query, but no database: write resolver = \"postgres=DSN\" too",
                    ));
                }
                (_, None) => {}
            }
            let who = table.audience.map(|it| it == WhoShares::Public);
            entities.insert(name, self.rules_of(source, who, table.snapshot, table.delivery));
        }
        let others = match default {
            // Of those without a table, each is as all others would be.
            Source::Postgres { query: None, .. } if self.entity.iter().any(|it| !entities.contains_key(it)) => {
                return Err(ArgsError::NoQuery);
            }
            source if !self.entity.is_empty() => {
                for name in &self.entity {
                    let rules = || self.rules_of(source.clone(), None, None, None);
                    entities.entry(name.clone()).or_insert_with(rules);
                }
                None
            }
            Source::Postgres { query: None, .. } if entities.is_empty() => return Err(ArgsError::NoQuery),
            // It was only meant for the tables.
            Source::Postgres { query: None, .. } => None,
            source => Some(self.rules_of(source, None, None, None)),
        };
        Ok((others, entities))
    }

    fn rules_of(
        &self,
        source: Source,
        is_public: Option<bool>,
        snapshot: Option<bool>,
        delivery: Option<Which>,
    ) -> EntityRules {
        EntityRules {
            // The store shows everyone the same.
            is_public: is_public.unwrap_or(source == Source::Store),
            source,
            snapshot: snapshot.unwrap_or(self.snapshot),
            delivery: match delivery.unwrap_or(self.delivery) {
                Which::Latest => Delivery::Latest,
                Which::Every => Delivery::Every,
            },
        }
    }
}
