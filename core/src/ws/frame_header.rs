//! Frame headers (RFC 6455, section 5.2): written for the server's frames, read from the client's.

use bytes::{BufMut, Bytes, BytesMut};

use super::violation::Violation;

/// The most bytes of payload in a control frame.
pub(super) const MAX_CONTROL_BYTES: usize = 125;

/// The most bytes of a client's frame before its payload.
pub(super) const MAX_HEADER_BYTES: usize = 14;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpCode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// Appends the header of an unfragmented server frame, which is not masked. It is at most 10 bytes long.
pub(crate) fn encode_header(opcode: OpCode, payload_len: usize, out: &mut BytesMut) {
    out.put_u8(FIN | opcode as u8);
    match payload_len {
        0..=125 => out.put_u8(payload_len as u8),
        126..=0xffff => {
            out.put_u8(126);
            out.put_u16(payload_len as u16);
        }
        _ => {
            out.put_u8(127);
            out.put_u64(payload_len as u64);
        }
    }
}

/// A finished message in one frame.
pub(crate) fn data_frame(opcode: OpCode, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(10 + payload.len());
    encode_header(opcode, payload.len(), &mut frame);
    frame.put_slice(payload);
    frame.freeze()
}

/// A finished control frame. Payload beyond the 125 bytes that fit is left out.
pub(crate) fn control_frame(opcode: OpCode, payload: &[u8]) -> Bytes {
    let payload = payload.get(..MAX_CONTROL_BYTES).unwrap_or(payload);
    let mut frame = BytesMut::with_capacity(2 + payload.len());
    encode_header(opcode, payload.len(), &mut frame);
    frame.put_slice(payload);
    frame.freeze()
}

/// The header of a client's frame.
pub(super) struct FrameHeader {
    pub(super) is_final: bool,
    pub(super) opcode: OpCode,
    pub(super) mask: [u8; 4],
    pub(super) header_len: usize,
    pub(super) payload_len: usize,
}

impl FrameHeader {
    /// Reads the header at the start of `bytes`; `None` while it is incomplete. `in_message` says that a fragmented
    /// message is unfinished. Violations show as early as possible; of several, the one that the original named counts.
    pub(super) fn parse(bytes: &[u8], in_message: bool) -> Result<Option<Self>, Violation> {
        let Some((&[first, second], rest)) = bytes.split_first_chunk() else {
            return Ok(None);
        };
        if first & RESERVED != 0 {
            return Err(Violation::ReservedBits(first & RESERVED));
        }
        let is_final = first & FIN != 0;
        let short_len = second & !MASKED;
        let opcode = match first & 0x0f {
            0 => OpCode::Continuation,
            1 => OpCode::Text,
            2 => OpCode::Binary,
            8 => OpCode::Close,
            9 => OpCode::Ping,
            10 => OpCode::Pong,
            code => return Err(Violation::UnknownOpCode(code)),
        };
        match opcode {
            OpCode::Text | OpCode::Binary if in_message => return Err(Violation::MessageInMessage),
            OpCode::Text | OpCode::Binary => {}
            OpCode::Continuation if !in_message => return Err(Violation::LooseContinuation),
            OpCode::Continuation => {}
            _ if usize::from(short_len) > MAX_CONTROL_BYTES => return Err(Violation::LongControl),
            _ if !is_final => return Err(Violation::FragmentedControl),
            _ => {}
        }
        if second & MASKED == 0 {
            return Err(Violation::Unmasked);
        }
        // Lengths in a longer form than they need are accepted, as in the original.
        let (payload_len, rest) = match short_len {
            126 => match rest.split_first_chunk() {
                Some((len, rest)) => (u64::from(u16::from_be_bytes(*len)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk() {
                Some((len, rest)) => (u64::from_be_bytes(*len), rest),
                None => return Ok(None),
            },
            len => (u64::from(len), rest),
        };
        if payload_len > i64::MAX as u64 {
            return Err(Violation::NegativeLength);
        }
        let Some((&mask, rest)) = rest.split_first_chunk() else {
            return Ok(None);
        };
        Ok(Some(Self {
            is_final,
            opcode,
            mask,
            header_len: bytes.len() - rest.len(),
            payload_len: usize::try_from(payload_len).unwrap_or(usize::MAX),
        }))
    }

    pub(super) fn is_control(&self) -> bool {
        matches!(self.opcode, OpCode::Close | OpCode::Ping | OpCode::Pong)
    }

    pub(super) fn frame_len(&self) -> usize {
        self.header_len.saturating_add(self.payload_len)
    }

    /// Whether this frame is only a part of its message.
    pub(super) fn is_fragment(&self) -> bool {
        !self.is_final || self.opcode == OpCode::Continuation
    }

    /// Unmasks the frame's payload, or masks it: that is the same.
    pub(super) fn unmask(&self, payload: &mut [u8]) {
        let [a, b, c, d] = self.mask;
        let mask = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
        let (chunks, tail) = payload.as_chunks_mut();
        for chunk in chunks {
            *chunk = (u64::from_ne_bytes(*chunk) ^ mask).to_ne_bytes();
        }
        for (byte, mask) in tail.iter_mut().zip(mask.to_ne_bytes()) {
            *byte ^= mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_headers_are_the_shortest() {
        for (len, header) in [
            (0, &b"\x81\x00"[..]),
            (125, b"\x81\x7d"),
            (126, b"\x81\x7e\x00\x7e"),
            (65_535, b"\x81\x7e\xff\xff"),
            (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
            (300_000, b"\x81\x7f\x00\x00\x00\x00\x00\x04\x93\xe0"),
        ] {
            let mut out = BytesMut::new();
            encode_header(OpCode::Text, len, &mut out);
            assert_eq!(out, header, "payload of {len}");
        }
    }

    #[test]
    fn control_frames_stand_on_the_wire_as_the_originals() {
        assert_eq!(control_frame(OpCode::Ping, b""), &b"\x89\x00"[..]);
        assert_eq!(control_frame(OpCode::Pong, b"hello"), &b"\x8a\x05hello"[..]);
        assert_eq!(control_frame(OpCode::Pong, &[b'x'; 200]).len(), 127);
    }

    #[test]
    fn unmasking_is_bytewise_whatever_the_length() {
        let mask = [0x12, 0x34, 0x56, 0x78];
        for len in 0..40 {
            let header = FrameHeader {
                is_final: true,
                opcode: OpCode::Binary,
                mask,
                header_len: 6,
                payload_len: len,
            };
            let payload: Vec<u8> = (0..len as u8).collect();
            let slow: Vec<u8> = payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m).collect();
            let mut fast = payload;
            header.unmask(&mut fast);
            assert_eq!(fast, slow);
        }
    }
}
