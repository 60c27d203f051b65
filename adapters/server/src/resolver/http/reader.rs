//! [`Reader`]: one GET, and what its answer means.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use entity_sync_mio::{Audience, EntityKey, ReadError, Request, Rows};
use entity_sync_runtime::Health;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, ETAG, HeaderValue, IF_NONE_MATCH, LOCATION, USER_AGENT,
};
use hyper::{HeaderMap, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::connect::Connector;
use super::url::Template;
use crate::resolver::health::{Kind, SourceHealth};
use crate::resolver::text::{self, describe};

/// Memory for rows that have an `ETag`, of all entities, about.
pub(super) const CACHE_BYTES: u64 = 32 << 20;
/// What an entry takes besides what it holds, about.
const ENTRY_BYTES: u64 = 256;
/// What is read of bodies that are no rows, so that their connection can be used again.
const MAX_ERROR_BYTES: usize = 64 << 10;

/// What asks.
pub(super) type HttpClient = Client<Connector, Empty<Bytes>>;

/// Rows by who may see them, with what the server called that version.
pub(super) type Known = Cache<(EntityKey, Audience), (HeaderValue, Bytes), Weight>;

/// Entities of one template.
pub(super) struct Reader {
    template: Template,
    /// Any of its URLs.
    pub(super) example: Uri,
    /// What the template has in front of an `@`.
    own_token: Option<HeaderValue>,
    /// The password in that, in all forms in which it may be quoted.
    own_secrets: Vec<String>,
    pub(super) health: SourceHealth,
}

/// What the readers share.
pub(super) struct Asking {
    pub(super) client: HttpClient,
    pub(super) known: Known,
    /// How long a read may take.
    pub(super) limit: Duration,
    pub(super) max_bytes: usize,
}

#[derive(Clone)]
pub(super) struct Weight;

impl Weighter<(EntityKey, Audience), (HeaderValue, Bytes)> for Weight {
    fn weight(&self, (key, audience): &(EntityKey, Audience), (version, row): &(HeaderValue, Bytes)) -> u64 {
        let name = match audience {
            Audience::Secret(name) | Audience::Named(name) => name.len(),
            Audience::Public => 0,
        };
        (key.entity().len() + key.id().len() + name + version.len() + row.len()) as u64 + ENTRY_BYTES
    }
}

/// Why a read gave nothing, and whose trouble that is.
enum Trouble {
    /// What the server says of this key and this client.
    Answer(ReadError),
    /// It failed for the moment, as all others will.
    Down(String),
    /// It failed for the moment, perhaps because of what it was for.
    Failed(String),
    /// There was no answer in time, which may be because of what it was for.
    Silent(String),
    /// An operator has to change something, of the server or of this one; no read will do before.
    Rejected(String),
    /// The same, but it may be for what the client sent.
    RejectedOne(String),
}

impl Reader {
    /// # Errors
    /// What is wrong with the template, which was looked at before.
    pub(super) fn new(template: Template, health: &Health) -> Option<Self> {
        let example = EntityKey::new("a", "1").ok()?;
        let example: Uri = template.url(&example).ok()?.parse().ok()?;
        let own = example
            .authority()?
            .as_str()
            .rsplit_once('@')
            .map(|(own, _)| own.to_owned());
        let mut own_secrets = Vec::new();
        let own_token = own.and_then(|own| {
            let decoded = percent_encoding::percent_decode_str(&own).collect::<Vec<u8>>();
            let encoded = BASE64.encode(&decoded);
            let mut token = HeaderValue::try_from(format!("Basic {encoded}")).ok()?;
            token.set_sensitive(true);
            let text = String::from_utf8_lossy(&decoded).into_owned();
            let password_of = |text: &str| text.split_once(':').map_or(text, |(_, password)| password).to_owned();
            own_secrets = vec![encoded, password_of(&own), password_of(&text)];
            Some(token)
        });
        let health = SourceHealth::new(health, format!("http {}", server(&example)));
        Some(Self {
            template,
            example,
            own_token,
            own_secrets,
            health,
        })
    }

    /// Where it is, for people.
    pub(super) fn server(&self) -> String {
        server(&self.example)
    }

    /// Reads one entity for one audience.
    ///
    /// # Errors
    /// [`ReadError::NotFound`] and [`ReadError::Denied`] as the server says, [`ReadError::Rejected`] and
    /// [`ReadError::Failed`].
    pub(super) async fn read(&self, asking: &Asking, request: &Request) -> Result<Rows, ReadError> {
        let url = self.template.url(&request.key).map_err(|why| {
            let (entity, id) = (request.key.entity(), request.key.id());
            tracing::debug!("{entity:?} {id:?} is not read over HTTP: {why}");
            ReadError::NotFound
        })?;
        let result = tokio::time::timeout(asking.limit, self.ask(asking, request, &url)).await;
        let trouble = match result {
            Ok(Ok(rows)) => {
                self.health.works();
                return Ok(rows);
            }
            Ok(Err(trouble)) => trouble,
            Err(_) => Trouble::Silent(format!("no answer within {:?}", asking.limit)),
        };
        let (entity, id) = (request.key.entity(), request.key.id());
        let what = |why: &str, then: &str| format!("{entity:?} {id:?} can't be read over HTTP: {why}; {then}");
        match trouble {
            Trouble::Answer(error) => {
                self.health.works();
                Err(error)
            }
            Trouble::Down(why) => {
                let what = what(&why, "it is tried again");
                self.health.fails(&what);
                self.health.log(Kind::Failed, &what);
                Err(ReadError::Failed)
            }
            Trouble::Silent(why) => {
                let what = what(&why, "it is tried again");
                self.health.degrades(&what);
                self.health.fails(&what);
                self.health.log(Kind::Failed, &what);
                Err(ReadError::Failed)
            }
            Trouble::Failed(why) => {
                let what = what(&why, "it is tried again");
                self.health.degrades(&what);
                self.health.log(Kind::Failed, &what);
                Err(ReadError::Failed)
            }
            Trouble::Rejected(why) => {
                let what = what(&why, "it is tried again slowly until that is changed");
                self.health.degrades(&what);
                self.health.fails(&what);
                self.health.log(Kind::Rejected, &what);
                Err(ReadError::Rejected)
            }
            Trouble::RejectedOne(why) => {
                let what = what(&why, "it is tried again slowly until that is changed");
                self.health.degrades(&what);
                self.health.log(Kind::Rejected, &what);
                Err(ReadError::Rejected)
            }
        }
    }

    async fn ask(&self, asking: &Asking, request: &Request, url: &str) -> Result<Rows, Trouble> {
        let of = (request.key.clone(), request.audience.clone());
        let known = asking.known.get(&of);
        let token = token(&request.audience)?;
        let shown = |text: &str| self.shown(text, &request.audience);
        let mut get = hyper::Request::get(url)
            .header(ACCEPT, "application/json, */*;q=0.5")
            .header(ACCEPT_ENCODING, "identity")
            .header(USER_AGENT, concat!("entity-sync/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = token.as_ref().or(self.own_token.as_ref()) {
            get = get.header(AUTHORIZATION, token);
        }
        if let Some((version, _)) = &known {
            get = get.header(IF_NONE_MATCH, version);
        }
        let get = get
            .body(Empty::new())
            .map_err(|error| Trouble::Failed(error.to_string()))?;
        let response = match asking.client.request(get.clone()).await {
            // A kept connection that the server was just closing. To ask again changes nothing.
            Err(error) if was_closing(&error) => asking.client.request(get).await,
            response => response,
        };
        let response = response.map_err(|error| Trouble::Down(shown(&describe(&error))))?;
        match response.status() {
            StatusCode::OK => {
                if let Some(encoding) = response.headers().get(CONTENT_ENCODING)
                    && encoding != "identity"
                {
                    let encoding = shown(&format!("{encoding:?}"));
                    return Err(Trouble::Rejected(format!(
                        "it answered with Content-Encoding {encoding}, which was not asked for"
                    )));
                }
                let version = response.headers().get(ETAG).cloned();
                let body = Limited::new(response.into_body(), asking.max_bytes).collect().await;
                let row = body
                    .map_err(|error| Trouble::Failed(format!("its body: {}", shown(&error.to_string()))))?
                    .to_bytes();
                match version {
                    Some(version) => asking.known.insert(of, (version, row.clone())),
                    None => drop(asking.known.remove(&of)),
                }
                Ok(Rows::one(row))
            }
            StatusCode::NOT_MODIFIED if known.is_some() => Ok(known.map(|(_, row)| row).into_iter().collect()),
            _ => {
                asking.known.remove(&of);
                let (head, body) = response.into_parts();
                // A connection whose answer was not taken could not be used again.
                let _ = Limited::new(body, MAX_ERROR_BYTES).collect().await;
                let location = location(&head.headers);
                judge(head.status, &shown(&location), &request.key, token.is_some())
            }
        }
    }

    /// What a server or a library says, without what the client or this server is known by.
    fn shown(&self, text: &str, audience: &Audience) -> String {
        let secret = match audience {
            Audience::Secret(secret) => Some(&**secret),
            _ => None,
        };
        text::without(text, self.own_secrets.iter().map(String::as_str).chain(secret))
    }
}

/// Where an answer leads, without what may be for the client alone: a user and password, and the query.
fn location(headers: &HeaderMap) -> String {
    let location = headers.get(LOCATION).and_then(|it| it.to_str().ok());
    let location = location
        .unwrap_or("nowhere")
        .split(['?', '#'])
        .next()
        .unwrap_or_default();
    match location.split_once("//") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = host.rsplit('@').next().unwrap_or_default();
            format!("{scheme}//{host}{path}")
        }
        None => location.to_owned(),
    }
}

/// The client's, as it is sent. What no header can hold is nobody's.
fn token(audience: &Audience) -> Result<Option<HeaderValue>, Trouble> {
    let Audience::Secret(secret) = audience else {
        return Ok(None);
    };
    if secret.is_empty() {
        return Ok(None);
    }
    let token = HeaderValue::try_from(format!("Bearer {secret}"));
    let mut token = token.map_err(|_| Trouble::Answer(ReadError::Denied))?;
    token.set_sensitive(true);
    Ok(Some(token))
}

/// What an answer means that is no row.
fn judge(status: StatusCode, location: &str, key: &EntityKey, has_token: bool) -> Result<Rows, Trouble> {
    let has_control = [key.entity(), key.id()].iter().any(|it| it.contains(char::is_control));
    Err(match status {
        StatusCode::NO_CONTENT => return Ok(Rows::none()),
        StatusCode::NOT_FOUND | StatusCode::GONE => Trouble::Answer(ReadError::NotFound),
        StatusCode::BAD_REQUEST if has_control => Trouble::Answer(ReadError::NotFound),
        StatusCode::FORBIDDEN => Trouble::Answer(ReadError::Denied),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => Trouble::Failed(format!("it answered {status}")),
        StatusCode::UNAUTHORIZED if has_token => Trouble::RejectedOne(format!(
            "it answered {status} to a client's secret: let it answer 403 if the client may not see this"
        )),
        StatusCode::UNAUTHORIZED => Trouble::Rejected(format!(
            "it answered {status} without a client's secret: let it serve this server, or put user:password@ into the URL"
        )),
        StatusCode::TOO_MANY_REQUESTS => Trouble::RejectedOne(format!(
            "it answered {status}: allow this server more, or lower --http-reads"
        )),
        status if status.is_redirection() => Trouble::Rejected(format!(
            "it answered {status} and leads to {location:?}: redirects are not followed, write where they lead into \
                 --resolver"
        )),
        status if status.is_client_error() => Trouble::RejectedOne(format!("it answered {status}")),
        status if status.is_success() => Trouble::Rejected(format!(
            "it answered {status}, which is neither a row (200) nor none (204)"
        )),
        // What a proxy says of a server that is down.
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Trouble::Down(format!("it answered {status}"))
        }
        status => Trouble::Failed(format!("it answered {status}")),
    })
}

fn server(url: &Uri) -> String {
    let host = url.host().unwrap_or_default();
    match url.port_u16() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn was_closing(error: &hyper_util::client::legacy::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|it| it.downcast_ref::<hyper::Error>());
    cause.is_some_and(hyper::Error::is_incomplete_message)
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("template", &self.template)
            .finish_non_exhaustive()
    }
}
