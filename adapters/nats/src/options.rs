//! [`Plan`]: a configuration that was checked, as async-nats takes it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use async_nats::{ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;

use crate::config::{NatsAuth, NatsConfig, NatsTls, without_user};
use crate::error::NatsError;

/// How long one attempt may take, TLS and all.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// A server that is silent is asked so often whether it is there, and given up after the third time.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// Commands, most of them messages, that may wait within async-nats. Those that wait when a connection is lost are sent
/// over the next one, so these are few; still they are more than one write takes.
const CLIENT_CAPACITY: usize = 256;

/// Messages of one topic that may wait within async-nats, which drops more.
///
/// The connection's task shares its thread with those that take its messages, and each of these takes all there is at its
/// turn. So no more wait than the connection reads in one of its own turns: 128 times up to 64 KiB, and messages of the
/// cluster's have more than 16 bytes with what the server puts before them. Nothing is allocated ahead.
const SUBSCRIPTION_CAPACITY: usize = 512 * 1024;

/// Waits before attempts to connect: at first so long, then twice as long each time, up to the other.
const FIRST_DELAY: Duration = Duration::from_millis(50);
const MAX_DELAY: Duration = Duration::from_secs(2);

/// A configuration that was checked.
pub(crate) struct Plan {
    /// They say nothing of users.
    pub(crate) servers: Vec<ServerAddr>,
    pub(crate) options: ConnectOptions,
}

impl Plan {
    pub(crate) fn new(config: &NatsConfig) -> Result<Self, NatsError> {
        let mut servers = Vec::new();
        let mut auths = Vec::new();
        for url in &config.servers {
            let (server, auth) = server(url)?;
            servers.push(server);
            auths.push(auth);
        }
        let first = auths.first().ok_or(NatsError::NoServers)?;
        let auth = match (first, &config.auth) {
            _ if auths.iter().any(|it| it != first) => return Err(NatsError::TwoAuths),
            (None, auth) => auth.clone(),
            (Some(user), NatsAuth::None) => user.auth(),
            (Some(_), _) => return Err(NatsError::TwoAuths),
        };
        let is_tls_required = config.tls.required || config.tls.first || servers.iter().all(ServerAddr::tls_required);

        let mut options = ConnectOptions::new()
            .retry_on_initial_connect()
            // Each was checked when it came first.
            .skip_subject_validation(true)
            .max_reconnects(None)
            .connection_timeout(CONNECT_LIMIT)
            .ping_interval(PING_INTERVAL)
            .client_capacity(CLIENT_CAPACITY)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .reconnect_delay_callback(|attempt| delay(attempt, fastrand::f64()))
            .require_tls(is_tls_required)
            .tls_client_config(tls(&config.tls, is_tls_required)?);
        if config.tls.first {
            options = options.tls_first();
        }
        if config.only_these_servers {
            options = options.ignore_discovered_servers();
        }
        if let Some(name) = &config.name {
            options = options.name(name);
        }
        let options = with_auth(options, auth)?;
        Ok(Self { servers, options })
    }
}

/// Grows, and is spread: not all nodes come back at once.
fn delay(attempt: usize, random: f64) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let longest = (FIRST_DELAY * (1 << doublings)).min(MAX_DELAY);
    longest.mul_f64(0.5 + 0.5 * random)
}

/// What stands before the `@` of a URL.
#[derive(PartialEq)]
struct User {
    name: String,
    password: Option<String>,
}

impl User {
    /// A name alone is a token, as in other clients of NATS.
    fn auth(&self) -> NatsAuth {
        match &self.password {
            Some(password) => NatsAuth::UserPassword {
                user: self.name.clone(),
                password: password.clone(),
            },
            None => NatsAuth::Token(self.name.clone()),
        }
    }
}

fn server(text: &str) -> Result<(ServerAddr, Option<User>), NatsError> {
    let bad = |reason: &str| NatsError::BadUrl {
        url: without_user(text),
        reason: reason.to_owned(),
    };
    let parsed: io::Result<ServerAddr> = text.trim().parse();
    let server = parsed.map_err(|error| bad(&error.to_string()))?;
    let mut url = server.into_inner();
    if !matches!(url.scheme(), "nats" | "tls") {
        return Err(bad("it is another scheme"));
    }
    let host = url.host_str().unwrap_or_default();
    if host.is_empty() {
        return Err(bad("it has no host"));
    }
    if host.contains(',') {
        return Err(bad("there are several in one"));
    }
    if url.port() == Some(0) {
        return Err(bad("it has no port"));
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err(bad("something follows the port"));
    }
    let decoded = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8();
        decoded.map(String::from).map_err(|_| bad("its user is not UTF-8"))
    };
    let password = url.password().map(decoded).transpose()?;
    let name = decoded(url.username())?;
    if name.is_empty() && password.is_some() {
        return Err(bad("it has a password and no user"));
    }
    let user = (!name.is_empty()).then_some(User { name, password });
    // It would be shown in logs, and is of no use to async-nats.
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return Err(bad("it has no host"));
    }
    let server = ServerAddr::from_url(url).map_err(|error| bad(&error.to_string()))?;
    Ok((server, user))
}

fn with_auth(options: ConnectOptions, auth: NatsAuth) -> Result<ConnectOptions, NatsError> {
    Ok(match auth {
        NatsAuth::None => options,
        NatsAuth::Token(token) => options.token(token),
        NatsAuth::UserPassword { user, password } => options.user_and_password(user, password),
        NatsAuth::NkeySeed(seed) => {
            let seed = seed.trim();
            let bad = |reason| NatsError::BadNkeySeed { reason };
            let pair = nkeys::KeyPair::from_seed(seed).map_err(|error| bad(error.to_string()))?;
            if !pair.public_key().starts_with('U') {
                return Err(bad("it is not a user's".to_owned()));
            }
            options.nkey(seed.to_owned())
        }
        NatsAuth::CredentialsFile(path) => {
            let text = fs::read_to_string(&path).map_err(|source| unreadable(&path, source))?;
            let bad = |error: io::Error| NatsError::BadCredentials {
                path,
                reason: error.to_string(),
            };
            options.credentials(&text).map_err(bad)?
        }
    })
}

/// It is needed even if nothing here asks for TLS, as the server may.
fn tls(config: &NatsTls, is_required: bool) -> Result<ClientConfig, NatsError> {
    // Not the process's default, which another crate may have left ambiguous.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let no_roots = |error: rustls::Error| NatsError::NoSystemRoots {
        reason: error.to_string(),
    };
    let builder = builder.map_err(no_roots)?;
    let builder = match &config.roots_file {
        Some(path) => builder.with_root_certificates(roots(path)?),
        None => match builder.clone().with_platform_verifier() {
            Ok(builder) => builder,
            Err(error) if is_required => return Err(no_roots(error)),
            // A server that wants TLS nevertheless is then trusted by nobody.
            Err(_) => builder.with_root_certificates(RootCertStore::empty()),
        },
    };
    let Some(client) = &config.client else {
        return Ok(builder.with_no_client_auth());
    };
    let certificates = certificates(&client.certificate_file)?;
    let key_file = &client.key_file;
    let text = fs::read(key_file).map_err(|source| unreadable(key_file, source))?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| bad_certificate(key_file, &error))?;
    let with_client = builder.with_client_auth_cert(certificates, key);
    with_client.map_err(|error| bad_certificate(key_file, &error))
}

fn roots(path: &Path) -> Result<RootCertStore, NatsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| bad_certificate(path, &error))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, NatsError> {
    let text = fs::read(path).map_err(|source| unreadable(path, source))?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = parsed.map_err(|error| bad_certificate(path, &error))?;
    if certificates.is_empty() {
        return Err(bad_certificate(path, &"it has no certificates"));
    }
    Ok(certificates)
}

fn unreadable(path: &Path, source: io::Error) -> NatsError {
    let path = path.to_owned();
    NatsError::Unreadable { path, source }
}

fn bad_certificate(path: &Path, reason: &dyn std::fmt::Display) -> NatsError {
    NatsError::BadCertificate {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The host and port, and the auth as it is shown.
    fn parsed(urls: &[&str]) -> Result<Vec<String>, NatsError> {
        let servers: Result<Vec<_>, _> = urls.iter().map(|it| server(it)).collect();
        let shown = |(server, user): (ServerAddr, Option<User>)| {
            let user = user.map_or_else(String::new, |it| match it.auth() {
                NatsAuth::UserPassword { user, password } => format!(" {user} {password}"),
                NatsAuth::Token(token) => format!(" {token}"),
                other => format!(" {other:?}"),
            });
            assert!(!server.as_url_str().contains('@'), "{}", server.as_url_str());
            format!("{} {} {}{user}", server.tls_required(), server.host(), server.port())
        };
        servers.map(|it| it.into_iter().map(shown).collect())
    }

    #[test]
    fn urls() {
        let good = parsed(&[
            "nats://a:1",
            "tls://b.example",
            "127.0.0.1:3",
            " nats://[::1]:5/ ",
            "nats://ann:h%2Cu%40sh@c",
            "nats://s3cret@d:6",
        ]);
        let expected = [
            "false a 1",
            "true b.example 4222",
            "false 127.0.0.1 3",
            "false ::1 5",
            "false c 4222 ann h,u@sh",
            "false d 6 s3cret",
        ];
        assert_eq!(good.ok(), Some(expected.map(String::from).to_vec()));
    }

    #[test]
    fn bad_urls_say_why_and_show_no_secrets() {
        for (url, reason) in [
            ("", "host"),
            ("nats://", "host"),
            ("nats://:4222", "host"),
            ("http://a", "scheme"),
            ("ws://a:1", "scheme"),
            ("nats://a:b", "port"),
            ("nats://a:70000", "port"),
            ("nats://a:0", "port"),
            ("nats://a:1/x", "follows"),
            ("nats://a:1?x", "follows"),
            ("nats://a,b", "several"),
            ("nats://:hush@a", "no user"),
            ("nats://ann:hush@a:b", "port"),
            ("nats://ann:hush/more@a", "port"),
            ("nats://%ff:hush@a", "UTF-8"),
        ] {
            let said = match parsed(&[url]) {
                Err(error) => error.to_string(),
                Ok(good) => panic!("{url}: {good:?}"),
            };
            assert!(said.contains(reason) && said.contains("nats://HOST:PORT"), "{said}");
            assert!(!said.contains("hush"), "{said}");
        }
    }

    #[test]
    fn one_auth_only() {
        let plan = |urls: &[&str], auth: NatsAuth| {
            let mut config = NatsConfig::new(urls.iter().copied());
            config.auth = auth;
            Plan::new(&config).map(|plan| plan.servers.len())
        };
        let token = || NatsAuth::Token("t".to_owned());
        assert!(matches!(plan(&[], NatsAuth::None), Err(NatsError::NoServers)));
        assert!(matches!(plan(&["a", "b"], token()), Ok(2)));
        assert!(matches!(plan(&["t@a", "t@b"], NatsAuth::None), Ok(2)));
        for (urls, auth) in [
            (["t@a", "t@b"], token()),
            (["t@a", "b"], NatsAuth::None),
            (["t@a", "u@b"], NatsAuth::None),
            (["u:p@a", "u:q@b"], NatsAuth::None),
        ] {
            assert!(matches!(plan(&urls, auth), Err(NatsError::TwoAuths)));
        }
    }

    #[test]
    fn bad_files_and_keys() {
        let none = Path::new("/no/such/file");
        let this = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        let said = |change: &dyn Fn(&mut NatsConfig)| {
            let mut config = NatsConfig::new(["a"]);
            change(&mut config);
            match Plan::new(&config) {
                Err(error) => error.to_string(),
                Ok(_) => "nothing".to_owned(),
            }
        };
        let client = |certificate: &Path| crate::config::ClientCertificate {
            certificate_file: certificate.to_owned(),
            key_file: this.to_owned(),
        };
        for (said, expected) in [
            (
                said(&|it| it.auth = NatsAuth::CredentialsFile(none.into())),
                "/no/such/file can't be read",
            ),
            (
                said(&|it| it.auth = NatsAuth::CredentialsFile(this.into())),
                "as nsc writes them",
            ),
            (
                said(&|it| it.tls.roots_file = Some(none.into())),
                "/no/such/file can't be read",
            ),
            (
                said(&|it| it.tls.roots_file = Some(this.into())),
                "it has no certificates",
            ),
            (
                said(&|it| it.tls.client = Some(client(none))),
                "/no/such/file can't be read",
            ),
            (said(&|it| it.tls.client = Some(client(this))), "it has no certificates"),
            (
                said(&|it| it.auth = NatsAuth::NkeySeed("SUhush".to_owned())),
                "begins with SU",
            ),
            // A good seed, but an account's.
            (
                said(&|it| {
                    let seed = nkeys::KeyPair::new_account().seed().unwrap_or_default();
                    it.auth = NatsAuth::NkeySeed(seed);
                }),
                "it is not a user's",
            ),
            (
                said(&|it| {
                    let seed = nkeys::KeyPair::new_user().seed().unwrap_or_default();
                    it.auth = NatsAuth::NkeySeed(seed + "\n");
                }),
                "nothing",
            ),
        ] {
            assert!(said.contains(expected) && !said.contains("hush"), "{said}");
        }
    }

    #[test]
    fn delays_grow_up_to_a_limit() {
        assert_eq!(delay(0, 1.0), FIRST_DELAY);
        assert_eq!(delay(1, 1.0), FIRST_DELAY);
        assert_eq!(delay(1, 0.0), FIRST_DELAY / 2);
        assert_eq!(delay(3, 1.0), FIRST_DELAY * 4);
        assert_eq!(delay(usize::MAX, 1.0), MAX_DELAY);
        assert_eq!(delay(usize::MAX, 0.0), MAX_DELAY / 2);
    }
}
