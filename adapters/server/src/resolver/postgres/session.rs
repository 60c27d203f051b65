//! [`Session`]: one connection to the database, and the queries on it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use entity_sync_mio::ReadError;
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::task::AbortHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, Notification, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{CONNECT_LIMIT, Shared, count};

/// How connections are encrypted, if they are.
pub(super) type Tls = Option<MakeRustlsConnect>;

/// Ends with its last handle.
pub(super) struct Session {
    client: Client,
    /// What moves the bytes.
    driver: AbortHandle,
}

/// Why there are no rows.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection is of no use any more.
    Lost(String),
    /// The database said no to this query.
    Refused { code: SqlState, reason: String },
    /// The client has no role.
    NoRole,
}

/// Checks the certificates of those that the system trusts, if the DSN demands encryption.
pub(super) fn tls(config: &Config) -> io::Result<Tls> {
    if config.get_ssl_mode() == SslMode::Disable {
        return Ok(None);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_platform_verifier()
        .map_err(io::Error::other)?
        .with_no_client_auth();
    Ok(Some(MakeRustlsConnect::new(config)))
}

/// Whatever types the user's columns have, they come as text.
pub(super) fn wrapped(query: &str) -> String {
    let query = query.trim().trim_end_matches(';');
    // A line of its own, as it may end in a comment.
    format!("SELECT \"q\".\"id\"::text, \"q\".\"row\"::text FROM (\n{query}\n) AS \"q\" (\"id\", \"row\")")
}

pub(super) fn wrapped_role(query: &str) -> String {
    let query = query.trim().trim_end_matches(';');
    format!("SELECT \"q\".\"role\"::text FROM (\n{query}\n) AS \"q\" (\"role\")")
}

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
        let config = &shared.plan.dsn.0;
        let connecting = async {
            Ok::<_, tokio_postgres::Error>(match tls {
                Some(tls) => {
                    let (client, connection) = config.connect(tls).await?;
                    (client, drive(connection, hear))
                }
                None => {
                    let (client, connection) = config.connect(NoTls).await?;
                    (client, drive(connection, hear))
                }
            })
        };
        // The limit in the configuration is for each host, and for TCP alone.
        let connected = tokio::time::timeout(CONNECT_LIMIT * 2, connecting).await;
        let (client, driver) = match connected {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => return Err(Failure::Lost(describe(&error))),
            Err(_) => return Err(Failure::Lost("it takes too long".to_owned())),
        };
        count(&shared.counts.connects);
        let session = Self { client, driver };
        // The database is to give up when we do.
        let limit_ms = shared.plan.limit.as_millis();
        session
            .batch(&format!(
                "SET statement_timeout = {limit_ms}; SET client_encoding = 'UTF8'"
            ))
            .await?;
        Ok(session)
    }

    /// Runs commands without results.
    pub(super) async fn batch(&self, commands: &str) -> Result<(), Failure> {
        self.client.batch_execute(commands).await.map_err(Failure::from)
    }

    /// Whether the database answers within `limit`.
    pub(super) async fn is_alive(&self, limit: Duration) -> bool {
        matches!(
            tokio::time::timeout(limit, self.client.check_connection()).await,
            Ok(Ok(()))
        )
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Has the database look at a query.
    pub(super) async fn check(&self, query: &str) -> Result<(), String> {
        let types = [Type::TEXT_ARRAY, Type::TEXT, Type::TEXT];
        let is_role = query.contains("\"role\"");
        let types = if is_role { &types[1..2] } else { &types[..] };
        match self.client.prepare_typed(query, types).await {
            Ok(_) => Ok(()),
            Err(error) => Err(describe(&error)),
        }
    }

    /// The rows of these ids for everyone: (id, row).
    pub(super) async fn read(&self, query: &str, ids: &[&str], entity: &str) -> Result<Vec<(String, String)>, Failure> {
        self.query(query, ids, "", entity).await
    }

    /// The same for whoever has this secret, as the role that `role` gives.
    pub(super) async fn read_as(
        &self,
        query: &str,
        role: Option<&str>,
        ids: &[&str],
        secret: &str,
        entity: &str,
    ) -> Result<Vec<(String, String)>, Failure> {
        self.batch("BEGIN READ ONLY").await?;
        let rows = self.read_within(query, role, ids, secret, entity).await;
        // After an error, too: it ends the transaction.
        self.batch("ROLLBACK").await?;
        rows
    }

    async fn read_within(
        &self,
        query: &str,
        role: Option<&str>,
        ids: &[&str],
        secret: &str,
        entity: &str,
    ) -> Result<Vec<(String, String)>, Failure> {
        const SET_SECRET: &str = "SELECT set_config('entity_sync.secret', $1, true)";
        const SET_ROLE: &str = "SELECT set_config('role', $1, true)";
        self.client.query_typed(SET_SECRET, &[(&secret, Type::TEXT)]).await?;
        if let Some(query) = role {
            let rows = self
                .client
                .query_typed(&wrapped_role(query), &[(&secret, Type::TEXT)])
                .await?;
            let role = rows
                .first()
                .map(|row| row.try_get::<_, Option<String>>(0))
                .transpose()?;
            let role = role.flatten().ok_or(Failure::NoRole)?;
            self.client.query_typed(SET_ROLE, &[(&role, Type::TEXT)]).await?;
        }
        self.query(query, ids, secret, entity).await
    }

    async fn query(
        &self,
        query: &str,
        ids: &[&str],
        secret: &str,
        entity: &str,
    ) -> Result<Vec<(String, String)>, Failure> {
        let rows = self
            .client
            .query_typed(
                &wrapped(query),
                &[(&ids, Type::TEXT_ARRAY), (&secret, Type::TEXT), (&entity, Type::TEXT)],
            )
            .await?;
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            let (id, row): (Option<String>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
            all.extend(id.zip(row));
        }
        Ok(all)
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

/// What a person can make something of.
fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return error.to_string();
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.code() {
            Some(code) if !error.is_closed() => Self::Refused {
                code: code.clone(),
                reason: describe(&error),
            },
            _ => Self::Lost(describe(&error)),
        }
    }
}

impl Failure {
    /// Whether the session can go on.
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Self::Lost(_) => true,
            // It shuts down, or has ended this session.
            Self::Refused { code, .. } => code.code().starts_with("57P") || code.code().starts_with("08"),
            Self::NoRole => false,
        }
    }

    /// What it is to the client.
    pub(super) fn to_read_error(&self) -> ReadError {
        match self {
            Self::NoRole => ReadError::Denied,
            Self::Refused { code, .. } if *code == SqlState::INSUFFICIENT_PRIVILEGE => ReadError::Denied,
            // An id that can't be one, as when a number was expected.
            Self::Refused { code, .. }
                if [
                    SqlState::INVALID_TEXT_REPRESENTATION,
                    SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
                    SqlState::INVALID_DATETIME_FORMAT,
                ]
                .contains(code) =>
            {
                ReadError::NotFound
            }
            Self::Refused { .. } | Self::Lost(_) => ReadError::Failed,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(reason) => f.write_str(reason),
            Self::Refused { code, reason } => write!(f, "{reason} ({})", code.code()),
            Self::NoRole => f.write_str("the client has no role"),
        }
    }
}
