//! Tags: what tells messages apart that come from several nsqds.
//!
//! A message is published to each nsqd that can be reached, so that nodes which hear any of them hear it. Those that hear
//! several are to take it once. With a single nsqd there are no tags, and messages are those of the Go original; which
//! ignores a field that it does not know.

use std::collections::HashSet;

/// What stands between the original's body and the tag, and behind it.
const BEFORE: &[u8] = b",\"message\":\"";
const AFTER: &[u8] = b"\"}";
const DIGITS: usize = 32;

/// How many tags are remembered, at least.
const REMEMBERED: usize = 32 * 1024;

/// The tags of one run of a node.
pub(crate) struct Tags {
    run: u64,
    last: u64,
}

/// Tags that were seen: of the latest messages, and of those before.
#[derive(Default)]
pub(crate) struct Seen {
    latest: HashSet<u128>,
    before: HashSet<u128>,
}

impl Tags {
    pub(crate) fn new(random: [u8; 16]) -> Self {
        let (run, last) = random.split_at(8);
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        Self {
            run: number(run),
            last: number(last),
        }
    }

    /// The body with a tag of its own, if it is a JSON object.
    pub(crate) fn tag(&mut self, body: &[u8]) -> Option<Vec<u8>> {
        let fields = body.strip_prefix(b"{")?.strip_suffix(b"}")?;
        if fields.trim_ascii().is_empty() {
            return None;
        }
        self.last = self.last.wrapping_add(1);
        let digits = format!("{:016x}{:016x}", self.run, self.last);
        Some([b"{", fields, BEFORE, digits.as_bytes(), AFTER].concat())
    }
}

/// The tag of a body, if it has one.
fn of(body: &[u8]) -> Option<u128> {
    let (rest, digits) = body.strip_suffix(AFTER)?.split_last_chunk::<DIGITS>()?;
    let is_tag = rest.ends_with(BEFORE) && digits.iter().all(u8::is_ascii_hexdigit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| is_tag)?;
    u128::from_str_radix(digits, 16).ok()
}

impl Seen {
    /// Whether a message with this body has come before.
    pub(crate) fn has(&mut self, body: &[u8]) -> bool {
        let Some(tag) = of(body) else {
            return false;
        };
        if self.before.contains(&tag) || !self.latest.insert(tag) {
            return true;
        }
        if self.latest.len() >= REMEMBERED {
            self.before = std::mem::take(&mut self.latest);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"entity":"items","id":"100"}"#;

    #[test]
    fn a_tagged_message_is_taken_once_and_others_each_time() {
        let mut tags = Tags::new([0xab; 16]);
        let bodies = [tags.tag(BODY), tags.tag(BODY)].map(Option::unwrap_or_default);
        assert_eq!(
            String::from_utf8_lossy(&bodies[0]),
            r#"{"entity":"items","id":"100","message":"ababababababababababababababac"}"#.replace("bac\"", "babac\"")
        );
        let mut seen = Seen::default();
        assert_eq!(bodies.each_ref().map(|it| seen.has(it)), [false, false]);
        assert_eq!(bodies.each_ref().map(|it| seen.has(it)), [true, true]);
        let untagged: [&[u8]; 4] = [BODY, b"", b"x\"}", br#"{"message":"0123456789abcdef0123456789abcdeg"}"#];
        for body in untagged {
            assert!(!seen.has(body) && !seen.has(body));
        }
        for body in [&b"[]"[..], b"{}", b"{ }", b""] {
            assert_eq!(tags.tag(body), None);
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut tags = Tags::new([7; 16]);
        let mut seen = Seen::default();
        let bodies: Vec<_> = (0..3 * REMEMBERED).filter_map(|_| tags.tag(BODY)).collect();
        assert!(bodies.iter().all(|it| !seen.has(it)));
        assert!(seen.latest.len() + seen.before.len() <= 2 * REMEMBERED);
        assert!(bodies[2 * REMEMBERED..].iter().all(|it| seen.has(it)));
    }
}
