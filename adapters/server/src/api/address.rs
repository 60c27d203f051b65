//! [`Address`]: where the API is.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::values::{self, ValueError};

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

impl FromStr for Address {
    type Err = ValueError;

    fn from_str(given: &str) -> Result<Self, ValueError> {
        match given.strip_prefix(Self::UNIX) {
            Some("") => Err(ValueError::NotAnApiAddress),
            Some(path) => Ok(Self::Unix(path.into())),
            None => {
                let address = values::address(given).map_err(|error| match error {
                    ValueError::NotAnAddress => ValueError::NotAnApiAddress,
                    other => other,
                })?;
                Ok(Self::Tcp(address))
            }
        }
    }
}
