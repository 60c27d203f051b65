//! [`World`]: a machine, its clients and its application on one clock. Applies [`Op`]s and asserts the guarantees.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use entity_sync_core::{
    ClientId, Config, ConnId, Input, Output, ReadError, Reply, Request, Rows, Seed, Selector, Sent, Timestamp,
};
use fastrand::Rng;

use crate::client::{Client, message};
use crate::entities::{KEYS, Kind, SETTLE, entities, entity_of, key_of, kind_of, max_running_reads};
use crate::machine::Machine;
use crate::op::{Answer, Driver, Op, Target};
use crate::store::{Name, Read, Store, Tick, audience_name, name_of, row_count, rows};
use crate::wire;

const SECRETS: u8 = 3;
const MAX_CLIENTS: usize = 12;
const MAX_CONNECTIONS: usize = 11;
const MAX_OUTBOX_BYTES: usize = 700;
/// The longest group that [`rows`] makes: three rows.
const MAX_GROUP_BYTES: usize = 3 * 320;
const MAX_CONTROL_BYTES: usize = 2048 + 512;

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
    failure: Option<String>,
    trace: Option<Vec<String>>,
    stats: Stats,
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
    pub settled_unchanged: u64,
    /// Messages that the application sent.
    pub sent_messages: u64,
    /// Messages that clients sent the application.
    pub passed_messages: u64,
    /// Connections that fell behind.
    pub fallen_behind: u64,
}

impl World {
    /// A machine of one `Core` for 0 shards, else of that many shards of one node. `seed` is for what ops leave open.
    pub fn new(seed: u64, shards: usize, traced: bool) -> Self {
        let mut config = Config::new(Seed(seed, !seed));
        config.max_outbox_bytes = MAX_OUTBOX_BYTES;
        config.max_subscriptions = 5;
        config.broadcast_budget = 1 + (seed % 3) as usize;
        config.max_connections = MAX_CONNECTIONS;
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
            targeted: 0,
            running: BTreeMap::new(),
            passed,
            fallen_behind: 0,
            is_settling: false,
            failure: None,
            trace: traced.then(Vec::new),
            stats: Stats::default(),
        }
    }

    /// What was done, if it was asked for.
    pub fn trace(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }

    /// What happened so far.
    pub fn stats(&self) -> Stats {
        let counters = self.machine.counters();
        Stats {
            reads: self.machine.reads(),
            deliveries: counters.deliveries,
            conflated: counters.conflated,
            dirty_marks: counters.dirty_marks,
            queued_reads: self.machine.node().counters().queued_reads.get(),
            settled_unchanged: self.machine.node().counters().settled_unchanged.get(),
            sent_messages: counters.sent_messages,
            passed_messages: counters.passed_messages,
            fallen_behind: counters.fallen_behind,
            ..self.stats
        }
    }

    /// Does one thing and asserts G2, G3, G4, G6 and the tables' own invariants.
    ///
    /// # Errors
    /// What was violated.
    pub fn apply(&mut self, op: Op) -> Result<(), String> {
        self.stats.steps += 1;
        self.note(|tick| format!("{tick}: {op:?}"));
        match op {
            Op::Connect { shard, driver } => self.connect(shard, driver),
            Op::Subscribe { client, key } => self.subscribe(client, key % KEYS),
            Op::Unsubscribe { client, key } => self.unsubscribe(client, key % KEYS),
            Op::Secret { client, secret } => self.change_secret(client, secret % SECRETS),
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
        self.check()
    }

    /// Lets all faults stop, waits until nothing happens any more, and asserts G1.
    ///
    /// # Errors
    /// What was violated.
    pub fn settle(&mut self) -> Result<(), String> {
        self.note(|tick| format!("{tick}: settle"));
        self.is_settling = true;
        self.machine.panic_next(false);
        // The longest backoff is 30 s, and each round that finds nothing to do is worth 5.
        let mut idle_rounds = 0;
        for _ in 0..2000 {
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
            if (0..self.machine.shards()).any(|shard| self.machine.wants_poll(shard)) {
                continue;
            }
            if is_idle {
                idle_rounds += 1;
                if idle_rounds > 8 {
                    self.is_settling = false;
                    for client in &mut self.clients {
                        client.room = self.rng.usize(..1500);
                    }
                    return self.check_convergence();
                }
                self.advance(Duration::from_secs(5));
            } else {
                idle_rounds = 0;
            }
        }
        Err("G1: it never comes to rest".to_owned())
    }

    fn connect(&mut self, shard: u8, driver: Driver) {
        if self.clients.len() >= MAX_CLIENTS {
            return;
        }
        let shard = usize::from(shard) % self.machine.shards();
        let Some(conn) = self.machine.open(shard, self.now) else {
            if self.machine.counters().connections < MAX_CONNECTIONS as u64 {
                self.fail("a connection is refused, and there is room".to_owned());
            }
            return;
        };
        self.clients.push(Client::new(shard, conn, driver, self.now));
        let last = (self.clients.len() - 1) as u8;
        self.say(last, &mut wire::UPGRADE.to_vec());
    }

    fn subscribe(&mut self, client: u8, key: u8) {
        let Some(index) = self.pick_heard(client) else {
            return;
        };
        self.tick += 1;
        let client = &mut self.clients[index];
        let joined = &mut Rc::make_mut(&mut client.standing).joined;
        let is_new = joined.len() < self.config.max_subscriptions && !joined.contains_key(&key);
        if is_new && kind_of(key) != Kind::Unknown {
            joined.insert(key, self.tick);
            if kind_of(key) == Kind::Every {
                client.pushes.insert(key, 0);
            }
            if kind_of(key) == Kind::Snapshot && !client.is_ending {
                client.due.insert(key, self.tick);
                let name = audience_name(key, &client.standing.secret);
                self.add_cause(name);
            }
        }
        self.say_text(index, &wire::subscription("subscribe", key));
    }

    fn unsubscribe(&mut self, client: u8, key: u8) {
        let Some(index) = self.pick_heard(client) else {
            return;
        };
        self.tick += 1;
        self.clients[index].give_up(key, self.tick);
        self.say_text(index, &wire::subscription("unsubscribe", key));
    }

    fn change_secret(&mut self, client: u8, secret: u8) {
        let Some(index) = self.pick_heard(client) else {
            return;
        };
        self.tick += 1;
        let secret = secret_text(secret);
        let client = &mut self.clients[index];
        let mut causes = Vec::new();
        if client.standing.secret != secret {
            let standing = Rc::make_mut(&mut client.standing);
            standing.secret.clone_from(&secret);
            for (&key, joined) in &mut standing.joined {
                client.reread.remove(&key);
                if kind_of(key) != Kind::Public {
                    *joined = self.tick;
                    client.revoked.insert(key, self.tick);
                    client.pushes.remove(&key);
                    causes.push((key, secret.clone()));
                }
            }
        }
        causes.into_iter().for_each(|name| self.add_cause(name));
        self.say_text(index, &wire::secret(&secret));
    }

    fn vanish(&mut self, client: u8) {
        if let Some(index) = self.pick(client) {
            let Client { shard, conn, .. } = self.clients[index];
            self.clients[index].is_ending = true;
            self.machine.handle(shard, self.now, Input::Closed { conn });
        }
    }

    fn drain(&mut self, client: u8, bytes: usize) {
        let Some(index) = self.pick(client).filter(|&index| self.is_known(index)) else {
            return;
        };
        let client = &mut self.clients[index];
        client.room += bytes;
        if std::mem::take(&mut client.is_blocked) {
            client.last_alive = self.now;
        }
        let Client { shard, conn, .. } = *client;
        self.machine.handle(shard, self.now, Input::Writable { conn });
    }

    fn complete(&mut self, client: u8, bytes: usize) {
        let Some(index) = self.pick(client).filter(|&index| self.is_known(index)) else {
            return;
        };
        self.tick += 1;
        let client = &mut self.clients[index];
        let given_up = |tick| self.store.given_up.contains(&tick);
        match client.complete(bytes, &given_up) {
            Ok(None) => {}
            Ok(Some(bytes)) => {
                if bytes > 0 {
                    client.last_alive = self.now;
                }
                let Client { shard, conn, .. } = *client;
                self.machine.handle(shard, self.now, Input::Written { conn, bytes });
            }
            Err(failure) => self.fail(failure),
        }
    }

    fn notify(&mut self, key: u8) {
        self.tick += 1;
        self.store.change(self.now, key);
        self.owe_to_all(key);
        let is_known = self.machine.notify(self.now, &key_of(key));
        if is_known != (kind_of(key) != Kind::Unknown) {
            self.fail(format!("a notify of {:?} was taken: {is_known}", entity_of(key)));
        }
    }

    /// Every subscriber is owed a read that begins from here on.
    fn owe_to_all(&mut self, key: u8) {
        let mut causes = BTreeSet::new();
        for client in &mut self.clients {
            if client.is_subscribed(key) {
                client.due.insert(key, self.tick);
                if let Some(owed) = client.pushes.get_mut(&key) {
                    *owed += 1;
                }
                causes.insert(audience_name(key, &client.standing.secret));
            }
        }
        causes.into_iter().for_each(|name| self.add_cause(name));
    }

    fn add_cause(&mut self, name: Name) {
        let every = kind_of(name.0) == Kind::Every;
        let count = self.causes.entry(name).or_default();
        *count = if every { *count + 1 } else { 1 };
    }

    fn pass(&mut self, client: u8) {
        let Some(index) = self.pick(client) else {
            return;
        };
        self.say_text(index, wire::PASSED);
        let Client { shard, conn, .. } = self.clients[index];
        let secret = self.clients[index].standing.secret.clone();
        let expected = (
            self.machine.client_id(shard, conn),
            secret,
            wire::PASSED.as_bytes().to_vec(),
        );
        let passed = std::mem::take(&mut *self.passed.lock().unwrap_or_else(PoisonError::into_inner));
        if passed.len() > 1 || passed.iter().any(|it| *it != expected) {
            self.fail(format!("{expected:?} is passed to the application as {passed:?}"));
        }
    }

    fn send(&mut self, client: u8, bytes: usize) {
        let Some(index) = self.pick(client).filter(|&index| self.is_known(index)) else {
            return;
        };
        let client = &mut self.clients[index];
        let id = self.machine.client_id(client.shard, client.conn);
        let text = message(client.messages.0, bytes);
        client.messages.0 += 1;
        if let Err(error) = self.machine.node().client(id).send_text(&text) {
            self.fail(format!("a message to {id} is refused: {error}"));
        }
    }

    fn reread(&mut self, target: Target) {
        self.tick += 1;
        if let Target::Key(key) = target {
            self.owe_to_all(key % KEYS);
        } else {
            let mut causes = Vec::new();
            for index in self.meant(target) {
                let client = &mut self.clients[index];
                for &key in client.standing.joined.keys() {
                    client.reread.insert(key, self.tick);
                    // From when on they are counted again, only the machine knows.
                    client.pushes.remove(&key);
                    causes.push(audience_name(key, &client.standing.secret));
                }
            }
            causes.into_iter().for_each(|name| self.add_cause(name));
        }
        if let Some(selector) = self.selector(target) {
            self.machine.node().reread(self.now, &selector);
        }
        // What is subscribed to before a shard hears of it would be read again too.
        self.poll_all();
    }

    /// Takes effect at once, so that the simulation knows what is sent before and what after.
    fn dismiss(&mut self, target: Target) {
        self.poll_all();
        self.tick += 1;
        for index in self.meant(target) {
            let keys: Vec<u8> = match target {
                Target::Key(key) => vec![key % KEYS],
                _ => self.clients[index].standing.joined.keys().copied().collect(),
            };
            for key in keys {
                self.clients[index].give_up(key, self.tick);
            }
        }
        if let Some(selector) = self.selector(target) {
            self.machine.node().unsubscribe(&selector);
        }
        self.poll_all();
    }

    fn disconnect(&mut self, target: Target) {
        for index in self.meant(target) {
            let client = &mut self.clients[index];
            client.is_ending = true;
            client.is_sent_away = true;
            client.due.clear();
        }
        if let Some(selector) = self.selector(target)
            && let Err(error) = self.machine.node().disconnect(&selector, 4000, "go away")
        {
            self.fail(error.to_string());
        }
        // Whoever changes its secret first is not meant any more.
        self.poll_all();
    }

    /// The clients that a target means.
    fn meant(&self, target: Target) -> Vec<usize> {
        let is_meant = |client: &Client| match target {
            _ if client.is_sent_away => false,
            Target::Key(key) => client.is_subscribed(key % KEYS),
            Target::Secret(secret) => client.standing.secret == secret_text(secret % SECRETS),
            Target::Client(_) => false,
        };
        match target {
            Target::Client(client) => self.pick_heard(client).into_iter().collect(),
            _ => (0..self.clients.len())
                .filter(|&index| is_meant(&self.clients[index]))
                .collect(),
        }
    }

    fn selector(&self, target: Target) -> Option<Selector> {
        Some(match target {
            Target::Key(key) => Selector::Key(key_of(key % KEYS)),
            Target::Secret(secret) => Selector::Secret(secret_text(secret % SECRETS).into()),
            Target::Client(client) => {
                let Client { shard, conn, .. } = self.clients[self.pick(client)?];
                Selector::Client(self.machine.client_id(shard, conn))
            }
        })
    }

    fn poll_all(&mut self) {
        for shard in 0..self.machine.shards() {
            self.poll(shard, u32::MAX);
        }
        self.look_at_requests();
    }

    fn answer(&mut self, read: u8, answer: Answer) {
        if self.store.reads.is_empty() {
            return;
        }
        self.tick += 1;
        let read = self.store.reads.swap_remove(usize::from(read) % self.store.reads.len());
        let is_running = self.running.get(&read.name).is_some_and(|it| it.0 == read.began);
        if is_running {
            self.running.remove(&read.name);
            // It is to be tried again; or the store, to be looked at again.
            if answer != Answer::Rows || kind_of(read.name.0) == Kind::Settling {
                self.add_cause(read.name.clone());
            }
        } else {
            self.store.given_up.insert(read.began);
        }
        self.note(|tick| format!("{tick}: {answer:?} for {:?} of {}", read.name, read.began));
        let rows = rows(&read);
        let sent = match answer {
            // Without rows there may be more to say.
            Answer::Rows if rows == Rows::none() && !read.began.is_multiple_of(3) => {
                let error = [ReadError::NotFound, ReadError::Denied][(read.began % 2) as usize].clone();
                read.reply.send(self.now, Err(error))
            }
            Answer::Rows => read.reply.send(self.now, Ok(rows)),
            Answer::Failed => read.reply.send(self.now, Err(ReadError::Failed)),
            Answer::Dropped => {
                drop(read.reply);
                Ok(())
            }
            Answer::BadRows => {
                let refused = read.reply.send(self.now, Ok(Rows::one(&b"\xff"[..])));
                if refused.is_ok() {
                    self.fail("a row that isn't text was accepted".to_owned());
                }
                Ok(())
            }
        };
        if let Err(error) = sent {
            self.fail(format!("good rows are refused: {error}"));
        }
    }

    fn advance(&mut self, time: Duration) {
        self.now = self.now + time;
        for shard in 0..self.machine.shards() {
            // The first shard hears of the time whenever it passes: from it, the node knows when a reply is dropped.
            if shard > 0 && self.machine.poll_timeout(shard).is_none_or(|at| at > self.now) {
                continue;
            }
            // Before the machine: what it begins anew, it must have given up.
            let limit = self.config.read_time_limit;
            let over: Vec<Name> = self
                .running
                .iter()
                .filter(|(_, (_, since))| *since + limit <= self.now)
                .map(|(name, _)| name.clone())
                .collect();
            for name in over {
                self.running.remove(&name);
                self.add_cause(name);
            }
            self.machine.handle_timeout(shard, self.now);
            if self.machine.poll_timeout(shard).is_some_and(|at| at <= self.now) {
                self.fail("a time-out is asked for that has been handled".to_owned());
            }
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
                    Output::Shutdown(_) => {}
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
                return;
            }
        }
    }

    fn look_at_requests(&mut self) {
        for (request, reply) in self.machine.take_requests() {
            self.begin_read(request, reply);
        }
    }

    /// G3: at most one read of a name is running, and none begins without a cause.
    fn begin_read(&mut self, request: Request, reply: Reply) {
        self.tick += 1;
        let name = name_of(&request);
        self.note(|tick| format!("{tick}: read {name:?}"));
        if let Some((began, _)) = self.running.get(&name) {
            self.fail(format!("G3: a second read of {name:?} while that of {began} runs"));
        }
        let of_entity = self.running.keys().filter(|it| entity_of(it.0) == entity_of(name.0));
        if of_entity.count() >= max_running_reads(self.config.seed.0) {
            self.fail(format!("more reads of {:?} are running than may", entity_of(name.0)));
        }
        if let Some(count) = self.causes.get_mut(&name) {
            *count -= 1;
            if *count == 0 {
                self.causes.remove(&name);
            }
        } else {
            self.targeted += 1;
            if self.targeted > self.machine.counters().dirty_marks {
                self.fail(format!("G3: a read of {name:?} for nothing"));
            }
        }
        self.running.insert(name.clone(), (self.tick, self.now));
        self.store.reads.push(Read {
            version: match kind_of(name.0) {
                Kind::Settling => {
                    let lag = SETTLE.mul_f64(self.rng.f64());
                    self.store
                        .version_at(name.0, Timestamp::after_start(self.now.since(Timestamp::START + lag)))
                }
                _ => self.store.version(name.0),
            },
            name,
            began: self.tick,
            reply,
        });
    }

    /// G4: a client is thrown out for being dead or by its own doing, never for being slow.
    fn close(&mut self, shard: usize, conn: ConnId) {
        let Some(index) = self.clients.iter().position(|it| (it.shard, it.conn) == (shard, conn)) else {
            return self.fail(format!("{conn:?} is closed twice"));
        };
        let client = self.clients.swap_remove(index);
        let is_dead = self.now.since(client.last_alive) >= self.config.dead_after;
        if !client.is_ending && !client.is_broken && !is_dead {
            // It may have fallen behind with what can't be skipped, and not have read the close frame.
            self.fallen_behind += 1;
            if self.fallen_behind > self.machine.counters().fallen_behind {
                self.fail(format!("G4: {conn:?} is thrown out for nothing"));
            }
        }
    }

    fn check(&mut self) -> Result<(), String> {
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
    fn check_convergence(&mut self) -> Result<(), String> {
        for client in self.clients.iter().filter(|it| !it.is_ending && !it.is_broken) {
            if self.machine.queued_bytes(client.shard, client.conn).is_none() {
                // It has ended and its driver is about to hear of it.
                continue;
            }
            for (&key, &due) in client.due.iter().chain(&client.reread) {
                let newest = self.store.version(key);
                if row_count(key, newest) == 0 {
                    // The newest state has no rows to be seen.
                    continue;
                }
                let has_it = match kind_of(key) {
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

    fn say(&mut self, client: u8, bytes: &mut [u8]) {
        if let Some(index) = self.pick(client).filter(|&index| self.is_known(index)) {
            let client = &mut self.clients[index];
            client.last_alive = self.now;
            let Client { shard, conn, .. } = *client;
            self.machine.handle(shard, self.now, Input::Received { conn, bytes });
        }
    }

    fn say_text(&mut self, index: usize, text: &str) {
        self.say(index as u8, &mut wire::text(text));
    }

    fn say_last(&mut self, client: u8, bytes: &mut [u8]) {
        if let Some(index) = self.pick(client) {
            self.clients[index].is_ending = true;
            let client = &mut self.clients[index];
            // From here on nothing it is sent counts.
            client.due.clear();
            self.say(client_number(index), bytes);
        }
    }

    fn pick(&self, client: u8) -> Option<usize> {
        let index = usize::from(client).checked_rem(self.clients.len())?;
        Some(index)
    }

    /// As [`Self::pick`], of those to whom the machine still listens.
    fn pick_heard(&self, client: u8) -> Option<usize> {
        self.pick(client).filter(|&index| !self.clients[index].is_sent_away)
    }

    /// The machine has not ended it yet. If it has, the driver is about to hear of it.
    fn is_known(&self, index: usize) -> bool {
        let Client { shard, conn, .. } = self.clients[index];
        self.machine.queued_bytes(shard, conn).is_some()
    }

    fn fail(&mut self, failure: String) {
        self.failure.get_or_insert(failure);
    }

    fn note(&mut self, line: impl FnOnce(Tick) -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line(self.tick));
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
        self.settled_unchanged += other.settled_unchanged;
        self.sent_messages += other.sent_messages;
        self.passed_messages += other.passed_messages;
        self.fallen_behind += other.fallen_behind;
    }
}
