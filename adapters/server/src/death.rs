//! [`Death`]: the process ends when a part of it has died that can't be begun again.

use std::sync::Arc;

use entity_sync_mio::{Health, Severity, Trouble};
use tokio::sync::Notify;

pub(crate) struct Death {
    health: Health,
    happened: Arc<Notify>,
}

impl Death {
    /// What dies from now on is noticed.
    pub(crate) fn watch(health: &Health) -> Self {
        let happened = Arc::<Notify>::default();
        let to_end = happened.clone();
        health.when_dead(move |_| to_end.notify_one());
        Self {
            health: health.clone(),
            happened,
        }
    }

    /// Until a part has died. Cancel safe, and for one that waits.
    pub(crate) async fn happens(&self) {
        self.happened.notified().await;
    }

    /// Which part has died, if one has.
    pub(crate) fn check(&self) -> Result<(), Trouble> {
        let mut troubles = self.health.troubles().into_iter();
        match troubles.find(|it| it.severity == Severity::Dead) {
            Some(trouble) => Err(trouble),
            None => Ok(()),
        }
    }
}
