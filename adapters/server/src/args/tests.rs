use entity_sync_mio::Delivery;

use super::*;

mod cluster;
mod curve;
mod file;

fn parse(args: &[&str]) -> Result<Options, String> {
    let all = ["entity-sync"].iter().chain(args);
    match Task::parse(all).map_err(|error| error.to_string())?.0 {
        Task::Serve(options) => Ok(*options),
        _ => panic!("another task"),
    }
}

fn ok(args: &[&str]) -> Options {
    parse(args).expect("valid")
}

fn others(options: &Options) -> &EntityRules {
    options.others.as_ref().expect("there are others")
}

#[track_caller]
fn refused(args: &[&str], text: &str) {
    let error = parse(args).expect_err("refused");
    assert!(error.contains(text), "{error}");
}

#[test]
fn the_defaults() {
    let options = ok(&[]);
    let expected = Options {
        listen: vec!["127.0.0.1:8080".parse().expect("address")],
        api: api::Address::Tcp("127.0.0.1:8081".parse().expect("address")),
        api_token: None,
        data: Location::File("./entity-sync.db".into()),
        reactors: thread::available_parallelism().expect("CPUs"),
        paths: vec!["/ws/entity-sync/".to_owned()],
        origins: Origins::Same,
        allowed_hosts: Vec::new(),
        others: Some(EntityRules {
            source: Source::Store,
            is_public: true,
            snapshot: false,
            delivery: Delivery::Latest,
        }),
        entities: BTreeMap::new(),
        postgres_channel: "entity_sync".to_owned(),
        postgres_connections: NonZeroUsize::new(4).expect("not 0"),
        http_reads: NonZeroUsize::new(64).expect("not 0"),
        postgres_role: None,
        cluster: None,
        limits: Limits::default(),
        log: LogLevel::Info,
        log_format: LogFormat::Text,
    };
    assert_eq!(options, expected);
    assert_eq!(ok(&["serve"]), expected);
}

#[test]
fn flags_work_with_and_without_serve() {
    let flags = [
        "--listen=[::]:1",
        "--listen=127.0.0.1:7",
        "--snapshot",
        "--delivery=every",
        "--log=debug",
        "--log-format=json",
        "--api=[::1]:2",
        "--data=:memory:",
        "--reactors=3",
        "--path=/a",
        "--path=/b/",
        "--origin=https://Example.com:443",
        "--origin=http://localhost:3000",
    ];
    let plain = ok(&flags);
    let listen = ["[::]:1", "127.0.0.1:7"].map(|it| it.parse().expect("address"));
    assert_eq!(plain.listen, listen);
    let others = others(&plain);
    assert_eq!((others.snapshot, others.delivery), (true, Delivery::Every));
    assert_eq!((plain.log, plain.log_format), (LogLevel::Debug, LogFormat::Json));
    assert_eq!(plain.api, api::Address::Tcp("[::1]:2".parse().expect("address")));
    assert_eq!(plain.data, Location::Memory);
    assert_eq!(plain.reactors.get(), 3);
    assert_eq!(plain.paths, ["/a", "/b/"]);
    let listed = ["https://example.com", "http://localhost:3000"];
    assert_eq!(plain.origins, Origins::List(listed.map(str::to_owned).to_vec()));
    let mut with_serve = vec!["serve"];
    with_serve.extend(flags);
    assert_eq!(ok(&with_serve), plain);
}

#[test]
fn a_star_is_any_origin() {
    let options = ok(&["--origin", "*", "--origin", "https://example.com"]);
    assert_eq!(options.origins, Origins::Any);
}

#[test]
fn without_a_token_the_api_stays_on_loopback() {
    for api in ["0.0.0.0:8081", "192.168.0.7:8081", "[::]:8081"] {
        refused(
            &["--api", api],
            &format!(
                "--api {api} can be reached from other machines, and without a token anyone there could write; keep it on \
                 127.0.0.1, or name a file that holds a token with --api-token-file"
            ),
        );
    }
    for api in ["127.0.0.2:8081", "[::1]:8081", "[::ffff:127.0.0.1]:8081"] {
        ok(&["--api", api]);
    }
    let file = file("0123456789abcdef\n");
    let path = file.path().to_str().expect("text");
    let options = ok(&["--api=0.0.0.0:8081", "--api-token-file", path]);
    assert_eq!(options.api_token, Token::new("0123456789abcdef"));
    assert!(!format!("{options:?}").contains("0123456789abcdef"));
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    file
}

#[test]
fn tokens_must_be_worth_it() {
    refused(
        &["--api-token-file=/nowhere/token"],
        "the token file /nowhere/token can't be read (No such file or directory (os error 2)); write one with: umask 077; head -c 32 \
         /dev/urandom | base64 > /nowhere/token",
    );
    for text in [
        "",
        "short",
        "0123456789 abcdef",
        "0123456789abcdef\n0123456789abcdef",
        "0123456789abcd\u{e9}f",
    ] {
        let file = file(text);
        refused(
            &["--api-token-file", file.path().to_str().expect("text")],
            "can't be used: it must be one line of at least 16 visible ASCII characters; write one with: umask 077; head -c 32",
        );
    }
}

#[test]
fn values_of_a_kind_are_checked_by_kind() {
    refused(&["--delivery=some"], "[possible values: latest, every]");
    refused(
        &["--log=loud"],
        "[possible values: off, error, warn, info, debug, trace]",
    );
    refused(&["--log-format=xml"], "[possible values: text, json]");
    refused(&["--snapshot=maybe"], "invalid value 'maybe' for '--snapshot [<BOOL>]'");
    refused(&["--nope"], "unexpected argument '--nope' found");
    refused(
        &["completions", "cmd"],
        "[possible values: bash, elvish, fish, powershell, zsh]",
    );
}

#[test]
fn completions_are_another_task() {
    let (task, _) = Task::parse(["entity-sync", "completions", "bash"]).expect("valid");
    assert!(matches!(task, Task::Completions(clap_complete::Shell::Bash)));
}

/// Of both kinds, and of each that a value may be one of.
#[test]
fn yes_or_no_may_follow_a_space() {
    for (args, expected) in [
        (&["--snapshot", "yes"][..], true),
        (&["--snapshot", "no"], false),
        (&["--snapshot=on"], true),
        (&["--snapshot", "--log=warn"], true),
        (&["serve", "--snapshot", "false"], false),
    ] {
        assert_eq!(others(&ok(args)).snapshot, expected, "{args:?}");
    }
    let bus = ["--bus=nats", "--nats=nats://a", "--postgres-publish", "yes"];
    assert!(ok(&bus).cluster.expect("a bus").publishes_postgres);
}

#[test]
fn addresses_have_a_port() {
    for listen in [
        "localhost",
        "127.0.0.1",
        ":8080",
        "127.0.0.1:99999",
        "a b:1",
        "http://localhost:80",
    ] {
        refused(
            &["--listen", listen],
            "write an IP address or a name of this machine, and a port, such as 127.0.0.1:8080, localhost:8080 or [::1]:8080",
        );
    }
    refused(
        &["--listen=nowhere.invalid:80"],
        "there is no address for this name; write an IP address",
    );
}

#[test]
fn names_stand_for_addresses() {
    let options = ok(&["--listen=localhost:8080", "--api=localhost:8081"]);
    assert_eq!(options.listen, ["127.0.0.1:8080".parse().expect("an address")]);
    assert_eq!(options.api.to_string(), "127.0.0.1:8081");
}

#[test]
fn the_api_is_at_a_port_or_a_socket() {
    for api in ["localhost", "unix:", "/run/api.sock"] {
        refused(
            &["--api", api],
            &format!(
                "the API can't be at {api:?}: write an IP address or a name of this machine, and a port, such as \
                 127.0.0.1:8081 or localhost:8081, or unix: and the path of a socket, such as unix:/run/entity-sync/api.sock \
                 (--api)"
            ),
        );
    }
    // Nobody else's machine reaches it, so it needs no token.
    let api = ok(&["--api=unix:run/api.sock"]).api;
    assert_eq!(api, api::Address::Unix("run/api.sock".into()));
    assert_eq!(api.to_string(), "unix:run/api.sock");
}

#[test]
fn ports_must_differ() {
    refused(
        &["--listen=127.0.0.1:9000", "--api=127.0.0.1:9000"],
        "--listen 127.0.0.1:9000 and --api 127.0.0.1:9000 use the same port: give one of them \
         another port",
    );
    refused(&["--listen=0.0.0.0:8081"], "use the same port");
    let token = file("0123456789abcdef");
    let token = ["--api-token-file", token.path().to_str().expect("text")];
    refused(&[&token[..], &["--api=0.0.0.0:8080"]].concat(), "use the same port");
    ok(&["--listen=127.0.0.1:0", "--api=127.0.0.1:0"]);
}

#[test]
fn data_is_a_file_or_memory() {
    assert_eq!(ok(&["--data=x.db"]).data, Location::File("x.db".into()));
    refused(&["--data="], "a value is required for '--data <FILE>'");
}

#[test]
fn reactors_are_a_small_number() {
    for n in ["0", "-1", "many", "1025"] {
        refused(&[&format!("--reactors={n}")], "write a number from 1 to 1024");
    }
}

#[test]
fn paths_are_what_a_request_can_name() {
    for path in ["ws", "", "/a b", "/a?b", "/a#b", "/\u{e9}"] {
        refused(&[&format!("--path={path}")], "it begins with / and has no spaces");
    }
}

#[test]
fn origins_are_what_a_browser_sends() {
    for origin in [
        "example.com",
        "https://example.com/",
        "https://*.example.com",
        "https://",
        "null",
    ] {
        refused(
            &[&format!("--origin={origin}")],
            "write a scheme and a host without a path, such as https://example.com",
        );
    }
    assert_eq!(origin("http://a:80").as_deref(), Ok("http://a"));
    assert_eq!(origin("http://a:8080").as_deref(), Ok("http://a:8080"));
    assert_eq!(origin("app://Host:80").as_deref(), Ok("app://host:80"));
}

#[test]
fn help_teaches_by_example() {
    let help = parse(&["--help"]).expect_err("help");
    for text in [
        "curl -X PUT http://127.0.0.1:8081/entities/items/100",
        "--listen 0.0.0.0:8080 lets clients of other machines in",
        "[env: ENTITY_SYNC_ORIGIN",
        "[default: ./entity-sync.db]",
    ] {
        assert!(help.contains(text), "{text} is not in {help}");
    }
}

/// A process can't change its own environment safely, so the test runs itself again.
#[test]
fn each_flag_is_an_environment_variable_too() {
    const SETTINGS: [(&str, &str); 10] = [
        ("ENTITY_SYNC_LISTEN", "127.0.0.1:1"),
        ("ENTITY_SYNC_API", "127.0.0.1:2"),
        ("ENTITY_SYNC_DATA", ":memory:"),
        ("ENTITY_SYNC_REACTORS", "3"),
        ("ENTITY_SYNC_PATH", "/a,/b"),
        ("ENTITY_SYNC_ORIGIN", "https://a,https://b"),
        ("ENTITY_SYNC_SNAPSHOT", "1"),
        ("ENTITY_SYNC_DELIVERY", "every"),
        ("ENTITY_SYNC_LOG", "warn"),
        ("ENTITY_SYNC_LOG_FORMAT", "json"),
    ];
    if std::env::var("ENTITY_SYNC_LISTEN").as_deref() == Ok("127.0.0.1:1") {
        let flags = ok(&[
            "--listen=127.0.0.1:1",
            "--api=127.0.0.1:2",
            "--data=:memory:",
            "--reactors=3",
            "--path=/a,/b",
            "--origin=https://a,https://b",
            "--snapshot",
            "--delivery=every",
            "--log=warn",
            "--log-format=json",
        ]);
        assert_eq!(ok(&[]), flags);
        assert_eq!(ok(&["serve"]), flags);
        assert_eq!(ok(&["--reactors=5"]).reactors.get(), 5);
        return;
    }
    again("each_flag_is_an_environment_variable_too", &SETTINGS);
}

/// Runs the test of this name in a process of its own, with these variables.
fn again(test: &str, variables: &[(&str, &str)]) {
    let itself = std::env::current_exe().expect("a path");
    let output = std::process::Command::new(itself)
        .args(["--exact", &format!("args::tests::{test}")])
        .envs(variables.iter().copied())
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn an_empty_variable_is_unset() {
    let names: Vec<_> = sources::command()
        .get_subcommands()
        .chain([&sources::command()])
        .flat_map(|it| {
            it.get_arguments()
                .filter_map(|it| Some(it.get_env()?.to_str()?.to_owned()))
        })
        .collect();
    if names.is_empty() {
        // All are empty here.
        assert_eq!(std::env::var("ENTITY_SYNC_LISTEN").as_deref(), Ok(""));
        let defaults = ok(&[]);
        assert_eq!(defaults.listen, ["127.0.0.1:8080".parse().expect("an address")]);
        assert_eq!((&defaults.limits, defaults.cluster), (&Limits::default(), None));
        assert_eq!(ok(&["--snapshot"]).entities.len(), 0);
        for call in [&["get", "a/1"][..], &["watch", "ws://a/", "a/1"], &["broker"]] {
            assert!(Task::parse([&["entity-sync"], call].concat()).is_ok(), "{call:?}");
        }
        return;
    }
    assert!(names.len() > 40, "{names:?}");
    let empty: Vec<_> = names.iter().map(|name| (&**name, "")).collect();
    again("an_empty_variable_is_unset", &empty);
}

#[test]
fn messages_name_where_a_value_comes_from() {
    const SETTINGS: [(&str, &str); 2] = [("ENTITY_SYNC_REACTORS", "many"), ("ENTITY_SYNC_REPAIR_RATE", "5")];
    if std::env::var("ENTITY_SYNC_REPAIR_RATE").as_deref() == Ok("5") {
        refused(
            &[],
            "in the environment variable ENTITY_SYNC_REACTORS: invalid value 'many' for '--reactors <N>'",
        );
        refused(
            &["--reactors=1"],
            "leave --repair-rate out (--repair-rate comes from the environment variable ENTITY_SYNC_REPAIR_RATE)",
        );
        let file = file("reactors = 3\nping-interval = 9\ndead-after = 5");
        let path = file.path().to_str().expect("text");
        let args = [
            "--config",
            path,
            "--reactors=1",
            "--bus=nats",
            "--nats=nats://a",
            "--data=x",
        ];
        refused(
            &args,
            &format!("answer pings (--dead-after comes from {path}) (--ping-interval comes from {path})"),
        );
        let error = parse(&["--reactors=lots"]).expect_err("refused");
        assert!(!error.contains("REACTORS") && error.contains("'lots'"), "{error}");
        return;
    }
    let error = parse(&["--api=0.0.0.0:1"]).expect_err("refused");
    assert!(!error.contains("comes from"), "{error}");
    again("messages_name_where_a_value_comes_from", &SETTINGS);
}

#[test]
fn sources_say_what_can_be_written() {
    for (source, said) in [
        (
            "nothing",
            "--resolver: write store, or http= and a URL such as http://127.0.0.1:9000/{entity}/{id}, or postgres=",
        ),
        (
            "http=ftp://a/{id}",
            "--resolver: it begins with neither http:// nor https://; write a URL such as",
        ),
        ("http=http://a", "--resolver: there is no path; write a URL"),
        (
            "http=http://a/x",
            "its path has no {id}, so that all entities would be the same",
        ),
        (
            "http=http://{entity}/{id}",
            "there is something else in braces than {entity}, {id} and {+id}, or in the host",
        ),
        (
            "http=http://a/{key}/{id}",
            "there is something else in braces than {entity}, {id} and {+id}, or in the host",
        ),
        ("http=http://a b/{id}", "it is no URL"),
        (
            "postgres=postgres://a:port/x",
            "--resolver: that is no connection string; write where the database is, such as",
        ),
        (
            "postgres=dbname=x",
            "there is no host in it; write where the database is",
        ),
        ("postgres=host=x", "there is no user in it; write where the database is"),
        (
            "postgres=postgres://u@h/x",
            "--resolver has a database but no query: write it after the DSN, as in postgres=DSN,SELECT id",
        ),
    ] {
        refused(&["--resolver", source], said);
    }
    let with_password = parse(&["--resolver=postgres=postgres://u:hidden@h:port/x"]).expect_err("refused");
    assert!(!with_password.contains("hidden"), "{with_password}");
}

#[test]
fn limits_are_numbers_that_make_sense() {
    let options = ok(&[
        "--max-connections=7",
        "--max-connections-per-address=6",
        "--max-accepts-per-second=5",
        "--api-connections=8",
        "--max-subscriptions=4",
        "--max-outbox-bytes=3",
        "--max-total-subscription-bytes=9",
        "--max-total-secret-bytes=10",
        "--max-total-input-bytes=11",
        "--max-secret-changes=12",
        "--read-time-limit=2",
        "--ping-interval=0.5",
        "--dead-after=1",
    ]);
    let mut config = entity_sync_core::Config::new(entity_sync_core::Seed(0, 0));
    options.limits.apply(&mut config);
    assert_eq!((config.max_connections, config.max_connections_per_address), (7, 6));
    assert_eq!(
        (
            config.max_accepts_per_second,
            config.max_subscriptions,
            config.max_outbox_bytes
        ),
        (5, 4, 3)
    );
    let totals = [
        config.max_total_subscription_bytes,
        config.max_total_secret_bytes,
        config.max_total_input_bytes,
    ];
    assert_eq!((totals, config.max_secret_changes), ([9, 10, 11], 12));
    let ms = |ms| std::time::Duration::from_millis(ms);
    assert_eq!(
        (config.read_time_limit, config.ping_interval, config.dead_after),
        (ms(2000), ms(500), ms(1000))
    );
    let of_api = crate::api::Limits::default();
    let given = crate::api::Limits {
        max_connections: 8,
        ..of_api
    };
    assert_eq!((options.limits.of_api(), ok(&[]).limits.of_api()), (given, of_api));
    refused(&["--api-connections=0"], "write a whole number of at least 1");
    refused(&["--max-connections=0"], "write a whole number of at least 1");
    refused(&["--max-subscriptions=many"], "write a whole number of at least 1");
    for seconds in ["0", "-1", "NaN", "1e9", "soon"] {
        refused(
            &[&format!("--read-time-limit={seconds}")],
            "write a number of seconds from 0.01 to 86400",
        );
    }
    refused(
        &["--dead-after=20"],
        "--dead-after must be longer than --ping-interval: a client that says nothing",
    );
}

/// What the help says of defaults is what core does.
#[test]
fn the_help_tells_the_defaults_of_limits() {
    let help = parse(&["--help"]).expect_err("help");
    let config = entity_sync_core::Config::new(entity_sync_core::Seed(0, 0));
    let secs = |it: std::time::Duration| it.as_secs();
    for text in [
        format!(
            "Subscriptions of one connection [default: {}]",
            config.max_subscriptions
        ),
        format!(
            "Connections to the API at the same time [default: {}]",
            crate::api::Limits::default().max_connections
        ),
        format!("in 10 seconds [default: {}]", config.max_secret_changes),
        format!("reads too slowly [default: {}]", config.max_outbox_bytes),
        format!("tried again [default: {}]", secs(config.read_time_limit)),
        format!("pings to each client [default: {}]", secs(config.ping_interval)),
        format!("gone and disconnected [default: {}]", secs(config.dead_after)),
    ] {
        assert!(help.contains(&text), "{text} is not in {help}");
    }
}
