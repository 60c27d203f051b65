//! [`Refusal`]: why an upgrade was refused, and what is answered.

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Not good HTTP/1.1, or not a good upgrade.
    BadRequest,
    /// A web page of this origin may not connect.
    Forbidden,
    /// The name in `Host` is none that [`UpgradeRules::hosts`](super::UpgradeRules::hosts) lets in.
    UntrustedHost,
    /// There is nothing at this path.
    NotFound,
    /// Only GET is upgraded.
    MethodNotAllowed,
    /// The header block is longer than `max_request_bytes`, or has too many fields.
    HeadersTooLong,
    /// It is the beginning of TLS. There is no answer.
    Tls,
    /// There is no room for another connection. Only HTTP stacks that ask before they upgrade say this.
    Full,
    /// The HTTP stack can't give the connection away.
    NotUpgradable,
}

impl Refusal {
    /// The status of the response.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest | Self::Tls => 400,
            Self::Forbidden | Self::UntrustedHost => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotUpgradable => 426,
            Self::HeadersTooLong => 431,
            Self::Full => 503,
        }
    }

    /// The response's body, which is plain text.
    pub fn body(self) -> &'static str {
        match self {
            Self::BadRequest | Self::Tls => "Bad Request\n",
            Self::Forbidden => "Forbidden\n",
            Self::UntrustedHost => {
                "Forbidden: the server does not trust the name in Host, which is neither localhost nor an IP address. If it \
                 is the server's own, such as behind a proxy, allow it: --allowed-host NAME, or --origin with the origins of \
                 your pages (embedded: Builder::allowed_host, UpgradeRules::hosts)\n"
            }
            Self::NotFound => "404 page not found\n",
            Self::MethodNotAllowed => "Method Not Allowed\n",
            Self::HeadersTooLong => "Request Header Fields Too Large\n",
            Self::Full => "The server is full; try again later\n",
            Self::NotUpgradable => {
                "This connection can't be upgraded: something in front of the route has taken it, or it is not served with \
                 upgrades\n"
            }
        }
    }

    /// Whether the response tells the version of WebSocket: it was about an upgrade.
    pub fn tells_version(self) -> bool {
        matches!(
            self,
            Self::BadRequest | Self::Forbidden | Self::UntrustedHost | Self::MethodNotAllowed
        )
    }

    /// In one word, for counters and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Forbidden => "origin",
            Self::UntrustedHost => "host",
            Self::NotFound => "path",
            Self::MethodNotAllowed => "method",
            Self::HeadersTooLong => "too_long",
            Self::Tls => "tls",
            Self::Full => "full",
            Self::NotUpgradable => "not_upgradable",
        }
    }

    pub(super) fn phrase(self) -> &'static str {
        match self {
            Self::BadRequest | Self::Tls => "Bad Request",
            Self::Forbidden | Self::UntrustedHost => "Forbidden",
            Self::NotFound => "Not Found",
            Self::MethodNotAllowed => "Method Not Allowed",
            Self::NotUpgradable => "Upgrade Required",
            Self::HeadersTooLong => "Request Header Fields Too Large",
            Self::Full => "Service Unavailable",
        }
    }
}
