//! A thread that dies ends the process, which says so.

use entity_sync::args::Task;
use entity_sync::serve::serve;
use entity_sync_tests::PATIENCE;
use entity_sync_tests::program::own_address;
use entity_sync_tests::sabotage::sabotage;

use super::*;

/// The other process: the server, with a saboteur in it.
fn serve_with_a_saboteur(victim: String) -> ! {
    sabotage(victim);
    let flags = std::env::var("FLAGS").unwrap();
    let Ok((Task::Serve(options), _)) = Task::parse(["entity-sync"].into_iter().chain(flags.split(' '))) else {
        panic!("{flags}")
    };
    let code = match serve(&options) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("ended: {error}");
            1
        }
    };
    std::process::exit(code)
}

/// Runs the test of this name again, as the server in which a thread dies.
fn sabotaged(test: &str, victim: &str, data: &str, flags: &str) -> Process {
    let flags = format!("--listen 127.0.0.1:0 --api 127.0.0.1:0 --reactors 2 --data {data} {flags}");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env("VICTIM", victim)
        .env("FLAGS", flags.trim())
        .stderr(Stdio::piped());
    Process::greeted(&mut command)
}

fn ended(mut process: Process) -> (Option<i32>, String) {
    let mut said = String::new();
    process.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (process.child.wait().unwrap().code(), said)
}

#[test]
fn a_dead_reactor_ends_the_process() {
    if let Ok(victim) = std::env::var("VICTIM") {
        serve_with_a_saboteur(victim);
    }
    let name = "binary::threads::a_dead_reactor_ends_the_process";
    let process = sabotaged(name, "reactor-0", ":memory:", "");
    // Sooner or later, one comes to the first reactor.
    let begun = std::time::Instant::now();
    let mut streams = Vec::new();
    while let Ok(mut stream) = TcpStream::connect(process.clients) {
        assert!(begun.elapsed() < PATIENCE, "it lives on");
        // If it is refused, that is what is waited for.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
        streams.push(stream);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let (code, said) = ended(process);
    assert_eq!(code, Some(1), "{said}");
    let expected = "ended: reactor-0: thread died: sabotage; restart the process and report this bug";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn a_dead_bus_ends_the_process() {
    if let Ok(victim) = std::env::var("VICTIM") {
        serve_with_a_saboteur(victim);
    }
    let name = "binary::threads::a_dead_bus_ends_the_process";
    // The bus's thread says that it can't reach the other node.
    let host = own_address();
    let flags = format!("--bus zmq --zmq-bind {host}:7000 --zmq-peer {host}:7001");
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.db");
    let (code, said) = ended(sabotaged(name, "entity-sync bus", data.to_str().unwrap(), &flags));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("ended: entity-sync bus: thread died: sabotage"), "{said}");
}
