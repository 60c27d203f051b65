//! Resolvers without code, for the binary: where the rows of an entity come from, as the command line and the
//! configuration file say it.

mod health;
pub mod http;
pub mod postgres;
mod text;

use std::fmt;
use std::str::FromStr;

use http::Template;
use postgres::Dsn;

/// Where rows come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The embedded store, which the API writes.
    Store,
    /// An HTTP server: one GET for each read.
    Http(Template),
    /// A PostgreSQL database: one query for many reads.
    Postgres {
        /// Which.
        dsn: Dsn,
        /// What gives the rows. Without it, only entities with a query of their own are read.
        query: Option<String>,
    },
}

/// Why a source is refused. Its `Display` says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceError {
    /// None of the kinds that there are.
    UnknownKind,
    /// Not what URLs of entities can be made of.
    BadTemplate(&'static str),
    /// Not what says where a database is.
    BadDsn(String),
}

impl FromStr for Source {
    type Err = SourceError;

    /// `store`, `http=URL-TEMPLATE` or `postgres=DSN[,QUERY]`.
    fn from_str(given: &str) -> Result<Self, SourceError> {
        if given == "store" {
            return Ok(Self::Store);
        }
        match given.split_once('=') {
            Some(("http", template)) => Ok(Self::Http(template.parse()?)),
            Some(("postgres", rest)) => {
                let (dsn, query) = split_query(rest);
                let dsn = dsn.parse()?;
                Ok(Self::Postgres { dsn, query })
            }
            _ => Err(SourceError::UnknownKind),
        }
    }
}

/// A DSN may have commas, between hosts; a query begins with one of a few words.
fn split_query(given: &str) -> (&str, Option<String>) {
    let is_query = |rest: &str| {
        let word: String = rest
            .trim_start()
            .chars()
            .take_while(char::is_ascii_alphabetic)
            .collect();
        ["select", "with", "table", "values"].contains(&word.to_ascii_lowercase().as_str())
    };
    let commas = given.match_indices(',').map(|(at, _)| at);
    let mut splits = commas.filter_map(|at| Some((given.get(..at)?, given.get(at + 1..)?)));
    match splits.find(|(_, rest)| is_query(rest)) {
        Some((dsn, query)) => (dsn, Some(query.trim().to_owned())),
        None => (given, None),
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKind => f.write_str(
                "write store, or http= and a URL such as http://127.0.0.1:9000/{entity}/{id}, or postgres= and where the \
                 database is, such as postgres=postgres://user@localhost/shop,SELECT id, row_to_json(items) FROM items \
                 WHERE id = ANY($1)",
            ),
            Self::BadTemplate(why) => write!(
                f,
                "{why}; write a URL such as http://127.0.0.1:9000/{{entity}}/{{id}}, in which {{entity}} and {{id}} stand \
                 for the names of what is read"
            ),
            Self::BadDsn(why) => write!(
                f,
                "{why}; write where the database is, such as postgres://user:password@localhost/shop or \
                 'host=/run/postgresql dbname=shop'"
            ),
        }
    }
}

impl std::error::Error for SourceError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart() {
        let query = |given: &str| match given.parse() {
            Ok(Source::Postgres { query, .. }) => query,
            other => panic!("{given}: {other:?}"),
        };
        assert_eq!("store".parse(), Ok(Source::Store));
        assert!(matches!("http=http://a/{id}".parse(), Ok(Source::Http(_))));
        assert_eq!(query("postgres=postgres://u@a,b:5433/shop"), None);
        assert_eq!(query("postgres=host=a,b user=u dbname=selection"), None);
        let select = Some("select id, a FROM b".to_owned());
        assert_eq!(query("postgres=host=a,b user=u dbname=x, select id, a FROM b "), select);
        assert_eq!(
            query("postgres=postgres://u@h/x,TABLE items"),
            Some("TABLE items".to_owned())
        );
        for given in ["", "sqlite", "http", "postgresql=x", "Store"] {
            assert_eq!(given.parse::<Source>(), Err(SourceError::UnknownKind), "{given}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        let source: Source = "postgres=postgres://me:hidden@localhost/shop".parse().expect("good");
        assert!(!format!("{source:?}").contains("hidden"), "{source:?}");
        let error = "postgres=postgres://me:hidden@localhost:port/shop"
            .parse::<Source>()
            .expect_err("bad");
        assert!(!error.to_string().contains("hidden"), "{error}");
    }
}
