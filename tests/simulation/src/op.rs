//! [`Op`]: one thing that happens to a node. The simulator draws them from a seed, the fuzzer from its bytes.

use arbitrary::Arbitrary;
use fastrand::Rng;

/// One thing that happens. Numbers choose among what exists, so that every value means something.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Op {
    /// A client connects and upgrades.
    Connect {
        /// Which shard accepts it.
        shard: u8,
        /// What its driver answers to writes.
        driver: Driver,
        /// Whether its request asks for the present state of what it subscribes to.
        snapshots: bool,
    },
    /// A client subscribes.
    Subscribe {
        /// Who.
        client: u8,
        /// To what.
        key: u8,
    },
    /// A client unsubscribes.
    Unsubscribe {
        /// Who.
        client: u8,
        /// From what.
        key: u8,
    },
    /// A client sends a secret.
    Secret {
        /// Who.
        client: u8,
        /// Which.
        secret: u8,
    },
    /// A client sends several messages that the server reads at once.
    Burst {
        /// Who.
        client: u8,
        /// What.
        sayings: [Saying; 5],
    },
    /// A client sends a ping.
    Ping {
        /// Who.
        client: u8,
    },
    /// A client sends something that is not a message.
    Nonsense {
        /// Who.
        client: u8,
    },
    /// A client violates the WebSocket protocol.
    Violate {
        /// Who.
        client: u8,
    },
    /// A client sends a close frame.
    Close {
        /// Who.
        client: u8,
    },
    /// A client's socket fails, and the driver sees it at once.
    Vanish {
        /// Who.
        client: u8,
    },
    /// A client's socket fails, and the driver sees it when it writes next.
    Break {
        /// Who.
        client: u8,
    },
    /// A client takes bytes from its socket, which makes room for more.
    Drain {
        /// Who.
        client: u8,
        /// How many.
        bytes: u16,
    },
    /// A write that the driver took goes on or gets done.
    Complete {
        /// Whose.
        client: u8,
        /// How many bytes at most.
        bytes: u16,
    },
    /// A client sends a message that is the application's.
    Pass {
        /// Who.
        client: u8,
    },
    /// The application sends a message to a client.
    Send {
        /// Whom.
        client: u8,
        /// Half its length, about.
        bytes: u8,
    },
    /// The application has reads repeated.
    Reread {
        /// Whose.
        target: Target,
    },
    /// The application ends subscriptions.
    Dismiss {
        /// Whose.
        target: Target,
    },
    /// The application ends connections.
    Disconnect {
        /// Whose.
        target: Target,
    },
    /// The resolver panics when it is called next.
    Panic,
    /// The application changes an entity and says so.
    Notify {
        /// Which.
        key: u8,
    },
    /// A read is answered.
    Answer {
        /// Which of those that have not been.
        read: u8,
        /// How.
        answer: Answer,
    },
    /// A shard's driver does some of what the shard says.
    Poll {
        /// Which.
        shard: u8,
        /// How many outputs at most.
        outputs: u8,
    },
    /// Time passes.
    Advance {
        /// How long.
        ms: u16,
    },
    /// The process stands still (SIGSTOP, a suspended machine). Whatever comes meanwhile is read when it goes on.
    Freeze {
        /// How long.
        seconds: u8,
    },
    /// Faults stop until nothing happens any more, and everyone must have the last states.
    Settle,
}

/// A message of a burst.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saying {
    /// It subscribes to this key.
    Subscribe(u8),
    /// It unsubscribes from this key.
    Unsubscribe(u8),
    /// It sends this secret.
    Secret(u8),
    /// It sends a message that is the application's.
    Pass,
    /// It sends a close frame.
    Close,
}

/// Whom the application means.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Whoever is subscribed to this key.
    Key(u8),
    /// Whoever has this secret.
    Secret(u8),
    /// This client.
    Client(u8),
}

/// How a client's driver answers writes.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Like `write(2)`.
    Direct,
    /// Like TLS: busy at random, too.
    Moody,
    /// Like io_uring: takes every write and completes it later.
    Taking,
}

/// How a read ends.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With rows.
    Rows,
    /// It failed for the moment.
    Failed,
    /// The resolver panicked or forgot.
    Dropped,
    /// With a row that isn't text.
    BadRows,
}

impl Op {
    /// Draws one, with the mix of a busy node.
    pub fn random(rng: &mut Rng) -> Self {
        let client = rng.u8(..);
        let key = rng.u8(..);
        let shard = rng.u8(..);
        match rng.u8(..100) {
            0..=4 => Self::Connect {
                shard,
                driver: [Driver::Direct, Driver::Moody, Driver::Taking][rng.usize(..3)],
                snapshots: client < 64,
            },
            5..=16 => Self::Subscribe { client, key },
            17..=20 => Self::Unsubscribe { client, key },
            24 => Self::Burst {
                client,
                sayings: std::array::from_fn(|_| Saying::random(rng)),
            },
            21..=23 => Self::Secret {
                client,
                secret: rng.u8(..),
            },
            25 => match rng.u8(..12) {
                0..=3 => Self::Ping { client },
                4 => Self::Pass { client },
                5 => Self::Panic,
                6 | 7 => Self::Reread {
                    target: Target::random(rng),
                },
                8 if rng.u8(..4) == 0 => Self::Disconnect {
                    target: Target::random(rng),
                },
                8 => Self::Dismiss {
                    target: Target::random(rng),
                },
                _ => Self::Send {
                    client,
                    bytes: rng.u8(..),
                },
            },
            26 => match rng.u8(..6) {
                0 => Self::Violate { client },
                1 => Self::Close { client },
                2 => Self::Vanish { client },
                3 => Self::Break { client },
                _ => Self::Nonsense { client },
            },
            27..=38 => Self::Drain {
                client,
                bytes: rng.u16(..1500),
            },
            39..=46 => Self::Complete {
                client,
                bytes: rng.u16(..2000),
            },
            47..=60 => Self::Notify { key },
            61..=75 => Self::Answer {
                read: rng.u8(..),
                answer: match rng.u8(..20) {
                    0 => Answer::Failed,
                    1 => Answer::Dropped,
                    2 => Answer::BadRows,
                    _ => Answer::Rows,
                },
            },
            76..=96 => Self::Poll {
                shard,
                outputs: rng.u8(1..12),
            },
            97 if rng.u8(..3) == 0 => Self::Settle,
            98 if rng.u8(..3) == 0 => Self::Freeze {
                seconds: rng.u8(1..200),
            },
            _ => Self::Advance {
                ms: match rng.u8(..8) {
                    0 => rng.u16(..30_000),
                    1..=3 => rng.u16(..2_000),
                    _ => rng.u16(..20),
                },
            },
        }
    }
}

impl Saying {
    fn random(rng: &mut Rng) -> Self {
        let number = rng.u8(..);
        match rng.u8(..20) {
            0..=3 => Self::Subscribe(number),
            4 | 5 => Self::Unsubscribe(number),
            6..=13 => Self::Secret(number),
            14..=18 => Self::Pass,
            _ => Self::Close,
        }
    }
}

impl Target {
    fn random(rng: &mut Rng) -> Self {
        let number = rng.u8(..);
        match rng.u8(..4) {
            0 => Self::Key(number),
            1 => Self::Secret(number),
            _ => Self::Client(number),
        }
    }
}
