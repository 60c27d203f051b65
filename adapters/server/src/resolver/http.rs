//! [`HttpReader`]: rows from an HTTP server, one GET for each read.
//!
//! | answer | what it means |
//! | --- | --- |
//! | 200 | its body is the row |
//! | 204 | there is no row |
//! | 304 | the row has not changed since the `ETag` that was sent |
//! | 404, 410 | there is no such entity |
//! | 401, 403 | this client may not see it |
//! | anything else | tried again later |
//!
//! What a name that a client has chosen may do to the URL is decided in [`Template`].
//! The client's secret is sent as a bearer token. Redirects are not followed, as the token would go along.

mod url;

use std::fmt;
use std::time::Duration;

use entity_sync_mio::{Audience, EntityKey, Health, Part, ReadError, Request, Rows};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ureq::Agent;
use ureq::http::header::{ACCEPT, AUTHORIZATION, ETAG, IF_NONE_MATCH};
use ureq::http::{HeaderValue, StatusCode};
use ureq::tls::{RootCerts, TlsConfig};

use super::Complaints;
pub use url::Template;

/// Memory for rows that have an `ETag`, about.
const CACHE_BYTES: u64 = 32 << 20;
/// What an entry takes besides its row, about.
const ENTRY_BYTES: u64 = 256;

/// What is read of bodies that are no rows.
const MAX_ERROR_BYTES: u64 = 64 << 10;

/// Reads rows from an HTTP server.
pub struct HttpReader {
    agent: Agent,
    template: Template,
    max_bytes: usize,
    /// Rows by who may see them, with what the server called that version.
    known: Cache<(EntityKey, Audience), (HeaderValue, Vec<u8>), Weight>,
    complaints: Complaints,
    /// Where it reports a server that can't be read.
    part: Part,
}

#[derive(Clone)]
struct Weight;

impl Weighter<(EntityKey, Audience), (HeaderValue, Vec<u8>)> for Weight {
    fn weight(&self, (key, _): &(EntityKey, Audience), (_, row): &(HeaderValue, Vec<u8>)) -> u64 {
        (key.id().len() + row.len()) as u64 + ENTRY_BYTES
    }
}

impl HttpReader {
    /// Each read takes at most `limit`, and gives at most `max_bytes`. `connections` are kept for the next reads.
    pub fn new(template: Template, limit: Duration, max_bytes: usize, connections: usize, health: &Health) -> Self {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            // The environment's is not for the application's own server, and is not to see the clients' secrets.
            .proxy(None)
            .max_redirects_will_error(false)
            .timeout_global(Some(limit))
            .max_idle_connections(connections)
            .max_idle_connections_per_host(connections)
            .user_agent(concat!("entity-sync/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build();
        Self {
            part: health.part(format!("source {template:?}")),
            agent: agent.into(),
            template,
            max_bytes,
            known: Cache::with_weighter(1024, CACHE_BYTES, Weight),
            complaints: Complaints::default(),
        }
    }

    /// Reads one entity for one audience.
    ///
    /// # Errors
    /// [`ReadError::NotFound`] and [`ReadError::Denied`] as the server says, and [`ReadError::Failed`].
    pub fn read(&self, request: &Request) -> Result<Rows, ReadError> {
        let url = self.template.url(&request.key).map_err(|why| {
            let (entity, id) = (request.key.entity(), request.key.id());
            tracing::debug!("{entity:?} {id:?} is not read over HTTP: {why}");
            ReadError::NotFound
        })?;
        let mut get = self.agent.get(&url).header(ACCEPT, "application/json, */*;q=0.5");
        if let Audience::Secret(secret) = &request.audience
            && !secret.is_empty()
        {
            // What no header can hold is nobody's token.
            let token = HeaderValue::try_from(format!("Bearer {secret}")).map_err(|_| ReadError::Denied)?;
            get = get.header(AUTHORIZATION, token);
        }
        let of = (request.key.clone(), request.audience.clone());
        let known = self.known.get(&of);
        if let Some((version, _)) = &known {
            get = get.header(IF_NONE_MATCH, version);
        }
        let mut response = get.call().map_err(|error| self.failed(&request.key, "call", error))?;
        match response.status() {
            StatusCode::OK => {
                let body = response.body_mut().with_config().limit(self.max_bytes as u64);
                let row = body
                    .read_to_vec()
                    .map_err(|error| self.failed(&request.key, "body", error))?;
                match response.headers().get(ETAG) {
                    Some(version) => self.known.insert(of, (version.clone(), row.clone())),
                    None => drop(self.known.remove(&of)),
                }
                Ok(Rows::one(row))
            }
            StatusCode::NOT_MODIFIED if known.is_some() => Ok(known.map(|(_, row)| row).into_iter().collect()),
            status => {
                self.known.remove(&of);
                // A connection whose answer was not taken could not be used again.
                let _ = response.body_mut().with_config().limit(MAX_ERROR_BYTES).read_to_vec();
                match status {
                    StatusCode::NO_CONTENT => Ok(Rows::none()),
                    StatusCode::NOT_FOUND | StatusCode::GONE => Err(ReadError::NotFound),
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(ReadError::Denied),
                    _ => Err(self.failed(&request.key, status.as_str(), format_args!("it answered {status}"))),
                }
            }
        }
    }

    /// Says why, without what the client is known by.
    fn failed(&self, key: &EntityKey, kind: &str, why: impl fmt::Display) -> ReadError {
        let (entity, id) = (key.entity(), key.id());
        self.complaints.tell(
            kind,
            format_args!("{entity:?} {id:?} can't be read over HTTP: {why}; it is tried again"),
        );
        ReadError::Failed
    }
}

impl fmt::Debug for HttpReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpReader")
            .field("template", &self.template)
            .field("part", &self.part)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
