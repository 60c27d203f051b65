//! The other way in: axum with the login of its example, on a tokio runtime of its own.

use std::future::IntoFuture;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};

use axum::Router;
use entity_sync_axum::Upgrader;
use entity_sync_benches::connect::response_head;
use entity_sync_benches::wire;
use entity_sync_mio::Handle;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::app;

pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    _runtime: Runtime,
}

pub(crate) fn serve(handle: &Handle) -> io::Result<Served> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let app = app::app(Router::new().route("/ws/entity-sync/", Upgrader::new(handle).route()));
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    runtime.spawn(axum::serve(listener, app).into_future());
    Ok(Served {
        address,
        _runtime: runtime,
    })
}

/// Logs in, and gives the upgrade request with the cookie.
pub(crate) fn upgrade_request(address: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\
        Content-Type: application/x-www-form-urlencoded\r\n\r\nname=them",
    )?;
    let response = String::from_utf8(response_head(&mut stream)?).map_err(io::Error::other)?;
    let cookie = response
        .split_once("set-cookie: ")
        .and_then(|(_, rest)| rest.split_once(';'));
    let (cookie, _) = cookie.ok_or_else(|| io::Error::other(format!("no cookie: {response}")))?;
    let request = String::from_utf8_lossy(wire::UPGRADE).replacen("\r\n", &format!("\r\nCookie: {cookie}\r\n"), 1);
    Ok(request.into_bytes())
}
