//! [`Violation`]: how a peer can break the WebSocket protocol.

use std::borrow::Cow;
use std::fmt;

/// What a peer did wrong. It is answered with a close frame of [`Self::close_code`] and [`Self::reason`], and nothing that
/// follows is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// These of the bits 0x40, 0x20, 0x10, none of which was negotiated.
    ReservedBits(u8),
    UnknownOpCode(u8),
    /// More than 125 bytes in a control frame.
    LongControl,
    FragmentedControl,
    /// A new message before the last fragment of the one before.
    MessageInMessage,
    /// A continuation of nothing.
    LooseContinuation,
    Unmasked,
    /// A 64-bit length with its highest bit set.
    NegativeLength,
    /// A message longer than `max_message_bytes`, all fragments together.
    MessageTooLong,
    /// Text that isn't UTF-8.
    InvalidText,
    InvalidCloseCode,
    /// The reason in a close frame isn't UTF-8.
    InvalidCloseReason,
}

impl Violation {
    pub(crate) fn close_code(self) -> u16 {
        match self {
            Self::MessageTooLong => 1009,
            Self::InvalidText => 1007,
            _ => 1002,
        }
    }

    /// The original's words where it had any.
    pub(crate) fn reason(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::ReservedBits(bits) => {
                return Cow::Owned(format!("unexpected reserved bits {bits:#x}"));
            }
            Self::UnknownOpCode(code) => return Cow::Owned(format!("unknown opcode {code}")),
            Self::LongControl => "control frame length > 125",
            Self::FragmentedControl => "control frame not final",
            Self::MessageInMessage => "message start before final message frame",
            Self::LooseContinuation => "continuation after final message frame",
            Self::Unmasked => "incorrect mask flag",
            Self::NegativeLength => "invalid frame length",
            Self::MessageTooLong => "",
            Self::InvalidText => "invalid utf8 payload in text message",
            Self::InvalidCloseCode => "invalid close code",
            Self::InvalidCloseReason => "invalid utf8 payload in close frame",
        })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The one without words on the wire.
            Self::MessageTooLong => f.write_str("message too long"),
            _ => f.write_str(&self.reason()),
        }
    }
}

impl std::error::Error for Violation {}
