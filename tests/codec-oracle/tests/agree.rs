//! Core's codec and the oracle's give the same result for the same bytes.

use entity_sync_codec_oracle::{PADDING, decode, decode_in_place};
use entity_sync_core::wire;
use proptest::prelude::*;

/// The rules that each sample is about are those that core's own tests name, with the results.
#[rustfmt::skip]
const SAMPLES: &[&[u8]] = &[
    // What clients say.
    br#"{"action":"subscribe","body":{"entity":"items","id":"100"}}"#,
    br#"{"body":{"id":"100","entity":"items"},"action":"unsubscribe"}"#,
    b" \t\r\n{ \"action\" : \"subscribe\" , \"body\" : { \"id\" : \"100\" , \"entity\" : \"items\" } } \n",
    br#"{"action":"secret","body":"a\nb\u00e9\ud83d\uDE00"}"#,
    br#"{"action":"secret","body":""}"#,
    br#"{"chat":["hello",{"to":null,"n":-1.5e-3}]}"#,
    // Names, and the same one twice.
    br#"{"ACTION":"subscribe","bODy":{"Id":"100","ENTITY":"items"}}"#,
    br#"{"\u0061ction":"subscribe","body":{"\u0069d":"100","entit\u0059":"items"}}"#,
    br#"{"act\u0131on":"subscribe","action\u0000":"subscribe"}"#,
    "{\"act\u{131}on\":\"subscribe\",\"\u{17f}ecret\":1}".as_bytes(),
    br#"{"action":"subscribe","body":{"entity":"items","id":"1","ID":"100"}}"#,
    br#"{"action":"foo","action":"subscribe","body":5,"BODY":{"entity":"items"}}"#,
    br#"{"action":"subscribe","action":null,"body":{"entity":"items","id":"100","id":null}}"#,
    br#"{"action":"subscribe","body":{"entity":"items","id":"100"},"body":null}"#,
    br#"{"action":"subscribe","action":5,"body":{"entity":"items"}}"#,
    br#"{"action":"subscribe","body":{"id":1,"id":"100"}}"#,
    // Types.
    br#"{"action":null}"#,
    br#"{"action":["subscribe"]}"#,
    br#"{"action":"foo"}"#,
    br#"{"action":"Subscribe","body":{}}"#,
    br#"{"action":"subscribe"}"#,
    br#"{"action":"subscribe","body":null}"#,
    br#"{"action":"subscribe","body":{}}"#,
    br#"{"action":"subscribe","body":[{}]}"#,
    br#"{"action":"unsubscribe","body":true}"#,
    br#"{"action":"subscribe","body":{"entity":{"id":"1"},"id":"100"}}"#,
    br#"{"action":"secret","body":null}"#,
    br#"{"action":"secret"}"#,
    br#"{"action":"secret","body":{}}"#,
    b"{}", b" null\n", b"[]", b"\"x\"", b"-0", b"1e9", b"true", b"false",
    // Not JSON.
    b"", b"  ", b"{", b"]", b"nul", b"nullx", b"null null", b"{}{}", b"{}\0", b"\0{}", b"{} \x0c", b"\x0b{}", b"01",
    b"-", b"\xff{}", b"\xc2\xa0{}", b"\xef\xbb\xbf{}", b"\\\"{}", b"{\"x\":\\\"1\"}", b"{\"x\":\"a\tb\"}", b"{\"a\tb\":1}",
    br#"{"action":5,"z":}"#,
    br#"{"action":"subscribe","body":{"id":"100","entity":"items"}"#,
    br#"{"action":"subscribe","body":{"id":"100"}},"#,
    br#"{"n":01}"#, br#"{"n":-01}"#, br#"{"n":+1}"#, br#"{"n":.5}"#, br#"{"n":1.}"#, br#"{"n":1.e1}"#, br#"{"n":1e}"#,
    br#"{"n":0x1}"#, br#"{"n":1-1}"#, br#"{"n":NaN}"#, br#"{"n":1,}"#, br#"{"n":[1,]}"#, br#"{"n" 1}"#, br#"{,}"#,
    br#"{"n":"\x41"}"#, br#"{"n":"\u12g4"}"#, br#"{"\u12":1}"#, br#"{"n":"\ud800\u12"}"#, br#"{"n":"\"#,
    // What simd-json alone rejects, and what looks like it.
    br#"{"action":"subscribe","body":{"entity":"\udbffitems","id":"\ud800\ud800\ud83d\ude00\ude00\ud7ff\ue000"}}"#,
    br#"{"\ud800":"\udc00","action":"secret","body":"\\ud800\ud800\u0041\ud800\""}"#,
    br#"{"n":"\ud800\u12g4"}"#,
    b"{\"action\":\"secret\",\"body\":\"\xff\xe2\x98\xed\xa0\x80\xe2\\n\xf0\x9f\x98\xc3\xa9\"}",
    br#"{"x":[1e999,-1e+999,1e-999,18446744073709551616],"action":"secret","body":"1e999"}"#,
    br#"{"x":018446744073709551616}"#,
    br#"{"x":1e999,"y":\ud800}"#,
    b"{\"x\":1e999,\"y\":\"\xff\\ud800\",\"action\":\"foo\"}",
    b"{\"x\":1e999,\"y\":\"\xff\\ud800\",\"action\":}",
];

#[test]
fn samples() {
    for message in SAMPLES {
        // Everywhere in the blocks of 64 bytes that simd-json looks at.
        for spaces in 0..=64 {
            let mut moved = vec![b' '; spaces];
            moved.extend_from_slice(message);
            agree(&moved);
        }
    }
}

#[test]
fn prefixes_of_samples() {
    for message in SAMPLES {
        for end in 0..message.len() {
            agree(&message[..end]);
        }
    }
}

#[test]
fn keys_too_long() {
    for len in [65_535, 65_536, 65_537] {
        agree(
            format!(
                r#"{{"action":"subscribe","body":{{"entity":"","id":"{}"}}}}"#,
                "x".repeat(len)
            )
            .as_bytes(),
        );
    }
}

#[test]
fn deep_nesting() {
    for depth in [1_000, 1_100, 20_000] {
        let nested = "[".repeat(depth) + &"]".repeat(depth);
        agree(nested.as_bytes());
        agree(format!(r#"{{"x":{nested},"action":"secret","body":{nested}}}"#).as_bytes());
        agree("{\"x\":".repeat(depth).as_bytes());
    }
}

fn agree(message: &[u8]) {
    let expected = wire::decode(message);
    let shown = String::from_utf8_lossy(message);
    assert_eq!(decode(message), expected, "{shown}");

    // In place, a second attempt is impossible.
    let mut buffer = message.to_vec();
    buffer.extend([b'"'; PADDING]);
    let in_place = decode_in_place(&mut buffer, message.len());
    assert!(
        in_place == expected || in_place == Err(wire::WireError::Syntax),
        "{shown}: {in_place:?}"
    );
}

/// What messages are made of. Any sequence may follow, so most are bad, and damage is part of it.
fn fragments() -> impl Strategy<Value = Vec<u8>> {
    #[rustfmt::skip]
    let fragments = prop::sample::select(vec![
        "{", "}", "[", "]", ",", ":", " ", "\"", "\\", "null", "true", "0", "12", "-", ".", "e", "1e999", "99999999999999999999",
        "{\"action\":", "\"subscribe\"", "\"unsubscribe\"", "\"secret\"", ",\"body\":", "{\"entity\":", ",\"ID\":", "\"x\"",
        "\\u0041", "\\ud800", "\\udc00", "\\n", "\u{e9}", "\u{1f600}", "\t",
    ]);
    let fragment = prop_oneof![
        9 => fragments.prop_map(|fragment| fragment.as_bytes().to_vec()),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
    ];
    prop::collection::vec(fragment, 0..24).prop_map(|fragments| fragments.concat())
}

/// An object with the names that count, in any case and order, and values that are mostly good.
fn object(
    names: &'static [&'static str],
    value: impl Strategy<Value = String> + 'static,
) -> impl Strategy<Value = String> {
    let name = (prop::sample::select(names), any::<u16>()).prop_map(|(name, upper)| {
        let letters = name.chars().enumerate();
        letters
            .map(|(i, c)| if upper >> i & 1 == 1 { c.to_ascii_uppercase() } else { c })
            .collect::<String>()
    });
    let member = (name, value).prop_map(|(name, value)| format!("\"{name}\":{value}"));
    prop::collection::vec(member, 0..5).prop_map(|members| format!("{{{}}}", members.join(",")))
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => r#""([a-z]|\\u[0-9a-f]{4}|\\ud[89c-f]00|\\[nt"\\]|é|😀){0,6}""#,
        1 => prop::sample::select(vec!["null", "1e999", "-0.10e+20", "[]", "[{},[1,2]]"]).prop_map(str::to_owned),
    ]
}

fn envelope() -> impl Strategy<Value = String> {
    let action = prop::sample::select(vec![
        r#""subscribe""#,
        r#""unsubscribe""#,
        r#""secret""#,
        r#""""#,
        "null",
    ]);
    let member = prop_oneof![
        4 => action.prop_map(str::to_owned),
        4 => object(&["entity", "id", "other"], value()),
        1 => value(),
    ];
    object(&["action", "action", "body", "body", "other"], member)
}

proptest! {
    #[test]
    fn envelopes(message in envelope()) {
        agree(message.as_bytes());
    }

    #[test]
    fn damaged_envelopes(message in envelope(), at: prop::sample::Index, byte: u8, insert in 0..3_usize) {
        let mut message = message.into_bytes();
        let at = at.index(message.len());
        message.splice(at..at + 1, std::iter::repeat_n(byte, insert));
        agree(&message);
    }

    #[test]
    fn joined_fragments(message in fragments()) {
        agree(&message);
    }
}
