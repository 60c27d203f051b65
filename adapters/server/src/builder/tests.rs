use std::time::Duration;

use entity_sync_mio::Rows;

use super::*;

fn builder() -> Builder {
    EntitySync::builder()
        .reactors(NonZeroUsize::MIN)
        .others(Entity::read(|_| Ok(Rows::none())))
}

#[track_caller]
fn refused(builder: Builder, text: &str) {
    let said = builder.start().expect_err("refused").to_string();
    assert_eq!(said, text);
}

#[test]
fn errors_say_what_to_do() {
    refused(
        EntitySync::builder().listen("127.0.0.1:0"),
        "there is no entity: say how one is read with Builder::entity, or how all are with Builder::others",
    );
    refused(
        builder().listen("localhost"),
        "\"localhost\" can't be used: write an IP address or a name of this machine, and a port, such as 127.0.0.1:8080, localhost:8080 or [::1]:8080, or \
         0.0.0.0:8080 for every interface",
    );
    refused(
        builder().path("ws"),
        "\"ws\" can't be used: write the path of a URL, such as /ws/entity-sync/: it begins with / and has no spaces, \
         no ? and no #; whether it ends with / makes a difference",
    );
    refused(
        builder().origin("example.com"),
        "\"example.com\" can't be used: write a scheme and a host without a path, such as https://example.com or \
         http://localhost:3000, or * for any origin",
    );
    let first = builder().listen("127.0.0.1:0").start().expect("starts");
    let address = first.addresses()[0];
    refused(
        builder().listen(address),
        &format!("can't listen on {address}: another program already uses this port; stop it or choose another port"),
    );
    first.shutdown(Duration::ZERO).expect("there is no bus");
}

/// Where a process may have no more memory than it has, a thread finds no place for its stack. The limit is for good, so the
/// test runs itself again, on one thread that has no other's stack to give away.
#[test]
fn threads_that_the_system_refuses_are_told_of() {
    const NAME: &str = "builder::tests::threads_that_the_system_refuses_are_told_of";
    if std::env::var_os("FEW_THREADS").is_some() {
        let pool = PoolConfig {
            threads: 64,
            ..PoolConfig::default()
        };
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
        let kib: u64 = size
            .and_then(|it| it.split_whitespace().next()?.parse().ok())
            .expect("a number");
        let (most, own) = ((kib << 10) + (8 << 20), std::process::id().to_string());
        let limited = std::process::Command::new("prlimit")
            .args(["--pid", &own, &format!("--as={most}")])
            .status();
        assert!(limited.expect("prlimit runs").success());
        let said = builder().pool(pool).start().expect_err("refused").to_string();
        let told = "the system refused a thread for reads or messages: Resource temporarily unavailable (os error 11); allow its user \
                    more threads (ulimit -u), or it more memory (ulimit -v), or its container more of both";
        assert_eq!(said, told);
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", NAME, "--test-threads=1", "--nocapture"])
        .env("FEW_THREADS", "yes")
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn unknown_entities_are_told_to_the_caller_and_nothing_is_done() {
    let sync = EntitySync::builder()
        .entity("items", Entity::read(|_| Ok(Rows::none())))
        .start()
        .expect("starts");
    let key = |entity| EntityKey::new(entity, "1").expect("short");
    let (items, nope) = (key("items"), key("nope"));
    assert_eq!(sync.notify(&items), Ok(()));
    let error = sync.notify(&nope).expect_err("unknown");
    assert_eq!(
        error.to_string(),
        "\"nope\" is no registered entity: register it, or correct the name"
    );
    let before = sync.handle().counters().snapshot();
    assert_eq!(sync.notify_many([&items, &nope]), Err(UnknownEntity { key: nope }));
    let after = sync.handle().counters().snapshot();
    assert_eq!(after.notifies - before.notifies, 1, "only the one that is refused");
    assert_eq!(sync.notify_many([&items, &items]), Ok(()));
}
