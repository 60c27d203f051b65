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
