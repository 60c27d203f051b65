//! Listening sockets: one for each reactor on the same address, among which the kernel spreads connections.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use mio::net::TcpListener;
use socket2::{Domain, Protocol, Socket, Type};

const BACKLOG: i32 = 4096;

/// Two of `addresses` of which the first is the second or includes it.
pub(crate) fn overlap(addresses: &[SocketAddr]) -> Option<(SocketAddr, SocketAddr)> {
    let pairs = addresses.iter().enumerate().flat_map(|(at, &first)| {
        let others = addresses.iter().enumerate();
        others.filter_map(move |(other_at, &second)| (at != other_at).then_some((first, second)))
    });
    // Port 0 is another one each time.
    let mut pairs = pairs.filter(|(first, second)| first.port() == second.port() && first.port() != 0);
    pairs.find(|(first, second)| {
        let (a, b) = (first.ip().to_canonical(), second.ip().to_canonical());
        // All of IPv6 leaves IPv4 to whom it was given.
        a == b || (a.is_unspecified() && a.is_ipv4() == b.is_ipv4())
    })
}

/// Whether `address` is all of IPv6 and `addresses` have one of IPv4 at its port: Linux would take both for the same.
pub(crate) fn is_only_v6(address: SocketAddr, addresses: &[SocketAddr]) -> bool {
    let mut others = addresses.iter();
    address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        && others.any(|other| other.port() == address.port() && other.ip().to_canonical().is_ipv4())
}

/// Opens `count` listeners on `address`, and says where they listen. With `only_v6`, it has no callers of IPv4.
pub(crate) fn listen(address: SocketAddr, only_v6: bool, count: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    // Alone first: a shared port would let a second server of the same user in, and each would get half of the clients.
    let alone = bind(address, only_v6, false)?;
    let bound = alone
        .local_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::other("not an internet address"))?;
    let sockets = if count == 1 {
        vec![alone]
    } else {
        drop(alone);
        (0..count)
            .map(|_| bind(bound, only_v6, true))
            .collect::<io::Result<_>>()?
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

fn bind(address: SocketAddr, only_v6: bool, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if only_v6 {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(given: &[&str]) -> Vec<SocketAddr> {
        given.iter().map(|it| it.parse().expect("an address")).collect()
    }

    #[test]
    fn an_address_that_is_given_twice_is_found() {
        for (given, found) in [
            (
                &["127.0.0.1:1", "127.0.0.1:1"][..],
                Some(("127.0.0.1:1", "127.0.0.1:1")),
            ),
            (&["127.0.0.1:1", "0.0.0.0:1"], Some(("0.0.0.0:1", "127.0.0.1:1"))),
            (&["[::1]:1", "127.0.0.1:2", "[::]:1"], Some(("[::]:1", "[::1]:1"))),
            (
                &["[::ffff:127.0.0.1]:1", "127.0.0.1:1"],
                Some(("[::ffff:127.0.0.1]:1", "127.0.0.1:1")),
            ),
            (&["0.0.0.0:1", "[::]:1"], None),
            (&["127.0.0.1:0", "127.0.0.1:0"], None),
            (&["127.0.0.1:1", "127.0.0.1:2", "127.0.0.2:1", "[::1]:1"], None),
            (&[], None),
        ] {
            let found = found.map(|(a, b)| (addresses(&[a])[0], addresses(&[b])[0]));
            assert_eq!(overlap(&addresses(given)), found, "{given:?}");
        }
    }

    #[test]
    fn all_of_ipv6_leaves_ipv4_to_others_only_if_there_are_some() {
        for (address, all, expected) in [
            ("[::]:1", &["[::]:1", "0.0.0.0:1"][..], true),
            ("[::]:1", &["127.0.0.1:1", "[::]:1"], true),
            ("[::]:1", &["[::]:1", "0.0.0.0:2"], false),
            ("[::]:1", &["[::]:1"], false),
            ("[::1]:1", &["[::1]:1", "0.0.0.0:1"], false),
            ("0.0.0.0:1", &["[::]:1", "0.0.0.0:1"], false),
        ] {
            assert_eq!(
                is_only_v6(addresses(&[address])[0], &addresses(all)),
                expected,
                "{address} of {all:?}"
            );
        }
    }
}
