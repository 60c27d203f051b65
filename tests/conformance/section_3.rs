//! PROTOCOL, section 3: frames, limits, pings, close.

use entity_sync_mio::Config;

use super::case::{
    Case, QUICK_DEATH, QUICK_PING, S, Setup, Step, close, masked, nothing, notify_100, pushed, text, upgraded,
};

pub(super) fn cases() -> Vec<Case> {
    // The row as it is, with the original's limit configured; and with ours.
    let mut cases = limits("text of ... bytes; limit 512 as configured", 512, Setup::OriginalLimit);
    cases.extend(limits("changed: the limit is 64 KiB", 64 * 1024, Setup::Default));
    cases.extend(accepted());
    cases.extend(violations());
    cases.extend(closes());
    cases.extend(pushes());
    cases
}

fn case(row: &'static str, example: &str, steps: impl IntoIterator<Item = Step>) -> Case {
    Case::new(3, row, example, upgraded(steps))
}

fn send(first: u8, payload: &[u8]) -> Step {
    Step::Send(masked(first, payload))
}

/// [`S`], with white space up to a length.
fn padded(len: usize) -> Vec<u8> {
    let mut message = S.as_bytes().to_vec();
    message.resize(len, b' ');
    message
}

fn limits(row: &'static str, limit: usize, setup: Setup) -> Vec<Case> {
    let too_long = || Step::ExpectEnd(b"\x88\x02\x03\xf1".to_vec());
    let is_subscribed = || [nothing(), notify_100(), pushed(["100"])];
    let fragments = |len| {
        let message = padded(len);
        let (first, rest) = message.split_at(limit / 2 + 44);
        Step::Send([masked(0x01, first), masked(0x80, rest)].concat())
    };
    let mut header = masked(0x81, &padded(limit + 1));
    header.truncate(header.len() - (limit + 1));
    let cases = [
        case(
            row,
            "exactly the limit",
            [send(0x81, &padded(limit))].into_iter().chain(is_subscribed()),
        ),
        case(row, "one byte more", [send(0x81, &padded(limit + 1)), too_long()]),
        case(row, "70000", [send(0x81, &padded(70_000)), too_long()]),
        case(
            row,
            "only the header announcing one byte more",
            [Step::Send(header), too_long()],
        ),
        case(
            row,
            "two fragments, together one byte more",
            [fragments(limit + 1), too_long()],
        ),
        case(
            row,
            "two fragments, together the limit",
            [fragments(limit)].into_iter().chain(is_subscribed()),
        ),
    ];
    cases.into_iter().map(|case| case.on(setup)).collect()
}

fn accepted() -> Vec<Case> {
    let (begin, end) = S.as_bytes().split_at(20);
    let interrupted = [masked(0x01, begin), masked(0x89, b"mid"), masked(0x80, end)].concat();
    let unmasked = [&[0x81, 0x80 | S.len() as u8, 0, 0, 0, 0], S.as_bytes()].concat();
    let pong = |payload: &[u8]| Step::Expect([&[0x8a, payload.len() as u8], payload].concat());
    // One row, one line.
    #[rustfmt::skip]
    let cases = vec![
        case("fragmented text with a ping between", "", [Step::Send(interrupted), Step::Receive(b"\x8a\x03\x6d\x69\x64".into()), nothing(), notify_100(), pushed(["100"])]),
        case("ping", "empty", [send(0x89, b""), Step::Expect(b"\x8a\x00".into())]),
        case("ping", "hello", [send(0x89, b"hello"), Step::Expect(b"\x8a\x05\x68\x65\x6c\x6c\x6f".into())]),
        case("ping", "125 bytes", [send(0x89, &[b'x'; 125]), pong(&[b'x'; 125])]),
        case("unsolicited pong", "", [send(0x8a, b"x"), nothing(), text(S), nothing(), notify_100(), pushed(["100"])]),
        case("mask key 00000000", "", [Step::Send(unmasked), nothing(), notify_100(), pushed(["100"])]),
    ];
    cases
}

fn violations() -> Vec<Case> {
    let end = |reason| Step::ExpectEnd(close(1002, reason));
    let long_control = b"\x88\x1c\x03\xeacontrol frame length > 125";
    let no_mask = b"\x88\x15\x03\xea\x69\x6e\x63\x6f\x72\x72\x65\x63\x74\x20\x6d\x61\x73\x6b\x20\x66\x6c\x61\x67";
    let unmasked = [&[0x81, S.len() as u8], S.as_bytes()].concat();
    let interrupted = [masked(0x01, b"{"), masked(0x81, S.as_bytes())].concat();
    let negative = [&[0x81, 0xff][..], &[0xff; 8], &[0; 4]].concat();
    // One row, one line.
    #[rustfmt::skip]
    let cases = vec![
        case("ping of 126 bytes", "", [send(0x89, &[b'x'; 126]), Step::ExpectEnd(long_control.into())]),
        case("ping without FIN", "", [send(0x09, b""), end("control frame not final")]),
        case("unmasked frame", "", [Step::Send(unmasked), Step::ExpectEnd(no_mask.into())]),
        case("RSV1 / RSV2 set", "RSV1", [send(0xc1, S.as_bytes()), end("unexpected reserved bits 0x40")]),
        case("RSV1 / RSV2 set", "RSV2", [send(0xa1, S.as_bytes()), end("unexpected reserved bits 0x20")]),
        case("opcode 3 / 0xB", "3", [send(0x83, b""), end("unknown opcode 3")]),
        case("opcode 3 / 0xB", "0xB", [send(0x8b, b""), end("unknown opcode 11")]),
        case("continuation without start", "", [send(0x80, S.as_bytes()), end("continuation after final message frame")]),
        case("new text while a fragmented one is open", "", [Step::Send(interrupted), end("message start before final message frame")]),
        // RFC 6455, section 8.1. The original has no words for these.
        case("changed: invalid UTF-8 text frame is close 1007", "ff fe", [send(0x81, b"\xff\xfe"), Step::ExpectClose(1007)]),
        case("changed: invalid UTF-8 text frame is close 1007", "in an id", [send(0x81, b"{\"action\":\"subscribe\",\"body\":{\"entity\":\"items\",\"id\":\"\xff\"}}"), Step::ExpectClose(1007)]),
        case("changed: a negative 64-bit length is a protocol error", "", [Step::Send(negative), Step::ExpectClose(1002)]),
    ];
    cases
}

fn closes() -> Vec<Case> {
    const ECHOED: &str = "close, code echoed without reason";
    const INVALID: &str = "close 1005 / 1006 / 999 / 5000";
    let invalid_code = close(1002, "invalid close code");
    let invalid_reason = close(1002, "invalid utf8 payload in close frame");
    // One example, one line: row, payload of the close frame, all of the answer.
    #[rustfmt::skip]
    let table: Vec<(&str, &[u8], &[u8])> = vec![
        ("close, empty", b"", b"\x88\x00"),
        (ECHOED, b"\x03\xe8", b"\x88\x02\x03\xe8"),
        (ECHOED, b"\x03\xe8bye", b"\x88\x02\x03\xe8"),
        (ECHOED, b"\x03\xe9", b"\x88\x02\x03\xe9"),
        (ECHOED, b"\x03\xea", b"\x88\x02\x03\xea"),
        (ECHOED, b"\x0b\xb8app", b"\x88\x02\x0b\xb8"),
        (ECHOED, b"\x13\x87", b"\x88\x02\x13\x87"),
        ("close with 1-byte body", b"\x03", b"\x88\x00"),
        (INVALID, b"\x03\xed", &invalid_code),
        (INVALID, b"\x03\xee", &invalid_code),
        (INVALID, b"\x03\xe7", &invalid_code),
        (INVALID, b"\x13\x88", &invalid_code),
        ("close 1000 with invalid UTF-8 reason", b"\x03\xe8\xff", &invalid_reason),
    ];
    let frames = table.into_iter().map(|(row, payload, answer)| {
        let example = payload.escape_ascii().to_string();
        case(row, &example, [send(0x88, payload), Step::ExpectEnd(answer.into())])
    });
    // A pong or a row after the close frame would show.
    let after = [
        masked(0x88, b"\x03\xe8"),
        masked(0x89, b"?"),
        masked(0x81, S.as_bytes()),
    ]
    .concat();
    let ended = Step::ExpectEnd(b"\x88\x02\x03\xe8".into());
    let subscribed = || [text(S), nothing()];
    let others = [
        case(
            "data after a close frame",
            "same segment",
            [Step::Send(after), ended, notify_100(), Step::Reads(vec![])],
        ),
        case(
            "data after a close frame",
            "later",
            [
                send(0x88, b"\x03\xe8"),
                Step::Receive(b"\x88\x02\x03\xe8".into()),
                text(S),
                send(0x89, b"?"),
                Step::ExpectEnd(Vec::new()),
                notify_100(),
                Step::Reads(vec![]),
            ],
        ),
        case(
            "TCP half-close after subscribing",
            "",
            subscribed()
                .into_iter()
                .chain([Step::ShutDown, Step::ExpectEnd(Vec::new())]),
        ),
    ];
    frames.chain(others).collect()
}

fn pushes() -> Vec<Case> {
    let table: [(&[u8], usize); 5] = [
        (b"\x81\x7d", 125),
        (b"\x81\x7e\x00\x7e", 126),
        (b"\x81\x7e\xff\xff", 65_535),
        (b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00", 65_536),
        (b"\x81\x7f\x00\x00\x00\x00\x00\x04\x93\xe0", 300_000),
    ];
    let cases = table.map(|(header, len)| {
        let row: Vec<u8> = (b'a'..=b'z').cycle().take(len).collect();
        let frame = Step::Expect([header, &row].concat());
        let steps = [text(S), nothing(), Step::Rows(vec![row]), notify_100(), frame];
        case(
            "pushes: one unfragmented frame of the row's bytes",
            &format!("{len} bytes"),
            steps,
        )
    });
    cases.into()
}

/// The pings and the end of who doesn't answer them, quicker than they come in earnest. A server sends no two pings within
/// an interval, so who was sent so many has lived for longer than the silent may.
pub(super) fn silence() -> Vec<Case> {
    let core = Config::new([]).core;
    assert_eq!(core.ping_interval.as_secs(), 25, "changed: not 54 s");
    assert_eq!(core.dead_after.as_secs(), 60);
    let pings = 1 + QUICK_DEATH.div_duration_f64(QUICK_PING).ceil() as usize;
    let answered = |answer| [Step::AnswerPings(pings, answer)];
    let cases = [
        case(
            "Ping: no pong, so FIN without a close frame",
            "",
            [Step::IgnorePings(pings)],
        ),
        case("Ping: a client that answers stays", "", answered(masked(0x8a, b""))),
        case(
            "unsolicited pong extends the deadline",
            "",
            answered(masked(0x8a, b"x")),
        ),
        case(
            "changed: data from the client counts as life",
            "",
            answered(masked(0x81, b"{}")),
        ),
    ];
    cases.into_iter().map(|case| case.on(Setup::QuickPings)).collect()
}
