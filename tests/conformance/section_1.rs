//! PROTOCOL, section 1: HTTP and the handshake.

use super::case::{ACCEPTED, Case, REQUEST, Setup, Step, masked};

// The original's answers, at the hour that the test's clock always shows ([`DATE`]).
const BAD_REQUEST: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nSec-Websocket-Version: 13\r\nX-Content-Type-Options: nosniff\r\nDate: Mon, 23 Nov 2026 18:42:26 GMT\r\nContent-Length: 12\r\n\r\nBad Request\n";
const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\nSec-Websocket-Version: 13\r\nX-Content-Type-Options: nosniff\r\nDate: Mon, 23 Nov 2026 18:42:26 GMT\r\nContent-Length: 10\r\n\r\nForbidden\n";
const NOT_FOUND: &str = "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nDate: Mon, 23 Nov 2026 18:42:26 GMT\r\nContent-Length: 19\r\n\r\n404 page not found\n";
const NOT_ALLOWED: &str = "HTTP/1.1 405 Method Not Allowed\r\nContent-Type: text/plain; charset=utf-8\r\nSec-Websocket-Version: 13\r\nX-Content-Type-Options: nosniff\r\nDate: Mon, 23 Nov 2026 18:42:26 GMT\r\nContent-Length: 19\r\n\r\nMethod Not Allowed\n";
const NOT_ALLOWED_HEAD: &str = NOT_ALLOWED.split_at(NOT_ALLOWED.len() - "Method Not Allowed\n".len()).0;

const PATH: &str = "/ws/entity-sync/";
const HOST: &str = "Host: 127.0.0.1:8081";
const CONNECTION: &str = "Connection: Upgrade";
const UPGRADE: &str = "Upgrade: websocket";
const VERSION: &str = "Sec-WebSocket-Version: 13";
const KEY: &str = "Sec-WebSocket-Key: ozdXINuS7gRXM2loRNMN8Q==";

/// The request with some texts replaced.
fn with<const N: usize>(replacements: [(&str, &str); N]) -> String {
    replacements.iter().fold(REQUEST.to_owned(), |request, (old, new)| {
        assert!(request.contains(old), "{old}");
        request.replacen(old, new, 1)
    })
}

/// The request with a header more.
fn and(header: &str) -> String {
    with([("User-Agent: Go-http-client/1.1", header)])
}

/// The request without one of its headers.
fn without(header: &str) -> String {
    with([(&format!("{header}\r\n"), "")])
}

pub(super) fn cases() -> Vec<Case> {
    // One case, one line: row, example, request, answer.
    #[rustfmt::skip]
    let table = [
        ("GET /ws/entity-sync/, proper upgrade", "", REQUEST.to_owned(), ACCEPTED),
        ("same + ?a=b&token=1", "", with([(PATH, "/ws/entity-sync/?a=b&token=1")]), ACCEPTED),
        // An operator will be able to turn compression on; by default it stays off.
        ("Sec-WebSocket-Extensions offered", "", and("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"), ACCEPTED),
        ("Sec-WebSocket-Protocol offered", "", and("Sec-WebSocket-Protocol: chat, superchat"), ACCEPTED),
        ("token lists, case-insensitive", "a list", with([(CONNECTION, "Connection: keep-alive, Upgrade")]), ACCEPTED),
        ("token lists, case-insensitive", "case", with([(CONNECTION, "Connection: upgrade"), (UPGRADE, "Upgrade: WebSocket")]), ACCEPTED),
        ("no Origin header", "", REQUEST.to_owned(), ACCEPTED),
        ("Origin = Host", "http", and("Origin: http://127.0.0.1:8081"), ACCEPTED),
        ("Origin = Host", "https", and("Origin: https://127.0.0.1:8081"), ACCEPTED),
        ("Origin = Host", "differing in case", with([(HOST, "Host: localhost:8081\r\nOrigin: http://LOCALHOST:8081")]), ACCEPTED),
        ("Origin = Host", "differing in case, the other way round", with([(HOST, "Host: LOCALHOST:8081\r\nOrigin: http://localhost:8081")]), ACCEPTED),
        ("Origin other", "host", and("Origin: http://example.com:8081"), FORBIDDEN),
        ("Origin other", "port", and("Origin: http://127.0.0.1:8082"), FORBIDDEN),
        ("Origin other", "null", and("Origin: null"), FORBIDDEN),
        ("Origin other", "empty", and("Origin:"), FORBIDDEN),
        ("Origin other", "unparsable", and("Origin: http://[::1"), FORBIDDEN),
        ("other paths", "no final slash", with([(PATH, "/ws/entity-sync")]), NOT_FOUND),
        ("other paths", "more", with([(PATH, "/ws/entity-sync/x")]), NOT_FOUND),
        ("other paths", "case", with([(PATH, "/WS/entity-sync/")]), NOT_FOUND),
        ("other paths", "root", with([(PATH, "/")]), NOT_FOUND),
        ("no good upgrade", "plain GET", format!("GET {PATH} HTTP/1.1\r\n{HOST}\r\n\r\n"), BAD_REQUEST),
        ("no good upgrade", "Upgrade missing", without(UPGRADE), BAD_REQUEST),
        ("no good upgrade", "Upgrade: h2c", with([(UPGRADE, "Upgrade: h2c")]), BAD_REQUEST),
        ("no good upgrade", "version 8", with([(VERSION, "Sec-WebSocket-Version: 8")]), BAD_REQUEST),
        ("no good upgrade", "version missing", without(VERSION), BAD_REQUEST),
        ("no good upgrade", "key missing", without(KEY), BAD_REQUEST),
        ("no good upgrade", "key empty", with([(KEY, "Sec-WebSocket-Key:")]), BAD_REQUEST),
        ("POST / HEAD with upgrade headers", "POST", with([("GET", "POST")]), NOT_ALLOWED),
        ("POST / HEAD with upgrade headers", "HEAD", with([("GET", "HEAD")]), NOT_ALLOWED_HEAD),
    ];
    let mut cases: Vec<Case> = table
        .map(|(row, example, request, answer)| case(row, example, request, answer))
        .into();
    // Changed on purpose: a list of origins can be configured.
    #[rustfmt::skip]
    let listed = [
        ("listed", and("Origin: https://app.example.com"), ACCEPTED),
        ("listed, differing in case", and("Origin: HTTPS://App.Example.com"), ACCEPTED),
        ("none", REQUEST.to_owned(), ACCEPTED),
        ("the server's own", and("Origin: http://127.0.0.1:8081"), FORBIDDEN),
        ("another scheme", and("Origin: http://app.example.com"), FORBIDDEN),
    ];
    let listed = listed.map(|(example, request, answer)| {
        case("changed: origins can be listed", example, request, answer).on(Setup::ListedOrigin)
    });
    cases.extend(listed);
    // Changed on purpose: what browsers and proxies send.
    let own_host = "Host: sync.example.com:443\r\nOrigin: https://sync.example.com";
    let evil = with([(HOST, "Host: evil.example:8081\r\nOrigin: http://evil.example:8081")]);
    let target = |target: &str| with([(PATH, target)]);
    #[rustfmt::skip]
    let named = [
        ("the usual port is the same origin", "https", with([(HOST, own_host)]), ACCEPTED.to_owned()),
        ("the usual port is the same origin", "of another scheme", with([(HOST, own_host), ("https:", "http:")]), FORBIDDEN.to_owned()),
        ("targets in absolute form", "plain", target("http://127.0.0.1:8081/ws/entity-sync/?a=b"), ACCEPTED.to_owned()),
        ("targets in absolute form", "another path", target("http://127.0.0.1:8081/ws"), NOT_FOUND.to_owned()),
        ("targets in absolute form", "another host", target("http://evil.example/ws/entity-sync/"), untrusted()),
        ("a Host that is not trusted", "of a page", evil, untrusted()),
        ("a Host that is not trusted", "of a program", with([(HOST, "Host: evil.example")]), untrusted()),
        ("requests of up to 64 KiB", "", and(&format!("Cookie: {}", "x".repeat(60_000))), ACCEPTED.to_owned()),
    ];
    cases.extend(named.map(|(what, example, request, answer)| {
        let row = "changed: hosts, targets and lengths";
        case(row, &format!("{what}, {example}"), request, &answer).on(Setup::NamedHost)
    }));
    cases.push(same_segment());
    cases
}

/// After a refusal the connection stays open, so each is followed by a good request. The exact bytes say that there are no
/// other headers; the pings at the end of each case, that nothing follows and frames are understood.
fn case(row: &'static str, example: &str, request: String, answer: &str) -> Case {
    let mut steps = vec![Step::Send(request.into()), Step::Receive(answer.into())];
    if answer != ACCEPTED {
        steps.push(Step::Send(REQUEST.into()));
        steps.push(Step::Receive(ACCEPTED.into()));
    }
    Case::new(1, row, example, steps)
}

/// A 403 that says what to configure.
fn untrusted() -> String {
    let body = entity_sync_mio::Refusal::UntrustedHost.body();
    assert!(body.contains("--allowed-host"));
    let length = format!("Content-Length: {}", body.len());
    FORBIDDEN
        .replace("Content-Length: 10", &length)
        .replace("\r\n\r\nForbidden\n", &format!("\r\n\r\n{body}"))
}

/// Changed on purpose: the original closed.
fn same_segment() -> Case {
    let bytes = [REQUEST.as_bytes(), &masked(0x89, b"hello")].concat();
    let answer = [ACCEPTED.as_bytes(), b"\x8a\x05hello"].concat();
    let steps = vec![Step::Send(bytes), Step::Receive(answer)];
    Case::new(1, "changed: a frame in the same TCP segment is processed", "", steps)
}
