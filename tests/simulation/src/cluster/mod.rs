//! [`ClusterWorld`]: several worlds, each with a node, and a bus between them that does its worst.

mod bus;
mod faults;
mod op;
mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use entity_sync_core::Timestamp;
use entity_sync_core::cluster::{
    Cluster, ClusterConfig, ClusterCounts, ClusterInput, ClusterOutput, ClusterSecret, Epoch, NodeId,
};
use fastrand::Rng;

use crate::Simulation;
use crate::entities::{KEYS, Kind, kind_of};
use crate::home::{Home, MAX_AUDIENCES};
use crate::op::{Answer, Op};
use crate::world::{Stats, Trace, World};
use bus::{Bus, Faults, Flying, Origin};
pub use op::ClusterOp;

pub(crate) const MAX_SITES: usize = 4;

/// How finely time passes.
pub(crate) const STEP: Duration = Duration::from_millis(20);

/// Several nodes with their clients, one store, and a bus.
pub struct ClusterWorld {
    sites: Vec<Site>,
    bus: Bus,
    rng: Rng,
    now: Timestamp,
    seed: u64,
    heartbeat: Duration,
    /// A peer may have been lost or restarted since.
    last_death: Timestamp,
    /// A node was restarted with a clock that was behind the one before.
    went_back: bool,
    is_populated: bool,
    has_skewed_clocks: bool,
    /// Reads fail only in some seeds: what they are tried again after would hide what takes too long.
    has_failing_reads: bool,
    by_interest: bool,
    is_signed: bool,
    /// Few, so that keys share them and numbers grow.
    buckets: u32,
    /// Repairs take their time.
    repair_rate: u32,
    restarts: u64,
    /// Times that the tight bound was asserted.
    strict_settles: u64,
    ended: (Stats, ClusterCounts),
    trace: Option<Trace>,
}

/// A node, and what is around it.
struct Site {
    home: Home<Cluster>,
    /// Its process has ended, and none has taken its place. It counts as stopped, too.
    is_dead: bool,
    /// Messages that it has taken as news.
    news: BTreeSet<u64>,
    /// Reads that had failed by the last time that all was settled.
    failures_before: u64,
    /// When it started, by its own clock of day.
    started_ms: u64,
}

impl Deref for Site {
    type Target = Home<Cluster>;

    fn deref(&self) -> &Home<Cluster> {
        &self.home
    }
}

impl DerefMut for Site {
    fn deref_mut(&mut self) -> &mut Home<Cluster> {
        &mut self.home
    }
}

impl Simulation for ClusterWorld {
    type Op = ClusterOp;

    fn of_seed(seed: u64, _: &mut Rng, traced: bool) -> Self {
        Self::new(seed, traced)
    }

    fn random(rng: &mut Rng) -> ClusterOp {
        ClusterOp::random(rng)
    }

    fn apply(&mut self, op: ClusterOp) -> Result<(), String> {
        if self.restarts == self.sites.len() as u64 && !std::mem::replace(&mut self.is_populated, true) {
            for number in 0..self.sites.len() {
                self.sites[number].populate(&mut self.rng)?;
            }
        }
        self.note(|| format!("{op:?}"));
        let site = |number: u8| usize::from(number) % self.sites.len();
        match op {
            ClusterOp::Site { site: number, op } => {
                let number = site(number);
                self.apply_to(number, op)?;
            }
            ClusterOp::Burst {
                site: number,
                key,
                count,
                is_first_lost,
            } => {
                let number = site(number);
                if is_first_lost {
                    self.bus.lose_next(number);
                    let key = key.wrapping_add(1);
                    self.apply_to(number, Op::Notify { key })?;
                    self.pump()?;
                }
                for _ in 0..count {
                    self.apply_to(number, Op::Notify { key })?;
                    self.pump()?;
                }
            }
            ClusterOp::Faults {
                lost,
                repeated,
                delay_ms,
            } => self.bus.set_faults(Faults {
                lost,
                repeated,
                delay: Duration::from_millis(delay_ms.into()),
            }),
            ClusterOp::Cut { a, b } => {
                let (a, b) = (site(a), site(b));
                if a != b {
                    self.bus.cut(a, b);
                }
            }
            ClusterOp::Heal => self.bus.heal(),
            ClusterOp::Disconnect { site: number } => {
                let number = site(number);
                self.set_connected(number, false);
            }
            ClusterOp::Connect { site: number } => {
                let number = site(number);
                self.set_connected(number, true);
            }
            ClusterOp::Stop { site: number } => {
                let number = site(number);
                self.sites[number].is_stopped = true;
            }
            ClusterOp::Continue { site: number } => {
                let number = site(number);
                self.wake_up(number)?;
            }
            ClusterOp::Die { site: number } => {
                let number = site(number);
                self.die(number);
            }
            ClusterOp::Restart {
                site: number,
                is_graceful,
                clock_s,
            } => {
                let number = site(number);
                self.restart(number, is_graceful, clock_s)?;
            }
            ClusterOp::Garbage { site: number, bit } => {
                let number = site(number);
                self.send_garbage(number, bit.into());
            }
            ClusterOp::Replay { site: to, message } => {
                let to = site(to);
                if let Some((number, message)) = self.bus.remembered(message.into()) {
                    // Who never heard a run whose clock was ahead can't know that it is over.
                    self.went_back |= self.has_skewed_clocks;
                    let (from, origin) = (usize::MAX, Origin::Published(number));
                    self.bus.fly(
                        self.now,
                        Flying {
                            from,
                            to,
                            message,
                            origin,
                        },
                    );
                }
            }
        }
        self.pump()
    }

    fn settle(&mut self) -> Result<(), String> {
        self.settle_all()
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

impl ClusterWorld {
    /// As many nodes, and as bad a bus, as the seed says.
    pub fn new(seed: u64, traced: bool) -> Self {
        let mut rng = Rng::with_seed(!seed);
        let mut world = Self {
            sites: Vec::new(),
            bus: Bus::default(),
            now: Timestamp::START + Duration::from_secs(1),
            seed,
            heartbeat: Duration::from_millis(500),
            last_death: Timestamp::START,
            went_back: false,
            is_populated: false,
            has_skewed_clocks: false,
            has_failing_reads: rng.bool(),
            by_interest: rng.u8(..3) == 0,
            is_signed: rng.bool(),
            buckets: [1, 4][rng.usize(..2)],
            repair_rate: [100, 10_000][rng.usize(..2)],
            restarts: 0,
            strict_settles: 0,
            ended: Default::default(),
            trace: traced.then(Trace::default),
            rng,
        };
        if world.by_interest {
            // So many that some are of no interest to some.
            world.buckets *= 4;
        }
        for site in 0..world.rng.usize(2..=MAX_SITES) {
            let shards = world.rng.usize(1..=2);
            let site = world.start(site, shards, 0, Default::default());
            world.sites.push(site);
        }
        world
    }

    fn start(&mut self, number: usize, shards: usize, clock_s: i8, versions: BTreeMap<u8, Vec<Timestamp>>) -> Site {
        self.restarts += 1;
        self.has_skewed_clocks |= clock_s != 0;
        let trace = self.trace.as_ref().map(|it| it.of(&format!("node {number}: ")));
        let seed = self.seed ^ (self.restarts << 32);
        let world = World::in_cluster(seed, shards, trace, versions, self.now);
        let wall_s = 1_000_000i64 + self.now.since(Timestamp::START).as_secs() as i64 + i64::from(clock_s);
        let epoch = Epoch {
            started_ms: wall_s as u64 * 1000,
            nonce: self.restarts,
        };
        let mut config = ClusterConfig::new(NodeId(number as u64 + 1), epoch);
        config.buckets = self.buckets;
        config.heartbeat = self.heartbeat;
        config.by_interest = self.by_interest;
        config.repair_rate = self.repair_rate;
        config.name = format!("node-{number}");
        if self.is_signed {
            config.secret = ClusterSecret::new(b"a secret of sufficient length", "es").ok();
        }
        let joined = Home::new(world, shards, |node, waker| Cluster::new(node, config, self.now, waker));
        let Ok(mut home) = joined else {
            unreachable!("the rules can be followed, and the node is new");
        };
        if self.bus.is_connected(number) {
            home.cluster.handle(self.now, ClusterInput::Connected);
        }
        Site {
            home,
            is_dead: false,
            news: BTreeSet::new(),
            failures_before: 0,
            started_ms: epoch.started_ms,
        }
    }

    /// How often everyone had to have the newest state within the time that is promised, without reads that fail.
    pub fn strict_settles(&self) -> u64 {
        self.strict_settles
    }

    /// Messages and bytes that were given to the bus.
    pub fn traffic(&self) -> (u64, u64) {
        (self.bus.messages, self.bus.bytes)
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
                    for (other, site) in self.sites.iter_mut().enumerate() {
                        if other != number {
                            site.world.changed_elsewhere(self.now, key);
                        }
                    }
                }
                self.sites[number].world.apply(Op::Notify { key })
            }
            Op::Answer { read, .. } if !self.has_failing_reads => {
                let answer = Answer::Rows;
                self.sites[number].world.apply(Op::Answer { read, answer })
            }
            Op::Panic if !self.has_failing_reads => Ok(()),
            op => self.sites[number].world.apply(op),
        }
    }

    /// Time passes for all that are not stopped, in small steps.
    fn advance(&mut self, time: Duration) -> Result<(), String> {
        let until = self.now + time;
        while self.now < until {
            let step = STEP.min(until.since(self.now));
            self.now = self.now + step;
            for site in self.sites.iter_mut().filter(|it| !it.is_stopped) {
                site.world.advance(step);
                site.world.look()?;
            }
            self.pump()?;
        }
        Ok(())
    }

    /// Messages arrive, nodes do what is due, and say what they have to say.
    fn pump(&mut self) -> Result<(), String> {
        loop {
            let sites = &self.sites;
            let mut did = false;
            if let Some(flying) = self.bus.arrive(self.now, |to| !sites[to].is_stopped) {
                did = true;
                self.bring(&flying)?;
            }
            for number in 0..self.sites.len() {
                let site = &mut self.sites[number];
                if site.is_stopped {
                    continue;
                }
                if !did && site.cluster.poll_timeout() <= self.now {
                    did = true;
                    let before = site.cluster.view().counters().repairs.get();
                    site.cluster.handle_timeout(self.now);
                    let begun = site.cluster.view().counters().repairs.get() - before;
                    // With each, perhaps, a look whether the store has settled.
                    site.world.allow_reads(2 * begun);
                    site.flag.raise();
                    site.world.look()?;
                    if site.cluster.poll_timeout() <= self.now {
                        return Err(format!("node {number} asks for a time-out that has been handled"));
                    }
                }
                if site.flag.is_raised() {
                    did = true;
                    self.put_out(number)?;
                }
            }
            if !did {
                return self.check_told();
            }
        }
    }

    /// A message arrives.
    fn bring(&mut self, flying: &Flying) -> Result<(), String> {
        let number = flying.to;
        let site = &mut self.sites[number];
        let before = site.cluster.view().counters().snapshot();
        site.cluster.handle(self.now, ClusterInput::Message(&flying.message));
        let after = site.cluster.view().counters().snapshot();
        site.flag.raise();
        let keys = after.keys - before.keys;
        if keys > 0 && flying.from == number {
            return Err(format!("node {number} takes its own messages for news"));
        }
        if after.restarted_peers > before.restarted_peers {
            // Of a run that comes back, nobody knows any more what had come.
            site.news.clear();
        }
        match flying.origin {
            Origin::Garbage => {
                let rejected = |it: &ClusterCounts| it.forged + it.other_versions + it.malformed;
                if rejected(&after) == rejected(&before) {
                    return Err(format!("node {number} takes garbage for a message"));
                }
            }
            Origin::Published(message) => {
                if keys > 0 && !site.news.insert(message) {
                    return Err(format!("node {number} takes a message for news twice"));
                }
            }
        }
        site.world.allow_reads(keys * MAX_AUDIENCES);
        site.world.look()
    }

    /// Whoever has something to say has told so.
    fn check_told(&mut self) -> Result<(), String> {
        for (number, site) in self.sites.iter_mut().enumerate().filter(|(_, it)| !it.is_stopped) {
            while let Some(output) = site.cluster.poll_output() {
                match output {
                    // There is no hurry.
                    ClusterOutput::Unsubscribe(topic) => self.bus.subscribe(number, topic, false),
                    other => return Err(format!("node {number} has told nobody of {other:?}")),
                }
            }
        }
        Ok(())
    }

    fn put_out(&mut self, number: usize) -> Result<(), String> {
        let site = &mut self.sites[number];
        site.flag.lower();
        while let Some(output) = site.cluster.poll_output() {
            match output {
                ClusterOutput::Publish { topic, message } => {
                    self.bus.publish(self.now, number, topic, message, &mut self.rng);
                }
                ClusterOutput::Subscribe(topic) => self.bus.subscribe(number, topic, true),
                ClusterOutput::Unsubscribe(topic) => self.bus.subscribe(number, topic, false),
            }
        }
        Ok(())
    }

    fn note(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            trace.push(&format!("{:?} {}", self.now, line()));
        }
    }
}
