//! Listening sockets: one for each reactor on the same address, among which the kernel spreads connections.

use std::io;
use std::net::SocketAddr;

use mio::net::TcpListener;
use socket2::{Domain, Protocol, Socket, Type};

const BACKLOG: i32 = 4096;

/// Opens `count` listeners on `address`, and says where they listen.
pub(crate) fn listen(address: SocketAddr, count: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    // Alone first: a shared port would let a second server of the same user in, and each would get half of the clients.
    let alone = bind(address, false)?;
    let bound = alone
        .local_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::other("not an internet address"))?;
    let sockets = if count == 1 {
        vec![alone]
    } else {
        drop(alone);
        (0..count).map(|_| bind(bound, true)).collect::<io::Result<_>>()?
    };
    let listeners = sockets
        .into_iter()
        .map(|socket| {
            socket.listen(BACKLOG)?;
            Ok(TcpListener::from_std(socket.into()))
        })
        .collect::<io::Result<_>>()?;
    Ok((bound, listeners))
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
