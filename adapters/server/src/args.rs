//! The command line of the `entity-sync` binary, its environment and its configuration file.
//!
//! What a flag says goes before what the environment says, and that before what the file says. All three go through the
//! same checks: the file's values become arguments that are read after the others.

mod broker;
mod cluster;
mod curve;
mod error;
mod file;
mod limits;
mod rules;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread;

use clap::builder::{BoolishValueParser, PathBufValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use entity_sync_core::Origins;

use crate::api::{self, Token};
use crate::client::api::Call;
use crate::client::watch::Watch;
use crate::cluster::ClusterOptions;
use crate::resolver::Source;
use crate::store::Location;
use crate::values::{address, host, origin, origins, path};
use broker::BrokerArgs;
pub use broker::BrokerOptions;
use cluster::ClusterArgs;
pub use curve::CurveError;
pub use error::ArgsError;
use file::EntityTable;
pub use limits::Limits;
pub use rules::EntityRules;
use rules::Which;
pub use sources::Sources;

/// The most reactors that make sense on any machine.
const MAX_REACTORS: usize = 1024;
/// The most connections for reads that make sense.
const MAX_HTTP_READS: usize = 10_000;
const MAX_POSTGRES_CONNECTIONS: usize = 1000;

/// What to do, checked.
#[non_exhaustive]
pub enum Task {
    /// Serve clients and the API.
    Serve(Box<Options>),
    /// Print what is pushed.
    Watch(Watch),
    /// Ask the API of a server.
    Call(Call),
    /// Forward what nodes of a cluster publish.
    Broker(BrokerOptions),
    /// Write new keys of CURVE to this file.
    ZmqKeys(PathBuf),
    /// Print the completions of a shell.
    Completions(clap_complete::Shell),
}

/// What to serve, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where clients connect. Never empty.
    pub listen: Vec<SocketAddr>,
    /// Where the application reaches the HTTP API: on this machine only, unless there is a token.
    pub api: api::Address,
    /// What callers of the API must know.
    pub api_token: Option<Token>,
    /// Where the store keeps its entities.
    pub data: Location,
    /// How many threads serve clients.
    pub reactors: NonZeroUsize,
    /// The paths at which clients may open a WebSocket. Never empty.
    pub paths: Vec<String>,
    /// From which web pages a browser may connect.
    pub origins: Origins,
    /// By which names, besides IP addresses and those of this machine, requests may call the server.
    pub allowed_hosts: Vec<String>,
    /// How entities are read and delivered that are not among those below. `None` if there are no others.
    pub others: Option<EntityRules>,
    /// The same by entity.
    pub entities: BTreeMap<String, EntityRules>,
    /// The channel on which databases notify of changes.
    pub postgres_channel: String,
    /// Connections that read from each database.
    pub postgres_connections: NonZeroUsize,
    /// Reads over HTTP that run at the same time.
    pub http_reads: NonZeroUsize,
    /// What gives the role of a client, in databases.
    pub postgres_role: Option<String>,
    /// What makes it one of a cluster.
    pub cluster: Option<ClusterOptions>,
    /// How much is too much.
    pub limits: Limits,
    /// What is logged.
    pub log: LogLevel,
    /// How it is written.
    pub log_format: LogFormat,
}

/// What is logged, on standard error: this and what is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What needs somebody's attention.
    Error,
    /// What clients and stores do wrong.
    Warn,
    /// Beginning and end.
    Info,
    /// Connections and reads.
    Debug,
    /// Each notify.
    Trace,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Task {
    /// Reads `args`, of which the first is the program's name, for what they leave out the environment, and for what that
    /// leaves out the configuration file. An environment variable that is empty counts as unset.
    ///
    /// # Errors
    /// What clap says to the user, help and version included. [`clap::Error::exit`] prints it and ends the program with
    /// the right status.
    pub fn parse<I>(args: I) -> Result<(Self, Sources), clap::Error>
    where
        I: IntoIterator<Item: Into<OsString> + Clone>,
    {
        let mut args: Vec<OsString> = args.into_iter().map(Into::into).collect();
        let command = sources::command();
        let refused = |error: ArgsError, sources: &Sources| {
            let message = sources.explain(&error, error.flags());
            Cli::command().error(ErrorKind::ValueValidation, message)
        };
        let mut matches = command
            .clone()
            .try_get_matches_from(&args)
            .map_err(|error| sources::name_variable(error, &args))?;
        let mut sources = match matches.subcommand() {
            Some((name, of_command)) => {
                let command = command.find_subcommand(name).unwrap_or(&command);
                Sources::of(command, of_command)
            }
            None => Sources::of(&command, &matches),
        };
        let mut entities = BTreeMap::new();
        let of_serve = match matches.subcommand() {
            Some(("serve", of_serve)) => Some(of_serve),
            Some(_) => None,
            None => Some(&matches),
        };
        if let Some(of_serve) = of_serve
            && let Some(path) = of_serve.get_one::<PathBuf>("config").cloned()
        {
            let contents = file::read(&path, of_serve).map_err(|error| refused(error, &sources))?;
            sources.add_file(&path, contents.flags);
            args.extend(contents.arguments.into_iter().map(OsString::from));
            entities = contents.entities;
            // Only the file's values are new.
            matches = command
                .try_get_matches_from(&args)
                .map_err(|error| sources::name_it(&error, &path.display().to_string()))?;
        }
        let cli = Cli::from_arg_matches(&matches)?;
        let task = match cli.command.unwrap_or(Command::Serve(Box::new(cli.serve))) {
            Command::Serve(serve) => {
                let options = serve.check(entities).map_err(|error| refused(error, &sources))?;
                Self::Serve(Box::new(options))
            }
            Command::Watch(watch) => Self::Watch(watch),
            Command::Call(call) => Self::Call(call),
            Command::Broker(broker) => Self::Broker(broker.check().map_err(|error| refused(error, &sources))?),
            Command::ZmqKeys { file } => Self::ZmqKeys(file),
            Command::Completions { shell } => Self::Completions(shell),
        };
        Ok((task, sources))
    }

    /// The command line as clap knows it, for completions.
    pub fn command() -> clap::Command {
        Cli::command()
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
  entity-sync watch ws://127.0.0.1:8080/ws/entity-sync/ items/100
  curl -X PUT http://127.0.0.1:8081/entities/items/100 -d '{\"name\":\"bicycle\"}'

Every client that is connected to ws://127.0.0.1:8080/ws/entity-sync/ and has sent
  {\"action\":\"subscribe\",\"body\":{\"entity\":\"items\",\"id\":\"100\"}}
now receives {\"name\":\"bicycle\"}.

A configuration file has the flags' names as its keys:
  listen = [\"0.0.0.0:8080\"]
  data = \"/var/lib/entity-sync/data.db\"
  snapshot = true
and a table for each entity that differs from the others in its resolver, query (of PostgreSQL),
audience (secret or public), snapshot or delivery:
  [entities.prices]
  resolver = \"http=http://127.0.0.1:9000/prices/{id}\"
  audience = \"public\"";

#[derive(Subcommand)]
enum Command {
    /// Serve clients and the API (the default command)
    #[command(after_help = EXAMPLE)]
    Serve(Box<Serve>),
    /// Print what is pushed to a client; it connects again when the connection is lost
    Watch(Watch),
    #[command(flatten)]
    Call(Call),
    /// Forward what the nodes of a cluster publish, so that each needs to know only this
    ///
    /// Nodes connect with --bus zmq --zmq-broker FRONTEND,BACKEND. Two brokers carry everything twice, which is harmless, so
    /// that one may fail.
    Broker(BrokerArgs),
    /// Write a new key of CURVE to a file, with which ZeroMQ's connections are encrypted, and print its public key
    ///
    /// Only the file's owner may read it. The public key is written to FILE.pub, too. Nothing is written over.
    /// Example: entity-sync zmq-keys cluster.key
    ZmqKeys {
        /// Where the secret key is to be
        file: PathBuf,
    },
    /// Print a shell completion script
    ///
    /// Example: entity-sync completions bash > /etc/bash_completion.d/entity-sync
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Args)]
struct Serve {
    /// Where clients connect: an IP address or a name, and a port; may be given several times
    ///
    /// Of a name, the first IPv4 address is taken, or the first of IPv6 if it has none. In the environment, separate several
    /// by commas.
    /// Example: --listen 0.0.0.0:8080 lets clients of other machines in.
    #[arg(long, env = "ENTITY_SYNC_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:8080", value_delimiter = ',', value_parser = address)]
    listen: Vec<SocketAddr>,

    /// Where your application writes entities and notifies of changes, over HTTP
    ///
    /// Without a token it must be a loopback address. Programs on this machine can use a Unix socket instead of a port,
    /// such as unix:/run/entity-sync/api.sock; many writers are half again as fast there. Its owner and group may
    /// connect. No other user should be able to write to its directory. A file with .lock after its name stays beside it.
    /// Example: --api 127.0.0.1:9000
    // Checked later: the client commands, which share the variable, take more.
    #[arg(long, env = "ENTITY_SYNC_API", value_name = "ADDR", default_value = "127.0.0.1:8081")]
    api: String,

    /// A file whose one line callers of the API must send as their bearer token
    ///
    /// Health checks need none. Example:
    /// umask 077; head -c 32 /dev/urandom | base64 > token; entity-sync --api-token-file token
    #[arg(long, env = "ENTITY_SYNC_API_TOKEN_FILE", value_name = "FILE")]
    api_token_file: Option<PathBuf>,

    /// Where entities are kept: a file, created if it is missing, or :memory:
    ///
    /// SQLite keeps two more files beside it, with -wal and -shm after the name.
    /// Example: --data /var/lib/entity-sync/data.db
    #[arg(long, env = "ENTITY_SYNC_DATA", value_name = "FILE", default_value = "./entity-sync.db", value_parser = PathBufValueParser::new().try_map(location))]
    data: Location,

    /// Where rows come from: the store, an HTTP server or PostgreSQL
    ///
    /// store: what the API writes.
    /// http=URL-TEMPLATE: a GET for each read, with the client's secret as bearer token. Example:
    /// --resolver http=http://127.0.0.1:9000/{entity}/{id}
    /// In the path, an id with a slash, and . or .., are never asked for: write {+id} for ids with slashes, or put {id} behind a ?.
    /// postgres=DSN,QUERY: a query for many reads. Example:
    /// --resolver 'postgres=postgres://sync@localhost/shop,SELECT id, row_to_json(items) FROM items WHERE id = ANY($1)'
    /// A DSN with a password is better in the environment or the configuration file, as others can list processes.
    #[arg(
        long,
        env = "ENTITY_SYNC_RESOLVER",
        hide_env_values = true,
        value_name = "SOURCE",
        default_value = "store",
        verbatim_doc_comment
    )]
    resolver: String,

    /// How many reads over HTTP run at the same time, each on a connection of its own; the others wait
    ///
    /// Reads a second are about this number divided by the seconds that your server takes for one.
    #[arg(long, env = "ENTITY_SYNC_HTTP_READS", value_name = "N", default_value = "64", value_parser = http_reads)]
    http_reads: NonZeroUsize,

    /// Reading connections to PostgreSQL for each DSN; one more listens for notifications
    #[arg(long, env = "ENTITY_SYNC_POSTGRES_CONNECTIONS", value_name = "N", default_value = "4", value_parser = postgres_connections)]
    postgres_connections: NonZeroUsize,

    /// The channel on which PostgreSQL notifies of changes; the payload is a key, such as items/100
    ///
    /// Example, in a trigger: PERFORM pg_notify('entity_sync', 'items/' || NEW.id);
    #[arg(long, env = "ENTITY_SYNC_POSTGRES_CHANNEL", value_name = "CHANNEL", default_value = "entity_sync", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    postgres_channel: String,

    /// A query that gives the role in PostgreSQL of the client whose secret is $1
    ///
    /// Without it, all reads are those of the DSN's user. Example:
    /// --postgres-role 'SELECT role FROM sessions WHERE token = $1'
    #[arg(long, env = "ENTITY_SYNC_POSTGRES_ROLE", value_name = "QUERY")]
    postgres_role: Option<String>,

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

    /// A name by which requests may call the server; may be given several times
    ///
    /// Without it, the API without a token, and clients' addresses that are loopback ones while no --origin is given, answer to
    /// IP addresses and localhost only: a web page may have its own name lead here. A proxy that passes its own name on needs
    /// it. A dot before it allows all names below it. In the environment, separate several by commas.
    /// Example: --allowed-host sync.example.com
    #[arg(long, env = "ENTITY_SYNC_ALLOWED_HOST", value_name = "NAME", value_delimiter = ',', value_parser = host)]
    allowed_host: Vec<String>,

    /// Answer each new subscription with the current state
    ///
    /// Without it, as in the original protocol, a client first receives an entity at its next change.
    #[arg(long, env = "ENTITY_SYNC_SNAPSHOT", value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, hide_possible_values = true, value_parser = BoolishValueParser::new())]
    snapshot: bool,

    /// When changes come fast: push only the latest state, or one push for every change
    ///
    /// With every, a client that can't keep up is disconnected, as nothing can be skipped for it.
    #[arg(long, env = "ENTITY_SYNC_DELIVERY", value_name = "WHICH", default_value = "latest")]
    delivery: Which,

    /// A name to accept as an entity; by default, every name is accepted; may be given several times
    ///
    /// A notify of any other entity is an error; a subscription to one is never pushed anything.
    #[arg(long, env = "ENTITY_SYNC_ENTITY", value_name = "NAME", value_delimiter = ',', value_parser = clap::builder::NonEmptyStringValueParser::new())]
    entity: Vec<String>,

    #[command(flatten)]
    cluster: ClusterArgs,

    #[command(flatten)]
    limits: Limits,

    /// What is logged on standard error: this and what is worse
    ///
    /// Example: --log debug shows connections and reads.
    #[arg(long, env = "ENTITY_SYNC_LOG", value_name = "LEVEL", default_value = "info")]
    log: LogLevel,

    /// How the log is written
    #[arg(long, env = "ENTITY_SYNC_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,

    /// A TOML file whose keys are the flags' names; flags and environment variables take precedence
    ///
    /// Example: --config /etc/entity-sync.toml
    #[arg(long, env = "ENTITY_SYNC_CONFIG", value_name = "FILE.toml")]
    config: Option<PathBuf>,
}

impl Serve {
    /// What can be told only from several values together, or from what they name.
    fn check(self, tables: BTreeMap<String, EntityTable>) -> Result<Options, ArgsError> {
        let api = self.api.parse().map_err(|error| ArgsError::BadApi {
            given: self.api.clone(),
            error,
        })?;
        let api_token = self.api_token_file.as_deref().map(token).transpose()?;
        if let api::Address::Tcp(api) = api {
            for &listen in &self.listen {
                // Port 0 is whichever is free.
                let same_port = listen.port() == api.port() && listen.port() != 0;
                let overlaps = listen.ip() == api.ip() || listen.ip().is_unspecified() || api.ip().is_unspecified();
                if same_port && overlaps {
                    return Err(ArgsError::SamePort { listen, api });
                }
            }
            // An IPv4 address may be written as IPv6.
            if api_token.is_none() && !api.ip().to_canonical().is_loopback() {
                return Err(ArgsError::ApiWithoutToken { api });
            }
        }
        if !self.limits.leave_time_for_pings() {
            return Err(ArgsError::NoTimeForPings);
        }
        let (others, entities) = self.rules(tables)?;
        let cluster = self.cluster.check(others.is_none() && !entities.is_empty())?;
        let is_stored = |rules: &EntityRules| rules.source == Source::Store;
        let needs_store = others.iter().chain(entities.values()).any(is_stored);
        if cluster.is_some() && needs_store && self.data == Location::Memory {
            return Err(ArgsError::MemoryOfEach);
        }
        let reactors = self
            .reactors
            .or_else(|| thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN);
        Ok(Options {
            listen: self.listen,
            api,
            api_token,
            data: self.data,
            reactors,
            paths: self.path,
            origins: origins(self.origin),
            allowed_hosts: self.allowed_host,
            others,
            entities,
            postgres_channel: self.postgres_channel,
            postgres_connections: self.postgres_connections,
            http_reads: self.http_reads,
            postgres_role: self.postgres_role,
            cluster,
            limits: self.limits,
            log: self.log,
            log_format: self.log_format,
        })
    }
}

fn token(path: &Path) -> Result<Token, ArgsError> {
    let text = std::fs::read_to_string(path).map_err(|error| ArgsError::TokenFile {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    Token::new(text.trim_end()).ok_or_else(|| ArgsError::BadToken { path: path.to_owned() })
}

fn http_reads(given: &str) -> Result<NonZeroUsize, String> {
    at_most(MAX_HTTP_READS, given)
}

fn postgres_connections(given: &str) -> Result<NonZeroUsize, String> {
    at_most(MAX_POSTGRES_CONNECTIONS, given)
}

fn at_most(most: usize, given: &str) -> Result<NonZeroUsize, String> {
    let number = given.parse().ok().filter(|it: &NonZeroUsize| it.get() <= most);
    number.ok_or_else(|| format!("write a whole number from 1 to {most}"))
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
