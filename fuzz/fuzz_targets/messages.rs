//! Client messages by raw bytes: each is a whole masked frame on a connection that has upgraded, so that the fuzzer
//! need not learn masking.
#![no_main]

use std::sync::{Arc, Mutex};
use std::task::Waker;

use entity_sync_core::wire::{ClientMessage, decode};
use entity_sync_core::{Config, Core, CoreOutput, Input, Output, Seed, Sent, Timestamp};
use libfuzzer_sys::fuzz_target;

const UPGRADE: &[u8] = b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

fuzz_target!(|messages: Vec<Vec<u8>>| {
    let now = Timestamp::START;
    let mut config = Config::new(Seed(1, 2));
    let passed = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let of_handler = passed.clone();
    config.on_message = Some(Arc::new(move |message| {
        of_handler.lock().unwrap().push(message.payload().as_bytes().to_vec());
    }));
    let mut core = Core::new(config, Waker::noop().clone());
    let Ok(conn) = core.open(now) else {
        return;
    };
    let bytes = &mut UPGRADE.to_vec();
    core.handle(now, Input::Received { conn, bytes });
    for message in messages {
        // Binary, so that what isn't UTF-8 reaches the codec too. The mask of zeros changes nothing.
        let mut frame = vec![0x82, 0x80 | 126];
        frame.extend((message.len() as u16).to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(message.iter().take(usize::from(message.len() as u16)));
        let bytes = &mut frame;
        core.handle(now, Input::Received { conn, bytes });
        // What is passed to the application is exactly what was sent, and only what has no action.
        let message = &message[..usize::from(message.len() as u16)];
        let is_passed = decode(message) == Ok(ClientMessage::PassThrough);
        let expected = if is_passed { vec![message.to_vec()] } else { Vec::new() };
        assert_eq!(std::mem::take(&mut *passed.lock().unwrap()), expected);
        while let Some(output) = core.poll_output(now) {
            match output {
                CoreOutput::Read(..) => panic!("a read, and nobody notified"),
                CoreOutput::Shard(Output::Broadcast(broadcast)) => broadcast.for_each(|_, _| Sent::All),
                CoreOutput::Shard(Output::Flush(flush)) => flush.write(|_, _| Sent::All),
                CoreOutput::Shard(output) => panic!("{output:?}: no message ends a connection"),
            }
        }
        core.shard().assert_consistent();
    }
});
