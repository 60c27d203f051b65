//! The configuration file: its values as arguments.

use std::path::Path;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory};
use toml::{Table, Value};

use super::{ArgsError, Cli};

/// What the file at `path` says, as arguments for all that `given` doesn't have from flags or the environment.
pub(super) fn arguments(path: &Path, given: &ArgMatches) -> Result<Vec<String>, ArgsError> {
    let unusable = |reason: String| ArgsError::ConfigFile {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    let table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| unusable(error.to_string()))?;
    let flags = flags();
    let mut arguments = Vec::new();
    for (key, value) in &table {
        if !flags.contains(key) {
            return Err(ArgsError::UnknownKey {
                path: path.to_owned(),
                key: key.clone(),
                known: flags.join(", "),
            });
        }
        let bad_kind = || ArgsError::BadKind {
            path: path.to_owned(),
            key: key.clone(),
        };
        let values = match value {
            Value::Array(list) => list.iter().map(plain).collect::<Option<Vec<_>>>(),
            value => plain(value).map(|value| vec![value]),
        };
        let values = values.ok_or_else(bad_kind)?;
        let source = given.value_source(&key.replace('-', "_"));
        if !matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
            arguments.extend(values.iter().map(|value| format!("--{key}={value}")));
        }
    }
    Ok(arguments)
}

/// What clap says of an argument that came from the file, with the file's name.
pub(super) fn name_it(error: clap::Error, path: &Path) -> clap::Error {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    Cli::command().error(error.kind(), format!("in {}: {}", path.display(), text.trim_end()))
}

/// The names of the flags that may stand in a file.
fn flags() -> Vec<String> {
    let command = Cli::command();
    let names = command.get_arguments().filter_map(|argument| argument.get_long());
    let names = names.filter(|name| !["config", "help", "version"].contains(name));
    names.map(str::to_owned).collect()
}

fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Boolean(is) => Some(is.to_string()),
        _ => None,
    }
}
