//! The binary on a real PostgreSQL: the page `docs/postgres.md`, and what goes wrong with databases.

mod faults;
mod pooler;

use std::fmt::Write as _;
use std::path::PathBuf;

use entity_sync_tests::node::Node;
use entity_sync_tests::postgres::Postgres;
use entity_sync_tests::{Client, wait_for};

use crate::binary::{Process, binary, run_with};

const PAGE: &str = include_str!("../docs/postgres.md");

/// The page's block of this language.
fn block(language: &str) -> &'static str {
    let (_, rest) = PAGE.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0
}

/// A folder with the page's configuration, made for a server on another port, and changed.
fn configured(postgres: &Postgres, change: impl Fn(String) -> String) -> (tempfile::TempDir, PathBuf) {
    configured_at(postgres.port(), change)
}

fn configured_at(port: u16, change: impl Fn(String) -> String) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("entity-sync.toml");
    let port = format!("127.0.0.1:{port}");
    let text = block("toml").replace("127.0.0.1:5432", &port);
    assert!(text.contains(&port));
    std::fs::write(&path, change(text)).unwrap();
    (folder, path)
}

fn start(config: &std::path::Path) -> Process {
    Process::start_with(":memory:", &["--config", config.to_str().unwrap()])
}

fn client(process: &Process, token: &str, keys: &[(&str, &str)]) -> Client {
    let mut client = Client::connect(process.clients);
    client.secret(token);
    for (entity, id) in keys {
        client.subscribe(entity, id);
    }
    client.sync_and_keep();
    client
}

/// A number of `/metrics`.
fn metric(process: &Process, name: &str) -> u64 {
    let (_, text) = process.call("GET", "/metrics", "");
    let mut lines = text.lines();
    let is_it = |line: &&str| {
        let rest = line.strip_prefix("entity_sync_").and_then(|it| it.strip_prefix(name));
        rest.is_some_and(|it| it.starts_with("{source=") || it.starts_with(' '))
    };
    let line = lines.find(is_it);
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn hears(process: &Process) {
    wait_for("notifications to be heard", || {
        metric(process, "postgres_listening") == 1
    });
}

/// One server for all, as it takes a while to start.
#[test]
fn rows_from_postgres() {
    let Some(mut postgres) = Postgres::start() else {
        return;
    };
    postgres.sql("postgres", "CREATE DATABASE shop");
    postgres.sql("shop", block("sql"));
    the_page(&postgres);
    bursts_are_batched(&postgres);
    one_id_hurts_no_other(&postgres);
    nodes_of_a_cluster_hear_each_by_itself(&postgres);
    who_cannot_listen_is_told_by_one_that_can(&postgres);
    what_is_wrong_is_said(&postgres);
    gaps_are_read_over(&mut postgres);
    a_database_may_come_later(&mut postgres);
}

fn the_page(postgres: &Postgres) {
    let (_folder, config) = configured(postgres, |text| text);
    let process = start(&config);
    hears(&process);
    let keys = [("items", "1"), ("salaries", "ann"), ("items", "none")];
    let mut clerk = client(&process, "token-of-a-clerk", &keys);
    let mut manager = client(&process, "token-of-a-manager", &keys);
    let mut nobody = client(&process, "guess", &keys);
    let bicycle = |price| format!(r#"{{"id":"1","name":"bicycle","price":{price}}}"#);
    let salary = |amount| format!(r#"{{"id":"ann","amount":{amount}}}"#);
    assert_eq!(clerk.row(), bicycle(250));
    let mut both = [manager.row(), manager.row()];
    both.sort();
    assert_eq!(both, [bicycle(250), salary(5000)]);
    let change = PAGE.split("--command \"").nth(1).unwrap().split('"').next().unwrap();
    postgres.sql("shop", change);
    assert_eq!(clerk.row(), bicycle(240));
    let mut both = [manager.row(), manager.row()];
    both.sort();
    assert_eq!(both, [bicycle(240), salary(5100)]);
    // A right that is taken away, and one that is given.
    postgres.sql(
        "shop",
        "REVOKE SELECT ON salaries FROM manager; GRANT SELECT ON salaries TO clerk",
    );
    postgres.sql("shop", "UPDATE salaries SET amount = 5200");
    assert_eq!(clerk.row(), salary(5200));
    postgres.sql(
        "shop",
        "GRANT SELECT ON salaries TO manager; REVOKE SELECT ON salaries FROM clerk",
    );
    // What is not committed is nobody's business, and what is gone pushes nothing.
    postgres.sql("shop", "BEGIN; UPDATE items SET price = 1; ROLLBACK");
    postgres.sql("shop", "INSERT INTO items VALUES ('none', 'x', 1)");
    assert_eq!(clerk.row(), r#"{"id":"none","name":"x","price":1}"#);
    postgres.sql("shop", "DELETE FROM items WHERE id = 'none'");
    postgres.sql("shop", "UPDATE items SET price = 250 WHERE id = '1'");
    assert_eq!(clerk.row(), bicycle(250));
    wait_for("all to be read", || {
        metric(&process, "postgres_notifications_total") >= 6
    });
    assert_eq!(nobody.sync(), [""; 0]);
    assert!(metric(&process, "denied_reads_total") >= 4);
    let manager_rows = manager.sync();
    assert!(!manager_rows.contains(&salary(5200)), "{manager_rows:?}");
    // The API knows what it may not write, and what there is.
    assert_eq!(process.call("PUT", "/entities/items/1", "x").0, 409);
    assert_eq!(
        process.call("POST", "/notify", r#"{"entity":"nothing","id":"1"}"#).0,
        400
    );
    assert_eq!(process.call("POST", "/notify", r#"{"entity":"items","id":"1"}"#).0, 202);
    assert_eq!(clerk.row(), bicycle(250));
    // What is no key is counted.
    postgres.sql(
        "shop",
        "SELECT pg_notify('entity_sync', 'nonsense'), pg_notify('entity_sync', 'nothing/1')",
    );
    wait_for("both to be counted", || {
        metric(&process, "postgres_bad_notifications_total") == 2
    });
    assert_eq!(process.call("GET", "/healthz", "").0, 200);
}

fn bursts_are_batched(postgres: &Postgres) {
    const COUNT: u64 = 1000;
    postgres.sql(
        "shop",
        "INSERT INTO items SELECT 'b' || n, 'burst', 0 FROM generate_series(0, 999) n",
    );
    let (_folder, config) = configured(postgres, |text| text.replace("snapshot = true", ""));
    let process = start(&config);
    hears(&process);
    let ids: Vec<String> = (0..COUNT).map(|n| format!("b{n}")).collect();
    let keys: Vec<_> = ids.iter().map(|id| ("items", id.as_str())).collect();
    let mut clerk = client(&process, "token-of-a-clerk", &keys);
    let (reads, batches) = (
        metric(&process, "postgres_reads_total"),
        metric(&process, "postgres_batches_total"),
    );
    postgres.sql("shop", "UPDATE items SET price = 7 WHERE name = 'burst'");
    for _ in 0..COUNT {
        assert!(clerk.row().ends_with(r#""price":7}"#));
    }
    let reads = metric(&process, "postgres_reads_total") - reads;
    let batches = metric(&process, "postgres_batches_total") - batches;
    println!("{reads} reads in {batches} queries");
    assert!(
        reads >= COUNT && batches < COUNT / 2,
        "{reads} reads in {batches} queries"
    );
    postgres.sql("shop", "DELETE FROM items WHERE name = 'burst'");
}

fn one_id_hurts_no_other(postgres: &Postgres) {
    postgres.sql("shop", "CREATE TABLE numbers (id int PRIMARY KEY, half int NOT NULL)");
    postgres.sql(
        "shop",
        "INSERT INTO numbers VALUES (1, 1), (2, 0); GRANT SELECT ON numbers TO entity_sync",
    );
    let (_folder, config) = configured(postgres, |text| {
        let mut text = text.replace("postgres-role", "# postgres-role");
        let _ = writeln!(
            text,
            "[entities.numbers]\naudience = 'public'\nquery = '''\n\
             SELECT id, 10 / half FROM numbers WHERE id = ANY($1::int[]) -- a comment\n'''\n\
             [entities.me]\nquery = \"SELECT unnest($1), concat_ws('|', $2, $3, current_setting('entity_sync.secret'))\"\n\
             [entities.many]\nquery = \"SELECT i, n FROM unnest($1) i, generate_series(1, 3) n ORDER BY n\"\n\
             [entities.slow]\nquery = \"SELECT i, pg_sleep(60)::text FROM unnest($1) i\"\n"
        );
        text.replace("[entities.items]", "read-time-limit = 1\n[entities.items]")
    });
    let process = start(&config);
    hears(&process);
    // As JSON has it.
    let zero = "\\u0000";
    let keys = [
        ("numbers", "one"),
        ("numbers", "2"),
        ("numbers", "99999999999"),
        ("numbers", zero),
        ("slow", "1"),
    ];
    let mut bad = client(&process, "someone", &keys);
    let mut good = client(&process, "someone", &[("numbers", "1"), ("me", "x")]);
    let mut rows = [good.row(), good.row()];
    rows.sort();
    assert_eq!(rows, ["10", "someone|me|someone"]);
    good.subscribe("many", "1");
    assert_eq!([good.row(), good.row(), good.row()], ["1", "2", "3"]);
    // All in one query, of which one fails for ever and two can't exist.
    let all: Vec<String> = ["1", "2", "one", "99999999999"]
        .map(|id| format!(r#"{{"entity":"numbers","id":"{id}"}}"#))
        .into();
    assert_eq!(process.call("POST", "/notify", &format!("[{}]", all.join(","))).0, 202);
    assert_eq!(good.row(), "10");
    wait_for("the slow one to be given up", || {
        metric(&process, "postgres_failures_total") >= 2
    });
    postgres.sql("shop", "UPDATE numbers SET half = 5 WHERE id = 2");
    assert_eq!(bad.row(), "2", "it is tried again");
}

fn nodes_of_a_cluster_hear_each_by_itself(postgres: &Postgres) {
    let (folder, config) = configured(postgres, |text| text);
    let nodes = two_nodes(folder.path(), &config, [&[], &[]]);
    let mut clients = nodes.each_ref().map(|node| {
        wait_for("the other node", || node.peers("alive") == 1);
        wait_for("notifications", || node.metric("postgres_listening") == 1);
        let mut client = Client::connect(node.clients);
        client.secret("token-of-a-clerk");
        client.subscribe("items", "2");
        assert!(client.row().contains("lamp"));
        client
    });
    postgres.sql("shop", "UPDATE items SET price = 21 WHERE id = '2'");
    let lamp = r#"{"id":"2","name":"lamp","price":21}"#;
    for client in &mut clients {
        // All is read again when a node begins to hear, which may still be on its way.
        client.rows_until(lamp);
    }
    // The bus carries what the application tells one of them, and nothing else.
    let notify = r#"{"entity":"items","id":"2"}"#;
    assert_eq!(nodes[0].call("POST", "/notify", notify).0, 202);
    for client in &mut clients {
        assert_eq!(client.row(), lamp);
    }
    wait_for("the bus", || nodes[1].count("keys") > 0);
    // More of them would be on their way by now.
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(nodes.each_ref().map(|it| it.count("keys")), [0, 1]);
}

/// Two nodes over ZeroMQ that read from PostgreSQL, with further flags for each.
fn two_nodes(folder: &std::path::Path, config: &std::path::Path, flags: [&[&str]; 2]) -> [Node; 2] {
    let mut nodes = ["a", "b"].map(|name| Node::prepare(folder, name));
    let at = nodes.each_ref().map(|it| it.bus().to_string());
    for (number, node) in nodes.iter_mut().enumerate() {
        let (bind, peer) = (&at[number], &at[1 - number]);
        let bus = ["--bus", "zmq", "--zmq-bind", bind, "--zmq-peer", peer];
        let config = ["--config", config.to_str().unwrap()];
        node.set_flags(config.iter().chain(&bus).chain(flags[number]).copied());
        node.start();
    }
    nodes
}

fn who_cannot_listen_is_told_by_one_that_can(postgres: &Postgres) {
    let (folder, config) = configured(postgres, |text| text);
    // As good as deaf.
    let deaf = ["--postgres-channel", "elsewhere"];
    let nodes = two_nodes(folder.path(), &config, [&["--postgres-publish"], &deaf]);
    wait_for("notifications", || nodes[0].metric("postgres_listening") == 1);
    let mut client = Client::connect(nodes[1].clients);
    client.secret("token-of-a-clerk");
    client.subscribe("items", "2");
    assert!(client.row().contains("lamp"));
    wait_for("the other node", || nodes[1].peers("alive") == 1);
    postgres.sql("shop", "UPDATE items SET price = 22 WHERE id = '2'");
    client.rows_until(r#"{"id":"2","name":"lamp","price":22}"#);
    wait_for("the bus", || nodes[1].count("keys") > 0);
}

fn what_is_wrong_is_said(postgres: &Postgres) {
    for (change, said) in [
        (
            "SELECT id FROM items WHERE id = ANY($1)",
            "must give two columns, the id and the row",
        ),
        ("SELECT id, x FROM nowhere", "relation \"nowhere\" does not exist"),
        ("DROP TABLE items", "syntax error"),
    ] {
        let (_folder, config) = configured(postgres, |text| {
            text.replace("SELECT id, row_to_json(items) FROM items WHERE id = ANY($1)", change)
        });
        let free = "127.0.0.1:0";
        let arguments = ["--listen", free, "--api", free, "--config", config.to_str().unwrap()];
        let (code, text) = run_with(&binary(), &arguments);
        assert_eq!(code, Some(1), "{text}");
        assert!(
            text.starts_with("entity-sync: PostgreSQL refuses the query \"") && text.contains(said),
            "{text}"
        );
    }
}

fn gaps_are_read_over(postgres: &mut Postgres) {
    let (_folder, config) = configured(postgres, |text| text);
    let process = start(&config);
    hears(&process);
    let mut clerk = client(&process, "token-of-a-clerk", &[("items", "1")]);
    let bicycle = |price| format!(r#"{{"id":"1","name":"bicycle","price":{price}}}"#);
    assert_eq!(clerk.row(), bicycle(250));
    let gaps = metric(&process, "postgres_gaps_total");
    // A change that nobody is told of, and then the connections are lost.
    postgres.sql(
        "shop",
        "ALTER TABLE items DISABLE TRIGGER tell; UPDATE items SET price = 1 WHERE id = '1'",
    );
    postgres.sql("shop", "ALTER TABLE items ENABLE TRIGGER tell");
    postgres.stop();
    assert_eq!(clerk.sync(), [""; 0]);
    postgres.resume();
    assert_eq!(clerk.row(), bicycle(1));
    assert!(metric(&process, "postgres_gaps_total") > gaps);
    hears(&process);
    postgres.sql("shop", "UPDATE items SET price = 2 WHERE id = '1'");
    assert_eq!(clerk.row(), bicycle(2));
}

fn a_database_may_come_later(postgres: &mut Postgres) {
    postgres.stop();
    let (_folder, config) = configured(postgres, |text| text);
    let process = start(&config);
    let mut clerk = client(&process, "token-of-a-clerk", &[("items", "1")]);
    wait_for("a read to fail", || metric(&process, "postgres_failures_total") > 0);
    postgres.resume();
    assert_eq!(clerk.row(), r#"{"id":"1","name":"bicycle","price":2}"#);
}
