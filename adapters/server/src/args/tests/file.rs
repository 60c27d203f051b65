//! The configuration file.

use super::*;

#[test]
fn a_file_says_what_flags_leave_out() {
    let good = file(
        "listen = ['127.0.0.1:1', '127.0.0.1:2']\nreactors = 3\nsnapshot = true\ndata = ':memory:'\norigin = '*'\n\
         delivery = 'every'\nlog-format = 'json'\n",
    );
    let path = good.path().to_str().expect("text");
    let options = ok(&["--config", path]);
    let listen = ["127.0.0.1:1", "127.0.0.1:2"].map(|it| it.parse().expect("address"));
    assert_eq!(options.listen, listen);
    assert_eq!((options.reactors.get(), others(&options).snapshot), (3, true));
    assert_eq!((&options.data, &options.origins), (&Location::Memory, &Origins::Any));
    assert_eq!(others(&options).delivery, Delivery::Every);
    assert_eq!(ok(&["serve", "--config", path]), options);
    let options = ok(&["--config", path, "--listen=127.0.0.1:9", "--snapshot=false"]);
    assert_eq!(options.listen, ["127.0.0.1:9".parse().expect("address")]);
    assert!(!others(&options).snapshot);
    assert_eq!(options.reactors.get(), 3);
}

#[test]
fn errors_in_a_file_name_it() {
    refused(
        &["--config=/nowhere/x.toml"],
        "the configuration file /nowhere/x.toml can't be used: No such file or directory",
    );
    for (text, said) in [
        ("listen = ", "can't be used: TOML parse error at line 1, column 10"),
        ("lisen = 'x'", ": there is no \"lisen\"; did you mean \"listen\"?"),
        (
            "max_connections = 3",
            "no \"max_connections\"; did you mean \"max-connections\"?",
        ),
        ("snapshots = true", "no \"snapshots\"; did you mean \"snapshot\"?"),
        (
            "volume = 'x'",
            ": there is no \"volume\"; keys are the names of the flags without --, which entity-sync --help lists, and \
             [entities.NAME]",
        ),
        ("config = 'x'", ": there is no \"config\"; "),
        (
            "[listen]\na = 1",
            ": \"listen\" must be a text, a number, true or false, or a list of such",
        ),
        (
            "listen = 1979-05-27",
            ": \"listen\" must be a text, a number, true or false, or a list of such",
        ),
        (
            "listen = 1.5",
            "invalid value '1.5' for '--listen <ADDR>': write an IP address or a name of this machine, and a port, such as",
        ),
        ("reactors = 1.5", "write a number from 1 to 1024"),
        ("read-time-limit = nan", "write a number of seconds from 0.01 to 86400"),
        ("snapshot = 'maybe'", "invalid value 'maybe' for '--snapshot [<BOOL>]'"),
        (
            "delivery = 'some'",
            "invalid value 'some' for '--delivery <WHICH>'\n  [possible values: latest, every]",
        ),
    ] {
        let file = file(text);
        let path = file.path().to_str().expect("text");
        refused(&["--config", path], said);
        refused(&["--config", path], path);
    }
}

#[test]
fn durations_of_a_file_may_be_fractions() {
    let good = file(
        "read-time-limit = 2.5\nping-interval = 0.5\ndead-after = 7\nbus = 'nats'\nnats = 'nats://a'\n\
         resolver = 'http=http://a/{id}'\nheartbeat-ms = 12.5\nsweep-every-seconds = 1.5\n",
    );
    let options = ok(&["--config", good.path().to_str().expect("text")]);
    let mut config = entity_sync_core::Config::new(entity_sync_core::Seed(0, 0));
    options.limits.apply(&mut config);
    let ms = std::time::Duration::from_millis;
    let limits = (config.read_time_limit, config.ping_interval, config.dead_after);
    assert_eq!(limits, (ms(2500), ms(500), ms(7000)));
    let cluster = options.cluster.expect("a bus");
    assert_eq!(
        (cluster.heartbeat.as_micros(), cluster.sweep_every),
        (12_500, Some(ms(1500)))
    );
}

#[test]
fn entities_of_a_file_differ_from_the_others() {
    let good = file(
        "resolver = 'postgres=postgres://u:hidden@h/shop'\npostgres-role = 'SELECT 1'\nsnapshot = true\n\
         [entities.items]\nquery = 'SELECT id, a FROM items'\n\
         [entities.prices]\nresolver = 'http=http://h/{id}'\naudience = 'public'\nsnapshot = false\ndelivery = 'every'\n\
         [entities.notes]\nresolver = 'store'\naudience = 'secret'\n",
    );
    let options = ok(&["--config", good.path().to_str().expect("text")]);
    assert_eq!(options.others, None);
    assert_eq!(options.postgres_role.as_deref(), Some("SELECT 1"));
    let of = |name: &str| &options.entities[name];
    assert!(matches!(&of("items").source, Source::Postgres { query: Some(query), .. } if query.contains("items")));
    assert!(!of("items").is_public && of("items").snapshot);
    assert!(matches!(of("prices").source, Source::Http(_)));
    assert!(of("prices").is_public && !of("prices").snapshot);
    assert_eq!(of("prices").delivery, Delivery::Every);
    assert_eq!(of("notes").source, Source::Store);
    assert!(!of("notes").is_public);
    assert!(!format!("{options:?}").contains("hidden"));
}

#[test]
fn tables_of_a_file_are_checked() {
    for (text, said) in [
        ("entities = 3", "write [entities.NAME] and its settings below"),
        (
            "[entities]\nitems = 3",
            "invalid type: integer `3`, expected settings below a line such as [entities.prices]",
        ),
        (
            "[entities.items]\nqury = 'x'",
            "there is no \"qury\"; did you mean \"query\"?",
        ),
        (
            "[entities.items]\nvolume = 'x'",
            "there is no \"volume\"; an entity has resolver, query, audience, snapshot, delivery",
        ),
        (
            "[entities.items]\naudience = 'all'",
            "unknown variant `all`, expected `secret` or `public`",
        ),
        (
            "[entities.items]\nresolver = 'x'",
            "[entities.items] write store, or http=",
        ),
        (
            "[entities.items]\nquery = 'x'",
            "[entities.items] has a query, but no database: write resolver = \"postgres=DSN\" too",
        ),
        (
            "[entities.items]\nresolver = 'postgres=postgres://u@h/x'",
            "[entities.items] has no query: write query = \"SELECT",
        ),
    ] {
        let file = file(text);
        refused(&["--config", file.path().to_str().expect("text")], said);
    }
}

#[test]
fn tables_are_of_entities_that_there_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.toml");
    std::fs::write(&path, "[entities.prices]\nsnapshot = true\n").expect("writable");
    let path = path.to_str().expect("UTF-8");
    refused(
        &["--config", path, "--entity=items"],
        "[entities.prices] is none of the entities that --entity names: add --entity prices, or leave the table out",
    );
    let options = ok(&["--config", path, "--entity=items", "--entity=prices"]);
    assert_eq!(
        (options.entities["prices"].snapshot, options.entities["items"].snapshot),
        (true, false)
    );
    assert_eq!(options.others, None);
}
