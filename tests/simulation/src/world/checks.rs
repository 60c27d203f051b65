//! What must be so, after every step and at rest.

use entity_sync_core::ConnId;

use super::{MAX_CONTROL_BYTES, MAX_GROUP_BYTES, MAX_OUTBOX_BYTES, World};
use crate::entities::{Kind, kind_of};
use crate::store::row_count;

impl World {
    /// G4: a client is thrown out for being dead or by its own doing, never for being slow.
    pub(super) fn close(&mut self, shard: usize, conn: ConnId) {
        let Some(index) = self.clients.iter().position(|it| (it.shard, it.conn) == (shard, conn)) else {
            return self.fail(format!("{conn:?} is closed twice"));
        };
        let client = self.clients.swap_remove(index);
        let is_dead = self.now.since(client.last_alive) >= self.config.dead_after;
        let fallen_behind = self.machine.counters().fallen_behind;
        if client.is_well() && is_dead && self.fallen_behind == fallen_behind {
            return self.fail(format!("G4: {conn:?} answers, and is taken for dead"));
        }
        if !client.is_ending && !client.is_broken && !is_dead {
            // It may have fallen behind with what can't be skipped, and not have read the close frame.
            self.fallen_behind += 1;
            if self.fallen_behind > fallen_behind {
                self.fail(format!("G4: {conn:?} is thrown out for nothing"));
            }
        }
    }

    pub(super) fn check(&mut self) -> Result<(), String> {
        self.machine.check();
        for client in &self.clients {
            // A client that has ended is known to the machine no more, until its driver polls.
            let Some((rows, control)) = self.machine.queued_bytes(client.shard, client.conn) else {
                continue;
            };
            if rows > MAX_OUTBOX_BYTES.max(MAX_GROUP_BYTES) || control > MAX_CONTROL_BYTES {
                return Err(format!(
                    "G4: {:?} has {rows} bytes of rows and {control} of control frames queued",
                    client.conn
                ));
            }
        }
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// G1: everyone has a state that was read after the last notify.
    pub(crate) fn check_convergence(&mut self) -> Result<(), String> {
        for client in self.clients.iter().filter(|it| !it.is_ending && !it.is_broken) {
            if self.machine.queued_bytes(client.shard, client.conn).is_none() {
                // It has ended and its driver is about to hear of it.
                continue;
            }
            // Coming to rest alone takes longer than the window in which it changed its secret too often.
            if !self.is_clustered && self.machine.is_paused(client.shard, client.conn) {
                return Err(format!("G4: {:?} is never read from again", client.conn));
            }
            for (&key, &due) in client.due.iter().chain(&client.reread) {
                let newest = self.store.version(key);
                if row_count(key, newest) == 0 {
                    // The newest state has no rows to be seen.
                    continue;
                }
                let has_it = match kind_of(key) {
                    // What is the same as before is not sent again.
                    _ if self.is_clustered => client.version.get(&key) == Some(&newest),
                    Kind::Settling => client.version.get(&key) == Some(&newest),
                    _ => client.seen.get(&key).is_some_and(|&seen| seen >= due),
                };
                if !has_it {
                    return Err(format!(
                        "G1: {:?} has of key {key} what was read at {:?}, and is due what was read after {due}",
                        client.conn,
                        client.seen.get(&key)
                    ));
                }
                self.stats.converged += 1;
            }
            if let Some((key, owed)) = client.pushes.iter().find(|(_, owed)| **owed > 0) {
                return Err(format!("{:?} is owed {owed} more pushes of key {key}", client.conn));
            }
            let (sent, came) = client.messages;
            if sent != came {
                return Err(format!("{:?} is sent {sent} messages, and {came} come", client.conn));
            }
            let queued = self.machine.queued_bytes(client.shard, client.conn);
            if queued.is_some_and(|queued| queued != (0, 0)) {
                return Err(format!("G1: {:?} still has {queued:?} queued", client.conn));
            }
        }
        Ok(())
    }
}
