//! From a notify to the push that a client of the other node receives, beside a message between bare sockets that is
//! written on to a client.

use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use entity_sync::{Entity, EntitySync, Reply, Request, Rows};
use entity_sync_benches::machine::now_ns;
use entity_sync_benches::wire::{self, Frame};
use entity_sync_bus::{Health, Join};
use entity_sync_zmq::zmq as bus_over_zmq;

use crate::bare::Pair;
use crate::latency::{Sent, notify, publish, since_sent};
use crate::nodes::{Clock, PATIENCE, config, keys, node, rules};

/// After so long without a push, all repairs are over.
const QUIET: Duration = Duration::from_millis(500);

/// Bytes of a row.
const ROW_BYTES: usize = 64;

/// A node with a bus on its own thread is notified; another one, which is a whole server, reads and pushes; a client of that
/// receives. The latencies in order of size, in nanoseconds.
pub(crate) fn ours(count: usize, pace: Duration) -> Result<Vec<u64>, Box<dyn Error>> {
    let (node, clock) = (node(), Clock::start());
    let bus = bus_over_zmq(config(None, 100_000)?, rules());
    let view = bus.view().clone();
    let mut member = Box::new(bus).join(node.clone(), Arc::new(move || clock.now()), Health::default())?;
    let address = view.addresses().first().cloned().ok_or("no address")?;
    // Everything is read once when the nodes meet, which is not what is measured.
    let mut hasty = rules();
    hasty.repair_rate = 1_000_000;
    let server = EntitySync::builder()
        .listen("127.0.0.1:0")
        .bus(bus_over_zmq(config(Some(&address), 1_000)?, hasty))
        // It answers at once, as memory does: how long a store takes is not asked here.
        .entity("items", Entity::resolver(row).public())
        .configure(|config| {
            config.core.max_subscriptions = count;
        })
        .start()?;
    let mut client = Client::subscribed(server.addresses()[0], count)?;
    let hears = || server.cluster().is_some_and(|it| it.counters().digests.get() > 0);
    let start = Instant::now();
    while !hears() {
        std::thread::sleep(Duration::from_millis(1));
        if start.elapsed() > PATIENCE {
            return Err("the nodes did not find each other".into());
        }
    }
    client.skip()?;
    let (sent, sender) = notify(node, clock, count, pace)?;
    let latencies = client.receive(&sent)?;
    if !sender.join().map_err(|_| "the sender panicked")? {
        return Err("a key was unknown".into());
    }
    let _ = member.leave(Duration::from_secs(1));
    let _ = server.shutdown(Duration::from_secs(1));
    Ok(latencies)
}

fn row(request: Request, reply: Reply) {
    let number = request.key.id().parse().unwrap_or_default();
    // A reply that can't be sent is counted by the node.
    let _ = reply.rows(Rows::one(wire::row(number, ROW_BYTES)));
}

/// A message between bare sockets, from the thread that sends, and whoever receives it writes a frame to a client.
pub(crate) fn bare(count: usize, pace: Duration) -> Result<Vec<u64>, Box<dyn Error>> {
    let Pair { publisher, subscriber } = Pair::connect(100_000)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = Client::connected(listener.local_addr()?)?;
    let (mut socket, _) = listener.accept()?;
    socket.set_nodelay(true)?;
    let (sent, sender) = publish(publisher, count, pace);
    let (tell_failure, failure) = channel();
    let middle = std::thread::spawn(move || {
        let mut pass_on = || -> Result<(), Box<dyn Error>> {
            subscriber.set_rcvtimeo(PATIENCE.as_millis() as i32)?;
            let mut message = zmq::Message::new();
            for number in 0..count as u64 {
                subscriber.recv(&mut message, 0)?;
                socket.write_all(&wire::frame(&wire::row(number, ROW_BYTES)))?;
            }
            Ok(())
        };
        if let Err(error) = pass_on() {
            let _ = tell_failure.send(error.to_string());
        }
    });
    let latencies = client.receive(&sent);
    middle.join().map_err(|_| "the subscriber panicked")?;
    if let Ok(failure) = failure.try_recv() {
        return Err(failure.into());
    }
    if !sender.join().map_err(|_| "the sender panicked")?.1 {
        return Err("a message was not sent".into());
    }
    latencies
}

/// A client that blocks.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Bytes of the buffer that hold something.
    filled: usize,
}

impl Client {
    fn connected(address: SocketAddr) -> Result<Self, Box<dyn Error>> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            buffer: vec![0; 1 << 16],
            filled: 0,
        })
    }

    /// One that is subscribed to the first so many keys.
    fn subscribed(address: SocketAddr, count: usize) -> Result<Self, Box<dyn Error>> {
        let mut client = Self::connected(address)?;
        client.stream.write_all(wire::UPGRADE)?;
        while !client.buffer[..client.filled].ends_with(b"\r\n\r\n") {
            client.fill()?;
        }
        if !client.buffer.starts_with(wire::UPGRADED) {
            return Err("the server did not upgrade".into());
        }
        client.filled = 0;
        for key in keys(count)? {
            client.stream.write_all(&wire::subscribe(key.entity(), key.id()))?;
        }
        client.stream.write_all(wire::PING)?;
        let mut is_answered = false;
        while !is_answered {
            client.fill()?;
            client.take(|frame| is_answered |= matches!(frame, Frame::Pong(_)));
        }
        Ok(client)
    }

    /// Receives the rows of all that is sent, each once.
    fn receive(&mut self, sent: &Sent) -> Result<Vec<u64>, Box<dyn Error>> {
        let mut latencies = vec![None; sent.len()];
        let mut missing = sent.len();
        while missing > 0 {
            self.fill()?;
            let now = now_ns();
            self.take(|frame| {
                let Frame::Text(row) = frame else { return };
                let index = wire::number_of(row).and_then(|it| usize::try_from(it).ok());
                let Some(index) = index.filter(|it| *it < sent.len()) else {
                    return;
                };
                // It may be pushed again, such as for a repair.
                if latencies[index].is_none() {
                    latencies[index] = Some(since_sent(sent, index, now));
                    missing -= 1;
                }
            });
        }
        let mut latencies: Vec<_> = latencies.into_iter().flatten().collect();
        latencies.sort_unstable();
        Ok(latencies)
    }

    /// Receives whatever comes until nothing does for a while.
    fn skip(&mut self) -> Result<(), Box<dyn Error>> {
        self.stream.set_read_timeout(Some(QUIET))?;
        loop {
            match self.stream.read(&mut self.buffer[self.filled..]) {
                Ok(0) => return Err("the server hung up".into()),
                Ok(read) => {
                    self.filled += read;
                    self.take(|_| {});
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.stream.set_read_timeout(Some(PATIENCE))?;
        Ok(())
    }

    fn fill(&mut self) -> Result<(), Box<dyn Error>> {
        match self.stream.read(&mut self.buffer[self.filled..])? {
            0 => Err("the server hung up".into()),
            read => {
                self.filled += read;
                Ok(())
            }
        }
    }

    /// Takes all frames that are whole.
    fn take(&mut self, mut each: impl FnMut(Frame<'_>)) {
        let mut rest = &self.buffer[..self.filled];
        while let Some(frame) = wire::take_frame(&mut rest) {
            each(frame);
        }
        let taken = self.filled - rest.len();
        self.buffer.copy_within(taken..self.filled, 0);
        self.filled -= taken;
    }
}
