//! [`Sources`]: where the values of flags come from, so that messages can name it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::Path;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory};

use super::Cli;

/// The flags whose values come from the environment or the configuration file. A message that blames `--listen` would
/// send those who gave no such flag searching.
#[derive(Clone, Debug, Default)]
pub struct Sources(BTreeMap<String, String>);

impl Sources {
    /// Those of the values that clap has read.
    pub(super) fn of(command: &Command, matches: &ArgMatches) -> Self {
        let of_environment = command.get_arguments().filter_map(|argument| {
            let (flag, variable) = (argument.get_long()?, argument.get_env()?);
            let source = matches.value_source(argument.get_id().as_str())?;
            (source == ValueSource::EnvVariable).then(|| (flag.to_owned(), the_variable(variable)))
        });
        Self(of_environment.collect())
    }

    /// These flags were read from the file at `path`.
    pub(super) fn add_file(&mut self, path: &Path, flags: impl IntoIterator<Item = String>) {
        let flags = flags.into_iter().map(|flag| (flag, path.display().to_string()));
        self.0.extend(flags);
    }

    /// The message, and where the values of these flags come from, as far as that isn't the command line.
    pub fn explain(&self, message: impl Display, flags: &[&str]) -> String {
        let mut text = message.to_string();
        for flag in flags.iter().map(|flag| flag.trim_start_matches('-')) {
            if let Some(source) = self.0.get(flag) {
                text += &format!(" (--{flag} comes from {source})");
            }
        }
        text
    }
}

/// The command line as clap knows it. Variables that are set to nothing count as unset, as a deployment's templates often
/// leave them.
pub(super) fn command() -> Command {
    let without = |argument: Arg| match argument.get_env() {
        Some(name) if std::env::var_os(name).is_some_and(|value| value.is_empty()) => argument.env(Resettable::Reset),
        _ => argument,
    };
    let command = Cli::command().mut_args(without);
    command.mut_subcommands(|subcommand| subcommand.mut_args(without))
}

/// What clap says of a value, with the variable that it comes from, if it isn't from the command line.
pub(super) fn name_variable(error: clap::Error, args: &[OsString]) -> clap::Error {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let flag = argument.split([' ', '=', '[']).next().unwrap_or_default();
    let with_value = format!("{flag}=");
    let is_given = |given: &OsString| given == flag || given.to_string_lossy().starts_with(&with_value);
    if !flag.starts_with("--") || args.iter().any(is_given) {
        return error;
    }
    let command = command();
    let of_all = command
        .get_arguments()
        .chain(command.get_subcommands().flat_map(Command::get_arguments));
    let mut of_flag = of_all.filter(|it| it.get_long() == flag.strip_prefix("--"));
    match of_flag.find_map(Arg::get_env) {
        Some(variable) if std::env::var_os(variable).is_some() => name_it(&error, &the_variable(variable)),
        _ => error,
    }
}

/// What clap says of a value, with the place that it comes from.
pub(super) fn name_it(error: &clap::Error, place: &str) -> clap::Error {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    Cli::command().error(error.kind(), format!("in {place}: {}", text.trim_end()))
}

fn the_variable(name: &std::ffi::OsStr) -> String {
    format!("the environment variable {}", name.to_string_lossy())
}
