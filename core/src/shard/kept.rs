//! What clients make the shard keep, in bytes: counted here, and limited over all shards by [`Totals`](crate::totals::Totals).

use super::{ConnId, Phase, Shard};
use crate::ws::close_frame;

/// Close code 1013.
pub(super) const TRY_AGAIN_LATER: u16 = 1013;

/// A shard's part of the node's [`Totals`](crate::totals::Totals).
#[derive(Default)]
pub(super) struct Said {
    subscriptions: usize,
    secrets: usize,
    input: usize,
}

impl Shard {
    pub(super) fn count_subscriptions(&mut self) {
        let bytes = self.subscriptions.bytes();
        self.counters.subscriptions.set(self.subscriptions.len() as u64);
        self.counters.subscription_bytes.set(bytes as u64);
        let total = &self.node.totals().subscriptions;
        total.update(&mut self.said.subscriptions, bytes);
    }

    pub(super) fn count_secrets(&mut self) {
        let bytes = self.secrets.bytes();
        self.counters.secret_bytes.set(bytes as u64);
        self.node.totals().secrets.update(&mut self.said.secrets, bytes);
    }

    /// Counts what a connection keeps of its client's bytes, and closes it if there is no room for that.
    pub(super) fn count_input(&mut self, conn: ConnId) {
        let Some(state) = self.conns.get_mut(conn.0) else {
            return;
        };
        let Some(extra) = &mut state.extra else {
            return;
        };
        let (before, now) = (extra.counted, extra.input_bytes());
        extra.counted = now;
        self.input_bytes = self.input_bytes - before + now;
        state.tidy();
        if now > before {
            let limit = self.node.config().max_total_input_bytes;
            // As far as the node knows, it keeps what it kept before.
            let total = &self.node.totals().input;
            if !total.has_room(limit, before, now - before, self.node.admission().open()) {
                self.refuse_input(conn);
            }
        }
        self.say_input();
    }

    pub(super) fn say_input(&mut self) {
        self.counters.input_bytes.set(self.input_bytes as u64);
        self.node.totals().input.update(&mut self.said.input, self.input_bytes);
    }

    /// There is no room for what a client sends.
    pub(super) fn refuse_input(&mut self, conn: ConnId) {
        self.counters.refused_input.add_alone(1);
        match self.conns.get(conn.0).map(|it| it.phase) {
            Some(Phase::Upgrading) => self.end(conn),
            _ => self.close(conn, close_frame(Some(TRY_AGAIN_LATER), "no room for more input")),
        }
    }

    /// The shard is gone, and with it all that it kept.
    pub(super) fn keep_nothing(&mut self) {
        let counters = &self.counters;
        for gauge in [
            &counters.subscriptions,
            &counters.subscription_bytes,
            &counters.secret_bytes,
            &counters.input_bytes,
        ] {
            gauge.set(0);
        }
        let (totals, said) = (self.node.totals(), &mut self.said);
        totals.subscriptions.update(&mut said.subscriptions, 0);
        totals.secrets.update(&mut said.secrets, 0);
        totals.input.update(&mut said.input, 0);
    }

    /// Panics unless everything is counted.
    pub(super) fn assert_counted(&self) {
        let mut input = 0;
        for extra in self.conns.iter().filter_map(|(_, it)| it.extra.as_ref()) {
            assert_eq!(extra.counted, extra.input_bytes());
            input += extra.counted;
        }
        assert_eq!(input, self.input_bytes);
        let said = [self.said.subscriptions, self.said.secrets, self.said.input];
        assert_eq!(said, [self.subscriptions.bytes(), self.secrets.bytes(), input]);
        let counts = self.counters.snapshot();
        assert_eq!(counts.subscriptions, self.subscriptions.len() as u64);
        assert_eq!(counts.connections, self.conns.len() as u64);
    }
}
