use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Instant;

use crate::{Entity, EntitySync};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// Takes connections as PostgreSQL does. Answers each statement with an error of this SQLSTATE, or with nothing.
fn database(error: Option<&'static str>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // It ends with the connection.
            std::thread::spawn(move || serve(stream, error));
        }
    });
    address
}

fn serve(mut stream: TcpStream, error: Option<&'static str>) -> std::io::Result<()> {
    let mut length = [0; 4];
    let mut take = |stream: &mut TcpStream| {
        stream.read_exact(&mut length)?;
        let mut rest = vec![0; u32::from_be_bytes(length) as usize - 4];
        stream.read_exact(&mut rest)
    };
    take(&mut stream)?;
    stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I")?;
    loop {
        let mut kind = [0];
        stream.read_exact(&mut kind)?;
        take(&mut stream)?;
        let (b"Q" | b"S", Some(code)) = (&kind, error) else {
            continue;
        };
        let fields = format!("SERROR\0VERROR\0C{code}\0Mnot now\0\0");
        let length = u32::try_from(fields.len() + 4).expect("short");
        stream.write_all(b"E")?;
        stream.write_all(&length.to_be_bytes())?;
        stream.write_all(fields.as_bytes())?;
        stream.write_all(b"Z\0\0\0\x05I")?;
    }
}

fn plan(address: SocketAddr) -> Plan {
    let dsn = format!("postgres://me@{address}/shop?sslmode=disable");
    Plan {
        dsn: dsn.parse().expect("good"),
        queries: vec!["SELECT id, id FROM items WHERE id = ANY($1)".to_owned()],
        role: None,
        limit: Duration::from_millis(200),
        connections: 2,
    }
}

fn listener() -> Listener {
    Listener {
        channel: "items".to_owned(),
        heard: Arc::new(|_| true),
        reread_all: Box::new(|| {}),
    }
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A server with a client that reads for as long as nothing comes of it.
fn reading(postgres: &Postgres) -> (EntitySync, impl Sized) {
    let entity = Entity::resolver(postgres.resolver(0)).public().snapshot();
    let sync = EntitySync::builder().listen("127.0.0.1:0").others(entity).start();
    let sync = sync.expect("starts");
    let address = sync.addresses()[0];
    let stream = TcpStream::connect(address).expect("connects");
    let url = format!("ws://{address}/ws/entity-sync/");
    let mut socket = tungstenite::client(url, stream).expect("upgrades").0;
    let text = r#"{"action":"subscribe","body":{"entity":"items","id":"1"}}"#;
    socket.send(tungstenite::Message::text(text)).expect("sent");
    (sync, socket)
}

#[test]
fn a_database_that_is_silent_holds_up_no_start() {
    let (started, starts) = mpsc::channel();
    let health = Health::default();
    let of_thread = health.clone();
    std::thread::spawn(move || {
        let postgres = Postgres::start(plan(database(None)), Some(listener()), &of_thread);
        // The test may be over.
        let _ = started.send(postgres);
    });
    let postgres = starts.recv_timeout(PATIENCE).expect("a start");
    let _postgres = postgres.expect("a server without its database");
    wait_for("the listener to say so", || {
        let troubles: Vec<_> = health.troubles().iter().map(ToString::to_string).collect();
        let is_told = |text: &str| troubles.iter().any(|it| it.contains(text));
        !health.is_ready() && is_told("it takes too long") && is_told("can't hear")
    });
}

#[test]
fn a_pooler_that_refuses_everything_is_not_ready() {
    for code in ["58000", "08P01"] {
        let health = Health::default();
        let postgres = Postgres::start(plan(database(Some(code))), None, &health).expect("starts");
        let _reading = reading(&postgres);
        wait_for("it not to be ready", || !health.is_ready());
        let health = Health::default();
        let _postgres = Postgres::start(plan(database(Some(code))), Some(listener()), &health).expect("starts");
        wait_for("it not to be ready", || !health.is_ready());
    }
}

#[test]
fn what_may_be_of_one_read_is_told_and_leaves_the_server_ready() {
    for code in ["57014", "P0001"] {
        let health = Health::default();
        let postgres = Postgres::start(plan(database(Some(code))), None, &health).expect("starts");
        let _reading = reading(&postgres);
        wait_for("it to be told", || {
            let troubles = health.troubles();
            troubles.iter().any(|it| it.to_string().contains(code))
        });
        std::thread::sleep(Duration::from_millis(2500));
        assert!(health.is_ready(), "{code}: {:?}", health.troubles());
    }
}
