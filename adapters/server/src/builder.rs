//! [`EntitySync`]: the whole server in one call, for applications that embed it.
//!
//! ```no_run
//! use entity_sync::{Entity, EntityKey, EntitySync, ReadError, Rows};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let sync = EntitySync::builder()
//!         .listen("127.0.0.1:8080")
//!         .entity("items", Entity::read(|request| match request.key.id() {
//!             "100" => Ok(Rows::one(r#"{"name":"bicycle"}"#)), // from your database
//!             _ => Err(ReadError::NotFound),
//!         }))
//!         .start()?;
//!     // Whenever row 100 has changed, on any thread:
//!     sync.notify(&EntityKey::new("items", "100")?)?;
//!     std::io::stdin().read_line(&mut String::new())?; // it runs until you press Enter
//!     Ok(())
//! }
//! ```

mod entity;
mod messages;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use entity_sync_bus::{self as bus, ClusterView, Join, Member, Undelivered};
use entity_sync_mio::{
    Config, DrainOptions, Entities, EntityKey, Handle, Hosts, Incident, Incoming, Pool, PoolConfig, Refused, Server,
    StartError, UnknownEntity,
};

use messages::{Handler, Messages};

use crate::values::{self, ValueError};
pub use entity::Entity;
pub(crate) use entity::Routes;

/// Messages of so many clients are handled at once, unless it is said otherwise.
const MESSAGE_THREADS: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// A running server. Dropping it stops it at once; [`shutdown`](Self::shutdown) is kinder.
#[derive(Debug)]
pub struct EntitySync {
    server: Server,
    messages: Option<Messages>,
    pool: Pool,
    member: Option<Box<dyn Member>>,
}

/// What an [`EntitySync`] is to be. Nothing is checked before [`start`](Self::start).
pub struct Builder {
    listen: Vec<String>,
    paths: Vec<String>,
    origins: Vec<String>,
    hosts: Vec<String>,
    entities: BTreeMap<String, Entity>,
    others: Option<Entity>,
    pool: PoolConfig,
    on_message: Option<Handler>,
    message_threads: NonZeroUsize,
    bus: Option<Box<dyn Join>>,
    config: Config,
}

/// Why a server did not start. Its `Display` says what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// An address, path or origin is none.
    Value {
        /// As it was given.
        given: String,
        /// What is wrong with it.
        error: ValueError,
    },
    /// There is no entity, so nobody could be pushed anything.
    NoEntity,
    /// An address is taken, or the system refuses something.
    Start(StartError),
    /// The system refuses a thread for reads or messages.
    Threads(io::Error),
    /// The cluster can't be joined.
    Bus(bus::StartError),
}

impl EntitySync {
    /// What it is to be, from the defaults on: nothing listened to, the path `/ws/entity-sync/`, pages of the same host
    /// and port, a reactor per CPU, four threads for reads.
    pub fn builder() -> Builder {
        Builder {
            listen: Vec::new(),
            paths: Vec::new(),
            origins: Vec::new(),
            hosts: Vec::new(),
            entities: BTreeMap::new(),
            others: None,
            pool: PoolConfig::default(),
            on_message: None,
            message_threads: MESSAGE_THREADS,
            bus: None,
            config: Config::new([]),
        }
    }

    /// The entity changed: every subscriber is pushed rows of a read that begins after this call. It may be called on any
    /// thread, never blocks for long, and does nothing if nobody is subscribed.
    ///
    /// # Errors
    /// [`UnknownEntity`] if no resolver was given for it, nor one for all others.
    pub fn notify(&self, key: &EntityKey) -> Result<(), UnknownEntity> {
        self.handle().notify(key)
    }

    /// As [`notify`](Self::notify) for each of them, or for none if one is of an unknown entity.
    ///
    /// # Errors
    /// [`UnknownEntity`], of the first such key.
    pub fn notify_many<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a EntityKey, IntoIter: Clone>,
    ) -> Result<(), UnknownEntity> {
        self.handle().notify_many(keys)
    }

    /// The way to it from other threads: rereads, disconnects, counters, connections accepted elsewhere. Cheap to clone.
    ///
    /// Its [`health`](Handle::health) is for your health check. When a thread has died that can't be started again, it is not
    /// alive any more: end the process in [`Health::when_dead`](crate::Health::when_dead), as the binary does.
    pub fn handle(&self) -> &Handle {
        self.server.handle()
    }

    /// Where it listens, with the ports that were taken for port 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.server.addresses()
    }

    /// What happens in the cluster, if it is one of one.
    pub fn cluster(&self) -> Option<&Arc<ClusterView>> {
        self.member.as_ref().map(|member| member.view())
    }

    /// Waits until the bus has everything that was notified before this call, for about `timeout` at most, and for its first
    /// connection too. [`notify`](Self::notify) itself never waits. Without a bus there is nothing to wait for.
    ///
    /// # Errors
    /// [`Undelivered`]: what the bus does not have. It is still to be told.
    pub fn flush(&self, timeout: Duration) -> Result<(), Undelivered> {
        self.member.as_ref().map_or(Ok(()), |member| member.flush(timeout))
    }

    /// Stops accepting, tells every client that it goes away (close code 1001) behind what it has queued, and waits for
    /// them and for the handling of their messages; waits until the bus has what was notified, and says goodbye to the cluster; and waits for running reads; each
    /// for about `timeout` at most.
    ///
    /// # Errors
    /// [`Undelivered`]: what the bus did not get, so that other nodes may not know of it. The server has ended all the same.
    pub fn shutdown(self, timeout: Duration) -> Result<(), Undelivered> {
        self.server.shutdown(timeout);
        finish(self.messages.as_ref(), timeout);
        let left = leave(self.member, timeout);
        self.pool.shutdown(timeout);
        left
    }

    /// As [`shutdown`](Self::shutdown), with a close code of yours and spread over a time, so that clients don't all come
    /// back at once.
    ///
    /// # Errors
    /// As [`shutdown`](Self::shutdown).
    pub fn drain(self, options: DrainOptions, timeout: Duration) -> Result<(), Undelivered> {
        self.server.drain(options, timeout);
        finish(self.messages.as_ref(), timeout);
        let left = leave(self.member, timeout);
        self.pool.shutdown(timeout);
        left
    }
}

fn finish(messages: Option<&Messages>, timeout: Duration) {
    if let Some(messages) = messages {
        messages.shutdown(timeout);
    }
}

fn leave(member: Option<Box<dyn Member>>, timeout: Duration) -> Result<(), Undelivered> {
    member.map_or(Ok(()), |mut member| member.leave(timeout))
}

impl Builder {
    /// An address for WebSocket clients, such as `127.0.0.1:8080`. Several are possible. With none, only connections that
    /// are handed over are served: see [`Handle::adopt`].
    pub fn listen(mut self, address: impl fmt::Display) -> Self {
        self.listen.push(address.to_string());
        self
    }

    /// A path at which clients open their WebSocket, instead of `/ws/entity-sync/`. Several are possible.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.paths.push(path.into());
        self
    }

    /// An origin whose web pages may connect, such as `https://example.com`, or `*`. Several are possible. With none, it
    /// is pages of the same host and port.
    pub fn origin(mut self, origin: impl Into<String>) -> Self {
        self.origins.push(origin.into());
        self
    }

    /// A name by which requests may call the server, such as `sync.example.com`, or `.example.com` for all names below it.
    /// Several are possible; IP addresses and `localhost` are allowed besides. With none, as
    /// [`Hosts::Auto`] says.
    pub fn allowed_host(mut self, name: impl Into<String>) -> Self {
        self.hosts.push(name.into());
        self
    }

    /// How the entity of this name is read. A second one of the same name takes the first one's place.
    pub fn entity(mut self, name: impl Into<String>, entity: Entity) -> Self {
        self.entities.insert(name.into(), entity);
        self
    }

    /// How all other entities are read, whatever their names. Without it they are unknown: to notify of one is an error.
    pub fn others(mut self, entity: Entity) -> Self {
        self.others = Some(entity);
        self
    }

    /// What becomes of messages that have no action, and so are the application's. It may block: it is called on threads of
    /// its own, for the messages of each client in their order, one at a time. A client that sends faster than its messages
    /// are handled is not read from, with 64 messages or 256 KiB of them waiting; others are not held up. If it panics,
    /// that is caught, logged and counted.
    ///
    /// A message is handled even if its client has gone or was disconnected after it came.
    pub fn on_message(mut self, on_message: impl Fn(Incoming<'_>) + Send + Sync + 'static) -> Self {
        self.on_message = Some(Box::new(on_message));
        self
    }

    /// As [`on_message`](Self::on_message), for a handler that never blocks: it is called on the thread that serves the
    /// client and many others, all of which wait for it. It saves a copy of each message and the way to another thread.
    pub fn on_message_direct(mut self, on_message: impl Fn(Incoming<'_>) + Send + Sync + 'static) -> Self {
        self.on_message = None;
        self.config.core.on_message = Some(Arc::new(on_message));
        self
    }

    /// How many clients' messages are handled at once at most, instead of 32: [`on_message`](Self::on_message) is called on as
    /// many threads, which are started when they are needed.
    pub fn message_threads(mut self, threads: NonZeroUsize) -> Self {
        self.message_threads = threads;
        self
    }

    /// What is done with clients' misdeeds besides counting them: logged, usually. They are told at a limited rate.
    pub fn on_incident(mut self, on_incident: impl Fn(&Incident) + Send + Sync + 'static) -> Self {
        self.config.core.on_incident = Some(Arc::new(on_incident));
        self
    }

    /// How many threads serve clients, instead of one per CPU.
    pub fn reactors(mut self, reactors: NonZeroUsize) -> Self {
        self.config.reactors = reactors;
        self
    }

    /// The threads for entities that are read by [`Entity::read`].
    pub fn pool(mut self, pool: PoolConfig) -> Self {
        self.pool = pool;
        self
    }

    /// What makes it one of a cluster: what is notified here is pushed there, and the other way round. See
    /// [`entity_sync_bus`] for a queue of yours; `entity-sync-zmq`, `entity-sync-nats` and `entity-sync-nsq` are others.
    pub fn bus(mut self, bus: impl Join + 'static) -> Self {
        self.bus = Some(Box::new(bus));
        self
    }

    /// Sets anything else: limits, time limits, intervals. What the other methods set takes precedence over what this one
    /// does to addresses, paths, origins and entities.
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Checks all, listens, and serves clients until it is shut down or dropped.
    ///
    /// # Errors
    /// [`BuildError`]: nothing is left running.
    pub fn start(self) -> Result<EntitySync, BuildError> {
        let Self {
            listen,
            paths,
            origins,
            hosts,
            entities,
            others,
            pool,
            on_message,
            message_threads,
            bus,
            mut config,
        } = self;
        if entities.is_empty() && others.is_none() {
            return Err(BuildError::NoEntity);
        }
        config.listen.extend(check(listen, values::address)?);
        if !paths.is_empty() {
            config.core.upgrade.paths = check(paths, values::path)?;
        }
        if !origins.is_empty() {
            config.core.upgrade.origins = values::origins(check(origins, values::origin)?);
        }
        if !hosts.is_empty() {
            config.core.upgrade.hosts = Hosts::Named(check(hosts, values::host)?);
        }
        let threads = pool.threads;
        let pool = PoolConfig {
            health: config.health.clone(),
            ..pool
        };
        let pool = Pool::new(pool).map_err(BuildError::Threads)?;
        let limit = config.core.read_time_limit;
        let mut registered = Entities::none();
        let mut routes = Routes::default();
        if let Some(others) = others {
            let (options, resolver) = others.into_parts(&pool, threads, limit);
            registered = Entities::any(options);
            routes.others = Some(resolver);
        }
        for (name, entity) in entities {
            let (options, resolver) = entity.into_parts(&pool, threads, limit);
            registered = registered.with(&name, options);
            routes.by_name.insert(name, resolver);
        }
        config.core.entities = registered;
        let messages = match on_message {
            Some(handler) => {
                let messages = Messages::start(handler, message_threads, config.health.clone());
                let messages = messages.map_err(BuildError::Threads)?;
                config.core.on_message = Some(Arc::new(messages.intake()));
                Some(messages)
            }
            None => None,
        };
        let server = Server::start(config, routes).map_err(BuildError::Start)?;
        let member = match bus {
            Some(bus) => Some(join(bus, server.handle()).map_err(BuildError::Bus)?),
            None => None,
        };
        Ok(EntitySync {
            server,
            messages,
            pool,
            member,
        })
    }
}

/// Makes a server's node one of a cluster.
pub(crate) fn join(bus: Box<dyn Join>, handle: &Handle) -> Result<Box<dyn Member>, bus::StartError> {
    bus.join(handle.node().clone(), Arc::new(handle.clock()), handle.health().clone())
}

fn check<T>(given: Vec<String>, check: fn(&str) -> Result<T, ValueError>) -> Result<Vec<T>, BuildError> {
    let checked = given
        .into_iter()
        .map(|given| check(&given).map_err(|error| BuildError::Value { given, error }));
    checked.collect()
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("listen", &self.listen)
            .field("entities", &self.entities.keys())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value { given, error } => write!(f, "{given:?} can't be used: {error}"),
            Self::NoEntity => f.write_str(
                "there is no entity: say how one is read with Builder::entity, or how all are with Builder::others",
            ),
            Self::Start(error) => error.fmt(f),
            Self::Threads(error) => write!(
                f,
                "the system refused a thread for reads or messages: {}",
                Refused(error)
            ),
            Self::Bus(error) => write!(f, "the cluster can't be joined: {error}"),
        }
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Value { error, .. } => Some(error),
            Self::NoEntity => None,
            Self::Start(error) => Some(error),
            Self::Threads(error) => Some(error),
            Self::Bus(error) => Some(error),
        }
    }
}
