//! [`Client`]: one connection as the application sees it; and [`Incoming`], what a client says to the application.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
// Not the model checker's: it is lent to one thread.
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::flights::Ticket;
use crate::key::EntityKey;
use crate::node::Node;
use crate::shard::ConnId;
use crate::subscriptions::TopicId;
use crate::ws::{OpCode, close_frame, data_frame, may_be_sent};

/// Names a connection of a node. Once it has ended, its id finds nothing, ever again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId {
    pub(crate) shard: u32,
    pub(crate) conn: ConnId,
}

/// A way to one client, from any thread. What is done to a client that has gone does nothing.
#[derive(Clone, Debug)]
pub struct Client {
    node: Node,
    id: ClientId,
}

/// A message that is passed to the application, lent for the call.
#[derive(Clone, Copy)]
pub struct Incoming<'a> {
    pub(crate) node: &'a Node,
    pub(crate) id: ClientId,
    pub(crate) secret: &'a str,
    pub(crate) payload: Payload<'a>,
    /// Set to have the client not read from behind this message. `None`: it is too late for that.
    pub(crate) pauses: Option<&'a AtomicBool>,
}

/// A message that was kept for later: see [`Incoming::keep`].
#[derive(Clone)]
pub struct KeptMessage {
    client: Client,
    secret: Box<str>,
    payload: KeptPayload,
}

#[derive(Clone)]
enum KeptPayload {
    Text(Box<str>),
    Binary(Box<[u8]>),
}

/// The exact bytes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// Of a text message.
    Text(&'a str),
    /// Of a binary message.
    Binary(&'a [u8]),
}

/// What the application does with messages that are passed to it. It is called on the thread that received them, a
/// reactor's, so it must not block. If it panics, that is caught and counted.
pub type OnMessage = Arc<dyn Fn(Incoming<'_>) + Send + Sync>;

/// Which messages are passed to the application.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PassThrough {
    /// Those of protocol v1 that have no action.
    #[default]
    WithoutAction,
    /// All: it is the application that says what they mean, and nothing is subscribed by them.
    All,
}

/// Whom [`Node::reread`], [`Node::unsubscribe`] and [`Node::disconnect`] are about.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selector {
    /// Whoever is subscribed to this key, and that subscription.
    Key(EntityKey),
    /// Whoever sent this secret last (none, if it is empty), and all their subscriptions.
    Secret(Arc<str>),
    /// One client, and all its subscriptions.
    Client(ClientId),
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// As many bytes as `max_handover_bytes` wait for the client's shard to take them. Try again later.
    Full,
}

/// A code that may not stand in a close frame: only 1000 to 1003, 1007 to 1013 and 3000 to 4999 may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidCloseCode(pub u16);

/// What the application wants done on a shard's thread.
pub(crate) enum Command {
    Send {
        conn: ConnId,
        frame: Bytes,
    },
    Close {
        whose: Whose,
        frame: Bytes,
    },
    Unsubscribe(Whose),
    /// Reads that began with this ticket or before don't count.
    Reread(Whose, Ticket),
    /// Reading from it goes on.
    ReadOn(ConnId),
}

/// A [`Selector`] on one shard.
#[derive(Clone)]
pub(crate) enum Whose {
    Conn(ConnId),
    Secret(Arc<str>),
    Topic(TopicId),
}

impl Client {
    pub(crate) fn new(node: Node, id: ClientId) -> Self {
        Self { node, id }
    }

    /// Its name.
    pub fn id(&self) -> ClientId {
        self.id
    }

    /// Queues a text message behind what the client has queued already. If that makes more than `max_outbox_bytes`, the
    /// client is closed with code 1013: messages can't be skipped as states can.
    ///
    /// # Errors
    /// [`SendError::Full`]: nothing was queued.
    pub fn send_text(&self, text: &str) -> Result<(), SendError> {
        self.send(OpCode::Text, text.as_bytes())
    }

    /// As [`send_text`](Self::send_text), with a binary message.
    ///
    /// # Errors
    /// [`SendError::Full`]: nothing was queued.
    pub fn send_binary(&self, bytes: &[u8]) -> Result<(), SendError> {
        self.send(OpCode::Binary, bytes)
    }

    /// Sends what is queued and then a close frame, and ends the connection.
    ///
    /// # Errors
    /// [`InvalidCloseCode`]: nothing was done.
    pub fn close(&self, code: u16, reason: &str) -> Result<(), InvalidCloseCode> {
        self.node.disconnect(&Selector::Client(self.id), code, reason)
    }

    /// Reading from the client goes on after [`Incoming::stop_reading`].
    pub fn read_on(&self) {
        // It has no limit.
        let _ = self.node.command(self.id.shard, Command::ReadOn(self.id.conn));
    }

    fn send(&self, opcode: OpCode, payload: &[u8]) -> Result<(), SendError> {
        let frame = data_frame(opcode, payload);
        let conn = self.id.conn;
        self.node.command(self.id.shard, Command::Send { conn, frame })
    }
}

impl<'a> Incoming<'a> {
    /// What it says.
    pub fn payload(&self) -> Payload<'a> {
        self.payload
    }

    /// The secret that the client sent last; empty if none.
    pub fn secret(&self) -> &'a str {
        self.secret
    }

    /// Who says it.
    pub fn id(&self) -> ClientId {
        self.id
    }

    /// A way to whoever says it, to keep.
    pub fn client(&self) -> Client {
        Client::new(self.node.clone(), self.id)
    }

    /// A copy to keep, for work that would hold up the reactor.
    pub fn keep(&self) -> KeptMessage {
        KeptMessage {
            client: self.client(),
            secret: self.secret.into(),
            payload: match self.payload {
                Payload::Text(text) => KeptPayload::Text(text.into()),
                Payload::Binary(bytes) => KeptPayload::Binary(bytes.into()),
            },
        }
    }

    /// Behind this message nothing more is read from the client until [`Client::read_on`], so that TCP slows down the client
    /// and nobody else. The client isn't taken for dead meanwhile. With a message that was kept, it does nothing.
    pub fn stop_reading(&self) {
        if let Some(pauses) = self.pauses {
            pauses.store(true, Ordering::Relaxed);
        }
    }
}

impl KeptMessage {
    /// Who said it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Bytes of memory that it holds, about.
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.secret.len() + self.payload().as_bytes().len()
    }

    fn payload(&self) -> Payload<'_> {
        match &self.payload {
            KeptPayload::Text(text) => Payload::Text(text),
            KeptPayload::Binary(bytes) => Payload::Binary(bytes),
        }
    }

    /// Calls a handler with it, as a reactor would. A panic is caught and counted; says whether there was none.
    pub fn handle(&self, handler: impl FnOnce(Incoming<'_>)) -> bool {
        let incoming = Incoming {
            node: &self.client.node,
            id: self.client.id,
            secret: &self.secret,
            payload: self.payload(),
            pauses: None,
        };
        // It is shown nothing that could be half changed.
        let is_well = catch_unwind(AssertUnwindSafe(|| handler(incoming))).is_ok();
        if !is_well {
            self.client.node.counters().message_panics.add(1);
        }
        is_well
    }
}

impl<'a> Payload<'a> {
    /// The bytes, whatever their kind.
    pub fn as_bytes(self) -> &'a [u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }
}

/// A close frame with a code of the application's.
pub(crate) fn checked_close_frame(code: u16, reason: &str) -> Result<Bytes, InvalidCloseCode> {
    if !may_be_sent(code) {
        return Err(InvalidCloseCode(code));
    }
    Ok(close_frame(Some(code), reason))
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:?}", self.shard, self.conn)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Debug for Selector {
    /// Without the secret, which is often a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => f.debug_tuple("Key").field(key).finish(),
            Self::Secret(_) => f.write_str("Secret(…)"),
            Self::Client(id) => f.debug_tuple("Client").field(id).finish(),
        }
    }
}

impl fmt::Debug for Incoming<'_> {
    /// Without the secret, which is often a token, and the payload, which may hold one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("id", &self.id)
            .field("bytes", &self.payload.as_bytes().len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for KeptMessage {
    /// Without the secret and the payload, as [`Incoming`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptMessage")
            .field("id", &self.client.id)
            .field("bytes", &self.payload().as_bytes().len())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("too many bytes wait to be taken by the client's shard; try again later"),
        }
    }
}

impl std::error::Error for SendError {}

impl fmt::Display for InvalidCloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} can't be sent as a close code: use 1000 to 1003, 1007 to 1013 or 3000 to 4999",
            self.0
        )
    }
}

impl std::error::Error for InvalidCloseCode {}
