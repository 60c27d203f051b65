//! What operators do to a process: signals, addresses, the environment.

use std::io::Read;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use entity_sync_tests::{Client, wait_for};

use super::{Process, binary, run};

#[test]
fn a_second_signal_ends_it_at_once() {
    for (signal, code) in [("-TERM", 143), ("-INT", 130)] {
        let mut process = Process::start(":memory:");
        // It never answers the close frame, so it is waited for.
        let mut client = Client::connect(process.clients);
        client.sync();
        let began = Instant::now();
        process.signal("-TERM");
        assert_eq!(client.stream().read(&mut [0; 1]).unwrap(), 1);
        assert_eq!(process.child.try_wait().unwrap(), None);
        process.signal(signal);
        assert_eq!(process.child.wait().unwrap().code(), Some(code));
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
}

#[test]
fn a_hangup_ends_nothing() {
    let mut process = Process::start(":memory:");
    process.signal("-HUP");
    process.put("1", "still here");
    assert_eq!(process.end(), Some(0));
    let addresses = ["--frontend", "tcp://127.0.0.1:*", "--backend", "tcp://127.0.0.1:*"];
    let mut broker = Command::new(binary());
    let mut broker = broker
        .arg("broker")
        .args(addresses)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    broker.stdout.as_mut().unwrap().read_exact(&mut [0; 8]).unwrap();
    let pid = broker.id().to_string();
    let signal = |name: &str| assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    signal("-HUP");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(broker.try_wait().unwrap(), None);
    signal("-TERM");
    assert_eq!(broker.wait().unwrap().code(), Some(0));
}

fn free_port() -> u16 {
    TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn both_kinds_of_addresses_share_a_port() {
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("SKIPPED: there is no IPv6 here");
        return;
    }
    let port = free_port();
    let (v4, v6) = (format!("0.0.0.0:{port}"), format!("[::]:{port}"));
    for flags in [["--listen", &v4, "--listen", &v6], ["--listen", &v6, "--listen", &v4]] {
        let process = Process::start_with(":memory:", &flags);
        let addresses = [IpAddr::from([127, 0, 0, 1]), Ipv6Addr::LOCALHOST.into()];
        for address in addresses {
            Client::connect(SocketAddr::new(address, port)).sync();
        }
        drop(process);
    }
    // Alone, it is for both.
    let process = Process::start_with(":memory:", &["--listen", &v6]);
    Client::connect(SocketAddr::new([127, 0, 0, 1].into(), port)).sync();
    drop(process);
}

#[test]
fn an_address_given_twice_is_not_blamed_on_another_program() {
    let address = format!("127.0.0.1:{}", free_port());
    let any = address.replace("127.0.0.1", "0.0.0.0");
    let rest = ["--api", "127.0.0.1:0", "--data", ":memory:"];
    for (second, said) in [
        (
            &address,
            format!("the address {address} is given twice: remove one (--listen)"),
        ),
        (
            &any,
            format!(
                "can't listen on both {any} and {address}: the first includes the second; leave one of them out \
                 (--listen)"
            ),
        ),
    ] {
        let (code, text) = run(&[&["--listen", &*address, "--listen", second][..], &rest].concat());
        assert_eq!((code, &*text), (Some(1), &*format!("entity-sync: {said}\n")));
    }
}

#[test]
fn the_environment_is_named_where_it_is_to_blame() {
    for (arguments, variable, value, said) in [
        (
            &["--listen=127.0.0.1:0", "--api=127.0.0.1:0"][..],
            "ENTITY_SYNC_DATA",
            "/no/such/folder/data.db",
            "for the data file (--data comes from the environment variable ENTITY_SYNC_DATA)\n",
        ),
        (
            &["get", "items/1"],
            "ENTITY_SYNC_API",
            "127.0.0.1:1",
            "with --api (--api comes from the environment variable ENTITY_SYNC_API)\n",
        ),
    ] {
        let output = Command::new(binary())
            .args(arguments)
            .env(variable, value)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.ends_with(said), "{text}");
    }
}

#[test]
fn a_store_that_everyone_can_read_is_said_to_be_one() {
    let warned = |flags: &[&str]| {
        let mut command = Command::new(binary());
        command.stderr(Stdio::piped());
        let mut process = Process::start_from(&mut command, ":memory:", flags);
        // It is written right after the greeting.
        let mut log = process.child.stderr.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            log.read_to_string(&mut text).unwrap();
            text
        });
        wait_for("it to be ready", || process.call("GET", "/healthz", "").0 == 200);
        assert_eq!(process.end(), Some(0));
        reader
            .join()
            .unwrap()
            .contains("every client may read every row of the built-in store")
    };
    assert!(warned(&["--listen", "0.0.0.0:0"]));
    assert!(!warned(&[]));
    assert!(!warned(&[
        "--listen",
        "0.0.0.0:0",
        "--resolver",
        "http=http://127.0.0.1:1/{id}"
    ]));
}
