//! [`Decoder`]: from a connection's bytes to its messages (RFC 6455, sections 5.4 to 5.7).
//!
//! A frame that lies whole in the received bytes, which is nearly every one, is unmasked there and handed out from there.
//! Only what has to wait is copied: the received part of an incomplete frame, and the fragments of an unfinished message.

use std::mem;
use std::ops::ControlFlow;

use super::close::parse_close;
use super::frame_header::{FrameHeader, MAX_HEADER_BYTES, OpCode};
use super::violation::Violation;

/// What a peer sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
    /// To be answered with a pong of the same payload.
    Ping(&'a [u8]),
    Pong,
    /// To be answered with a close frame of the same code, or none, and without a reason. It is the last thing received.
    Close(Option<u16>),
}

/// Whether the owner wants the next message.
pub(crate) type Flow = ControlFlow<Stop>;

/// Why the next message is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Not now: what follows will be given again.
    Pause,
    /// Never.
    End,
}

/// Limits on what a peer may send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Payload of one message, all fragments together.
    pub(crate) max_message_bytes: usize,
}

/// What has to be remembered of one connection's bytes: nothing between two messages, and so no memory either.
///
/// It holds at most `max_message_bytes` and a frame header, or a control frame more.
#[derive(Default)]
pub(crate) struct Decoder {
    /// The fragments of the unfinished message, unmasked, and after them the received part of an incomplete frame, as it
    /// came. One buffer, so that the limit on messages limits both together.
    buffer: Vec<u8>,
    /// How much of `buffer` is fragments.
    message_len: usize,
    /// What the unfinished message is: text or binary.
    message: Option<OpCode>,
    is_over: bool,
}

impl Decoder {
    /// Decodes the next `bytes` of the stream, in place, and gives what is complete to `on`, in order. Says how many bytes
    /// that took: all, unless `on` said [`Stop::Pause`]. The rest is untouched and to be given again.
    ///
    /// After a close frame, a violation or [`Stop::End`] it is over: whatever follows, in `bytes` or in later calls, is
    /// ignored.
    pub(crate) fn receive(
        &mut self,
        bytes: &mut [u8],
        limits: &Limits,
        on: &mut dyn FnMut(Received<'_>) -> Flow,
    ) -> Result<usize, Violation> {
        let len = bytes.len();
        if self.is_over {
            return Ok(len);
        }
        let mut rest = bytes;
        let flow = self.decode(&mut rest, limits, on);
        if let Ok(ControlFlow::Break(Stop::Pause)) = flow {
            return Ok(len - rest.len());
        }
        if flow.as_ref().map_or(true, ControlFlow::is_break) {
            *self = Self {
                is_over: true,
                ..Self::default()
            };
        }
        flow.map(|_| len)
    }

    /// Whether it is as good as a new one, so that its owner may drop it and take a new one for the next bytes.
    pub(crate) fn is_idle(&self) -> bool {
        self.buffer.is_empty() && self.message.is_none() && !self.is_over
    }

    /// The memory that it owns.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    fn decode(
        &mut self,
        bytes: &mut &mut [u8],
        limits: &Limits,
        on: &mut dyn FnMut(Received<'_>) -> Flow,
    ) -> Result<Flow, Violation> {
        while !bytes.is_empty() {
            let flow = if self.partial().is_empty() {
                let header = self.parse_header(bytes, limits)?;
                let Some(header) = header.filter(|header| header.frame_len() <= bytes.len()) else {
                    self.keep(bytes, limits);
                    break;
                };
                let (frame, rest) = mem::take(bytes).split_at_mut(header.frame_len());
                *bytes = rest;
                let (_, payload) = frame.split_at_mut(header.header_len);
                self.take_received(&header, payload, limits, on)?
            } else {
                let Some(header) = self.complete_partial(bytes, limits)? else {
                    break;
                };
                self.take_partial(&header, on)?
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// A frame that lies whole in the received bytes.
    fn take_received(
        &mut self,
        header: &FrameHeader,
        payload: &mut [u8],
        limits: &Limits,
        on: &mut dyn FnMut(Received<'_>) -> Flow,
    ) -> Result<Flow, Violation> {
        header.unmask(payload);
        if header.is_fragment() {
            self.keep(payload, limits);
            self.end_fragment(header, on)
        } else {
            deliver(header.opcode, payload, on)
        }
    }

    /// The frame that has become whole in the buffer.
    fn take_partial(
        &mut self,
        header: &FrameHeader,
        on: &mut dyn FnMut(Received<'_>) -> Flow,
    ) -> Result<Flow, Violation> {
        let mut buffer = mem::take(&mut self.buffer);
        let payload_at = self.message_len + header.header_len;
        let payload = buffer.get_mut(payload_at..).unwrap_or_default();
        header.unmask(payload);
        if header.is_fragment() {
            buffer.drain(self.message_len..payload_at);
            self.buffer = buffer;
            self.end_fragment(header, on)
        } else {
            let flow = deliver(header.opcode, payload, on);
            if self.message_len > 0 {
                buffer.truncate(self.message_len);
                self.buffer = buffer;
            }
            flow
        }
    }

    /// The payload of a fragment was added to the buffer.
    fn end_fragment(
        &mut self,
        header: &FrameHeader,
        on: &mut dyn FnMut(Received<'_>) -> Flow,
    ) -> Result<Flow, Violation> {
        let opcode = *self.message.get_or_insert(header.opcode);
        if !header.is_final {
            self.message_len = self.buffer.len();
            return Ok(ControlFlow::Continue(()));
        }
        deliver(opcode, &mem::take(self).buffer, on)
    }

    /// Takes from `bytes` what the incomplete frame in the buffer lacks; `None` if that is not enough.
    fn complete_partial(&mut self, bytes: &mut &mut [u8], limits: &Limits) -> Result<Option<FrameHeader>, Violation> {
        loop {
            let header = self.parse_header(self.partial(), limits)?;
            let missing = match &header {
                Some(header) => header.frame_len().saturating_sub(self.partial().len()),
                // Byte by byte: how long a header is shows only on the way.
                None => 1,
            };
            if missing == 0 {
                return Ok(header);
            }
            if bytes.is_empty() {
                return Ok(None);
            }
            let taken_len = missing.min(bytes.len());
            let (taken, rest) = mem::take(bytes).split_at_mut(taken_len);
            *bytes = rest;
            self.keep(taken, limits);
        }
    }

    fn parse_header(&self, bytes: &[u8], limits: &Limits) -> Result<Option<FrameHeader>, Violation> {
        let header = FrameHeader::parse(bytes, self.message.is_some())?;
        if let Some(header) = &header
            && !header.is_control()
            && self.message_len.saturating_add(header.payload_len) > limits.max_message_bytes
        {
            return Err(Violation::MessageTooLong);
        }
        Ok(header)
    }

    fn partial(&self) -> &[u8] {
        self.buffer.get(self.message_len..).unwrap_or_default()
    }

    /// Appends to the buffer, which doubles as it grows, but not beyond what it can ever need.
    fn keep(&mut self, bytes: &[u8], limits: &Limits) {
        let needed = self.buffer.len() + bytes.len();
        if needed > self.buffer.capacity() {
            let most = limits.max_message_bytes.saturating_add(MAX_HEADER_BYTES);
            let capacity = needed.max(self.buffer.capacity().saturating_mul(2).min(most));
            self.buffer.reserve_exact(capacity - self.buffer.len());
        }
        self.buffer.extend_from_slice(bytes);
    }
}

fn deliver(opcode: OpCode, payload: &[u8], on: &mut dyn FnMut(Received<'_>) -> Flow) -> Result<Flow, Violation> {
    Ok(match opcode {
        OpCode::Text => match std::str::from_utf8(payload) {
            Ok(text) => on(Received::Text(text)),
            Err(_) => return Err(Violation::InvalidText),
        },
        // A continuation comes here under the opcode of its message.
        OpCode::Binary | OpCode::Continuation => on(Received::Binary(payload)),
        OpCode::Ping => on(Received::Ping(payload)),
        OpCode::Pong => on(Received::Pong),
        OpCode::Close => {
            let _ = on(Received::Close(parse_close(payload)?));
            ControlFlow::Break(Stop::End)
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { max_message_bytes: 512 };

    /// [`Received`] to keep.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Event {
        Text(String),
        Binary(Vec<u8>),
        Ping(Vec<u8>),
        Pong,
        Close(Option<u16>),
    }

    impl From<Received<'_>> for Event {
        fn from(received: Received<'_>) -> Self {
            match received {
                Received::Text(text) => Self::Text(text.to_owned()),
                Received::Binary(bytes) => Self::Binary(bytes.to_owned()),
                Received::Ping(bytes) => Self::Ping(bytes.to_owned()),
                Received::Pong => Self::Pong,
                Received::Close(code) => Self::Close(code),
            }
        }
    }

    /// Name, frames, and what they give.
    type Row = (&'static str, Vec<Vec<u8>>, Vec<Event>, Result<(), Violation>);

    fn text(text: &str) -> Event {
        Event::Text(text.to_owned())
    }

    /// A frame with the shortest header, masked.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            len @ 0..=125 => frame.push(0x80 | len as u8),
            len @ 126..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend((len as u16).to_be_bytes());
            }
            len => {
                frame.push(0x80 | 127);
                frame.extend((len as u64).to_be_bytes());
            }
        }
        let mask = [0xa5, 0x00, 0x5a, payload.len() as u8];
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        frame
    }

    /// Decodes chunk after chunk, and checks what the decoder holds in between.
    fn decode<'a>(chunks: impl IntoIterator<Item = &'a [u8]>, limits: &Limits) -> (Vec<Event>, Result<(), Violation>) {
        let mut decoder = Decoder::default();
        let mut events = Vec::new();
        let mut result = Ok(());
        for chunk in chunks {
            if decoder.is_idle() {
                assert_eq!(decoder.buffer.capacity(), 0);
                decoder = Decoder::default();
            }
            let received = decoder.receive(&mut chunk.to_owned(), limits, &mut |received| {
                events.push(received.into());
                ControlFlow::Continue(())
            });
            assert!(decoder.buffer.capacity() <= limits.max_message_bytes + MAX_HEADER_BYTES + 125);
            assert!(!decoder.is_over || decoder.buffer.capacity() == 0);
            result = result.and(received.map(|taken| assert_eq!(taken, chunk.len())));
        }
        (events, result)
    }

    #[test]
    fn frames_are_answered_as_the_original_answered_them() {
        use Violation::{
            FragmentedControl, InvalidCloseCode, InvalidCloseReason, InvalidText, LongControl, LooseContinuation,
            MessageInMessage, MessageTooLong, NegativeLength, ReservedBits, UnknownOpCode, Unmasked,
        };
        let x = |len| "x".repeat(len);
        let long = |first, len: usize| frame(first, x(len).as_bytes());
        let header = |bytes: &[u8]| [bytes, &[0; 4]].concat();
        // One row, one line.
        #[rustfmt::skip]
        let rows: Vec<Row> = vec![
            ("text", vec![frame(0x81, b"hi")], vec![text("hi")], Ok(())),
            ("empty text", vec![frame(0x81, b"")], vec![text("")], Ok(())),
            ("binary", vec![frame(0x82, b"\xff\xfe")], vec![Event::Binary(vec![0xff, 0xfe])], Ok(())),
            ("two in one segment", vec![frame(0x81, b"a"), frame(0x81, b"b")], vec![text("a"), text("b")], Ok(())),
            // Limits.
            ("text of exactly the limit", vec![long(0x81, 512)], vec![text(&x(512))], Ok(())),
            ("one byte more", vec![long(0x81, 513)], vec![], Err(MessageTooLong)),
            ("70000 bytes", vec![long(0x81, 70_000)], vec![], Err(MessageTooLong)),
            ("only the header announcing 513", vec![header(b"\x81\xfe\x02\x01")], vec![], Err(MessageTooLong)),
            ("the largest positive length", vec![header(b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff")], vec![], Err(MessageTooLong)),
            ("300 + 213", vec![long(0x01, 300), long(0x80, 213)], vec![], Err(MessageTooLong)),
            ("300 + 213 as empty, 300, 213", vec![frame(0x01, b""), long(0x00, 300), long(0x80, 213)], vec![], Err(MessageTooLong)),
            ("300 + 212", vec![long(0x01, 300), long(0x80, 212)], vec![text(&x(512))], Ok(())),
            ("limits begin anew", vec![long(0x01, 300), long(0x80, 212), long(0x81, 512)], vec![text(&x(512)), text(&x(512))], Ok(())),
            // Fragments.
            ("a ping between fragments", vec![frame(0x01, b"ab"), frame(0x89, b"mid"), frame(0x80, b"c")], vec![Event::Ping(b"mid".to_vec()), text("abc")], Ok(())),
            ("a close between fragments", vec![frame(0x01, b"ab"), frame(0x88, b""), frame(0x80, b"c")], vec![Event::Close(None)], Ok(())),
            ("a character across fragments", vec![frame(0x01, b"\xe2\x98"), frame(0x00, b""), frame(0x80, b"\x83")], vec![text("\u{2603}")], Ok(())),
            ("binary fragments", vec![frame(0x02, b"\xff"), frame(0x80, b"\xfe")], vec![Event::Binary(vec![0xff, 0xfe])], Ok(())),
            ("empty fragments", vec![frame(0x01, b""), frame(0x80, b"")], vec![text("")], Ok(())),
            ("continuation without start", vec![frame(0x80, b"a")], vec![], Err(LooseContinuation)),
            ("continuation after the end", vec![frame(0x01, b"a"), frame(0x80, b""), frame(0x00, b"")], vec![text("a")], Err(LooseContinuation)),
            ("text while one is open", vec![frame(0x01, b"a"), frame(0x81, b"b")], vec![], Err(MessageInMessage)),
            ("binary while an empty one is open", vec![frame(0x01, b""), frame(0x02, b"b")], vec![], Err(MessageInMessage)),
            // Control frames.
            ("ping, empty", vec![frame(0x89, b"")], vec![Event::Ping(vec![])], Ok(())),
            ("ping", vec![frame(0x89, b"hello")], vec![Event::Ping(b"hello".to_vec())], Ok(())),
            ("ping of 125", vec![long(0x89, 125)], vec![Event::Ping(x(125).into())], Ok(())),
            ("ping of 126", vec![long(0x89, 126)], vec![], Err(LongControl)),
            ("ping of 126, its first two bytes", vec![vec![0x89, 0xfe]], vec![], Err(LongControl)),
            ("unsolicited pong", vec![frame(0x8a, b"x")], vec![Event::Pong], Ok(())),
            ("ping without FIN", vec![frame(0x09, b"")], vec![], Err(FragmentedControl)),
            // Headers.
            ("unmasked", vec![b"\x81\x02hi".to_vec()], vec![], Err(Unmasked)),
            ("mask of zeros", vec![b"\x81\x82\0\0\0\0hi".to_vec()], vec![text("hi")], Ok(())),
            ("RSV1", vec![frame(0xc1, b"hi")], vec![], Err(ReservedBits(0x40))),
            ("RSV2", vec![frame(0xa1, b"hi")], vec![], Err(ReservedBits(0x20))),
            ("RSV3", vec![frame(0x91, b"hi")], vec![], Err(ReservedBits(0x10))),
            ("opcode 3", vec![frame(0x83, b"")], vec![], Err(UnknownOpCode(3))),
            ("opcode 0xB", vec![frame(0x8b, b"")], vec![], Err(UnknownOpCode(11))),
            ("16-bit length of 2", vec![b"\x81\xfe\0\x02\0\0\0\0hi".to_vec()], vec![text("hi")], Ok(())),
            ("64-bit length of 2", vec![b"\x81\xff\0\0\0\0\0\0\0\x02\0\0\0\0hi".to_vec()], vec![text("hi")], Ok(())),
            ("negative length", vec![header(b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff")], vec![], Err(NegativeLength)),
            // Text.
            ("invalid UTF-8", vec![frame(0x81, b"\xff\xfe")], vec![], Err(InvalidText)),
            ("a character cut short", vec![frame(0x01, b"\xe2"), frame(0x80, b"\x98")], vec![], Err(InvalidText)),
            // Closing.
            ("close, empty", vec![frame(0x88, b"")], vec![Event::Close(None)], Ok(())),
            ("close 1000", vec![frame(0x88, b"\x03\xe8")], vec![Event::Close(Some(1000))], Ok(())),
            ("close 1000 bye", vec![frame(0x88, b"\x03\xe8bye")], vec![Event::Close(Some(1000))], Ok(())),
            ("close 1001", vec![frame(0x88, b"\x03\xe9")], vec![Event::Close(Some(1001))], Ok(())),
            ("close 1002", vec![frame(0x88, b"\x03\xea")], vec![Event::Close(Some(1002))], Ok(())),
            ("close 3000 app", vec![frame(0x88, b"\x0b\xb8app")], vec![Event::Close(Some(3000))], Ok(())),
            ("close 4999", vec![frame(0x88, b"\x13\x87")], vec![Event::Close(Some(4999))], Ok(())),
            ("close of one byte", vec![frame(0x88, b"\x03")], vec![Event::Close(None)], Ok(())),
            ("close 1005", vec![frame(0x88, b"\x03\xed")], vec![], Err(InvalidCloseCode)),
            ("close 1006", vec![frame(0x88, b"\x03\xee")], vec![], Err(InvalidCloseCode)),
            ("close 999", vec![frame(0x88, b"\x03\xe7")], vec![], Err(InvalidCloseCode)),
            ("close 5000", vec![frame(0x88, b"\x13\x88")], vec![], Err(InvalidCloseCode)),
            ("close, invalid reason", vec![frame(0x88, b"\x03\xe8\xff")], vec![], Err(InvalidCloseReason)),
            ("data after close", vec![frame(0x88, b""), frame(0x81, b"a"), b"\xff".to_vec()], vec![Event::Close(None)], Ok(())),
            ("data after a violation", vec![b"\x81\x02hi".to_vec(), frame(0x81, b"a")], vec![], Err(Unmasked)),
        ];
        for (name, frames, events, result) in rows {
            let expected = (events, result);
            let bytes = frames.concat();
            assert_eq!(decode([&bytes[..]], &LIMITS), expected, "{name}");
            assert_eq!(decode(bytes.chunks(1), &LIMITS), expected, "{name}, byte by byte");
            let frames = frames.iter().map(Vec::as_slice);
            assert_eq!(decode(frames, &LIMITS), expected, "{name}, frame by frame");
        }
    }

    #[test]
    fn violations_are_told_in_the_originals_words() {
        for (violation, frame) in [
            (
                Violation::LongControl,
                &b"\x88\x1c\x03\xeacontrol frame length > 125"[..],
            ),
            (Violation::Unmasked, b"\x88\x15\x03\xeaincorrect mask flag"),
            (Violation::FragmentedControl, b"\x88\x19\x03\xeacontrol frame not final"),
            (
                Violation::ReservedBits(0x40),
                b"\x88\x1f\x03\xeaunexpected reserved bits 0x40",
            ),
            (Violation::UnknownOpCode(11), b"\x88\x13\x03\xeaunknown opcode 11"),
            (Violation::MessageTooLong, b"\x88\x02\x03\xf1"),
        ] {
            let built = super::super::close_frame(Some(violation.close_code()), &violation.reason());
            assert_eq!(built, frame);
        }
    }

    #[test]
    fn a_break_ends_it() {
        let mut decoder = Decoder::default();
        let mut count = 0;
        let mut stop = |_: Received<'_>| {
            count += 1;
            ControlFlow::Break(Stop::End)
        };
        let mut bytes = frame(0x81, b"a").repeat(2);
        let len = bytes.len();
        assert_eq!(decoder.receive(&mut bytes.clone(), &LIMITS, &mut stop), Ok(len));
        assert_eq!(decoder.receive(&mut bytes, &LIMITS, &mut stop), Ok(len));
        assert_eq!(count, 1);
        assert!(!decoder.is_idle());
    }

    #[test]
    fn whole_messages_are_lent_from_the_received_bytes() {
        let mut bytes = frame(0x81, b"hello");
        let range = bytes.as_ptr_range();
        let mut decoder = Decoder::default();
        let result = decoder.receive(&mut bytes, &LIMITS, &mut |received| {
            assert!(matches!(received, Received::Text(text) if range.contains(&text.as_ptr())));
            ControlFlow::Continue(())
        });
        assert!(result.is_ok());
        assert!(decoder.is_idle());
    }

    #[test]
    fn an_announced_length_costs_nothing() {
        let mut decoder = Decoder::default();
        let limits = Limits {
            max_message_bytes: 1 << 30,
        };
        let mut bytes = *b"\x82\xff\0\0\0\0\x10\0\0\0\0\0\0\0abc";
        let result = decoder.receive(&mut bytes, &limits, &mut |_| ControlFlow::Continue(()));
        assert!(result.is_ok());
        assert!(decoder.buffer.capacity() < 64);
    }

    /// A message with the places where it is cut into fragments, and the control frames that come before each.
    fn message() -> impl Strategy<Value = (Event, Vec<u8>)> {
        let data = prop_oneof![
            "\\PC{0,200}".prop_map(Event::Text),
            prop::collection::vec(any::<u8>(), 0..700).prop_map(Event::Binary),
        ];
        (data, prop::collection::vec(0..100u8, 0..4))
    }

    fn control() -> impl Strategy<Value = Event> {
        let payload = prop::collection::vec(any::<u8>(), 0..126);
        prop_oneof![payload.prop_map(Event::Ping), Just(Event::Pong)]
    }

    /// A valid stream and the events that it should give.
    fn stream() -> impl Strategy<Value = (Vec<u8>, Vec<Event>)> {
        let messages = prop::collection::vec((message(), prop::collection::vec(control(), 0..4)), 0..5);
        (messages, any::<bool>()).prop_map(|(messages, close)| {
            let mut bytes = Vec::new();
            let mut events = Vec::new();
            for ((message, cuts), controls) in messages {
                let (opcode, payload) = match &message {
                    Event::Text(text) => (0x01, text.as_bytes()),
                    Event::Binary(binary) => (0x02, &binary[..]),
                    other => panic!("not a message: {other:?}"),
                };
                let mut controls = controls.into_iter();
                let mut rest = payload;
                let mut opcode = opcode;
                for cut in cuts {
                    let (part, after) = rest.split_at(usize::from(cut).min(rest.len()));
                    bytes.extend(frame(opcode, part));
                    rest = after;
                    opcode = 0;
                    if let Some(control) = controls.next() {
                        bytes.extend(match &control {
                            Event::Ping(payload) => frame(0x89, payload),
                            _ => frame(0x8a, b"?"),
                        });
                        events.push(control);
                    }
                }
                bytes.extend(frame(0x80 | opcode, rest));
                events.push(message);
            }
            if close {
                bytes.extend(frame(0x88, b"\x03\xe8"));
                events.push(Event::Close(Some(1000)));
            }
            (bytes, events)
        })
    }

    fn chunks<'a>(mut bytes: &'a [u8], lens: &[usize]) -> Vec<&'a [u8]> {
        let mut chunks = Vec::new();
        for len in lens.iter().cycle() {
            if bytes.is_empty() || lens.iter().all(|&len| len == 0) {
                break;
            }
            let (chunk, rest) = bytes.split_at(*len.min(&bytes.len()));
            chunks.push(chunk);
            bytes = rest;
        }
        chunks.push(bytes);
        chunks
    }

    const CHUNK_LENS: std::ops::Range<usize> = 0..60;

    proptest! {
        #[test]
        fn every_split_gives_the_same_events(
            (bytes, events) in stream(),
            lens in prop::collection::vec(CHUNK_LENS, 1..8),
        ) {
            // No message of the strategy is longer.
            let limits = Limits { max_message_bytes: 1_000 };
            prop_assert_eq!(decode([&bytes[..]], &limits), (events.clone(), Ok(())));
            prop_assert_eq!(decode(chunks(&bytes, &lens), &limits), (events, Ok(())));
        }

        #[test]
        fn a_pause_after_each_event_changes_nothing(
            (bytes, events) in stream(),
            lens in prop::collection::vec(CHUNK_LENS, 1..8),
        ) {
            let limits = Limits { max_message_bytes: 1_000 };
            let (mut decoder, mut found) = (Decoder::default(), Vec::new());
            for chunk in chunks(&bytes, &lens) {
                let mut chunk = chunk.to_owned();
                let mut rest = &mut chunk[..];
                while !rest.is_empty() {
                    let before = found.len();
                    let taken = decoder.receive(rest, &limits, &mut |received| {
                        found.push(Event::from(received));
                        ControlFlow::Break(Stop::Pause)
                    });
                    prop_assert!(found.len() <= before + 1);
                    rest = &mut rest[taken.unwrap()..];
                }
            }
            prop_assert_eq!(found, events);
        }

        #[test]
        fn damaged_streams_end_alike_however_split(
            (mut bytes, _) in stream(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            lens in prop::collection::vec(CHUNK_LENS, 1..8),
        ) {
            for (at, byte) in damage {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            prop_assert_eq!(decode([&bytes[..]], &LIMITS), decode(chunks(&bytes, &lens), &LIMITS));
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>, lens in prop::collection::vec(CHUNK_LENS, 1..8)) {
            prop_assert_eq!(decode([&bytes[..]], &LIMITS), decode(chunks(&bytes, &lens), &LIMITS));
        }
    }
}
