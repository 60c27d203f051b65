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
//! The client's secret is sent as a bearer token. Redirects are not followed, as the token would go along.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use entity_sync_mio::{Audience, EntityKey, Health, Part, ReadError, Request, Rows};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ureq::Agent;
use ureq::http::header::{ACCEPT, AUTHORIZATION, ETAG, IF_NONE_MATCH};
use ureq::http::{HeaderValue, StatusCode};
use ureq::tls::{RootCerts, TlsConfig};

use super::{Complaints, SourceError};

/// Memory for rows that have an `ETag`, about.
const CACHE_BYTES: u64 = 32 << 20;
/// What an entry takes besides its row, about.
const ENTRY_BYTES: u64 = 256;

/// What is read of bodies that are no rows.
const MAX_ERROR_BYTES: u64 = 64 << 10;

/// What stays as it is in a URL.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The URLs of entities: text with `{entity}` and `{id}` in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Template(String);

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

impl FromStr for Template {
    type Err = SourceError;

    fn from_str(given: &str) -> Result<Self, SourceError> {
        let refuse = |why| Err(SourceError::BadTemplate(why));
        let rest = given.strip_prefix("http://").or_else(|| given.strip_prefix("https://"));
        let Some(rest) = rest else {
            return refuse("it begins with neither http:// nor https://");
        };
        let Some((host, path)) = rest.split_once('/') else {
            return refuse("there is no path");
        };
        if !path.contains("{id}") {
            return refuse("its path has no {id}, so that all entities would be the same");
        }
        if host.contains('{') || path.replace("{id}", "").replace("{entity}", "").contains(['{', '}']) {
            return refuse("there is something else in braces than {entity} and {id}, or in the host");
        }
        let example = given.replace("{id}", "1").replace("{entity}", "a");
        match example.parse::<ureq::http::Uri>() {
            Ok(uri) if uri.host().is_some_and(|it| !it.is_empty()) => Ok(Self(given.to_owned())),
            _ => refuse("it is no URL"),
        }
    }
}

impl Template {
    /// `None` for names that can't be a part of a path: servers and proxies take them for steps in it.
    fn url(&self, key: &EntityKey) -> Option<String> {
        let is_step = |name: &str| name == "." || name == "..";
        if is_step(key.entity()) || is_step(key.id()) {
            return None;
        }
        let encode = |name| utf8_percent_encode(name, PLAIN).to_string();
        // Encoded names have no braces.
        let url = self.0.replace("{entity}", &encode(key.entity()));
        Some(url.replace("{id}", &encode(key.id())))
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
        let url = self.template.url(&request.key).ok_or(ReadError::NotFound)?;
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

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The user's part of a URL may be a password.
        let shown = match self.0.split_once("://").and_then(|(scheme, rest)| {
            let (host, path) = rest.split_once('/')?;
            let (_, host) = host.rsplit_once('@')?;
            Some(format!("{scheme}://…@{host}/{path}"))
        }) {
            Some(shown) => shown,
            None => self.0.clone(),
        };
        write!(f, "{shown:?}")
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
