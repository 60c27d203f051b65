//! Thousands of WebSocket connections, opened one after the other.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::wire;

/// No response to an upgrade is longer.
const MAX_RESPONSE_BYTES: usize = 4096;

/// Opens `count` connections. No single step on one of them takes longer than `patience` while they are blocking.
///
/// # Errors
/// The first connection's that can't be opened.
pub fn connect(address: SocketAddr, count: usize, patience: Duration) -> io::Result<Vec<TcpStream>> {
    let open = |_| {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        Ok(stream)
    };
    (0..count).map(open).collect()
}

/// As [`connect`], and makes WebSocket connections of them: a thousand at a time, since a server limits how many have not
/// said what they want.
///
/// # Errors
/// The first connection's that can't be opened, fails or is refused.
pub fn connect_upgraded(address: SocketAddr, count: usize, patience: Duration) -> io::Result<Vec<TcpStream>> {
    connect_with(wire::UPGRADE, address, count, patience)
}

/// As [`connect_upgraded`], with an upgrade request of the caller's.
///
/// # Errors
/// The first connection's that can't be opened, fails or is refused.
pub fn connect_with(
    request: &[u8],
    address: SocketAddr,
    count: usize,
    patience: Duration,
) -> io::Result<Vec<TcpStream>> {
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let mut some = connect(address, 1000.min(count - all.len()), patience)?;
        upgrade(request, &mut some)?;
        all.append(&mut some);
    }
    Ok(all)
}

/// Makes WebSocket connections of them.
///
/// # Errors
/// The first connection's that fails or is refused.
fn upgrade(request: &[u8], streams: &mut [TcpStream]) -> io::Result<()> {
    for stream in &mut *streams {
        stream.write_all(request)?;
    }
    for stream in streams {
        let response = response_head(stream)?;
        if !response.starts_with(wire::UPGRADED) {
            return Err(io::Error::other("the server refused the upgrade"));
        }
    }
    Ok(())
}

/// The head of the next response.
///
/// # Errors
/// The connection's, or one without end.
pub fn response_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    // A byte at a time, since nothing behind the response may be swallowed.
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") && response.len() < MAX_RESPONSE_BYTES {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        response.extend(byte);
    }
    Ok(response)
}

/// Subscribes each to the key that `key_of` gives for its index. Protocol v1 acknowledges nothing, but a pong comes after
/// what was sent before its ping is done.
///
/// # Errors
/// The first connection's that fails, or on which something else than the pong comes.
pub fn subscribe(streams: &mut [TcpStream], key_of: impl Fn(usize) -> (String, String)) -> io::Result<()> {
    for (index, stream) in streams.iter_mut().enumerate() {
        let (entity, id) = key_of(index);
        stream.write_all(&[&wire::subscribe(&entity, &id), wire::PING].concat())?;
    }
    for stream in streams {
        let mut pong = [0; wire::PONG.len()];
        stream.read_exact(&mut pong)?;
        if pong != wire::PONG {
            return Err(io::Error::other("something else than a pong"));
        }
    }
    Ok(())
}
