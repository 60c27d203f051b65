//! [`Endpoint`] and [`DnsName`]: where sockets bind and connect, checked before libzmq sees it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// A Unix socket's path has room for so many bytes.
const MAX_PATH_BYTES: usize = 107;

/// The longest name that DNS has.
const MAX_NAME_BYTES: usize = 253;

/// Where a socket binds or connects: `tcp://HOST:PORT` or `ipc://PATH`.
///
/// To bind, the host is an address of this machine, `*` for all of them, or the name of a network interface; port 0 takes
/// a free one. To connect, it is an address or a DNS name, which is looked up again and again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint(pub(crate) Kind);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Of all addresses.
    Any(u16),
    Tcp(SocketAddr),
    Named(DnsName),
    Ipc(String),
}

/// A DNS name and a port, `NAME:PORT`: all addresses that the name has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DnsName {
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// What is no endpoint, or not one for its purpose. Its `Display` says what is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadEndpoint {
    text: String,
    why: &'static str,
}

impl Endpoint {
    /// Whether a socket can bind to it.
    ///
    /// # Errors
    /// [`BadEndpoint`].
    pub fn check_bind(&self) -> Result<(), BadEndpoint> {
        match &self.0 {
            // What the kernel calls its interfaces is shorter.
            Kind::Named(name) if name.host.len() > 15 => Err(self.bad(
                "to bind, HOST is an address of this machine, * for all of them, or the name of a network interface",
            )),
            _ => Ok(()),
        }
    }

    /// Whether a socket can connect to it.
    ///
    /// # Errors
    /// [`BadEndpoint`].
    pub fn check_connect(&self) -> Result<(), BadEndpoint> {
        if self.wildcard_port().is_some() {
            return Err(self.bad(
                "to connect, HOST is an address or a name, not *, 0.0.0.0 or [::], which only say where to bind",
            ));
        }
        match &self.0 {
            Kind::Tcp(address) if address.port() == 0 => Err(self.bad("to connect, PORT is 1 to 65535")),
            Kind::Named(name) if name.port == 0 => Err(self.bad("to connect, PORT is 1 to 65535")),
            _ => Ok(()),
        }
    }

    /// Whether only this machine reaches it: a Unix socket, a loopback address, or the loopback interface.
    pub fn is_local(&self) -> bool {
        match &self.0 {
            Kind::Any(_) => false,
            Kind::Tcp(address) => address.ip().is_loopback(),
            Kind::Named(name) => name.host == "lo",
            Kind::Ipc(_) => true,
        }
    }

    /// The port of one that stands for all addresses of this machine: `*`, `0.0.0.0` or `[::]`. A socket binds to it, and
    /// others connect to one of those addresses.
    pub fn wildcard_port(&self) -> Option<u16> {
        match &self.0 {
            Kind::Any(port) => Some(*port),
            Kind::Tcp(address) if address.ip().is_unspecified() => Some(address.port()),
            _ => None,
        }
    }

    fn bad(&self, why: &'static str) -> BadEndpoint {
        BadEndpoint {
            text: self.to_string(),
            why,
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        // libzmq writes an IPv4 address that was mapped to IPv6 either way.
        Self(Kind::Tcp(SocketAddr::new(address.ip().to_canonical(), address.port())))
    }
}

impl FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let bad = |why| BadEndpoint {
            text: text.to_owned(),
            why,
        };
        if let Some(path) = text.strip_prefix("ipc://") {
            if path.is_empty() || path.len() > MAX_PATH_BYTES || path.contains(['\0', '*']) {
                return Err(bad("the path of a Unix socket has 1 to 107 bytes and no *"));
            }
            return Ok(Self(Kind::Ipc(path.to_owned())));
        }
        let Some(place) = text.strip_prefix("tcp://") else {
            return Err(bad(
                "it takes tcp://HOST:PORT, such as tcp://10.0.0.1:5555, or ipc://PATH",
            ));
        };
        let (host, port) = host_and_port(place).map_err(bad)?;
        if host == "*" {
            return Ok(Self(Kind::Any(port)));
        }
        let address = match host.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            Some(v6) => Some(IpAddr::V6(
                v6.parse()
                    .map_err(|_| bad("there is no IPv6 address in the brackets"))?,
            )),
            None => host.parse().ok(),
        };
        match address {
            Some(IpAddr::V6(_)) if !host.starts_with('[') => {
                Err(bad("an IPv6 address goes in brackets: tcp://[::1]:5555"))
            }
            Some(address) => Ok(SocketAddr::new(address, port).into()),
            None => {
                check_name(host).map_err(bad)?;
                let host = host.to_owned();
                Ok(Self(Kind::Named(DnsName { host, port })))
            }
        }
    }
}

impl FromStr for DnsName {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let bad = |why| BadEndpoint {
            text: text.to_owned(),
            why,
        };
        let (host, port) = host_and_port(text).map_err(bad)?;
        check_name(host).map_err(bad)?;
        if port == 0 {
            return Err(bad("PORT is 1 to 65535"));
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

fn host_and_port(text: &str) -> Result<(&str, u16), &'static str> {
    let (host, port) = text.rsplit_once(':').ok_or("a :PORT is missing at its end")?;
    let port = match port {
        "*" => 0,
        // No signs.
        digits if digits.bytes().all(|it| it.is_ascii_digit()) => {
            digits.parse().map_err(|_| "PORT is a number up to 65535")?
        }
        _ => return Err("PORT is a number up to 65535"),
    };
    match host {
        "" => Err("HOST is missing"),
        _ => Ok((host, port)),
    }
}

fn check_name(host: &str) -> Result<(), &'static str> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if host.is_empty() || host.len() > MAX_NAME_BYTES || !host.bytes().all(is_good) {
        return Err("HOST is an address, or a name of letters, digits, dots and hyphens");
    }
    Ok(())
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Any(0) => f.write_str("tcp://*:*"),
            Kind::Any(port) => write!(f, "tcp://*:{port}"),
            Kind::Tcp(address) => write!(f, "tcp://{address}"),
            Kind::Named(name) => write!(f, "tcp://{name}"),
            Kind::Ipc(path) => write!(f, "ipc://{path}"),
        }
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Display for BadEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} won't do for ZeroMQ: {}", self.text, self.why)
    }
}

impl std::error::Error for BadEndpoint {}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse().expect(text)
    }

    #[test]
    fn what_is_read_is_written_the_same() {
        for text in [
            "tcp://*:5555",
            "tcp://*:*",
            "tcp://127.0.0.1:5555",
            "tcp://[::1]:5555",
            "tcp://node-1.example.com:5555",
            "tcp://eth0:5555",
            "ipc:///run/bus",
            "ipc://@bus",
        ] {
            assert_eq!(endpoint(text).to_string(), text);
        }
        assert_eq!(endpoint("tcp://[::ffff:10.0.0.1]:5"), endpoint("tcp://10.0.0.1:5"));
        assert_eq!("nodes:5".parse::<DnsName>().expect("a name").to_string(), "nodes:5");
    }

    #[test]
    fn what_is_no_endpoint_is_told_why() {
        let long = format!("ipc://{}", "x".repeat(108));
        for (text, why) in [
            ("", "it takes tcp://HOST:PORT"),
            ("127.0.0.1:5555", "it takes tcp://HOST:PORT"),
            ("udp://127.0.0.1:5555", "it takes tcp://HOST:PORT"),
            ("tcp://127.0.0.1", ":PORT is missing"),
            ("tcp://:5555", "HOST is missing"),
            ("tcp://127.0.0.1:65536", "up to 65535"),
            ("tcp://127.0.0.1:+5", "up to 65535"),
            ("tcp://127.0.0.1:", "up to 65535"),
            ("tcp://::1:5555", "goes in brackets"),
            ("tcp://[::1%lo]:5555", "no IPv6 address"),
            ("tcp://a b:5555", "letters, digits"),
            ("tcp://10.0.0.1:1;10.0.0.2:5", "letters, digits"),
            ("tcp://\0:5555", "letters, digits"),
            ("ipc://", "1 to 107 bytes"),
            ("ipc://a\0", "1 to 107 bytes"),
            (&long, "1 to 107 bytes"),
        ] {
            let said = text.parse::<Endpoint>().expect_err(text).to_string();
            assert!(said.contains(why), "{said}");
        }
        for text in ["nodes", "nodes:0", ":1", "no des:1", "tcp://nodes:1"] {
            text.parse::<DnsName>().expect_err(text);
        }
    }

    #[test]
    fn binding_and_connecting_take_different_ones() {
        for text in ["tcp://*:5555", "tcp://*:*", "tcp://127.0.0.1:0"] {
            endpoint(text).check_bind().expect(text);
            endpoint(text).check_connect().expect_err(text);
        }
        for text in [
            "tcp://0.0.0.0:5555",
            "tcp://[::]:5555",
            "tcp://*:5555",
            "tcp://[::ffff:0.0.0.0]:5555",
        ] {
            let wildcard = endpoint(text);
            wildcard.check_bind().expect(text);
            assert_eq!(wildcard.wildcard_port(), Some(5555));
            let said = wildcard.check_connect().expect_err(text).to_string();
            assert!(
                said.contains(
                    "to connect, HOST is an address or a name, not *, 0.0.0.0 or [::], which only say where to bind"
                ),
                "{said}"
            );
        }
        for text in ["tcp://10.0.0.1:5555", "tcp://node:5555", "ipc:///run/bus"] {
            assert_eq!(endpoint(text).wildcard_port(), None);
        }
        for (text, is_local) in [
            ("ipc:///run/bus", true),
            ("tcp://127.0.0.2:5555", true),
            ("tcp://[::1]:5555", true),
            ("tcp://[::ffff:127.0.0.1]:5555", true),
            ("tcp://lo:5555", true),
            ("tcp://eth0:5555", false),
            ("tcp://*:5555", false),
            ("tcp://0.0.0.0:5555", false),
            ("tcp://[::]:5555", false),
            ("tcp://10.0.0.1:5555", false),
        ] {
            assert_eq!(endpoint(text).is_local(), is_local, "{text}");
        }
        endpoint("tcp://eth0:5555").check_bind().expect("an interface");
        let name = endpoint("tcp://node-1.example.com:5555");
        name.check_connect().expect("a name");
        name.check_bind().expect_err("no interface");
    }
}
