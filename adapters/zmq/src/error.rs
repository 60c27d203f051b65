//! [`ZmqError`]: why there is no bus.

use std::fmt;
use std::io;
use std::time::Duration;

use entity_sync_bus::{NoneToSpare, StartError};

use crate::endpoint::BadEndpoint;

/// Why a bus or a broker did not start. Its `Display` says what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum ZmqError {
    /// An endpoint can't be bound or connected to.
    Endpoint(BadEndpoint),
    /// Other machines could connect to an endpoint without proving who they are.
    Unauthenticated {
        /// Which.
        endpoint: String,
    },
    /// No other node could receive from this one: it neither binds nor knows a broker.
    Deaf,
    /// An endpoint can't be bound to.
    Bind {
        /// Which.
        endpoint: String,
        /// Why.
        source: BindError,
    },
    /// The limits on open files or on sockets are reached.
    TooManyFiles,
    /// One of a configuration's times is out of range.
    Time {
        /// Its field of [`ZmqConfig`](crate::ZmqConfig).
        name: &'static str,
        /// What it says.
        value: Duration,
        /// What is allowed.
        allowed: &'static str,
    },
    /// Keys for CURVE are given, but this libzmq can't do it.
    NoCurve,
    /// With CURVE, a node that binds needs [`CurveServer`](crate::CurveServer).
    NoServerKeys,
    /// With CURVE, the socket that publishes either admits others or connects to brokers.
    BindAndBrokers,
    /// The system refuses a thread, or what it sleeps on.
    Thread(io::Error),
    /// libzmq refuses a socket or one of its options.
    Socket(zmq::Error),
}

/// Why an endpoint can't be bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BindError {
    /// Another program, or another socket of this one, has bound to it.
    InUse,
    /// The system forbids it.
    Forbidden,
    /// This machine has no such address or interface.
    NoSuchAddress,
    /// The folder of the Unix socket doesn't exist.
    NoSuchFolder,
    /// libzmq's reason.
    Other(zmq::Error),
    /// A reason of the system's for which the bindings of libzmq have no name.
    Unknown,
}

impl From<zmq::Error> for BindError {
    fn from(error: zmq::Error) -> Self {
        match error {
            zmq::Error::EADDRINUSE => Self::InUse,
            zmq::Error::EACCES => Self::Forbidden,
            zmq::Error::ENODEV | zmq::Error::EADDRNOTAVAIL => Self::NoSuchAddress,
            zmq::Error::ENOENT => Self::NoSuchFolder,
            other => Self::Other(other),
        }
    }
}

impl From<zmq::Error> for ZmqError {
    fn from(error: zmq::Error) -> Self {
        match error {
            zmq::Error::EMFILE => Self::TooManyFiles,
            other => Self::Socket(other),
        }
    }
}

impl From<BadEndpoint> for ZmqError {
    fn from(error: BadEndpoint) -> Self {
        Self::Endpoint(error)
    }
}

impl From<ZmqError> for StartError {
    fn from(error: ZmqError) -> Self {
        match error {
            ZmqError::Thread(error) => Self::Thread(error),
            other => Self::Bus(Box::new(other)),
        }
    }
}

impl fmt::Display for ZmqError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(error) => error.fmt(f),
            Self::Unauthenticated { endpoint } => write!(
                f,
                "other machines can reach {endpoint}, and without CURVE anyone who does can read all changes and fill this \
                 process's memory with subscriptions: use CURVE (--zmq-curve-secret-file, with a key that entity-sync zmq-keys \
                 writes), bind to a loopback address or ipc://PATH, or, in a network that only the cluster's nodes can reach, \
                 allow it with --zmq-allow-unauthenticated (allow_unauthenticated)"
            ),
            Self::Deaf => f.write_str(
                "no other node could receive from this one: give it an address to bind to (--zmq-bind) or a \
                 broker (--zmq-broker)",
            ),
            Self::Bind { endpoint, source } => write!(f, "can't bind to {endpoint}: {source}"),
            Self::TooManyFiles => {
                f.write_str("ZeroMQ is out of files: raise the limit on open files (ulimit -n), or close other sockets")
            }
            Self::Time { name, value, allowed } => {
                write!(f, "ZeroMQ's {name} can't be {value:?}: allowed is {allowed}")
            }
            Self::NoCurve => f.write_str(
                "this libzmq was built without CURVE: link the system's, which has it on Debian and others (see \
                 docs/zeromq.md), or leave out the keys and give the cluster a secret",
            ),
            Self::NoServerKeys => f.write_str(
                "with CURVE, a node that binds needs the keys that others know it by, and a list of those it admits",
            ),
            Self::BindAndBrokers => f.write_str(
                "with CURVE, a node either binds, as one of a mesh, or connects to brokers: leave out one of them",
            ),
            Self::Thread(error) => NoneToSpare { whom: "ZeroMQ", error }.fmt(f),
            Self::Socket(error) => write!(f, "libzmq refused a socket: {error}"),
        }
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse => f.write_str("another program already uses this address; stop it or choose another address"),
            Self::Forbidden => {
                f.write_str("the system forbids it; choose a port above 1023, or a folder that this user may write to")
            }
            Self::NoSuchAddress => {
                f.write_str("this machine has no such address or interface; take one that it has, or * for all of them")
            }
            Self::NoSuchFolder => f.write_str("its folder doesn't exist; create it or choose another"),
            Self::Other(error) => error.fmt(f),
            Self::Unknown => f.write_str("the system refuses; look whether its path can be written to"),
        }
    }
}

impl std::error::Error for BindError {}

impl std::error::Error for ZmqError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Endpoint(error) => Some(error),
            Self::Bind { source, .. } => Some(source),
            Self::Thread(error) => Some(error),
            Self::Socket(error) => Some(error),
            _ => None,
        }
    }
}
