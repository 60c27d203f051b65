//! [`greet`]: what is printed when a server runs: where everything is, and how to see a push.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;

use entity_sync_mio::Server;

use crate::api;
use crate::args::Options;
use crate::readers;
use crate::store::Location;

/// Prints the banner.
pub(crate) fn greet(options: &Options, server: &Server, api: &api::Address) {
    let room = server.handle().config().max_connections;
    let text = greeting(options, server.addresses(), room, api);
    // If nobody listens, it serves all the same.
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn greeting(options: &Options, clients: &[SocketAddr], room: usize, api: &api::Address) -> String {
    let mut text = String::from("Entity Sync is running.\n");
    // Writing to a string can't fail.
    for client in clients {
        for path in &options.paths {
            let _ = writeln!(text, "  clients  ws://{client}{path}");
        }
    }
    let _ = writeln!(text, "  room     for {room} connections");
    let (shown, curl) = match api {
        api::Address::Tcp(_) => (format!("http://{api}"), format!("http://{api}")),
        // Any host would do.
        api::Address::Unix(path) => (
            api.to_string(),
            format!("--unix-socket {} http://localhost", for_shell(path)),
        ),
    };
    let _ = writeln!(text, "  API      {shown}");
    let _ = match &options.cluster {
        None => writeln!(text, "  bus      none: this node is alone"),
        Some(cluster) => writeln!(text, "  bus      {}", cluster.bus),
    };
    if readers::need_store(options) {
        let data = match &options.data {
            Location::File(path) => path.display().to_string(),
            Location::Memory => "in memory, gone when this ends".to_owned(),
        };
        let _ = writeln!(text, "  data     {data}");
        let put = "-d '{\"name\":\"bicycle\"}'";
        let _ = writeln!(text, "Try: curl -X PUT {curl}/entities/items/100 {put}");
    } else {
        let notify = "-d '{\"entity\":\"items\",\"id\":\"100\"}'";
        let _ = writeln!(text, "Try: curl -X POST {curl}/notify {notify}");
    }
    text
}

/// The built-in store knows no rights.
pub(crate) fn warn_of_open_store(options: &Options, clients: &[SocketAddr]) {
    let open = clients.iter().find(|it| !it.ip().to_canonical().is_loopback());
    if let Some(open) = open
        && readers::need_store(options)
    {
        tracing::warn!(
            listen = %open,
            "other machines can connect, and every client may read every row of the built-in store: keep --listen on \
             127.0.0.1 behind an authenticating proxy, or read rows with a --resolver that checks the secret"
        );
    }
}

/// A path as it is written on a command line.
fn for_shell(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    if path.bytes().all(is_plain) {
        path
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Task;

    #[test]
    fn what_is_to_be_tried_can_be_pasted() {
        assert_eq!(for_shell(Path::new("/run/a-b_c.sock")), "/run/a-b_c.sock");
        assert_eq!(for_shell(Path::new("/my files/it's")), r"'/my files/it'\''s'");
    }

    #[test]
    fn the_banner_shows_what_was_given() {
        let banner = |flags: &[&str]| {
            let all = ["entity-sync", "--data=:memory:"].iter().chain(flags);
            let Ok((Task::Serve(options), _)) = Task::parse(all) else {
                panic!("{flags:?}");
            };
            greeting(&options, &options.listen, 1000, &options.api)
        };
        assert_eq!(
            banner(&[]),
            "Entity Sync is running.\n  clients  ws://127.0.0.1:8080/ws/entity-sync/\n  room     for 1000 connections\n  \
             API      http://127.0.0.1:8081\n  bus      none: this node is alone\n  data     in memory, gone when this \
             ends\nTry: curl -X PUT http://127.0.0.1:8081/entities/items/100 -d '{\"name\":\"bicycle\"}'\n"
        );
        let resolver = "--resolver=http=http://127.0.0.1:9000/{id}";
        for (flags, bus) in [
            (
                &["--bus=nats", "--nats=nats://hush:hush@a,b"][..],
                "NATS at nats://a, b",
            ),
            (&["--bus=nsq", "--nsqd=a:4150", "--entity=items"], "NSQ at a:4150"),
            (
                &[
                    "--bus=zmq",
                    "--zmq-bind=127.0.0.1:7001",
                    "--zmq-peer=b:7001",
                    "--zmq-peer-dns=c:7001",
                ],
                "ZeroMQ at tcp://127.0.0.1:7001, with tcp://b:7001, c:7001",
            ),
            (
                &["--bus=zmq", "--zmq-broker=a:1,a:2"],
                "ZeroMQ, with the broker tcp://a:1,tcp://a:2",
            ),
        ] {
            let banner = banner(&[flags, &[resolver]].concat());
            assert!(banner.contains(&format!("\n  bus      {bus}\n")), "{banner}");
            assert!(!banner.contains("hush"), "{banner}");
        }
    }
}
