//! Core's codec of client messages and the oracle's, which is on another JSON parser, by raw bytes and by messages built
//! from the same bytes.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use entity_sync_core::wire;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary)]
struct Member<'a> {
    name: Name<'a>,
    value: Value<'a>,
}

#[derive(Arbitrary)]
enum Name<'a> {
    /// One of the known ones; the bits say which letters are upper case.
    Known(u8, u8),
    Other(Vec<Piece<'a>>),
}

#[derive(Arbitrary)]
enum Value<'a> {
    Object(Vec<Member<'a>>),
    Action(u8),
    String(Vec<Piece<'a>>),
    Null,
    Array(Vec<Value<'a>>),
    Integer(i128),
    Float(f64, i16),
    /// Good or not.
    Raw(&'a [u8]),
}

#[derive(Arbitrary)]
enum Piece<'a> {
    Text(&'a str),
    /// Half of them surrogates.
    Escape(bool, u16),
    Short(u8),
    Byte(u8),
}

fuzz_target!(|data: &[u8]| {
    compare(data);
    if let Ok(members) = Unstructured::new(data).arbitrary::<Vec<Member<'_>>>() {
        let mut message = Vec::new();
        write_object(&mut message, &members);
        compare(&message);
    }
});

fn compare(message: &[u8]) {
    let (core, oracle) = (wire::decode(message), entity_sync_codec_oracle::decode(message));
    assert!(core == oracle, "{}: {core:?}, {oracle:?}", message.escape_ascii());
}

fn write_object(out: &mut Vec<u8>, members: &[Member<'_>]) {
    out.push(b'{');
    for (index, Member { name, value }) in members.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        match name {
            Name::Known(which, upper) => {
                let name = ["action", "body", "entity", "id"][usize::from(which % 4)];
                out.push(b'"');
                for (index, letter) in name.bytes().enumerate() {
                    let upper = upper >> index & 1 == 1;
                    out.push(if upper { letter.to_ascii_uppercase() } else { letter });
                }
                out.push(b'"');
            }
            Name::Other(pieces) => write_string(out, pieces),
        }
        out.push(b':');
        write_value(out, value);
    }
    out.push(b'}');
}

fn write_value(out: &mut Vec<u8>, value: &Value<'_>) {
    match value {
        Value::Object(members) => write_object(out, members),
        Value::Action(which) => {
            let actions = ["subscribe", "unsubscribe", "secret", ""];
            out.extend(format!("{:?}", actions[usize::from(which % 4)]).bytes());
        }
        Value::String(pieces) => write_string(out, pieces),
        Value::Null => out.extend(b"null"),
        Value::Array(values) => {
            out.push(b'[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_value(out, value);
            }
            out.push(b']');
        }
        Value::Integer(integer) => out.extend(integer.to_string().bytes()),
        // `inf` and `NaN` are not JSON; `1e300e7` neither.
        Value::Float(float, exponent) => out.extend(format!("{float:?}e{exponent}").bytes()),
        Value::Raw(bytes) => out.extend(*bytes),
    }
}

fn write_string(out: &mut Vec<u8>, pieces: &[Piece<'_>]) {
    out.push(b'"');
    for piece in pieces {
        match piece {
            // Quotes and control characters are left as they are.
            Piece::Text(text) => out.extend(text.bytes()),
            Piece::Escape(false, unit) => out.extend(format!("\\u{unit:04x}").bytes()),
            Piece::Escape(true, unit) => out.extend(format!("\\u{:04X}", 0xd800 | unit & 0x7ff).bytes()),
            Piece::Short(which) => out.extend([b'\\', br#""\/bfnrt"#[usize::from(which % 8)]]),
            Piece::Byte(byte) => out.push(*byte),
        }
    }
    out.push(b'"');
}
