//! What users write, checked: addresses, paths, origins. The command line, the configuration file and the builder share
//! this, so that they accept the same and say the same.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};

use entity_sync_core::Origins;

/// Why a value is refused. Its `Display` says what to write instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ValueError {
    /// Neither an IP address nor a name, with a port.
    NotAnAddress,
    /// A name that has no address.
    UnknownHost,
    /// Neither that nor the path of a socket.
    NotAnApiAddress,
    /// Not what a request can name.
    BadPath,
    /// Not what a browser sends as its origin.
    BadOrigin,
    /// Not the name of a host.
    BadHost,
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAnAddress => {
                "write an IP address or a name of this machine, and a port, such as 127.0.0.1:8080, localhost:8080 or \
                 [::1]:8080, or 0.0.0.0:8080 for every interface"
            }
            Self::UnknownHost => "there is no address for this name; write an IP address, such as 127.0.0.1:8080",
            Self::NotAnApiAddress => {
                "write an IP address or a name of this machine, and a port, such as 127.0.0.1:8081 or localhost:8081, or \
                 unix: and the path of a socket, such as unix:/run/entity-sync/api.sock"
            }
            Self::BadPath => {
                "write the path of a URL, such as /ws/entity-sync/: it begins with / and has no \
                 spaces, no ? and no #; whether it ends with / makes a difference"
            }
            Self::BadOrigin => {
                "write a scheme and a host without a path, such as https://example.com or \
                 http://localhost:3000, or * for any origin"
            }
            Self::BadHost => {
                "write the name of a host without a scheme, a port or a path, such as sync.example.com, or .example.com for \
                 all names below it"
            }
        })
    }
}

impl std::error::Error for ValueError {}

/// An IP address or a name, with a port. Of a name, the first IPv4 address, or else the first: a server at `localhost`
/// is where `127.0.0.1` leads, as elsewhere.
pub(crate) fn address(given: &str) -> Result<SocketAddr, ValueError> {
    if let Ok(address) = given.parse() {
        return Ok(address);
    }
    let (host, port) = given.rsplit_once(':').ok_or(ValueError::NotAnAddress)?;
    let port: u16 = port.parse().map_err(|_| ValueError::NotAnAddress)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if host.is_empty() || !host.bytes().all(allowed) {
        return Err(ValueError::NotAnAddress);
    }
    let found = (host, port).to_socket_addrs().map_err(|_| ValueError::UnknownHost)?;
    let found: Vec<_> = found.collect();
    let first = found.iter().find(|it| it.is_ipv4()).or(found.first());
    first.copied().ok_or(ValueError::UnknownHost)
}

/// A path as requests name it.
pub(crate) fn path(given: &str) -> Result<String, ValueError> {
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'?' && byte != b'#';
    if given.starts_with('/') && given.bytes().all(allowed) {
        Ok(given.to_owned())
    } else {
        Err(ValueError::BadPath)
    }
}

/// An origin as browsers send it, or `*`.
pub(crate) fn origin(given: &str) -> Result<String, ValueError> {
    if given == "*" {
        return Ok(given.to_owned());
    }
    let origin = given.to_ascii_lowercase();
    let (scheme, host) = origin.split_once("://").ok_or(ValueError::BadOrigin)?;
    let scheme_ok = !scheme.is_empty()
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let host_ok = !host.is_empty()
        && host
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"/?#@*".contains(&byte));
    if !scheme_ok || !host_ok {
        return Err(ValueError::BadOrigin);
    }
    let own_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    Ok(origin.strip_suffix(own_port).unwrap_or(&origin).to_owned())
}

/// A host's name as requests carry it, perhaps with a dot before it.
pub(crate) fn host(given: &str) -> Result<String, ValueError> {
    let name = given.strip_prefix('.').unwrap_or(given);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.bytes().all(allowed) && !name.split('.').any(str::is_empty) {
        Ok(given.to_ascii_lowercase())
    } else {
        Err(ValueError::BadHost)
    }
}

/// The rule that a list of checked origins makes.
pub(crate) fn origins(list: Vec<String>) -> Origins {
    if list.is_empty() {
        Origins::Same
    } else if list.iter().any(|origin| origin == "*") {
        Origins::Any
    } else {
        Origins::List(list)
    }
}
