//! PROTOCOL, section 2: messages. And the session of section 0, which is made of them.

use super::case::{
    ACCEPTED, Case, REQUEST, S, Setup, Step, close, frame, masked, nothing, notify, notify_100, pushed, read_for, text,
    upgraded,
};

const UNSUBSCRIBE: &str = r#"{"action":"unsubscribe","body":{"id":"100","entity":"items"}}"#;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![session()];
    cases.extend(subscribing());
    cases.extend(snapshots());
    cases.extend(secrets());
    cases.extend(ignored());
    cases.extend(accepted());
    cases.extend(keys());
    cases.extend(changed());
    cases.extend(passed());
    cases.extend(registered());
    cases
}

fn case(row: &'static str, steps: impl IntoIterator<Item = Step>) -> Case {
    Case::new(2, row, "", upgraded(steps))
}

fn secret(json: &str) -> Step {
    text(format!(r#"{{"action":"secret","body":{json}}}"#))
}

fn session() -> Case {
    let row = br#"{"ID":"100","Closed":true,"ClosedDate":"2026-11-23T18:42:26.373650665Z"}"#;
    let subscribe = text(r#"{"action":"subscribe","body":{"entity":"items","id":"100"}}"#);
    let mut steps = vec![subscribe, nothing()];
    for _ in 0..3 {
        let pushed = [&b"\x81\x48"[..], row].concat();
        steps.extend([Step::Rows(vec![row.to_vec()]), notify_100(), Step::Expect(pushed)]);
    }
    let goodbye = Step::Send(masked(0x88, b"\x03\xe8"));
    steps.extend([goodbye, Step::ExpectEnd(close(1000, ""))]);
    Case::new(0, "a real session of the shipped example", "", upgraded(steps))
}

fn subscribing() -> Vec<Case> {
    let pushed_100 = || Step::Expect(b"\x81\x1c{\"id\":\"100\",\"ts\":1,\"pad\":\"\"}".to_vec());
    let s_101 = S.replace("100", "101");
    // One row, one line.
    #[rustfmt::skip]
    let cases = vec![
        case("S, then notify", [text(S), nothing(), notify_100(), pushed_100(), read_for("")]),
        case("S twice, then notify", [text(S), text(S), nothing(), notify_100(), pushed_100(), read_for("")]),
        case("S twice, one unsubscribe, notify", [text(S), text(S), text(UNSUBSCRIBE), nothing(), notify_100(), nothing(), Step::Reads(vec![])]),
        case("unsubscribe of something never subscribed", [text(UNSUBSCRIBE), nothing(), text(S), nothing(), notify_100(), pushed_100()]),
        case("S for 100 and 101; notify 100, 101, 102", [text(S), text(s_101), nothing(), notify_100(), pushed_100(), notify("items", "101"), pushed(["101"]), notify("items", "102"), nothing()]),
    ];
    cases
}

/// Added: the query of the request may ask for the present state. Who doesn't ask notices nothing.
fn snapshots() -> Vec<Case> {
    const ROW: &str = "added: ?snapshot=1 answers each new subscription";
    let asking = |query: &str| {
        let request = REQUEST.replacen("sync/ ", &format!("sync/{query} "), 1);
        [Step::Send(request.into()), Step::Receive(ACCEPTED.into())]
    };
    let answered = [
        text(S),
        pushed(["100"]),
        read_for(""),
        text(S),
        nothing(),
        notify_100(),
        pushed(["100"]),
    ];
    let unanswered = [text(S), nothing(), Step::Reads(vec![]), notify_100(), pushed(["100"])];
    let again = [text(UNSUBSCRIBE), text(S), pushed(["100"])];
    let with = asking("?a=b&snapshot=1").into_iter().chain(answered).chain(again);
    let without = asking("?snapshot=0").into_iter().chain(unanswered);
    vec![
        Case::new(2, ROW, "asked", with.collect()),
        Case::new(2, ROW, "not asked", without.collect()),
    ]
}

fn secrets() -> Vec<Case> {
    // Audience::Secret of this, as the configuration's default has it.
    let reads_for = |secret| [nothing(), notify_100(), pushed(["100"]), read_for(secret)];
    let after_one = |json| [secret("\"one\""), text(S), secret(json)];
    // One row, one line: row, messages, what the resolver gets.
    #[rustfmt::skip]
    let table = [
        ("secret before S", vec![secret("\"s3cr3t\""), text(S)], "s3cr3t"),
        ("S before secret", vec![text(S), secret("\"s3cr3t\"")], "s3cr3t"),
        ("secret \"one\", S, secret \"two\"", after_one("\"two\"").into(), "two"),
        ("secret body number / object", after_one("5").into(), "one"),
        ("secret body number / object", after_one("{}").into(), "one"),
        ("secret body null, after secret \"one\"", after_one("null").into(), ""),
        ("secret body missing", vec![secret("\"one\""), text(S), text(r#"{"action":"secret"}"#)], "one"),
        ("secret body \"\"", after_one("\"\"").into(), ""),
    ];
    let cases = table.map(|(row, messages, secret)| case(row, messages.into_iter().chain(reads_for(secret))));
    let both = S.replace("100", "101");
    // One secret for all of a connection's subscriptions, whenever it came.
    let all = case(
        "S before secret, for all subscriptions",
        [
            text(S),
            text(both),
            secret("\"s3cr3t\""),
            nothing(),
            notify("items", "101"),
            notify_100(),
            pushed(["101", "100"]),
            Step::Reads(
                ["101", "100"]
                    .map(|id| ("items".into(), id.into(), "s3cr3t".into()))
                    .into(),
            ),
        ],
    );
    cases.into_iter().chain([all]).collect()
}

/// Nothing is sent, nothing is subscribed to, the connection stays and later messages work.
fn ignored() -> Vec<Case> {
    const PASS_THROUGH: &str = "messages without an action, no handler";
    const UNKNOWN: &str = "unknown action; case of actions";
    const NOT_JSON: &str = "invalid JSON and the like";
    const NO_KEY: &str = "subscribe, body no object";
    const NOT_A_STRING: &str = "numeric id, id array, numeric entity";
    // One example, one line.
    #[rustfmt::skip]
    let table: Vec<(&str, &[u8])> = vec![
        (PASS_THROUGH, br#"{"action":"","body":{"id":"100","entity":"items"}}"#),
        (PASS_THROUGH, br#"{"body":{"id":"100","entity":"items"}}"#),
        (PASS_THROUGH, br#"{"action":null,"body":{"id":"100","entity":"items"}}"#),
        (PASS_THROUGH, b"{}"),
        (PASS_THROUGH, b"null"),
        (PASS_THROUGH, b" \t{\"x\":\"\\u00e9\"}\r\n"),
        (UNKNOWN, br#"{"action":"foo","body":{"id":"100","entity":"items"}}"#),
        (UNKNOWN, br#"{"action":"Subscribe","body":{"id":"100","entity":"items"}}"#),
        (UNKNOWN, br#"{"action":"subscribe ","body":{"id":"100","entity":"items"}}"#),
        ("action a number", br#"{"action":5,"body":{"id":"100","entity":"items"}}"#),
        (NOT_JSON, br#"{"action":"subscribe","body":{"id":"100","entity":"items"}"#),
        (NOT_JSON, b""),
        (NOT_JSON, br#"{"action":"subscribe","body":{"id":"100","entity":"items"}}x"#),
        (NOT_JSON, br#"{"action":"subscribe","body":{"id":"100","entity":"items"}}{"action":""}"#),
        (NOT_JSON, b"\xef\xbb\xbf{\"action\":\"subscribe\",\"body\":{\"id\":\"100\",\"entity\":\"items\"}}"),
        (NOT_JSON, b"[]"),
        (NOT_JSON, b"\"str\""),
        (NOT_JSON, b"5"),
        (NOT_JSON, b"true"),
        (NOT_JSON, b"{\"x\":\"a\tb\",\"action\":\"subscribe\",\"body\":{\"id\":\"100\",\"entity\":\"items\"}}"),
        (NOT_JSON, br#"{"x":01,"action":"subscribe","body":{"id":"100","entity":"items"}}"#),
        ("S with invalid JSON in an unknown field", br#"{"action":"subscribe","body":{"id":"100","entity":"items"},"z":}"#),
        ("key act\\u0131on (dotless i)", br#"{"act\u0131on":"subscribe","body":{"id":"100","entity":"items"}}"#),
        ("subscribe, body missing", br#"{"action":"subscribe"}"#),
        (NO_KEY, br#"{"action":"subscribe","body":"items"}"#),
        (NO_KEY, br#"{"action":"subscribe","body":["items","100"]}"#),
        (NO_KEY, br#"{"action":"subscribe","body":100}"#),
        (NO_KEY, br#"{"action":"subscribe","body":"{\"id\":\"100\",\"entity\":\"items\"}"}"#),
        (NOT_A_STRING, br#"{"action":"subscribe","body":{"id":100,"entity":"items"}}"#),
        (NOT_A_STRING, br#"{"action":"subscribe","body":{"id":["100"],"entity":"items"}}"#),
        (NOT_A_STRING, br#"{"action":"subscribe","body":{"id":"100","entity":5}}"#),
        // These are accepted silently and subscribe, but to something that is never pushed.
        ("subscribe, body null / {}", br#"{"action":"subscribe","body":null}"#),
        ("subscribe, body null / {}", br#"{"action":"subscribe","body":{}}"#),
        ("entity missing, unknown, or in another case", br#"{"action":"subscribe","body":{"id":"100"}}"#),
        ("entity missing, unknown, or in another case", br#"{"action":"subscribe","body":{"id":"100","entity":"nope"}}"#),
        ("entity missing, unknown, or in another case", br#"{"action":"subscribe","body":{"id":"100","entity":"Items"}}"#),
    ];
    let mut cases: Vec<Case> = table
        .into_iter()
        .map(|(row, message)| ignored_case(row, message))
        .collect();
    // What would be unsubscribed from stays.
    for (row, message) in [
        ("unSubscribe is unknown", UNSUBSCRIBE.replacen('s', "S", 1)),
        (
            "unsubscribe with body missing or numeric id",
            r#"{"action":"unsubscribe"}"#.to_owned(),
        ),
        (
            "unsubscribe with body missing or numeric id",
            UNSUBSCRIBE.replace("\"100\"", "100"),
        ),
    ] {
        cases.push(case(
            row,
            [text(S), text(&message), nothing(), notify_100(), pushed(["100"])],
        ));
    }
    cases
}

/// With a handler, messages without an action are passed to it as they came, and nothing is sent to the client.
fn passed() -> Vec<Case> {
    // One example, one line.
    #[rustfmt::skip]
    let table: Vec<&[u8]> = vec![
        br#"{"action":"","body":{"id":"100","entity":"items"}}"#,
        br#"{"body":{"id":"100","entity":"items"}}"#,
        br#"{"action":null,"x":1}"#,
        b"{}",
        b"null",
        b" \t{\"x\":\"\\u00e9\"}\r\n",
        br#"{"act\u0131on":"subscribe"}"#,
    ];
    let row = "action \"\" / missing / null / {} / null (top level), pass-through handler installed";
    let handed = |secret: &str, message: &[u8]| Step::Passed(vec![(secret.to_owned(), message.to_vec())]);
    let mut cases: Vec<Case> = table
        .into_iter()
        .map(|message| {
            let steps = [text(message), handed("", message), nothing()];
            Case::new(2, row, message.escape_ascii().to_string(), upgraded(steps)).on(Setup::PassThrough)
        })
        .collect();
    let steps = [
        secret(r#""one""#),
        Step::Send(masked(0x82, b"{\"x\":\"\xff\"}")),
        handed("one", b"{\"x\":\"\xff\"}"),
        nothing(),
    ];
    cases.push(Case::new(2, row, "binary, with a secret", upgraded(steps)).on(Setup::PassThrough));
    let steps = [
        text(r#"{"action":"foo"}"#),
        text("{"),
        text("5"),
        Step::Passed(Vec::new()),
        nothing(),
    ];
    cases.push(Case::new(2, row, "and nothing else", upgraded(steps)).on(Setup::PassThrough));
    cases
}

/// PROTOCOL, changed on purpose: entities that are registered, and `Delivery::Every`.
fn registered() -> Vec<Case> {
    let every = r#"{"action":"subscribe","body":{"entity":"every","id":"100"}}"#;
    let nope = r#"{"action":"subscribe","body":{"entity":"nope","id":"100"}}"#;
    let cases = [
        (
            "changed: notify of an entity that nobody registered is an error",
            vec![
                text(nope),
                nothing(),
                Step::NotifyFails("nope".to_owned(), "100".to_owned()),
                nothing(),
                text(S),
                nothing(),
                notify_100(),
                pushed(["100"]),
            ],
        ),
        (
            "changed: Delivery::Every gives one read and one push per notify, in order",
            vec![
                text(every),
                nothing(),
                Step::Rows(vec![b"1".to_vec(), b"2".to_vec(), b"3".to_vec()]),
                notify("every", "100"),
                notify("every", "100"),
                notify("every", "100"),
                Step::Expect([frame(b"1"), frame(b"2"), frame(b"3")].concat()),
            ],
        ),
    ];
    let on_registered = |(row, steps)| Case::new(2, row, "", upgraded(steps)).on(Setup::Registered);
    cases.into_iter().map(on_registered).collect()
}

/// PROTOCOL, changed on purpose: rejected messages and violations are counted, and logged at a limited rate.
#[test]
fn changed_rejected_messages_and_violations_are_counted_and_told_at_a_limited_rate() {
    use std::sync::{Arc, Mutex};

    use entity_sync_mio::{Config, Reply, Request, Server};
    use entity_sync_tests::Client;

    let told = Arc::new(Mutex::new(Vec::new()));
    let of_server = told.clone();
    let mut config = Config::new(["127.0.0.1:0".parse().unwrap()]);
    config.core.on_incident = Some(Arc::new(move |it| of_server.lock().unwrap().push(it.to_string())));
    let server = Server::start(config, |_: Request, _: Reply| {}).unwrap();
    let mut client = Client::connect(server.addresses()[0]);
    for _ in 0..1000 {
        client.send("{nonsense");
    }
    client.sync();
    let told = told.lock().unwrap().clone();
    assert!(told[0].ends_with("message rejected: not one JSON value"), "{told:?}");
    // Ten a second, and on no machine does this take 50 s.
    assert!(told.len() < 500, "{}", told.len());
    assert_eq!(server.handle().shard_counts().rejected_messages, 1000);
    drop(std::io::Write::write_all(client.stream(), &[0xff, 0x80, 0, 0, 0, 0]));
    assert_eq!(client.close_code(), Some(1002));
    assert_eq!(server.handle().shard_counts().violations, 1);
}

fn ignored_case(row: &'static str, message: &[u8]) -> Case {
    // Nobody knows what these would have subscribed to, so all of it changes.
    let keys = [("items", "100"), ("items", ""), ("", "100"), ("", ""), ("nope", "100")];
    let notifies = keys.map(|(entity, id)| notify(entity, id));
    let before = [text(message), nothing()];
    let after = [nothing(), text(S), nothing(), notify_100(), pushed(["100"])];
    let steps = before.into_iter().chain(notifies).chain(after);
    Case::new(2, row, message.escape_ascii().to_string(), upgraded(steps))
}

/// These subscribe to item 100, and to nothing else that one of them names.
fn accepted() -> Vec<Case> {
    const SAME: &str = "same as S";
    const UNKNOWN_FIELDS: &str = "unknown fields at both levels";
    const FOLDED: &str = "keys are case-insensitive";
    const LAST: &str = "duplicate keys: the last one wins";
    let nested = "[".repeat(100) + &"]".repeat(100);
    let nested =
        format!(r#"{{"x":{nested},"action":"subscribe","body":{{"y":{nested},"id":"100","entity":"items"}}}}"#);
    // One example, one line.
    #[rustfmt::skip]
    let table = [
        (SAME, r#"{"body":{"entity":"items","id":"100"},"action":"subscribe"}"#),
        (SAME, "{\"action\":\"subscribe\",\"body\":{\"id\":\"100\",\"entity\":\"items\"}} \t\r\n"),
        (UNKNOWN_FIELDS, r#"{"x":[1,{"y":2}],"action":"subscribe","body":{"x":[1,{"y":2}],"id":"100","entity":"items"}}"#),
        (UNKNOWN_FIELDS, r#"{"z":1.5e3,"action":"subscribe","body":{"id":"100","entity":"items","z":1.5e3}}"#),
        (UNKNOWN_FIELDS, &nested),
        (FOLDED, r#"{"ACTION":"subscribe","BODY":{"ID":"100","ENTITY":"items"}}"#),
        (FOLDED, r#"{"Action":"subscribe","Body":{"Id":"100","Entity":"items"}}"#),
        ("key written with an escape", r#"{"action":"subscribe","body":{"\u0069d":"100","entity":"items"}}"#),
        (LAST, r#"{"action":"subscribe","body":{"entity":"items","id":"101","id":"100"}}"#),
        (LAST, r#"{"action":"subscribe","body":{"entity":"items","id":"101","ID":"100"}}"#),
        (LAST, r#"{"action":"subscribe","body":{"entity":"items","ID":"101","id":"100"}}"#),
        (LAST, r#"{"action":"foo","action":"subscribe","body":{"entity":"items","id":"100"}}"#),
    ];
    let accepted = |row, message: &str, frame| {
        let steps = [
            frame,
            nothing(),
            notify("items", "101"),
            notify_100(),
            pushed(["100"]),
            read_for(""),
        ];
        Case::new(2, row, message, upgraded(steps))
    };
    let binary = accepted("S in a BINARY frame", S, Step::Send(masked(0x82, S.as_bytes())));
    let texts = table.map(|(row, message)| accepted(row, message, text(message)));
    texts.into_iter().chain([binary]).collect()
}

/// What ids may be: row, JSON of the id, the id.
fn keys() -> Vec<Case> {
    const ALL_WORK: &str = "ids of all kinds";
    // One example, one line.
    #[rustfmt::skip]
    let table = [
        ("id null / missing / \"\"", r#","id":null"#, ""),
        ("id null / missing / \"\"", "", ""),
        ("id null / missing / \"\"", r#","id":"""#, ""),
        (ALL_WORK, r#","id":"a<b>&c""#, "a<b>&c"),
        (ALL_WORK, ",\"id\":\"h\u{e9}llo\u{2603}\u{1f600}\"", "h\u{e9}llo\u{2603}\u{1f600}"),
        (ALL_WORK, r#","id":"h\u00e9llo\u2603\ud83d\ude00""#, "h\u{e9}llo\u{2603}\u{1f600}"),
        (ALL_WORK, ",\"id\":\"\u{2028}\"", "\u{2028}"),
        (ALL_WORK, r#","id":"\u2028""#, "\u{2028}"),
        (ALL_WORK, r#","id":"\u0001""#, "\u{1}"),
        (ALL_WORK, r#","id":"\n""#, "\n"),
        (ALL_WORK, r#","id":"\"""#, "\""),
        ("lone surrogate in id", r#","id":"\ud800""#, "\u{fffd}"),
    ];
    let key = |row, json: &[u8], id: &str, first| {
        let message = [br#"{"action":"subscribe","body":{"entity":"items""#, json, b"}}"].concat();
        let subscribe = Step::Send(masked(first, &message));
        let steps = [
            subscribe,
            nothing(),
            notify("items", "other"),
            notify("items", id),
            pushed([id]),
        ];
        Case::new(2, row, message.escape_ascii().to_string(), upgraded(steps))
    };
    let texts = table.map(|(row, json, id)| key(row, json.as_bytes(), id, 0x81));
    // In a text frame it is a violation, on purpose: see section 3.
    let binary = key(
        "invalid UTF-8 byte ff in id, in a binary frame",
        b",\"id\":\"\xff\"",
        "\u{fffd}",
        0x82,
    );
    texts.into_iter().chain([binary]).collect()
}

fn changed() -> Vec<Case> {
    let dotted = text(r#"{"action":"subscribe","body":{"entity":"items.a","id":"b"}}"#);
    let invalid_row = || Step::Rows(vec![b"{\"\xff\":1}".to_vec()]);
    let row_100 = || frame(super::case::row("100").as_bytes());
    let often = (0..100).map(|_| notify_100());
    // One row, one line.
    #[rustfmt::skip]
    let cases = vec![
        case("changed: key identity is the pair", [dotted, nothing(), notify("items", "a.b"), nothing(), Step::Reads(vec![]), notify("items.a", "b"), pushed(["b"])]),
        case("changed: N notifies may be answered by fewer pushes", [text(S), nothing()].into_iter().chain(often).chain([Step::ExpectUpTo(100, row_100())])),
        case("changed: ... but rows that the client has already are pushed all the same", [text(S), nothing(), notify_100(), pushed(["100"]), notify_100(), pushed(["100"])]),
        // The original sends it. Here the read counts as failed, and the one that repeats it is pushed.
        case("changed: a row that is not valid UTF-8 is the resolver's error", [text(S), nothing(), invalid_row(), notify_100(), Step::Receive(row_100()), Step::RefusedRows(1)]),
    ];
    cases
}
