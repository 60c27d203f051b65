//! The configuration file: its values as arguments, and the tables of its entities.

use std::collections::BTreeMap;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory};
use serde::Deserialize;
use toml::{Table, Value};

use super::rules::Which;
use super::{ArgsError, Cli};

/// What a file says.
#[derive(Default)]
pub(super) struct Contents {
    /// Arguments for all that there are no flags for.
    pub(super) arguments: Vec<String>,
    /// The flags that those are.
    pub(super) flags: Vec<String>,
    /// `[entities.NAME]`.
    pub(super) entities: BTreeMap<String, EntityTable>,
}

/// How one entity is read and delivered, where that differs from the flags.
#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "settings below a line such as [entities.prices]"
)]
pub(super) struct EntityTable {
    pub(super) resolver: Option<String>,
    pub(super) query: Option<String>,
    pub(super) audience: Option<WhoShares>,
    pub(super) snapshot: Option<bool>,
    pub(super) delivery: Option<Which>,
}

/// The names of an [`EntityTable`]'s fields.
const SETTINGS: [&str; 5] = ["resolver", "query", "audience", "snapshot", "delivery"];

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum WhoShares {
    Secret,
    Public,
}

/// Reads the file at `path`, for all that `given` doesn't have from flags or the environment.
pub(super) fn read(path: &Path, given: &ArgMatches) -> Result<Contents, ArgsError> {
    let unusable = |reason: String| ArgsError::ConfigFile {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    let mut table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| unusable(error.to_string()))?;
    let mut contents = Contents::default();
    if let Some(entities) = table.remove("entities") {
        contents.entities = entities_of(path, entities)?;
    }
    let flags = flags();
    for (key, value) in &table {
        if !flags.contains(key) {
            return Err(ArgsError::UnknownKey {
                path: path.to_owned(),
                key: key.clone(),
                similar: similar(key, flags.iter().map(String::as_str)),
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
            let arguments = values.iter().map(|value| format!("--{key}={value}"));
            contents.arguments.extend(arguments);
            contents.flags.push(key.clone());
        }
    }
    Ok(contents)
}

fn entities_of(path: &Path, entities: Value) -> Result<BTreeMap<String, EntityTable>, ArgsError> {
    let bad = |name: &str, reason: String| ArgsError::BadEntity {
        name: name.to_owned(),
        reason: format!("in {}: {}", path.display(), reason.trim_end()),
    };
    let Value::Table(entities) = entities else {
        return Err(bad("…", "write [entities.NAME] and its settings below".to_owned()));
    };
    let mut tables = BTreeMap::new();
    for (name, table) in entities {
        let mut keys = table.as_table().into_iter().flat_map(Table::keys);
        if let Some(key) = keys.find(|key| !SETTINGS.contains(&key.as_str())) {
            let advice = match similar(key, SETTINGS.into_iter()) {
                Some(similar) => format!("did you mean {similar:?}?"),
                None => format!("an entity has {}", SETTINGS.join(", ")),
            };
            return Err(bad(&name, format!("there is no {key:?}; {advice}")));
        }
        let table = table
            .try_into()
            .map_err(|error: toml::de::Error| bad(&name, error.message().to_owned()))?;
        tables.insert(name, table);
    }
    Ok(tables)
}

/// The names of the flags that may stand in a file.
fn flags() -> Vec<String> {
    let command = Cli::command();
    let names = command.get_arguments().filter_map(|argument| argument.get_long());
    let names = names.filter(|name| !["config", "help", "version"].contains(name));
    names.map(str::to_owned).collect()
}

/// The name that was meant, if one is much like it.
fn similar<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let alike = |name: &str| strsim::jaro_winkler(&key.replace('_', "-"), name);
    let best = names.max_by(|a, b| alike(a).total_cmp(&alike(b)))?;
    (alike(best) > 0.8).then(|| best.to_owned())
}

fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(is) => Some(is.to_string()),
        _ => None,
    }
}
