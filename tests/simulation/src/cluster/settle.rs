//! What must be so some time after all faults have stopped.

use std::time::Duration;

use entity_sync_core::cluster::PeerState;

use super::bus::Faults;
use super::{ClusterWorld, STEP, Site};

impl ClusterWorld {
    /// Lets all faults stop, and asserts that everyone has the newest state of everything within the time that is promised.
    pub(super) fn settle_all(&mut self) -> Result<(), String> {
        self.note(|| "settle".to_owned());
        self.bus.heal();
        self.bus.set_faults(Faults::default());
        for number in 0..self.sites.len() {
            self.wake_up(number)?;
            self.set_connected(number, true);
            self.sites[number].world.begin_settling();
        }
        let lost_after = 6 * self.heartbeat;
        let mut bound = 2 * self.heartbeat + Duration::from_millis(600);
        let went_back = std::mem::take(&mut self.went_back);
        // Who could not hear for a while grants everyone time anew, the dead too.
        let has_dead = self.sites.iter().any(|it| it.is_dead);
        if went_back || has_dead || self.now.since(self.last_death) < lost_after + self.heartbeat {
            bound += lost_after + self.heartbeat;
        }
        let mut has_failed = false;
        for site in &mut self.sites {
            has_failed |= site.has_failed();
        }
        if has_failed {
            // Some may be in the longest backoff, and what they lead to too.
            bound += Duration::from_secs(65);
        } else {
            self.strict_settles += 1;
        }
        // What was on its way may take so long.
        bound += Duration::from_millis(700);
        let until = self.now + bound;
        while self.now < until {
            self.settle_round()?;
            self.advance(STEP)?;
        }
        self.settle_round()?;
        self.note_peers();
        for (number, site) in self.sites.iter_mut().enumerate().filter(|(_, it)| !it.is_dead) {
            site.world.end_settling();
            let result = site.world.check_convergence();
            result.map_err(|what| format!("G5: node {number}, {bound:?} after all faults: {what}"))?;
        }
        self.check_peers()
    }

    fn settle_round(&mut self) -> Result<(), String> {
        for _ in 0..2000 {
            let mut is_idle = true;
            for site in self.sites.iter_mut().filter(|it| !it.is_dead) {
                is_idle &= site.world.settle_round()? && !site.world.wants_poll();
            }
            self.pump()?;
            if is_idle {
                return Ok(());
            }
        }
        Err("G1: it never comes to rest".to_owned())
    }

    /// Everyone knows everyone, and misses nothing.
    fn check_peers(&self) -> Result<(), String> {
        let alive = self.sites.iter().filter(|it| !it.is_dead).count();
        for (number, site) in self.sites.iter().enumerate().filter(|(_, it)| !it.is_dead) {
            let status = site.cluster.view().status();
            let known = status.peers.iter().filter(|it| it.state == PeerState::Alive);
            if known.count() + 1 != alive {
                return Err(format!("G5: node {number} knows only of {:?}", status.peers));
            }
            let mut alive = status.peers.iter().filter(|it| it.state == PeerState::Alive);
            if let Some(peer) = alive.find(|it| it.missing > 0) {
                return Err(format!("G5: node {number} still misses messages: {peer:?}"));
            }
        }
        Ok(())
    }

    /// What each node knows of the others, for a trace.
    fn note_peers(&self) {
        for (number, site) in self.sites.iter().enumerate() {
            let status = site.cluster.view().status();
            self.note(|| {
                format!(
                    "node {number} knows {:?} and has counted {:?}",
                    status.peers, status.counts
                )
            });
        }
    }
}

impl Site {
    /// Whether reads have failed or taken too long since this was asked last.
    fn has_failed(&mut self) -> bool {
        let counters = self.home.world.node().counters();
        let failures = counters.failed_reads.get() + counters.timed_out_reads.get();
        std::mem::replace(&mut self.failures_before, failures) != failures
    }
}
