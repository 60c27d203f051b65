//! [`Listener`]: where callers connect, and [`UnixSocket`], the one that is a file.

use std::fs::{self, File, Permissions, TryLockError};
use std::future::Future;
use std::io::{ErrorKind, Result};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

/// Owner and group may connect.
const MODE: u32 = 0o660;

/// How many may wait to be accepted, as far as the system allows. Beyond that, callers who don't block are refused at once,
/// where at a port they would be asked again.
const BACKLOG: i32 = 4096;

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

/// Listens at a port, where thousands may wait to be accepted.
///
/// # Errors
/// Whatever the system refuses.
pub fn bind_port(address: SocketAddr) -> Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // So that a restart finds its port, although the one before has left connections that are being closed.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG.unsigned_abs())
}

/// A socket in the file system, which goes when this is dropped. A file with `.lock` after its name stays beside it.
#[derive(Debug)]
pub struct UnixSocket {
    /// In this order: nobody may come before the file is gone.
    _file: SocketFile,
    listener: UnixListener,
    _lock: File,
}

impl UnixSocket {
    /// Listens at `path`, where one that nobody listens to any more is replaced. The owner and the group of the file may
    /// connect. The directory should belong to nobody else: who may write to it could put something in the socket's place.
    ///
    /// # Errors
    /// [`ErrorKind::AddrInUse`] when somebody listens there, [`ErrorKind::AlreadyExists`] when it is another kind of file,
    /// [`ErrorKind::InvalidInput`] when the path is too long for a socket, and whatever else the system refuses.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self> {
        let address = SockAddr::unix(path)?;
        let lock = lock(path)?;
        make_way(path, &address)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&address)?;
        let file = SocketFile::at(path)?;
        // Nobody can connect before it listens.
        fs::set_permissions(path, Permissions::from_mode(MODE))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            _file: file,
            listener: UnixListener::from_std(socket.into())?,
            _lock: lock,
        })
    }
}

impl Listener for UnixSocket {
    type Stream = UnixStream;

    async fn accept(&self) -> Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

/// A socket's file, which is removed when this is dropped.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Somebody else's that has taken its place stays.
    id: (u64, u64),
}

impl SocketFile {
    fn at(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            id: id_of(path)?,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if id_of(&self.path).is_ok_and(|id| id == self.id) {
            // If it stays, the next one replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn id_of(path: &Path) -> Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// Of several that start at once, one gets it. The file stays: who removed it could remove another's.
fn lock(path: &Path) -> Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let mut options = File::options();
    let file = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(name)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ErrorKind::AddrInUse.into()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Removes what a process has left that was killed.
fn make_way(path: &Path, address: &SockAddr) -> Result<()> {
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !file.file_type().is_socket() {
        return Err(ErrorKind::AlreadyExists.into());
    }
    // Other programs don't know the lock.
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Else it would wait where many others do.
    socket.set_nonblocking(true)?;
    match socket.connect(address) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        _ => Err(ErrorKind::AddrInUse.into()),
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
    fn of_several_that_start_at_once_one_gets_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("api");
        drop(Plain::bind(&path).expect("bound"));
        // Another has looked, and is about to bind.
        let other = lock(&path).expect("locked");
        let kind = bind(&path).map(|_| ()).map_err(|it| it.kind());
        assert_eq!(kind, Err(ErrorKind::AddrInUse));
        assert!(path.exists());
        drop(other);
        let _socket = bind(&path).expect("bound");
        assert!(lock(&path).is_err());
    }

    #[test]
    fn hundreds_may_wait_to_be_accepted() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("api");
        let _socket = bind(&path).expect("bound");
        let system = fs::read_to_string("/proc/sys/net/core/somaxconn").expect("Linux");
        let count = system.trim().parse::<usize>().expect("a number").min(400);
        let waiting: Vec<_> = (0..count)
            .map(|_| {
                let caller = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
                caller.set_nonblocking(true).expect("set");
                caller
                    .connect(&SockAddr::unix(&path).expect("short"))
                    .expect("it waits");
                caller
            })
            .collect();
        assert_eq!(waiting.len(), count);
    }

    #[tokio::test]
    async fn hundreds_may_wait_at_a_port_too() {
        let listener = bind_port(([127, 0, 0, 1], 0).into()).expect("bound");
        let address = listener.local_addr().expect("bound");
        let system = fs::read_to_string("/proc/sys/net/core/somaxconn").expect("Linux");
        let count = system.trim().parse::<usize>().expect("a number").min(400);
        // One that finds no room is asked again after a second.
        let within = std::time::Duration::from_millis(900);
        let connect = || std::net::TcpStream::connect_timeout(&address, within).expect("it waits");
        let waiting: Vec<_> = (0..count).map(|_| connect()).collect();
        assert_eq!(waiting.len(), count);
    }

    #[test]
    fn what_fails_half_way_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("api");
        let socket = Plain::bind(&path).expect("bound");
        drop(SocketFile::at(&path).expect("there"));
        assert!(!path.exists());
        drop(socket);
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
