//! What goes wrong with nodes: connections, stops, deaths, restarts, garbage.

use entity_sync_core::cluster::{ClusterInput, PeerState};

use super::bus::{Flying, Origin};
use super::{ClusterWorld, Site};
use crate::Simulation;

impl ClusterWorld {
    pub(super) fn set_connected(&mut self, number: usize, is_connected: bool) {
        let site = &mut self.sites[number];
        if site.is_stopped || self.bus.is_connected(number) == is_connected {
            return;
        }
        self.bus.set_connected(number, is_connected);
        let input = if is_connected {
            ClusterInput::Connected
        } else {
            ClusterInput::Disconnected
        };
        site.cluster.handle(self.now, input);
        site.flag.raise();
    }

    pub(super) fn wake_up(&mut self, number: usize) -> Result<(), String> {
        match self.sites[number].is_dead {
            true => Ok(()),
            false => self.sites[number].wake_up(self.now),
        }
    }

    /// A node's process ends, with what it has not published. What it said to those who had given it up already, or never
    /// knew it, nobody can tell them unless it comes back: so all others must believe that it lives. And the last one stays.
    pub(super) fn die(&mut self, number: usize) {
        let epoch = self.sites[number].cluster.view().status().identity.map(|it| it.epoch);
        let mut others = (0..)
            .zip(&self.sites)
            .filter(|(other, it)| *other != number && !it.is_dead);
        let lost_after = 6 * self.heartbeat;
        let believes = |(_, other): (usize, &Site)| {
            let status = other.cluster.view().status();
            let mut alive = status.peers.iter().filter(|it| it.state == PeerState::Alive);
            // As of a heartbeat ago.
            alive.any(|it| Some(it.epoch) == epoch && it.heard_ago + self.heartbeat < lost_after)
        };
        if others.clone().count() > 0 && others.all(believes) {
            self.sites[number].is_dead = true;
            self.sites[number].is_stopped = true;
            self.bus.forget(number);
            self.last_death = self.now;
        }
    }

    /// Another process takes a node's place. What the last one has not published is lost with it.
    pub(super) fn restart(&mut self, number: usize, is_graceful: bool, clock_s: i8) -> Result<(), String> {
        if is_graceful && !self.sites[number].is_stopped {
            self.pump()?;
            self.sites[number].cluster.leave();
            self.put_out(number)?;
        } else {
            self.last_death = self.now;
        }
        let before = self.sites[number].started_ms;
        self.bus.forget(number);
        let (shards, versions) = {
            let site = &self.sites[number];
            let ended = (site.world.stats(), site.cluster.view().counters().snapshot());
            self.ended.0 += ended.0;
            self.ended.1 += ended.1;
            (site.shards, site.world.versions().clone())
        };
        self.sites[number] = self.start(number, shards, clock_s, versions);
        if self.sites[number].started_ms <= before {
            // While the others believe that the one before is alive, they take this one for an older run: from the last
            // time that they couldn't hear it, or heard it by a replay.
            self.went_back = true;
        }
        self.sites[number].populate(&mut self.rng)
    }

    pub(super) fn send_garbage(&mut self, to: usize, bit: usize) {
        let message = match self.bus.remembered(bit) {
            // Without a proof, a changed message is as good as any, and may say what nobody said.
            Some((_, message)) if self.is_signed && bit < message.len() * 8 => {
                let mut changed = message.to_vec();
                changed[bit / 8] ^= 1 << (bit % 8);
                changed
            }
            _ => {
                let mut bytes: Vec<u8> = (0..bit % 90).map(|_| self.rng.u8(..)).collect();
                if let Some(version) = bytes.first_mut() {
                    // Nobody makes a good message by chance; of another version it needn't be good.
                    *version = if self.is_signed { 1 } else { 2 };
                }
                bytes
            }
        };
        let flying = Flying {
            from: usize::MAX,
            to,
            message: message.into(),
            origin: Origin::Garbage,
        };
        self.bus.fly(self.now, flying);
    }
}
