//! [`PlainOp`]: one thing that happens to nodes on a plain queue.

use arbitrary::Arbitrary;
use fastrand::Rng;

use crate::op::Op;

/// One thing that happens. Numbers choose among what exists, so that every value means something.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum PlainOp {
    /// Something happens to a node: see [`Op`]. Time passes for all.
    Site {
        /// Which.
        site: u8,
        /// What.
        op: Op,
    },
    /// From now on, the queue is so bad.
    Faults {
        /// Of 100 messages, so many never reach it.
        lost: u8,
        /// Of 100 that do, so many are never confirmed.
        unanswered: u8,
        /// Of 100, so many come twice.
        repeated: u8,
        /// Of 100 that are confirmed, so many are brought to nobody.
        swallowed: u8,
        /// When so many are on their way, those that come on top are brought to nobody.
        room: u16,
        /// Everything takes up to so many milliseconds, each another time.
        delay_ms: u16,
    },
    /// The queue starts again: nodes come back sooner or later, and one of the Go original after a minute.
    RestartQueue,
    /// A node of the Go original publishes a change.
    PublishAsOriginal {
        /// Of which key.
        key: u8,
    },
    /// A node loses its connection, and notices later.
    Disconnect {
        /// Which.
        site: u8,
    },
    /// It has one again.
    Connect {
        /// Which.
        site: u8,
    },
    /// A node's process is stopped (SIGSTOP).
    Stop {
        /// Which.
        site: u8,
    },
    /// It goes on (SIGCONT).
    Continue {
        /// Which.
        site: u8,
    },
    /// A node's process ends once the queue has all it had to say, and another one takes its place.
    Restart {
        /// Which.
        site: u8,
    },
    /// What waits for a node is dropped, and it is told.
    Overflow {
        /// Which.
        site: u8,
    },
    /// Bytes that are no message.
    Garbage {
        /// To whom.
        site: u8,
        /// How many.
        bytes: u8,
    },
}

impl PlainOp {
    /// Draws one, with the mix of a queue in trouble.
    pub fn random(rng: &mut Rng) -> Self {
        let site = rng.u8(..);
        match rng.u8(..200) {
            0..=5 => Self::Faults {
                lost: [0, 0, 5, 30, 100][rng.usize(..5)],
                unanswered: [0, 0, 10, 100][rng.usize(..4)],
                repeated: [0, 10, 50][rng.usize(..3)],
                swallowed: [0, 0, 10, 50][rng.usize(..4)],
                room: [u16::MAX, u16::MAX, 3][rng.usize(..3)],
                delay_ms: [0, 5, 50, 700, 3_000][rng.usize(..5)],
            },
            6 | 7 => Self::Disconnect { site },
            8..=10 => Self::Connect { site },
            11 => Self::Stop { site },
            12 | 13 => Self::Continue { site },
            14 => Self::Restart { site },
            15 => Self::Overflow { site },
            16 => Self::Garbage {
                site,
                bytes: rng.u8(..),
            },
            17 if rng.bool() => Self::RestartQueue,
            18 => Self::PublishAsOriginal { key: rng.u8(..) },
            _ => Self::Site {
                site,
                op: Op::random(rng),
            },
        }
    }
}
