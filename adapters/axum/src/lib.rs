//! Entity Sync behind a route of your own server.
//!
//! axum (or plain hyper) accepts, your middleware decides, and once the WebSocket is open its socket moves to Entity
//! Sync's reactors, with whatever was read from it: from then on tokio does nothing for it.
//!
//! ```no_run
//! use axum::extract::Request;
//! use axum::http::StatusCode;
//! use axum::middleware::{Next, from_fn};
//! use axum::response::Response;
//! use axum::{Router, routing::get};
//! use entity_sync_axum::{Secret, Upgrader};
//! use entity_sync_mio::{Config, Reply, Rows, Server};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! // No address of its own: all clients come by the route.
//! let server = Server::start(Config::new([]), |request: entity_sync_mio::Request, reply: Reply| {
//!     // Read request.key from your store, for whom request.audience says.
//!     let _ = reply.rows(Rows::one("{}"));
//! })?;
//! let upgrader = Upgrader::new(server.handle());
//!
//! // Your own middleware may refuse, and may say who the client is. Never take its word for it: look up a session that you
//! // have given it, by a cookie or a token that nobody can guess.
//! async fn authenticate(mut request: Request, next: Next) -> Result<Response, StatusCode> {
//!     let token = request.headers().get("authorization").and_then(|it| it.to_str().ok());
//!     let user = token.and_then(user_of_session).ok_or(StatusCode::UNAUTHORIZED)?;
//!     request.extensions_mut().insert(Secret::new(&*user));
//!     Ok(next.run(request).await)
//! }
//! fn user_of_session(_token: &str) -> Option<String> {
//!     None // from your sessions
//! }
//!
//! let app = Router::new()
//!     .route("/ws/entity-sync/", upgrader.route())
//!     .layer(from_fn(authenticate))
//!     .route("/", get(|| async { "hello" }));
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//! axum::serve(listener, app).await?;
//! # Ok(())
//! # }
//! ```
//!
//! What is more than a socket (TLS that ends in the process, a WebSocket over HTTP/2, a stream in memory, a Unix socket)
//! can't move. The same route then serves it on the tokio runtime, with the same behaviour, in one task for all of them.
//!
//! With plain hyper, call [`Upgrader::upgrade`] in your service, and serve with `serve_connection_with_upgrades` or
//! `with_upgrades`.

/// The programs of the page about embedding compile.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../../../docs/embedding.md")]
mod page {}

mod driver;
mod streams;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use entity_sync_core::{HeaderFields, LIMITS_FIELD, Refusal, asks_for_snapshots};
use entity_sync_mio::{AdoptFailure, Adopted, Handle};
use http::header::{CONNECTION, CONTENT_TYPE, HOST, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use driver::{Client, Driver, Newcomer};

/// Connections that wait for the task which serves those that can't be handed over.
const MAX_WAITING: usize = 256;
/// How often a connection is offered to reactors that have too many to take in, and after how long again.
const OFFERS: u32 = 100;
const OFFER_AGAIN: Duration = Duration::from_millis(50);

/// Answers upgrade requests and gives their connections to a running Entity Sync.
///
/// Clones are the same. For connections that can't be handed over it takes one of the server's
/// [`guest_shards`](entity_sync_mio::Config::guest_shards) when the first of them comes; so use clones of one `Upgrader`
/// rather than several.
#[derive(Clone)]
pub struct Upgrader {
    handle: Handle,
    /// The way to the task that serves what can't be handed over, once there is one.
    driver: Arc<Mutex<Option<mpsc::Sender<Newcomer>>>>,
}

/// Who a client is, as found out by whoever put this into its request's extensions. It takes the place of the secret that
/// clients send, and the client can't change it.
#[derive(Clone)]
pub struct Secret(Arc<str>);

/// Where a client is, as found out by whoever put this into its request's extensions: for `max_connections_per_address`.
/// Without it, that is the socket's peer, or what axum's `ConnectInfo` says; behind a proxy, take it from its header.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

impl Secret {
    /// For the resolver, in [`Audience::Secret`](entity_sync_mio::Audience::Secret).
    pub fn new(secret: impl Into<Arc<str>>) -> Self {
        Self(secret.into())
    }
}

impl fmt::Debug for Secret {
    /// Without it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Upgrader {
    /// For the connections of this server. Its [`upgrade.origins`](entity_sync_core::UpgradeRules::origins) and
    /// [`upgrade.hosts`](entity_sync_core::UpgradeRules::hosts) hold here too; its paths don't, and nor do its limits on
    /// accepting. Where you listen to loopback addresses only, set the hosts to `Hosts::Named`: `Hosts::Auto` can't know that.
    pub fn new(handle: &Handle) -> Self {
        Self {
            handle: handle.clone(),
            driver: Arc::default(),
        }
    }

    /// What to serve at the path where clients open their WebSocket.
    #[cfg(feature = "axum")]
    pub fn route<S: Clone + Send + Sync + 'static>(&self) -> axum::routing::MethodRouter<S> {
        let upgrader = self.clone();
        axum::routing::any(move |mut request: axum::extract::Request| {
            let response: Response<axum::body::Body> = upgrader.upgrade(&mut request);
            std::future::ready(response)
        })
    }

    /// Answers a request: 101 (over HTTP/2, 200) and then the connection is served, or a refusal with a line of text.
    /// [`Secret`] and [`Peer`] are taken from its extensions.
    ///
    /// # Panics
    /// Outside of a tokio runtime that has I/O and time.
    pub fn upgrade<B, R: From<&'static str>>(&self, request: &mut Request<B>) -> Response<R> {
        if !self.handle.has_room() {
            return self.refuse(Refusal::Full, request);
        }
        let accepted = match self.judge(request) {
            Ok(accepted) => accepted,
            Err(refusal) => return self.refuse(refusal, request),
        };
        if request.extensions().get::<OnUpgrade>().is_none() {
            return self.refuse(Refusal::NotUpgradable, request);
        }
        let secret = request.extensions().get::<Secret>().map(|it| it.0.clone());
        let peer = peer_of(request);
        let wants_snapshots = request.uri().query().is_some_and(asks_for_snapshots);
        let upgrade = hyper::upgrade::on(request);
        let upgrader = self.clone();
        tokio::spawn(async move {
            match upgrade.await {
                Ok(upgraded) => {
                    let client = Client {
                        secret,
                        peer,
                        wants_snapshots,
                    };
                    upgrader.serve(upgraded, client).await;
                }
                Err(error) => tracing::debug!(%error, "the connection ended before it was upgraded"),
            }
        });
        accepted
    }

    /// The response that says yes.
    fn judge<B, R: From<&'static str>>(&self, request: &Request<B>) -> Result<Response<R>, Refusal> {
        let mut response = self.accept(request)?;
        if request.headers().contains_key(LIMITS_FIELD)
            && let Ok(field) = HeaderName::try_from(LIMITS_FIELD)
            && let Ok(limits) = HeaderValue::try_from(self.handle.config().limits_told())
        {
            response.headers_mut().insert(field, limits);
        }
        Ok(response)
    }

    fn accept<B, R: From<&'static str>>(&self, request: &Request<B>) -> Result<Response<R>, Refusal> {
        let rules = &self.handle.config().upgrade;
        let fields = Fields {
            headers: request.headers(),
            authority: request.uri().authority().map(|it| it.as_str()),
        };
        let mut response = Response::new(R::from(""));
        if is_connect(request) {
            rules.judge_connect(&fields)?;
            return Ok(response);
        }
        let is_http_1_1 = request.version() == Version::HTTP_11;
        let proof = rules.judge(is_http_1_1, request.method().as_str(), &fields)?;
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        // Base64 is always good for a header.
        let proof = HeaderValue::try_from(proof).map_err(|_| Refusal::BadRequest)?;
        headers.insert(SEC_WEBSOCKET_ACCEPT, proof);
        Ok(response)
    }

    fn refuse<B, R: From<&'static str>>(&self, refusal: Refusal, request: &Request<B>) -> Response<R> {
        self.handle.count_refused_upgrade(refusal);
        let (reason, status) = (refusal.name(), refusal.status());
        tracing::debug!(peer = ?peer_of(request), reason, status, "upgrade refused");
        refuse(refusal)
    }

    async fn serve(&self, upgraded: Upgraded, client: Client) {
        match socket_of(upgraded) {
            Ok((stream, received)) => match stream.into_std() {
                Ok(stream) => {
                    let mut adopted = Adopted::upgraded(stream, received.into());
                    adopted.secret = client.secret;
                    adopted.peer = client.peer;
                    adopted.wants_snapshots = client.wants_snapshots;
                    self.hand_over(adopted).await;
                }
                Err(error) => tracing::debug!(%error, "the connection failed before it was handed over"),
            },
            Err(upgraded) => {
                let newcomer = Newcomer {
                    stream: Box::new(TokioIo::new(upgraded)),
                    client,
                };
                match self.driver() {
                    // It fails only when the server has been shut down.
                    Some(driver) => drop(driver.send(newcomer).await),
                    None => tracing::warn!(
                        "a connection that can't be handed over to a reactor was dropped: the server has no guest shard \
                         left; use clones of one Upgrader, or raise Config::guest_shards"
                    ),
                }
            }
        }
    }

    async fn hand_over(&self, mut adopted: Adopted) {
        for _ in 0..OFFERS {
            match self.handle.adopt(adopted) {
                Ok(()) => return,
                Err(error) if matches!(error.reason, AdoptFailure::Full) => adopted = error.adopted,
                Err(error) => return tracing::debug!(%error, "connection dropped"),
            }
            tokio::time::sleep(OFFER_AGAIN).await;
        }
        tracing::warn!("connection dropped: connections arrive faster than the reactors accept them");
    }

    /// The way to the task that serves what can't be handed over, begun now if need be.
    fn driver(&self) -> Option<mpsc::Sender<Newcomer>> {
        let mut driver = self.driver.lock();
        if let Some(sender) = driver.as_ref().filter(|it| !it.is_closed()) {
            return Some(sender.clone());
        }
        let guest = self.handle.take_guest()?;
        let (sender, newcomers) = mpsc::channel(MAX_WAITING);
        // It bounds its turns by itself, and to be told that a socket is not ready when it is would cost it a copy.
        tokio::spawn(tokio::task::coop::unconstrained(Driver::new(guest, newcomers)));
        *driver = Some(sender.clone());
        Some(sender)
    }
}

/// The socket of an upgraded connection and what was read from it, if there is nothing else between us and the kernel.
fn socket_of(upgraded: Upgraded) -> Result<(TcpStream, Bytes), Upgraded> {
    // As served by hyper-util, which axum uses, or by hyper itself.
    match auto::upgrade::downcast::<TokioIo<TcpStream>>(upgraded) {
        Ok(parts) => Ok((parts.io.into_inner(), parts.read_buf)),
        Err(upgraded) => {
            let parts = upgraded.downcast::<TokioIo<TcpStream>>()?;
            Ok((parts.io.into_inner(), parts.read_buf))
        }
    }
}

/// Whether it asks for a WebSocket over HTTP/2.
fn is_connect<B>(request: &Request<B>) -> bool {
    #[cfg(feature = "http2")]
    let is_websocket = request
        .extensions()
        .get::<hyper::ext::Protocol>()
        .is_some_and(|it| it.as_str() == "websocket");
    #[cfg(not(feature = "http2"))]
    let is_websocket = false;
    is_websocket && *request.method() == Method::CONNECT
}

fn peer_of<B>(request: &Request<B>) -> Option<IpAddr> {
    let peer = request.extensions().get::<Peer>().map(|it| it.0);
    #[cfg(feature = "axum")]
    let peer = peer.or_else(|| {
        use axum::extract::ConnectInfo;
        let info = request.extensions().get::<ConnectInfo<std::net::SocketAddr>>();
        info.map(|it| it.0.ip())
    });
    peer
}

fn refuse<R: From<&'static str>>(refusal: Refusal) -> Response<R> {
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = respond(status, refusal.body());
    if refusal == Refusal::Full {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from_static("5"));
    }
    if refusal.tells_version() {
        let version = HeaderValue::from_static("13");
        response.headers_mut().insert(SEC_WEBSOCKET_VERSION, version);
    }
    response
}

fn respond<R: From<&'static str>>(status: StatusCode, text: &'static str) -> Response<R> {
    let mut response = Response::new(R::from(text));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

/// The header of a parsed request.
struct Fields<'r> {
    headers: &'r HeaderMap,
    /// What HTTP/2 and targets in absolute form have in place of `Host`.
    authority: Option<&'r str>,
}

impl HeaderFields for Fields<'_> {
    fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let authority = self.authority.filter(|_| name.eq_ignore_ascii_case(HOST.as_str()));
        let fields = authority.is_none().then(|| self.headers.get_all(name).into_iter());
        let fields = fields.into_iter().flatten().map(|it| it.as_bytes().trim_ascii());
        fields.chain(authority.map(str::as_bytes))
    }
}

impl fmt::Debug for Upgrader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrader").finish_non_exhaustive()
    }
}
