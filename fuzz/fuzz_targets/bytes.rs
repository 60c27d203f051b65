//! A connection by raw bytes, in portions of the fuzzer's choosing: the upgrade, frames, and messages in them.
#![no_main]

use std::sync::Arc;
use std::task::Waker;

use entity_sync_core::{Config, Core, CoreOutput, Input, Output, PassThrough, Rows, Seed, Sent, Timestamp};
use libfuzzer_sys::fuzz_target;

const UPGRADE: &[u8] = b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

fuzz_target!(|input: (bool, Vec<Vec<u8>>)| {
    let (has_upgraded, portions) = input;
    let now = Timestamp::START;
    let mut config = Config::new(Seed(1, 2));
    config.max_message_bytes = 1000;
    // Echoes, so that the client's bytes lead to commands too.
    config.pass_through = PassThrough::All;
    config.on_message = Some(Arc::new(|message| {
        let _ = message.client().send_binary(message.payload().as_bytes());
    }));
    let mut core = Core::new(config, Waker::noop().clone());
    let Ok(conn) = core.open(now) else {
        return;
    };
    if has_upgraded {
        let bytes = &mut UPGRADE.to_vec();
        core.handle(now, Input::Received { conn, bytes });
    }
    let mut is_closed = false;
    for mut portion in portions {
        let bytes = &mut portion;
        core.handle(now, Input::Received { conn, bytes });
        while let Some(output) = core.poll_output(now) {
            match output {
                CoreOutput::Read(_, reply) => drop(reply.send(now, Ok(Rows::none()))),
                CoreOutput::Shard(Output::Broadcast(broadcast)) => broadcast.for_each(|_, _| Sent::All),
                CoreOutput::Shard(Output::Flush(flush)) => flush.write(|_, _| Sent::All),
                CoreOutput::Shard(Output::Resume(_) | Output::Shutdown(_)) => {}
                CoreOutput::Shard(Output::Close(closed)) => {
                    assert_eq!(closed, conn);
                    assert!(!is_closed, "closed twice");
                    is_closed = true;
                }
            }
        }
        core.shard().assert_consistent();
    }
});
