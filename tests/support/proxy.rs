//! [`Proxy`]: a TCP connection that can be cut in the middle.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::program::own_address;

/// How often it looks whether anything is to be done otherwise.
const TICK: Duration = Duration::from_millis(50);

/// What becomes of the connections through a [`Proxy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// Bytes pass.
    Open,
    /// Connections stay, and nothing passes: what is sent waits, or never comes.
    Stalled,
    /// Connections are closed, and new ones too, as soon as they are made.
    Closed,
}

/// Forwards connections to an address.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    target: SocketAddr,
    way: AtomicU8,
    is_over: AtomicBool,
}

impl Proxy {
    /// One that forwards, at an address of its own.
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((own_address(), 7000)).unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let state = Arc::new(State {
            target,
            way: AtomicU8::new(Way::Open as u8),
            is_over: AtomicBool::new(false),
        });
        let of_thread = state.clone();
        let thread = std::thread::spawn(move || of_thread.accept(&listener));
        Self {
            address,
            state,
            thread: Some(thread),
        }
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on.
    pub fn set(&self, way: Way) {
        self.state.way.store(way as u8, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        let mut pumps: Vec<JoinHandle<()>> = Vec::new();
        while !self.is_over.load(Ordering::Relaxed) {
            pumps.retain(|it| !it.is_finished());
            match listener.accept() {
                Ok((stream, _)) if !self.is(Way::Closed) => {
                    // Whoever can't be reached is as good as one that hangs up.
                    if let Ok(other) = TcpStream::connect_timeout(&self.target, TICK) {
                        pumps.extend(self.pumps(&stream, &other));
                    }
                }
                Ok(_) => {}
                Err(_) => std::thread::sleep(TICK / 5),
            }
        }
        for pump in pumps {
            let _ = pump.join();
        }
    }

    fn pumps(self: &Arc<Self>, one: &TcpStream, other: &TcpStream) -> [JoinHandle<()>; 2] {
        [(one, other), (other, one)].map(|(from, to)| {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let state = self.clone();
            std::thread::spawn(move || state.pump(from, to))
        })
    }

    /// Moves bytes until one side ends, or is to end.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        for stream in [&from, &to] {
            // A connection that ends here ends below.
            let _ = stream.set_nonblocking(false);
            let _ = stream.set_nodelay(true);
            let _ = stream.set_read_timeout(Some(TICK));
            let _ = stream.set_write_timeout(Some(TICK));
        }
        let mut buffer = vec![0; 16 * 1024];
        let mut waiting = 0..0;
        while !self.is_over.load(Ordering::Relaxed) && !self.is(Way::Closed) {
            if self.is(Way::Stalled) {
                std::thread::sleep(TICK);
                continue;
            }
            let moved = if waiting.is_empty() {
                from.read(&mut buffer).inspect(|&bytes| waiting = 0..bytes)
            } else {
                let written = to.write(&buffer[waiting.clone()]);
                written.inspect(|&bytes| waiting.start += bytes)
            };
            match moved {
                Ok(0) => break,
                Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                _ => {}
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn is(&self, way: Way) -> bool {
        self.way.load(Ordering::Relaxed) == way as u8
    }
}
