#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use proptest::prelude::*;

use super::*;

const MAX: usize = frame_bytes(64);

fn frame(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = (data.len() as u32 + 4).to_be_bytes().to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend(data);
    bytes
}

fn message_data(id: &[u8; 16], body: &[u8]) -> Vec<u8> {
    let mut data = 1_700_000_000_000_000_000_i64.to_be_bytes().to_vec();
    data.extend(1_u16.to_be_bytes());
    data.extend(id);
    data.extend(body);
    data
}

#[test]
fn the_recorded_frames() {
    let ok = b"\x00\x00\x00\x06\x00\x00\x00\x00OK";
    assert_eq!(decode(ok, MAX), Ok(Some((Frame::Response(OK), 10))));
    let heartbeat = b"\x00\x00\x00\x0f\x00\x00\x00\x00_heartbeat_";
    assert_eq!(decode(heartbeat, MAX), Ok(Some((Frame::Response(HEARTBEAT), 19))));
    let mut message = b"\x00\x00\x00\x3b\x00\x00\x00\x02\x18\xa5\xdc\x70\xee\x66\x90\x00\x00\x01".to_vec();
    message.extend(br#"18a5dc70ee669000{"entity":"items","id":"100"}"#);
    let expected = Message {
        timestamp_ns: 0x18a5_dc70_ee66_9000,
        attempts: 1,
        id: MessageId(*b"18a5dc70ee669000"),
        body: br#"{"entity":"items","id":"100"}"#,
    };
    assert_eq!(
        decode(&message, MAX),
        Ok(Some((Frame::Message(expected), message.len())))
    );
}

#[test]
fn the_recorded_commands() {
    let mut out = MAGIC.to_vec();
    identify(&mut out, b"{}");
    let topic = Topic::new("items").unwrap();
    let channel = Channel::new("20b889f7-76be-447d-9cbc-44ecffa7c9ca#ephemeral").unwrap();
    subscribe(&mut out, &topic, &channel);
    ready(&mut out, 1);
    finish(&mut out, MessageId::new(*b"18a5dc70ee669000").unwrap());
    nop(&mut out);
    close(&mut out);
    publish(&mut out, &topic, br#"{"entity":"items","id":"100"}"#);
    let expected = b"  V2IDENTIFY\n\0\0\0\x02{}SUB items 20b889f7-76be-447d-9cbc-44ecffa7c9ca#ephemeral\nRDY 1\n\
        FIN 18a5dc70ee669000\nNOP\nCLS\nPUB items\n\0\0\0\x1d{\"entity\":\"items\",\"id\":\"100\"}";
    assert_eq!(out.escape_ascii().to_string(), expected.escape_ascii().to_string());
}

#[test]
fn names_are_what_nsqd_takes() {
    let long = "x".repeat(64);
    for name in ["items", "a.b_c-D9", "caf#ephemeral", "x", &long] {
        assert_eq!(Topic::new(name).map(|it| it.0), Ok(name.into()));
    }
    let longer = "x".repeat(65);
    let longer_by_suffix = format!("{}#ephemeral", "x".repeat(55));
    for (name, error) in [
        ("", NameError::Empty),
        ("#ephemeral", NameError::Empty),
        ("my items", NameError::Character(' ')),
        ("a/b", NameError::Character('/')),
        ("é", NameError::Character('é')),
        ("items\nNOP", NameError::Character('\n')),
        ("a#ephemeral#ephemeral", NameError::Character('#')),
        ("a#ephemeralx", NameError::Character('#')),
        (&longer, NameError::TooLong(65)),
        (&longer_by_suffix, NameError::TooLong(65)),
    ] {
        assert_eq!(Topic::new(name), Err(error), "{name:?}");
        assert!(error.to_string().contains("a-z A-Z 0-9 . _ -"));
    }
}

#[test]
fn a_channel_is_a_uuid_of_version_4() {
    assert_eq!(
        &*Channel::ephemeral([0; 16]).0,
        "00000000-0000-4000-8000-000000000000#ephemeral"
    );
    assert_eq!(
        &*Channel::ephemeral([255; 16]).0,
        "ffffffff-ffff-4fff-bfff-ffffffffffff#ephemeral"
    );
    let mut random = [0; 16];
    random.iter_mut().zip(0x10..).for_each(|(byte, value)| *byte = value);
    let channel = Channel::ephemeral(random);
    assert_eq!(&*channel.0, "10111213-1415-4617-9819-1a1b1c1d1e1f#ephemeral");
    assert_eq!(Channel::new(&channel.0), Ok(channel));
}

#[test]
fn what_is_wrong_is_found_before_the_rest_is_there() {
    assert_eq!(decode(&[0, 0, 0, 3], MAX), Err(WireError::TooShort { length: 3 }));
    let length = MAX as u32 + 1;
    assert_eq!(
        decode(&length.to_be_bytes(), MAX),
        Err(WireError::TooLong { length, max: MAX })
    );
    assert_eq!(
        decode(&u32::MAX.to_be_bytes(), MAX),
        Err(WireError::TooLong {
            length: u32::MAX,
            max: MAX
        })
    );
    assert_eq!(decode(&[0, 0, 0, 9, 0, 0, 0, 3], MAX), Err(WireError::UnknownType(3)));
    assert_eq!(
        decode(&[0, 0, 0, 9, 255, 255, 255, 255], MAX),
        Err(WireError::UnknownType(u32::MAX))
    );
    assert_eq!(
        decode(&[0, 0, 0, 29, 0, 0, 0, 2], MAX),
        Err(WireError::TooShort { length: 29 })
    );
    let http = decode(b"HTTP/1.1 400 Bad Request\r\n", MAX).unwrap_err();
    assert!(http.to_string().contains("4150"), "{http}");
}

#[test]
fn ids_are_hexadecimal() {
    for id in [b"18a5dc70ee66900\n", b"18a5dc70ee66900 ", b"18a5dc70ee66900g", &[0; 16]] {
        assert_eq!(
            decode(&frame(2, &message_data(id, b"x")), MAX),
            Err(WireError::BadMessageId)
        );
    }
}

#[test]
fn the_longest_body_fits_and_one_byte_more_does_not() {
    let id = b"0123456789abcdef";
    let longest = frame(2, &message_data(id, &[7; 64]));
    assert!(matches!(decode(&longest, MAX), Ok(Some((Frame::Message(it), _))) if it.body == [7; 64]));
    let longer = frame(2, &message_data(id, &[7; 65]));
    assert_eq!(decode(&longer, MAX), Err(WireError::TooLong { length: 95, max: 94 }));
}

proptest! {
    /// Whatever comes, however it is cut: no panic, nothing beyond the bytes that are there, and the same answer whether
    /// the rest is there or not.
    #[test]
    fn any_bytes(bytes in prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        (0_u32..100, 0_u32..4, prop::collection::vec(any::<u8>(), 0..100)).prop_map(|(length, kind, data)| {
            [&length.to_be_bytes()[..], &kind.to_be_bytes(), &data].concat()
        }),
    ]) {
        let whole = decode(&bytes, MAX);
        if let Ok(Some((frame, used))) = whole {
            prop_assert!(used <= bytes.len());
            prop_assert_eq!(used, 4 + u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize);
            prop_assert_eq!(decode(&bytes[..used], MAX), Ok(Some((frame, used))));
        }
        for cut in 0..bytes.len() {
            match (decode(&bytes[..cut], MAX), whole) {
                (Ok(None), _) => {}
                (part, whole) => prop_assert_eq!(part, whole),
            }
        }
    }

    /// What is encoded is decoded, in order, by a reader that knows nothing of where frames end.
    #[test]
    fn frames_in_a_row(frames in prop::collection::vec((0_u32..3, prop::collection::vec(any::<u8>(), 0..64)), 0..8)) {
        let data_of = |(kind, data): &(u32, Vec<u8>)| match kind {
            2 => message_data(b"0123456789abcdef", data),
            _ => data.clone(),
        };
        let bytes: Vec<u8> = frames.iter().flat_map(|it| frame(it.0, &data_of(it))).collect();
        let mut rest = &bytes[..];
        for (kind, data) in &frames {
            let (frame, used) = decode(rest, MAX).unwrap().unwrap();
            match frame {
                Frame::Response(it) => prop_assert!(*kind == 0 && it == data),
                Frame::Error(it) => prop_assert!(*kind == 1 && it == data),
                Frame::Message(it) => prop_assert!(*kind == 2 && it.body == data && it.attempts == 1),
            }
            rest = &rest[used..];
        }
        prop_assert!(rest.is_empty());
    }

    /// A name that is taken stays within its line.
    #[test]
    fn names_break_out_of_no_line(name in "(?s)[a-z #\n.é]{0,70}") {
        if let Ok(topic) = Topic::new(&name) {
            let mut out = Vec::new();
            publish(&mut out, &topic, b"x");
            prop_assert_eq!(out, format!("PUB {name}\n\0\0\0\u{1}x").into_bytes());
            prop_assert!(!name.contains([' ', '\n']));
        }
    }
}
