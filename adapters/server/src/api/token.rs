//! [`Token`]: what callers of the API must know.

use std::fmt;

use hyper::header::{AUTHORIZATION, HeaderMap};
use subtle::ConstantTimeEq;

/// The fewest characters of a token: shorter ones can be guessed.
const MIN_CHARS: usize = 16;

/// A secret that callers of the API send as `Authorization: Bearer …`. Its `Debug` doesn't show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Box<str>);

impl Token {
    /// `None` for what can't be sent in a header or is shorter than 16 characters.
    pub fn new(text: &str) -> Option<Self> {
        let is_good = text.len() >= MIN_CHARS && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_good.then(|| Self(text.into()))
    }

    /// Whether a request carries it. How long that takes says nothing about how much of a guess is right.
    pub(super) fn is_in(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        let given = given.and_then(|value| {
            let (scheme, token) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
        });
        given.is_some_and(|given| given.trim_ascii().ct_eq(self.0.as_bytes()).into())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}
