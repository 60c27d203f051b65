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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "GET /ws/entity-sync/ HTTP/1.1\r\nHost: 127.0.0.1:8081\r\nUser-Agent: Go-http-client/1.1\r\nConnection: Upgrade\r\nSec-WebSocket-Key: ozdXINuS7gRXM2loRNMN8Q==\r\nSec-WebSocket-Version: 13\r\nUpgrade: websocket\r\n\r\n";
    const ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ZYud57x53lMRng1FXzD2lkbc7o0=\r\n\r\n";
    const BAD_REQUEST: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nSec-Websocket-Version: 13\r\nX-Content-Type-Options: nosniff\r\nContent-Length: 12\r\n\r\nBad Request\n";
    const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\nSec-Websocket-Version: 13\r\nX-Content-Type-Options: nosniff\r\nContent-Length: 10\r\n\r\nForbidden\n";
    const NOT_FOUND: &str = "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nContent-Length: 19\r\n\r\n404 page not found\n";
    const NOT_ALLOWED: &str = "HTTP/1.1 405 Method Not Allowed\r\nContent-Type: text/plain; charset=utf-8\r\nSec-Websocket-Version: 13\r\nX-Content-Type-Options: nosniff\r\nContent-Length: 19\r\n\r\nMethod Not Allowed\n";

    /// The status of the answer, and whether the connection stays.
    fn answer(rules: &UpgradeRules, request: &str) -> (u16, bool) {
        match upgrade(rules, None, request.as_bytes(), 0) {
            Upgrade::Incomplete => (0, true),
            Upgrade::Accept { response, consumed, .. } => {
                assert_eq!(response.len(), 129);
                assert_eq!(consumed, request.len());
                (101, true)
            }
            Upgrade::Refuse {
                response, keep_alive, ..
            } => {
                let response = std::str::from_utf8(&response).expect("ASCII");
                let says_close = response.contains("\r\nConnection: close\r\n");
                assert_eq!(says_close, !keep_alive);
                (response[9..12].parse().expect("a status"), keep_alive)
            }
        }
    }

    /// The example with some text replaced.
    fn with(old: &str, new: &str) -> String {
        assert!(EXAMPLE.contains(old), "{old}");
        EXAMPLE.replacen(old, new, 1)
    }

    fn with_header(header: &str) -> String {
        with("User-Agent: Go-http-client/1.1", header)
    }

    #[test]
    fn requests_are_answered_as_the_original_answered_them() {
        let host = "Host: 127.0.0.1:8081";
        let connection = "Connection: Upgrade";
        let protocol = "Upgrade: websocket";
        let version = "Sec-WebSocket-Version: 13";
        let key = "Sec-WebSocket-Key: ozdXINuS7gRXM2loRNMN8Q==";
        let path = "/ws/entity-sync/";
        // One row, one line.
        #[rustfmt::skip]
        let rows = [
            (EXAMPLE.to_owned(), 101, true),
            (EXAMPLE.replace("\r\n", "\n"), 101, true),
            (with(path, "/ws/entity-sync/?a=b&token=1"), 101, true),
            (with_header("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"), 101, true),
            (with_header("Sec-WebSocket-Protocol: chat, superchat"), 101, true),
            (with(connection, "Connection: keep-alive, Upgrade"), 101, true),
            (with(connection, "connection:keep-alive\r\nCONNECTION:  upgrade \t"), 101, true),
            (with(connection, "Connection: upgrade").replace(protocol, "Upgrade: WebSocket"), 101, true),
            (with(connection, "Connection: close, Upgrade"), 101, true),
            // Origins.
            (with_header("Origin: http://127.0.0.1:8081"), 101, true),
            (with_header("Origin: https://127.0.0.1:8081"), 101, true),
            (with_header("Origin: http://localhost:8081").replace(host, "Host: LOCALHOST:8081"), 101, true),
            (with_header("Origin: http://[::1]:80").replace(host, "Host: [::1]:80"), 101, true),
            (with_header("Origin: http://example.com:8081"), 403, true),
            (with_header("Origin: http://127.0.0.1:8082"), 403, true),
            (with_header("Origin: http://127.0.0.1"), 403, true),
            (with_header("Origin: null"), 403, true),
            (with_header("Origin: null").replace(host, "Host: null"), 403, true),
            (with_header("Origin:"), 403, true),
            (with_header("Origin:").replace(host, "Host:"), 403, true),
            (with_header("Origin: http://[::1"), 403, true),
            (with_header("Origin: http://127.0.0.1:8081.example.com"), 403, true),
            (with_header("Origin: http://127.0.0.1:8081@example.com"), 403, true),
            // Paths.
            (with(path, "/ws/entity-sync"), 404, true),
            (with(path, "/ws/entity-sync/x"), 404, true),
            (with(path, "/WS/entity-sync/"), 404, true),
            (with(path, "/"), 404, true),
            (with(path, "*"), 404, true),
            (with(path, "//ws/entity-sync/"), 404, true),
            (with(path, "/ws/entity%2Dsync/"), 404, true),
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 404, true),
            ("POST / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 404, true),
            // Not an upgrade.
            ("GET /ws/entity-sync/ HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 400, true),
            ("POST /ws/entity-sync/ HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 400, true),
            (with("\r\nUpgrade: websocket", ""), 400, true),
            (with(connection, "Connection: keep-alive"), 400, true),
            (with(protocol, "Upgrade: h2c"), 400, true),
            (with(version, "Sec-WebSocket-Version: 8"), 400, true),
            (with(version, "X: 13"), 400, true),
            (with(key, "X: y"), 400, true),
            (with(key, "Sec-WebSocket-Key:"), 400, true),
            (with(key, "Sec-WebSocket-Key: YWJj"), 400, true),
            (with(key, "Sec-WebSocket-Key: @@@"), 400, true),
            (with(key, "Sec-WebSocket-Key: ozdXINuS7gRXM2loRNMN8QAA"), 400, true),
            (with(key, "Sec-WebSocket-Key: ozdXINuS7gRXM2loRNMN-Q=="), 400, true),
            (with("GET", "POST"), 405, true),
            (with("GET", "HEAD"), 405, true),
            // Where the original checked one before the other.
            (with("GET", "POST").replace(version, "X: y"), 405, true),
            (with_header("Origin: null").replace(key, "X: y"), 403, true),
            (with_header("Origin: null").replace(version, "X: y"), 400, true),
            // Connections that end.
            (with(connection, "Connection: close"), 400, false),
            (with(path, "/").replace(connection, "Connection: Close"), 404, false),
            (with("HTTP/1.1", "HTTP/1.0"), 400, false),
            ("GET / HTTP/1.0\r\n\r\n".to_owned(), 404, false),
            (with_header("Content-Length: 5"), 400, false),
            (with_header("Content-Length: x"), 400, false),
            (with_header("Content-Length: 0"), 101, true),
            (with_header("Transfer-Encoding: chunked"), 400, false),
            (with("GET", "POST").replace(host, "Host: x\r\nContent-Length: 5"), 405, false),
            (with("HTTP/1.1", "HTTP/2.0"), 400, false),
            (with(host, "X: y"), 400, false),
            (with(host, "Host: 127.0.0.1:8081\r\nHost: x"), 400, false),
            (with(host, "Host 127.0.0.1:8081"), 400, false),
            ("\r\n\r\n".to_owned(), 400, false),
            ("\n\n".to_owned(), 400, false),
            // Targets in absolute form, whose authority goes before Host.
            (with(path, "http://127.0.0.1:8081/ws/entity-sync/?a=b"), 101, true),
            (with(path, "WS://x/ws/entity-sync/"), 101, true),
            (with(path, "http://x:80/ws/entity-sync/").replace("User-Agent:", "Origin: http://x\r\nUser-Agent:"), 101, true),
            (with(path, "http://x/ws/entity-sync/").replace("User-Agent:", "Origin: http://127.0.0.1:8081\r\nUser-Agent:"), 403, true),
            (with(path, "http://x"), 404, true),
            (with(path, "http://x?/ws/entity-sync/"), 404, true),
            (with(path, "http:///ws/entity-sync/"), 400, true),
            (with(path, "http://me@x/ws/entity-sync/"), 400, true),
            (with(path, "ftp://x/ws/entity-sync/"), 404, true),
            // Ports that are left out.
            (with_header("Origin: https://name").replace(host, "Host: name:443"), 101, true),
            (with_header("Origin: http://name").replace(host, "Host: name:443"), 403, true),
            (format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "a:b\r\n".repeat(128)), 431, false),
        ];
        for (request, status, keep_alive) in rows {
            let answer = answer(&UpgradeRules::default(), &request);
            assert_eq!(answer, (status, keep_alive), "{request}");
        }
    }

    #[test]
    fn tls_is_noticed_by_its_first_byte() {
        for hello in [&b"\x16"[..], b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01\n\n"] {
            match upgrade(&UpgradeRules::default(), None, hello, 0) {
                Upgrade::Refuse {
                    response,
                    reason,
                    keep_alive,
                    ..
                } => {
                    assert_eq!((&response[..], reason, keep_alive), (&b""[..], Refusal::Tls, false));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_name_that_is_not_trusted_is_told_what_to_configure() {
        let mut rules = UpgradeRules {
            hosts: Hosts::Named(vec!["sync.example".to_owned()]),
            ..UpgradeRules::default()
        };
        let evil = with(
            "Host: 127.0.0.1:8081",
            "Host: evil.example:8081\r\nOrigin: http://evil.example:8081",
        );
        assert_eq!(answer(&rules, &evil), (403, true));
        let own = evil.replace("evil.example", "sync.example");
        for good in [EXAMPLE, &own] {
            assert_eq!(answer(&rules, good), (101, true));
        }
        // The target goes before the field.
        let target = with("/ws/entity-sync/", "http://evil.example/ws/entity-sync/");
        assert_eq!(answer(&rules, &target), (403, true));
        match upgrade(&rules, None, evil.as_bytes(), 0) {
            Upgrade::Refuse { response, reason, .. } => {
                let response = String::from_utf8(response.to_vec()).expect("text");
                assert_eq!(reason, Refusal::UntrustedHost);
                for part in ["HTTP/1.1 403 Forbidden\r\n", "--allowed-host NAME", "--origin"] {
                    assert!(response.contains(part), "{response}");
                }
            }
            other => panic!("{other:?}"),
        }
        rules.hosts = Hosts::Auto;
        assert_eq!(answer(&rules, &evil), (101, true));
    }

    #[test]
    fn responses_are_the_originals_without_the_date() {
        let bare_head = NOT_ALLOWED.strip_suffix("Method Not Allowed\n").expect("a body");
        for (request, expected) in [
            (EXAMPLE.to_owned(), ACCEPTED),
            (with("Sec-WebSocket-Version: 13", "X: y"), BAD_REQUEST),
            (with_header("Origin: null"), FORBIDDEN),
            (with("/ws/entity-sync/", "/"), NOT_FOUND),
            (with("GET", "POST"), NOT_ALLOWED),
            (with("GET", "HEAD"), bare_head),
        ] {
            match upgrade(&UpgradeRules::default(), None, request.as_bytes(), 0) {
                Upgrade::Accept { response, consumed, .. } | Upgrade::Refuse { response, consumed, .. } => {
                    assert_eq!(response, expected);
                    assert_eq!(consumed, request.len());
                }
                Upgrade::Incomplete => panic!("incomplete: {request}"),
            }
        }
    }

    #[test]
    fn what_follows_the_request_is_left_alone() {
        for next in ["\u{1}\u{5}", EXAMPLE, "\r\n\r\n"] {
            let received = format!("{EXAMPLE}{next}");
            let upgrade = upgrade(&UpgradeRules::default(), None, received.as_bytes(), 0);
            let expected = Upgrade::Accept {
                response: ACCEPTED.into(),
                consumed: EXAMPLE.len(),
                wants_snapshots: false,
            };
            assert_eq!(upgrade, expected);
        }
    }

    #[test]
    fn a_query_may_ask_for_snapshots() {
        for (query, expected) in [
            ("", false),
            ("?snapshot=1", true),
            ("?token=x&snapshot=1&y", true),
            ("?snapshot=0", false),
            ("?snapshot", false),
            ("?snapshot=", false),
            ("?snapshot=10", false),
            ("?xsnapshot=1", false),
            ("?Snapshot=1", false),
            ("?x=?snapshot=1", false),
            ("?x=1;snapshot=1", false),
        ] {
            let request = with("/ws/entity-sync/", &format!("/ws/entity-sync/{query}"));
            match upgrade(&UpgradeRules::default(), None, request.as_bytes(), 0) {
                Upgrade::Accept {
                    response,
                    wants_snapshots,
                    ..
                } => {
                    assert_eq!(wants_snapshots, expected, "{query}");
                    // Nothing else is different.
                    assert_eq!(response, ACCEPTED);
                }
                other => panic!("{query}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_request_may_come_byte_by_byte() {
        let rules = UpgradeRules::default();
        for len in 0..EXAMPLE.len() {
            let received = &EXAMPLE.as_bytes()[..len];
            for searched in 0..=len {
                assert_eq!(upgrade(&rules, None, received, searched), Upgrade::Incomplete);
            }
            // Wherever its last piece begins.
            let whole = upgrade(&rules, None, EXAMPLE.as_bytes(), len);
            assert!(
                matches!(whole, Upgrade::Accept { consumed, .. } if consumed == EXAMPLE.len()),
                "{len}"
            );
        }
    }

    #[test]
    fn a_request_may_be_too_long() {
        let mut rules = UpgradeRules {
            max_request_bytes: EXAMPLE.len(),
            ..UpgradeRules::default()
        };
        assert_eq!(answer(&rules, EXAMPLE), (101, true));
        rules.max_request_bytes -= 1;
        assert_eq!(answer(&rules, EXAMPLE), (431, false));
        let cut = &EXAMPLE[..rules.max_request_bytes - 1];
        assert_eq!(answer(&rules, cut), (0, true));
        // Nobody needs to buffer more to be told.
        let cut = &EXAMPLE[..rules.max_request_bytes];
        assert_eq!(answer(&rules, cut), (431, false));
    }

    #[test]
    fn paths_and_origins_can_be_configured() {
        let mut rules = UpgradeRules {
            paths: vec!["/a".to_owned(), "/b".to_owned()],
            ..UpgradeRules::default()
        };
        assert_eq!(answer(&rules, EXAMPLE), (404, true));
        rules.paths.push("/ws/entity-sync/".to_owned());
        let foreign = with_header("Origin: HTTPS://app.example.com");
        assert_eq!(answer(&rules, EXAMPLE), (101, true));
        assert_eq!(answer(&rules, &foreign), (403, true));
        rules.origins = Origins::List(vec!["https://App.example.com".to_owned()]);
        assert_eq!(answer(&rules, &foreign), (101, true));
        assert_eq!(answer(&rules, EXAMPLE), (101, true));
        assert_eq!(
            answer(&rules, &with_header("Origin: http://127.0.0.1:8081")),
            (403, true)
        );
        assert_eq!(
            answer(&rules, &with_header("Origin: http://app.example.com")),
            (403, true)
        );
        rules.origins = Origins::Any;
        assert_eq!(answer(&rules, &with_header("Origin: null")), (101, true));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>, end: bool) {
            let mut bytes = bytes;
            if end {
                bytes.extend(b"\r\n\r\n");
            }
            let _ = upgrade(&UpgradeRules::default(), None, &bytes, 0);
        }

        #[test]
        fn damaged_requests_never_panic(
            damage in prop::collection::vec((0..EXAMPLE.len(), any::<u8>()), 1..4),
        ) {
            let mut bytes = EXAMPLE.as_bytes().to_owned();
            for (at, byte) in damage {
                bytes[at] = byte;
            }
            if let Upgrade::Accept { consumed, .. } | Upgrade::Refuse { consumed, .. } =
                upgrade(&UpgradeRules::default(), None, &bytes, 0)
            {
                prop_assert!(consumed <= bytes.len());
            }
        }
    }
}
