//! What the tests share: a WebSocket client that waits no longer than it should, and the messages of protocol v1.
#![allow(clippy::unwrap_used, missing_docs, reason = "a failure here is a failed test")]

pub mod crowd;
pub mod data;
pub mod load;
pub mod nats;
pub mod node;
pub mod nsqd;
pub mod pgbouncer;
pub mod postgres;
pub mod program;
pub mod proxy;
pub mod sabotage;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tungstenite::{Bytes, Message, WebSocket};

/// How long anything may take before a test gives up. Nothing is asserted about time but this.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A WebSocket client: tungstenite, which shares no code with the server.
pub struct Client {
    socket: WebSocket<TcpStream>,
    /// Rows that came before they were asked for.
    kept: VecDeque<String>,
}

impl Client {
    pub fn connect(server: SocketAddr) -> Self {
        Self::connect_to(server, "/ws/entity-sync/")
    }

    pub fn connect_to(server: SocketAddr, path: &str) -> Self {
        let stream = TcpStream::connect(server).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (socket, _) = tungstenite::client(format!("ws://{server}{path}"), stream).unwrap();
        Self {
            socket,
            kept: VecDeque::new(),
        }
    }

    pub fn send(&mut self, text: &str) {
        self.socket.send(Message::text(text)).unwrap();
    }

    pub fn subscribe(&mut self, entity: &str, id: &str) {
        self.send(&format!(
            r#"{{"action":"subscribe","body":{{"entity":"{entity}","id":"{id}"}}}}"#
        ));
    }

    pub fn unsubscribe(&mut self, entity: &str, id: &str) {
        self.send(&format!(
            r#"{{"action":"unsubscribe","body":{{"entity":"{entity}","id":"{id}"}}}}"#
        ));
    }

    pub fn secret(&mut self, secret: &str) {
        self.send(&format!(r#"{{"action":"secret","body":"{secret}"}}"#));
    }

    /// Waits until the server has acted on all that was sent: protocol v1 acknowledges nothing, but a pong does. Rows
    /// that come meanwhile are given back.
    ///
    /// Twice, since a pong may overtake rows that are on their way already; the turn which sends the first one sends
    /// those too, before it reads the second ping.
    pub fn sync(&mut self) -> Vec<String> {
        let mut rows = self.ping(b"first");
        rows.extend(self.ping(b"second"));
        rows
    }

    /// As [`Self::sync`]; the rows are those that [`Self::row`] gives next.
    pub fn sync_and_keep(&mut self) {
        let rows = self.sync();
        self.kept.extend(rows);
    }

    fn ping(&mut self, payload: &'static [u8]) -> Vec<String> {
        self.socket.send(Message::Ping(Bytes::from_static(payload))).unwrap();
        let mut rows = Vec::new();
        loop {
            match self.socket.read().unwrap() {
                Message::Pong(pong) if pong == payload => return rows,
                Message::Text(row) => rows.push(row.to_string()),
                Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next row.
    pub fn row(&mut self) -> String {
        if let Some(row) = self.kept.pop_front() {
            return row;
        }
        let start = Instant::now();
        loop {
            match self.socket.read().unwrap() {
                Message::Text(row) => return row.to_string(),
                // The server's pings keep the socket from timing out.
                Message::Ping(_) | Message::Pong(_) => assert!(start.elapsed() < PATIENCE, "waited too long for a row"),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads rows until one is `last`, and says how many came.
    pub fn rows_until(&mut self, last: &str) -> usize {
        let mut count = 1;
        while self.row() != last {
            count += 1;
        }
        count
    }

    /// The close code of the server, once everything before it is read.
    pub fn close_code(&mut self) -> Option<u16> {
        self.close_frame().map(|(code, _)| code)
    }

    /// The code and reason of the server's close frame, once everything before it is read.
    pub fn close_frame(&mut self) -> Option<(u16, String)> {
        loop {
            match self.socket.read() {
                Ok(Message::Close(frame)) => return frame.map(|frame| (frame.code.into(), frame.reason.to_string())),
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The socket beneath, for what a good client doesn't do.
    pub fn stream(&mut self) -> &mut TcpStream {
        self.socket.get_mut()
    }
}

/// Sends bytes as they are, and gives what comes back until the server closes or `until` is in it.
pub fn talk(stream: &mut TcpStream, until: &[u8]) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    while !until.is_empty() && !received.windows(until.len()).any(|it| it == until) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => received.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error} after {received:?}"),
        }
    }
    received
}

/// Waits until something is so.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
