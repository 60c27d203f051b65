//! [`Readers`]: what the options say of entities, made to run.

use std::io;
use std::sync::{Arc, OnceLock};

use entity_sync_mio::{
    AudienceRule, Config, Entities, EntityKey, EntityOptions, Handle, Health, ReadError, Reply, Resolver, Selector,
};

use crate::args::{EntityRules, Options};
use crate::builder::Routes;
use crate::resolver::Source;
use crate::resolver::http::{Http, HttpPlan, Template};
use crate::resolver::postgres::{self, Dsn, Listener, Plan, Postgres};
use crate::serve::ServeError;
use crate::store::{Store, StoreResolver};

/// Reads that may wait for the store, of one entity: they are read many at a time.
const BATCHED_READS: usize = 4096;

/// All that reads entities.
pub(crate) struct Readers {
    pub(crate) routes: Routes,
    pub(crate) entities: Entities,
    pub(crate) databases: Vec<Postgres>,
    /// Reads over HTTP fail once it is dropped.
    pub(crate) http: Option<Http>,
}

/// Files that connections of sources may take.
pub(crate) fn files(options: &Options, config: &Config) -> usize {
    let templates = templates(options);
    let http = match templates.is_empty() {
        true => 0,
        false => http_plan(options, config).files(&templates),
    };
    let databases = sources(options).filter(|it| matches!(it, Source::Postgres { .. }));
    http + databases.count() * (options.postgres_connections.get() + 2)
}

/// Whether anything is read from the store.
pub(crate) fn need_store(options: &Options) -> bool {
    sources(options).any(|it| *it == Source::Store)
}

/// Whether the store has what the API is to write under this name.
pub(crate) fn is_stored(options: &Options, entity: &str) -> bool {
    let rules = options.entities.get(entity).or(options.others.as_ref());
    rules.is_some_and(|it| it.source == Source::Store)
}

fn sources(options: &Options) -> impl Iterator<Item = &Source> {
    options
        .others
        .iter()
        .chain(options.entities.values())
        .map(|it| &it.source)
}

impl Readers {
    /// Connects to what the options name.
    pub(crate) fn start(
        options: &Options,
        config: &Config,
        store: Option<&Arc<Store>>,
        handle: &Arc<OnceLock<Handle>>,
    ) -> Result<Self, ServeError> {
        let mut databases = Databases::default();
        let named = options.entities.iter().map(|(name, rules)| (Some(name), rules));
        let all: Vec<_> = named.chain(options.others.iter().map(|rules| (None, rules))).collect();
        for (_, rules) in &all {
            databases.plan(&rules.source, options, config);
        }
        databases.start(options, &config.health, handle)?;
        let http = http(options, config).map_err(ServeError::System)?;
        let stored = match store {
            Some(store) => Some(Arc::new(StoreResolver::new(store).map_err(ServeError::System)?)),
            None => None,
        };
        let mut routes = Routes::default();
        let mut entities = Entities::none();
        if let Some(rules) = &options.others {
            entities = Entities::any(options_of(rules, options));
        }
        for (name, rules) in all {
            let resolver: Box<dyn Resolver> = match &rules.source {
                Source::Store => {
                    let stored = stored.clone();
                    Box::new(move |request, reply: Reply| match &stored {
                        Some(store) => store.resolve(request, reply),
                        // Whoever opened no store has no entity in it.
                        None => reply.fail(ReadError::NotFound),
                    })
                }
                Source::Http(template) => match &http {
                    Some(http) => Box::new(http.resolver(template)),
                    // There is one where there is a template.
                    None => continue,
                },
                Source::Postgres { dsn, query } => Box::new(databases.resolver(dsn, query.as_deref())),
            };
            match name {
                Some(name) => {
                    entities = entities.with(name, options_of(rules, options));
                    routes.by_name.insert(name.clone(), resolver);
                }
                None => routes.others = Some(resolver),
            }
        }
        Ok(Self {
            routes,
            entities,
            databases: databases.running,
            http,
        })
    }
}

/// What reads over HTTP, if anything does.
fn http(options: &Options, config: &Config) -> io::Result<Option<Http>> {
    let templates = templates(options);
    if templates.is_empty() {
        return Ok(None);
    }
    Http::start(&templates, http_plan(options, config), &config.health).map(Some)
}

fn templates(options: &Options) -> Vec<Template> {
    let mut templates: Vec<Template> = Vec::new();
    for source in sources(options) {
        if let Source::Http(template) = source
            && !templates.contains(template)
        {
            templates.push(template.clone());
        }
    }
    templates
}

fn http_plan(options: &Options, config: &Config) -> HttpPlan {
    HttpPlan {
        reads: options.http_reads.get(),
        limit: config.core.read_time_limit,
        max_bytes: config.core.max_read_bytes,
    }
}

fn options_of(rules: &EntityRules, options: &Options) -> EntityOptions {
    let mut entity = EntityOptions::default();
    if rules.is_public {
        entity.audience = AudienceRule::Public;
    }
    entity.snapshot = rules.snapshot;
    entity.delivery = rules.delivery;
    entity.max_running_reads = match rules.source {
        Source::Store => BATCHED_READS,
        // As many as one round of queries takes: those beyond wait in core, which knows whom they are for.
        Source::Postgres { .. } => options.postgres_connections.get() * postgres::MAX_IDS,
        // So that entities whose reads are slow leave a connection to the others.
        Source::Http(_) => (options.http_reads.get() - 1).max(1),
    };
    entity
}

/// Here alone, and says whether it is of an entity. The other nodes of a cluster hear the database themselves, as a rule: to
/// tell them would have each change read once for each node, on all of them.
fn reread(handle: &Handle, key: &EntityKey) -> bool {
    let is_entity = handle.is_entity(key.entity());
    if is_entity {
        handle.reread(&Selector::Key(key.clone()));
    }
    is_entity
}

/// One for each DSN, with all queries that go there.
#[derive(Default)]
struct Databases {
    plans: Vec<Plan>,
    running: Vec<Postgres>,
}

impl Databases {
    fn plan(&mut self, source: &Source, options: &Options, config: &Config) {
        let Source::Postgres {
            dsn,
            query: Some(query),
        } = source
        else {
            return;
        };
        let at = self.plans.iter().position(|it| it.dsn == *dsn);
        let at = at.unwrap_or_else(|| {
            self.plans.push(Plan {
                dsn: dsn.clone(),
                queries: Vec::new(),
                role: options.postgres_role.clone(),
                limit: config.core.read_time_limit,
                connections: options.postgres_connections.get(),
            });
            self.plans.len() - 1
        });
        if !self.plans[at].queries.contains(query) {
            self.plans[at].queries.push(query.clone());
        }
    }

    fn start(&mut self, options: &Options, health: &Health, handle: &Arc<OnceLock<Handle>>) -> Result<(), ServeError> {
        for plan in &self.plans {
            let (notified, missed) = (handle.clone(), handle.clone());
            let hear = match options.cluster.as_ref().is_some_and(|it| it.publishes_postgres) {
                true => |handle: &Handle, key: &EntityKey| handle.notify(key).is_ok(),
                false => reread,
            };
            let listener = Listener {
                channel: options.postgres_channel.clone(),
                // Before there is a server, nobody is subscribed; and who is by the time that it is known is read for then.
                heard: Arc::new(move |key| notified.get().is_none_or(|it| hear(it, key))),
                reread_all: Box::new(move || {
                    if let Some(handle) = missed.get() {
                        handle.reread_all();
                    }
                }),
            };
            let running = Postgres::start(plan.clone(), Some(listener), health).map_err(ServeError::Postgres)?;
            self.running.push(running);
        }
        Ok(())
    }

    fn resolver(&self, dsn: &Dsn, query: Option<&str>) -> impl Resolver + use<> {
        let at = self.plans.iter().position(|it| it.dsn == *dsn);
        let of_query = at.and_then(|at| {
            let queries = &self.plans[at].queries;
            let number = queries.iter().position(|it| Some(it.as_str()) == query)?;
            Some(self.running.get(at)?.resolver(number))
        });
        move |request, reply: Reply| match &of_query {
            Some(resolver) => resolver.resolve(request, reply),
            // All queries were planned.
            None => reply.fail(ReadError::NotFound),
        }
    }
}
