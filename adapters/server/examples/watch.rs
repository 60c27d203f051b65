//! Subscribes to entities and prints what is pushed:
//! `cargo run --release -p entity-sync --example watch -- items/100 items/101`
#![allow(clippy::print_stdout, reason = "a program that prints")]

use std::error::Error;

use tungstenite::Message;

const SERVER: &str = "ws://127.0.0.1:8080/ws/entity-sync/";

fn main() -> Result<(), Box<dyn Error>> {
    let server = std::env::var("ENTITY_SYNC_URL").unwrap_or_else(|_| SERVER.to_owned());
    let (mut socket, _) = tungstenite::connect(&server)?;
    for key in std::env::args().skip(1) {
        let (entity, id) = key.split_once('/').ok_or("write entity/id, such as items/100")?;
        let body = serde_json::json!({ "entity": entity, "id": id });
        let subscribe = serde_json::json!({ "action": "subscribe", "body": body });
        socket.send(Message::text(subscribe.to_string()))?;
        println!("watching {key} on {server}");
    }
    loop {
        if let Message::Text(row) = socket.read()? {
            println!("{row}");
        }
    }
}
