//! [`Address`]: where the API is.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where the API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A port.
    Tcp(SocketAddr),
    /// A socket in the file system, for programs of the same machine, at less cost than a port.
    Unix(PathBuf),
}

impl Address {
    /// What a path begins with where an address is written.
    pub const UNIX: &str = "unix:";
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{}{}", Self::UNIX, path.display()),
        }
    }
}
