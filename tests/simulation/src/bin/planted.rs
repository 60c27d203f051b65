//! Shows that the simulator finds bugs: plants one at a time in a copy of core, and expects a violation within a stated
//! number of seeds. Core itself has no switch for bugs.
#![allow(clippy::print_stdout, reason = "a program that reports")]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

/// A bug, as a change of one place in core's source.
struct Bug {
    name: &'static str,
    file: &'static str,
    /// Stands in the file exactly once.
    good: &'static str,
    bad: &'static str,
    found_by: By,
}

/// What finds a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The simulation of a node, within so many seeds from seed 0 on.
    Seeds(u32),
    /// The simulation of a cluster, likewise.
    ClusterSeeds(u32),
    /// It takes several threads: loom, in core's models.
    Models,
}

use By::{ClusterSeeds, Models, Seeds};

impl Bug {
    /// The source with the bug in it.
    fn plant(&self, source: &str) -> Result<String, String> {
        match source.matches(self.good).count() {
            1 => Ok(source.replace(self.good, self.bad)),
            places => Err(format!(
                "{:?} has {places} places in {}, not one: mend the list",
                self.name, self.file
            )),
        }
    }
}

/// In the order of their files, as far as it goes: each is built upon the one before.
const BUGS: &[Bug] = &[
    Bug {
        name: "no owed read: a notify during a read is forgotten",
        file: "core/src/flights.rs",
        good: "        if !self.interests.is_empty() {\n            self.owed_to_all.add(now);",
        bad: "        if !self.interests.is_empty() && self.state == State::Idle {\n            self.owed_to_all.add(now);",
        found_by: Seeds(20),
    },
    Bug {
        name: "stale ticket accepted: the answer of a read that was given up is taken for its successor's",
        file: "core/src/flights.rs",
        good: "self.state == State::Running(ticket)\n    }",
        bad: "let _ = ticket;\n        matches!(self.state, State::Running(_))\n    }",
        found_by: Seeds(200),
    },
    Bug {
        name: "hand-over mark lost: a shard that has taken rows is believed to be marked still",
        file: "core/src/flights.rs",
        good: "let scope = interest.mark.take()?;",
        bad: "let scope = interest.mark?;",
        found_by: Seeds(20),
    },
    Bug {
        name: "hand-over wake-up lost: the pending flag is not cleared",
        file: "core/src/node/port.rs",
        good: "self.pending.swap(false, Ordering::SeqCst);",
        bad: "",
        found_by: Seeds(20),
    },
    Bug {
        name: "conflation across keys: a group replaces that of another key",
        file: "core/src/outbox.rs",
        good: ".position(|item| item.is_latest_of(wanted))",
        bad: ".position(|item| item.is_latest_of(wanted) || self.group_bytes > 200)",
        found_by: Seeds(20),
    },
    Bug {
        name: "rows of the old secret delivered: what is queued survives a change of secret",
        file: "core/src/shard/session.rs",
        good: "let lost_rows = self.revoke(conn, old);",
        bad: "let lost_rows = false;",
        found_by: Seeds(20),
    },
    Bug {
        name: "a read under way is not repeated under the new secret",
        file: "core/src/shard/session.rs",
        good: "if on_its_way || lost_rows",
        bad: "let _ = on_its_way;\n            if lost_rows",
        found_by: Seeds(20),
    },
    Bug {
        name: "a subscriber skipped when another leaves mid-walk: the cursor stays",
        file: "core/src/subscriptions.rs",
        good: "            && position < walk.cursor\n",
        bad: "            && position + 1_000_000 < walk.cursor\n",
        found_by: Seeds(500),
    },
    Bug {
        name: "rows of a read that began before the subscription",
        file: "core/src/shard/deliver.rs",
        good: "delivery.ticket > standing.joined()",
        bad: "delivery.ticket >= standing.joined()",
        found_by: Seeds(20),
    },
    Bug {
        name: "dirty marks forgotten: rows withheld from a full outbox are never asked for",
        file: "core/src/shard/deliver.rs",
        good: "        self.ask_for_dirty(conn);\n        self.make_ready(conn);",
        bad: "        self.make_ready(conn);",
        found_by: Seeds(20),
    },
    Bug {
        name: "a second read while one runs: leaving for the last time forgets the read that runs",
        file: "core/src/flights.rs",
        good: "self.interests.is_empty() && !self.runs()",
        bad: "self.interests.is_empty()",
        found_by: Seeds(50),
    },
    Bug {
        name: "a begun group is replaced by a newer one",
        file: "core/src/outbox.rs",
        good: "let behind = self.fixed + self.controls;",
        bad: "let behind = 0;",
        found_by: Seeds(20),
    },
    Bug {
        name: "a place among the running reads is not handed on: those that wait for it never begin",
        file: "core/src/node/gate.rs",
        good: "let next = state.waiting.pop_first();",
        bad: "let next = state.waiting.pop_first().filter(|_| state.running == 0);",
        found_by: Seeds(20),
    },
    Bug {
        name: "a read that is given up keeps its place among the running ones",
        file: "core/src/node/reads.rs",
        good: "let next = self.0.entities.of(entity).leave();",
        bad: "let next = None;",
        found_by: Seeds(50),
    },
    Bug {
        name: "a flight that waits for its turn is not forgotten with its last subscriber",
        file: "core/src/node/reads.rs",
        good: "self.0.entities.of(flight.entity).forget(turn);",
        bad: "let _ = turn;",
        found_by: Seeds(50),
    },
    Bug {
        name: "hand-over flag lost: an inbox that held nothing but reads to begin counts as empty",
        file: "core/src/node.rs",
        good: "        self.hand_over(now, starts);\n        any\n",
        bad: "        self.hand_over(now, starts);\n        any && !inbox.is_empty()\n",
        found_by: Seeds(2000),
    },
    Bug {
        name: "Delivery::Every: a group takes the place of the one before",
        file: "core/src/outbox.rs",
        good: "let older = if every { None } else { self.position_of(topic) };",
        bad: "let behind = self.fixed + self.controls;
        let is_of = |it: &Item| matches!(it, Item::Group { topic: of, .. } if *of == topic);
        let older = self.items.iter().skip(behind).position(is_of).map(|at| at + behind);",
        found_by: Seeds(50),
    },
    Bug {
        name: "Delivery::Every: notifies during a read count as one",
        file: "core/src/flights/owed.rs",
        good: "let is_full = times.len() >= MAX_TIMES;",
        bad: "let is_full = times.len() >= MAX_TIMES;\n                times.clear();",
        found_by: Seeds(20),
    },
    Bug {
        name: "Delivery::Every: a read begins before every shard has taken the rows of the one before",
        file: "core/src/flights.rs",
        good: " && !(self.owed_to_all.is_every() && self.newest.is_some())",
        bad: "",
        found_by: Seeds(50),
    },
    Bug {
        name: "Delivery::Every: who falls behind is kept and misses a push",
        file: "core/src/shard/deliver.rs",
        good: "Pushed::Refused if every => self.fall_behind(conn),",
        bad: "Pushed::Refused if every => {}",
        found_by: Seeds(20),
    },
    Bug {
        name: "settle: the store is not looked at again",
        file: "core/src/node/reads.rs",
        good: "&& it.settle_at(now + settle)",
        bad: "&& it.settle_at(now + settle)\n                        && false",
        found_by: Seeds(50),
    },
    Bug {
        name: "settle: who was given an older state than the others is left with it",
        file: "core/src/flights.rs",
        good: "given => given.filter(|(_, given)| Some(*given) == fingerprint),",
        bad: "given => given,",
        found_by: Seeds(4000),
    },
    Bug {
        name: "settle: a change of secret forgets that the store is still to be looked at",
        file: "core/src/flights.rs",
        good: "            || is_settling\n",
        bad: "            || is_settling && false\n",
        found_by: Seeds(1000),
    },
    Bug {
        name: "snapshot: a new subscription is not answered",
        file: "core/src/shard/session.rs",
        good: "if with_snapshot {",
        bad: "if with_snapshot && self.index > 1000 {",
        found_by: Seeds(20),
    },
    Bug {
        name: "reread: a read that began before the call counts",
        file: "core/src/shard/command.rs",
        good: "Standing::since(standing.joined().max(ticket))",
        bad: "Standing::since(standing.joined().min(ticket))",
        found_by: Seeds(200),
    },
    Bug {
        name: "an answer that is final is tried again",
        file: "core/src/node/reads.rs",
        good: "Err(error) if error.is_final() => Ok(Group::empty()),",
        bad: "",
        found_by: Seeds(50),
    },
    Bug {
        name: "a message that finds no room is dropped in silence",
        file: "core/src/shard/command.rs",
        good: "Pushed::Refused => self.fall_behind(conn),",
        bad: "Pushed::Refused => {}",
        found_by: Seeds(200),
    },
    Bug {
        name: "a dropped reply takes its own start for the present: what follows is given up too early",
        file: "core/src/resolve.rs",
        good: "let now = self.started.max(self.node.clock());",
        bad: "let now = self.started;",
        found_by: Seeds(4000),
    },
    Bug {
        name: "the outbox has no limit",
        file: "core/src/outbox.rs",
        good: "others == 0 || others + bytes <= limit",
        bad: "others == 0 || others + bytes <= 3 * limit",
        found_by: Seeds(50),
    },
    Bug {
        name: "rows that are queued survive unsubscribing",
        file: "core/src/shard/session.rs",
        good: "            self.revoke(conn, topic);\n            self.has_left(conn, left);",
        bad: "            self.has_left(conn, left);",
        found_by: Seeds(50),
    },
    Bug {
        name: "progress in writing doesn't count as life: slow clients are thrown out",
        file: "core/src/shard/mod.rs",
        good: "                    // The peer has taken bytes.\n                    state.last_alive = self.now;",
        bad: "",
        found_by: Seeds(4000),
    },
    Bug {
        name: "forged messages are believed",
        file: "core/src/cluster/message.rs",
        good: "secret.verify(bytes).ok_or(Reject::Forged)?",
        bad: "secret.verify(bytes).unwrap_or(bytes)",
        found_by: ClusterSeeds(10),
    },
    Bug {
        name: "a gap is given up and nothing is read again",
        file: "core/src/cluster/mod.rs",
        good: "                self.counters.gaps.add(1);\n                self.repairs.add(now, bucket, self.node.current_ticket());\n            }\n            if",
        bad: "                self.counters.gaps.add(1);\n                let _ = bucket;\n            }\n            if",
        found_by: ClusterSeeds(40),
    },
    Bug {
        name: "what a message overtook is given up and nothing is read again",
        file: "core/src/cluster/mod.rs",
        good: "                    self.counters.gaps.add(1);\n                    self.repairs.add(now, bucket, self.node.current_ticket());\n",
        bad: "                    self.counters.gaps.add(1);\n",
        found_by: ClusterSeeds(20),
    },
    Bug {
        name: "no repair on a new epoch",
        file: "core/src/cluster/mod.rs",
        good: "                    is_new_run = true;\n                    self.counters.restarted_peers.add(1);",
        bad: "                    self.counters.restarted_peers.add(1);",
        found_by: ClusterSeeds(40),
    },
    Bug {
        name: "no sweep when a peer is lost",
        file: "core/src/cluster/mod.rs",
        good: "            self.counters.lost_peers.add(lost);\n            self.sweep(now);",
        bad: "            self.counters.lost_peers.add(lost);",
        found_by: ClusterSeeds(300),
    },
    Bug {
        name: "the own echo is not suppressed",
        file: "core/src/cluster/mod.rs",
        good: "        if sender.node == self.config.node {\n",
        bad: "        if sender.node == self.config.node && sender.epoch != self.config.epoch {\n",
        found_by: ClusterSeeds(20),
    },
    Bug {
        name: "a message of an earlier run counts for the one that runs",
        file: "core/src/cluster/mod.rs",
        good: "        if peer.epoch != sender.epoch {\n",
        bad: "        if peer.epoch < sender.epoch {\n",
        found_by: ClusterSeeds(150),
    },
    Bug {
        name: "a run that seems older is refused for ever",
        file: "core/src/cluster/mod.rs",
        good: "sender.epoch < peer.epoch && peer.state == State::Alive",
        bad: "sender.epoch < peer.epoch",
        found_by: ClusterSeeds(20),
    },
    Bug {
        name: "repeats are news",
        file: "core/src/cluster/mod.rs",
        good: "let is_new = arrival != Some(Arrival::Repeated);",
        bad: "let is_new = arrival.is_some();",
        found_by: ClusterSeeds(20),
    },
    Bug {
        name: "no tail loss: digests are not compared with what has come",
        file: "core/src/cluster/peers.rs",
        good: "        track.announce(number);\n",
        bad: "",
        found_by: ClusterSeeds(40),
    },
    Bug {
        name: "a suspicion never comes due",
        file: "core/src/cluster/peers.rs",
        good: "self.suspicions.push_back(Suspicion { bucket, number, until });",
        bad: "let until = until + Duration::from_secs(1000);\n            self.suspicions.push_back(Suspicion { bucket, number, until });",
        found_by: ClusterSeeds(20),
    },
    Bug {
        name: "by interest: what was given up before the subscription hides what was lost after it",
        file: "core/src/cluster/peers.rs",
        good: "            // Nobody asked for these.\n            track.give_up();",
        bad: "            // Nobody asked for these.\n            track.announce(number + 1);\n            track.give_up();",
        found_by: ClusterSeeds(150),
    },
    Bug {
        name: "the queue of repairs forgets what doesn't fit into one turn",
        file: "core/src/cluster/repairs.rs",
        good: "(self.len() > 0).then_some(now + TURN);",
        bad: "None;",
        found_by: ClusterSeeds(20),
    },
    Bug {
        name: "a repair is put off by a read that began before the gap was found",
        file: "core/src/cluster/repairs.rs",
        good: "self.since = self.since.max(since);",
        bad: "let _ = since;",
        found_by: ClusterSeeds(20),
    },
    Bug {
        name: "a message that leaves the window is not missed",
        file: "core/src/cluster/track.rs",
        good: "_ => u64::MAX << (64 - ahead),",
        bad: "_ => u64::MAX << (64 - ahead) << 1,",
        found_by: ClusterSeeds(100),
    },
    Bug {
        name: "off by one: a single last message that is lost is not missed",
        file: "core/src/cluster/track.rs",
        good: "self.announced > self.highest || self.window",
        bad: "self.announced > self.highest + 1 || self.window",
        found_by: ClusterSeeds(20),
    },
    Bug {
        name: "a second gap is not noticed while one is waited for",
        file: "core/src/cluster/track.rs",
        good: "        self.noticed = known;\n",
        bad: "        self.noticed = known + 2;\n",
        found_by: ClusterSeeds(20),
    },
    Bug {
        name: "a flight is repaired but once",
        file: "core/src/flights.rs",
        good: "std::mem::replace(&mut self.repair, Repair::None) == Repair::Due;",
        bad: "std::mem::replace(&mut self.repair, Repair::Queued) == Repair::Due;",
        found_by: ClusterSeeds(20),
    },
    Bug {
        name: "a read that fails is no repair, and none follows",
        file: "core/src/flights.rs",
        good: "        if std::mem::take(&mut self.running_silently) {\n            self.owe_silently();\n        }\n        for interest",
        bad: "        self.running_silently = false;\n        for interest",
        found_by: ClusterSeeds(120),
    },
    Bug {
        name: "by interest: a bucket with a single key is not heard",
        file: "core/src/node/interest.rs",
        good: "it.load(Ordering::SeqCst) > 0",
        bad: "it.load(Ordering::SeqCst) > 1",
        found_by: ClusterSeeds(40),
    },
    Bug {
        name: "a notify is not put into the outgoing set",
        file: "core/src/node/outgoing.rs",
        good: "                lane.keys.insert(key.clone(), is_applied);\n",
        bad: "",
        found_by: ClusterSeeds(20),
    },
    Bug {
        name: "the bus's thread is not woken again",
        file: "core/src/node/outgoing.rs",
        good: "            self.pending.swap(false, Ordering::SeqCst);\n            self.move_one(into)",
        bad: "            self.move_one(into)",
        found_by: ClusterSeeds(20),
    },
    Bug {
        name: "a wake-up is lost: no second look at the inbox after the flag is cleared",
        file: "core/src/node/port.rs",
        good: "            self.pending.swap(false, Ordering::SeqCst);\n            self.move_all(into);",
        bad: "            self.pending.swap(false, Ordering::SeqCst);",
        found_by: Models,
    },
    Bug {
        name: "the bus's thread does not look again after the flag is cleared",
        file: "core/src/node/outgoing.rs",
        good: "            self.pending.swap(false, Ordering::SeqCst);\n            self.move_one(into)",
        bad: "            self.pending.swap(false, Ordering::SeqCst);\n            false",
        found_by: Models,
    },
    Bug {
        name: "interest is looked at before the bus's flag is cleared",
        file: "core/src/cluster/mod.rs",
        good: "        self.telling.take(self.config.buckets);\n",
        bad: "        if self.topics.has_changes(self.outgoing.interest()) {\n            return self.topics.next_change();\n        }\n        self.telling.take(self.config.buckets);\n        if true {\n            return self.telling.write(&self.config, &mut self.topics, &self.counters);\n        }\n",
        found_by: Models,
    },
    Bug {
        name: "a change of secret looks at the old topic before it has joined the new one: a notify in between is lost",
        file: "core/src/shard/session.rs",
        good: "            let new = self.find_or_join_topic(key, audience);\n            let standing = Standing::since(self.node.current_ticket());\n            let on_its_way =\n                self.node.is_busy(self.index, old_flight) || self.subscriptions.walked_topic() == Some(old);",
        bad: "            let on_its_way =\n                self.node.is_busy(self.index, old_flight) || self.subscriptions.walked_topic() == Some(old);\n            let new = self.find_or_join_topic(key, audience);\n            let standing = Standing::since(self.node.current_ticket());",
        found_by: Models,
    },
    Bug {
        name: "a second read of an entity begins where one may run",
        file: "core/src/node/gate.rs",
        good: "if state.running < limit.max(1) {",
        bad: "if state.running < limit.max(2) {",
        found_by: Models,
    },
    Bug {
        name: "a shard that has been woken is woken again for every mark",
        file: "core/src/node/port.rs",
        good: "if !self.pending.swap(true, Ordering::SeqCst) {",
        bad: "self.pending.swap(true, Ordering::SeqCst);\n        {",
        found_by: Models,
    },
    Bug {
        name: "room for a read is looked for under one lock and taken under another",
        file: "core/src/node/gate.rs",
        good: "        let mut state = lock(&self.0);\n        if state.running < limit.max(1) {\n            state.running += 1;\n            return Entry::Begin;\n        }",
        bad: "        if lock(&self.0).running < limit.max(1) {\n            lock(&self.0).running += 1;\n            return Entry::Begin;\n        }\n        let mut state = lock(&self.0);",
        found_by: Models,
    },
];

fn main() -> ExitCode {
    // Only those whose names contain this.
    let part = std::env::args().nth(1).unwrap_or_default();
    let bugs: Vec<_> = BUGS.iter().filter(|bug| bug.name.contains(&part)).collect();
    match plant_all(&bugs) {
        Ok(missed) if missed.is_empty() => {
            println!("{} planted bugs, all found", bugs.len());
            ExitCode::SUCCESS
        }
        Ok(missed) => {
            println!("{} planted bugs, not found: {missed:?}", bugs.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Returns the names of those that were not found. Two gardens share the work.
fn plant_all(bugs: &[&'static Bug]) -> Result<Vec<&'static str>, String> {
    let gardens = [Garden::lay_out("0")?, Garden::lay_out("1")?];
    // Without a bug it must run clean, or finding means nothing.
    let clean = [
        vec![Seeds(most(bugs, Seeds)), Models],
        vec![ClusterSeeds(most(bugs, ClusterSeeds))],
    ];
    // The models have a build of their own, of which one is enough.
    let (of_models, of_seeds): (Vec<_>, Vec<_>) = bugs.iter().partition(|bug| bug.found_by == Models);
    let (of_seeds, of_models) = (&Mutex::new(of_seeds.into_iter()), &Mutex::new(of_models.into_iter()));
    std::thread::scope(|scope| {
        let gardens = gardens.iter().zip(clean).zip([Some(of_models), None]);
        let workers: Vec<_> = gardens
            .map(|((garden, clean), own)| {
                scope.spawn(move || {
                    for by in clean {
                        garden.expect_nothing(by)?;
                    }
                    let mut missed = Vec::new();
                    let next = || own.and_then(take).or_else(|| take(of_seeds));
                    for bug in std::iter::from_fn(next) {
                        if !garden.shows(bug)? {
                            missed.push(bug.name);
                        }
                    }
                    Ok::<_, String>(missed)
                })
            })
            .collect();
        let mut missed = Vec::new();
        for worker in workers {
            missed.extend(worker.join().map_err(|_| "a worker panicked")??);
        }
        Ok(missed)
    })
}

fn take<T>(from: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    from.lock().unwrap_or_else(PoisonError::into_inner).next()
}

/// The most seeds that any bug of a kind may take.
fn most(bugs: &[&Bug], kind: fn(u32) -> By) -> u32 {
    let seeds = bugs.iter().filter_map(|bug| match bug.found_by {
        Seeds(seeds) | ClusterSeeds(seeds) if kind(seeds) == bug.found_by => Some(seeds),
        _ => None,
    });
    seeds.max().unwrap_or(1)
}

/// A copy of core and the simulation to plant bugs in, and where it is built.
struct Garden {
    tree: PathBuf,
}

impl Garden {
    fn lay_out(name: &str) -> Result<Self, String> {
        let root = root();
        let tree = root.join("target/planted").join(name).join("tree");
        let lay_out = || -> io::Result<()> {
            for part in ["core", "tests/simulation"] {
                copy(&root.join(part), &tree.join(part))?;
            }
            fs::copy(root.join("Cargo.lock"), tree.join("Cargo.lock"))?;
            let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
            let members = manifest.lines().find(|line| line.starts_with("members = "));
            let members = members.ok_or_else(|| io::Error::other("the workspace has no line of members"))?;
            let few = r#"members = ["core", "tests/simulation"]"#;
            fs::write(tree.join("Cargo.toml"), manifest.replace(members, few))
        };
        lay_out().map_err(|error| format!("{}: {error}", tree.display()))?;
        Ok(Self { tree })
    }

    fn expect_nothing(&self, by: By) -> Result<(), String> {
        match self.find(by)? {
            Some(violation) => Err(format!("without any bug: {violation}")),
            None => Ok(()),
        }
    }

    /// Plants a bug, and says whether it is found.
    fn shows(&self, bug: &Bug) -> Result<bool, String> {
        let path = self.tree.join(bug.file);
        let explain = |error: io::Error| format!("{}: {error}", path.display());
        let source = fs::read_to_string(&path).map_err(explain)?;
        fs::write(&path, bug.plant(&source)?).map_err(explain)?;
        let found = self.find(bug.found_by);
        fs::write(&path, source).map_err(explain)?;
        let found = found.map_err(|error| format!("{}: {error}", bug.name))?;
        match &found {
            Some(violation) => println!("{}\n    {violation}", bug.name),
            None => println!("{}\n    NOT FOUND ({:?})", bug.name, bug.found_by),
        }
        Ok(found.is_some())
    }

    /// What is violated, if anything is.
    fn find(&self, by: By) -> Result<Option<String>, String> {
        match by {
            Seeds(seeds) => self.violation(&["--seeds", &seeds.to_string()]),
            ClusterSeeds(seeds) => self.violation(&["--cluster", "--seeds", &seeds.to_string()]),
            Models => self.failed_models(),
        }
    }

    /// Runs the simulation, and gives what it said if it failed.
    fn violation(&self, arguments: &[&str]) -> Result<Option<String>, String> {
        let target = self.tree.with_file_name("target");
        let name = "entity-sync-simulation";
        let built = cargo(&self.tree, &["build", "-q", "-p", name, "--bin", name])
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .output()
            .map_err(|error| format!("cargo: {error}"))?;
        if !built.status.success() {
            return Err(format!("it doesn't build:\n{}", String::from_utf8_lossy(&built.stderr)));
        }
        let program = target.join("debug").join(name);
        let ran = Command::new(&program).args(arguments).output();
        let ran = ran.map_err(|error| format!("{}: {error}", program.display()))?;
        if ran.status.success() {
            return Ok(None);
        }
        let said = [ran.stdout, ran.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        // The simulator's own line, or the panic's and what it says.
        let lines = said
            .lines()
            .skip_while(|line| !line.starts_with("seed ") && !line.contains(" panicked at "));
        let lines: Vec<_> = lines.take(2).filter(|line| !line.starts_with("replay")).collect();
        let after = said.lines().find(|line| line.starts_with("found after"));
        Ok(Some(
            [&lines[..], &after.into_iter().collect::<Vec<_>>()].concat().join(" "),
        ))
    }

    /// Runs core's loom models, and says which failed, if any.
    fn failed_models(&self) -> Result<Option<String>, String> {
        let ran = cargo(&self.tree, &["test", "-q", "-p", "entity-sync-core", "--lib", "models"])
            .env("CARGO_TARGET_DIR", self.tree.with_file_name("target-loom"))
            .env("RUSTFLAGS", "--cfg loom")
            .output()
            .map_err(|error| format!("cargo: {error}"))?;
        if ran.status.success() {
            return Ok(None);
        }
        let said = [ran.stdout, ran.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let failed: Vec<_> = said
            .lines()
            .filter(|line| line.starts_with("    models::"))
            .map(str::trim)
            .collect();
        if failed.is_empty() {
            return Err(format!("the models don't build:\n{said}"));
        }
        Ok(Some(failed.join(", ")))
    }
}

fn cargo(tree: &Path, arguments: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).current_dir(tree);
    cargo
}

/// Copies a folder of sources. Files that are the same stay untouched, so that they aren't built again.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target): (PathBuf, PathBuf) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&source, &target)?;
        } else if fs::read(&source)? != fs::read(&target).unwrap_or_default() {
            fs::copy(&source, &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Planting takes minutes; that a change of core has taken a bug's place away is to be known at once.
    #[test]
    fn every_bug_has_its_place() -> Result<(), Box<dyn std::error::Error>> {
        for bug in BUGS {
            bug.plant(&fs::read_to_string(root().join(bug.file))?)?;
        }
        Ok(())
    }
}
