//! A client: its socket, what it has told the server, and what it makes of what it is sent.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use entity_sync_core::{ConnId, Sent, Timestamp};

use crate::entities::{Kind, kind_of};
use crate::op::Driver;
use crate::store::{Row, Tick, audience_name};

pub(crate) struct Client {
    pub(crate) shard: usize,
    pub(crate) conn: ConnId,
    pub(crate) driver: Driver,
    /// Bytes that its socket takes before it is full.
    pub(crate) room: usize,
    /// A write did not go through; the driver waits for room.
    pub(crate) is_blocked: bool,
    /// Writes fail.
    pub(crate) is_broken: bool,
    /// It or the server has said that this is the end.
    pub(crate) is_ending: bool,
    /// The application has ended it: what it says is not heard any more.
    pub(crate) is_sent_away: bool,
    /// Its request asked for the present state of what it subscribes to.
    pub(crate) wants_snapshots: bool,
    /// What the driver took and has not written yet, with what was true when it took it.
    pub(crate) taken: Option<(Bytes, Rc<Standing>, Tick)>,
    pub(crate) last_alive: Timestamp,
    /// Pings that it has seen and not answered.
    pub(crate) pings: u32,
    /// It answers them at once.
    pub(crate) answers: bool,
    /// What the server knows of it by now.
    pub(crate) standing: Rc<Standing>,
    /// The tick of the last notify of each key since it subscribed: a read that began later is due.
    pub(crate) due: BTreeMap<u8, Tick>,
    /// When the last whole group of each key began to be read.
    pub(crate) seen: BTreeMap<u8, Tick>,
    /// When it last gave up rows, by unsubscribing or with a new secret.
    pub(crate) revoked: BTreeMap<u8, Tick>,
    /// When the application last had reads of each key repeated for it.
    pub(crate) reread: BTreeMap<u8, Tick>,
    /// Pushes that it is owed of each key of which every notify counts.
    pub(crate) pushes: BTreeMap<u8, u64>,
    /// The version of the last whole group of each key whose store lags behind.
    pub(crate) version: BTreeMap<u8, u64>,
    /// Messages that the application has sent it, and that have come.
    pub(crate) messages: (u64, u64),
    stream: Stream,
}

/// What a client is subscribed to, and since when under its secret.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) secret: String,
    pub(crate) joined: BTreeMap<u8, Tick>,
}

#[derive(Default)]
struct Stream {
    has_upgraded: bool,
    unparsed: Vec<u8>,
    /// What was true when the first byte of the frame in `unparsed` left.
    frame_standing: Option<(Rc<Standing>, Tick)>,
    /// A group of which not all rows have come: the next row, and when the group began to come.
    group: Option<(Row, Tick)>,
}

impl Client {
    pub(crate) fn new(shard: usize, conn: ConnId, driver: Driver, now: Timestamp) -> Self {
        Self {
            shard,
            conn,
            driver,
            room: 1000,
            is_blocked: false,
            is_broken: false,
            is_ending: false,
            is_sent_away: false,
            wants_snapshots: false,
            taken: None,
            last_alive: now,
            pings: 0,
            answers: conn.index().is_multiple_of(2),
            standing: Rc::default(),
            due: BTreeMap::new(),
            seen: BTreeMap::new(),
            revoked: BTreeMap::new(),
            reread: BTreeMap::new(),
            pushes: BTreeMap::new(),
            version: BTreeMap::new(),
            messages: (0, 0),
            stream: Stream::default(),
        }
    }

    pub(crate) fn is_subscribed(&self, key: u8) -> bool {
        self.standing.joined.contains_key(&key)
    }

    /// It takes what it is sent, and answers what it is asked.
    pub(crate) fn is_well(&self) -> bool {
        let takes = !self.is_blocked && self.taken.is_none();
        self.answers && takes && self.stream.has_upgraded && !self.is_ending && !self.is_broken
    }

    /// It is not subscribed to this key any more.
    pub(crate) fn give_up(&mut self, key: u8, tick: Tick) {
        Rc::make_mut(&mut self.standing).joined.remove(&key);
        self.due.remove(&key);
        self.reread.remove(&key);
        self.pushes.remove(&key);
        self.revoked.insert(key, tick);
    }

    /// The driver is asked to write. What it accepts reaches the client at once.
    pub(crate) fn write(
        &mut self,
        chunks: &[&[u8]],
        tick: Tick,
        is_busy: bool,
        given_up: &dyn Fn(Tick) -> bool,
    ) -> Result<Sent, String> {
        if self.taken.is_some() {
            return Err(format!("{:?} is written to while a write is taken", self.conn));
        }
        if self.is_broken {
            return Ok(Sent::Closed);
        }
        let all = chunks.concat();
        if all.is_empty() {
            return Err(format!("{:?} is to write nothing", self.conn));
        }
        match self.driver {
            Driver::Taking => {
                self.taken = Some((all.into(), self.standing.clone(), tick));
                return Ok(Sent::Taken);
            }
            Driver::Moody if is_busy => {
                // As after a full socket, there is an event when it can go on.
                self.room = 0;
                self.is_blocked = true;
                return Ok(Sent::Busy);
            }
            _ => {}
        }
        let accepted = all.len().min(self.room);
        self.room -= accepted;
        let standing = self.standing.clone();
        self.receive(&all[..accepted], &standing, tick, given_up)?;
        self.is_blocked = accepted < all.len();
        Ok(match accepted {
            n if n == all.len() => Sent::All,
            0 => Sent::Busy,
            n => Sent::Partial(n),
        })
    }

    /// A taken write got `bytes` further and is over. Says how many that were.
    pub(crate) fn complete(&mut self, bytes: usize, given_up: &dyn Fn(Tick) -> bool) -> Result<Option<usize>, String> {
        let Some((all, standing, tick)) = self.taken.take() else {
            return Ok(None);
        };
        let done = bytes.min(all.len());
        self.receive(&all[..done], &standing, tick, given_up)?;
        Ok(Some(done))
    }

    fn receive(
        &mut self,
        bytes: &[u8],
        standing: &Rc<Standing>,
        tick: Tick,
        given_up: &dyn Fn(Tick) -> bool,
    ) -> Result<(), String> {
        for &byte in bytes {
            if self.stream.unparsed.is_empty() {
                self.stream.frame_standing = Some((standing.clone(), tick));
            }
            self.stream.unparsed.push(byte);
            if !self.stream.has_upgraded {
                if self.stream.unparsed.ends_with(b"\r\n\r\n") {
                    if !self.stream.unparsed.starts_with(b"HTTP/1.1 101 ") {
                        return Err("the upgrade was refused".to_owned());
                    }
                    self.stream.has_upgraded = true;
                    self.stream.unparsed.clear();
                }
                continue;
            }
            if let Some((opcode, payload)) = parse_frame(&self.stream.unparsed)? {
                let frame = payload.to_vec();
                self.stream.unparsed.clear();
                let Some((standing, began)) = self.stream.frame_standing.take() else {
                    return Err("a frame without a beginning".to_owned());
                };
                match opcode {
                    1 => self.see_row(&frame, &standing, began, given_up)?,
                    8 => self.is_ending = true,
                    9 => self.pings += 1,
                    10 => {}
                    other => return Err(format!("a frame with opcode {other}")),
                }
            }
        }
        Ok(())
    }

    fn see_row(
        &mut self,
        payload: &[u8],
        standing: &Standing,
        began: Tick,
        given_up: &dyn Fn(Tick) -> bool,
    ) -> Result<(), String> {
        let conn = self.conn;
        if let Some(number) = message_number(payload) {
            let is_next = number == self.messages.1 && number < self.messages.0;
            self.messages.1 = number + 1;
            return match self.stream.group {
                _ if !is_next => Err(format!("{conn:?} is sent message {number} out of order")),
                Some((ref next, since)) if self.revoked.get(&next.key).is_none_or(|&at| at < since) => {
                    Err(format!("G4: {conn:?} is sent a message in place of {next:?}"))
                }
                _ => Ok(()),
            };
        }
        let row = Row::parse(payload).ok_or("a row that nobody made")?;
        let Some(&joined) = standing.joined.get(&row.key) else {
            return Err(format!("{conn:?} is sent {row:?} without a subscription"));
        };
        let (_, secret) = audience_name(row.key, &standing.secret);
        if row.secret != secret {
            return Err(format!("G6: {conn:?} with secret {secret:?} is sent {row:?}"));
        }
        // Rows of a store that lags behind don't tell when they were read, nor do all of a cluster.
        let has_ticks = row.read_began != 0;
        let is_older = self.version.get(&row.key).is_some_and(|&seen| seen > row.version);
        if is_older && kind_of(row.key) != Kind::Settling {
            return Err(format!("G2: {conn:?} is sent {row:?} after a later version"));
        }
        if has_ticks && row.read_began <= joined {
            return Err(format!("G2: {conn:?}, subscribed at {joined}, is sent {row:?}"));
        }
        if given_up(row.read_began) {
            return Err(format!("G2: {conn:?} is sent {row:?} of a read that was given up"));
        }
        if self.seen.get(&row.key).is_some_and(|&seen| seen > row.read_began) {
            return Err(format!("G2: {conn:?} is sent {row:?} after a later read"));
        }
        match self.stream.group.take() {
            Some((next, _)) if next == row => {}
            Some((next, since)) => {
                let revoked = self.revoked.get(&next.key).is_some_and(|&at| at >= since);
                if !revoked {
                    return Err(format!("G4: {conn:?} is sent {row:?} in place of {next:?}"));
                }
                if row.index != 0 {
                    return Err(format!("G4: {conn:?} is sent {row:?} without those before"));
                }
            }
            None if row.index != 0 => {
                return Err(format!("G4: {conn:?} is sent {row:?} without those before"));
            }
            None => {}
        }
        if row.index + 1 == row.count {
            self.seen.insert(row.key, row.read_began);
            self.version.insert(row.key, row.version);
            if let Some(owed) = self.pushes.get_mut(&row.key) {
                *owed = owed.saturating_sub(1);
            }
        } else {
            let index = row.index + 1;
            self.stream.group = Some((Row { index, ..row }, began));
        }
        Ok(())
    }
}

/// The text of a message of the application's.
pub(crate) fn message(number: u64, padding: usize) -> String {
    format!("message {number} {}", "x".repeat(padding))
}

fn message_number(payload: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(payload).ok()?;
    text.strip_prefix("message ")?.split(' ').next()?.parse().ok()
}

/// A whole frame of a server, or `None` if there is more to come.
fn parse_frame(bytes: &[u8]) -> Result<Option<(u8, &[u8])>, String> {
    let &[first, second, ref rest @ ..] = bytes else {
        return Ok(None);
    };
    if first & 0xf0 != 0x80 || second & 0x80 != 0 {
        return Err(format!("a frame that begins {first:02x} {second:02x}"));
    }
    let (len, payload) = match (second, rest) {
        (126, [a, b, payload @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), payload),
        (126, _) => return Ok(None),
        (127, _) => return Err("a frame longer than any row".to_owned()),
        (len, payload) => (usize::from(len), payload),
    };
    Ok((payload.len() == len).then_some((first & 0x0f, payload)))
}
