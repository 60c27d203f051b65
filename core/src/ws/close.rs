//! Close frames (RFC 6455, sections 5.5.1 and 7.4).

use bytes::Bytes;

use super::frame_header::{MAX_CONTROL_BYTES, OpCode, control_frame};
use super::violation::Violation;

/// A finished close frame. A reason that is too long for it is cut between two characters; without a code there is none.
pub(crate) fn close_frame(code: Option<u16>, reason: &str) -> Bytes {
    let mut payload = Vec::new();
    if let Some(code) = code {
        payload.extend_from_slice(&code.to_be_bytes());
        let (reason, _) = reason.split_at(reason.floor_char_boundary(MAX_CONTROL_BYTES - 2));
        payload.extend_from_slice(reason.as_bytes());
    }
    control_frame(OpCode::Close, &payload)
}

/// The code in the payload of a close frame. A single byte counts as none, as in the original.
pub(super) fn parse_close(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return Ok(None);
    };
    let code = u16::from_be_bytes(*code);
    if !may_be_sent(code) {
        return Err(Violation::InvalidCloseCode);
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(Violation::InvalidCloseReason);
    }
    Ok(Some(code))
}

/// Codes that mean something in a close frame: the registered ones without those that stand for a missing frame (1005,
/// 1006, 1015), and the ranges for frameworks and applications.
pub(crate) fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1013 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_cut_between_characters() {
        assert_eq!(close_frame(None, "ignored"), &b"\x88\x00"[..]);
        assert_eq!(close_frame(Some(1000), ""), &b"\x88\x02\x03\xe8"[..]);
        assert_eq!(close_frame(Some(1012), "bye"), &b"\x88\x05\x03\xf4bye"[..]);
        // 122 bytes, and then two that don't fit.
        let frame = close_frame(Some(1000), &("x".repeat(122) + "\u{e9}"));
        assert_eq!(frame.len(), 2 + 124);
        assert_eq!(frame.get(1), Some(&124));
        let frame = close_frame(Some(1000), &("x".repeat(121) + "\u{e9}y"));
        assert_eq!(frame.len(), 2 + 125);
        assert_eq!(parse_close(frame.get(2..).expect("payload")), Ok(Some(1000)));
    }

    #[test]
    fn only_codes_that_may_be_sent_are_accepted() {
        for code in 0..=u16::MAX {
            let good = matches!(
                code,
                1000 | 1001 | 1002 | 1003 | 1007 | 1008 | 1009 | 1010 | 1011 | 1012 | 1013
            ) || (3000..5000).contains(&code);
            let expected = if good {
                Ok(Some(code))
            } else {
                Err(Violation::InvalidCloseCode)
            };
            assert_eq!(parse_close(&code.to_be_bytes()), expected);
        }
    }
}
