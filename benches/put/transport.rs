//! [`Transport`]: what carries requests to the API: a port of this machine, or a socket in its file system.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use entity_sync::api::{Listener, UnixSocket};
use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Poll, Token};

pub(crate) trait Transport {
    const NAME: &str;
    /// Where the server is.
    type Address: Clone + Send + 'static;
    type Stream: Read + Write + Source + Send + 'static;
    /// A server's side that blocks.
    type Plain: Send + 'static;

    /// Listens for the API, at a port or in `folder`.
    fn listen(folder: &Path) -> impl Future<Output = io::Result<(Self::Address, impl Listener + 'static)>>;
    /// The same without the API.
    fn listen_plainly(folder: &Path) -> io::Result<(Self::Address, Self::Plain)>;
    fn accept(listener: &Self::Plain) -> io::Result<Self::Stream>;
    /// Connected by the time that it is needed.
    fn connect(address: &Self::Address) -> io::Result<Self::Stream>;

    /// Under the client's number.
    fn register(poll: &Poll, stream: &mut Self::Stream, client: usize) -> io::Result<()> {
        poll.registry().register(stream, Token(client), Interest::READABLE)
    }
}

pub(crate) struct Tcp;

impl Transport for Tcp {
    const NAME: &str = "over a port";
    type Address = SocketAddr;
    type Stream = TcpStream;
    type Plain = std::net::TcpListener;

    async fn listen(_: &Path) -> io::Result<(SocketAddr, impl Listener + 'static)> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        Ok((listener.local_addr()?, listener))
    }

    fn listen_plainly(_: &Path) -> io::Result<(SocketAddr, Self::Plain)> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        Ok((listener.local_addr()?, listener))
    }

    fn accept(listener: &Self::Plain) -> io::Result<TcpStream> {
        prepared(listener.accept()?.0)
    }

    fn connect(&address: &SocketAddr) -> io::Result<TcpStream> {
        prepared(std::net::TcpStream::connect(address)?)
    }
}

fn prepared(stream: std::net::TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(TcpStream::from_std(stream))
}

pub(crate) struct Unix;

impl Transport for Unix {
    const NAME: &str = "over a socket";
    type Address = PathBuf;
    type Stream = UnixStream;
    type Plain = std::os::unix::net::UnixListener;

    async fn listen(folder: &Path) -> io::Result<(PathBuf, impl Listener + 'static)> {
        let path = folder.join("api");
        let socket = UnixSocket::bind(&path)?;
        Ok((path, socket))
    }

    fn listen_plainly(folder: &Path) -> io::Result<(PathBuf, Self::Plain)> {
        let path = folder.join("echo");
        let listener = std::os::unix::net::UnixListener::bind(&path)?;
        Ok((path, listener))
    }

    fn accept(listener: &Self::Plain) -> io::Result<UnixStream> {
        let (stream, _) = listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(UnixStream::from_std(stream))
    }

    fn connect(path: &PathBuf) -> io::Result<UnixStream> {
        let stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        Ok(UnixStream::from_std(stream))
    }
}
