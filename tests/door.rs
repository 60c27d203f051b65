//! [`Door`]: the ways in which a client gets to a server, all of which behave the same.

use std::future::IntoFuture;
use std::net::SocketAddr;

use axum::Router;
use axum::serve::Listener;
use entity_sync_axum::Upgrader;
use entity_sync_mio::{Config, Server};
use tokio::io::Join;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Door {
    /// The reactors' own listeners.
    Reactor,
    /// A route of axum's, which hands the socket over.
    Axum,
    /// A route of axum's over what is more than a socket.
    AxumGuest,
}

/// A door that is open. Close it after the server.
pub(crate) struct Open {
    pub(crate) address: SocketAddr,
    /// What axum runs on.
    _runtime: Option<Runtime>,
}

impl Door {
    pub(crate) const ALL: [Self; 3] = [Self::Reactor, Self::Axum, Self::AxumGuest];

    /// With one listener for the reactors, or none.
    pub(crate) fn config(self) -> Config {
        let own = (self == Self::Reactor).then(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        Config::new(own)
    }

    pub(crate) fn open(self, server: &Server) -> Open {
        if self == Self::Reactor {
            return Open {
                address: server.addresses()[0],
                _runtime: None,
            };
        }
        self.open_with(server, |router| router)
    }

    /// As [`open`](Self::open), with layers of the application's.
    pub(crate) fn open_with(self, server: &Server, layers: impl FnOnce(Router) -> Router) -> Open {
        self.open_on(runtime(), &Upgrader::new(server.handle()), layers)
    }

    pub(crate) fn open_on(self, runtime: Runtime, upgrader: &Upgrader, layers: impl FnOnce(Router) -> Router) -> Open {
        let app = layers(Router::new().route("/ws/entity-sync/", upgrader.route()));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        match self {
            Self::AxumGuest => runtime.spawn(axum::serve(Halves(listener), app).into_future()),
            _ => runtime.spawn(axum::serve(listener, app).into_future()),
        };
        Open {
            address,
            _runtime: Some(runtime),
        }
    }
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Accepts sockets as something that nobody can take the socket out of.
struct Halves(TcpListener);

impl Listener for Halves {
    type Io = Join<OwnedReadHalf, OwnedWriteHalf>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, peer): (TcpStream, _) = Listener::accept(&mut self.0).await;
        let _ = stream.set_nodelay(true);
        let (read, write) = stream.into_split();
        (tokio::io::join(read, write), peer)
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
