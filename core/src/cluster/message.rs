//! What nodes say to each other, as bytes.
//!
//! ```text
//! message  = version (1 byte: 1)  kind (1: 1 changes, 2 digest)  node (8)  epoch: started (8), nonce (8)  body  [MAC (16)]
//! changes  = section…                                       one or more, to the end
//! section  = bucket (2)  number (8)  count (2)  key…        count 0: anything in the bucket may have changed
//! key      = length of entity (2)  length of entity and id (2)  entity and id, UTF-8
//! digest   = number (8)  flags (1: 1 it leaves, 2 interest by bucket, 4 continued)  log2 of the buckets (1)  heartbeat in ms (4)
//!            length of name (1)  name, UTF-8  entry…        entries to the end
//! entry    = buckets without a message since the entry before (varint)  number of the last message (varint)
//! ```
//!
//! Numbers are little-endian; a varint has seven bits in each byte, the lowest first, and more follow where the eighth is set.
//! So an entry takes two to four bytes where most buckets are in use, and digests are most of what an idle bus carries. Each part of a long digest is a digest of its own; all but the first are marked.

use std::time::Duration;

use super::buckets::MAX_BUCKETS;
use super::secret::{ClusterSecret, MAC_BYTES};
use super::{Epoch, NodeId};
use crate::key::{EntityKey, KeyRef};

const VERSION: u8 = 1;
const CHANGES: u8 = 1;
const DIGEST: u8 = 2;

const HEADER_BYTES: usize = 2 + 8 + 16;
const SECTION_BYTES: usize = 2 + 8 + 2;
/// Where the flags of a digest are.
const FLAGS_AT: usize = HEADER_BYTES + 8;
const LEAVES: u8 = 1;
const BY_INTEREST: u8 = 2;
const CONTINUED: u8 = 4;

/// Keys of one section. More than that are told of as a whole bucket.
pub(super) const MAX_KEYS: usize = 256;
/// A longer key is told of as a whole bucket.
pub(super) const MAX_TOLD_KEY_BYTES: usize = 2048;
/// The longest name of a node.
pub(super) const MAX_NAME_BYTES: usize = 64;
/// Sections and entries are added to a message until it has so many bytes: what a bus moves well.
pub(super) const FULL_BYTES: usize = 8 * 1024;
/// No message is longer: one section, which is not divided, may come on top.
pub const MAX_MESSAGE_BYTES: usize =
    FULL_BYTES + SECTION_BYTES + MAX_KEYS * (4 + MAX_TOLD_KEY_BYTES) + MAC_BYTES + HEADER_BYTES;

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sender {
    pub(super) node: NodeId,
    pub(super) epoch: Epoch,
}

/// What is said.
#[derive(Debug)]
pub(super) enum Body<'a> {
    Changes(Sections<'a>),
    Digest(Digest<'a>),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Digest<'a> {
    /// Each digest of an epoch has a higher one.
    pub(super) number: u64,
    pub(super) is_leaving: bool,
    pub(super) by_interest: bool,
    /// It goes on where the one before has ended.
    pub(super) is_continued: bool,
    pub(super) buckets: u32,
    pub(super) heartbeat: Duration,
    pub(super) name: &'a str,
    entries: &'a [u8],
}

/// The entries of a digest, in the order of their buckets.
struct Entries<'a> {
    reader: Reader<'a>,
    /// The bucket that would be next if none were left out.
    next: u32,
    buckets: u32,
}

impl Entries<'_> {
    fn next(&mut self) -> Result<Option<(u32, u64)>, Reject> {
        if self.reader.0.is_empty() {
            return Ok(None);
        }
        self.entry().map(Some).ok_or(Reject::Malformed)
    }

    fn entry(&mut self) -> Option<(u32, u64)> {
        let bucket = self.next.checked_add(u32::try_from(self.reader.varint()?).ok()?)?;
        let number = self.reader.varint()?;
        self.next = bucket.checked_add(1)?;
        (bucket < self.buckets && number > 0).then_some((bucket, number))
    }
}

impl Digest<'_> {
    /// Buckets, and the number of the last message of each.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, u64)> {
        let mut entries = Entries {
            reader: Reader(self.entries),
            next: 0,
            buckets: self.buckets,
        };
        // They were read before.
        std::iter::from_fn(move || entries.next().ok().flatten())
    }

    fn is_good(&self) -> bool {
        let mut entries = Entries {
            reader: Reader(self.entries),
            next: 0,
            buckets: self.buckets,
        };
        loop {
            match entries.next() {
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }
}

/// Why a message is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reject {
    /// It says that it is of another version.
    Version,
    /// Its proof is missing or wrong.
    Forged,
    /// It is none of ours.
    Malformed,
}

/// Reads a message; the sections of changes are read as they are asked for.
pub(super) fn decode<'a>(bytes: &'a [u8], secret: Option<&ClusterSecret>) -> Result<(Sender, Body<'a>), Reject> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(Reject::Malformed);
    }
    // Before the proof: a node of another version may have another kind of proof.
    if bytes.first().is_some_and(|&version| version != VERSION) {
        return Err(Reject::Version);
    }
    let bytes = match secret {
        Some(secret) => secret.verify(bytes).ok_or(Reject::Forged)?,
        None => bytes,
    };
    let mut reader = Reader(bytes);
    read(&mut reader).ok_or(Reject::Malformed)
}

fn read<'a>(reader: &mut Reader<'a>) -> Option<(Sender, Body<'a>)> {
    let _version = reader.u8()?;
    let kind = reader.u8()?;
    let sender = Sender {
        node: NodeId(reader.u64()?),
        epoch: Epoch {
            started_ms: reader.u64()?,
            nonce: reader.u64()?,
        },
    };
    let body = match kind {
        CHANGES if !reader.0.is_empty() => Body::Changes(Sections(Reader(reader.0))),
        DIGEST => {
            let number = reader.u64()?;
            let flags = reader.u8()?;
            let buckets = 1u32.checked_shl(reader.u8()?.into())?;
            let heartbeat = Duration::from_millis(u64::from(reader.u32()?));
            let name_len = reader.u8()?.into();
            let name = str::from_utf8(reader.bytes(name_len)?).ok()?;
            let digest = Digest {
                number,
                is_leaving: flags & LEAVES != 0,
                by_interest: flags & BY_INTEREST != 0,
                is_continued: flags & CONTINUED != 0,
                buckets,
                heartbeat,
                name,
                entries: reader.0,
            };
            if buckets > MAX_BUCKETS || name.len() > MAX_NAME_BYTES || !digest.is_good() {
                return None;
            }
            Body::Digest(digest)
        }
        _ => return None,
    };
    Some((sender, body))
}

/// The sections of a message of changes.
#[derive(Debug)]
pub(super) struct Sections<'a>(Reader<'a>);

/// Some keys of one bucket that have changed.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) bucket: u32,
    pub(super) number: u64,
    /// How many there are, each to be asked for; 0 if anything in the bucket may have changed.
    pub(super) keys: u16,
}

impl<'a> Sections<'a> {
    /// The next section, once all keys of the one before were asked for.
    pub(super) fn next(&mut self) -> Result<Option<Section>, Reject> {
        if self.0.0.is_empty() {
            return Ok(None);
        }
        self.section().map(Some).ok_or(Reject::Malformed)
    }

    /// The next key of the section.
    pub(super) fn key(&mut self) -> Result<KeyRef<'a>, Reject> {
        self.read_key().ok_or(Reject::Malformed)
    }

    fn section(&mut self) -> Option<Section> {
        let section = Section {
            bucket: self.0.u16()?.into(),
            number: self.0.u64()?,
            keys: self.0.u16()?,
        };
        (section.number > 0 && usize::from(section.keys) <= MAX_KEYS).then_some(section)
    }

    fn read_key(&mut self) -> Option<KeyRef<'a>> {
        let entity_len = self.0.u16()?;
        let len = usize::from(self.0.u16()?);
        let text = str::from_utf8(self.0.bytes(len)?).ok()?;
        if len > MAX_TOLD_KEY_BYTES {
            return None;
        }
        KeyRef::new(text, entity_len.into())
    }
}

#[derive(Debug)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    #[inline]
    fn varint(&mut self) -> Option<u64> {
        // Most are short.
        match *self.0 {
            [byte @ ..0x80, ref rest @ ..] => {
                self.0 = rest;
                Some(byte.into())
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

/// A message that is being written.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    /// The bucket behind that of the last entry.
    next: u32,
}

impl Writer {
    fn begin(&mut self, sender: Sender, kind: u8) {
        self.bytes.clear();
        self.bytes.extend([VERSION, kind]);
        self.bytes.extend(sender.node.0.to_le_bytes());
        self.bytes.extend(sender.epoch.started_ms.to_le_bytes());
        self.bytes.extend(sender.epoch.nonce.to_le_bytes());
    }

    pub(super) fn begin_changes(&mut self, sender: Sender) {
        self.begin(sender, CHANGES);
    }

    /// Adds a section. Without keys it says that anything in the bucket may have changed.
    pub(super) fn section(&mut self, bucket: u32, number: u64, keys: &[EntityKey]) {
        debug_assert!(keys.len() <= MAX_KEYS);
        self.bytes.extend((bucket as u16).to_le_bytes());
        self.bytes.extend(number.to_le_bytes());
        self.bytes.extend((keys.len() as u16).to_le_bytes());
        for key in keys {
            let key = key.as_ref();
            debug_assert!(key.text().len() <= MAX_TOLD_KEY_BYTES);
            self.bytes.extend((key.entity_len() as u16).to_le_bytes());
            self.bytes.extend((key.text().len() as u16).to_le_bytes());
            self.bytes.extend(key.text().as_bytes());
        }
    }

    /// Begins a digest with the fields of `digest`, but its entries.
    pub(super) fn begin_digest(&mut self, sender: Sender, digest: &Digest<'_>) {
        self.begin(sender, DIGEST);
        self.next = 0;
        self.bytes.extend(digest.number.to_le_bytes());
        let leaves = if digest.is_leaving { LEAVES } else { 0 };
        let by_interest = if digest.by_interest { BY_INTEREST } else { 0 };
        let continued = if digest.is_continued { CONTINUED } else { 0 };
        self.bytes
            .extend([leaves | by_interest | continued, digest.buckets.ilog2() as u8]);
        let heartbeat_ms = u32::try_from(digest.heartbeat.as_millis()).unwrap_or(u32::MAX);
        self.bytes.extend(heartbeat_ms.to_le_bytes());
        self.bytes.push(digest.name.len() as u8);
        self.bytes.extend(digest.name.as_bytes());
    }

    /// Adds an entry to a digest. Buckets come in order.
    pub(super) fn entry(&mut self, bucket: u32, last: u64) {
        debug_assert!(bucket >= self.next);
        self.varint(u64::from(bucket - self.next));
        self.varint(last);
        self.next = bucket + 1;
    }

    /// The digest that was begun is a goodbye.
    pub(super) fn leaves(&mut self) {
        if let Some(flags) = self.bytes.get_mut(FLAGS_AT) {
            *flags |= LEAVES;
        }
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    /// No more is to be added.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= FULL_BYTES
    }

    pub(super) fn finish(&mut self, secret: Option<&ClusterSecret>) -> &[u8] {
        if let Some(secret) = secret {
            secret.sign(&mut self.bytes);
        }
        &self.bytes
    }
}

impl<'a> Digest<'a> {
    /// A digest to be written.
    pub(super) fn new(number: u64, buckets: u32, heartbeat: Duration, name: &'a str) -> Self {
        Self {
            number,
            is_leaving: false,
            by_interest: false,
            is_continued: false,
            buckets,
            heartbeat,
            name,
            entries: &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SENDER: Sender = Sender {
        node: NodeId(7),
        epoch: Epoch {
            started_ms: 1000,
            nonce: 5,
        },
    };

    type Said = Vec<(u32, u64, Vec<(String, usize)>)>;

    fn sections_of(bytes: &[u8], secret: Option<&ClusterSecret>) -> Result<Said, Reject> {
        let (sender, body) = decode(bytes, secret)?;
        assert_eq!(sender, SENDER);
        let Body::Changes(mut sections) = body else {
            panic!("no changes");
        };
        let mut said = Vec::new();
        while let Some(section) = sections.next()? {
            let mut keys = Vec::new();
            for _ in 0..section.keys {
                let key = sections.key()?;
                keys.push((key.text().to_owned(), key.entity_len()));
            }
            said.push((section.bucket, section.number, keys));
        }
        Ok(said)
    }

    #[test]
    fn the_bytes_never_change_between_releases() {
        // Written down, not computed: nodes of two releases run side by side during an upgrade.
        let mut writer = Writer::default();
        writer.begin_changes(SENDER);
        writer.section(51, 3, &[EntityKey::new("items", "100").expect("short")]);
        writer.section(52, 1, &[]);
        let bytes = writer.finish(None);
        let expected = b"\x01\x01\x07\0\0\0\0\0\0\0\xe8\x03\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\
            \x33\0\x03\0\0\0\0\0\0\0\x01\0\x05\0\x08\0items100\x34\0\x01\0\0\0\0\0\0\0\0\0";
        assert_eq!(bytes, expected);
        let said = sections_of(bytes, None).expect("good");
        assert_eq!(said, [(51, 3, vec![("items100".to_owned(), 5)]), (52, 1, vec![])]);

        let mut digest = Digest::new(9, 1024, Duration::from_millis(500), "a");
        digest.is_leaving = true;
        writer.begin_digest(SENDER, &digest);
        writer.entry(51, 3);
        writer.entry(52, 300);
        writer.entry(1023, u64::MAX);
        let expected = b"\x01\x02\x07\0\0\0\0\0\0\0\xe8\x03\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\
            \x09\0\0\0\0\0\0\0\x01\x0a\xf4\x01\0\0\x01a\
            \x33\x03\0\xac\x02\xca\x07\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        let bytes = writer.finish(None);
        assert_eq!(bytes, expected);
        let Ok((_, Body::Digest(read))) = decode(bytes, None) else {
            panic!("no digest");
        };
        assert_eq!(
            (read.number, read.buckets, read.name, read.is_leaving),
            (9, 1024, "a", true)
        );
        assert_eq!(
            read.entries().collect::<Vec<_>>(),
            [(51, 3), (52, 300), (1023, u64::MAX)]
        );
    }

    #[test]
    fn entries_that_are_none_make_no_digest() {
        let read = |entries: &[u8]| {
            let mut writer = Writer::default();
            writer.begin_digest(SENDER, &Digest::new(9, 4, Duration::from_millis(500), ""));
            writer.bytes.extend(entries);
            match decode(writer.finish(None), None) {
                Ok((_, Body::Digest(digest))) => Ok(digest.entries().collect::<Vec<_>>()),
                Ok(_) => panic!("no digest"),
                Err(reject) => Err(reject),
            }
        };
        assert_eq!(read(b"\0\x01\x02\x05"), Ok(vec![(0, 1), (3, 5)]));
        for bad in [
            &b"\0"[..],                                        // half an entry
            b"\x80",                                           // half a number
            b"\x04\x01",                                       // a bucket that there is not
            b"\x03\x01\0\x01",                                 // another one behind the last
            b"\0\0",                                           // no message
            b"\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",     // more than 64 bits
            b"\0\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", // more bytes than it takes
            b"\xff\xff\xff\xff\x0f\x01",                       // beyond any bucket
        ] {
            assert_eq!(read(bad), Err(Reject::Malformed), "{bad:?}");
        }
    }

    #[test]
    fn what_is_no_message_is_rejected() {
        let mut writer = Writer::default();
        writer.begin_changes(SENDER);
        writer.section(51, 3, &[EntityKey::new("é", "100").expect("short")]);
        let good = writer.finish(None).to_vec();
        for len in 0..good.len() {
            assert_eq!(
                sections_of(&good[..len], None),
                Err(Reject::Malformed),
                "{len} bytes of it"
            );
        }
        let change = |at: usize, byte: u8| {
            let mut changed = good.clone();
            changed[at] = byte;
            sections_of(&changed, None)
        };
        assert_eq!(change(0, 2), Err(Reject::Version));
        assert_eq!(change(1, 3), Err(Reject::Malformed));
        // A number of 0; too many keys; an entity that ends within a character, and beyond the key; bad UTF-8.
        assert_eq!(change(28, 0), Err(Reject::Malformed));
        assert_eq!(change(37, 2), Err(Reject::Malformed));
        assert_eq!(change(38, 1), Err(Reject::Malformed));
        assert_eq!(change(38, 90), Err(Reject::Malformed));
        assert_eq!(change(43, 0xff), Err(Reject::Malformed));
        let secret = ClusterSecret::new(&[1; 16], "es").expect("long");
        assert_eq!(sections_of(&good, Some(&secret)), Err(Reject::Forged));
        assert!(matches!(
            decode(&vec![1; MAX_MESSAGE_BYTES + 1], None),
            Err(Reject::Malformed)
        ));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            keys in proptest::collection::vec(("[a-zé]{0,5}", "[a-z0-9é]{0,9}"), 0..20),
            bucket in 0u32..1024,
            number in 1u64..,
            signed: bool,
        ) {
            let secret = ClusterSecret::new(&[3; 32], "es").expect("long");
            let secret = signed.then_some(&secret);
            let expected: Vec<_> = keys.iter().map(|(e, i)| (format!("{e}{i}"), e.len())).collect();
            let keys: Vec<_> = keys.iter().map(|(e, i)| EntityKey::new(e, i).expect("short")).collect();
            let mut writer = Writer::default();
            writer.begin_changes(SENDER);
            writer.section(bucket, number, &keys);
            let said = sections_of(writer.finish(secret), secret);
            prop_assert_eq!(said, Ok(vec![(bucket, number, expected)]));
        }

        #[test]
        fn entries_that_are_written_are_read(entries in proptest::collection::btree_map(0u32..1024, 1u64.., 0..100)) {
            let mut writer = Writer::default();
            writer.begin_digest(SENDER, &Digest::new(9, 1024, Duration::from_millis(500), ""));
            entries.iter().for_each(|(&bucket, &last)| writer.entry(bucket, last));
            let Ok((_, Body::Digest(digest))) = decode(writer.finish(None), None) else {
                panic!("no digest");
            };
            prop_assert_eq!(digest.entries().collect::<Vec<_>>(), entries.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn no_bytes_are_too_bad(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 1u8..3) {
            let mut bytes = bytes;
            if let [version, of_kind, ..] = &mut bytes[..] {
                (*version, *of_kind) = (VERSION, kind);
            }
            match decode(&bytes, None) {
                Ok((_, Body::Changes(mut sections))) => {
                    while let Ok(Some(section)) = sections.next() {
                        let good = (0..section.keys).all(|_| sections.key().is_ok());
                        if !good {
                            break;
                        }
                    }
                }
                Ok((_, Body::Digest(digest))) => prop_assert!(digest.entries().count() < 100),
                Err(_) => {}
            }
        }
    }
}
