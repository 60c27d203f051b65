//! [`ClusterOp`]: one thing that happens to a cluster.

use arbitrary::Arbitrary;
use fastrand::Rng;

use crate::op::Op;

/// One thing that happens. Numbers choose among what exists, so that every value means something.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum ClusterOp {
    /// Something happens to a node: see [`Op`]. Notifies are told to the others, and time passes for all.
    Site {
        /// Which.
        site: u8,
        /// What.
        op: Op,
    },
    /// Many notifies, one after the other.
    Burst {
        /// On which node.
        site: u8,
        /// Of which key.
        key: u8,
        /// How many.
        count: u8,
        /// Before, one of another key, which is lost.
        is_first_lost: bool,
    },
    /// From now on, the bus is so bad.
    Faults {
        /// Of 100 messages, so many are lost.
        lost: u8,
        /// Of 100, so many come twice.
        repeated: u8,
        /// They take up to so many milliseconds, each another time.
        delay_ms: u16,
    },
    /// Two nodes can't hear each other any more.
    Cut {
        /// One.
        a: u8,
        /// The other.
        b: u8,
    },
    /// All hear each other again.
    Heal,
    /// A node's bus loses its connection, and notices.
    Disconnect {
        /// Whose.
        site: u8,
    },
    /// It has one again.
    Connect {
        /// Whose.
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
    /// A node's process ends, and none takes its place until it is restarted.
    Die {
        /// Which.
        site: u8,
    },
    /// A node's process ends, and another one takes its place.
    Restart {
        /// Which.
        site: u8,
        /// Whether it says goodbye.
        is_graceful: bool,
        /// By how much its clock of day is wrong then, in seconds.
        clock_s: i8,
    },
    /// Bytes that are no message, or not quite one.
    Garbage {
        /// To whom.
        site: u8,
        /// Which bit of a real one is changed; or, if it is beyond, which random bytes.
        bit: u16,
    },
    /// A message of long ago comes again.
    Replay {
        /// To whom.
        site: u8,
        /// Which.
        message: u16,
    },
}

impl ClusterOp {
    /// Draws one, with the mix of a cluster in trouble.
    pub fn random(rng: &mut Rng) -> Self {
        let site = rng.u8(..);
        match rng.u8(..200) {
            0..=2 => Self::Burst {
                site,
                key: rng.u8(..),
                count: rng.u8(1..100),
                is_first_lost: rng.bool(),
            },
            3..=7 => Self::Faults {
                lost: [0, 0, 5, 30, 100][rng.usize(..5)],
                repeated: [0, 10, 50][rng.usize(..3)],
                delay_ms: [0, 5, 50, 700][rng.usize(..4)],
            },
            8..=10 => Self::Cut { a: site, b: rng.u8(..) },
            11..=13 => Self::Heal,
            14 => Self::Disconnect { site },
            15 | 16 => Self::Connect { site },
            17 => Self::Stop { site },
            18 | 19 => Self::Continue { site },
            26 if rng.bool() => Self::Die { site },
            20 | 21 => Self::Restart {
                site,
                is_graceful: rng.bool(),
                clock_s: if rng.u8(..4) == 0 { rng.i8(..) } else { 0 },
            },
            22 | 23 => Self::Garbage {
                site,
                bit: rng.u16(..1200),
            },
            24 | 25 => Self::Replay {
                site,
                message: rng.u16(..),
            },
            _ => Self::Site {
                site,
                op: Op::random(rng),
            },
        }
    }
}
