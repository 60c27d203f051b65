//! [`upgrade`]: from an HTTP/1.1 request to a WebSocket (RFC 6455, section 4.2), or to a refusal.

use bytes::Bytes;
use data_encoding::BASE64;
use httparse::{Header, Request, Status};
use sha1::{Digest, Sha1};

use super::hosts::{Hosts, Origins};
use super::refusal::Refusal;

/// Which requests are upgraded.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UpgradeRules {
    /// Paths that are upgraded. They are matched exactly, without the query; percent-encoded characters are not decoded.
    pub paths: Vec<String>,
    /// Which web pages may connect.
    pub origins: Origins,
    /// Which names of the server a request may carry.
    pub hosts: Hosts,
    /// Length of a request's header block, in bytes. A longer one is answered 431. Browsers send all cookies of a host.
    pub max_request_bytes: usize,
}

impl Default for UpgradeRules {
    fn default() -> Self {
        Self {
            paths: vec!["/ws/entity-sync/".to_owned()],
            origins: Origins::Same,
            hosts: Hosts::Auto,
            max_request_bytes: 64 * 1024,
        }
    }
}

/// The answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Upgrade {
    /// Call again when more has been received.
    Incomplete,
    /// Frames follow after the `consumed` bytes.
    Accept {
        response: Bytes,
        consumed: usize,
        wants_snapshots: bool,
    },
    /// With `keep_alive` another request may follow after the `consumed` bytes; without, the connection ends.
    Refuse {
        response: Bytes,
        consumed: usize,
        reason: Refusal,
        keep_alive: bool,
    },
}

/// The header fields of a request that an HTTP stack has parsed.
pub trait HeaderFields {
    /// The values of all fields of this name, whatever its ASCII case, without white space around them.
    fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]>;
}

impl HeaderFields for [Header<'_>] {
    fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let of_name = self.iter().filter(move |it| it.name.eq_ignore_ascii_case(name));
        of_name.map(|it| it.value.trim_ascii())
    }
}

/// The clock of day, for the `Date` field of refusals, unless it is broken.
pub(crate) type Date<'a> = Option<&'a dyn Fn() -> Option<String>>;

/// Header fields in a request, at most. Browsers send about 20; proxies add a few.
const MAX_HEADERS: usize = 128;

/// The first byte of a TLS connection, which is none of HTTP's.
const TLS_HANDSHAKE: u8 = 0x16;

/// Judges the request at the start of `received`. What follows it is not looked at. The first `searched` bytes are known to be
/// [`Upgrade::Incomplete`].
pub(crate) fn upgrade(rules: &UpgradeRules, date: Date<'_>, received: &[u8], searched: usize) -> Upgrade {
    if received.first() == Some(&TLS_HANDSHAKE) {
        return Upgrade::Refuse {
            response: Bytes::new(),
            consumed: received.len(),
            reason: Refusal::Tls,
            keep_alive: false,
        };
    }
    let looked_at = received.get(..rules.max_request_bytes).unwrap_or(received);
    // Until the end is there nothing is parsed or looked at twice, so that a request in tiny pieces costs little.
    let Some(head) = head_of(looked_at, searched) else {
        return if received.len() < rules.max_request_bytes {
            Upgrade::Incomplete
        } else {
            hang_up(Refusal::HeadersTooLong, date, received.len())
        };
    };
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut headers);
    match request.parse(head) {
        Ok(Status::Complete(_)) if has_one_host(&request) => {}
        Err(httparse::Error::TooManyHeaders) => {
            return hang_up(Refusal::HeadersTooLong, date, head.len());
        }
        _ => return hang_up(Refusal::BadRequest, date, head.len()),
    }
    match judge(rules, &request) {
        Ok(accept) => Upgrade::Accept {
            response: switching_protocols(&accept),
            consumed: head.len(),
            wants_snapshots: request
                .path
                .and_then(|target| target.split_once('?'))
                .is_some_and(|(_, query)| asks_for_snapshots(query)),
        },
        Err(reason) => {
            let headers = &*request.headers;
            // A body is not read, so nothing can follow it.
            let keep_alive =
                !has_body(headers) && request.version == Some(1) && !has_token(headers, "Connection", "close");
            Upgrade::Refuse {
                response: refusal(reason, date, keep_alive, request.method == Some("HEAD")),
                consumed: head.len(),
                reason,
                keep_alive,
            }
        }
    }
}

fn judge(rules: &UpgradeRules, request: &Request<'_, '_>) -> Result<String, Refusal> {
    let (authority, target) = split_target(request.path.unwrap_or_default());
    if authority.is_some_and(|it| it.is_empty() || it.contains('@')) {
        return Err(Refusal::BadRequest);
    }
    let path = target.split('?').next();
    if !rules.paths.iter().any(|known| path == Some(known)) {
        return Err(Refusal::NotFound);
    }
    let headers = Fields {
        headers: request.headers,
        authority,
    };
    rules.judge(request.version == Some(1), request.method.unwrap_or_default(), &headers)
}

/// The authority of a target in absolute form (RFC 9112, section 3.2.2), and its path with the query.
fn split_target(target: &str) -> (Option<&str>, &str) {
    let schemes = ["http://", "https://", "ws://", "wss://"];
    let is_scheme = |it: &&str| target.get(..it.len()).is_some_and(|own| own.eq_ignore_ascii_case(it));
    let Some(rest) = schemes
        .iter()
        .find(|it| is_scheme(it))
        .and_then(|it| target.get(it.len()..))
    else {
        return (None, target);
    };
    match rest.split_at_checked(rest.find(['/', '?']).unwrap_or(rest.len())) {
        Some((authority, target)) if target.starts_with('/') => (Some(authority), target),
        _ => (Some(rest), "/"),
    }
}

/// The header fields of a request, in which the target's authority goes before `Host`.
struct Fields<'r> {
    headers: &'r [Header<'r>],
    authority: Option<&'r str>,
}

impl HeaderFields for Fields<'_> {
    fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let authority = self.authority.filter(|_| name.eq_ignore_ascii_case("Host"));
        let fields = authority.is_none().then(|| self.headers.values(name));
        authority
            .map(str::as_bytes)
            .into_iter()
            .chain(fields.into_iter().flatten())
    }
}

impl UpgradeRules {
    /// Judges a request that an HTTP stack has parsed and routed, so that neither its path nor its length is looked at.
    /// Gives the value of the response's `Sec-WebSocket-Accept`.
    ///
    /// # Errors
    /// [`Refusal`], by the first check that fails, in the order in which the original checked.
    pub fn judge(
        &self,
        is_http_1_1: bool,
        method: &str,
        headers: &(impl HeaderFields + ?Sized),
    ) -> Result<String, Refusal> {
        if !is_http_1_1 || !has_token(headers, "Connection", "upgrade") || !has_token(headers, "Upgrade", "websocket") {
            return Err(Refusal::BadRequest);
        }
        if method != "GET" {
            return Err(Refusal::MethodNotAllowed);
        }
        self.judge_fields(headers)?;
        let key = headers.values("Sec-WebSocket-Key").next();
        match key.filter(|key| is_key(key) && !has_body(headers)) {
            Some(key) => Ok(accept(key)),
            None => Err(Refusal::BadRequest),
        }
    }

    /// Judges a `CONNECT` of HTTP/2 or later whose `:protocol` is `websocket` (RFC 8441). Its `:authority` is taken for
    /// the field `Host`.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn judge_connect(&self, headers: &(impl HeaderFields + ?Sized)) -> Result<(), Refusal> {
        self.judge_fields(headers)
    }

    /// What every version of HTTP has in common.
    fn judge_fields(&self, headers: &(impl HeaderFields + ?Sized)) -> Result<(), Refusal> {
        if !has_token(headers, "Sec-WebSocket-Version", "13") {
            return Err(Refusal::BadRequest);
        }
        if !self.hosts.allow_all(headers) {
            return Err(Refusal::UntrustedHost);
        }
        if !self.origins.allow(headers) {
            return Err(Refusal::Forbidden);
        }
        Ok(())
    }
}

/// Whether the query of an upgrade request, which is what follows its `?`, asks for the present state of whatever the client
/// subscribes to: `snapshot=1`. The original takes no notice of a query, so that clients may send it to any server.
pub fn asks_for_snapshots(query: &str) -> bool {
    query.split('&').any(|parameter| parameter == "snapshot=1")
}

/// 16 bytes as Base64. The four bits that the last character has too many may be anything.
fn is_key(key: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24
        && key
            .strip_suffix(b"==")
            .is_some_and(|digits| digits.iter().all(is_digit))
}

/// What proves that a key was understood.
fn accept(key: &[u8]) -> String {
    let proof = Sha1::new()
        .chain_update(key)
        .chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11")
        .finalize();
    BASE64.encode(&proof)
}

/// Whether the head of a request has this field.
pub(crate) fn has_field(head: &[u8], name: &str) -> bool {
    head.split(|&byte| byte == b'\n').any(|line| {
        let field = line.split_at_checked(name.len());
        field.is_some_and(|(own, rest)| own.eq_ignore_ascii_case(name.as_bytes()) && rest.first() == Some(&b':'))
    })
}

/// A response without a body, with one more field.
pub(crate) fn with_field(response: &[u8], name: &str, value: &str) -> Bytes {
    let fields = response.strip_suffix(b"\r\n").unwrap_or(response);
    [fields, name.as_bytes(), b": ", value.as_bytes(), b"\r\n\r\n"]
        .concat()
        .into()
}

fn switching_protocols(accept: &str) -> Bytes {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\n\
         Upgrade: websocket\r\n\
         Connection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\
         \r\n"
    )
    .into()
}

/// Refuses what can't be understood, so that nobody can say where the next request would begin.
fn hang_up(reason: Refusal, date: Date<'_>, consumed: usize) -> Upgrade {
    Upgrade::Refuse {
        response: refusal(reason, date, false, false),
        consumed,
        reason,
        keep_alive: false,
    }
}

fn refusal(reason: Refusal, date: Date<'_>, keep_alive: bool, is_head: bool) -> Bytes {
    let status = reason.status();
    let phrase = reason.phrase();
    let version = if reason.tells_version() {
        "Sec-Websocket-Version: 13\r\n"
    } else {
        ""
    };
    let date = date
        .and_then(|date| Some(format!("Date: {}\r\n", date()?)))
        .unwrap_or_default();
    let connection = if keep_alive { "" } else { "Connection: close\r\n" };
    let len = reason.body().len();
    let body = if is_head { "" } else { reason.body() };
    format!(
        "HTTP/1.1 {status} {phrase}\r\n\
         Content-Type: text/plain; charset=utf-8\r\n\
         {version}\
         X-Content-Type-Options: nosniff\r\n\
         {date}\
         Content-Length: {len}\r\n\
         {connection}\
         \r\n\
         {body}"
    )
    .into()
}

/// The header block at the start of `bytes`, with the empty line that ends it. As in the original, a line may end without
/// a carriage return. It doesn't end within the first `searched` bytes.
fn head_of(bytes: &[u8], searched: usize) -> Option<&[u8]> {
    // The line end before the last may be among them.
    let from = searched.saturating_sub(2);
    let line_ends = bytes.iter().enumerate().skip(from).filter(|&(_, &byte)| byte == b'\n');
    let end = line_ends.map(|(at, _)| at + 1).find_map(|at| match bytes.get(at..)? {
        [b'\n', ..] => Some(at + 1),
        [b'\r', b'\n', ..] => Some(at + 2),
        _ => None,
    })?;
    bytes.get(..end)
}

/// HTTP/1.1 demands exactly one `Host`.
fn has_one_host(request: &Request<'_, '_>) -> bool {
    let count = request.headers.values("Host").count();
    count == 1 || (count == 0 && request.version == Some(0))
}

/// Whether a body follows; a length that can't be read counts as one.
fn has_body(headers: &(impl HeaderFields + ?Sized)) -> bool {
    headers.values("Transfer-Encoding").next().is_some()
        || headers.values("Content-Length").any(|length| length != b"0")
}

/// Whether a header that is a list, perhaps spread over several fields, has an element equal to `token`, whatever the
/// ASCII case.
fn has_token(headers: &(impl HeaderFields + ?Sized), name: &str, token: &str) -> bool {
    headers
        .values(name)
        .flat_map(|value| value.split(|&byte| byte == b','))
        .any(|element| element.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests;
