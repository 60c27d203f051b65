//! [`Rows`], what a read gives, and [`Group`], the same as finished WebSocket frames that serve every receiver.

use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use crate::time::Timestamp;

use crate::ws::{OpCode, encode_header};

/// The rows of one read: 0 to n payloads, each sent as one text message, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows(SmallVec<[Bytes; 1]>);

impl Rows {
    /// No rows: nothing is sent.
    pub fn none() -> Self {
        Self::default()
    }

    /// One row, the usual case.
    pub fn one(row: impl Into<Bytes>) -> Self {
        let mut rows = Self::none();
        rows.push(row);
        rows
    }

    /// Adds a row. It must be UTF-8, which is checked when the read is answered.
    pub fn push(&mut self, row: impl Into<Bytes>) {
        self.0.push(row.into());
    }
}

impl<T: Into<Bytes>> FromIterator<T> for Rows {
    fn from_iter<I: IntoIterator<Item = T>>(rows: I) -> Self {
        Self(rows.into_iter().map(Into::into).collect())
    }
}

/// What was wrong with the rows of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowError {
    /// The row at this index (from 0) is not valid UTF-8; browsers would drop the connection over it.
    NotUtf8 {
        /// Index of the row.
        row: usize,
    },
    /// More rows than `max_rows_per_read`.
    TooMany {
        /// How many there were.
        rows: usize,
        /// The limit.
        limit: usize,
    },
    /// Together longer than `max_read_bytes`.
    TooLong {
        /// How long they are, in bytes.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUtf8 { row } => write!(f, "row {row} is not valid UTF-8"),
            Self::TooMany { rows, limit } => {
                write!(f, "{rows} rows in one read; the limit is {limit}")
            }
            Self::TooLong { bytes, limit } => {
                write!(f, "{bytes} bytes in one read; the limit is {limit}")
            }
        }
    }
}

impl std::error::Error for RowError {}

/// Limits on one read's rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowLimits {
    pub(crate) rows: usize,
    /// At most `u32::MAX`, which [`crate::Config`] sees to.
    pub(crate) bytes: usize,
}

/// The rows of one read as server frames in one buffer: built once, written to every receiver.
#[derive(Clone)]
pub(crate) struct Group(Arc<GroupData>);

struct GroupData {
    bytes: Bytes,
    /// Where each frame ends in `bytes`, ascending.
    frame_ends: SmallVec<[u32; 4]>,
    /// When the first notify came that these rows answer, if they answer one.
    since: Option<Timestamp>,
    /// Of the buffer, what is allocated and not used.
    unused: u32,
}

impl Group {
    /// The same rows, as those that answer a notify.
    pub(crate) fn answering(mut self, since: Option<Timestamp>) -> Self {
        // Nobody else has it yet.
        if let Some(data) = Arc::get_mut(&mut self.0) {
            data.since = since;
        }
        self
    }

    pub(crate) fn since(&self) -> Option<Timestamp> {
        self.0.since
    }

    pub(crate) fn build(rows: &Rows, limits: RowLimits) -> Result<Self, RowError> {
        let rows = &rows.0;
        if rows.len() > limits.rows {
            return Err(RowError::TooMany {
                rows: rows.len(),
                limit: limits.rows,
            });
        }
        let payload: usize = rows.iter().map(Bytes::len).sum();
        // The largest header is 10 bytes.
        let bytes = payload + 10 * rows.len();
        if payload > limits.bytes || u32::try_from(bytes).is_err() {
            return Err(RowError::TooLong {
                bytes: payload,
                limit: limits.bytes,
            });
        }
        let mut buffer = BytesMut::with_capacity(bytes);
        let capacity = bytes;
        let mut frame_ends = SmallVec::with_capacity(rows.len());
        for (index, row) in rows.iter().enumerate() {
            if std::str::from_utf8(row).is_err() {
                return Err(RowError::NotUtf8 { row: index });
            }
            encode_header(OpCode::Text, row.len(), &mut buffer);
            buffer.extend_from_slice(row);
            frame_ends.push(buffer.len() as u32);
        }
        Ok(Self(Arc::new(GroupData {
            since: None,
            unused: (capacity - buffer.len()) as u32,
            bytes: buffer.freeze(),
            frame_ends,
        })))
    }

    /// Nothing to send.
    pub(crate) fn empty() -> Self {
        Self(Arc::new(GroupData {
            since: None,
            unused: 0,
            bytes: Bytes::new(),
            frame_ends: SmallVec::new(),
        }))
    }

    /// All frames, one after the other.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.0.bytes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.bytes.is_empty()
    }

    /// The memory that it occupies, for as long as anyone has it.
    pub(crate) fn held_bytes(&self) -> usize {
        /// Of its allocations: two reference counts of each, and what the allocator adds.
        const ALLOCATED: usize = 3 * 32;
        let ends = &self.0.frame_ends;
        let ends = if ends.spilled() {
            ends.capacity() * size_of::<u32>()
        } else {
            0
        };
        size_of::<GroupData>() + ALLOCATED + ends + self.len() + self.0.unused as usize
    }

    /// The end of the frame that `offset` lies inside of, or `offset` itself if it lies between two.
    pub(crate) fn frame_end(&self, offset: usize) -> usize {
        if offset == 0 {
            return 0;
        }
        let ends = &self.0.frame_ends;
        let at = ends.partition_point(|&end| (end as usize) < offset);
        ends.get(at).map_or(self.len(), |&end| end as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RowLimits = RowLimits {
        rows: 3,
        bytes: 100_000,
    };

    #[test]
    fn frames_stand_one_after_the_other() {
        let rows: Rows = [&b"ab"[..], b"", b"c"].into_iter().collect();
        let group = Group::build(&rows, LIMITS).expect("good rows");
        assert_eq!(&group.bytes()[..], b"\x81\x02ab\x81\x00\x81\x01c");
        let ends = [0, 4, 4, 4, 4, 6, 6, 9, 9, 9];
        for (offset, end) in ends.into_iter().enumerate() {
            assert_eq!(group.frame_end(offset), end, "offset {offset}");
        }
    }

    #[test]
    fn headers_grow_with_the_payload() {
        for (len, header) in [
            (125, &b"\x81\x7d"[..]),
            (126, b"\x81\x7e\x00\x7e"),
            (65535, b"\x81\x7e\xff\xff"),
            (65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
        ] {
            let group = Group::build(&Rows::one(vec![b'x'; len]), LIMITS).expect("good row");
            assert!(group.bytes().starts_with(header));
            assert_eq!(group.len(), header.len() + len);
        }
    }

    #[test]
    fn bad_rows_are_the_resolvers_error() {
        let rows: Rows = [&b"ok"[..], b"\xff"].into_iter().collect();
        assert_eq!(Group::build(&rows, LIMITS).err(), Some(RowError::NotUtf8 { row: 1 }));
        let rows: Rows = ["a"; 4].into_iter().collect();
        let error = Group::build(&rows, LIMITS).err();
        assert_eq!(error, Some(RowError::TooMany { rows: 4, limit: 3 }));
        let error = Group::build(&Rows::one(vec![b'x'; 100_001]), LIMITS).err();
        assert!(matches!(error, Some(RowError::TooLong { .. })));
        assert!(Group::build(&Rows::none(), LIMITS).expect("empty").is_empty());
    }
}
