//! [`Doorman`]: answers libzmq's question who may connect (ZAP, ZeroMQ RFC 27). Without one, CURVE admits anybody who knows
//! the server's public key.

use std::collections::HashSet;
use std::panic::resume_unwind;
use std::thread::JoinHandle;

use entity_sync_bus::{Health, LogLimit};

use crate::curve::CurvePublicKey;
use crate::error::ZmqError;

const ENDPOINT: &str = "inproc://zeromq.zap.01";
/// The frames of a request: version, id, domain, address, identity, mechanism, and for CURVE the client's public key.
const REQUEST_FRAMES: usize = 7;
/// No request has a longer frame, or more of them, that is of interest.
const MAX_FRAMES: usize = 16;
const STOP: &[u8] = b"stop";

/// The thread that answers for all sockets of one context. It ends when this is dropped.
pub(crate) struct Doorman {
    context: zmq::Context,
    thread: Option<JoinHandle<()>>,
}

impl Doorman {
    /// To be called before a socket of the context binds.
    pub(crate) fn start(context: &zmq::Context, allowed: &[CurvePublicKey], health: &Health) -> Result<Self, ZmqError> {
        let socket = context.socket(zmq::REP)?;
        socket.set_linger(0)?;
        socket.bind(ENDPOINT)?;
        let allowed: HashSet<[u8; 32]> = allowed.iter().map(|key| key.0).collect();
        let thread = entity_sync_runtime::spawn("entity-sync zap", health, move || answer_all(&socket, &allowed))
            .map_err(ZmqError::Thread)?;
        Ok(Self {
            context: context.clone(),
            thread: Some(thread),
        })
    }

    fn ask_to_stop(&self) -> Result<(), zmq::Error> {
        let socket = self.context.socket(zmq::REQ)?;
        socket.set_linger(0)?;
        socket.connect(ENDPOINT)?;
        socket.send(STOP, zmq::DONTWAIT)?;
        // It is to have come before this socket is closed.
        socket.set_rcvtimeo(1_000)?;
        socket.recv_msg(0).map(drop)
    }
}

impl Drop for Doorman {
    fn drop(&mut self) {
        // One that has failed answers nobody.
        if let Some(thread) = self.thread.take_if(|it| !it.is_finished())
            && self.ask_to_stop().is_ok()
        {
            // If it has panicked, it has said so.
            let _ = thread.join();
        }
    }
}

/// Until it is told to stop, or can't go on.
fn answer_all(socket: &zmq::Socket, allowed: &HashSet<[u8; 32]>) {
    if let Err(error) = try_answer_all(socket, allowed) {
        // Whoever supervises the thread reports it.
        resume_unwind(Box::new(format!(
            "nobody answers libzmq any more who may connect, so with CURVE no new connection is admitted: {error}"
        )));
    }
}

fn try_answer_all(socket: &zmq::Socket, allowed: &HashSet<[u8; 32]>) -> Result<(), zmq::Error> {
    let refusals = LogLimit::default();
    loop {
        let request = receive(socket)?;
        // Only this process reaches the endpoint.
        if request == [STOP] {
            return uninterrupted(|| socket.send(STOP, zmq::DONTWAIT));
        }
        let (id, is_allowed) = judge(&request, allowed);
        if !is_allowed && let Some(skipped) = refusals.happened() {
            let address = request.get(3).map(|it| String::from_utf8_lossy(it).into_owned());
            tracing::warn!(
                address,
                skipped,
                "a node whose key of CURVE is not on the list was refused"
            );
        }
        let (status, text) = match is_allowed {
            true => ("200", "OK"),
            false => ("400", "this key is not on the list"),
        };
        send(socket, &[b"1.0", id, status.as_bytes(), text.as_bytes(), b"", b""])?;
    }
}

/// The id of a request, and whether it is to be granted.
fn judge<'a>(request: &'a [Vec<u8>], allowed: &HashSet<[u8; 32]>) -> (&'a [u8], bool) {
    let id = request.get(1).map_or(&b""[..], Vec::as_slice);
    let is_allowed = request.len() == REQUEST_FRAMES
        && request[0] == b"1.0"
        && request[5] == b"CURVE"
        && <[u8; 32]>::try_from(request[6].as_slice()).is_ok_and(|key| allowed.contains(&key));
    (id, is_allowed)
}

fn receive(socket: &zmq::Socket) -> Result<Vec<Vec<u8>>, zmq::Error> {
    let mut frames = Vec::new();
    loop {
        let frame = uninterrupted(|| socket.recv_msg(0))?;
        if frames.len() < MAX_FRAMES {
            frames.push(frame.to_vec());
        }
        if !frame.get_more() {
            return Ok(frames);
        }
    }
}

fn send(socket: &zmq::Socket, frames: &[&[u8]]) -> Result<(), zmq::Error> {
    for (number, &frame) in frames.iter().enumerate() {
        let more = if number + 1 < frames.len() { zmq::SNDMORE } else { 0 };
        uninterrupted(|| socket.send(frame, more))?;
    }
    Ok(())
}

/// Tries again when a signal came between: then nothing was sent or received.
fn uninterrupted<T>(mut attempt: impl FnMut() -> Result<T, zmq::Error>) -> Result<T, zmq::Error> {
    loop {
        match attempt() {
            Err(zmq::Error::EINTR) => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(mechanism: &str, credentials: &[&[u8]]) -> Vec<Vec<u8>> {
        let begin = [
            &b"1.0"[..],
            b"1",
            b"entity-sync",
            b"10.0.0.1",
            b"",
            mechanism.as_bytes(),
        ];
        begin.iter().chain(credentials).map(|it| it.to_vec()).collect()
    }

    #[test]
    fn a_signal_is_no_reason_to_stop_and_anything_else_is() {
        let mut results = vec![Ok(7), Err(zmq::Error::EINTR), Err(zmq::Error::EINTR)];
        assert_eq!(uninterrupted(|| results.pop().expect("not asked again")), Ok(7));
        let mut results = vec![Ok(7), Err(zmq::Error::ETERM)];
        assert_eq!(
            uninterrupted(|| results.pop().expect("not asked again")),
            Err(zmq::Error::ETERM)
        );
    }

    #[test]
    fn it_answers_in_whole_messages() {
        let context = zmq::Context::new();
        let doorman = Doorman::start(&context, &[CurvePublicKey([7; 32])], &Health::default()).expect("starts");
        let asker = context.socket(zmq::REQ).expect("a socket");
        asker.set_rcvtimeo(10_000).expect("an option");
        asker.connect(ENDPOINT).expect("bound");
        for (key, status) in [([7; 32], b"200"), ([8; 32], b"400")] {
            asker
                .send_multipart(request("CURVE", &[&key]), 0)
                .expect("someone takes it");
            let answer = asker.recv_multipart(0).expect("an answer");
            assert_eq!(answer.len(), 6);
            assert_eq!((&answer[1][..], &answer[2][..]), (&b"1"[..], &status[..]));
        }
        drop(doorman);
    }

    #[test]
    fn only_listed_keys_of_curve_are_let_in() {
        let allowed = HashSet::from([[7; 32]]);
        assert_eq!(judge(&request("CURVE", &[&[7; 32]]), &allowed), (&b"1"[..], true));
        for bad in [
            request("CURVE", &[&[8; 32]]),
            request("CURVE", &[&[7; 31]]),
            request("CURVE", &[&[7; 32], b"more"]),
            request("CURVE", &[]),
            request("NULL", &[]),
            request("PLAIN", &[&[7; 32]]),
            vec![],
        ] {
            assert!(!judge(&bad, &allowed).1, "{bad:?}");
        }
        assert!(!judge(&request("CURVE", &[&[7; 32]]), &HashSet::new()).1);
    }
}
