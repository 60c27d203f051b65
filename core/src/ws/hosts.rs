//! Who may connect from where: [`Hosts`], the names that the server answers to, and [`Origins`], the web pages that may connect.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::HeaderFields;

/// Which names of the server a request may carry as its `Host`.
///
/// A page of `evil.example` may have that name lead to this machine after it was loaded (DNS rebinding). Its requests then
/// come from a browser that takes the server for the page's own, and only the name in `Host` tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hosts {
    /// As [`Named`](Self::Named) with no names for a driver that listens to loopback addresses only and has
    /// [`Origins::Same`], else as [`Any`](Self::Any).
    #[default]
    Auto,
    /// All names.
    Any,
    /// IP addresses, `localhost` and names below it, and these: without a port, in any ASCII case. One that begins with a dot
    /// stands for all names that end with it.
    Named(Vec<String>),
}

/// Which web pages may connect. Only browsers are held back by it: a request without an `Origin` header is always let
/// in, and what else sends one can send any.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origins {
    /// Pages from the same host and port as the request's `Host`, whatever the scheme. A port that is left out is the usual one
    /// of the page's scheme.
    Same,
    /// All pages.
    Any,
    /// Pages from these origins only, written as browsers do: `https://example.com`, and `:port` if it isn't the
    /// scheme's usual one. ASCII case doesn't matter.
    List(Vec<String>),
}

impl Hosts {
    /// Whether a request with this `Host` is let in.
    pub fn allow(&self, host: &[u8]) -> bool {
        let Self::Named(names) = self else {
            return true;
        };
        let Ok(host) = std::str::from_utf8(host) else {
            return false;
        };
        let Some((name, _)) = split_port(host) else {
            return false;
        };
        if let Some(address) = name.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            return address.parse::<Ipv6Addr>().is_ok();
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.parse::<Ipv4Addr>().is_ok() || name.eq_ignore_ascii_case("localhost") || ends_with(name, ".localhost") {
            return true;
        }
        names.iter().any(|known| match known.starts_with('.') {
            true => ends_with(name, known),
            false => !name.is_empty() && name.eq_ignore_ascii_case(known),
        })
    }

    /// Whether all values of a request's `Host` are let in. Without any, it comes from no browser.
    pub(super) fn allow_all(&self, headers: &(impl HeaderFields + ?Sized)) -> bool {
        headers.values("Host").all(|host| self.allow(host))
    }
}

impl Origins {
    pub(super) fn allow(&self, headers: &(impl HeaderFields + ?Sized)) -> bool {
        let Some(origin) = headers.values("Origin").next() else {
            return true;
        };
        match self {
            Self::Any => true,
            Self::Same => headers.values("Host").next().is_some_and(|host| is_same(origin, host)),
            Self::List(known) => known.iter().any(|known| origin.eq_ignore_ascii_case(known.as_bytes())),
        }
    }
}

/// Whether a page of `origin` has `host` as its own. `null` and whatever else has no host is nobody's.
fn is_same(origin: &[u8], host: &[u8]) -> bool {
    let (Ok(origin), Ok(host)) = (std::str::from_utf8(origin), std::str::from_utf8(host)) else {
        return false;
    };
    let Some((scheme, rest)) = origin.split_once("://") else {
        return false;
    };
    let own = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if own.is_empty() {
        return false;
    }
    if own.eq_ignore_ascii_case(host) {
        return true;
    }
    let usual = match scheme.to_ascii_lowercase().as_str() {
        "http" | "ws" => "80",
        "https" | "wss" => "443",
        _ => return false,
    };
    let (Some((own, own_port)), Some((host, port))) = (split_port(own), split_port(host)) else {
        return false;
    };
    own.eq_ignore_ascii_case(host) && own_port.unwrap_or(usual) == port.unwrap_or(usual)
}

/// The name, in brackets if it is an IPv6 address, and the port of a `Host`.
fn split_port(host: &str) -> Option<(&str, Option<&str>)> {
    let name_end = match host.starts_with('[') {
        true => host.find(']')? + 1,
        false => host.find(':').unwrap_or(host.len()),
    };
    let (name, rest) = host.split_at_checked(name_end)?;
    if name.is_empty() {
        return None;
    }
    match rest.strip_prefix(':') {
        // A port may be empty.
        Some("") => Some((name, None)),
        Some(port) => port.bytes().all(|it| it.is_ascii_digit()).then_some((name, Some(port))),
        None => rest.is_empty().then_some((name, None)),
    }
}

fn ends_with(name: &str, end: &str) -> bool {
    let start = name.len().saturating_sub(end.len());
    start > 0 && name.get(start..).is_some_and(|it| it.eq_ignore_ascii_case(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_its_own_host_whether_the_usual_port_is_written_or_not() {
        for (origin, host, same) in [
            ("https://name", "name", true),
            ("https://name", "name:443", true),
            ("https://name:443", "name", true),
            ("http://name", "NAME:80", true),
            ("http://name", "name:", true),
            ("https://[::1]", "[::1]:443", true),
            ("http://name", "name:443", false),
            ("https://name", "name:80", false),
            ("https://name", "name:8443", false),
            ("https://name:8443", "name:8443", true),
            ("http://name:8443", "name:8443", true),
            ("app://name", "name", true),
            ("app://name", "name:443", false),
            ("https://[::1]", "[::2]", false),
            ("https://other", "name:443", false),
            ("https://name", "name:443x", false),
            ("https://", "", false),
            ("null", "null", false),
            ("", "", false),
        ] {
            assert_eq!(is_same(origin.as_bytes(), host.as_bytes()), same, "{origin} at {host}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_no_names_of_this_machine() {
        let hosts = Hosts::Named(vec!["sync.example".to_owned(), ".apps.example".to_owned()]);
        for good in [
            "127.0.0.1:8081",
            "127.0.0.1",
            "[::1]:8081",
            "[::1]",
            "192.0.2.7:80",
            "localhost",
            "LocalHost:8081",
            "localhost.:1",
            "a.localhost:8081",
            "sync.example",
            "SYNC.example.:443",
            "one.apps.example",
            "a.b.apps.example:1",
        ] {
            assert!(hosts.allow(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            ":80",
            ".",
            "evil.example",
            "evil.example:8081",
            "xlocalhost",
            ".localhost",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.1",
            "0x7f000001",
            "2130706433",
            "[::1",
            "[::1]x",
            "[evil.example]",
            "localhost:80@evil.example",
            "localhost@evil.example",
            "apps.example",
            ".apps.example",
            "xapps.example",
            "sync.example.evil",
            "localhost, evil.example",
        ] {
            assert!(!hosts.allow(bad.as_bytes()), "{bad}");
        }
        assert!(!hosts.allow(b"\xff"));
        for all in [Hosts::Any, Hosts::Auto] {
            assert!(all.allow(b"evil.example"));
        }
    }
}
