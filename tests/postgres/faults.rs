//! What can't be read, and what only an operator can mend.

use std::fmt::Write as _;

use entity_sync_tests::postgres::Postgres;
use entity_sync_tests::{Client, wait_for};

use super::{block, client, configured, hears, metric, start};

#[test]
fn faults() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    postgres.sql("postgres", "CREATE DATABASE shop");
    postgres.sql("shop", block("sql"));
    what_can_not_be_converted_is_not_found(&postgres);
    bad_ids_cost_others_nothing(&postgres);
    bad_secrets_cost_others_nothing(&postgres);
    secrets_are_not_shown(&postgres);
    a_role_that_does_not_exist_is_for_the_operator(&postgres);
    readiness_tells_of_a_database_that_can_not_be_used(&postgres);
    certificates_are_checked(&postgres);
}

/// The page's configuration without roles, with a table of numbers that anyone may see.
fn with_numbers(text: String) -> String {
    let mut text = text.replace("postgres-role", "# postgres-role");
    let _ = writeln!(
        text,
        "[entities.numbers]\naudience = 'public'\nquery = 'SELECT id, row_to_json(numbers) FROM numbers WHERE id = \
         ANY($1::int[])'\n[entities.days]\nquery = 'SELECT i, d FROM unnest($1) i, LATERAL (SELECT i::date::text) AS t (d)'\n\
         [entities.bytes]\nquery = \"SELECT i, 'x' FROM unnest($1) i WHERE i::bytea IS NOT NULL\"\n\
         [entities.mine]\nquery = \"SELECT i, 'x' FROM unnest($1) i WHERE $2::int > 0\"\n\
         [entities.told]\nquery = \"SELECT i, 'x' FROM unnest($1) i WHERE refuse($2)\"\n"
    );
    text
}

fn what_can_not_be_converted_is_not_found(postgres: &Postgres) {
    postgres.sql(
        "shop",
        "CREATE TABLE numbers (id int PRIMARY KEY, n int NOT NULL DEFAULT 0);
         GRANT SELECT ON numbers TO entity_sync; INSERT INTO numbers SELECT generate_series(1, 499);
         CREATE FUNCTION refuse(secret text) RETURNS boolean LANGUAGE plpgsql AS
         'BEGIN RAISE ''there is no session %, go away'', upper(secret); END'",
    );
    let (_folder, config) = configured(postgres, with_numbers);
    let process = start(&config);
    hears(&process);
    let keys = [
        ("days", "2026-02-30"),
        ("days", "x"),
        ("bytes", r"\\x1"),
        ("numbers", "one"),
        ("numbers", "99999999999"),
        ("mine", "1"),
        ("days", "2026-02-28"),
        ("bytes", r"\\x11"),
    ];
    let mut anyone = client(&process, "a", &keys);
    let mut rows = [anyone.row(), anyone.row()];
    rows.sort();
    assert_eq!(rows, ["2026-02-28", "x"]);
    wait_for("the others to be answered", || {
        metric(&process, "not_found_reads_total") >= 6
    });
    // Nothing is tried again, and nothing is wrong.
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(metric(&process, "errors_total{kind=\"failed_read\"}"), 0);
    assert_eq!(process.call("GET", "/readyz", "").1, r#"{"status":"ok"}"#);
}

fn bad_ids_cost_others_nothing(postgres: &Postgres) {
    const ROUNDS: u64 = 20;
    let (_folder, config) = configured(postgres, |text| with_numbers(text.replace("snapshot = true", "")));
    let process = start(&config);
    hears(&process);
    let ids: Vec<String> = (1..=499).map(|id| id.to_string()).collect();
    let keys: Vec<_> = ids.iter().map(|id| ("numbers", id.as_str())).collect();
    let mut bad = client(&process, "a", &[("numbers", "one")]);
    let mut good = client(&process, "b", &keys);
    let batches = metric(&process, "postgres_batches_total");
    let all: Vec<String> = ids
        .iter()
        .map(String::as_str)
        .chain(["one"])
        .map(|id| format!(r#"{{"entity":"numbers","id":"{id}"}}"#))
        .collect();
    for round in 1..=ROUNDS {
        postgres.sql("shop", &format!("UPDATE numbers SET n = {round}"));
        assert_eq!(process.call("POST", "/notify", &format!("[{}]", all.join(","))).0, 202);
        let mut left = ids.len();
        while left > 0 {
            left -= usize::from(good.row().ends_with(&format!("\"n\":{round}}}")));
        }
    }
    let batches = metric(&process, "postgres_batches_total") - batches;
    println!("{batches} queries for {ROUNDS} rounds of 500 ids, of which one is bad");
    assert!(batches < 50 * ROUNDS, "{batches} queries");
    assert_eq!(bad.sync(), [""; 0]);
}

fn bad_secrets_cost_others_nothing(postgres: &Postgres) {
    const IDS: u64 = 30;
    let (_folder, config) = configured(postgres, with_numbers);
    let process = start(&config);
    hears(&process);
    let ids: Vec<String> = (0..IDS).map(|id| id.to_string()).collect();
    // One after the other, as an id that is alone in its query is easily taken for the bad one.
    let mut bad = client(&process, "no number", &[]);
    for (done, id) in (1..).zip(&ids) {
        bad.subscribe("mine", id);
        wait_for("it to be refused", || metric(&process, "not_found_reads_total") >= done);
    }
    let batches = metric(&process, "postgres_batches_total");
    let mut good = Client::connect(process.clients);
    good.secret("1");
    for id in &ids {
        good.subscribe("mine", id);
    }
    for _ in 0..IDS {
        assert_eq!(good.row(), "x");
    }
    let batches = metric(&process, "postgres_batches_total") - batches;
    println!("{batches} queries for {IDS} ids that were read with a bad secret before");
    assert!(batches < IDS / 2, "{batches} queries");
}

fn secrets_are_not_shown(postgres: &Postgres) {
    let (_folder, config) = configured(postgres, with_numbers);
    let process = start(&config);
    hears(&process);
    let _client = client(&process, "open-sesame-1001", &[("told", "1")]);
    wait_for("the failure to be told", || {
        let (status, text) = process.call("GET", "/readyz", "");
        assert!(!text.to_lowercase().contains("sesame"), "{text}");
        status == 200 && text.contains(r#"\"told\" \"1\""#) && text.contains("P0001")
    });
}

/// With the code of text that is no `bytea`, which is nobody's fault.
fn a_role_that_does_not_exist_is_for_the_operator(postgres: &Postgres) {
    let (_folder, config) = configured(postgres, |text| {
        text.replace("SELECT role FROM sessions WHERE token = $1", "SELECT 'nobody'")
    });
    let process = start(&config);
    hears(&process);
    let _client = client(&process, "open-sesame-1001", &[("items", "1")]);
    wait_for("the role to be named", || {
        let (status, text) = process.call("GET", "/readyz", "");
        status == 200 && text.contains("nobody") && text.contains("correct the query or the database")
    });
}

fn readiness_tells_of_a_database_that_can_not_be_used(postgres: &Postgres) {
    let (_folder, config) = configured(postgres, |text| text.replace("//entity_sync:", "//late:"));
    let process = start(&config);
    wait_for("it to say so", || {
        let (status, text) = process.call("GET", "/readyz", "");
        status == 503 && text.contains("late")
    });
    assert_eq!(process.call("GET", "/healthz", "").0, 200);
    postgres.sql("shop", "CREATE ROLE late LOGIN");
    wait_for("it to be ready", || process.call("GET", "/readyz", "").0 == 200);
    hears(&process);
    // A query that has become wrong.
    let (_folder, config) = configured(postgres, with_numbers);
    let process = start(&config);
    hears(&process);
    let mut anyone = client(&process, "a", &[("numbers", "1")]);
    assert!(anyone.row().starts_with(r#"{"id":1"#));
    postgres.sql("shop", "ALTER TABLE numbers RENAME TO elsewhere");
    let notify = r#"{"entity":"numbers","id":"1"}"#;
    assert_eq!(process.call("POST", "/notify", notify).0, 202);
    wait_for("the query to be named", || {
        let (status, text) = process.call("GET", "/readyz", "");
        status == 200 && text.contains(r#"\"numbers\" \"1\""#) && text.contains("42P01")
    });
    postgres.sql("shop", "ALTER TABLE elsewhere RENAME TO numbers");
}

fn certificates_are_checked(postgres: &Postgres) {
    let authority = rcgen::KeyPair::generate().unwrap();
    let mut of_authority = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    of_authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = of_authority.self_signed(&authority).unwrap();
    let issuer = rcgen::Issuer::new(of_authority, authority);
    let key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let server = server.signed_by(&key, &issuer).unwrap();
    postgres.encrypt(&server.pem(), &key.serialize_pem());
    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("root.crt");
    std::fs::write(&roots, root.pem()).unwrap();
    for (host, parameters, said) in [
        ("localhost", "sslmode=verify-full&sslrootcert=ROOTS", None),
        ("127.0.0.1", "sslmode=verify-ca&sslrootcert=ROOTS", None),
        (
            "127.0.0.1",
            "sslmode=verify-full&sslrootcert=ROOTS",
            Some("not valid for name"),
        ),
        ("localhost", "sslmode=verify-ca", Some("UnknownIssuer")),
        ("localhost", "sslmode=require", Some("UnknownIssuer")),
    ] {
        let parameters = parameters.replace("ROOTS", &roots.display().to_string().replace('/', "%2F"));
        let (_folder, config) = configured(postgres, |text| {
            text.replace("127.0.0.1:", &format!("{host}:"))
                .replace("/shop\"", &format!("/shop?{parameters}\""))
        });
        let process = start(&config);
        match said {
            None => {
                hears(&process);
                let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND usename = \
                                 'entity_sync'";
                assert_ne!(postgres.sql("shop", encrypted), "0", "{parameters}");
            }
            Some(said) => {
                let mut last = String::new();
                wait_for("it to be refused", || {
                    let (status, text) = process.call("GET", "/readyz", "");
                    last = text;
                    status == 503
                });
                assert!(last.contains(said), "{host} {parameters}: {last}");
            }
        }
    }
}
