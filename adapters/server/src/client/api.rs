//! `put`, `get`, `delete` and `notify`: one request to the API of a server that runs.

use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use entity_sync_core::EntityKey;
use serde::Deserialize;
use serde_json::json;
use ureq::http::header::{AUTHORIZATION, HOST, HeaderValue};
use ureq::http::{Request, StatusCode, Uri};

use super::trust::{Trust, is_distrust};
use super::{ClientError, STDIN, key, line_of, unix};
use crate::api::Address;

/// How long a request may take.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// One request.
#[derive(Subcommand)]
pub enum Call {
    /// Write an entity, which is then pushed to its subscribers
    ///
    /// Example: entity-sync put items/100 '{"name":"bicycle"}'
    Put {
        #[arg(value_parser = key, value_name = "ENTITY/ID")]
        #[allow(missing_docs, reason = "the help says it")]
        key: EntityKey,
        /// The new content; standard input if it is left out or -
        body: Option<String>,
        #[command(flatten)]
        #[allow(missing_docs, reason = "the help says it")]
        api: Api,
    },
    /// Print an entity
    ///
    /// Example: entity-sync get items/100
    Get {
        #[arg(value_parser = key, value_name = "ENTITY/ID")]
        #[allow(missing_docs, reason = "the help says it")]
        key: EntityKey,
        #[command(flatten)]
        #[allow(missing_docs, reason = "the help says it")]
        api: Api,
    },
    /// Delete an entity
    ///
    /// Example: entity-sync delete items/100
    Delete {
        #[arg(value_parser = key, value_name = "ENTITY/ID")]
        #[allow(missing_docs, reason = "the help says it")]
        key: EntityKey,
        #[command(flatten)]
        #[allow(missing_docs, reason = "the help says it")]
        api: Api,
    },
    /// Say that entities were changed elsewhere, so that they are read and pushed again
    ///
    /// Example: entity-sync notify items/100 items/101
    Notify {
        #[arg(value_parser = key, value_name = "ENTITY/ID", required = true)]
        #[allow(missing_docs, reason = "the help says it")]
        keys: Vec<EntityKey>,
        #[command(flatten)]
        #[allow(missing_docs, reason = "the help says it")]
        api: Api,
    },
}

/// Where the API is.
#[derive(Args)]
pub struct Api {
    /// Where the server's API is: a host and a port, or https:// and a host, or unix: and the path of its socket
    #[arg(long, env = "ENTITY_SYNC_API", value_name = "ADDR", default_value = "127.0.0.1:8081")]
    api: String,

    /// The file with the token that the API asks for
    #[arg(long, env = "ENTITY_SYNC_API_TOKEN_FILE", value_name = "FILE")]
    api_token_file: Option<PathBuf>,

    #[command(flatten)]
    trust: Trust,
}

/// Does what is asked. `input` is where a body comes from that isn't given, and `out` is where answers go.
///
/// # Errors
/// [`ClientError`]: when nobody answers, or the answer is no.
pub fn call(call: &Call, input: &mut dyn Read, out: &mut dyn Write) -> Result<(), ClientError> {
    let said = match call {
        Call::Put { key, body, api } => {
            let body = match body.as_deref() {
                None | Some("-") => read(input)?,
                Some(body) => body.to_owned(),
            };
            match api.send("PUT", &path_of(key), body)? {
                (201, _) => "created\n".to_owned(),
                _ => "replaced\n".to_owned(),
            }
        }
        Call::Get { key, api } => {
            let (_, mut body) = api.send("GET", &path_of(key), String::new())?;
            if !body.ends_with('\n') {
                body.push('\n');
            }
            body
        }
        Call::Delete { key, api } => {
            api.send("DELETE", &path_of(key), String::new())?;
            "deleted\n".to_owned()
        }
        Call::Notify { keys, api } => {
            let keys: Vec<_> = keys
                .iter()
                .map(|key| json!({ "entity": key.entity(), "id": key.id() }))
                .collect();
            let count = keys.len();
            api.send("POST", "/notify", serde_json::Value::from(keys).to_string())?;
            format!("accepted {count}\n")
        }
    };
    out.write_all(said.as_bytes())
        .and_then(|()| out.flush())
        .map_err(ClientError::Output)
}

fn read(input: &mut dyn Read) -> Result<String, ClientError> {
    let mut body = Vec::new();
    input.read_to_end(&mut body).map_err(|source| ClientError::File {
        path: STDIN.to_owned(),
        source,
    })?;
    String::from_utf8(body).map_err(|_| ClientError::NotText)
}

fn path_of(key: &EntityKey) -> String {
    let encode = |text| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC);
    format!("/entities/{}/{}", encode(key.entity()), encode(key.id()))
}

#[derive(Deserialize)]
struct Answer {
    error: Refusal,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
    hint: String,
}

impl Api {
    /// The status and body of a good answer.
    fn send(&self, method: &str, path: &str, body: String) -> Result<(u16, String), ClientError> {
        let (status, text) = match self.api.strip_prefix(Address::UNIX) {
            Some(socket) => self.send_to_socket(Path::new(socket), method, path, body)?,
            None => self.send_to_port(method, path, body)?,
        };
        if status.is_success() {
            return Ok((status.as_u16(), text));
        }
        Err(match serde_json::from_str::<Answer>(&text) {
            Ok(Answer { error }) => ClientError::Refused {
                message: error.message,
                hint: error.hint,
            },
            Err(_) => self.no_server(format!("it answered {status}, but not as an Entity Sync API")),
        })
    }

    fn send_to_socket(
        &self,
        socket: &Path,
        method: &str,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, String), ClientError> {
        if socket.as_os_str().is_empty() {
            return Err(self.bad());
        }
        let uri = path.parse().map_err(|_| self.bad())?;
        let mut request = self.request(method, uri, body)?;
        // HTTP asks for one, and any would do.
        request
            .headers_mut()
            .insert(HOST, HeaderValue::from_static("localhost"));
        unix::send(socket, request, TIME_LIMIT).map_err(|error| match error.kind() {
            // The path is too long for a socket.
            ErrorKind::InvalidInput => self.bad(),
            ErrorKind::PermissionDenied => ClientError::NotAllowed { url: self.url() },
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => self.lost(error.to_string()),
            _ => self.no_server(error.to_string()),
        })
    }

    fn send_to_port(&self, method: &str, path: &str, body: String) -> Result<(StatusCode, String), ClientError> {
        let uri: Uri = format!("{}{path}", self.url()).parse().map_err(|_| self.bad())?;
        // HTTP without a port would be something else than our API; TLS ends at a proxy, which has the usual one.
        let is_good = match uri.scheme_str() {
            Some("http") => uri.port_u16().is_some(),
            Some("https") => uri.host().is_some(),
            _ => false,
        };
        if !is_good || uri.path() != path {
            return Err(self.bad());
        }
        let request = self.request(method, uri, body)?;
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            // One that the environment names for the world outside would be asked for this machine's own addresses, too,
            // and be sent the token.
            .proxy(None)
            .timeout_global(Some(TIME_LIMIT))
            .tls_config(self.trust.ureq()?)
            .build()
            .into();
        let mut response = agent.run(request).map_err(|error| {
            let is_distrust = match &error {
                ureq::Error::Rustls(rustls::Error::InvalidCertificate(_)) => true,
                ureq::Error::Io(error) => is_distrust(error),
                _ => false,
            };
            if is_distrust {
                let (url, reason) = (self.url(), error.to_string());
                return ClientError::Untrusted { url, reason };
            }
            let is_lost = |kind| matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
            if let ureq::Error::Io(source) = &error
                && is_lost(source.kind())
            {
                return self.lost(error.to_string());
            }
            self.no_server(error.to_string())
        })?;
        let text = response.body_mut().read_to_string();
        let text = text.map_err(|error| self.no_server(error.to_string()))?;
        Ok((response.status(), text))
    }

    fn request(&self, method: &str, uri: Uri, body: String) -> Result<Request<String>, ClientError> {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(file) = &self.api_token_file {
            request = request.header(AUTHORIZATION, format!("Bearer {}", line_of(file)?));
        }
        request.body(body).map_err(|_| ClientError::Refused {
            message: "the token can't be sent".to_owned(),
            hint: "the file must hold one line of visible ASCII characters (--api-token-file)".to_owned(),
        })
    }

    fn url(&self) -> String {
        let address = self.api.trim_end_matches('/');
        if address.contains("://") || address.starts_with(Address::UNIX) {
            address.to_owned()
        } else {
            format!("http://{address}")
        }
    }

    fn bad(&self) -> ClientError {
        ClientError::BadApi {
            given: self.api.clone(),
        }
    }

    fn lost(&self, reason: String) -> ClientError {
        ClientError::Lost {
            url: self.url(),
            reason,
        }
    }

    fn no_server(&self, reason: String) -> ClientError {
        ClientError::NoServer {
            url: self.url(),
            reason,
        }
    }
}
