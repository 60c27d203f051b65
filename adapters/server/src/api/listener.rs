//! [`Listener`]: where callers connect, and [`UnixSocket`], the one that is a file.

use std::fs::{self, Permissions};
use std::future::Future;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Owner and group may connect.
const MODE: u32 = 0o660;

/// How many may wait to be accepted: what the standard library takes for ports.
const BACKLOG: i32 = 128;

/// Where callers connect.
pub trait Listener: Send + Sync {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection.
    fn accept(&self) -> impl Future<Output = Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        // Without it, an answer is no less right.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

/// A socket in the file system, which goes when this is dropped.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// The file's own, lest somebody else's be removed.
    id: Option<(u64, u64)>,
}

impl UnixSocket {
    /// Listens at `path`, where one that nobody listens to any more is replaced. The owner and the group of the file may
    /// connect.
    ///
    /// # Errors
    /// [`ErrorKind::AddrInUse`] when somebody listens there, [`ErrorKind::AlreadyExists`] when it is another kind of file, and
    /// whatever else the system refuses.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self> {
        make_way(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        // Nobody can connect before it listens.
        fs::set_permissions(path, Permissions::from_mode(MODE))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            listener: UnixListener::from_std(socket.into())?,
            path: path.to_owned(),
            id: id_of(path).ok(),
        })
    }
}

impl Listener for UnixSocket {
    type Stream = UnixStream;

    async fn accept(&self) -> Result<UnixStream> {
        Listener::accept(&self.listener).await
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if self.id.is_some() && id_of(&self.path).ok() == self.id {
            // If it stays, the next one replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn id_of(path: &Path) -> Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// Removes what a process has left that was killed.
fn make_way(path: &Path) -> Result<()> {
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !file.file_type().is_socket() {
        return Err(ErrorKind::AlreadyExists.into());
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Else it would wait where many others do.
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        _ => Err(Error::from(ErrorKind::AddrInUse)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener as Plain, UnixStream as Caller};

    use super::*;

    fn bind(path: &Path) -> Result<UnixSocket> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let _inside = runtime.enter();
        UnixSocket::bind(path)
    }

    #[test]
    fn a_socket_comes_and_goes_and_is_not_everybodys() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("api");
        let socket = bind(&path).expect("bound");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        Caller::connect(&path).expect("connects");
        assert_eq!(
            bind(&path).map(|_| ()).map_err(|it| it.kind()),
            Err(ErrorKind::AddrInUse)
        );
        Caller::connect(&path).expect("it is still there");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn one_that_a_process_has_left_is_replaced_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("api");
        // The standard library leaves the file.
        drop(Plain::bind(&path).expect("bound"));
        assert!(path.exists());
        let socket = bind(&path).expect("replaced");
        Caller::connect(&path).expect("connects");
        // Somebody else's in its place stays.
        fs::remove_file(&path).expect("removed");
        let other = Plain::bind(&path).expect("bound");
        drop(socket);
        Caller::connect(&path).expect("connects");
        drop(other);

        let letter = folder.path().join("letter");
        fs::write(&letter, "Dear socket").expect("written");
        let kind = |path: &Path| bind(path).map(|_| ()).map_err(|it| it.kind());
        assert_eq!(kind(&letter), Err(ErrorKind::AlreadyExists));
        assert_eq!(fs::read(&letter).expect("there"), b"Dear socket");
        assert_eq!(kind(&folder.path().join("no/api")), Err(ErrorKind::NotFound));
        let long = folder.path().join("x".repeat(200));
        assert_eq!(kind(&long), Err(ErrorKind::InvalidInput));
    }

    #[test]
    fn one_at_which_many_wait_is_in_use() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("api");
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        let address = SockAddr::unix(&path).expect("short");
        socket.bind(&address).expect("bound");
        socket.listen(0).expect("listens");
        let mut waiting = Vec::new();
        loop {
            let caller = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
            caller.set_nonblocking(true).expect("set");
            if caller.connect(&address).is_err() {
                break;
            }
            waiting.push(caller);
        }
        assert_eq!(
            bind(&path).map(|_| ()).map_err(|it| it.kind()),
            Err(ErrorKind::AddrInUse)
        );
    }
}
