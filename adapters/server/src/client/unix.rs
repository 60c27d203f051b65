//! A request to an API that listens at a socket of this machine.

use std::io;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::handshake;
use hyper::{Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(20);

/// What the server at `socket` answers within `limit`.
pub(super) fn send(socket: &Path, request: Request<String>, limit: Duration) -> io::Result<(StatusCode, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = async {
        let stream = TokioIo::new(connect(socket).await?);
        let (mut sender, connection) = handshake(stream).await.map_err(io::Error::other)?;
        // What is wrong with it is an error of the request, too.
        tokio::spawn(connection);
        let request = request.map(|body| Full::new(Bytes::from(body)));
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(io::Error::other)?;
        let text = String::from_utf8(body.to_bytes().into()).map_err(io::Error::other)?;
        Ok((status, text))
    };
    let answered = runtime.block_on(async { timeout(limit, answer).await });
    answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Where many wait already, who comes is refused and not asked to wait.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(PAUSE).await,
            connected => return connected,
        }
    }
}
