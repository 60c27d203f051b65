//! [`NatsConfig`]: where the servers are, and how they know us.

use std::fmt;
use std::path::PathBuf;

/// Where the servers are, and how they know us. [`Nats::new`](crate::Nats::new) checks it.
#[derive(Clone)]
#[non_exhaustive]
pub struct NatsConfig {
    /// `nats://HOST:PORT` or `tls://HOST:PORT`; without a port it is 4222, without a scheme `nats://`. One string may have
    /// several, separated by commas. Any of them will do; those in one cluster name each other besides. A URL may have the
    /// user and password, or a token, as in `nats://user:password@host`; then [`auth`](Self::auth) is empty.
    pub servers: Vec<String>,
    /// How this node says who it is.
    pub auth: NatsAuth,
    /// Encryption, which is used if it is [required](NatsTls::required), the URL says `tls://`, or the server wants it.
    pub tls: NatsTls,
    /// What the server's own lists of connections call this one.
    pub name: Option<String>,
    /// Connect only to [`servers`](Self::servers), not to others in their cluster: for when the addresses by which servers
    /// know each other can't be reached from here.
    pub only_these_servers: bool,
}

/// How a node says who it is.
#[derive(Clone, Default)]
pub enum NatsAuth {
    /// It doesn't, or the URL does.
    #[default]
    None,
    /// A token.
    Token(String),
    /// A user and a password.
    UserPassword {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// The seed of an nkey of a user: `SU…`.
    NkeySeed(String),
    /// A `.creds` file, as `nsc` makes them. It is read once, at the start.
    CredentialsFile(PathBuf),
}

/// Encryption.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct NatsTls {
    /// Connect only with TLS.
    pub required: bool,
    /// TLS begins at once, before the server has said anything (its `handshake_first`). Implies
    /// [`required`](Self::required).
    pub first: bool,
    /// A PEM file of the certificates of those who may vouch for the server, instead of those that the system trusts.
    pub roots_file: Option<PathBuf>,
    /// What this node shows if the server asks (its `verify`).
    pub client: Option<ClientCertificate>,
}

/// A certificate of this node's own.
#[derive(Clone, Debug)]
pub struct ClientCertificate {
    /// A PEM file of the certificate, and those that lead to the root.
    pub certificate_file: PathBuf,
    /// A PEM file of its key.
    pub key_file: PathBuf,
}

impl NatsConfig {
    /// Servers without authentication.
    pub fn new(servers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            servers: servers.into_iter().map(Into::into).collect(),
            auth: NatsAuth::None,
            tls: NatsTls::default(),
            name: None,
            only_these_servers: false,
        }
    }
}

/// A server's URL without what stands before the `@`, which may be secret: as logs may show it.
pub fn without_user(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, url),
    };
    // The last one, as a password that is not encoded as it should be may have others.
    let rest = match rest.rsplit_once('@') {
        Some((_, host)) => host,
        // A user and the beginning of a password that has been cut at a comma.
        None if rest
            .rsplit_once(':')
            .is_some_and(|(_, port)| !port.trim_end_matches('/').bytes().all(|it| it.is_ascii_digit())) =>
        {
            "…"
        }
        None => rest,
    };
    scheme.map_or_else(|| rest.to_owned(), |scheme| format!("{scheme}://{rest}"))
}

/// Shows no secrets.
impl fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<_> = self.servers.iter().flat_map(|it| it.split(',')).collect();
        let servers: Vec<_> = servers.into_iter().map(without_user).collect();
        f.debug_struct("NatsConfig")
            .field("servers", &servers)
            .field("auth", &self.auth)
            .field("tls", &self.tls)
            .field("name", &self.name)
            .field("only_these_servers", &self.only_these_servers)
            .finish()
    }
}

/// Shows no secrets.
impl fmt::Debug for NatsAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Token(_) => f.write_str("Token(…)"),
            Self::UserPassword { user, .. } => {
                let mut shown = f.debug_struct("UserPassword");
                shown.field("user", user).finish_non_exhaustive()
            }
            Self::NkeySeed(_) => f.write_str("NkeySeed(…)"),
            Self::CredentialsFile(path) => f.debug_tuple("CredentialsFile").field(path).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secrets() {
        let mut config = NatsConfig::new([
            "nats://ann:hush@a:4222,hush@b",
            "tls://hush@c",
            // A password that should have been encoded: it has a comma, a slash and an at sign.
            "nats://ann:h/u@sh@d",
        ]);
        for auth in [
            NatsAuth::Token("hush".to_owned()),
            NatsAuth::UserPassword {
                user: "ann".to_owned(),
                password: "hush".to_owned(),
            },
            NatsAuth::NkeySeed("hush".to_owned()),
        ] {
            config.auth = auth;
            let shown = format!("{config:?}");
            assert!(!shown.contains("hush") && !shown.contains("h/u"), "{shown}");
            assert!(shown.contains("nats://a:4222") && shown.contains("tls://c"), "{shown}");
        }
        assert!(format!("{config:?}").contains("nats://d"));
    }
}
