//! The rules of the original's JSON, one by one, and against a slow oracle.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn subscribe(entity: &str, id: &str) -> Result<ClientMessage, WireError> {
    EntityKey::new(entity, id)
        .map(ClientMessage::Subscribe)
        .map_err(Into::into)
}

fn unsubscribe(entity: &str, id: &str) -> Result<ClientMessage, WireError> {
    EntityKey::new(entity, id)
        .map(ClientMessage::Unsubscribe)
        .map_err(Into::into)
}

fn secret(secret: &str) -> Result<ClientMessage, WireError> {
    Ok(ClientMessage::Secret(secret.to_owned()))
}

#[test]
fn messages_mean_what_they_meant_to_the_original() {
    use WireError::{Syntax, Type, UnknownAction};
    const PASS: Result<ClientMessage, WireError> = Ok(ClientMessage::PassThrough);
    let item = || subscribe("items", "100");
    // One row, one line.
    #[rustfmt::skip]
    let rows: Vec<(&[u8], Result<ClientMessage, WireError>)> = vec![
        // Subscribing.
        (br#"{"action":"subscribe","body":{"id":"100","entity":"items"}}"#, item()),
        (br#"{"body":{"entity":"items","id":"100"},"action":"subscribe"}"#, item()),
        (b" \t\r\n{ \"action\" : \"subscribe\" , \"body\" : { \"id\" : \"100\" , \"entity\" : \"items\" } } \n", item()),
        (br#"{"action":"unsubscribe","body":{"id":"100","entity":"items"}}"#, unsubscribe("items", "100")),
        // Secrets.
        (br#"{"action":"secret","body":"s3cr3t"}"#, secret("s3cr3t")),
        (br#"{"action":"secret","body":5}"#, Err(Type)),
        (br#"{"action":"secret","body":{}}"#, Err(Type)),
        (br#"{"action":"secret","body":[]}"#, Err(Type)),
        (br#"{"action":"secret","body":false}"#, Err(Type)),
        (br#"{"action":"secret","body":null}"#, secret("")),
        (br#"{"action":"secret"}"#, Err(Type)),
        (br#"{"action":"secret","body":""}"#, secret("")),
        (br#"{"action":"secret","body":"a\nb\u00e9"}"#, secret("a\nb\u{e9}")),
        (br#"{"action":"secret","body":"one","body":null}"#, secret("")),
        // No action.
        (br#"{"action":""}"#, PASS),
        (br#"{"x":1}"#, PASS),
        (br#"{"action":null}"#, PASS),
        (b"{}", PASS),
        (b" { } ", PASS),
        (b"null", PASS),
        (b" null\n", PASS),
        (br#"{"body":5}"#, PASS),
        (br#"{"a\u0063tion":"","x":"\u00e9"}"#, PASS),
        // Other actions.
        (br#"{"action":"foo"}"#, Err(UnknownAction)),
        (br#"{"action":"foo","body":5}"#, Err(UnknownAction)),
        (br#"{"action":"Subscribe","body":{"id":"100","entity":"items"}}"#, Err(UnknownAction)),
        (br#"{"action":"subscribe ","body":{"id":"100","entity":"items"}}"#, Err(UnknownAction)),
        (br#"{"action":"unSubscribe","body":{"id":"100","entity":"items"}}"#, Err(UnknownAction)),
        (br#"{"action":5}"#, Err(Type)),
        (br#"{"action":["subscribe"]}"#, Err(Type)),
        // Not JSON.
        (br#"{"action":"subscribe","body":{"id":"100","entity":"items"}"#, Err(Syntax)),
        (b"", Err(Syntax)),
        (b"  ", Err(Syntax)),
        (b"{", Err(Syntax)),
        (br#"{"action":"subscribe","body":{"id":"100","entity":"items"}}x"#, Err(Syntax)),
        (b"{}{}", Err(Syntax)),
        (b"null null", Err(Syntax)),
        (b"nul", Err(Syntax)),
        (b"{} \x0c", Err(Syntax)),
        (b"\x0b{}", Err(Syntax)),
        (b"\xc2\xa0{}", Err(Syntax)),
        (b"\xef\xbb\xbf{\"action\":\"secret\",\"body\":\"\"}", Err(Syntax)),
        (b"\xff{}", Err(Syntax)),
        (b"[]", Err(Type)),
        (b"\"str\"", Err(Type)),
        (b"5", Err(Type)),
        (b"true", Err(Type)),
        (b"[", Err(Syntax)),
        (b"01", Err(Syntax)),
        (b"{\"action\":\"secret\",\"body\":\"a\tb\"}", Err(Syntax)),
        (b"{\"action\":\"secret\",\"body\":\"\",\"a\tb\":1}", Err(Syntax)),
        (b"{\"a\\n\tb\":1}", Err(Syntax)),
        (b"{\"x\":\"a\0b\"}", Err(Syntax)),
        (b"{\"x\":\"a\x7fb\"}", PASS),
        (br#"{"n":01}"#, Err(Syntax)),
        (br#"{"n":+1}"#, Err(Syntax)),
        (br#"{"n":.5}"#, Err(Syntax)),
        (br#"{"n":1.}"#, Err(Syntax)),
        (br#"{"n":-}"#, Err(Syntax)),
        (br#"{"n":1e}"#, Err(Syntax)),
        (br#"{"n":NaN}"#, Err(Syntax)),
        (br#"{"n":1,}"#, Err(Syntax)),
        (br#"{"n":[1,]}"#, Err(Syntax)),
        (br#"{"n" 1}"#, Err(Syntax)),
        (br"{'n':1}", Err(Syntax)),
        (br"{n:1}", Err(Syntax)),
        (br#"{"n":"\x41"}"#, Err(Syntax)),
        (br#"{"n":"\u12g4"}"#, Err(Syntax)),
        (br#"{"\u12":1}"#, Err(Syntax)),
        (br#"{"action":"subscribe","body":{"id":"100","entity":"items"},"z":}"#, Err(Syntax)),
        (br#"{"action":"subscribe","body":{"id":"100","entity":"items","z":}}"#, Err(Syntax)),
        (br#"{"action":5,"z":}"#, Err(Syntax)),
        // Unknown fields.
        (br#"{"x":[1,{"y":2}],"action":"subscribe","z":1.5e3,"body":{"id":"100","x":[1,{"y":2}],"entity":"items","z":-0.0E-9}}"#, item()),
        (br#"{"x":1e999,"":0,"action":"subscribe","body":{"id":"100","entity":"items","\ud800":"\udfff\ud800"}}"#, item()),
        // Names.
        (br#"{"ACTION":"subscribe","BODY":{"ID":"100","ENTITY":"items"}}"#, item()),
        (br#"{"Action":"subscribe","Body":{"Id":"100","Entity":"items"}}"#, item()),
        (br#"{"act\u0131on":"subscribe","body":{"id":"100","entity":"items"}}"#, PASS),
        ("{\"act\u{131}on\":\"subscribe\"}".as_bytes(), PASS),
        (br#"{"action\u0000":"subscribe"}"#, PASS),
        (br#"{"\u0061ction":"subscribe","body":{"\u0069d":"100","entit\u0059":"items"}}"#, item()),
        // Duplicates: the last one in document order.
        (br#"{"action":"subscribe","body":{"entity":"items","id":"1","id":"100"}}"#, item()),
        (br#"{"action":"subscribe","body":{"entity":"items","id":"1","ID":"100"}}"#, item()),
        (br#"{"action":"subscribe","body":{"entity":"items","ID":"1","id":"100"}}"#, item()),
        (br#"{"action":"foo","action":"subscribe","body":{"entity":"items","id":"100"}}"#, item()),
        (br#"{"action":"subscribe","body":5,"body":{"entity":"items","id":"100"}}"#, item()),
        (br#"{"action":"subscribe","action":null,"body":{"entity":"items","id":"100","id":null}}"#, item()),
        (br#"{"action":"subscribe","body":{"entity":"items","id":"100"},"body":null}"#, subscribe("", "")),
        (br#"{"action":"subscribe","body":{"entity":"items","id":"100"},"BODY":{"id":"1"}}"#, subscribe("", "1")),
        (br#"{"action":5,"action":"subscribe","body":{"entity":"items","id":"100"}}"#, Err(Type)),
        (br#"{"action":"subscribe","action":5,"body":{"entity":"items","id":"100"}}"#, Err(Type)),
        (br#"{"action":"subscribe","body":{"entity":"items","id":1,"id":"100"}}"#, Err(Type)),
        // Bodies.
        (br#"{"action":"subscribe"}"#, Err(Type)),
        (br#"{"action":"subscribe","body":null}"#, subscribe("", "")),
        (br#"{"action":"subscribe","body":{}}"#, subscribe("", "")),
        (br#"{"action":"subscribe","body":"items"}"#, Err(Type)),
        (br#"{"action":"subscribe","body":[]}"#, Err(Type)),
        (br#"{"action":"subscribe","body":5}"#, Err(Type)),
        (br#"{"action":"subscribe","body":-5}"#, Err(Type)),
        (br#"{"action":"subscribe","body":true}"#, Err(Type)),
        (br#"{"action":"subscribe","body":"{\"id\":\"100\",\"entity\":\"items\"}"}"#, Err(Type)),
        (br#"{"action":"subscribe","body":{"entity":"items","id":100}}"#, Err(Type)),
        (br#"{"action":"subscribe","body":{"entity":"items","id":["100"]}}"#, Err(Type)),
        (br#"{"action":"subscribe","body":{"entity":5,"id":"100"}}"#, Err(Type)),
        (br#"{"action":"subscribe","body":{"entity":"items","id":null}}"#, subscribe("items", "")),
        (br#"{"action":"subscribe","body":{"entity":"items"}}"#, subscribe("items", "")),
        (br#"{"action":"subscribe","body":{"entity":"items","id":""}}"#, subscribe("items", "")),
        (br#"{"action":"subscribe","body":{"id":"100"}}"#, subscribe("", "100")),
        (br#"{"action":"subscribe","body":{"id":"100","entity":"nope"}}"#, subscribe("nope", "100")),
        (br#"{"action":"subscribe","body":{"id":"100","entity":"Items"}}"#, subscribe("Items", "100")),
        (br#"{"action":"unsubscribe"}"#, Err(Type)),
        (br#"{"action":"unsubscribe","body":{"entity":"items","id":100}}"#, Err(Type)),
        (br#"{"action":"subscribe","body":{"id":"b","entity":"items.a"}}"#, subscribe("items.a", "b")),
        // What ids may hold.
        (br#"{"action":"subscribe","body":{"entity":"items","id":"a<b>&c"}}"#, subscribe("items", "a<b>&c")),
        ("{\"action\":\"subscribe\",\"body\":{\"entity\":\"items\",\"id\":\"h\u{e9}llo\u{2603}\u{1f600}\u{2028}\"}}".as_bytes(), subscribe("items", "h\u{e9}llo\u{2603}\u{1f600}\u{2028}")),
        (br#"{"action":"subscribe","body":{"entity":"items","id":"h\u00e9llo\u2603\ud83d\uDE00\u2028"}}"#, subscribe("items", "h\u{e9}llo\u{2603}\u{1f600}\u{2028}")),
        (br#"{"action":"subscribe","body":{"entity":"items","id":"\u0001\n\"\\\/\b\f\r\t\u0000"}}"#, subscribe("items", "\u{1}\n\"\\/\u{8}\u{c}\r\t\0")),
        // What is not Unicode.
        (br#"{"action":"subscribe","body":{"entity":"items","id":"\ud800"}}"#, subscribe("items", "\u{fffd}")),
        (br#"{"action":"subscribe","body":{"entity":"items","id":"\udc00\u0041"}}"#, subscribe("items", "\u{fffd}A")),
        (br#"{"action":"subscribe","body":{"entity":"items","id":"\ud800\u0041\ud800\n"}}"#, subscribe("items", "\u{fffd}A\u{fffd}\n")),
        (br#"{"action":"subscribe","body":{"entity":"items","id":"\ud800\ud800\ud83d\ude00\ude00"}}"#, subscribe("items", "\u{fffd}\u{fffd}\u{1f600}\u{fffd}")),
        (br#"{"action":"subscribe","body":{"entity":"\udbffitems","id":"\ufffd\ud7ff\ue000"}}"#, subscribe("\u{fffd}items", "\u{fffd}\u{d7ff}\u{e000}")),
        (b"{\"action\":\"subscribe\",\"body\":{\"entity\":\"items\",\"id\":\"\xff\"}}", subscribe("items", "\u{fffd}")),
        // A character cut short, and a surrogate as bytes: one U+FFFD for each byte.
        (b"{\"action\":\"subscribe\",\"body\":{\"entity\":\"items\",\"id\":\"\xe2\x98\"}}", subscribe("items", "\u{fffd}\u{fffd}")),
        (b"{\"action\":\"subscribe\",\"body\":{\"entity\":\"items\",\"id\":\"\xed\xa0\x80\"}}", subscribe("items", "\u{fffd}\u{fffd}\u{fffd}")),
        (b"{\"action\":\"subscribe\",\"body\":{\"entity\":\"items\",\"id\":\"\xe2\\n\"}}", subscribe("items", "\u{fffd}\n")),
    ];
    for (message, expected) in rows {
        let name = String::from_utf8_lossy(message);
        assert_eq!(decode(message), expected, "{name}");
    }
}

#[test]
fn deep_nesting_needs_no_stack() {
    for depth in [100, 5_000, 1_000_000] {
        let nested = "[".repeat(depth) + &"]".repeat(depth);
        let message =
            format!(r#"{{"x":{nested},"action":"subscribe","body":{{"id":"100","x":{nested},"entity":"items"}}}}"#);
        assert_eq!(decode(message.as_bytes()), subscribe("items", "100"));
        assert_eq!(decode(nested.as_bytes()), Err(WireError::Type));
        assert_eq!(decode("{\"x\":".repeat(depth).as_bytes()), Err(WireError::Syntax));
    }
}

#[test]
fn a_key_may_be_too_long() {
    let message = |len| {
        let id = "x".repeat(len);
        format!(r#"{{"action":"subscribe","body":{{"id":"{id}"}}}}"#)
    };
    let limit = crate::key::MAX_KEY_BYTES;
    assert!(decode(message(limit).as_bytes()).is_ok());
    assert_eq!(decode(message(limit + 1).as_bytes()), Err(WireError::KeyTooLong));
}

#[test]
fn secrets_are_not_shown() {
    let shown = format!("{:?}", secret("hush"));
    assert_eq!(shown, "Ok(Secret(..))");
}

/// Members in document order, which may repeat names; `serde_json`'s own map could not hold them.
type Object = Vec<(String, Value)>;

/// The rules of [`decode`] told as slowly and plainly as possible.
fn oracle(message: &Object, bodies: &[Option<Object>]) -> Result<ClientMessage, WireError> {
    fn strings<'a>(object: &'a Object, name: &str) -> Result<&'a str, WireError> {
        let mut last = "";
        let mut wrong = false;
        for (found, value) in object {
            if !found.eq_ignore_ascii_case(name) {
                continue;
            }
            match value {
                Value::Null => {}
                Value::String(text) => last = text,
                _ => wrong = true,
            }
        }
        if wrong { Err(WireError::Type) } else { Ok(last) }
    }
    let action = strings(message, "action")?;
    let body = message
        .iter()
        .zip(bodies)
        .rfind(|((name, _), _)| name.eq_ignore_ascii_case("body"))
        .map(|((_, value), object)| (value, object));
    let key = || match body {
        None => Err(WireError::Type),
        Some((Value::Null, _)) => Ok(("".to_owned(), "".to_owned())),
        Some((_, Some(object))) => {
            let entity = strings(object, "entity")?;
            let id = strings(object, "id")?;
            Ok((entity.to_owned(), id.to_owned()))
        }
        Some(_) => Err(WireError::Type),
    };
    match action {
        "" => Ok(ClientMessage::PassThrough),
        "subscribe" => key().and_then(|(entity, id)| subscribe(&entity, &id)),
        "unsubscribe" => key().and_then(|(entity, id)| unsubscribe(&entity, &id)),
        "secret" => match body {
            Some((Value::Null, _)) => secret(""),
            Some((Value::String(text), _)) => secret(text),
            _ => Err(WireError::Type),
        },
        _ => Err(WireError::UnknownAction),
    }
}

/// Writes an object; members with an entry in `objects` get that one as their value.
fn write_object(object: &Object, objects: &[Option<Object>], escape: bool) -> String {
    let mut members = Vec::new();
    for (index, (name, value)) in object.iter().enumerate() {
        let name = if escape {
            let units: Vec<_> = name.encode_utf16().map(|u| format!("\\u{u:04x}")).collect();
            format!("\"{}\"", units.concat())
        } else {
            Value::from(name.as_str()).to_string()
        };
        let value = match objects.get(index) {
            Some(Some(object)) => write_object(object, &[], !escape),
            _ => value.to_string(),
        };
        members.push(format!("{name} :\t{value}"));
    }
    format!("{{{}}}", members.join(" ,\n"))
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[a-z]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn name_like(name: &'static str) -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just(name.to_owned()),
        1 => Just(name.to_ascii_uppercase()),
        1 => prop::collection::vec(any::<bool>(), name.len()).prop_map(move |upper| {
            let cased = name.chars().zip(upper);
            cased.map(|(c, up)| if up { c.to_ascii_uppercase() } else { c }).collect()
        }),
    ]
}

fn key_object() -> impl Strategy<Value = Object> {
    let name = prop_oneof![
        4 => name_like("entity"),
        4 => name_like("id"),
        1 => any::<String>(),
    ];
    let value = prop_oneof![4 => any::<String>().prop_map(Value::from), 1 => json_value()];
    prop::collection::vec((name, value), 0..4)
}

/// An envelope, and for some of its members the object that stands there instead of their value.
fn envelope() -> impl Strategy<Value = (Object, Vec<Option<Object>>)> {
    let action = prop_oneof![
        Just("subscribe"),
        Just("unsubscribe"),
        Just("secret"),
        Just(""),
        Just("foo"),
    ];
    let member = prop_oneof![
        4 => (name_like("action"), action.prop_map(Value::from)).prop_map(|member| (member, None)),
        1 => (name_like("action"), Just(Value::Null)).prop_map(|member| (member, None)),
        4 => (name_like("body"), Just(Value::Bool(true)), key_object())
            .prop_map(|(name, value, object)| ((name, value), Some(object))),
        2 => (name_like("body"), json_value())
            .prop_filter("objects are written from the other list", |(_, value)| !value.is_object())
            .prop_map(|member| (member, None)),
        1 => (any::<String>(), json_value()).prop_map(|member| (member, None)),
    ];
    prop::collection::vec(member, 0..5).prop_map(|members| members.into_iter().unzip())
}

proptest! {
    #[test]
    fn well_formed_objects_agree_with_the_oracle((object, objects) in envelope(), escape: bool) {
        let message = write_object(&object, &objects, escape);
        prop_assert_eq!(decode(message.as_bytes()), oracle(&object, &objects), "{}", message);
    }

    #[test]
    fn random_bytes_never_panic(message: Vec<u8>) {
        let _ = decode(&message);
    }

    #[test]
    fn damaged_messages_never_panic(
        (object, objects) in envelope(),
        escape: bool,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3usize), 1..5),
    ) {
        let mut message = write_object(&object, &objects, escape).into_bytes();
        for (at, byte, insert) in damage {
            let at = at.index(message.len());
            message.splice(at..at + 1, std::iter::repeat_n(byte, insert));
            message.push(byte);
        }
        let decoded = decode(&message);
        // Whatever is accepted is JSON to others too, but for lone surrogates and invalid bytes.
        if decoded.is_ok() {
            let text = decode_utf8(&message);
            prop_assert!(serde_json::from_str::<&RawValue>(&text).is_ok());
        }
    }
}
