//! [`Case`]: one row of PROTOCOL, and the words in which the tables tell it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use entity_sync_mio::{Config, Delivery, Entities, EntityOptions, Hosts, Origins};

/// One example of one row.
pub(super) struct Case {
    /// Section of PROTOCOL.
    pub(super) section: u8,
    /// The row, by its first words.
    pub(super) row: &'static str,
    /// Which example of the row this is, if there are several.
    pub(super) example: String,
    pub(super) setup: Setup,
    pub(super) steps: Vec<Step>,
    /// The server is known to fail this case, and this is a part of what the failure says. Once it succeeds, or fails
    /// otherwise, the test fails.
    pub(super) known_difference: Option<&'static str>,
}

/// How the server is configured.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Setup {
    Default,
    /// Messages of at most 512 bytes, as in the original.
    OriginalLimit,
    /// Only pages of `https://app.example.com` may connect.
    ListedOrigin,
    /// The server is called `sync.example.com`, besides what its own machine may call it.
    NamedHost,
    /// A ping each [`QUICK_PING`], and dead after [`QUICK_DEATH`].
    QuickPings,
    /// Messages without an action are passed to the application.
    PassThrough,
    /// Only "items" and "every" are entities; of the second, every notify is delivered.
    Registered,
}

/// What the clock of day always shows.
pub(super) const DATE: &str = "Mon, 23 Nov 2026 18:42:26 GMT";

pub(super) const QUICK_PING: Duration = Duration::from_millis(200);
pub(super) const QUICK_DEATH: Duration = Duration::from_secs(2);

pub(super) enum Step {
    /// The client sends these bytes, as they are.
    Send(Vec<u8>),
    /// The client closes its sending side.
    ShutDown,
    /// The next reads of the resolver give these rows. After them it gives [`row`] again.
    Rows(Vec<Vec<u8>>),
    /// The application has changed this entity and id.
    Notify(String, String),
    /// These bytes come, sooner or later, before any others.
    Receive(Vec<u8>),
    /// These bytes have come since the last expectation, and nothing else.
    Expect(Vec<u8>),
    /// These bytes have come since the last expectation at least once, at most so many times, and nothing else.
    ExpectUpTo(usize, Vec<u8>),
    /// These bytes and then the end come (FIN, not a reset).
    ExpectEnd(Vec<u8>),
    /// A close frame of this code, with whatever reason, and then the end come.
    ExpectClose(u16),
    /// The resolver was asked for these (entity, id, secret) since the last such step, and for nothing else.
    Reads(Vec<(String, String, String)>),
    /// The application was passed these messages, each with the client's secret, since the beginning, and no others.
    Passed(Vec<(String, Vec<u8>)>),
    /// To notify of this entity and id is an error.
    NotifyFails(String, String),
    /// So many of the resolver's answers were refused since the beginning.
    RefusedRows(usize),
    /// So many pings come, each of which the client answers with these bytes. Then it leaves.
    AnswerPings(usize, Vec<u8>),
    /// Pings come, so many at most, and then the end, and nothing else.
    IgnorePings(usize),
}

impl Case {
    pub(super) fn new(section: u8, row: &'static str, example: impl Into<String>, steps: Vec<Step>) -> Self {
        Self {
            section,
            row,
            example: example.into(),
            setup: Setup::Default,
            steps,
            known_difference: None,
        }
    }

    pub(super) fn on(mut self, setup: Setup) -> Self {
        self.setup = setup;
        self
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "section {}, row \"{}\"", self.section, self.row)?;
        if !self.example.is_empty() {
            write!(f, ": {}", self.example)?;
        }
        Ok(())
    }
}

impl Setup {
    pub(super) fn apply(self, config: &mut Config) {
        let core = &mut config.core;
        core.retry_first = Duration::from_millis(10);
        core.http_date = Some(Arc::new(|| DATE.to_owned()));
        match self {
            // The runner's handler is there.
            Self::Default | Self::PassThrough => {}
            Self::Registered => {
                let mut every = EntityOptions::default();
                every.delivery = Delivery::Every;
                let items = EntityOptions::default();
                core.entities = Entities::none().with("items", items).with("every", every);
            }
            Self::OriginalLimit => core.max_message_bytes = 512,
            Self::NamedHost => core.upgrade.hosts = Hosts::Named(vec!["sync.example.com".to_owned()]),
            Self::ListedOrigin => core.upgrade.origins = Origins::List(vec!["https://app.example.com".to_owned()]),
            Self::QuickPings => {
                core.ping_interval = QUICK_PING;
                core.dead_after = QUICK_DEATH;
            }
        }
    }
}

/// The request of PROTOCOL's section 0, and its answer.
pub(crate) const REQUEST: &str = "GET /ws/entity-sync/ HTTP/1.1\r\nHost: 127.0.0.1:8081\r\nUser-Agent: Go-http-client/1.1\r\nConnection: Upgrade\r\nSec-WebSocket-Key: ozdXINuS7gRXM2loRNMN8Q==\r\nSec-WebSocket-Version: 13\r\nUpgrade: websocket\r\n\r\n";
pub(super) const ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ZYud57x53lMRng1FXzD2lkbc7o0=\r\n\r\n";
const _: () = assert!(ACCEPTED.len() == 129, "PROTOCOL says so");

/// Section 2's message S.
pub(super) const S: &str = r#"{"action":"subscribe","body":{"id":"100","entity":"items"}}"#;

/// The upgrade, with which every case of sections 2 and 3 begins.
pub(super) fn upgraded(steps: impl IntoIterator<Item = Step>) -> Vec<Step> {
    let upgrade = [Step::Send(REQUEST.into()), Step::Receive(ACCEPTED.into())];
    upgrade.into_iter().chain(steps).collect()
}

/// A client's frame with the shortest header.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0xa5, 0x00, 0x5a, payload.len() as u8];
    let mut frame = header(first, 0x80, payload.len());
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn header(first: u8, masked: u8, len: usize) -> Vec<u8> {
    match len {
        0..=125 => vec![first, masked | len as u8],
        126..=0xffff => [&[first, masked | 126], &(len as u16).to_be_bytes()[..]].concat(),
        _ => [&[first, masked | 127], &(len as u64).to_be_bytes()[..]].concat(),
    }
}

/// A server's text frame.
pub(crate) fn frame(payload: &[u8]) -> Vec<u8> {
    [&header(0x81, 0, payload.len()), payload].concat()
}

/// A server's close frame.
pub(super) fn close(code: u16, reason: &str) -> Vec<u8> {
    let payload = [&code.to_be_bytes(), reason.as_bytes()].concat();
    [&header(0x88, 0, payload.len()), &payload[..]].concat()
}

/// What the resolver gives for an id, unless a case says otherwise.
pub(super) fn row(id: &str) -> String {
    format!(r#"{{"id":"{id}","ts":1,"pad":""}}"#)
}

/// The client sends a text message.
pub(super) fn text(message: impl AsRef<[u8]>) -> Step {
    Step::Send(masked(0x81, message.as_ref()))
}

pub(super) fn notify(entity: &str, id: &str) -> Step {
    Step::Notify(entity.to_owned(), id.to_owned())
}

pub(super) fn notify_100() -> Step {
    notify("items", "100")
}

/// The rows of these ids were pushed, and nothing else.
pub(super) fn pushed<const N: usize>(ids: [&str; N]) -> Step {
    Step::Expect(ids.map(|id| frame(row(id).as_bytes())).concat())
}

pub(super) fn nothing() -> Step {
    Step::Expect(Vec::new())
}

/// Item 100 was read once, for this secret.
pub(super) fn read_for(secret: &str) -> Step {
    Step::Reads(vec![("items".to_owned(), "100".to_owned(), secret.to_owned())])
}
