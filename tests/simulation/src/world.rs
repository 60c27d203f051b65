//! [`World`]: a machine, its clients and its application on one clock. Applies [`Op`]s and asserts the guarantees.

mod application;
mod checks;
mod clients;
mod elsewhere;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use entity_sync_core::{ClientId, Config, ConnId, Output, Seed, Sent, Timestamp};
use fastrand::Rng;

use crate::Simulation;
use crate::client::Client;
use crate::entities::{KEYS, entities};
use crate::machine::Machine;
use crate::op::{Answer, Op};
use crate::store::{Name, Store, Tick};
use crate::wire;

const SECRETS: u8 = 3;
const MAX_CLIENTS: usize = 12;
const MAX_CONNECTIONS: usize = 11;
const MAX_OUTBOX_BYTES: usize = 2_000;
/// The longest group that [`rows`] makes: three rows.
const MAX_GROUP_BYTES: usize = 3 * 320 + 500;
const MAX_CONTROL_BYTES: usize = 16 * 1024 + 2_000;

/// A machine, its clients and its application.
pub struct World {
    machine: Machine,
    config: Config,
    clients: Vec<Client>,
    store: Store,
    rng: Rng,
    now: Timestamp,
    tick: Tick,
    /// Reads that may begin, by name: something has happened since the last one began that makes another necessary. More
    /// than one only where every notify counts.
    causes: BTreeMap<Name, u32>,
    /// Those of a burst that is being said.
    burst_causes: Option<BTreeSet<Name>>,
    /// Reads that began without such a cause; dirty marks pay for them.
    targeted: u64,
    /// When each running read began, by name.
    running: BTreeMap<Name, (Tick, Timestamp)>,
    /// What was passed to the application, and is to be looked at.
    passed: Arc<Mutex<Vec<Passed>>>,
    /// Connections that ended because they fell behind, as far as the simulation has seen.
    fallen_behind: u64,
    /// Faults have stopped.
    is_settling: bool,
    /// The process has stood still at least once.
    was_frozen: bool,
    /// Shards whose drivers have not finished the turn in which the process stood still.
    interrupted: BTreeSet<usize>,
    failure: Option<String>,
    trace: Option<Trace>,
    stats: Stats,
    /// Reads that a cluster may have caused, and that no notify of this node did.
    from_elsewhere: u64,
    /// Rows say when they were read.
    has_ticks: bool,
    is_clustered: bool,
}

/// What was done, by one world or by several that share it.
#[derive(Clone, Default)]
pub(crate) struct Trace {
    lines: Rc<RefCell<Vec<String>>>,
    of: String,
}

impl Trace {
    pub(crate) fn of(&self, whom: &str) -> Self {
        Self {
            lines: self.lines.clone(),
            of: whom.to_owned(),
        }
    }

    pub(crate) fn push(&self, line: &str) {
        self.lines.borrow_mut().push(format!("{}{line}", self.of));
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.borrow().clone()
    }
}

/// Who said what to the application, and with which secret.
type Passed = (ClientId, String, Vec<u8>);

/// What happened in a simulation, to see that it isn't an empty one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Operations applied.
    pub steps: u64,
    /// Reads begun.
    pub reads: u64,
    /// Groups delivered.
    pub deliveries: u64,
    /// Groups replaced while queued.
    pub conflated: u64,
    /// Groups withheld from full outboxes.
    pub dirty_marks: u64,
    /// Last states that clients were owed at the end, and had.
    pub converged: u64,
    /// Reads that had to wait for others of their entity.
    pub queued_reads: u64,
    /// Looks whether a store has settled that found nothing new.
    pub silent_unchanged: u64,
    /// Messages that the application sent.
    pub sent_messages: u64,
    /// Messages that clients sent the application.
    pub passed_messages: u64,
    /// Connections that fell behind.
    pub fallen_behind: u64,
}

impl Simulation for World {
    type Op = Op;

    fn of_seed(seed: u64, rng: &mut Rng, traced: bool) -> Self {
        // A core, one shard, two, or three.
        Self::new(seed, rng.usize(..4), traced)
    }

    fn random(rng: &mut Rng) -> Op {
        Op::random(rng)
    }

    fn apply(&mut self, op: Op) -> Result<(), String> {
        self.stats.steps += 1;
        self.note(|tick| format!("{tick}: {op:?}"));
        match op {
            Op::Connect {
                shard,
                driver,
                snapshots,
            } => self.connect(shard, driver, snapshots),
            Op::Subscribe { client, key } => self.subscribe(client, key % KEYS),
            Op::Unsubscribe { client, key } => self.unsubscribe(client, key % KEYS),
            Op::Secret { client, secret } => self.change_secret(client, secret % SECRETS),
            Op::Burst { client, sayings } => self.burst(client, &sayings),
            Op::Ping { client } => self.say(client, &mut wire::ping()),
            Op::Nonsense { client } => self.say(client, &mut wire::text("{nonsense")),
            Op::Violate { client } => self.say_last(client, &mut [0xff, 0x00]),
            Op::Close { client } => self.say_last(client, &mut wire::close()),
            Op::Vanish { client } => self.vanish(client),
            Op::Break { client } => {
                if let Some(index) = self.pick(client) {
                    self.clients[index].is_broken = true;
                }
            }
            Op::Drain { client, bytes } => self.drain(client, usize::from(bytes)),
            Op::Complete { client, bytes } => self.complete(client, usize::from(bytes)),
            Op::Pass { client } => self.pass(client),
            Op::Send { client, bytes } => self.send(client, 2 * usize::from(bytes)),
            Op::Reread { target } => self.reread(target),
            Op::Dismiss { target } => self.dismiss(target),
            Op::Disconnect { target } => self.disconnect(target),
            // A core hands out its reads without a resolver.
            Op::Panic => self.machine.panic_next(!self.machine.is_core()),
            Op::Notify { key } => self.notify(key % KEYS),
            Op::Answer { read, answer } => self.answer(read, answer),
            Op::Poll { shard, outputs } => {
                let shard = usize::from(shard) % self.machine.shards();
                self.poll(shard, u32::from(outputs));
            }
            Op::Advance { ms } => self.advance(Duration::from_millis(ms.into())),
            Op::Freeze { seconds } => self.freeze(Duration::from_secs(seconds.into())),
            Op::Settle => return self.settle(),
        }
        if self.machine.is_core() {
            // A core's reads come as outputs. The oracle has to hear of them when they begin.
            self.poll(0, u32::MAX);
        }
        if self.machine.node().has_waiting_reads() {
            // These have begun, and the oracle has to hear of them when they do.
            self.poll(0, u32::MAX);
        }
        self.look_at_requests();
        self.answer_pings();
        self.check()
    }

    fn settle(&mut self) -> Result<(), String> {
        self.note(|tick| format!("{tick}: settle"));
        self.begin_settling();
        // The longest backoff is 30 s, and each round that finds nothing to do is worth 5.
        let mut idle_rounds = 0;
        for _ in 0..2000 {
            let is_idle = self.settle_round()?;
            if self.wants_poll() {
                continue;
            }
            if is_idle {
                idle_rounds += 1;
                if idle_rounds > 8 {
                    self.end_settling();
                    return self.check_convergence();
                }
                self.advance(Duration::from_secs(5));
            } else {
                idle_rounds = 0;
            }
        }
        Err("G1: it never comes to rest".to_owned())
    }

    fn stats(&self) -> Stats {
        let counters = self.machine.counters();
        Stats {
            reads: self.machine.reads(),
            deliveries: counters.deliveries,
            conflated: counters.conflated,
            dirty_marks: counters.dirty_marks,
            queued_reads: self.machine.node().counters().queued_reads.get(),
            silent_unchanged: self.machine.node().counters().silent_unchanged.get(),
            sent_messages: counters.sent_messages,
            passed_messages: counters.passed_messages,
            fallen_behind: counters.fallen_behind,
            ..self.stats
        }
    }

    fn trace(&self) -> Vec<String> {
        self.trace.as_ref().map(Trace::lines).unwrap_or_default()
    }
}

impl World {
    /// A machine of one `Core` for 0 shards, else of that many shards of one node. `seed` is for what ops leave open.
    pub fn new(seed: u64, shards: usize, traced: bool) -> Self {
        let mut config = Config::new(Seed(seed, !seed));
        config.max_outbox_bytes = MAX_OUTBOX_BYTES;
        config.max_subscriptions = 5;
        config.broadcast_budget = 1 + (seed % 3) as usize;
        config.max_connections = MAX_CONNECTIONS;
        // With a limit, a client may be paused within a burst, and the simulation would not know where.
        config.max_secret_changes = [0, 3][(seed / 3 % 2) as usize];
        config.entities = entities(seed);
        let passed = Arc::<Mutex<Vec<Passed>>>::default();
        let of_handler = passed.clone();
        config.on_message = Some(Arc::new(move |it| {
            let said = (it.id(), it.secret().to_owned(), it.payload().as_bytes().to_vec());
            of_handler.lock().unwrap_or_else(PoisonError::into_inner).push(said);
        }));
        Self {
            machine: Machine::new(config.clone(), shards),
            config,
            clients: Vec::new(),
            store: Store::default(),
            rng: Rng::with_seed(seed),
            now: Timestamp::START,
            tick: 0,
            causes: BTreeMap::new(),
            burst_causes: None,
            targeted: 0,
            running: BTreeMap::new(),
            passed,
            fallen_behind: 0,
            is_settling: false,
            was_frozen: false,
            interrupted: BTreeSet::new(),
            failure: None,
            trace: traced.then(Trace::default),
            stats: Stats::default(),
            from_elsewhere: 0,
            has_ticks: true,
            is_clustered: false,
        }
    }

    pub(crate) fn begin_settling(&mut self) {
        self.is_settling = true;
        self.machine.panic_next(false);
    }

    pub(crate) fn end_settling(&mut self) {
        self.is_settling = false;
        for client in &mut self.clients {
            client.room = self.rng.usize(..1500);
        }
    }

    pub(crate) fn wants_poll(&self) -> bool {
        (0..self.machine.shards()).any(|shard| self.machine.wants_poll(shard))
    }

    /// Everyone does what there is to do. Says whether there was nothing.
    pub(crate) fn settle_round(&mut self) -> Result<bool, String> {
        let mut is_idle = true;
        for shard in 0..self.machine.shards() {
            self.poll(shard, 10_000);
            self.look_at_requests();
        }
        while !self.store.reads.is_empty() {
            is_idle = false;
            self.answer(0, Answer::Rows);
            self.look_at_requests();
        }
        for index in 0..self.clients.len() {
            let number = index as u8;
            if self.clients[index].taken.is_some() {
                is_idle = false;
                self.complete(number, usize::MAX);
            }
            if self.clients[index].room < 100_000 {
                self.drain(number, 1_000_000);
            }
            if self.clients[index].pings > 0 {
                self.clients[index].pings = 0;
                self.say(number, &mut wire::pong());
            }
        }
        self.check()?;
        Ok(is_idle)
    }

    /// Time passes, and drivers come when they are asked to.
    pub(crate) fn advance(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let next = (0..self.machine.shards()).filter_map(|shard| self.machine.poll_timeout(shard));
            let Some(next) = next.min().filter(|&at| self.now < at && at < until) else {
                break;
            };
            self.pass_until(next);
            for shard in 0..self.machine.shards() {
                self.poll(shard, 50);
            }
            self.look_at_requests();
            self.answer_pings();
        }
        self.pass_until(until);
    }

    /// Time passes, and nobody looks.
    pub(crate) fn freeze(&mut self, time: Duration) {
        self.was_frozen = true;
        // A driver is stopped in the middle of a turn, but finishes that one before it is stopped in another.
        for shard in std::mem::take(&mut self.interrupted) {
            self.poll(shard, u32::MAX);
        }
        self.answer_pings();
        self.pass_until(self.now + time);
        self.interrupted = (0..self.machine.shards()).collect();
    }

    fn pass_until(&mut self, now: Timestamp) {
        self.now = now;
        for shard in 0..self.machine.shards() {
            // The first shard hears of the time whenever it passes: from it, the node knows when a reply is dropped.
            if shard > 0 && self.machine.poll_timeout(shard).is_none_or(|at| at > self.now) {
                continue;
            }
            // It may also be asked for because there is work left.
            let has_rested = !self.machine.wants_poll(shard);
            let before = self.machine.node().counters().timed_out_reads.get();
            self.machine.handle_timeout(shard, self.now);
            self.give_up_reads(self.machine.node().counters().timed_out_reads.get() - before);
            if has_rested && self.machine.poll_timeout(shard).is_some_and(|at| at <= self.now) {
                self.fail("a time-out is asked for that has been handled".to_owned());
            }
        }
    }

    /// The machine has given up so many reads: the oldest, and of those that are over their time limit, all that had it
    /// while the process ran.
    fn give_up_reads(&mut self, given_up: u64) {
        let limit = self.config.read_time_limit;
        let running = self.running.iter().map(|(name, &(_, since))| (since, name.clone()));
        let mut over: Vec<_> = running.filter(|(since, _)| *since + limit <= self.now).collect();
        over.sort_unstable();
        let is_too_few = (over.len() as u64) < given_up;
        if is_too_few || (!self.was_frozen && over.len() as u64 > given_up) {
            self.fail(format!("{given_up} reads are given up, and {} are over", over.len()));
        }
        for (_, name) in over.into_iter().take(given_up as usize) {
            self.running.remove(&name);
            self.add_cause(name);
        }
    }

    /// Does up to `outputs` things that a shard says. There must be none if it has not said that there are.
    fn poll(&mut self, shard: usize, outputs: u32) {
        let was_told = self.machine.wants_poll(shard);
        for _ in 0..outputs {
            let mut closed = None;
            let mut read = None;
            let mut failure = None;
            let Self {
                machine,
                clients,
                store,
                rng,
                tick,
                now,
                is_settling,
                ..
            } = self;
            let given_up = |tick| store.given_up.contains(&tick);
            let mut write = |conn: ConnId, chunks: &[&[u8]]| -> Sent {
                *tick += 1;
                let Some(client) = clients.iter_mut().find(|it| (it.shard, it.conn) == (shard, conn)) else {
                    failure = Some(format!("{conn:?} is written to after its end"));
                    return Sent::Closed;
                };
                let is_busy = !*is_settling && rng.u8(..4) == 0;
                let sent = client.write(chunks, *tick, is_busy, &given_up);
                sent.unwrap_or_else(|error| {
                    failure = Some(error);
                    Sent::Closed
                })
            };
            let did = machine.poll_output(
                shard,
                *now,
                |request, reply| read = Some((request, reply)),
                |output| match output {
                    Output::Broadcast(broadcast) => {
                        broadcast.for_each(|conn, chunk| write(conn, &[chunk.as_slice()]));
                    }
                    Output::Flush(flush) => flush.write(|conn, chunks| {
                        let slices: Vec<_> = chunks.iter().map(|it| it.as_slice()).collect();
                        write(conn, &slices)
                    }),
                    Output::Close(conn) => closed = Some(conn),
                    // Nobody has anything to say left over: who is paused is not read from.
                    Output::Resume(_) | Output::Shutdown(_) => {}
                },
            );
            if did && !was_told {
                self.fail(format!("G1: shard {shard} has outputs and has told nobody"));
            }
            if let Some(failure) = failure {
                self.fail(failure);
            }
            if let Some((request, reply)) = read {
                self.begin_read(request, reply);
            }
            if let Some(conn) = closed {
                self.close(shard, conn);
            }
            self.look_at_requests();
            if !did {
                self.interrupted.remove(&shard);
                return;
            }
        }
    }

    fn fail(&mut self, failure: String) {
        self.failure.get_or_insert(failure);
    }

    fn note(&mut self, line: impl FnOnce(Tick) -> String) {
        if let Some(trace) = &self.trace {
            trace.push(&line(self.tick));
        }
    }
}

fn secret_text(number: u8) -> String {
    format!("s{number}")
}

fn client_number(index: usize) -> u8 {
    index as u8
}

impl std::ops::AddAssign for Stats {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.reads += other.reads;
        self.deliveries += other.deliveries;
        self.conflated += other.conflated;
        self.dirty_marks += other.dirty_marks;
        self.converged += other.converged;
        self.queued_reads += other.queued_reads;
        self.silent_unchanged += other.silent_unchanged;
        self.sent_messages += other.sent_messages;
        self.passed_messages += other.passed_messages;
        self.fallen_behind += other.fallen_behind;
    }
}
