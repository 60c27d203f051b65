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
        "\"localhost\" can't be used: write an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080, or \
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
        &format!("can't listen to {address}: another program does already; stop it or choose another port"),
    );
    first.shutdown(Duration::ZERO);
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
