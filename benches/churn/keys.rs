//! [`Key`]: which entities there are, and who is subscribed to them.

/// Keys of nobody in particular, which the server notifies too. Others come and go with their subscribers unnotified.
pub(crate) const OTHERS: u32 = 1000;

/// An entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// The one that half of the steady clients have.
    Shared,
    /// One steady client's own.
    Own(u32),
    /// Only passers-by have these.
    Other(u32),
}

impl Key {
    pub(crate) fn entity(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Own(_) => "own",
            Self::Other(_) => "other",
        }
    }

    pub(crate) fn id(self) -> String {
        match self {
            Self::Shared => "0".to_owned(),
            Self::Own(id) | Self::Other(id) => id.to_string(),
        }
    }

    /// `None` for what a client made up.
    pub(crate) fn parse(entity: &str, id: &str) -> Option<Self> {
        let id = id.parse().ok()?;
        match entity {
            "shared" if id == 0 => Some(Self::Shared),
            "own" => Some(Self::Own(id)),
            "other" => Some(Self::Other(id)),
            _ => None,
        }
    }

    /// Its place in the server's table, if it has one: the shared key, `own` own keys, and [`OTHERS`].
    pub(crate) fn index(self, own: u32) -> Option<usize> {
        match self {
            Self::Shared => Some(0),
            Self::Own(id) if id < own => Some(1 + id as usize),
            Self::Other(id) if id < OTHERS => Some(1 + own as usize + id as usize),
            Self::Own(_) | Self::Other(_) => None,
        }
    }

    /// All that have a place, in that order.
    pub(crate) fn all(own: u32) -> impl Iterator<Item = Self> {
        std::iter::once(Self::Shared)
            .chain((0..own).map(Self::Own))
            .chain((0..OTHERS).map(Self::Other))
    }

    /// One that a passer-by might want.
    pub(crate) fn random(rng: &mut fastrand::Rng, own: u32) -> Self {
        match rng.u8(..10) {
            0 => Self::Shared,
            1..7 => Self::Own(rng.u32(..own)),
            7 | 8 => Self::Other(rng.u32(..OTHERS)),
            _ => Self::Other(rng.u32(..)),
        }
    }
}
