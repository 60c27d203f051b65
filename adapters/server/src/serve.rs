//! [`serve`]: the whole of `entity-sync serve`, from its options to the end of the process.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use entity_sync_mio::{Config, EntityKey, Handle, Hosts, Origins, Refused, Server, StartError, Trouble};
use tokio::net::TcpListener;

use crate::api;
use crate::args::Options;
use crate::cluster;
use crate::death::Death;
use crate::files;
use crate::greeting::{greet, warn_of_open_store};
use crate::log;
use crate::metrics::Metrics;
use crate::readers::{self, Readers};
use crate::resolver::postgres::{Postgres, PostgresError};
use crate::signals::{self, Signals};
use crate::store::{Store, StoreError};

/// How long clients and running requests have to finish when the process is asked to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Serves clients and the API until the process is told to stop (SIGINT or SIGTERM).
///
/// # Errors
/// [`ServeError`]: what kept it from starting, or went wrong when the store was closed.
pub fn serve(options: &Options) -> Result<(), ServeError> {
    let mut config = config(options);
    let health = config.health.clone();
    log::start(options.log, options.log_format, &health);
    signals::ignore_hangup().map_err(ServeError::System)?;
    // Most systems allow a process 1,024 files at first, and more if it asks. If this one doesn't, fewer clients fit.
    let files = entity_sync_mio::raise_file_limit().ok();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServeError::System)?;
    // Before anything is created, asked or told: if the address is in use, another one of us runs already.
    let listener = {
        let _runtime = runtime.enter();
        listen(&options.api)?
    };
    let death = Death::watch(&health);
    // The store tells of changes to the server, which reads from the store.
    let handle = Arc::new(OnceLock::<Handle>::new());
    let told = handle.clone();
    let on_commit = move |keys: &[EntityKey]| notify_all(&told, keys);
    let store = if readers::need_store(options) {
        Some(Arc::new(
            Store::open_with(&options.data, &health, on_commit).map_err(ServeError::Store)?,
        ))
    } else {
        None
    };

    let wanted = options.limits.of_api();
    let mut limits = wanted;
    let of_readers = readers::files(options, &config);
    config.reserved_files = files::share(&mut limits, files).saturating_add(of_readers);
    let Readers {
        routes,
        entities,
        databases,
        http,
    } = Readers::start(options, &config, store.as_ref(), &handle)?;
    config.core.entities = entities;
    let databases = Arc::new(databases);
    let server = Server::start(config, routes).map_err(ServeError::Clients)?;
    if limits.max_connections < wanted.max_connections {
        tracing::warn!(
            connections = limits.max_connections,
            "the limit on open files leaves the API fewer connections than --api-connections: raise it (ulimit -n)"
        );
    }
    let server_handle = handle.get_or_init(|| server.handle().clone()).clone();
    // What databases and other processes have changed since the first clients came had nobody to be told to.
    server_handle.reread_all();
    // Once there is nothing left that keeps this from starting, and before the API serves: nothing may be notified that the
    // others don't hear of.
    let mut member = match &options.cluster {
        Some(cluster) => {
            let bus = cluster.bus().map_err(ServeError::Bus)?;
            Some(crate::builder::join(bus, &server_handle).map_err(ServeError::Bus)?)
        }
        None => None,
    };
    let counted = databases.clone();
    let view = member.as_ref().map(|member| member.view().clone());
    let of_cluster = view.clone();
    let connections = Arc::<api::Connections>::default();
    let to_api = connections.clone();
    let metrics = Metrics::new(server_handle.clone()).with(move || {
        let of_cluster = of_cluster.iter().flat_map(|view| cluster::numbers(view));
        let of_api = to_api.numbers().map(|(name, help, value)| (name.into(), help, value));
        let of_log = (
            "log_lines_dropped".into(),
            "Lines of the log that nobody will read.",
            log::dropped_lines(),
        );
        of_cluster.chain(of_api).chain([of_log]).collect()
    });
    let metrics = metrics.by_source(move || {
        let counts = |it: &Postgres| {
            it.counts()
                .into_iter()
                .map(|(name, help, value)| (name.into(), help, value))
        };
        counted.iter().map(|it| (it.source(), counts(it).collect())).collect()
    });
    let notify: api::Notify = Arc::new(move |keys| server_handle.notify_many(keys));
    let mut parts = api::Parts::new(store.clone(), notify);
    parts.limits = limits;
    parts.connections = connections;
    parts.token = options.api_token.clone();
    parts.hosts = match options.api {
        api::Address::Tcp(_) => Hosts::Named(options.allowed_hosts.clone()),
        // No web page reaches a file.
        api::Address::Unix(_) => Hosts::Any,
    };
    parts.metrics = Arc::new(move || metrics.text());
    let of_api = options.clone();
    parts.is_stored = Arc::new(move |entity| readers::is_stored(&of_api, entity));
    parts.cluster = view;
    parts.health = health.clone();
    let is_stopping = parts.is_stopping.clone();

    let served = runtime.block_on(serve_api(
        options,
        &server,
        listener,
        api::Api::new(parts),
        &is_stopping,
        &death,
    ));

    server.shutdown(GRACE);
    if let Some(member) = &mut member
        && let Err(undelivered) = member.leave(GRACE)
    {
        tracing::warn!("{undelivered}");
    }
    drop((databases, http));
    let closed = store.map_or(Ok(()), |store| store.close().map_err(ServeError::Store));
    // First why it ended: that the rest could not end well follows from it.
    death.check().map_err(ServeError::Died).and(served).and(closed)
}

/// Who connects already waits until the API is served.
fn listen(address: &api::Address) -> Result<ApiListener, ServeError> {
    let bound = match address {
        &api::Address::Tcp(address) => api::bind_port(address).map(ApiListener::Tcp),
        api::Address::Unix(path) => api::UnixSocket::bind(path).map(ApiListener::Unix),
    };
    bound.map_err(|source| ServeError::Api {
        address: address.clone(),
        source,
    })
}

/// Where the API is to be served.
enum ApiListener {
    Tcp(TcpListener),
    Unix(api::UnixSocket),
}

async fn serve_api(
    options: &Options,
    server: &Server,
    listener: ApiListener,
    service: api::Api,
    is_stopping: &AtomicBool,
    death: &Death,
) -> Result<(), ServeError> {
    // Before it says that it is ready, so that a signal sent from then on is heard.
    let mut signals = Signals::listen().map_err(ServeError::System)?;
    let api = match &listener {
        ApiListener::Tcp(listener) => api::Address::Tcp(listener.local_addr().map_err(ServeError::System)?),
        ApiListener::Unix(_) => options.api.clone(),
    };
    greet(options, server, &api);
    warn_of_open_store(options, server.addresses());

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async {
        // An error means that the sender is gone, which is the end as well.
        let _ = stopped.await;
    };
    let mut serving = match listener {
        ApiListener::Tcp(listener) => tokio::spawn(service.listen(listener, stopped)),
        ApiListener::Unix(listener) => tokio::spawn(service.listen(listener, stopped)),
    };
    tokio::select! {
        () = signals.stop() => {}
        () = death.happens() => {}
        ended = &mut serving => {
            is_stopping.store(true, Ordering::Relaxed);
            return Err(ServeError::ApiEnded(ended.err()));
        }
    }
    tracing::info!("stopping");
    is_stopping.store(true, Ordering::Relaxed);
    drop(stop);
    // Requests that take longer than this are cut off.
    let _ = tokio::time::timeout(GRACE, serving).await;
    Ok(())
}

fn config(options: &Options) -> Config {
    let mut config = Config::new(options.listen.iter().copied());
    config.reactors = options.reactors;
    config.core.upgrade.paths.clone_from(&options.paths);
    config.core.upgrade.origins = options.origins.clone();
    let is_local = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
    if options.origins == Origins::Same && options.listen.iter().all(is_local) {
        config.core.upgrade.hosts = Hosts::Named(options.allowed_hosts.clone());
    }
    // Told at a limited rate.
    config.core.on_incident = Some(Arc::new(
        |incident| tracing::warn!(client = %incident.client, "{incident}"),
    ));
    options.limits.apply(&mut config.core);
    config
}

fn notify_all(handle: &OnceLock<Handle>, keys: &[EntityKey]) {
    // Before there is a server, nobody is subscribed.
    if let Some(handle) = handle.get() {
        for key in keys {
            // The API writes what is an entity.
            let _ = handle.notify(key);
        }
    }
}

/// Why `entity-sync serve` did not start, or did not end well.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServeError {
    /// The store can't be opened or closed.
    Store(StoreError),
    /// A database can't be used as it was said.
    Postgres(PostgresError),
    /// Clients can't be served.
    Clients(StartError),
    /// The cluster can't be joined.
    Bus(entity_sync_bus::StartError),
    /// The API's address can't be listened to.
    Api {
        /// Which.
        address: api::Address,
        /// Why.
        source: io::Error,
    },
    /// A thread or a task has died without which it can't go on.
    Died(Trouble),
    /// The API has ended by itself.
    ApiEnded(Option<tokio::task::JoinError>),
    /// The system refused a thread or the like.
    System(io::Error),
}

impl ServeError {
    /// The flags whose values it is about.
    pub fn flags(&self) -> &'static [&'static str] {
        match self {
            Self::Store(_) => &["--data"],
            Self::Postgres(_) => &["--resolver"],
            Self::Clients(StartError::Listen { .. } | StartError::ListenTwice { .. }) => &["--listen"],
            Self::Clients(_) | Self::System(_) | Self::Died(_) | Self::ApiEnded(_) => &[],
            Self::Bus(_) => &["--bus", "--zmq-bind", "--nats", "--nsqd"],
            Self::Api { .. } => &["--api"],
        }
    }
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Postgres(error) => error.fmt(f),
            Self::Clients(error @ StartError::Listen { source, .. }) if !Refused(source).is_shortage() => {
                write!(f, "{error} (--listen)")
            }
            Self::Clients(error @ StartError::ListenTwice { .. }) => write!(f, "{error} (--listen)"),
            Self::Clients(error) => error.fmt(f),
            Self::Bus(error) => write!(f, "the cluster can't be joined: {error}"),
            Self::Api { address, source } => {
                write!(f, "can't listen on {address}: ")?;
                write_refused(f, address, source)
            }
            Self::Died(trouble) => write!(f, "{trouble}"),
            Self::ApiEnded(None) => f.write_str("the API has ended by itself; report this bug"),
            Self::ApiEnded(Some(error)) => write!(f, "the API has ended by itself: {error}; report this bug"),
            Self::System(error) => write!(f, "the system refused: {}", Refused(error)),
        }
    }
}

fn write_refused(f: &mut fmt::Formatter<'_>, address: &api::Address, source: &io::Error) -> fmt::Result {
    let text = match (address, source.kind()) {
        (api::Address::Tcp(_), io::ErrorKind::AddrInUse) => {
            "another program already uses this port; stop it or choose another port"
        }
        (api::Address::Unix(_), io::ErrorKind::AddrInUse) => {
            "another program already uses this path; stop it or choose another path"
        }
        (api::Address::Unix(_), io::ErrorKind::AlreadyExists) => {
            "there is a file that is no socket; remove it or choose another path"
        }
        (api::Address::Unix(_), io::ErrorKind::NotFound) => {
            "its directory does not exist; create it or choose another path"
        }
        (api::Address::Unix(_), io::ErrorKind::InvalidInput) => {
            "the path of a socket has 107 bytes at most; choose a shorter one"
        }
        _ if Refused(source).is_shortage() => return write!(f, "{}", Refused(source)),
        _ => return write!(f, "{source} (--api)"),
    };
    write!(f, "{text} (--api)")
}

impl std::error::Error for ServeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::Postgres(error) => Some(error),
            Self::Clients(error) => Some(error),
            Self::Bus(error) => Some(error),
            Self::ApiEnded(Some(error)) => Some(error),
            Self::Died(_) | Self::ApiEnded(None) => None,
            Self::Api { source, .. } | Self::System(source) => Some(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn a_flag_is_named_only_if_its_address_is_to_blame() {
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        let error = io::Error::from_raw_os_error;
        let api = |number| {
            let (address, source) = (api::Address::Tcp(address), error(number));
            ServeError::Api { address, source }.to_string()
        };
        let clients = |number| {
            let source = error(number);
            ServeError::Clients(StartError::Listen { address, source }).to_string()
        };
        for (said, flag) in [(api(13), "--api"), (clients(13), "--listen")] {
            let told = format!("can't listen on 127.0.0.1:80: Permission denied (os error 13) ({flag})");
            assert_eq!(said, told);
        }
        for (said, flag) in [(api(98), "(--api)"), (clients(98), "(--listen)")] {
            assert!(
                said.contains("another program already uses this port") && said.ends_with(flag),
                "{said}"
            );
        }
        let files = "Too many open files (os error 24); allow it more open files (ulimit -n)";
        for said in [api(24), clients(24)] {
            assert_eq!(said, format!("can't listen on 127.0.0.1:80: {files}"));
        }
        let both = ServeError::Clients(StartError::ListenTwice {
            address,
            included: address,
        });
        let said = "the address 127.0.0.1:80 is given twice: remove one (--listen)";
        assert_eq!((both.to_string().as_str(), both.flags()), (said, &["--listen"][..]));
        for other in [StartError::Reactor(error(24)), StartError::NoFiles] {
            let said = ServeError::Clients(other).to_string();
            assert!(said.contains("ulimit -n") && !said.contains("--"), "{said}");
        }
    }
}
