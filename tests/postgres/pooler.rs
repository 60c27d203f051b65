//! PostgreSQL behind a real PgBouncer.

use std::time::Duration;

use entity_sync_tests::pgbouncer::PgBouncer;
use entity_sync_tests::postgres::Postgres;
use entity_sync_tests::wait_for;

use super::{block, client, configured_at, hears, metric, start};

#[test]
fn poolers() {
    let Some(mut postgres) = Postgres::start() else {
        return;
    };
    postgres.sql("postgres", "CREATE DATABASE shop");
    postgres.sql("shop", block("sql"));
    by_transaction_nothing_is_left_behind_and_nothing_is_heard(&postgres);
    by_session_all_is_heard(&postgres);
    a_database_that_dies_behind_it_is_not_ready(&mut postgres);
}

fn by_transaction_nothing_is_left_behind_and_nothing_is_heard(postgres: &Postgres) {
    // All share one connection, so that each would see what another leaves behind.
    let Some(bouncer) = PgBouncer::start(postgres, "transaction", 1) else {
        return;
    };
    let (_folder, config) = configured_at(bouncer.port(), |text| {
        text + "\n[entities.me]\nquery = \"SELECT unnest($1), concat_ws('|', $2, current_user, \
                current_setting('statement_timeout'))\"\n"
    });
    let process = start(&config);
    let bicycle = |price| format!(r#"{{"id":"1","name":"bicycle","price":{price}}}"#);
    let mut clerk = client(&process, "token-of-a-clerk", &[("items", "1")]);
    assert_eq!(clerk.row(), bicycle(250));
    let mut manager = client(&process, "token-of-a-manager", &[("me", "x")]);
    assert_eq!(manager.row(), "token-of-a-manager|manager|5s");
    let mut nobody = client(&process, "guess", &[("items", "1"), ("me", "x")]);
    // Many at once, with others that do without settings between.
    for price in 1..=50 {
        postgres.sql_at(bouncer.port(), "entity_sync", "shop", "SELECT 1");
        postgres.sql("shop", &format!("UPDATE items SET price = {price} WHERE id = '1'"));
        let body = r#"[{"entity":"items","id":"1"},{"entity":"me","id":"x"}]"#;
        assert_eq!(process.call("POST", "/notify", body).0, 202);
        assert_eq!(clerk.row(), bicycle(price));
        assert_eq!(manager.row(), "token-of-a-manager|manager|5s");
    }
    assert_eq!(nobody.sync(), [""; 0]);
    // It says that it is deaf.
    wait_for("the trouble to be told", || {
        let (status, text) = process.call("GET", "/readyz", "");
        status == 200 && text.contains("don't come through") && text.contains("by transaction")
    });
    assert_eq!(metric(&process, "postgres_listening"), 0);
    let left = "SELECT current_setting('statement_timeout'), current_user, current_setting('entity_sync.secret', true), \
                current_setting('entity_sync.role', true), (SELECT count(*) FROM pg_prepared_statements), \
                (SELECT count(*) FROM pg_listening_channels())";
    wait_for("nothing to be left in the connection that all share", || {
        let other = postgres.sql_at(bouncer.port(), "entity_sync", "shop", left);
        // While it tries whether it hears, it listens.
        println!("{other}");
        other == "0|entity_sync|||0|0"
    });
}

fn by_session_all_is_heard(postgres: &Postgres) {
    let Some(bouncer) = PgBouncer::start(postgres, "session", 10) else {
        return;
    };
    let (_folder, config) = configured_at(bouncer.port(), |text| text);
    let process = start(&config);
    hears(&process);
    let mut clerk = client(&process, "token-of-a-clerk", &[("items", "2")]);
    assert!(clerk.row().contains("lamp"));
    postgres.sql("shop", "UPDATE items SET price = 77 WHERE id = '2'");
    clerk.rows_until(r#"{"id":"2","name":"lamp","price":77}"#);
    // What is tried is no notification of the application's.
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(metric(&process, "postgres_bad_notifications_total"), 0);
}

fn a_database_that_dies_behind_it_is_not_ready(postgres: &mut Postgres) {
    let Some(bouncer) = PgBouncer::start(postgres, "session", 10) else {
        return;
    };
    let (_folder, config) = configured_at(bouncer.port(), |text| text);
    let process = start(&config);
    hears(&process);
    let mut clerk = client(&process, "token-of-a-clerk", &[("items", "2")]);
    assert!(clerk.row().contains("lamp"));
    let is_ready = || {
        let notify = r#"{"entity":"items","id":"2"}"#;
        assert_eq!(process.call("POST", "/notify", notify).0, 202);
        std::thread::sleep(Duration::from_millis(50));
        let (status, text) = process.call("GET", "/readyz", "");
        println!("{text}");
        status == 200
    };
    postgres.stop();
    wait_for("it not to be ready", || !is_ready());
    // The pooler still accepts connections, which does not prove that the database works.
    for _ in 0..60 {
        assert!(!is_ready());
    }
    postgres.resume();
    wait_for("it to be ready", is_ready);
}
