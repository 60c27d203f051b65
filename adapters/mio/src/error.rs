//! [`StartError`]: why a server did not start.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use crate::refused::Refused;

/// Why a server did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// The limit on open files leaves none for connections: raise it (`ulimit -n`), or lower `reserved_files`.
    NoFiles,
    /// An address can't be listened to.
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// An address is listed twice, or includes another.
    ListenTwice {
        /// Which.
        address: SocketAddr,
        /// The same one, or one that it includes, as `0.0.0.0` includes `127.0.0.1`.
        included: SocketAddr,
    },
    /// A reactor could not be set up: out of files, memory or threads.
    Reactor(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFiles => f.write_str(
                "the limit on open files leaves none for connections; raise it (ulimit -n) or reserve fewer",
            ),
            Self::Listen { address, source } if source.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "can't listen on {address}: another program already uses this port; stop it or choose another port"
            ),
            Self::Listen { address, source } => write!(f, "can't listen on {address}: {}", Refused(source)),
            Self::ListenTwice { address, included } if address == included => {
                write!(f, "the address {address} is given twice: remove one")
            }
            Self::ListenTwice { address, included } => write!(
                f,
                "can't listen on both {address} and {included}: the first includes the second; leave one of them out"
            ),
            Self::Reactor(source) => write!(f, "can't set up a reactor: {}", Refused(source)),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoFiles | Self::ListenTwice { .. } => None,
            Self::Listen { source, .. } | Self::Reactor(source) => Some(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_which_limit_to_raise() {
        let reactor = |number| StartError::Reactor(io::Error::from_raw_os_error(number)).to_string();
        assert_eq!(
            reactor(11),
            "can't set up a reactor: Resource temporarily unavailable (os error 11); allow its user more threads (ulimit -u), \
             or it more memory (ulimit -v), or its container more of both"
        );
        let files = "Too many open files (os error 24); allow it more open files (ulimit -n)";
        assert_eq!(reactor(24), format!("can't set up a reactor: {files}"));
        let listen = |number| {
            let address = SocketAddr::from(([127, 0, 0, 1], 80));
            let source = io::Error::from_raw_os_error(number);
            StartError::Listen { address, source }.to_string()
        };
        assert_eq!(listen(24), format!("can't listen on 127.0.0.1:80: {files}"));
        // Permission is no limit.
        assert_eq!(
            listen(13),
            "can't listen on 127.0.0.1:80: Permission denied (os error 13)"
        );
    }
}
