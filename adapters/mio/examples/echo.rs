//! A WebSocket echo server on the reactors of Entity Sync: each text and binary message comes back as it was. For test
//! suites of the WebSocket protocol, which want nothing else of a server.
//!
//! `cargo run --release -p entity-sync-mio --example echo -- --listen 127.0.0.1:9001`
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that tells where it listens"
)]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use entity_sync_mio::{Config, Incoming, Origins, PassThrough, Payload, Reply, Request, Server, StartError};

/// The longest message that is echoed, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// Close code for clients that don't read as fast as they send.
const TRY_AGAIN_LATER: u16 = 1013;

/// Starts the server.
///
/// # Errors
/// Those of [`Server::start`].
pub fn start(listen: SocketAddr) -> Result<Server, StartError> {
    let mut config = Config::new([listen]);
    let core = &mut config.core;
    core.upgrade.paths = vec!["/".to_owned()];
    core.upgrade.origins = Origins::Any;
    core.max_message_bytes = MAX_MESSAGE_BYTES;
    // What a client has sent and not read again.
    core.max_outbox_bytes = 4 * MAX_MESSAGE_BYTES;
    core.max_handover_bytes = 4 * MAX_MESSAGE_BYTES;
    core.pass_through = PassThrough::All;
    core.on_message = Some(Arc::new(echo));
    // Nobody subscribes to anything here.
    Server::start(config, |_: Request, _: Reply| {})
}

fn echo(message: Incoming<'_>) {
    let client = message.client();
    let sent = match message.payload() {
        Payload::Text(text) => client.send_text(text),
        Payload::Binary(bytes) => client.send_binary(bytes),
    };
    if sent.is_err() {
        // Its code is a good one.
        let _ = client.close(TRY_AGAIN_LATER, "too much at once");
    }
}

#[allow(dead_code, reason = "tests use start alone")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let listen = match &arguments[..] {
        [] => Some(SocketAddr::from(([127, 0, 0, 1], 9001))),
        [flag, address] if flag == "--listen" => address.parse().ok(),
        _ => None,
    };
    let Some(listen) = listen else {
        eprintln!("usage: echo [--listen ADDRESS:PORT]   (127.0.0.1:9001 if not given)");
        return ExitCode::FAILURE;
    };
    match start(listen) {
        Ok(server) => {
            for address in server.addresses() {
                println!("echoes at ws://{address}/");
            }
            loop {
                // Until the process is killed.
                std::thread::park();
            }
        }
        Err(error) => {
            eprintln!("echo: {error}");
            ExitCode::FAILURE
        }
    }
}
