//! [`Dsn`]: where a database is, who we are there, and how the connection is encrypted, as libpq's connection strings say it.
//!
//! Each of libpq's parameters is obeyed, or refused by its name: one that is ignored would be a surprise.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

use super::super::SourceError;
use super::CONNECT_LIMIT;

/// Where a database is, and who we are there.
#[derive(Clone, PartialEq, Eq)]
pub struct Dsn {
    pub(super) config: Box<Config>,
    pub(super) encryption: Option<Encryption>,
}

/// An encrypted connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Encryption {
    /// The certificate's name may be another one than the host's (`verify-ca`).
    pub(super) any_name: bool,
    /// Authorities instead of the system's.
    pub(super) roots: Option<PathBuf>,
    /// Our own certificate and its key.
    pub(super) own: Option<(PathBuf, PathBuf)>,
    pub(super) versions: Versions,
    /// The server is not told which name we know it by.
    pub(super) hides_name: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Versions {
    #[default]
    All,
    Tls12,
    Tls13,
}

/// What tokio-postgres understands as libpq means it.
const PASSED_ON: &[&str] = &[
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "channel_binding",
    "load_balance_hosts",
    "sslnegotiation",
    "target_session_attrs",
];

/// What libpq knows and this server doesn't.
const REFUSED: &[&str] = &[
    "authtype",
    "gssdelegation",
    "gsslib",
    "krbsrvname",
    "max_protocol_version",
    "min_protocol_version",
    "oauth_client_id",
    "oauth_client_secret",
    "oauth_issuer",
    "oauth_scope",
    "passfile",
    "replication",
    "require_auth",
    "requirepeer",
    "requiressl",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "sslcertmode",
    "sslcrl",
    "sslcrldir",
    "sslkeylogfile",
    "sslpassword",
    "tty",
];

impl FromStr for Dsn {
    type Err = SourceError;

    fn from_str(given: &str) -> Result<Self, SourceError> {
        let bad = |why: String| SourceError::BadDsn(why);
        let (base, parameters) = split(given).ok_or_else(|| bad("that is no connection string".to_owned()))?;
        let mut rest = base.to_owned();
        let mut options = Options::default();
        let mut separator = if base.is_empty() { "" } else { "?" };
        for (key, value) in &parameters {
            if PASSED_ON.contains(&key.as_str()) {
                // What the parser says of a whole string may show a part of it, such as a password with an @ in it.
                let alone = format!("{key}={}", quoted(value));
                if alone.parse::<Config>().is_err() {
                    let shown = if key == "password" { "…" } else { value };
                    return Err(bad(format!("{key} can't be {shown:?}")));
                }
                if base.is_empty() {
                    rest += &format!("{separator}{alone}");
                    separator = " ";
                } else {
                    rest += &format!(
                        "{separator}{key}={}",
                        percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC)
                    );
                    separator = "&";
                }
                continue;
            }
            options.set(key, value).map_err(bad)?;
        }
        let mut config: Config = rest
            .parse()
            .map_err(|_| bad("that is no connection string".to_owned()))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(bad("there is no host in it".to_owned()));
        }
        if config.get_user().is_none() {
            return Err(bad("there is no user in it".to_owned()));
        }
        let encryption = options.encryption().map_err(bad)?;
        config.ssl_mode(match encryption {
            Some(_) => SslMode::Require,
            None => SslMode::Disable,
        });
        if config.get_application_name().is_none() {
            let fallback = options.fallback_name.as_deref();
            config.application_name(fallback.unwrap_or("entity-sync"));
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_LIMIT);
        }
        if !parameters.iter().any(|(key, _)| key == "keepalives_idle") {
            config.keepalives_idle(Duration::from_secs(10));
        }
        if let Some(count) = options.keepalives_count {
            config.keepalives_retries(count);
        }
        match options.user_timeout {
            None => _ = config.tcp_user_timeout(Duration::from_secs(20)),
            // The system's.
            Some(Duration::ZERO) => {}
            Some(limit) => _ = config.tcp_user_timeout(limit),
        }
        Ok(Self {
            config: Box::new(config),
            encryption,
        })
    }
}

/// What is not passed on.
#[derive(Default)]
struct Options {
    mode: Option<String>,
    roots: Option<String>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    is_old_allowed: Option<bool>,
    is_new_allowed: Option<bool>,
    hides_name: bool,
    fallback_name: Option<String>,
    keepalives_count: Option<u32>,
    user_timeout: Option<Duration>,
}

impl Options {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let bad = |allowed: &str| Err(format!("{key} can't be {value:?}: write {allowed}"));
        match (key, value) {
            ("sslmode", "disable" | "allow" | "prefer" | "require" | "verify-ca" | "verify-full") => {
                self.mode = Some(value.to_owned());
            }
            ("sslmode", _) => return bad("disable, require, verify-ca or verify-full"),
            ("ssl", "true") => self.mode = Some("require".to_owned()),
            ("sslrootcert", _) => self.roots = Some(value.to_owned()),
            ("sslcert", _) => self.certificate = Some(value.into()),
            ("sslkey", _) => self.key = Some(value.into()),
            ("sslsni", "0" | "1") => self.hides_name = value == "0",
            ("sslsni", _) => return bad("0 or 1"),
            // Nothing is compressed, as with every libpq since version 14.
            ("sslcompression", _) => {}
            ("ssl_min_protocol_version", "TLSv1" | "TLSv1.1" | "TLSv1.2") => self.is_old_allowed = Some(true),
            ("ssl_min_protocol_version", "TLSv1.3") => self.is_old_allowed = Some(false),
            ("ssl_min_protocol_version", _) => return bad("TLSv1.2 or TLSv1.3"),
            ("ssl_max_protocol_version", "TLSv1.2") => self.is_new_allowed = Some(false),
            ("ssl_max_protocol_version", "" | "TLSv1.3") => self.is_new_allowed = Some(true),
            ("ssl_max_protocol_version", _) => return bad("TLSv1.2 or TLSv1.3"),
            // There is no encryption by GSSAPI, which those don't ask for.
            ("gssencmode", "disable" | "prefer") => {}
            ("gssencmode", _) => return bad("disable"),
            ("client_encoding", _) => {
                let plain = value.to_ascii_lowercase().replace(['-', '_'], "");
                if !["utf8", "unicode", "auto"].contains(&plain.as_str()) {
                    return bad("UTF8, which rows are sent in");
                }
            }
            ("fallback_application_name", _) => self.fallback_name = Some(value.to_owned()),
            ("keepalives_count", _) => match value.parse() {
                Ok(count) => self.keepalives_count = Some(count),
                Err(_) => return bad("a number"),
            },
            ("tcp_user_timeout", _) => match value.parse() {
                Ok(ms) => self.user_timeout = Some(Duration::from_millis(ms)),
                Err(_) => return bad("a number of milliseconds"),
            },
            _ if REFUSED.contains(&key) => {
                return Err(format!(
                    "{key} is a parameter of libpq that this server does not support: remove it"
                ));
            }
            // It may be a part of a password, and is not shown.
            _ => return Err("it has a parameter that libpq does not know".to_owned()),
        }
        Ok(())
    }

    fn encryption(&self) -> Result<Option<Encryption>, String> {
        let mode = self.mode.as_deref();
        let roots = self.roots.as_deref().filter(|it| !it.is_empty());
        let own = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            _ => return Err("sslcert and sslkey need each other".to_owned()),
        };
        // An encrypted connection to whoever answers protects from nobody who matters: with `require` the certificate is
        // checked, and otherwise the connection is plain.
        if !matches!(mode, Some("require" | "verify-ca" | "verify-full")) {
            return match (&roots, &own) {
                (None, None) => Ok(None),
                (Some(_), _) => Err("sslrootcert needs sslmode=verify-full or sslmode=verify-ca".to_owned()),
                (None, Some(_)) => Err("sslcert needs sslmode=verify-full or sslmode=verify-ca".to_owned()),
            };
        }
        let any_name = mode == Some("verify-ca");
        let roots = match roots {
            Some("system") if any_name => {
                return Err("sslrootcert=system needs sslmode=verify-full, or any certificate would do".to_owned());
            }
            None | Some("system") => None,
            Some(path) => Some(PathBuf::from(path)),
        };
        let versions = match (self.is_old_allowed, self.is_new_allowed) {
            (Some(false), Some(false)) => {
                return Err("ssl_min_protocol_version is above ssl_max_protocol_version".to_owned());
            }
            (Some(false), _) => Versions::Tls13,
            (_, Some(false)) => Versions::Tls12,
            _ => Versions::All,
        };
        Ok(Some(Encryption {
            any_name,
            roots,
            own,
            versions,
            hides_name: self.hides_name,
        }))
    }
}

/// A URL without its parameters, or nothing; and the parameters.
fn split(given: &str) -> Option<(&str, Vec<(String, String)>)> {
    if !["postgres://", "postgresql://"].iter().any(|it| given.starts_with(it)) {
        return Some(("", pairs(given)?));
    }
    // A password may have a question mark in it.
    let host_at = given.find('@').unwrap_or(0);
    let Some(at) = given[host_at..].find('?').map(|at| at + host_at) else {
        return Some((given, Vec::new()));
    };
    let (base, query) = (&given[..at], &given[at + 1..]);
    let decode = |text: &str| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
    let parameters = query.split('&').filter(|it| !it.is_empty()).map(|it| {
        let (key, value) = it.split_once('=')?;
        Some((decode(key)?, decode(value)?))
    });
    Some((base, parameters.collect::<Option<_>>()?))
}

/// `key = value 'key' = 'it\'s'`, as libpq reads it.
fn pairs(given: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = given.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let key = key.trim_end();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return None;
        }
        let (value, after) = value(after.trim_start())?;
        pairs.push((key.to_owned(), value));
        rest = after.trim_start();
    }
    Some(pairs)
}

/// The value at the beginning, and what is behind it.
fn value(given: &str) -> Option<(String, &str)> {
    let (is_quoted, text) = match given.strip_prefix('\'') {
        Some(text) => (true, text),
        None => (false, given),
    };
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' => value.push(chars.next()?.1),
            '\'' if is_quoted => return Some((value, &text[at + 1..])),
            char if !is_quoted && char.is_whitespace() => return Some((value, &text[at..])),
            char => value.push(char),
        }
    }
    (!is_quoted).then_some((value, ""))
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

impl fmt::Debug for Dsn {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dsn")
            .field("user", &self.config.get_user())
            .field("hosts", &self.config.get_hosts())
            .field("dbname", &self.config.get_dbname())
            .field("encryption", &self.encryption)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dsn(given: &str) -> Dsn {
        given.parse().unwrap_or_else(|error| panic!("{given}: {error}"))
    }

    #[track_caller]
    fn refused(given: &str, why: &str) {
        let error = given.parse::<Dsn>().expect_err(given).to_string();
        assert!(error.contains(why), "{given}: {error}");
        assert!(!error.contains("hidden"), "{error}");
    }

    #[test]
    fn modes_of_encryption() {
        let of = |given: &str| dsn(given).encryption;
        let full = Some(Encryption::default());
        for plain in [
            "",
            "?sslmode=disable",
            "?sslmode=prefer",
            "?sslmode=allow&gssencmode=disable",
        ] {
            assert_eq!(of(&format!("postgres://u@h/d{plain}")), None, "{plain}");
        }
        for checked in [
            "sslmode=require",
            "sslmode=verify-full",
            "sslmode=verify-full&sslrootcert=system",
            "ssl=true",
        ] {
            let parsed = dsn(&format!("postgresql://u@h/d?{checked}"));
            assert_eq!(parsed.encryption, full, "{checked}");
            assert_eq!(parsed.config.get_ssl_mode(), SslMode::Require);
        }
        let given = "host=h user=u sslmode=verify-ca sslrootcert='/a b/root.crt' sslcert=c sslkey=k sslsni=0 ssl_min_protocol_version=TLSv1.3";
        let expected = Encryption {
            any_name: true,
            roots: Some("/a b/root.crt".into()),
            own: Some(("c".into(), "k".into())),
            versions: Versions::Tls13,
            hides_name: true,
        };
        assert_eq!(of(given), Some(expected));
        refused(
            "postgres://u:hidden@h/d?sslmode=verify",
            "disable, require, verify-ca or verify-full",
        );
        refused("postgres://u:hidden@h/d?sslrootcert=/x", "sslmode=verify-full");
        refused("host=h user=u sslmode=verify-ca sslrootcert=system", "verify-full");
        refused("host=h user=u sslmode=verify-full sslcert=x", "need each other");
    }

    #[test]
    fn parameters_are_obeyed_or_refused_by_name() {
        let it = dsn(
            "postgres://u:p%40?x@h:1,g:2/d?connect_timeout=7&tcp_user_timeout=1500&keepalives_count=3&application_name=a%26b\
             &target_session_attrs=read-write&client_encoding=utf8&keepalives_idle=4",
        );
        let config = &it.config;
        assert_eq!(config.get_password(), Some(&b"p@?x"[..]));
        assert_eq!((config.get_hosts().len(), config.get_ports()), (2, &[1, 2][..]));
        assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(7)));
        assert_eq!(
            config.get_tcp_user_timeout(),
            Some(&Duration::from_millis(1500)),
            "libpq's unit"
        );
        assert_eq!(config.get_keepalives_retries(), Some(3));
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(4));
        assert_eq!(config.get_application_name(), Some("a&b"));
        let it = dsn("user = u password='it\\'s \\\\' host=/run dbname=d fallback_application_name=x");
        assert_eq!(it.config.get_password(), Some(&br"it's \"[..]));
        assert_eq!(it.config.get_application_name(), Some("x"));
        assert_eq!(it.config.get_connect_timeout(), Some(&CONNECT_LIMIT));
        for name in REFUSED {
            refused(
                &format!("host=h user=u password=hidden {name}=1"),
                &format!("{name} is a parameter of libpq"),
            );
            refused(
                &format!("postgres://u:hidden@h/d?{name}=1"),
                &format!("{name} is a parameter of libpq"),
            );
        }
        refused(
            "host=h user=u password=a hidden=b",
            "a parameter that libpq does not know",
        );
        refused("host=h user=u port=x password=hidden", "port can't be \"x\"");
        refused("host=h user=u client_encoding=LATIN1", "UTF8");
        refused("host=h user=u tcp_user_timeout=1s", "milliseconds");
        refused(
            "host=h user=u target_session_attrs=standby",
            "target_session_attrs can't be \"standby\"",
        );
        refused("host=h", "no user");
        refused("postgres://u:hidden@/d", "no host");
        refused("postgres://me:hidden@h:port/d", "no connection string");
    }
}
