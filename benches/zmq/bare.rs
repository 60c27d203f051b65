//! The floor: two bare sockets with the options that nodes give theirs.

use std::error::Error;

/// The topic of a cluster's messages, as it stands before each.
pub(crate) const TOPIC: &[u8] = b"entity-sync.all\0";

/// Whether a message is one frame that begins with its topic, or the topic is a frame of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    One,
    Two,
}

/// A publisher and a subscriber that hears it.
pub(crate) struct Pair {
    pub(crate) publisher: zmq::Socket,
    pub(crate) subscriber: zmq::Socket,
}

impl Pair {
    /// Each in a context of its own, as in two processes. So many messages may wait on the way.
    pub(crate) fn connect(queue: usize) -> Result<Self, Box<dyn Error>> {
        let publisher = open(zmq::PUB)?;
        publisher.set_sndhwm(queue.try_into()?)?;
        publisher.bind("tcp://127.0.0.1:*")?;
        let address = publisher
            .get_last_endpoint()?
            .map_err(|_| "an endpoint that is no text")?;
        let subscriber = open(zmq::SUB)?;
        subscriber.set_rcvhwm(1_000)?;
        subscriber.set_subscribe(TOPIC)?;
        subscriber.connect(&address)?;
        // Until the subscription has arrived.
        subscriber.set_rcvtimeo(10)?;
        for _ in 0..1_000 {
            publisher.send(&[TOPIC, b"hello"].concat()[..], 0)?;
            if subscriber.recv_msg(0).is_ok() {
                while subscriber.recv_msg(0).is_ok() {}
                subscriber.set_rcvtimeo(-1)?;
                return Ok(Self { publisher, subscriber });
            }
        }
        Err("the bare sockets did not find each other".into())
    }
}

fn open(kind: zmq::SocketType) -> zmq::Result<zmq::Socket> {
    let socket = zmq::Context::new().socket(kind)?;
    socket.set_linger(0)?;
    socket.set_ipv6(true)?;
    socket.set_heartbeat_ivl(2_000)?;
    socket.set_heartbeat_timeout(6_000)?;
    socket.set_tcp_keepalive(1)?;
    Ok(socket)
}
