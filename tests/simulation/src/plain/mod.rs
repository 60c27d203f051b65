//! [`PlainWorld`]: several worlds, each with a node, and a plain queue between them.

mod op;
mod queue;

use std::collections::BTreeMap;
use std::time::Duration;

use entity_sync_core::Timestamp;
use entity_sync_core::cluster::{ClusterCounts, PlainCluster, PlainConfig, PlainInput, PlainOutput};
use fastrand::Rng;

use crate::Simulation;
use crate::cluster::{MAX_SITES, STEP};
use crate::entities::{KEYS, Kind, key_of, kind_of};
use crate::home::{Home, MAX_AUDIENCES};
use crate::op::Op;
use crate::world::{Stats, Trace, World};
pub use op::PlainOp;
use queue::{Faults, Parcel, Queue};

/// Long enough for the queue to bring back what it does, unless it is slow.
const ECHO_WITHIN: Duration = Duration::from_secs(1);

/// A minute until the node of the original is back, and what the others leave it besides.
const LATECOMERS: Duration = Duration::from_secs(65 + 5 + 10 + 5);

/// Several nodes with their clients, one store, and a queue.
pub struct PlainWorld {
    sites: Vec<Site>,
    queue: Queue,
    rng: Rng,
    now: Timestamp,
    seed: u64,
    restarts: u64,
    is_populated: bool,
    repair_rate: u32,
    ended: (Stats, ClusterCounts),
    /// When the queue was restarted last.
    restarted: Option<Timestamp>,
    /// A node was started after that.
    has_newcomer: bool,
    /// What has changed since all was settled, and whether a node of the original has published it.
    changes: BTreeMap<u8, (Timestamp, bool)>,
    trace: Option<Trace>,
}

/// A node, and what is around it.
type Site = Home<PlainCluster>;

impl Simulation for PlainWorld {
    type Op = PlainOp;

    fn of_seed(seed: u64, _: &mut Rng, traced: bool) -> Self {
        Self::new(seed, traced)
    }

    fn random(rng: &mut Rng) -> PlainOp {
        PlainOp::random(rng)
    }

    fn apply(&mut self, op: PlainOp) -> Result<(), String> {
        if !std::mem::replace(&mut self.is_populated, true) {
            for number in 0..self.sites.len() {
                self.sites[number].populate(&mut self.rng)?;
            }
        }
        self.note(|| format!("{op:?}"));
        let site = |number: u8| usize::from(number) % self.sites.len();
        match op {
            PlainOp::Site { site: number, op } => {
                let number = site(number);
                self.apply_to(number, op)?;
            }
            PlainOp::Faults {
                lost,
                unanswered,
                repeated,
                swallowed,
                room,
                delay_ms,
            } => self.queue.set_faults(Faults {
                swallowed,
                room: room.into(),
                lost,
                unanswered,
                repeated,
                delay: Duration::from_millis(delay_ms.into()),
            }),
            PlainOp::RestartQueue => {
                self.queue.restart(self.now, self.sites.len(), &mut self.rng);
                self.restarted = Some(self.now);
                self.has_newcomer = false;
                self.lose_messages();
                self.sites.iter_mut().for_each(|it| it.world.lose_count());
            }
            PlainOp::PublishAsOriginal { key } => {
                let key = key % KEYS;
                if kind_of(key) != Kind::Unknown {
                    self.note_change(key, true);
                    for site in &mut self.sites {
                        site.world.changed_elsewhere(self.now, key);
                    }
                    let sites = self.sites.len();
                    (self.queue).publish_as_original(self.now, &body_of(key), sites, &mut self.rng);
                }
            }
            PlainOp::Disconnect { site: number } => {
                let number = site(number);
                self.queue.disconnect(self.now, number, &mut self.rng);
                self.lose_messages();
                // What the queue had for it is made good for, but not how often.
                self.sites[number].world.lose_count();
            }
            PlainOp::Connect { site: number } => {
                let number = site(number);
                self.connect(number)?;
            }
            PlainOp::Stop { site: number } => {
                let number = site(number);
                self.sites[number].is_stopped = true;
            }
            PlainOp::Continue { site: number } => {
                let number = site(number);
                self.sites[number].wake_up(self.now)?;
            }
            PlainOp::Restart { site: number } => {
                let number = site(number);
                self.restart(number)?;
            }
            PlainOp::Overflow { site: number } => {
                let number = site(number);
                if !self.sites[number].is_stopped && self.queue.overflow(number) {
                    self.sites[number].world.lose_count();
                    self.lose_messages();
                    self.handle(number, PlainInput::Missed)?;
                }
            }
            PlainOp::Garbage { site: number, bytes } => {
                let number = site(number);
                if !self.sites[number].is_stopped {
                    let before = self.sites[number].cluster.view().counters().malformed.get();
                    // No JSON begins with these.
                    let garbage: Vec<u8> = (0..bytes).map(|_| self.rng.u8(b'}'..)).collect();
                    self.handle(number, PlainInput::Message(&garbage))?;
                    if self.sites[number].cluster.view().counters().malformed.get() == before {
                        return Err(format!("node {number} takes garbage for a message"));
                    }
                }
            }
        }
        self.pump()
    }

    fn settle(&mut self) -> Result<(), String> {
        self.note(|| "settle".to_owned());
        self.queue.set_faults(Faults::default());
        for number in 0..self.sites.len() {
            self.sites[number].wake_up(self.now)?;
            self.connect(number)?;
            self.sites[number].world.begin_settling();
        }
        // What is on its way, the longest pause of the queue, the time to confirm, and repairs; and the longest backoff of
        // reads that have failed.
        let mut bound = Duration::from_millis(3_000 + 2_000 + 2_000 + 600 + 700);
        let has_failed = |site: &Site| {
            let counters = site.world.node().counters();
            counters.failed_reads.get() + counters.timed_out_reads.get() > 0
        };
        if self.sites.iter().any(has_failed) {
            bound += Duration::from_secs(65);
        }
        // What has not come back several times, and a process that was stopped and judges nothing at first.
        if self.sites.iter().any(|it| it.cluster.unechoed() > 0) {
            bound += 16 * ECHO_WITHIN + Duration::from_secs(5);
        }
        if self.restarted.is_some() {
            bound += LATECOMERS;
        }
        let until = self.now + bound;
        while self.now < until {
            self.settle_round()?;
            self.advance(STEP)?;
        }
        self.settle_round()?;
        for (number, site) in self.sites.iter_mut().enumerate() {
            site.world.end_settling();
            let result = site.world.check_convergence();
            result.map_err(|what| format!("node {number}, {bound:?} after all faults: {what}"))?;
            if site.cluster.has_unsent() {
                return Err(format!("node {number} still has something to tell"));
            }
        }
        for (key, (changed, _)) in std::mem::take(&mut self.changes) {
            if !self.queue.original.has_heard(&body_of(key), changed) {
                return Err(format!(
                    "the node of the original has not heard of key {key} since {changed:?}; the queue was restarted at {:?}",
                    self.restarted
                ));
            }
        }
        self.restarted = None;
        self.has_newcomer = false;
        Ok(())
    }

    fn stats(&self) -> Stats {
        let mut stats = self.ended.0;
        for site in &self.sites {
            stats += site.world.stats();
        }
        stats
    }

    fn counts(&self) -> ClusterCounts {
        let mut counts = self.ended.1;
        for site in &self.sites {
            counts += site.cluster.view().counters().snapshot();
        }
        counts
    }

    fn trace(&self) -> Vec<String> {
        self.trace.as_ref().map(Trace::lines).unwrap_or_default()
    }
}

fn body_of(key: u8) -> Vec<u8> {
    let key = key_of(key);
    format!(r#"{{"entity":"{}","id":"{}"}}"#, key.entity(), key.id()).into_bytes()
}

impl PlainWorld {
    /// As many nodes, and as bad a queue, as the seed says.
    pub fn new(seed: u64, traced: bool) -> Self {
        let mut rng = Rng::with_seed(!seed);
        let mut world = Self {
            sites: Vec::new(),
            queue: Queue::default(),
            now: Timestamp::START + Duration::from_secs(1),
            seed,
            restarts: 0,
            is_populated: false,
            repair_rate: [100, 10_000][rng.usize(..2)],
            ended: Default::default(),
            restarted: None,
            has_newcomer: false,
            changes: BTreeMap::new(),
            trace: traced.then(Trace::default),
            rng,
        };
        for number in 0..world.rng.usize(1..=MAX_SITES) {
            let shards = world.rng.usize(1..=2);
            let site = world.start(number, shards, Default::default());
            world.sites.push(site);
        }
        world
    }

    fn start(&mut self, number: usize, shards: usize, versions: BTreeMap<u8, Vec<Timestamp>>) -> Site {
        self.restarts += 1;
        let trace = self.trace.as_ref().map(|it| it.of(&format!("node {number}: ")));
        let seed = self.seed ^ (self.restarts << 32);
        let world = World::in_cluster(seed, shards, trace, versions, self.now);
        let mut config = PlainConfig::default();
        config.repair_rate = self.repair_rate;
        config.echo_within = ECHO_WITHIN;
        let joined = Home::new(world, shards, |node, waker| {
            PlainCluster::new(node, config, self.now, waker)
        });
        let Ok(mut site) = joined else {
            unreachable!("the rules can be followed, and the node is new");
        };
        if self.queue.is_connected(number) {
            site.cluster.handle(self.now, PlainInput::Connected);
        }
        site
    }

    fn apply_to(&mut self, number: usize, op: Op) -> Result<(), String> {
        if self.sites[number].is_stopped {
            return Ok(());
        }
        match op {
            Op::Advance { ms } => self.advance(Duration::from_millis(ms.into())),
            Op::Freeze { seconds } => {
                self.sites[number].is_stopped = true;
                self.advance(Duration::from_secs(u64::from(seconds % 8)))?;
                self.sites[number].wake_up(self.now)
            }
            Op::Settle => self.settle(),
            Op::Notify { key } => {
                let key = key % KEYS;
                if kind_of(key) != Kind::Unknown {
                    self.note_change(key, false);
                    for (other, site) in self.sites.iter_mut().enumerate() {
                        if other != number {
                            site.world.changed_elsewhere(self.now, key);
                        }
                    }
                }
                self.sites[number].world.apply(Op::Notify { key })
            }
            op => self.sites[number].world.apply(op),
        }
    }

    fn handle(&mut self, number: usize, input: PlainInput<'_>) -> Result<(), String> {
        let site = &mut self.sites[number];
        let is_message = matches!(input, PlainInput::Message(_));
        let before = site.cluster.view().counters().snapshot();
        site.cluster.handle(self.now, input);
        let after = site.cluster.view().counters().snapshot();
        let heard = after.keys - before.keys + after.unconfirmed - before.unconfirmed;
        // When the connection is lost, what waits is applied at once.
        let applied = if is_message { 0 } else { u64::from(KEYS) };
        site.world.allow_reads((heard + applied) * MAX_AUDIENCES);
        site.flag.raise();
        site.world.look()
    }

    fn connect(&mut self, number: usize) -> Result<(), String> {
        if self.sites[number].is_stopped || self.queue.is_connected(number) {
            return Ok(());
        }
        if self.queue.connect(self.now, number, &mut self.rng) {
            self.handle(number, PlainInput::Disconnected)?;
        }
        self.handle(number, PlainInput::Connected)
    }

    /// Another process takes a node's place. What the queue does not have would be lost with it: this is what these queues
    /// don't promise.
    fn restart(&mut self, number: usize) -> Result<(), String> {
        self.pump()?;
        let site = &self.sites[number];
        let has_unsent = site.cluster.has_unsent() || site.cluster.unechoed() > 0;
        if site.is_stopped || !self.queue.is_connected(number) || has_unsent {
            return Ok(());
        }
        // It would have told the original of these.
        if self.restarted.is_some() {
            self.changes.clear();
            self.has_newcomer = true;
        }
        self.queue.forget(number);
        self.ended.0 += site.world.stats();
        self.ended.1 += site.cluster.view().counters().snapshot();
        let (shards, versions) = (site.shards, site.world.versions().clone());
        self.sites[number] = self.start(number, shards, versions);
        self.sites[number].populate(&mut self.rng)
    }

    /// Time passes for all that are not stopped, in small steps.
    fn advance(&mut self, time: Duration) -> Result<(), String> {
        let until = self.now + time;
        while self.now < until {
            let step = STEP.min(until.since(self.now));
            self.now = self.now + step;
            self.queue.look_for_original(self.now);
            for site in self.sites.iter_mut().filter(|it| !it.is_stopped) {
                site.world.advance(step);
                site.world.look()?;
            }
            self.pump()?;
        }
        Ok(())
    }

    /// Parcels arrive, nodes do what is due, and say what they have to say.
    fn pump(&mut self) -> Result<(), String> {
        loop {
            let sites = &self.sites;
            let mut did = false;
            if let Some((number, parcel)) = self.queue.arrive(self.now, |to| !sites[to].is_stopped) {
                did = true;
                match parcel {
                    Parcel::Message(body) => self.handle(number, PlainInput::Message(&body))?,
                    Parcel::Receipt(number_of, outcome) => {
                        let number_of = PlainInput::Receipt {
                            number: number_of,
                            outcome,
                        };
                        self.handle(number, number_of)?;
                    }
                    Parcel::Gone => self.handle(number, PlainInput::Disconnected)?,
                }
            }
            for number in 0..self.sites.len() {
                if self.sites[number].is_stopped {
                    continue;
                }
                if !did && self.is_due(number) {
                    did = true;
                    self.handle_timeout(number)?;
                }
                if self.sites[number].flag.is_raised() {
                    did = true;
                    self.put_out(number)?;
                }
            }
            if !did {
                return self.check_told();
            }
        }
    }

    fn is_due(&self, number: usize) -> bool {
        let timeout = self.sites[number].cluster.poll_timeout();
        timeout.is_some_and(|at| at <= self.now)
    }

    fn handle_timeout(&mut self, number: usize) -> Result<(), String> {
        let site = &mut self.sites[number];
        let counts = |site: &Site| {
            let counters = site.cluster.view().counters();
            let applied = counters.unconfirmed.get() + counters.unechoed.get();
            (counters.repairs.get(), applied)
        };
        let before = counts(site);
        site.cluster.handle_timeout(self.now);
        let after = counts(site);
        // With each repair, perhaps, a look whether the store has settled.
        let reads = 2 * (after.0 - before.0) + MAX_AUDIENCES * (after.1 - before.1);
        site.world.allow_reads(reads);
        site.flag.raise();
        site.world.look()?;
        match self.is_due(number) {
            true => Err(format!("node {number} asks for a time-out that has been handled")),
            false => Ok(()),
        }
    }

    /// Whoever has something to say has told so.
    fn check_told(&mut self) -> Result<(), String> {
        for (number, site) in self.sites.iter_mut().enumerate().filter(|(_, it)| !it.is_stopped) {
            if let Some(output) = site.cluster.poll_output(self.now) {
                return Err(format!("node {number} has told nobody of {output:?}"));
            }
        }
        Ok(())
    }

    fn put_out(&mut self, number: usize) -> Result<(), String> {
        let sites = self.sites.len();
        let site = &mut self.sites[number];
        site.flag.lower();
        while let Some(PlainOutput::Publish { number: of, body, .. }) = site.cluster.poll_output(self.now) {
            (self.queue).publish(self.now, number, of, body, sites, &mut self.rng);
        }
        // What was notified while it was not connected is applied as it is taken.
        site.world.look()
    }

    fn settle_round(&mut self) -> Result<(), String> {
        for _ in 0..2000 {
            let mut is_idle = true;
            for site in &mut self.sites {
                is_idle &= site.world.settle_round()? && !site.world.wants_poll();
            }
            self.pump()?;
            if is_idle {
                return Ok(());
            }
        }
        Err("G1: it never comes to rest".to_owned())
    }

    /// The node of the original is to hear of it.
    fn note_change(&mut self, key: u8, by_original: bool) {
        // Who has started since the queue did can't know that others are on their way back.
        if self.has_newcomer {
            self.changes.remove(&key);
        } else {
            self.changes.insert(key, (self.now, by_original));
        }
    }

    /// What was on its way to a node is gone. Of what the original has published nobody knows any more which keys it was.
    fn lose_messages(&mut self) {
        self.changes.retain(|_, (_, by_original)| !*by_original);
    }

    fn note(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            trace.push(&format!("{:?} {}", self.now, line()));
        }
    }
}
