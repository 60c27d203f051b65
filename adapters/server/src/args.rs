//! The command line of the `entity-sync` binary.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use entity_sync_core::Origins;

use crate::store::Location;
use crate::values::{ValueError, address, origin, origins, path};

/// The most reactors that make sense on any machine.
const MAX_REACTORS: usize = 1024;

/// What to run, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where the application reaches the HTTP API: always a loopback address.
    pub api: SocketAddr,
    /// Where the store keeps its entities.
    pub data: Location,
    /// How many threads serve clients.
    pub reactors: NonZeroUsize,
    /// The paths at which clients may open a WebSocket. Never empty.
    pub paths: Vec<String>,
    /// From which web pages a browser may connect.
    pub origins: Origins,
}

impl Options {
    /// Reads `args`, of which the first is the program's name, and for what they leave out the environment.
    ///
    /// # Errors
    /// What clap says to the user, help and version included. [`clap::Error::exit`] prints it and ends the program with
    /// the right status.
    pub fn parse<I>(args: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item: Into<OsString> + Clone>,
    {
        let cli = Cli::try_parse_from(args)?;
        let Command::Serve(serve) = cli.command.unwrap_or(Command::Serve(cli.serve));
        serve
            .check()
            .map_err(|error| Cli::command().error(ErrorKind::ValueValidation, error))
    }
}

/// Why a value on the command line or in the environment is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArgsError {
    /// Not a good value of its kind.
    Value(ValueError),
    /// The API would be reachable from other machines.
    ApiNotLoopback,
    /// Clients and the API can't share a port.
    SamePort {
        /// Where clients connect.
        listen: SocketAddr,
        /// Where the API was to be.
        api: SocketAddr,
    },
    /// Not a sensible number of threads.
    BadReactors,
}

impl fmt::Display for ArgsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(error) => error.fmt(f),
            Self::ApiNotLoopback => f.write_str(
                "the API has no authentication yet, so it is served on loopback addresses only; keep \
                 it on 127.0.0.1, and put a proxy that authenticates in front of it to reach it from \
                 elsewhere (tokens will come)",
            ),
            Self::SamePort { listen, api } => write!(
                f,
                "--listen {listen} and --api {api} need the same port; give one of them another"
            ),
            Self::BadReactors => write!(
                f,
                "write a number from 1 to {MAX_REACTORS}; the number of CPUs is taken if you leave it out"
            ),
        }
    }
}

impl std::error::Error for ArgsError {}

impl From<ValueError> for ArgsError {
    fn from(error: ValueError) -> Self {
        Self::Value(error)
    }
}

/// Pushes entities to the clients that subscribe to them, whenever they change.
#[derive(Parser)]
#[command(
    name = "entity-sync",
    version,
    args_conflicts_with_subcommands = true,
    after_help = EXAMPLE
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

const EXAMPLE: &str = "\
Try it:
  entity-sync --data :memory:
  curl -X PUT http://127.0.0.1:8081/entities/items/100 -d '{\"name\":\"bicycle\"}'

Every client that is connected to ws://127.0.0.1:8080/ws/entity-sync/ and has sent
  {\"action\":\"subscribe\",\"body\":{\"entity\":\"items\",\"id\":\"100\"}}
now receives {\"name\":\"bicycle\"}.";

#[derive(Subcommand)]
enum Command {
    /// Serve clients and the API (what is done without a command, too)
    #[command(after_help = EXAMPLE)]
    Serve(Serve),
}

#[derive(Args)]
struct Serve {
    /// Where clients connect
    ///
    /// Example: --listen 0.0.0.0:8080 lets clients of other machines in.
    #[arg(long, env = "ENTITY_SYNC_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = address)]
    listen: SocketAddr,

    /// Where your application writes entities and notifies of changes, over HTTP
    ///
    /// It must be a loopback address, as the API has no authentication yet.
    /// Example: --api 127.0.0.1:9000
    #[arg(long, env = "ENTITY_SYNC_API", value_name = "ADDR", default_value = "127.0.0.1:8081", value_parser = loopback)]
    api: SocketAddr,

    /// Where entities are kept: a file, created if it is missing, or :memory:
    ///
    /// SQLite keeps two more files beside it, with -wal and -shm after the name.
    /// Example: --data /var/lib/entity-sync/data.db
    #[arg(long, env = "ENTITY_SYNC_DATA", value_name = "FILE", default_value = "./entity-sync.db", value_parser = PathBufValueParser::new().try_map(location))]
    data: Location,

    /// How many threads serve clients [default: the number of CPUs]
    ///
    /// Example: --reactors 4
    #[arg(long, env = "ENTITY_SYNC_REACTORS", value_name = "N", value_parser = reactors)]
    reactors: Option<NonZeroUsize>,

    /// The path at which clients open their WebSocket; may be given several times
    ///
    /// In the environment, separate several by commas.
    /// Example: --path /ws/ --path /live/
    #[arg(long, env = "ENTITY_SYNC_PATH", value_name = "PATH", default_value = "/ws/entity-sync/", value_delimiter = ',', value_parser = path)]
    path: Vec<String>,

    /// An origin whose web pages may connect, or * for any; may be given several times
    ///
    /// Without it, a browser may connect from pages of the same host and port. Clients other than
    /// browsers send no origin and may always connect. In the environment, separate several by commas.
    /// Example: --origin https://example.com --origin http://localhost:3000
    #[arg(long, env = "ENTITY_SYNC_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    origin: Vec<String>,
}

impl Serve {
    /// What can be told only from several values together.
    fn check(self) -> Result<Options, ArgsError> {
        let (listen, api) = (self.listen, self.api);
        // Port 0 is whichever is free.
        let same_port = listen.port() == api.port() && listen.port() != 0;
        if same_port && (listen.ip() == api.ip() || listen.ip().is_unspecified()) {
            return Err(ArgsError::SamePort { listen, api });
        }
        let reactors = self
            .reactors
            .or_else(|| thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN);
        Ok(Options {
            listen,
            api,
            data: self.data,
            reactors,
            paths: self.path,
            origins: origins(self.origin),
        })
    }
}

fn loopback(given: &str) -> Result<SocketAddr, ArgsError> {
    let api = address(given)?;
    // An IPv4 address may be written as IPv6.
    if api.ip().to_canonical().is_loopback() {
        Ok(api)
    } else {
        Err(ArgsError::ApiNotLoopback)
    }
}

fn location(given: PathBuf) -> Result<Location, Infallible> {
    Ok(if given.as_os_str() == ":memory:" {
        Location::Memory
    } else {
        Location::File(given)
    })
}

fn reactors(given: &str) -> Result<NonZeroUsize, ArgsError> {
    given
        .parse()
        .ok()
        .filter(|n: &NonZeroUsize| n.get() <= MAX_REACTORS)
        .ok_or(ArgsError::BadReactors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        let all = ["entity-sync"].iter().chain(args);
        Options::parse(all).map_err(|error| error.to_string())
    }

    fn ok(args: &[&str]) -> Options {
        parse(args).expect("valid")
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
            listen: "127.0.0.1:8080".parse().expect("address"),
            api: "127.0.0.1:8081".parse().expect("address"),
            data: Location::File("./entity-sync.db".into()),
            reactors: thread::available_parallelism().expect("CPUs"),
            paths: vec!["/ws/entity-sync/".to_owned()],
            origins: Origins::Same,
        };
        assert_eq!(options, expected);
        assert_eq!(ok(&["serve"]), expected);
    }

    #[test]
    fn flags_work_with_and_without_serve() {
        let flags = [
            "--listen=[::]:1",
            "--api=[::1]:2",
            "--data=:memory:",
            "--reactors=3",
            "--path=/a",
            "--path=/b/",
            "--origin=https://Example.com:443",
            "--origin=http://localhost:3000",
        ];
        let plain = ok(&flags);
        assert_eq!(plain.listen, "[::]:1".parse().expect("address"));
        assert_eq!(plain.api, "[::1]:2".parse().expect("address"));
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
    fn the_api_stays_on_loopback() {
        for api in ["0.0.0.0:8081", "192.168.0.7:8081", "[::]:8081"] {
            refused(
                &["--api", api],
                "for '--api <ADDR>': the API has no authentication yet, so it is served on loopback \
                 addresses only; keep it on 127.0.0.1, and put a proxy that authenticates in front",
            );
        }
        for api in ["127.0.0.2:8081", "[::1]:8081", "[::ffff:127.0.0.1]:8081"] {
            ok(&["--api", api]);
        }
    }

    #[test]
    fn addresses_need_a_port_and_no_name() {
        for listen in ["localhost:8080", "127.0.0.1", ":8080", "127.0.0.1:99999"] {
            refused(
                &["--listen", listen],
                "write an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080",
            );
        }
    }

    #[test]
    fn ports_must_differ() {
        refused(
            &["--listen=127.0.0.1:9000", "--api=127.0.0.1:9000"],
            "--listen 127.0.0.1:9000 and --api 127.0.0.1:9000 need the same port; give one of them \
             another",
        );
        refused(&["--listen=0.0.0.0:8081"], "need the same port");
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
        const SETTINGS: [(&str, &str); 6] = [
            ("ENTITY_SYNC_LISTEN", "127.0.0.1:1"),
            ("ENTITY_SYNC_API", "127.0.0.1:2"),
            ("ENTITY_SYNC_DATA", ":memory:"),
            ("ENTITY_SYNC_REACTORS", "3"),
            ("ENTITY_SYNC_PATH", "/a,/b"),
            ("ENTITY_SYNC_ORIGIN", "https://a,https://b"),
        ];
        if std::env::var("ENTITY_SYNC_LISTEN").as_deref() == Ok("127.0.0.1:1") {
            let flags = ok(&[
                "--listen=127.0.0.1:1",
                "--api=127.0.0.1:2",
                "--data=:memory:",
                "--reactors=3",
                "--path=/a,/b",
                "--origin=https://a,https://b",
            ]);
            assert_eq!(ok(&[]), flags);
            assert_eq!(ok(&["serve"]), flags);
            assert_eq!(ok(&["--reactors=5"]).reactors.get(), 5);
            return;
        }
        let itself = std::env::current_exe().expect("a path");
        let output = std::process::Command::new(itself)
            .args(["--exact", "args::tests::each_flag_is_an_environment_variable_too"])
            .envs(SETTINGS)
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }
}
