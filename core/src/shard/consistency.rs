//! What must be true of a shard's tables whenever nobody is changing them.

use super::pause::Pause;
use super::{ConnId, Phase, Shard};
use crate::subscriptions::Standing;

impl Shard {
    /// Panics unless the tables agree with each other. For tests and simulations; it visits everything.
    #[doc(hidden)]
    pub fn assert_consistent(&self) {
        self.subscriptions.assert_consistent();
        self.secrets.assert_consistent(self.conns.len());
        self.assert_counted();
        for (id, state) in self.conns.iter() {
            let conn = ConnId(id);
            let (mut wanted, mut dirty) = (0, Vec::new());
            for topic in self.subscriptions.topics_of(id.index) {
                let standing = self.subscriptions.standing(id.index, topic);
                if standing.is_some_and(Standing::wants) {
                    wanted += 1;
                    assert!(self.is_awaited(topic), "{conn:?} waits for a read that nobody owes");
                }
                dirty.extend(standing.filter(|it| it.is_dirty()).map(|_| topic));
            }
            assert_eq!(self.ready.contains(&conn), state.listed);
            assert_eq!(self.urgent.contains(&conn), state.is_urgent);
            let in_backlog = self.backlog.iter().filter(|&&it| it == conn).count();
            let waits = state.phase == Phase::Open && state.pauses.is_only(Pause::Backlog);
            assert!(
                state.phase != Phase::Open || in_backlog == usize::from(waits),
                "{conn:?} has {in_backlog} turns"
            );
            let is_listed = state.listed || state.is_urgent;
            assert!(is_listed || !state.can_flush(), "{conn:?} is forgotten");
            let Some(extra) = &state.extra else {
                assert_eq!((wanted, dirty.len()), (0, 0));
                continue;
            };
            assert_eq!(wanted, extra.wanted);
            assert_eq!(dirty.len(), extra.dirty.len());
            assert!(dirty.iter().all(|topic| extra.dirty.contains(topic)));
            assert!(dirty.is_empty() || wanted > 0 || !extra.outbox.is_empty());
            extra.outbox.assert_consistent();
        }
    }
}
