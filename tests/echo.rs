//! The echo example, as suites of the WebSocket protocol use it.

#[path = "../adapters/mio/examples/echo.rs"]
mod example;

use std::io::Write;
use std::net::TcpStream;

use entity_sync_tests::{PATIENCE, talk};
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

fn connect(server: &entity_sync_mio::Server) -> WebSocket<TcpStream> {
    let address = server.addresses()[0];
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let request = "GET /?case=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    assert!(talk(&mut stream, b"\r\n\r\n").starts_with(b"HTTP/1.1 101 "));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    WebSocket::from_raw_socket(stream, Role::Client, Some(config))
}

#[test]
fn every_message_comes_back_as_it_was() {
    let server = example::start("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut client = connect(&server);
    for len in [0, 1, 125, 126, 65535, 65536, 1 << 20, example::MAX_MESSAGE_BYTES] {
        let text = "é".repeat(len / 2) + &"x".repeat(len % 2);
        let bytes: Vec<u8> = (0..len).map(|at| (at * 31) as u8).collect();
        for message in [Message::text(text), Message::binary(bytes)] {
            // A message that fills all buffers on the way is read back while it is written.
            client.send(message.clone()).unwrap();
            let echo = client.read().unwrap();
            assert!(echo == message, "{len} bytes came back as {}", echo.len());
        }
    }
    // All at once, in order.
    for number in 0..1000 {
        client.write(Message::text(number.to_string())).unwrap();
    }
    client.flush().unwrap();
    for number in 0..1000 {
        assert_eq!(client.read().unwrap(), Message::text(number.to_string()));
    }
    // One byte too many.
    let too_long = Message::binary(vec![0; example::MAX_MESSAGE_BYTES + 1]);
    // The server may close before all of it is written.
    let _ = client.send(too_long);
    loop {
        match client.read() {
            Ok(Message::Close(frame)) => {
                assert_eq!(frame.map(|frame| frame.code.into()), Some(1009));
                break;
            }
            Ok(_) => {}
            // Unread bytes reset the connection, and may overtake the close frame.
            Err(tungstenite::Error::Io(_)) => break,
            Err(error) => panic!("{error}"),
        }
    }
}
