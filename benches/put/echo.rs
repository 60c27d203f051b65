//! What the kernel takes to carry the requests and answers, without anyone who reads or keeps them.

use std::error::Error;
use std::io::{ErrorKind, Read, Write};

use mio::{Events, Poll};

use crate::clients::Clients;
use crate::transport::Transport;
use crate::{Arguments, Spent};

/// As the API answers, without the date.
const ANSWER: &[u8] = b"HTTP/1.1 204 No Content\r\ndate: Wed, 25 Nov 2026 17:00:00 GMT\r\n\r\n";

/// Whatever a client sends is answered at once.
pub(crate) fn echo<T: Transport>(arguments: &Arguments) -> Result<Spent, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let (address, listener) = T::listen_plainly(folder.path())?;
    let clients = arguments.clients;
    let mut left = clients * arguments.writes;
    let server = std::thread::spawn(move || -> std::io::Result<Vec<T::Stream>> {
        let mut poll = Poll::new()?;
        let mut streams = Vec::new();
        for client in 0..clients {
            let mut stream = T::accept(&listener)?;
            T::register(&poll, &mut stream, client)?;
            streams.push(stream);
        }
        let mut events = Events::with_capacity(clients);
        let mut buffer = [0; 1024];
        while left > 0 {
            poll.poll(&mut events, None)?;
            for event in &events {
                let stream = &mut streams[event.token().0];
                match stream.read(&mut buffer) {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    // One answer is in flight, so there is room.
                    Ok(_) => {
                        stream.write_all(ANSWER)?;
                        left -= 1;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
        // Not closed before the last answer was received.
        Ok(streams)
    });
    let mut clients = Clients::<T>::connect(&address, arguments)?;
    let spent = Spent::by(|| clients.run())?;
    server.join().map_err(|_| "the echo panicked")??;
    Ok(spent)
}
