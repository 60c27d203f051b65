//! [`Route`]: what a path names.

/// What there is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// Both still percent-encoded; the id is not empty.
    Entity {
        entity: &'a str,
        id: &'a str,
    },
    Notify,
    Metrics,
    Health,
    Ready,
}

impl<'a> Route<'a> {
    pub(super) fn of(path: &'a str) -> Option<Self> {
        if let Some(key) = path.strip_prefix("/entities/") {
            let (entity, id) = key.split_once('/')?;
            return (!id.is_empty() && !id.contains('/')).then_some(Self::Entity { entity, id });
        }
        match path {
            "/notify" => Some(Self::Notify),
            "/metrics" => Some(Self::Metrics),
            "/healthz" => Some(Self::Health),
            "/readyz" => Some(Self::Ready),
            _ => None,
        }
    }

    /// Whether it needs no token: what watches a server's health has none, and learns nothing else.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::Health | Self::Ready)
    }
}
