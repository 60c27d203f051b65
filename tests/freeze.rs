//! A process that stands still for a while, and the clients that it finds when it goes on.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::binary::Process;

const PING: [u8; 2] = [0x89, 0];
const PONG: [u8; 6] = [0x8a, 0x80, 0, 0, 0, 0];

/// Clients that say nothing of their own accord.
struct Quiet {
    streams: Vec<TcpStream>,
    /// Pings that they have answered.
    answered: usize,
}

impl Quiet {
    fn connect(process: &Process, count: usize) -> Self {
        let streams = (0..count).map(|_| {
            let mut stream = TcpStream::connect(process.clients).unwrap();
            stream
                .write_all(
                    b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                )
                .unwrap();
            let mut response = Vec::new();
            while !response.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                response.push(byte[0]);
            }
            stream.set_nonblocking(true).unwrap();
            stream
        });
        Self {
            streams: streams.collect(),
            answered: 0,
        }
    }

    /// Answers the pings that have come. Says how many clients were dropped.
    fn answer(&mut self) -> usize {
        let mut dropped = 0;
        for stream in &mut self.streams {
            let mut received = [0; 256];
            match stream.read(&mut received) {
                Ok(0) => dropped += 1,
                Ok(bytes) => {
                    for ping in received[..bytes].chunks(2) {
                        assert_eq!(ping, PING);
                        self.answered += 1;
                        dropped += usize::from(stream.write_all(&PONG).is_err());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => dropped += 1,
            }
        }
        dropped
    }

    fn answer_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            assert_eq!(self.answer(), 0, "dropped");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn frozen(clients: usize, pongs_wait: bool) {
    let flags = ["--ping-interval", "1", "--dead-after", "3", "--reactors", "1"];
    let process = Process::start_with(":memory:", &flags);
    let mut quiet = Quiet::connect(&process, clients);
    quiet.answer_for(Duration::from_millis(1_500));
    assert!(quiet.answered >= clients, "{} pings of {clients}", quiet.answered);
    if pongs_wait {
        // Each has a ping that it answers while the process stands still.
        std::thread::sleep(Duration::from_millis(1_200));
    }
    process.signal("-STOP");
    let before = quiet.answered;
    assert_eq!(quiet.answer(), 0);
    assert!(!pongs_wait || quiet.answered - before >= clients);
    std::thread::sleep(Duration::from_secs(4));
    process.signal("-CONT");
    quiet.answer_for(Duration::from_secs(4));
    assert!(quiet.answered - before >= 2 * clients, "it goes on to ask");
}

#[test]
fn a_process_that_was_frozen_drops_nobody() {
    frozen(50, false);
}

#[test]
fn pongs_that_wait_in_their_sockets_are_read_before_anyone_is_judged() {
    frozen(1_500, true);
}

#[test]
fn who_does_not_answer_is_dropped_all_the_same() {
    let flags = ["--ping-interval", "1", "--dead-after", "3"];
    let process = Process::start_with(":memory:", &flags);
    let mut deaf = Quiet::connect(&process, 1);
    process.signal("-STOP");
    std::thread::sleep(Duration::from_secs(2));
    process.signal("-CONT");
    let began = Instant::now();
    let stream = &mut deaf.streams[0];
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut pings = Vec::new();
    stream.read_to_end(&mut pings).unwrap();
    assert!(pings.len() >= 2 && pings.chunks(2).all(|it| it == PING));
    assert!(began.elapsed() < Duration::from_secs(8));
}
