//! [`Nsqd`]: a small nsqd in a thread of the test, which speaks what was recorded of nsqd 1.3.0 with the Go original.
//!
//! It shares no code with the client that it tests. Topics keep their messages until they have a channel, every channel
//! of a topic is given every message, in order, and an ephemeral one drops what exceeds `--mem-queue-size` and ends with its
//! last client, as with the real one. So does the output buffer: messages to a client that is ready for more are held
//! back in it, until it is full or its time is over. Besides it can be told to misbehave.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What `IDENTIFY` is answered with, 304 bytes as recorded.
pub const FEATURES: &str = r#"{"max_rdy_count":2500,"version":"1.3.0","max_msg_timeout":900000,"msg_timeout":60000,"tls_v1":false,"deflate":false,"deflate_level":6,"max_deflate_level":6,"snappy":false,"sample_rate":0,"auth_required":false,"output_buffer_size":16384,"output_buffer_timeout":250,"topology_region":"","topology_zone":""}"#;

const TICK: Duration = Duration::from_millis(2);

/// An nsqd on a port of its own. Dropping it kills it.
pub struct Nsqd {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

/// What an nsqd does otherwise than it should.
#[derive(Clone, Debug, Default)]
pub struct Misdeeds {
    /// Accepts nothing, reads nothing and says nothing, as when stopped by a signal.
    pub is_stuck: bool,
    /// Commands that are read and not answered.
    pub ignored: Vec<&'static str>,
    /// Commands that fail with this error, after which the connection is closed.
    pub refused: Vec<(&'static str, &'static str)>,
    /// The same, but only the first time.
    pub refused_once: Vec<(&'static str, &'static str)>,
    /// What comes instead of the answer to these commands.
    pub answered: Vec<(&'static str, Vec<u8>)>,
    /// Bytes leave one by one.
    pub is_split: bool,
}

/// What the real one has by default.
const MEM_QUEUE_SIZE: usize = 10_000;
const OUTPUT_BUFFER_SIZE: usize = 16 * 1024;
const OUTPUT_BUFFER_TIMEOUT: Duration = Duration::from_millis(250);

#[derive(Default)]
struct State {
    is_running: bool,
    mem_queue_size: Option<usize>,
    /// Messages that channels had no room for.
    dropped: u64,
    misdeeds: Misdeeds,
    heartbeat: Option<Duration>,
    topics: HashMap<String, Topic>,
    clients: Vec<Client>,
    messages: u64,
}

#[derive(Default)]
struct Topic {
    /// What was published before there was a channel.
    waiting: VecDeque<Message>,
    channels: HashMap<String, VecDeque<Message>>,
}

#[derive(Clone)]
struct Message {
    id: String,
    body: Vec<u8>,
}

struct Client {
    stream: TcpStream,
    is_open: bool,
    /// All bytes it has sent.
    received: Vec<u8>,
    subscription: Option<(String, String)>,
    ready: usize,
    in_flight: Vec<String>,
    is_closing: bool,
    /// What was not sent yet, how much may be there, and until when it may.
    buffered: Vec<u8>,
    buffer_size: usize,
    buffer_timeout: Duration,
    flush_at: Option<Instant>,
}

impl Nsqd {
    /// One on a free port of loopback.
    pub fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// One on this port.
    pub fn start_at(address: SocketAddr) -> Self {
        let mut nsqd = Self {
            address,
            state: Arc::default(),
            thread: None,
        };
        nsqd.restart();
        nsqd
    }

    /// An address where nothing listens, for an nsqd that comes later.
    pub fn free_address() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections and listens no more. What topics hold without a channel stays, channels don't.
    pub fn kill(&mut self) {
        {
            let mut state = self.lock();
            state.is_running = false;
            for client in &state.clients {
                let _ = client.stream.shutdown(Shutdown::Both);
            }
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// Comes back on the same port.
    pub fn restart(&mut self) {
        self.kill();
        let listener = TcpListener::bind(self.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.address = listener.local_addr().unwrap();
        self.lock().is_running = true;
        let state = self.state.clone();
        self.thread = Some(std::thread::spawn(move || accept(&state, &listener)));
    }

    /// Ends all connections, and goes on listening.
    pub fn cut(&self) {
        for client in &self.lock().clients {
            let _ = client.stream.shutdown(Shutdown::Both);
        }
    }

    /// Publishes as someone else would.
    pub fn publish(&self, topic: &str, body: impl Into<Vec<u8>>) {
        self.lock().publish(topic, body.into());
    }

    /// Sends these bytes on every connection.
    pub fn inject(&self, bytes: &[u8]) {
        for client in self.lock().clients.iter_mut().filter(|it| it.is_open) {
            client.send(bytes, false);
        }
    }

    /// Misbehaves from now on.
    pub fn misbehave(&self, change: impl FnOnce(&mut Misdeeds)) {
        change(&mut self.lock().misdeeds);
    }

    /// Behaves from now on.
    pub fn behave(&self) {
        self.misbehave(|it| *it = Misdeeds::default());
    }

    /// How often to send heartbeats, instead of as often as clients want them.
    pub fn set_heartbeat(&self, interval: Duration) {
        self.lock().heartbeat = Some(interval);
    }

    /// How many messages a channel holds, instead of 10,000.
    pub fn set_mem_queue_size(&self, messages: usize) {
        self.lock().mem_queue_size = Some(messages);
    }

    /// Messages that channels had no room for. Nobody is told of them.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// The channels that a topic has.
    pub fn channels(&self, topic: &str) -> Vec<String> {
        let state = self.lock();
        let topic = state.topics.get(topic);
        topic.into_iter().flat_map(|it| it.channels.keys().cloned()).collect()
    }

    /// How many connections there were so far.
    pub fn connections(&self) -> usize {
        self.lock().clients.len()
    }

    /// How many are open.
    pub fn open_connections(&self) -> usize {
        self.lock().clients.iter().filter(|it| it.is_open).count()
    }

    /// All that a connection has sent, by when it was made.
    pub fn transcript(&self, connection: usize) -> Vec<u8> {
        self.lock()
            .clients
            .get(connection)
            .map(|it| it.received.clone())
            .unwrap_or_default()
    }

    /// How often any connection has sent this.
    pub fn count(&self, needle: &[u8]) -> usize {
        let state = self.lock();
        let windows = |it: &Client| it.received.windows(needle.len()).filter(|it| *it == needle).count();
        state.clients.iter().map(windows).sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Nsqd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A frame as nsqd sends it.
pub fn frame(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut frame = (data.len() as u32 + 4).to_be_bytes().to_vec();
    frame.extend(kind.to_be_bytes());
    frame.extend(data);
    frame
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(state: &Arc<Mutex<State>>, listener: &TcpListener) {
    let mut threads = Vec::new();
    loop {
        let (is_running, is_stuck) = {
            let state = lock(state);
            (state.is_running, state.misdeeds.is_stuck)
        };
        if !is_running {
            break;
        }
        match listener.accept() {
            Ok((stream, _)) if !is_stuck => {
                let state = state.clone();
                threads.push(std::thread::spawn(move || serve(&state, stream)));
            }
            // It was accepted a moment too late to be left waiting, and is not served before things get better.
            Ok((stream, _)) => {
                let state = state.clone();
                threads.push(std::thread::spawn(move || {
                    while lock(&state).misdeeds.is_stuck && lock(&state).is_running {
                        std::thread::sleep(TICK);
                    }
                    serve(&state, stream);
                }));
            }
            Err(_) => std::thread::sleep(TICK),
        }
    }
    threads.into_iter().for_each(|it| it.join().unwrap());
}

/// One connection.
fn serve(state: &Mutex<State>, mut stream: TcpStream) {
    stream.set_nonblocking(false).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(TICK)).unwrap();
    let number = {
        let mut state = lock(state);
        if !state.is_running {
            return;
        }
        // A peer that doesn't read must not keep the test from ending.
        let of_writers = stream.try_clone().unwrap();
        of_writers.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        state.clients.push(Client {
            stream: of_writers,
            is_open: true,
            received: Vec::new(),
            subscription: None,
            ready: 0,
            in_flight: Vec::new(),
            is_closing: false,
            buffered: Vec::new(),
            buffer_size: OUTPUT_BUFFER_SIZE,
            buffer_timeout: OUTPUT_BUFFER_TIMEOUT,
            flush_at: None,
        });
        state.clients.len() - 1
    };
    let mut used = 0;
    let mut heartbeat = Duration::from_secs(30);
    let mut heartbeat_at = Instant::now();
    let mut buffer = [0; 64 * 1024];
    loop {
        {
            let mut state = lock(state);
            if !state.is_running {
                break;
            }
            if state.misdeeds.is_stuck {
                drop(state);
                std::thread::sleep(TICK);
                continue;
            }
            if state.clients[number].flush_at.is_some_and(|at| at <= Instant::now()) {
                let is_split = state.misdeeds.is_split;
                state.clients[number].flush(is_split);
            }
            let interval = state.heartbeat.unwrap_or(heartbeat);
            if heartbeat_at.elapsed() >= interval {
                heartbeat_at = Instant::now();
                state.send(number, &frame(0, b"_heartbeat_"));
            }
        }
        let received = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => &buffer[..bytes],
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        let mut state = lock(state);
        state.clients[number].received.extend_from_slice(received);
        let mut is_over = false;
        while let Some((bytes, command)) = next_command(&state.clients[number].received[used..]) {
            used += bytes;
            if let Command::Identify(json) = &command {
                heartbeat = Duration::from_millis(number_in(json, "heartbeat_interval").unsigned_abs());
                state.clients[number].set_buffer(json);
            }
            if !state.execute(number, command) {
                is_over = true;
                break;
            }
        }
        if is_over {
            break;
        }
    }
    lock(state).leave(number);
    let _ = stream.shutdown(Shutdown::Both);
}

enum Command {
    Magic(Vec<u8>),
    Identify(String),
    Publish(String, Vec<u8>),
    Line(Vec<String>),
}

impl Command {
    fn name(&self) -> &str {
        match self {
            Self::Magic(_) => "MAGIC",
            Self::Identify(_) => "IDENTIFY",
            Self::Publish(..) => "PUB",
            Self::Line(words) => words.first().map_or("", |it| it),
        }
    }
}

/// The next command of what was received, and how many bytes it takes.
fn next_command(received: &[u8]) -> Option<(usize, Command)> {
    if received.starts_with(b"  ") {
        let magic = received.get(..4)?;
        return Some((4, Command::Magic(magic.to_vec())));
    }
    let end = received.iter().position(|it| *it == b'\n')?;
    let line = String::from_utf8_lossy(&received[..end]).into_owned();
    let words: Vec<String> = line.split(' ').map(Into::into).collect();
    let rest = &received[end + 1..];
    if !matches!(words[0].as_str(), "IDENTIFY" | "PUB") {
        return Some((end + 1, Command::Line(words)));
    }
    let length = u32::from_be_bytes(*rest.first_chunk()?) as usize;
    let body = rest.get(4..4 + length)?;
    let command = match words.get(1) {
        Some(topic) => Command::Publish(topic.clone(), body.to_vec()),
        None => Command::Identify(String::from_utf8_lossy(body).into_owned()),
    };
    Some((end + 1 + 4 + length, command))
}

fn number_in(json: &str, field: &str) -> i64 {
    let (_, rest) = json.split_once(&format!("\"{field}\":")).unwrap();
    rest.split([',', '}']).next().unwrap().parse().unwrap()
}

impl State {
    /// Whether the connection stays.
    fn execute(&mut self, number: usize, command: Command) -> bool {
        let name = command.name().to_owned();
        let Misdeeds {
            refused, refused_once, ..
        } = &mut self.misdeeds;
        let once = refused_once
            .iter()
            .position(|it| it.0 == name)
            .map(|it| refused_once.remove(it));
        if let Some((_, error)) = once.or_else(|| refused.iter().find(|it| it.0 == name).copied()) {
            let error = frame(1, error.as_bytes());
            self.send(number, &error);
            return false;
        }
        if let Some((_, answer)) = self.misdeeds.answered.iter().find(|it| it.0 == name) {
            let answer = answer.clone();
            self.send(number, &answer);
            return true;
        }
        if self.misdeeds.ignored.iter().any(|it| *it == name) {
            return true;
        }
        let words = match command {
            Command::Magic(magic) => return magic == b"  V2",
            Command::Identify(_) => {
                self.send(number, &frame(0, FEATURES.as_bytes()));
                return true;
            }
            Command::Publish(topic, body) => {
                self.publish(&topic, body);
                self.send(number, &frame(0, b"OK"));
                return true;
            }
            Command::Line(words) => words,
        };
        let client = &mut self.clients[number];
        match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["NOP"] => {}
            ["SUB", topic, channel] if client.subscription.is_none() => {
                client.subscription = Some((topic.into(), channel.into()));
                let topic = self.topics.entry(topic.into()).or_default();
                let waiting = std::mem::take(&mut topic.waiting);
                topic.channels.entry(channel.into()).or_default().extend(waiting);
                self.send(number, &frame(0, b"OK"));
            }
            ["RDY", count] if client.subscription.is_some() => client.ready = count.parse().unwrap(),
            ["FIN", id] if client.subscription.is_some() => {
                let before = client.in_flight.len();
                client.in_flight.retain(|it| it != id);
                if client.in_flight.len() == before {
                    let error = format!("E_FIN_FAILED FIN {id} failed ID not in flight");
                    self.send(number, &frame(1, error.as_bytes()));
                }
            }
            ["CLS"] if client.subscription.is_some() => {
                client.is_closing = true;
                self.send(number, &frame(0, b"CLOSE_WAIT"));
            }
            _ => {
                let error = format!("E_INVALID invalid command {words:?}");
                self.send(number, &frame(1, error.as_bytes()));
                return false;
            }
        }
        self.deliver();
        true
    }

    fn publish(&mut self, topic: &str, body: Vec<u8>) {
        self.messages += 1;
        let id = format!("{:016x}", 0x18a5_dc70_ee66_9000_u64 + self.messages);
        let message = Message { id, body };
        let topic = self.topics.entry(topic.into()).or_default();
        if topic.channels.is_empty() {
            topic.waiting.push_back(message);
        } else {
            let room = self.mem_queue_size.unwrap_or(MEM_QUEUE_SIZE);
            for (name, channel) in &mut topic.channels {
                // Others than ephemeral ones have a disk.
                match name.ends_with("#ephemeral") && channel.len() >= room {
                    true => self.dropped += 1,
                    false => channel.push_back(message.clone()),
                }
            }
        }
        self.deliver();
    }

    /// Gives clients what they are ready for.
    fn deliver(&mut self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        for client in self.clients.iter_mut().filter(|it| it.is_open && !it.is_closing) {
            let Some((topic, channel)) = &client.subscription else {
                continue;
            };
            let Some(queue) = self.topics.get_mut(topic).and_then(|it| it.channels.get_mut(channel)) else {
                continue;
            };
            while client.in_flight.len() < client.ready {
                let Some(message) = queue.pop_front() else {
                    break;
                };
                let mut data = now.to_be_bytes().to_vec();
                data.extend(1_u16.to_be_bytes());
                data.extend(message.id.as_bytes());
                data.extend(&message.body);
                client.in_flight.push(message.id);
                client.buffer(&frame(2, &data), self.misdeeds.is_split);
            }
            if client.in_flight.len() >= client.ready {
                client.flush(self.misdeeds.is_split);
            }
        }
    }

    fn send(&mut self, number: usize, bytes: &[u8]) {
        let is_split = self.misdeeds.is_split;
        self.clients[number].send(bytes, is_split);
    }

    fn leave(&mut self, number: usize) {
        self.clients[number].is_open = false;
        let Some((topic, channel)) = self.clients[number].subscription.clone() else {
            return;
        };
        let is_last = !self
            .clients
            .iter()
            .any(|it| it.is_open && it.subscription.as_ref() == Some(&(topic.clone(), channel.clone())));
        if is_last && channel.ends_with("#ephemeral") {
            self.topics.entry(topic).or_default().channels.remove(&channel);
        }
    }
}

impl Client {
    /// As `IDENTIFY` asks for: `-1` is none, `0` the default.
    fn set_buffer(&mut self, json: &str) {
        match number_in(json, "output_buffer_timeout") {
            -1 => self.buffer_timeout = Duration::MAX,
            0 => {}
            ms => self.buffer_timeout = Duration::from_millis(ms.unsigned_abs()),
        }
        match number_in(json, "output_buffer_size") {
            -1 => self.buffer_size = 0,
            0 => {}
            bytes => self.buffer_size = bytes.unsigned_abs() as usize,
        }
    }

    /// A message is sent as soon as the buffer is full, its time is over, or the client takes no more.
    fn buffer(&mut self, bytes: &[u8], is_split: bool) {
        self.buffered.extend(bytes);
        self.flush_at = self
            .flush_at
            .or_else(|| Instant::now().checked_add(self.buffer_timeout));
        if self.buffered.len() > self.buffer_size {
            self.flush(is_split);
        }
    }

    fn flush(&mut self, is_split: bool) {
        self.flush_at = None;
        let buffered = std::mem::take(&mut self.buffered);
        self.write(&buffered, is_split);
    }

    /// Anything but a message goes out at once, behind what is buffered.
    fn send(&mut self, bytes: &[u8], is_split: bool) {
        self.flush(is_split);
        self.write(bytes, is_split);
    }

    fn write(&mut self, bytes: &[u8], is_split: bool) {
        // Whoever is gone is noticed where it is read from.
        for part in bytes.chunks(if is_split { 1 } else { bytes.len().max(1) }) {
            let _ = self.stream.write_all(part);
            if is_split {
                std::thread::yield_now();
            }
        }
    }
}
