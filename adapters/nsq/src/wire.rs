//! NSQ's protocol V2, as far as a node speaks it: commands as bytes, and frames from bytes. No I/O.
//!
//! A command is a line, behind which `IDENTIFY` and `PUB` have a length of four bytes and as many bytes. A frame is a
//! length, which counts what comes behind it, a type and its data; all numbers are big-endian. Names and ids that end up
//! in a line are types of their own, so that nothing can break out of one.

use std::fmt;

/// What a connection begins with.
pub const MAGIC: &[u8] = b"  V2";

/// The data of nsqd's heartbeats, which want [`nop`] for an answer.
pub const HEARTBEAT: &[u8] = b"_heartbeat_";

/// The data of the answer to a command that worked.
pub const OK: &[u8] = b"OK";

/// The data of the answer to [`close`].
pub const CLOSE_WAIT: &[u8] = b"CLOSE_WAIT";

/// What a frame has in front of its data: its length and its type.
const HEADER_BYTES: usize = 8;

/// What a message has in front of its body: its time, how often it was tried, and its id.
const MESSAGE_HEADER_BYTES: usize = 8 + 2 + 16;

/// What a frame's length may be for a message with a body of so many bytes.
pub const fn frame_bytes(body_bytes: usize) -> usize {
    (HEADER_BYTES - 4 + MESSAGE_HEADER_BYTES).saturating_add(body_bytes)
}

/// What nsqd sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The answer to a command, or a [heartbeat](HEARTBEAT).
    Response(&'a [u8]),
    /// A command has failed: a code such as `E_BAD_TOPIC`, and mostly what was wrong.
    Error(&'a [u8]),
    /// A message.
    Message(Message<'a>),
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// When it was published, in nanoseconds since 1970.
    pub timestamp_ns: i64,
    /// Which attempt to deliver it this is; the first is 1.
    pub attempts: u16,
    /// What it is [finished](finish) by.
    pub id: MessageId,
    /// What was published.
    pub body: &'a [u8],
}

/// A message's id: 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageId([u8; 16]);

/// A topic's name: 1 to 64 bytes of `.`, `-`, `_`, letters and digits of ASCII, of which the last may be `#ephemeral`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Topic(Box<str>);

/// A channel's name, by the same rule as a [`Topic`]'s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel(Box<str>);

/// Why something can't be the name of a topic or a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// It is empty, but perhaps for `#ephemeral`.
    Empty,
    /// It has so many bytes, which is more than 64.
    TooLong(usize),
    /// It has this character in it.
    Character(char),
}

/// Bytes that nsqd would not have sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// A frame too short for what it is said to be.
    TooShort {
        /// What its length says.
        length: u32,
    },
    /// A frame longer than allowed.
    TooLong {
        /// What its length says.
        length: u32,
        /// What is allowed.
        max: usize,
    },
    /// A type of frame that doesn't exist.
    UnknownType(u32),
    /// A message's id with something else than hexadecimal digits in it.
    BadMessageId,
}

/// The first frame of what was received, and how many bytes it takes. `None` if more is to be received first.
///
/// What is wrong is found as soon as the bytes that say so are there: nobody has to wait, or keep room, for a frame that
/// is refused anyway.
///
/// # Errors
/// [`WireError`]: nothing after it can be understood.
pub fn decode(received: &[u8], max_frame_bytes: usize) -> Result<Option<(Frame<'_>, usize)>, WireError> {
    let Some((length, rest)) = received.split_first_chunk() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length);
    let Some(data_bytes) = (length as usize).checked_sub(4) else {
        return Err(WireError::TooShort { length });
    };
    if length as usize > max_frame_bytes {
        let max = max_frame_bytes;
        return Err(WireError::TooLong { length, max });
    }
    let Some((kind, rest)) = rest.split_first_chunk() else {
        return Ok(None);
    };
    let kind = u32::from_be_bytes(*kind);
    if kind > 2 {
        return Err(WireError::UnknownType(kind));
    }
    if kind == 2 && data_bytes < MESSAGE_HEADER_BYTES {
        return Err(WireError::TooShort { length });
    }
    let Some(data) = rest.get(..data_bytes) else {
        return Ok(None);
    };
    let frame = match kind {
        0 => Frame::Response(data),
        1 => Frame::Error(data),
        _ => Frame::Message(message(data).ok_or(WireError::TooShort { length })??),
    };
    Ok(Some((frame, HEADER_BYTES + data_bytes)))
}

fn message(data: &[u8]) -> Option<Result<Message<'_>, WireError>> {
    let (timestamp, rest) = data.split_first_chunk()?;
    let (attempts, rest) = rest.split_first_chunk()?;
    let (id, body) = rest.split_first_chunk()?;
    Some(MessageId::new(*id).map(|id| Message {
        timestamp_ns: i64::from_be_bytes(*timestamp),
        attempts: u16::from_be_bytes(*attempts),
        id,
        body,
    }))
}

/// Says who we are and what we want, in JSON.
pub fn identify(out: &mut Vec<u8>, json: &[u8]) {
    out.extend_from_slice(b"IDENTIFY\n");
    sized(out, json);
}

/// Subscribes to a channel of a topic, both of which come into being by it.
pub fn subscribe(out: &mut Vec<u8>, topic: &Topic, channel: &Channel) {
    line(out, &[b"SUB ", topic.0.as_bytes(), b" ", channel.0.as_bytes()]);
}

/// Takes so many messages at a time that are not [finished](finish).
pub fn ready(out: &mut Vec<u8>, count: u16) {
    line(out, &[b"RDY ", count.to_string().as_bytes()]);
}

/// A message is done with.
pub fn finish(out: &mut Vec<u8>, id: MessageId) {
    line(out, &[b"FIN ", &id.0]);
}

/// Answers a [heartbeat](HEARTBEAT).
pub fn nop(out: &mut Vec<u8>) {
    line(out, &[b"NOP"]);
}

/// No more messages, please.
pub fn close(out: &mut Vec<u8>) {
    line(out, &[b"CLS"]);
}

/// Publishes a message.
pub fn publish(out: &mut Vec<u8>, topic: &Topic, body: &[u8]) {
    line(out, &[b"PUB ", topic.0.as_bytes()]);
    sized(out, body);
}

fn line(out: &mut Vec<u8>, parts: &[&[u8]]) {
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out.push(b'\n');
}

fn sized(out: &mut Vec<u8>, data: &[u8]) {
    // What doesn't fit is cut, so that at least the next command is one; nobody gets near it, since nsqd takes a MiB.
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&data[..length as usize]);
}

impl MessageId {
    /// # Errors
    /// [`WireError::BadMessageId`] if it is something else than 16 hexadecimal digits.
    pub fn new(id: [u8; 16]) -> Result<Self, WireError> {
        if id.iter().all(u8::is_ascii_hexdigit) {
            Ok(Self(id))
        } else {
            Err(WireError::BadMessageId)
        }
    }
}

impl Topic {
    /// # Errors
    /// [`NameError`] if nsqd would not take it.
    pub fn new(name: &str) -> Result<Self, NameError> {
        check_name(name).map(|()| Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Channel {
    /// # Errors
    /// [`NameError`] if nsqd would not take it.
    pub fn new(name: &str) -> Result<Self, NameError> {
        check_name(name).map(|()| Self(name.into()))
    }

    /// A channel for one consumer, that ends with its connection: `<uuid v4>#ephemeral`, made of these random bytes.
    pub fn ephemeral(random: [u8; 16]) -> Self {
        let mut uuid = random;
        // RFC 9562, section 5.4: its version and variant.
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        let mut name = String::with_capacity(46);
        for (number, byte) in uuid.into_iter().enumerate() {
            if matches!(number, 4 | 6 | 8 | 10) {
                name.push('-');
            }
            name.extend([byte >> 4, byte & 0xf].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])));
        }
        name.push_str("#ephemeral");
        Self(name.into())
    }
}

fn check_name(name: &str) -> Result<(), NameError> {
    if name.len() > 64 {
        return Err(NameError::TooLong(name.len()));
    }
    let stem = name.strip_suffix("#ephemeral").unwrap_or(name);
    if stem.is_empty() {
        return Err(NameError::Empty);
    }
    let is_allowed = |it: char| it.is_ascii_alphanumeric() || matches!(it, '.' | '_' | '-');
    stem.chars()
        .find(|&it| !is_allowed(it))
        .map_or(Ok(()), |it| Err(NameError::Character(it)))
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty")?,
            Self::TooLong(bytes) => write!(f, "it has {bytes} bytes")?,
            Self::Character(it) => write!(f, "it has {it:?} in it")?,
        }
        f.write_str(
            "; NSQ takes 1 to 64 of the characters a-z A-Z 0-9 . _ -, of which the last may be #ephemeral: rename it",
        )
    }
}

impl std::error::Error for NameError {}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { length, .. } if length.to_be_bytes() == *b"HTTP" => {
                f.write_str("it answers in HTTP: give the address of nsqd's TCP port, by default 4150")
            }
            Self::TooLong { length, max } => write!(
                f,
                "a frame of {length} bytes, and {max} are allowed: if it is nsqd, and takes such messages, raise max_message_bytes"
            ),
            Self::TooShort { length } => write!(f, "a frame of {length} bytes, which is too short: is it nsqd?"),
            Self::UnknownType(kind) => write!(f, "a frame of the unknown type {kind}: is it nsqd?"),
            Self::BadMessageId => f.write_str("a message's id is not 16 hexadecimal digits: is it nsqd?"),
        }
    }
}

impl std::error::Error for WireError {}

#[cfg(test)]
mod tests;
