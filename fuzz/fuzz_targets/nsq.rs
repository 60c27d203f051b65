//! What an nsqd may send, by raw bytes: no panic, no byte beyond those that are there, the same answer whether the rest
//! has come or not, and nothing that breaks out of a command's line.
#![no_main]

use entity_sync_nsq::wire::{self, Frame};
use libfuzzer_sys::fuzz_target;

const MAX_FRAME_BYTES: usize = wire::frame_bytes(256);

fuzz_target!(|received: &[u8]| {
    let mut rest = received;
    loop {
        let whole = wire::decode(rest, MAX_FRAME_BYTES);
        for cut in 0..rest.len().min(64) {
            let part = wire::decode(&rest[..cut], MAX_FRAME_BYTES);
            assert!(part == Ok(None) || part == whole, "{part:?} {whole:?}");
        }
        let Ok(Some((frame, used))) = whole else {
            return;
        };
        assert!(used >= 8 && used <= rest.len() && used <= 4 + MAX_FRAME_BYTES);
        if let Frame::Message(message) = frame {
            let mut command = Vec::new();
            wire::finish(&mut command, message.id);
            assert!(command.len() == 21 && command.iter().filter(|it| **it <= b' ').count() == 2);
        }
        rest = &rest[used..];
    }
});
