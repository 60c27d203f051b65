//! How sockets are opened: everything that libzmq wants to know before it binds or connects.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use entity_sync_core::cluster::{MAX_MESSAGE_BYTES, MAX_TOPIC_BYTES};

use crate::config::ZmqConfig;
use crate::curve::{CurveKeyPair, CurvePublicKey, CurveServer};
use crate::endpoint::Endpoint;
use crate::error::{BindError, ZmqError};
use crate::monitor::canonical;

/// What CURVE and ZMTP add to a frame, with some to spare.
const FRAME_OVERHEAD_BYTES: usize = 256;

/// What comes from a subscriber is the topic that it wants; and, before that, its handshake.
const MAX_SUBSCRIPTION_BYTES: i64 = 1024;

/// How long a connection may take, and then its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// With a domain, libzmq asks who may connect, and admits nobody if there is no answer.
const ZAP_DOMAIN: &str = "entity-sync";

/// How a socket proves who it is.
pub(crate) enum Security<'a> {
    None,
    Client {
        keys: &'a CurveKeyPair,
        server: &'a CurvePublicKey,
    },
    Server(&'a CurveServer),
}

/// What a socket is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Messages leave by it, and subscriptions come.
    Publish,
    /// The other way round.
    Subscribe,
}

/// Opens a socket of this type. No XPUB_NODROP is among its options, with which one peer that is stuck would hold up all,
/// and no CONFLATE, which keeps one message in total.
pub(crate) fn open(
    context: &zmq::Context,
    kind: zmq::SocketType,
    purpose: Purpose,
    config: &ZmqConfig,
    security: Security<'_>,
) -> Result<zmq::Socket, ZmqError> {
    let socket = context.socket(kind)?;
    // Whoever leaves says for how long to go on sending.
    socket.set_linger(0)?;
    socket.set_reconnect_ivl(ms(config.reconnect_first))?;
    socket.set_reconnect_ivl_max(ms(config.reconnect_max))?;
    socket.set_connect_timeout(ms(CONNECT_TIMEOUT))?;
    socket.set_handshake_ivl(ms(2 * CONNECT_TIMEOUT))?;
    socket.set_heartbeat_ivl(ms(config.ping_every))?;
    socket.set_heartbeat_timeout(ms(config.dead_after))?;
    socket.set_heartbeat_ttl(ms(config.dead_after))?;
    socket.set_tcp_keepalive(1)?;
    socket.set_tcp_keepalive_idle(30)?;
    socket.set_tcp_keepalive_intvl(10)?;
    socket.set_tcp_keepalive_cnt(3)?;
    // IPv4 goes all the same.
    socket.set_ipv6(true)?;
    match purpose {
        Purpose::Publish => {
            socket.set_sndhwm(count(config.send_queue))?;
            socket.set_maxmsgsize(MAX_SUBSCRIPTION_BYTES)?;
        }
        Purpose::Subscribe => {
            // Subscriptions beyond it would be lost, now and whenever a publisher comes back.
            socket.set_sndhwm(0)?;
            socket.set_rcvhwm(count(config.receive_queue))?;
            socket.set_maxmsgsize((MAX_MESSAGE_BYTES + MAX_TOPIC_BYTES + FRAME_OVERHEAD_BYTES) as i64)?;
        }
    }
    match security {
        Security::None => {}
        Security::Client { keys, server } => {
            socket.set_curve_publickey(&keys.public.0)?;
            socket.set_curve_secretkey(&keys.secret.0)?;
            socket.set_curve_serverkey(&server.0)?;
        }
        Security::Server(server) => {
            socket.set_zap_domain(ZAP_DOMAIN)?;
            socket.set_curve_server(true)?;
            socket.set_curve_publickey(&server.keys.public.0)?;
            socket.set_curve_secretkey(&server.keys.secret.0)?;
        }
    }
    Ok(socket)
}

/// Binds, and says to what: with the port that was taken for port 0.
pub(crate) fn bind(socket: &zmq::Socket, endpoint: &Endpoint) -> Result<String, ZmqError> {
    let text = endpoint.to_string();
    // The bindings panic where the system has a reason that they don't know, such as a file system that is read-only.
    let bound = catch_unwind(AssertUnwindSafe(|| socket.bind(&text)));
    let failed = match bound {
        Ok(Ok(())) => {
            let last = socket.get_last_endpoint()?;
            return Ok(last.map_or(text, |last| canonical(&last)));
        }
        Ok(Err(zmq::Error::EMFILE)) => return Err(ZmqError::TooManyFiles),
        Ok(Err(error)) => error.into(),
        Err(_) => BindError::Unknown,
    };
    Err(ZmqError::Bind {
        endpoint: text,
        source: failed,
    })
}

/// Milliseconds as libzmq takes them. It has no shorter time than one.
pub(crate) fn ms(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// A high-water mark. libzmq takes 0 for none.
fn count(messages: u32) -> i32 {
    i32::try_from(messages).unwrap_or(i32::MAX).max(1)
}
