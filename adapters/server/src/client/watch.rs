//! `watch`: prints what is pushed, and connects again when the connection is lost.

use std::collections::HashSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use entity_sync_core::EntityKey;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::json;
use tungstenite::client::IntoClientRequest;
use tungstenite::http::header::RETRY_AFTER;
use tungstenite::http::{HeaderName, HeaderValue, Response, Uri};
use tungstenite::{Bytes, Message, WebSocket};

use super::trust::{Trust, is_distrust};
use super::{ClientError, key, line_of};

/// By which the server is asked for its limits, and says them.
const LIMITS: HeaderName = HeaderName::from_static("entity-sync-limits");

/// A server that says nothing for so long is asked whether it is there.
const QUIET: Duration = Duration::from_secs(30);

/// The first pause before the next attempt. It doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What a server that refuses may ask for at most.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(86_400);

/// A connection that lasted so long was a good one: the next attempt comes soon.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// Prints each row as it is now, and then whenever it is pushed, one a line
///
/// After each connection, each key is printed as it is by then. With ?snapshot=0 after the URL only changes are.
/// Example: entity-sync watch ws://127.0.0.1:8080/ws/entity-sync/ items/100 items/101
#[derive(Args)]
pub struct Watch {
    /// Where the server's WebSocket is; wss:// for TLS
    url: String,

    /// What to subscribe to
    #[arg(value_parser = key, value_name = "ENTITY/ID", required = true)]
    keys: Vec<EntityKey>,

    /// A file with the secret to send first
    #[arg(long, env = "ENTITY_SYNC_SECRET_FILE", value_name = "FILE")]
    secret_file: Option<PathBuf>,

    #[command(flatten)]
    trust: Trust,
}

/// What a WebSocket is on: TCP, or TLS on it.
trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// How one connection ended.
enum End {
    /// For good.
    Failed(ClientError),
    /// For now: why, and how long the server asks to wait.
    Lost(String, Option<Duration>),
}

/// Watches until `out` is closed or something fails for good.
///
/// Rows go to `out` exactly as they are received. What becomes of the connection goes to `status`.
///
/// # Errors
/// [`ClientError`], when trying again would not help.
pub fn watch(watch: &Watch, out: &mut dyn Write, status: &mut dyn Write) -> Result<(), ClientError> {
    let bad_url = || ClientError::BadUrl {
        given: watch.url.clone(),
    };
    let uri: Uri = watch.url.parse().map_err(|_| bad_url())?;
    let tls = match uri.scheme_str() {
        _ if uri.host().is_none() => return Err(bad_url()),
        Some("ws") => None,
        Some("wss") => Some(watch.trust.rustls()?),
        _ => return Err(bad_url()),
    };
    let secret = watch.secret_file.as_deref().map(line_of).transpose()?;
    let uri = with_snapshots(&uri).ok_or_else(bad_url)?;
    let mut pause = FIRST_PAUSE;
    loop {
        let began = Instant::now();
        let (reason, wait) = match connection(watch, &uri, tls.as_ref(), secret.as_deref(), out, status) {
            End::Failed(ClientError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            End::Failed(error) => return Err(error),
            End::Lost(reason, wait) => (reason, wait),
        };
        if began.elapsed() >= GOOD_AFTER {
            pause = FIRST_PAUSE;
        }
        // So that clients that lost the same server don't come back at the same moment.
        let wait = wait.unwrap_or_else(|| pause.mul_f64(0.5 + fastrand::f64() / 2.0));
        let line = format!("disconnected ({reason}), trying again in {:.1} s", wait.as_secs_f64());
        tell(status, &line);
        std::thread::sleep(wait);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn connection(
    watch: &Watch,
    uri: &Uri,
    tls: Option<&Arc<ClientConfig>>,
    secret: Option<&str>,
    out: &mut dyn Write,
    status: &mut dyn Write,
) -> End {
    let stream = match open(watch, uri, tls) {
        Ok(stream) => stream,
        Err(end) => return end,
    };
    let request = match uri.clone().into_client_request() {
        Ok(mut request) => {
            request.headers_mut().insert(LIMITS, HeaderValue::from_static("?"));
            request
        }
        Err(_) => {
            return End::Failed(ClientError::BadUrl {
                given: watch.url.clone(),
            });
        }
    };
    let mut socket = match tungstenite::client(request, stream) {
        Ok((socket, response)) => match check_limits(watch, &response) {
            Ok(()) => socket,
            Err(error) => return End::Failed(error),
        },
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(response))) => {
            let status = response.status().as_u16();
            // What is wrong with the server may pass, and so may being too slow, too early or too often. What is wrong with
            // the request will not.
            return if (400..500).contains(&status) && ![408, 425, 429].contains(&status) {
                let url = watch.url.clone();
                End::Failed(ClientError::NoUpgrade { url, status })
            } else {
                let wait = response.headers().get(RETRY_AFTER);
                let wait = wait.and_then(|it| retry_after(it.to_str().ok()?, SystemTime::now()));
                End::Lost(format!("it answers {status}"), wait)
            };
        }
        Err(error) => return End::Lost(error.to_string(), None),
    };
    for message in messages(watch, secret) {
        if let Err(error) = socket.send(Message::text(message)) {
            return End::Lost(error.to_string(), None);
        }
    }
    let keys: Vec<_> = watch
        .keys
        .iter()
        .map(|key| format!("{}/{}", key.entity(), key.id()))
        .collect();
    tell(status, &format!("watching {} on {}", keys.join(" "), watch.url));
    rows(&mut socket, out)
}

/// Protocol v1 ignores a subscription in silence that is beyond its limits. Servers before this one say nothing of them.
fn check_limits<B>(watch: &Watch, response: &Response<B>) -> Result<(), ClientError> {
    let told = response
        .headers()
        .get(LIMITS)
        .and_then(|it| it.to_str().ok())
        .unwrap_or_default();
    let limit = |name: &str| -> Option<usize> {
        let limits = told.split(',').filter_map(|it| it.trim().split_once('='));
        limits
            .into_iter()
            .find_map(|(of, limit)| (of == name).then(|| limit.parse().ok())?)
    };
    let keys: HashSet<_> = watch.keys.iter().collect();
    if let Some(limit) = limit("subscriptions").filter(|&limit| keys.len() > limit) {
        return Err(ClientError::TooManyKeys {
            keys: keys.len(),
            limit,
        });
    }
    let Some(limit) = limit("key-bytes") else {
        return Ok(());
    };
    match watch
        .keys
        .iter()
        .find(|key| key.entity().len() + key.id().len() > limit)
    {
        Some(key) => Err(ClientError::KeyTooLong {
            key: key.clone(),
            limit,
        }),
        None => Ok(()),
    }
}

fn open(watch: &Watch, uri: &Uri, tls: Option<&Arc<ClientConfig>>) -> Result<Box<dyn Stream>, End> {
    let lost = |error: io::Error| End::Lost(error.to_string(), None);
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let mut stream = TcpStream::connect((host, port)).map_err(lost)?;
    stream.set_nodelay(true).map_err(lost)?;
    stream.set_read_timeout(Some(QUIET)).map_err(lost)?;
    let Some(tls) = tls else {
        return Ok(Box::new(stream));
    };
    let bad_url = || {
        let given = watch.url.clone();
        End::Failed(ClientError::BadUrl { given })
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|_| bad_url())?;
    let mut connection = ClientConnection::new(tls.clone(), name).map_err(|_| bad_url())?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).map_err(|error| {
            if is_distrust(&error) {
                let (url, reason) = (watch.url.clone(), error.to_string());
                return End::Failed(ClientError::Untrusted { url, reason });
            }
            lost(error)
        })?;
    }
    Ok(Box::new(StreamOwned::new(connection, stream)))
}

/// What protocol v1 wants to hear: who we are, then what we want.
fn messages(watch: &Watch, secret: Option<&str>) -> Vec<String> {
    let secret = secret.map(|secret| json!({ "action": "secret", "body": secret }));
    let keys = watch.keys.iter().map(|key| {
        let body = json!({ "entity": key.entity(), "id": key.id() });
        json!({ "action": "subscribe", "body": body })
    });
    let all = secret.into_iter().chain(keys);
    all.map(|message| message.to_string()).collect()
}

fn rows(socket: &mut WebSocket<Box<dyn Stream>>, out: &mut dyn Write) -> End {
    let mut is_asked = false;
    loop {
        match socket.read() {
            Ok(Message::Text(row)) => {
                let written = writeln!(out, "{row}").and_then(|()| out.flush());
                if let Err(error) = written {
                    return End::Failed(ClientError::Output(error));
                }
            }
            Ok(Message::Close(frame)) => {
                // Answers the server's close frame.
                let _ = socket.flush();
                let Some(frame) = frame else {
                    return End::Lost("closed".to_owned(), None);
                };
                let wait = retry_hint(&frame.reason);
                return End::Lost(format!("closed with {}", frame.code), wait);
            }
            Ok(_) => {}
            Err(tungstenite::Error::Io(error))
                if !is_asked && matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
            {
                is_asked = true;
                if let Err(error) = socket.send(Message::Ping(Bytes::new())) {
                    return End::Lost(error.to_string(), None);
                }
                continue;
            }
            Err(tungstenite::Error::Io(error))
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
            {
                return End::Lost("no sign of life".to_owned(), None);
            }
            Err(error) => return End::Lost(error.to_string(), None),
        }
        is_asked = false;
    }
}

/// A server that is drained says when to come back: `retry in 1500 ms`.
fn retry_hint(reason: &str) -> Option<Duration> {
    let ms = reason.strip_prefix("retry in ")?.strip_suffix(" ms")?.parse().ok()?;
    Some(Duration::from_millis(ms).min(LONGEST_PAUSE))
}

/// The same, asking for the present state too, so that what changed while there was no connection is not missed. Servers
/// that don't know of it take no notice.
fn with_snapshots(uri: &Uri) -> Option<Uri> {
    let query = uri.query().unwrap_or_default();
    if query.split('&').any(|parameter| parameter.starts_with("snapshot=")) {
        return Some(uri.clone());
    }
    let separator = if query.is_empty() { "" } else { "&" };
    let mut parts = uri.clone().into_parts();
    let target = format!("{}?{query}{separator}snapshot=1", uri.path());
    parts.path_and_query = Some(target.parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// What a server or a proxy that refuses says of the next attempt, with a little more, so that not all come back at once.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let asked = match value.parse() {
        Ok(secs) => Duration::from_secs(secs),
        // A moment that has passed is now.
        Err(_) => httpdate::parse_http_date(value)
            .ok()?
            .duration_since(now)
            .unwrap_or_default(),
    };
    Some(asked.min(LONGEST_RETRY_AFTER).mul_f64(1.0 + fastrand::f64() / 10.0))
}

/// If nobody reads it, the rows still matter.
fn tell(status: &mut dyn Write, line: &str) {
    let _ = writeln!(status, "{line}").and_then(|()| status.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_present_state_is_asked_for_unless_the_url_says_otherwise() {
        for (given, asked) in [
            ("ws://a", "ws://a/?snapshot=1"),
            ("ws://a:1/ws/", "ws://a:1/ws/?snapshot=1"),
            ("wss://a/ws/?token=b", "wss://a/ws/?token=b&snapshot=1"),
            ("ws://a/ws/?", "ws://a/ws/?snapshot=1"),
            ("ws://a/ws/?snapshot=0", "ws://a/ws/?snapshot=0"),
        ] {
            let uri = with_snapshots(&given.parse().expect("a URL"));
            assert_eq!(uri.map(|it| it.to_string()).as_deref(), Some(asked));
        }
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2015 07:28:00 GMT").expect("a date");
        for (value, secs) in [
            ("120", Some(120)),
            ("Wed, 21 Oct 2015 07:28:30 GMT", Some(30)),
            ("Wed, 21 Oct 2015 07:27:00 GMT", Some(0)),
            ("99999999999", Some(86_400)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            let wait = retry_after(value, now);
            match secs.map(Duration::from_secs) {
                Some(asked) => {
                    let wait = wait.expect(value);
                    assert!((asked..=asked.mul_f64(1.1)).contains(&wait), "{value}: {wait:?}");
                }
                None => assert_eq!(wait, None, "{value}"),
            }
        }
    }
}
