//! Runs cases against servers of the mio adapter.
//!
//! What a server has sent so far is settled with two pings, one after the other's pong. A notify has marked its readers by
//! the time it returns; in the turn in which the first ping is answered its pong may overtake the rows, but the turn does
//! not end before they are sent too, and the second ping is read in a later one.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use entity_sync_mio::{Audience, EntityKey, Reply, Request, Rows, Server};

use super::case::{ACCEPTED, Case, Setup, Step, masked, row};
use crate::door::{Door, Open};

/// How long a case waits for what should come. Each time in vain halves it, so that a server that answers nothing is
/// told of in seconds.
const PATIENCE: Duration = Duration::from_secs(10);

const PING: &[u8] = b"\x89\x00";

/// Entities that the resolver knows. It has no rows for others.
const ENTITIES: [&str; 2] = ["items", "items.a"];

/// Runs all cases through a door, one server for each set-up, and says which failed.
pub(super) fn failures(door: Door, cases: &[Case]) -> Vec<String> {
    let mut worlds = HashMap::new();
    let mut failures = Vec::new();
    for case in cases {
        let world = worlds
            .entry(case.setup)
            .or_insert_with(|| World::start(door, case.setup));
        if let Some(failure) = judge(case.known_difference, world.run(case)) {
            failures.push(format!("{door:?}: {case}\n    {failure}"));
        }
    }
    failures
}

/// What is wrong with the outcome of a case.
pub(super) fn judge(known_difference: Option<&str>, outcome: Result<(), String>) -> Option<String> {
    match (known_difference, outcome) {
        (None, Ok(())) => None,
        (None, Err(failure)) => Some(failure),
        (Some(known), Ok(())) => Some(format!("no longer differs; remove its known difference: {known}")),
        (Some(known), Err(failure)) if failure.contains(known) => None,
        (Some(known), Err(failure)) => Some(format!("{failure}\n    which is not the known difference: {known}")),
    }
}

/// Fails the test, if need be.
pub(super) fn report(cases: usize, failures: &[String]) {
    println!("{cases} cases");
    let (count, list) = (failures.len(), failures.join("\n"));
    assert!(failures.is_empty(), "{count} of {cases} cases failed:\n{list}");
}

struct World {
    server: Server,
    door: Door,
    open: Open,
    script: Arc<Mutex<Script>>,
    patience: Duration,
}

/// What the resolver does and has seen.
#[derive(Default)]
struct Script {
    answers: VecDeque<Vec<u8>>,
    reads: Vec<(String, String, String)>,
    refused: usize,
    passed: Vec<(String, Vec<u8>)>,
}

impl World {
    fn start(door: Door, setup: Setup) -> Self {
        let mut config = door.config();
        config.reactors = NonZeroUsize::new(2).unwrap();
        setup.apply(&mut config);
        let script = Arc::<Mutex<Script>>::default();
        if setup == Setup::PassThrough {
            let of_handler = script.clone();
            config.core.on_message = Some(Arc::new(move |message| {
                let bytes = message.payload().as_bytes().to_vec();
                of_handler
                    .lock()
                    .unwrap()
                    .passed
                    .push((message.secret().to_owned(), bytes));
            }));
        }
        let of_resolver = script.clone();
        // It answers at once, on the thread that notifies.
        let server = Server::start(config, move |Request { key, audience }: Request, reply: Reply| {
            let Audience::Secret(secret) = audience else {
                panic!("an audience that nobody configured: {audience:?}")
            };
            let answer = {
                let mut script = of_resolver.lock().unwrap();
                let read = (key.entity().to_owned(), key.id().to_owned(), secret.to_string());
                script.reads.push(read);
                script.answers.pop_front()
            };
            let rows = match answer {
                Some(answer) => Rows::one(answer),
                None if ENTITIES.contains(&key.entity()) || key.entity() == "every" => Rows::one(row(key.id())),
                None => Rows::none(),
            };
            if reply.rows(rows).is_err() {
                of_resolver.lock().unwrap().refused += 1;
            }
        })
        .unwrap();
        let open = door.open(&server);
        Self {
            server,
            door,
            open,
            script,
            patience: PATIENCE,
        }
    }

    fn run(&mut self, case: &Case) -> Result<(), String> {
        self.forget_the_last()?;
        let stream = TcpStream::connect(self.open.address).map_err(|error| format!("connecting: {error}"))?;
        stream.set_nodelay(true).unwrap();
        let mut run = Run {
            world: self,
            stream,
            received: Vec::new(),
            is_settled: true,
            is_over: false,
        };
        for (index, step) in case.steps.iter().enumerate() {
            run.take(step).map_err(|error| format!("step {}: {error}", index + 1))?;
        }
        if run.is_over {
            return Ok(());
        }
        // Whatever else a case is about: nothing more is sent, and the connection stays.
        let rest = run.settle().map_err(|error| format!("at the end: {error}"))?;
        same("at the end", b"", &rest)
    }

    /// The connection of the case before this one would be pushed to.
    fn forget_the_last(&mut self) -> Result<(), String> {
        let start = Instant::now();
        while self.server.handle().flights() > 0 {
            if start.elapsed() > self.patience {
                return Err(self.in_vain("for the connection of an earlier case to be forgotten"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        *self.script.lock().unwrap() = Script::default();
        Ok(())
    }

    fn in_vain(&mut self, what: &str) -> String {
        let waited = self.patience;
        self.patience /= 2;
        format!("waited {waited:?} in vain {what}")
    }
}

/// A case on its way.
struct Run<'a> {
    world: &'a mut World,
    stream: TcpStream,
    /// What no step has looked at yet.
    received: Vec<u8>,
    /// The server has acted on all that was sent.
    is_settled: bool,
    is_over: bool,
}

impl Run<'_> {
    fn take(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Send(bytes) => self.send(bytes),
            Step::ShutDown => self.stream.shutdown(Shutdown::Write).map_err(|it| it.to_string()),
            Step::Rows(rows) => {
                self.world.script.lock().unwrap().answers.extend(rows.iter().cloned());
                Ok(())
            }
            Step::Notify(entity, id) => {
                if !self.is_settled {
                    return Err("the case is wrong: what it has sent may not have come before this notify".to_owned());
                }
                let key = EntityKey::new(entity, id).unwrap();
                self.world
                    .server
                    .handle()
                    .notify(&key)
                    .map_err(|error| error.to_string())
            }
            Step::NotifyFails(entity, id) => {
                let key = EntityKey::new(entity, id).unwrap();
                match self.world.server.handle().notify(&key) {
                    Err(error) if error.key == key => Ok(()),
                    other => Err(format!("it gave {other:?}")),
                }
            }
            Step::Passed(expected) => {
                self.settle()?;
                equal("messages passed", expected, &self.world.script.lock().unwrap().passed)
            }
            Step::Receive(expected) if expected == ACCEPTED.as_bytes() => self.receive_accepted(),
            Step::Receive(expected) => self.receive(expected),
            Step::Expect(expected) => same("received", expected, &self.settle()?),
            Step::ExpectUpTo(times, expected) => {
                let got = self.settle()?;
                let copies = got.chunks(expected.len());
                if (1..=*times).contains(&copies.len()) && copies.into_iter().all(|copy| copy == expected) {
                    return Ok(());
                }
                same(&format!("received 1 to {times} times"), expected, &got)
            }
            Step::ExpectEnd(expected) => same("received before the end", expected, &self.end()?),
            Step::ExpectClose(code) => {
                let got = self.end()?;
                let code = code.to_be_bytes();
                match &got[..] {
                    [0x88, len, reason @ ..]
                        if reason.starts_with(&code)
                            && reason.len() == usize::from(*len)
                            && str::from_utf8(&reason[2..]).is_ok() =>
                    {
                        Ok(())
                    }
                    _ => same(
                        "received before the end, and perhaps a reason",
                        &[&[0x88, 2], &code[..]].concat(),
                        &got,
                    ),
                }
            }
            Step::Reads(expected) => {
                let got = std::mem::take(&mut self.world.script.lock().unwrap().reads);
                equal("reads (entity, id, secret)", expected, &got)
            }
            Step::RefusedRows(expected) => {
                let got = self.world.script.lock().unwrap().refused;
                equal("refused answers of the resolver", expected, &got)
            }
            Step::AnswerPings(pings, answer) => {
                for _ in 0..*pings {
                    self.receive(PING)?;
                    self.send(answer)?;
                }
                self.is_over = true;
                Ok(())
            }
            Step::IgnorePings(most) => {
                let most = most * PING.len();
                while self.received.len() <= most && self.read()? {}
                let got = std::mem::take(&mut self.received);
                self.is_over = true;
                // If it were none or too many, this differs too.
                let pings = PING.repeat(got.len().clamp(1, most).div_ceil(PING.len()));
                same("received before the end", &pings, &got)
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.is_settled = false;
        let sent = self.stream.write_all(bytes);
        sent.map_err(|error| format!("{error}, sending {}", show(bytes)))
    }

    fn receive(&mut self, expected: &[u8]) -> Result<(), String> {
        while self.received.len() < expected.len() {
            // What differs already needs no waiting for the rest.
            if !expected.starts_with(&self.received) || !self.read()? {
                return same("received", expected, &self.received);
            }
        }
        let got: Vec<u8> = self.received.drain(..expected.len()).collect();
        same("received", expected, &got)
    }

    /// The response to the upgrade, which axum writes in its own way.
    fn receive_accepted(&mut self) -> Result<(), String> {
        if self.world.door == Door::Reactor {
            return self.receive(ACCEPTED.as_bytes());
        }
        let end = loop {
            if let Some(at) = self.received.windows(4).position(|part| part == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.read()? {
                return same("received", ACCEPTED.as_bytes(), &self.received);
            }
        };
        let got: Vec<u8> = self.received.drain(..end).collect();
        let proof = b"\r\nsec-websocket-accept: ZYud57x53lMRng1FXzD2lkbc7o0=\r\n";
        let has_proof = got.windows(proof.len()).any(|part| part == proof);
        if got.starts_with(b"HTTP/1.1 101 ") && has_proof {
            return Ok(());
        }
        same("received", ACCEPTED.as_bytes(), &got)
    }

    /// All that the server has sent by now.
    fn settle(&mut self) -> Result<Vec<u8>, String> {
        const QUESTION: &[u8] = b"all sent?";
        let pong = [&[0x8a, QUESTION.len() as u8], QUESTION].concat();
        for _ in 0..2 {
            self.send(&masked(0x89, QUESTION))?;
            let at = loop {
                if let Some(at) = self.received.windows(pong.len()).position(|part| part == pong) {
                    break at;
                }
                if !self.read()? {
                    return Err(format!("the server closed after {}", show(&self.received)));
                }
            };
            self.received.drain(at..at + pong.len());
        }
        self.is_settled = true;
        Ok(std::mem::take(&mut self.received))
    }

    /// All that comes until the server has closed.
    fn end(&mut self) -> Result<Vec<u8>, String> {
        while self.read()? {}
        self.is_settled = true;
        self.is_over = true;
        Ok(std::mem::take(&mut self.received))
    }

    /// Says whether there may be more.
    fn read(&mut self) -> Result<bool, String> {
        let mut buffer = [0; 64 * 1024];
        self.stream.set_read_timeout(Some(self.world.patience)).unwrap();
        match self.stream.read(&mut buffer) {
            Ok(bytes) => {
                self.received.extend_from_slice(&buffer[..bytes]);
                Ok(bytes > 0)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(self.world.in_vain(&format!("after {}", show(&self.received))))
            }
            Err(error) => Err(format!("{error} after {}", show(&self.received))),
        }
    }
}

fn same(what: &str, expected: &[u8], got: &[u8]) -> Result<(), String> {
    if expected == got {
        return Ok(());
    }
    let (expected, got) = (show(expected), show(got));
    Err(format!("{what}:\n      expected {expected}\n      got      {got}"))
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, expected: &T, got: &T) -> Result<(), String> {
    if expected == got {
        return Ok(());
    }
    Err(format!("{what}:\n      expected {expected:?}\n      got      {got:?}"))
}

fn show(bytes: &[u8]) -> String {
    const MOST: usize = 300;
    let shown = bytes[..bytes.len().min(MOST)].escape_ascii();
    let more = if bytes.len() > MOST { ".." } else { "" };
    format!("{} bytes \"{shown}\"{more}", bytes.len())
}
