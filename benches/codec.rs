//! The codec of client messages, core's on serde_json beside the oracle's on simd-json, in one run.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed benchmark")]

use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput};
use entity_sync_codec_oracle as simd;
use entity_sync_core::wire::{self, WireError};

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    for (shape, message) in shapes() {
        compare(&mut criterion, shape, message.as_bytes());
    }
    criterion.final_summary();
}

/// As clients send them.
fn shapes() -> [(&'static str, String); 7] {
    let long_id = r"caf\u00e9 \ud83d\ude00 \/products\/42?q=\u0022a b\u0022\n".repeat(8);
    [
        (
            "subscribe",
            r#"{"action":"subscribe","body":{"entity":"items","id":"100"}}"#.to_owned(),
        ),
        (
            "subscribe, long id with escapes",
            format!(r#"{{"action":"subscribe","body":{{"entity":"items","id":"{long_id}"}}}}"#),
        ),
        (
            "unsubscribe",
            r#"{"action":"unsubscribe","body":{"entity":"items","id":"100"}}"#.to_owned(),
        ),
        (
            "secret of 1 KiB",
            format!(r#"{{"action":"secret","body":"{}"}}"#, "eyJhbGciOi-_NiJ9".repeat(64)),
        ),
        ("pass-through, 4 KiB", pass_through(4 << 10)),
        ("pass-through, 48 KiB", pass_through(48 << 10)),
        (
            "malformed",
            r#"{"action":"subscribe","body":{"entity":"items","id":"100"}"#.to_owned(),
        ),
    ]
}

/// An application's own message: records of strings, numbers and more, none of which is looked at.
fn pass_through(bytes: usize) -> String {
    let mut message = r#"{"type":"batch","records":["#.to_owned();
    for id in 1.. {
        message.push_str(&format!(
            r#"{{"id":{id},"name":"Item no. {id}","price":{id}.99,"tags":["new","sale"],"note":"a \"quoted\" word","seen":true,"by":null}}"#
        ));
        if message.len() >= bytes - 2 {
            break;
        }
        message.push(',');
    }
    message + "]}"
}

fn compare(criterion: &mut Criterion, shape: &str, message: &[u8]) {
    let len = message.len();
    let mut padded = message.to_vec();
    padded.resize(len + simd::PADDING, 0);
    let expected = wire::decode(message);
    assert_eq!(expected.is_err(), shape == "malformed");
    assert_eq!(simd::decode(message), expected);
    assert_eq!(simd::decode_in_place(&mut padded.clone(), len), expected);

    let mut group = criterion.benchmark_group(shape);
    group.throughput(Throughput::Bytes(len as u64));
    type Decode = fn(&mut [u8], usize) -> Result<wire::ClientMessage, WireError>;
    let candidates: [(&str, Decode); 3] = [
        ("serde_json", |buffer, len| wire::decode(&buffer[..len])),
        ("simd-json", |buffer, len| simd::decode(&buffer[..len])),
        ("simd-json in place", simd::decode_in_place),
    ];
    for (name, decode) in candidates {
        // In place, a message with escapes is spent after one use, so all candidates get a new one each time. Few at once:
        // they should be in the cache, as what a socket has just filled.
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                || padded.clone(),
                |buffer| decode(buffer, len),
                BatchSize::NumIterations(16),
            );
        });
    }
    group.finish();
}
