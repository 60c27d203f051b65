//! [`Session`]: one connection to the database, and the queries on it.
//!
//! It may lead through a pooler that gives each transaction another connection: nothing is left behind for whoever has it
//! next. There are no named statements, and settings are those of a transaction.

use std::fmt;
use std::time::Duration;

use entity_sync_mio::ReadError;
use tokio::task::AbortHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{AsyncMessage, Client, NoTls, Notification, Row, Socket};

use super::tls::Tls;
use super::{CONNECT_LIMIT, Shared, count};
use crate::resolver::text;

/// What a query is asked for.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    /// [Wrapped](wrapped).
    pub(super) query: &'a str,
    pub(super) ids: &'a [&'a str],
    pub(super) entity: &'a str,
    /// `None` if the rows are for everyone.
    pub(super) secret: Option<&'a str>,
    /// [Wrapped](wrapped_role). What gives the role of the secret.
    pub(super) role: Option<&'a str>,
    /// The database is to give up when we do.
    pub(super) limit: Duration,
}

/// An id and its row, which may be no text if the database has no encoding.
pub(super) type Found = (String, Vec<u8>);

/// Ends with its last handle.
pub(super) struct Session {
    client: Client,
    /// What moves the bytes.
    driver: AbortHandle,
}

/// Why there are no rows.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The connection is of no use any more, or did not come about. The code is the database's, if it said why.
    Lost { code: Option<SqlState>, reason: String },
    /// The database said no to this query.
    Refused { code: SqlState, reason: String },
    /// The client has no role.
    NoRole,
    /// The client's role does not exist.
    BadRole(String),
}

/// How long what is no read may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What an id or a secret may be that no row has: SQLSTATEs of what can't be converted.
const NO_SUCH_VALUE: [SqlState; 10] = [
    SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
    SqlState::INVALID_DATETIME_FORMAT,
    SqlState::DATETIME_FIELD_OVERFLOW,
    SqlState::INTERVAL_FIELD_OVERFLOW,
    SqlState::CHARACTER_NOT_IN_REPERTOIRE,
    SqlState::INVALID_REGULAR_EXPRESSION,
    SqlState::INVALID_TEXT_REPRESENTATION,
    SqlState::INVALID_BINARY_REPRESENTATION,
    SqlState::UNTRANSLATABLE_CHARACTER,
    // Text that is no `bytea`, for one. A role that there is not has it as well, but fails elsewhere.
    SqlState::INVALID_PARAMETER_VALUE,
];

/// What the database says until somebody changes it, or the configuration: classes of SQLSTATEs.
const REJECTIONS: [&str; 9] = ["0A", "0L", "0P", "26", "28", "3D", "3F", "42", "F0"];

/// What a database, or a pooler in front of it, says that is of no use to anyone: classes of SQLSTATEs. Each of them may be
/// about one read, too, so something that works says otherwise.
const OF_ALL: [&str; 7] = ["08", "28", "3D", "53", "58", "XX", "57P"];

/// Whatever types the user's columns have, they come as text.
pub(super) fn wrapped(query: &str) -> String {
    let query = query.trim().trim_end_matches(';');
    // A line of its own, as it may end in a comment.
    format!("SELECT \"q\".\"id\"::text, \"q\".\"row\"::text FROM (\n{query}\n) AS \"q\" (\"id\", \"row\")")
}

/// Gives the role of a secret, which is remembered for the transaction; or nothing.
pub(super) fn wrapped_role(query: &str) -> String {
    let query = query.trim().trim_end_matches(';');
    format!(
        "SELECT set_config('entity_sync.role', coalesce((SELECT \"q\".\"role\"::text FROM (\n{query}\n) AS \"q\" (\"role\") \
         LIMIT 1), ''), true)"
    )
}

const SET_SECRET: &str = "SELECT set_config('entity_sync.secret', $1, true)";
/// There is no role without a name, so this fails where there is none, and with it the rest of the transaction. `none` would
/// be our own.
const SET_ROLE: &str =
    "SELECT set_config('role', coalesce(nullif(current_setting('entity_sync.role'), 'none'), ''), true)";

impl Session {
    pub(super) async fn connect(shared: &Shared, tls: Tls) -> Result<Self, Failure> {
        Self::connect_and_hear(shared, tls, |_| {}).await
    }

    /// Calls `hear` for each notification.
    pub(super) async fn connect_and_hear(
        shared: &Shared,
        tls: Tls,
        hear: impl FnMut(Notification) + Send + 'static,
    ) -> Result<Self, Failure> {
        let config = &shared.plan.dsn.config;
        let lost = |error: tokio_postgres::Error| Failure::Lost {
            code: error.code().cloned(),
            reason: describe(&error),
        };
        let connecting = async {
            Ok(match tls {
                Some(tls) => {
                    let (client, connection) = config.connect(tls).await.map_err(lost)?;
                    (client, drive(connection, hear))
                }
                None => {
                    let (client, connection) = config.connect(NoTls).await.map_err(lost)?;
                    (client, drive(connection, hear))
                }
            })
        };
        // The limit in the configuration is for each host, and for TCP alone.
        let (client, driver) = within(CONNECT_LIMIT * 2, connecting).await?;
        count(&shared.counts.connects);
        Ok(Self { client, driver })
    }

    /// Runs commands without results.
    pub(super) async fn batch(&self, commands: &str) -> Result<(), Failure> {
        within(ANSWER_WITHIN, self.execute(commands)).await
    }

    /// Notifies of `payload` on `channel`.
    pub(super) async fn notify(&self, channel: &str, payload: &str) -> Result<(), Failure> {
        let parameters = [(&channel as _, Type::TEXT), (&payload as _, Type::TEXT)];
        let notifying = self.rows("SELECT pg_notify($1, $2)", &parameters);
        within(ANSWER_WITHIN, notifying).await.map(drop)
    }

    /// Whether the database answers.
    pub(super) async fn is_alive(&self) -> bool {
        let asking = async { Ok(self.client.check_connection().await?) };
        within(ANSWER_WITHIN, asking).await.is_ok()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// The rows of these ids, read in a transaction of its own.
    pub(super) async fn read(&self, ask: Ask<'_>) -> Result<Vec<Found>, Failure> {
        // The database has the same limit for each statement, and is given a moment to say so.
        let read = within(ask.limit + Duration::from_secs(1), self.transaction(ask)).await;
        read.map_err(|failure| failure.without(ask.secret.unwrap_or_default()))
    }

    /// All of it is sent at once, so that it takes one way to the database and back.
    async fn transaction(&self, ask: Ask<'_>) -> Result<Vec<Found>, Failure> {
        let secret = ask.secret.unwrap_or_default();
        let begin = format!(
            "BEGIN READ ONLY; SET LOCAL statement_timeout = {}",
            ask.limit.as_millis()
        );
        let set_secret = async {
            match ask.secret {
                Some(_) => self.rows(SET_SECRET, &[(&secret, Type::TEXT)]).await.map(drop),
                None => Ok(()),
            }
        };
        let find_role = async {
            let Some(query) = ask.role else {
                return Ok(());
            };
            let rows = self.rows(query, &[(&secret, Type::TEXT)]).await?;
            let role = rows.first().map(|row| row.try_get::<_, Raw>(0)).transpose()?;
            match role.is_none_or(|role| role.0.is_empty() || role.0 == b"none") {
                true => Err(Failure::NoRole),
                false => Ok(()),
            }
        };
        let set_role = async {
            match ask.role {
                Some(_) => self.rows(SET_ROLE, &[]).await.map(drop).map_err(Failure::of_role),
                None => Ok(()),
            }
        };
        let parameters = [
            (&ask.ids as _, Type::TEXT_ARRAY),
            (&secret as _, Type::TEXT),
            (&ask.entity as _, Type::TEXT),
        ];
        // In this order: each is sent when it is polled first. What follows a failure fails as well, and gives nothing.
        let (begun, told, found, set, rows, ended) = tokio::join!(
            biased;
            self.execute(&begin),
            set_secret,
            find_role,
            set_role,
            self.rows(ask.query, &parameters),
            self.execute("COMMIT"),
        );
        begun.and(told).and(found).and(set)?;
        let rows = rows?;
        ended?;
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            let (id, row): (Option<Raw>, Option<Raw>) = (row.try_get(0)?, row.try_get(1)?);
            // Whatever is no text is none of the ids.
            let id = id.and_then(|id| String::from_utf8(id.0).ok());
            all.extend(id.zip(row.map(|row| row.0)));
        }
        Ok(all)
    }

    async fn execute(&self, commands: &str) -> Result<(), Failure> {
        Ok(self.client.batch_execute(commands).await?)
    }

    /// Of a statement without a name.
    async fn rows(
        &self,
        statement: &str,
        parameters: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, Failure> {
        Ok(self.client.query_typed(statement, parameters).await?)
    }
}

/// A text's bytes.
struct Raw(Vec<u8>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TEXT
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn drive<T>(
    mut connection: tokio_postgres::Connection<Socket, T>,
    mut hear: impl FnMut(Notification) + Send + 'static,
) -> AbortHandle
where
    T: tokio_postgres::tls::TlsStream + Unpin + Send + 'static,
{
    let driver = tokio::spawn(async move {
        // What went wrong, the queries are told.
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(notification) = message {
                hear(notification);
            }
        }
    });
    driver.abort_handle()
}

/// The database's own words, if it said anything.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => text::describe(error),
        None => text::describe(error),
    }
}

/// Gives up what the database, or a pooler in front of it, does not answer.
async fn within<T>(limit: Duration, asking: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(limit, asking).await.unwrap_or_else(|_| {
        Err(Failure::Lost {
            code: None,
            reason: "it takes too long".to_owned(),
        })
    })
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let reason = describe(&error);
        let code = error.code().cloned();
        match code {
            Some(code) if !error.is_closed() => Self::Refused { code, reason },
            code => Self::Lost { code, reason },
        }
    }
}

impl Failure {
    /// Whether the session can go on.
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Self::Lost { .. } => true,
            // It shuts down, or has ended this session.
            Self::Refused { code, .. } => code.code().starts_with("57P") || code.code().starts_with("08"),
            Self::NoRole | Self::BadRole(_) => false,
        }
    }

    /// Whether all other reads may fail as well.
    pub(super) fn may_be_of_all(&self) -> bool {
        let is_of_all = |code: &SqlState| OF_ALL.iter().any(|class| code.code().starts_with(class));
        match self {
            Self::Lost { .. } => true,
            Self::Refused { code, .. } => is_of_all(code),
            Self::NoRole | Self::BadRole(_) => false,
        }
    }

    /// The same, of the statement that sets the role.
    fn of_role(self) -> Self {
        match self {
            Self::Refused { code, reason } if code == SqlState::INVALID_PARAMETER_VALUE => Self::BadRole(reason),
            other => other,
        }
    }

    /// Without a client's secret, which the database may have quoted.
    fn without(mut self, secret: &str) -> Self {
        match &mut self {
            Self::Lost {
                code: Some(_), reason, ..
            }
            | Self::Refused { reason, .. }
            | Self::BadRole(reason) => *reason = text::without(reason, [secret]),
            Self::Lost { code: None, .. } | Self::NoRole => {}
        }
        self
    }

    /// Whether the query itself is at fault: not for what it is asked, nor for the moment.
    pub(super) fn is_of_query(&self) -> bool {
        matches!(self, Self::Refused { code, .. }
            if code.code().starts_with("42") && *code != SqlState::INSUFFICIENT_PRIVILEGE)
    }

    /// Whether what the query was asked for may be at fault, as ids that can't be converted are.
    pub(super) fn is_of_values(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if ["21", "22", "P0"].contains(&code.code().get(..2).unwrap_or_default()))
    }

    /// Whether the other failure is the same, so that it has nothing to do with what differs.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Refused { code, .. }, Self::Refused { code: other, .. }) => code == other,
            (Self::NoRole, Self::NoRole) | (Self::BadRole(_), Self::BadRole(_)) => true,
            _ => false,
        }
    }

    /// What it is to the client.
    pub(super) fn to_read_error(&self) -> ReadError {
        match self {
            Self::NoRole => ReadError::Denied,
            Self::BadRole(_) => ReadError::Rejected,
            Self::Refused { code, .. } if *code == SqlState::INSUFFICIENT_PRIVILEGE => ReadError::Denied,
            Self::Refused { code, .. } if is_no_such_value(code) => ReadError::NotFound,
            Self::Refused { code, .. } | Self::Lost { code: Some(code), .. } if is_rejection(code) => {
                ReadError::Rejected
            }
            Self::Refused { .. } | Self::Lost { .. } => ReadError::Failed,
        }
    }
}

fn is_no_such_value(code: &SqlState) -> bool {
    NO_SUCH_VALUE.contains(code)
}

fn is_rejection(code: &SqlState) -> bool {
    REJECTIONS.contains(&code.code().get(..2).unwrap_or_default())
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { reason, .. } => f.write_str(reason),
            Self::Refused { code, reason } => write!(f, "{reason} ({})", code.code()),
            Self::BadRole(reason) => write!(f, "{reason} (the client's role)"),
            Self::NoRole => f.write_str("the client has no role"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_database_says_becomes_what_is_done() {
        let refused = |code| {
            let reason = String::new();
            let code = SqlState::from_code(code);
            Failure::Refused { code, reason }
        };
        let of = |code| refused(code).to_read_error();
        // Conversions of ids and secrets.
        for code in [
            "22003", "22007", "22008", "22015", "22021", "22023", "2201B", "22P02", "22P03", "22P05",
        ] {
            assert_eq!(of(code), ReadError::NotFound, "{code}");
        }
        assert_eq!(of("42501"), ReadError::Denied);
        for code in ["28P01", "28000", "3D000", "42P01", "42601", "42883", "0A000"] {
            assert_eq!(of(code), ReadError::Rejected, "{code}");
        }
        for code in [
            "22012", "40001", "53300", "57014", "57P03", "58030", "XX000", "P0001", "25006",
        ] {
            assert_eq!(of(code), ReadError::Failed, "{code}");
        }
        // There is no such role.
        let of_role = |code| refused(code).of_role().to_read_error();
        assert_eq!(of_role("22023"), ReadError::Rejected);
        assert_eq!(of_role("42501"), ReadError::Denied);
    }

    #[test]
    fn what_may_fail_all_reads_is_told_from_what_is_of_one() {
        let of = |code| {
            let (code, reason) = (SqlState::from_code(code), String::new());
            Failure::Refused { code, reason }.may_be_of_all()
        };
        for code in ["08P01", "28P01", "3D000", "53300", "57P03", "58000", "XX000"] {
            assert!(of(code), "{code}");
        }
        for code in ["22P02", "22023", "40001", "42P01", "42501", "57014", "P0001"] {
            assert!(!of(code), "{code}");
        }
    }
}
