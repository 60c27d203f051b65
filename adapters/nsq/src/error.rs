//! [`SessionError`]: why a connection to an nsqd could not be had, or has ended.

use std::fmt;
use std::io;

use crate::wire::WireError;

/// How much of what nsqd says is shown.
const SHOWN_BYTES: usize = 200;

#[derive(Debug)]
pub(crate) enum SessionError {
    Connect(io::Error),
    Io(io::Error),
    /// nsqd has closed it.
    Closed,
    /// What didn't come in time.
    Timeout(Awaited),
    Wire(WireError),
    /// nsqd says that a command has failed.
    Answer(Answer),
    /// nsqd says that it will never take a message.
    Refused(Answer),
    /// nsqd says something that is no answer to what it was asked.
    Unexpected(Said),
    /// nsqd wants credentials, which we have not.
    AuthRequired,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    Connection,
    Answer,
    Heartbeat,
    Room,
}

/// What nsqd said, cut and escaped.
#[derive(Clone, Debug)]
pub(crate) struct Said(String);

/// An error that nsqd answered with.
#[derive(Clone, Debug)]
pub(crate) struct Answer(Said);

impl SessionError {
    /// nsqd, or what passes for it, doesn't keep to the protocol.
    pub(crate) fn is_violation(&self) -> bool {
        matches!(self, Self::Wire(_) | Self::Unexpected(_))
    }
}

impl Said {
    pub(crate) fn new(data: &[u8]) -> Self {
        let shown = &data[..data.len().min(SHOWN_BYTES)];
        let rest = if shown.len() < data.len() { "…" } else { "" };
        Self(format!("{}{rest}", shown.escape_ascii()))
    }
}

impl Answer {
    pub(crate) fn new(data: &[u8]) -> Self {
        Self(Said::new(data))
    }

    /// nsqd closes the connection after any other error.
    pub(crate) fn is_fatal(&self) -> bool {
        !matches!(self.code(), "E_FIN_FAILED" | "E_REQ_FAILED" | "E_TOUCH_FAILED")
    }

    /// Whether the same message would be answered the same the next time.
    pub(crate) fn is_for_good(&self) -> bool {
        matches!(self.code(), "E_BAD_MESSAGE" | "E_BAD_TOPIC")
    }

    fn code(&self) -> &str {
        self.0.0.split(' ').next().unwrap_or_default()
    }

    fn advice(&self) -> &'static str {
        if self.0.0.contains("TLS required") {
            return "TLS is not supported: start nsqd without --tls-required";
        }
        match self.code() {
            "E_AUTH_FIRST" | "E_UNAUTHORIZED" | "E_AUTH_FAILED" => AUTH_ADVICE,
            "E_BAD_TOPIC" | "E_BAD_CHANNEL" => "this nsqd has other rules for names: rename the entity",
            "E_BAD_MESSAGE" => "raise nsqd's --max-msg-size",
            "E_BAD_BODY" => "raise nsqd's --max-body-size, or its --max-heartbeat-interval",
            "E_PUB_FAILED" | "E_SUB_FAILED" => "see nsqd's log, and whether its disk is full",
            "E_FIN_FAILED" => "nsqd thinks that the message took too long, and sends it again; see its --msg-timeout",
            _ => "see nsqd's log",
        }
    }
}

const AUTH_ADVICE: &str =
    "AUTH is not supported: start nsqd without --auth-http-address, or let this host in otherwise";

impl From<WireError> for SessionError {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "can't connect: {error}; is nsqd running there?"),
            Self::Io(error) => write!(f, "the connection is lost: {error}"),
            Self::Closed => f.write_str("nsqd has closed the connection"),
            Self::Timeout(Awaited::Connection) => {
                f.write_str("no connection in time: is the address right, and no firewall between?")
            }
            Self::Timeout(Awaited::Answer) => f.write_str("nsqd doesn't answer: is it overloaded or stopped?"),
            Self::Timeout(Awaited::Heartbeat) => {
                f.write_str("nothing was heard of nsqd for two heartbeats: is the network cut, or nsqd stopped?")
            }
            Self::Timeout(Awaited::Room) => f.write_str("nsqd doesn't read: is it overloaded or stopped?"),
            Self::Wire(error) => write!(f, "what comes is not NSQ's protocol: {error}"),
            Self::Answer(answer) => answer.fmt(f),
            Self::Refused(answer) => write!(f, "{answer}; this message is not published again"),
            Self::Unexpected(said) => write!(f, "unexpected message from nsqd: {said}"),
            Self::AuthRequired => write!(f, "nsqd asks for credentials: {AUTH_ADVICE}"),
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nsqd refuses: {}; {}", self.0, self.advice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_to_do_and_shows_no_control_characters() {
        let shown = |data: &[u8]| SessionError::Answer(Answer::new(data)).to_string();
        assert!(shown(b"E_AUTH_FIRST AUTH required before SUB").contains("--auth-http-address"));
        assert!(shown(b"E_INVALID cannot SUB in current state (TLS required)").contains("--tls-required"));
        assert!(shown(b"E_BAD_MESSAGE PUB message too big").contains("--max-msg-size"));
        assert!(shown(b"\x1b[31m\n").contains(r"\x1b[31m\n"));
        let long = shown(&[b'x'; 5_000]);
        assert!(long.len() < 400 && long.contains('…'), "{long}");
    }

    #[test]
    fn only_three_errors_leave_the_connection_open() {
        assert!(!Answer::new(b"E_FIN_FAILED FIN 0123456789abcdef failed ID not in flight").is_fatal());
        assert!(Answer::new(b"E_INVALID invalid command").is_fatal());
        assert!(Answer::new(b"").is_fatal());
    }
}
