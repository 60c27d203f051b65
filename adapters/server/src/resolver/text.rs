//! Texts of errors that others wrote, as people are shown them: in the log, by `/readyz` and in metrics.

use std::collections::HashSet;
use std::error::Error;

/// A text may quote what it was sent, which may be long.
const MAX_CHARS: usize = 500;
/// So many bytes of a secret in a row are not shown. Quotes are often of a part.
const PART: usize = 8;
const HIDDEN: &str = "what it says is not shown, as it has a secret in it";

/// An error with its causes.
pub(super) fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The text, cut where it is too long, unless it has one of the secrets or a part of one in it.
pub(super) fn without<'a>(text: &str, secrets: impl IntoIterator<Item = &'a str>) -> String {
    let shown: String = text.chars().take(MAX_CHARS).collect();
    let in_lower_case = shown.to_ascii_lowercase();
    match secrets.into_iter().any(|secret| has_part(&in_lower_case, secret)) {
        true => HIDDEN.to_owned(),
        false => shown,
    }
}

/// Takes time for the length of both, not for their product: clients choose their secrets.
fn has_part(text: &str, secret: &str) -> bool {
    let secret = secret.to_ascii_lowercase();
    let length = secret.len().min(PART);
    if length == 0 {
        return false;
    }
    let parts: HashSet<&[u8]> = text.as_bytes().windows(length).collect();
    secret.as_bytes().windows(length).any(|part| parts.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_with_a_secret_or_a_part_of_it_are_not_shown() {
        let told = |text, secret| without(text, ["", secret]);
        let text = "invalid input syntax for type uuid: \"open-sesame-1001\"";
        assert_eq!(told(text, "open-sesame-1001"), HIDDEN);
        assert_eq!(told(text, "the end of open-sesame-1001 is quoted"), HIDDEN);
        assert_eq!(told("no session OPEN-SESAME-1001", "open-sesame-1001"), HIDDEN);
        assert_eq!(told("no session 7", "7"), HIDDEN);
        assert_eq!(told(text, ""), text);
        assert_eq!(told(text, "open-it"), text);
        let long = "é".repeat(60_000);
        assert_eq!(told(&long, "open-sesame-1001").chars().count(), MAX_CHARS);
        assert_eq!(told(&long, &long), HIDDEN);
    }
}
