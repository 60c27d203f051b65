//! [`Monitor`]: what libzmq tells of a socket's connections.

use std::net::SocketAddr;

use zmq::SocketEvent;

use crate::endpoint::Endpoint;
use crate::error::ZmqError;

pub(crate) struct Monitor {
    socket: zmq::Socket,
    message: zmq::Message,
}

/// What has happened to a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It can be used. For one that was accepted, the endpoint is the one it was accepted at.
    Up(String),
    /// It is gone, or has failed before it could be used.
    Down(String),
    /// The other side does not admit us, or is no ZeroMQ of a kind that we can speak to.
    Refused(String),
}

impl Monitor {
    /// To be called before the socket binds or connects. `name` is one that no other monitor of the context has.
    pub(crate) fn attach(context: &zmq::Context, socket: &zmq::Socket, name: &str) -> Result<Self, ZmqError> {
        let endpoint = format!("inproc://{name}");
        let wanted = [
            SocketEvent::HANDSHAKE_SUCCEEDED,
            SocketEvent::DISCONNECTED,
            SocketEvent::HANDSHAKE_FAILED_AUTH,
            SocketEvent::HANDSHAKE_FAILED_PROTOCOL,
        ];
        let mask = wanted.iter().fold(0, |mask, event| mask | i32::from(event.to_raw()));
        socket.monitor(&endpoint, mask)?;
        let listener = context.socket(zmq::PAIR)?;
        listener.set_linger(0)?;
        // With a limit, libzmq's own thread would wait for whoever is to read the events.
        listener.set_rcvhwm(0)?;
        listener.connect(&endpoint)?;
        Ok(Self {
            socket: listener,
            message: zmq::Message::new(),
        })
    }

    pub(crate) fn fd(&self) -> Result<std::os::fd::RawFd, ZmqError> {
        Ok(self.socket.get_fd()?)
    }

    /// The next event, until `None`.
    pub(crate) fn next(&mut self) -> Option<Event> {
        loop {
            let kind = self.receive()?;
            let kind = kind.first_chunk().map(|it| u32::from(u16::from_ne_bytes(*it)));
            let endpoint = canonical(&String::from_utf8_lossy(self.receive()?));
            let is = |event: SocketEvent| kind == Some(u32::from(event.to_raw()));
            if is(SocketEvent::HANDSHAKE_SUCCEEDED) {
                return Some(Event::Up(endpoint));
            }
            if is(SocketEvent::DISCONNECTED) {
                return Some(Event::Down(endpoint));
            }
            if is(SocketEvent::HANDSHAKE_FAILED_AUTH) || is(SocketEvent::HANDSHAKE_FAILED_PROTOCOL) {
                return Some(Event::Refused(endpoint));
            }
        }
    }

    fn receive(&mut self) -> Option<&[u8]> {
        while let Err(error) = self.socket.recv(&mut self.message, zmq::DONTWAIT) {
            if error != zmq::Error::EINTR {
                return None;
            }
        }
        Some(&self.message)
    }
}

/// An endpoint as [`Endpoint`] writes it: libzmq writes IPv4 addresses as mapped to IPv6, sometimes.
pub(crate) fn canonical(endpoint: &str) -> String {
    let address = endpoint
        .strip_prefix("tcp://")
        .and_then(|it| it.parse::<SocketAddr>().ok());
    address.map_or_else(|| endpoint.to_owned(), |it| Endpoint::from(it).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_written_as_ours_are() {
        assert_eq!(canonical("tcp://[::ffff:127.0.0.1]:5555"), "tcp://127.0.0.1:5555");
        assert_eq!(canonical("tcp://[::1]:5555"), "tcp://[::1]:5555");
        assert_eq!(canonical("ipc:///run/bus"), "ipc:///run/bus");
        assert_eq!(canonical(""), "");
    }
}
