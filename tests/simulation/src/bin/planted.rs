//! Shows that the simulator finds bugs: plants one at a time in a copy of core, and expects a violation within a stated
//! number of seeds. Core itself has no switch for bugs.
#![allow(clippy::print_stdout, reason = "a program that reports")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{fs, io};

/// A bug, as a change of one place in core's source.
struct Bug {
    name: &'static str,
    file: &'static str,
    /// Stands in the file exactly once.
    good: &'static str,
    bad: &'static str,
    /// The simulator finds it within so many seeds, from seed 0 on; 0 if it takes several threads, and loom finds it.
    seeds: u32,
}

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

const BUGS: &[Bug] = &[
    Bug {
        name: "no owed read: a notify during a read is forgotten",
        file: "core/src/flights.rs",
        good: "        if !self.interests.is_empty() {\n            self.owed_to_all.add(now);",
        bad: "        if !self.interests.is_empty() && self.state == State::Idle {\n            self.owed_to_all.add(now);",
        seeds: 20,
    },
    Bug {
        name: "stale ticket accepted: the answer of a read that was given up is taken for its successor's",
        file: "core/src/flights.rs",
        good: "self.state == State::Running(ticket)\n    }",
        bad: "let _ = ticket;\n        matches!(self.state, State::Running(_))\n    }",
        seeds: 200,
    },
    Bug {
        name: "hand-over mark lost: a shard that has taken rows is believed to be marked still",
        file: "core/src/flights.rs",
        good: "let scope = interest.mark.take()?;",
        bad: "let scope = interest.mark?;",
        seeds: 20,
    },
    Bug {
        name: "hand-over wake-up lost: the pending flag is not cleared",
        file: "core/src/node/port.rs",
        good: "self.pending.swap(false, Ordering::SeqCst);",
        bad: "",
        seeds: 20,
    },
    Bug {
        name: "conflation across keys: a group replaces that of another key",
        file: "core/src/outbox.rs",
        good: ".position(|item| item.is_latest_of(wanted))",
        bad: ".position(|item| item.is_latest_of(wanted) || self.group_bytes > 200)",
        seeds: 20,
    },
    Bug {
        name: "rows of the old secret delivered: what is queued survives a change of secret",
        file: "core/src/shard/session.rs",
        good: "let lost_rows = self.revoke(conn, old);",
        bad: "let lost_rows = false;",
        seeds: 20,
    },
    Bug {
        name: "a read under way is not repeated under the new secret",
        file: "core/src/shard/session.rs",
        good: "if on_its_way || lost_rows",
        bad: "let _ = on_its_way;\n            if lost_rows",
        seeds: 20,
    },
    Bug {
        name: "a subscriber skipped when another leaves mid-walk: the cursor stays",
        file: "core/src/subscriptions.rs",
        good: "            && position < walk.cursor\n",
        bad: "            && position + 1_000_000 < walk.cursor\n",
        seeds: 500,
    },
    Bug {
        name: "rows of a read that began before the subscription",
        file: "core/src/shard/deliver.rs",
        good: "delivery.ticket > standing.joined()",
        bad: "delivery.ticket >= standing.joined()",
        seeds: 20,
    },
    Bug {
        name: "dirty marks forgotten: rows withheld from a full outbox are never asked for",
        file: "core/src/shard/deliver.rs",
        good: "        self.ask_for_dirty(conn);\n        self.make_ready(conn);",
        bad: "        self.make_ready(conn);",
        seeds: 20,
    },
    Bug {
        name: "a second read while one runs: leaving for the last time forgets the read that runs",
        file: "core/src/flights.rs",
        good: "self.interests.is_empty() && !self.runs()",
        bad: "self.interests.is_empty()",
        seeds: 50,
    },
    Bug {
        name: "a begun group is replaced by a newer one",
        file: "core/src/outbox.rs",
        good: "let behind = self.fixed + self.controls;",
        bad: "let behind = 0;",
        seeds: 20,
    },
    Bug {
        name: "a place among the running reads is not handed on: those that wait for it never begin",
        file: "core/src/node/gate.rs",
        good: "let next = state.waiting.pop_first();",
        bad: "let next = state.waiting.pop_first().filter(|_| state.running == 0);",
        seeds: 20,
    },
    Bug {
        name: "a read that is given up keeps its place among the running ones",
        file: "core/src/node/reads.rs",
        good: "let next = self.0.entities.of(entity).leave();",
        bad: "let next = None;",
        seeds: 50,
    },
    Bug {
        name: "a flight that waits for its turn is not forgotten with its last subscriber",
        file: "core/src/node/reads.rs",
        good: "self.0.entities.of(flight.entity).forget(turn);",
        bad: "let _ = turn;",
        seeds: 50,
    },
    Bug {
        name: "hand-over flag lost: an inbox that held nothing but reads to begin counts as empty",
        file: "core/src/node.rs",
        good: "        self.hand_over(now, starts);\n        any\n",
        bad: "        self.hand_over(now, starts);\n        any && !inbox.is_empty()\n",
        seeds: 2000,
    },
    Bug {
        name: "Delivery::Every: a group takes the place of the one before",
        file: "core/src/outbox.rs",
        good: "let older = if every { None } else { self.position_of(topic) };",
        bad: "let behind = self.fixed + self.controls;
        let is_of = |it: &Item| matches!(it, Item::Group { topic: of, .. } if *of == topic);
        let older = self.items.iter().skip(behind).position(is_of).map(|at| at + behind);",
        seeds: 50,
    },
    Bug {
        name: "Delivery::Every: notifies during a read count as one",
        file: "core/src/flights/owed.rs",
        good: "let is_full = times.len() >= MAX_TIMES;",
        bad: "let is_full = times.len() >= MAX_TIMES;\n                times.clear();",
        seeds: 20,
    },
    Bug {
        name: "Delivery::Every: a read begins before every shard has taken the rows of the one before",
        file: "core/src/flights.rs",
        good: " && !(self.owed_to_all.is_every() && self.newest.is_some())",
        bad: "",
        seeds: 50,
    },
    Bug {
        name: "Delivery::Every: who falls behind is kept and misses a push",
        file: "core/src/shard/deliver.rs",
        good: "Pushed::Refused if every => self.fall_behind(conn),",
        bad: "Pushed::Refused if every => {}",
        seeds: 20,
    },
    Bug {
        name: "settle: the store is not looked at again",
        file: "core/src/node/reads.rs",
        good: "&& it.settle_at(now + settle)",
        bad: "&& it.settle_at(now + settle)\n                        && false",
        seeds: 50,
    },
    Bug {
        name: "settle: who was given an older state than the others is left with it",
        file: "core/src/flights.rs",
        good: "given => given.filter(|(_, given)| Some(*given) == fingerprint),",
        bad: "given => given,",
        seeds: 4000,
    },
    Bug {
        name: "settle: a change of secret forgets that the store is still to be looked at",
        file: "core/src/flights.rs",
        good: "            || is_settling\n",
        bad: "            || is_settling && false\n",
        seeds: 1000,
    },
    Bug {
        name: "snapshot: a new subscription is not answered",
        file: "core/src/shard/session.rs",
        good: "if with_snapshot {",
        bad: "if with_snapshot && self.index > 1000 {",
        seeds: 20,
    },
    Bug {
        name: "reread: a read that began before the call counts",
        file: "core/src/shard/command.rs",
        good: "Standing::since(standing.joined().max(ticket))",
        bad: "Standing::since(standing.joined().min(ticket))",
        seeds: 200,
    },
    Bug {
        name: "an answer that is final is tried again",
        file: "core/src/node/reads.rs",
        good: "Err(error) if error.is_final() => Ok(Group::empty()),",
        bad: "",
        seeds: 50,
    },
    Bug {
        name: "a message that finds no room is dropped in silence",
        file: "core/src/shard/command.rs",
        good: "Pushed::Refused => self.fall_behind(conn),",
        bad: "Pushed::Refused => {}",
        seeds: 200,
    },
    Bug {
        name: "a dropped reply takes its own start for the present: what follows is given up too early",
        file: "core/src/resolve.rs",
        good: "let now = self.started.max(self.node.clock());",
        bad: "let now = self.started;",
        seeds: 4000,
    },
    Bug {
        name: "the outbox has no limit",
        file: "core/src/outbox.rs",
        good: "others == 0 || others + bytes <= limit",
        bad: "others == 0 || others + bytes <= 3 * limit",
        seeds: 50,
    },
    Bug {
        name: "rows that are queued survive unsubscribing",
        file: "core/src/shard/session.rs",
        good: "            self.revoke(conn, topic);\n            self.has_left(conn, left);",
        bad: "            self.has_left(conn, left);",
        seeds: 50,
    },
    Bug {
        name: "progress in writing doesn't count as life: slow clients are thrown out",
        file: "core/src/shard/mod.rs",
        good: "                    // The peer has taken bytes.\n                    state.last_alive = self.now;",
        bad: "",
        seeds: 4000,
    },
    Bug {
        name: "a wake-up is lost: no second look at the inbox after the flag is cleared",
        file: "core/src/node/port.rs",
        good: "            self.pending.swap(false, Ordering::SeqCst);\n            self.move_all(into);",
        bad: "            self.pending.swap(false, Ordering::SeqCst);",
        seeds: 0,
    },
    Bug {
        name: "a change of secret looks at the old topic before it has joined the new one: a notify in between is lost",
        file: "core/src/shard/session.rs",
        good: "            let new = self.find_or_join_topic(key, audience);\n            let standing = Standing::since(self.node.current_ticket());\n            let on_its_way =\n                self.node.is_busy(self.index, old_flight) || self.subscriptions.walked_topic() == Some(old);",
        bad: "            let on_its_way =\n                self.node.is_busy(self.index, old_flight) || self.subscriptions.walked_topic() == Some(old);\n            let new = self.find_or_join_topic(key, audience);\n            let standing = Standing::since(self.node.current_ticket());",
        seeds: 0,
    },
    Bug {
        name: "a second read of an entity begins where one may run",
        file: "core/src/node/gate.rs",
        good: "if state.running < limit.max(1) {",
        bad: "if state.running < limit.max(2) {",
        seeds: 0,
    },
    Bug {
        name: "a shard that has been woken is woken again for every mark",
        file: "core/src/node/port.rs",
        good: "if !self.pending.swap(true, Ordering::SeqCst) {",
        bad: "self.pending.swap(true, Ordering::SeqCst);\n        {",
        seeds: 0,
    },
    Bug {
        name: "room for a read is looked for under one lock and taken under another",
        file: "core/src/node/gate.rs",
        good: "        let mut state = lock(&self.0);\n        if state.running < limit.max(1) {\n            state.running += 1;\n            return Entry::Begin;\n        }",
        bad: "        if lock(&self.0).running < limit.max(1) {\n            lock(&self.0).running += 1;\n            return Entry::Begin;\n        }\n        let mut state = lock(&self.0);",
        seeds: 0,
    },
];

fn main() -> ExitCode {
    match plant_all() {
        Ok(missed) if missed.is_empty() => {
            println!("{} planted bugs, all found", BUGS.len());
            ExitCode::SUCCESS
        }
        Ok(missed) => {
            println!("{} planted bugs, not found: {missed:?}", BUGS.len());
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

fn plant_all() -> Result<Vec<&'static str>, Box<dyn Error>> {
    let root = root();
    let tree = root.join("target/planted/tree");
    for part in ["core", "tests/simulation"] {
        copy(&root.join(part), &tree.join(part))?;
    }
    fs::copy(root.join("Cargo.lock"), tree.join("Cargo.lock"))?;
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    let members = manifest.lines().find(|line| line.starts_with("members = "));
    let few = r#"members = ["core", "tests/simulation"]"#;
    fs::write(
        tree.join("Cargo.toml"),
        manifest.replace(members.ok_or("no members")?, few),
    )?;

    // Without a bug it must run clean, or finding means nothing.
    let most = BUGS.iter().map(|bug| bug.seeds).max().unwrap_or_default();
    if let Some(violation) = violation_in(&tree, most)?.or(failed_model_in(&tree)?) {
        return Err(format!("without any bug: {violation}").into());
    }
    let mut missed = Vec::new();
    for bug in BUGS {
        let path = tree.join(bug.file);
        let source = fs::read_to_string(&path)?;
        fs::write(&path, bug.plant(&source)?)?;
        let found = match bug.seeds {
            0 => failed_model_in(&tree)?,
            seeds => violation_in(&tree, seeds)?,
        };
        match found {
            Some(violation) => println!("{}\n    {violation}", bug.name),
            None => {
                println!("{}\n    NOT FOUND ({} seeds)", bug.name, bug.seeds);
                missed.push(bug.name);
            }
        }
        fs::write(&path, source)?;
    }
    Ok(missed)
}

/// Runs the simulation in `tree`, and gives what it said if it failed.
fn violation_in(tree: &Path, seeds: u32) -> Result<Option<String>, Box<dyn Error>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let run = |arguments: &[&str]| {
        Command::new(&cargo)
            .args(arguments)
            .current_dir(tree)
            .env("CARGO_TARGET_DIR", tree.with_file_name("target"))
            .output()
    };
    let built = run(&["build", "-q", "-p", "entity-sync-simulation"])?;
    if !built.status.success() {
        return Err(format!("it doesn't build:\n{}", String::from_utf8_lossy(&built.stderr)).into());
    }
    let seeds = seeds.to_string();
    let ran = run(&["run", "-q", "-p", "entity-sync-simulation", "--", "--seeds", &seeds])?;
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
    Ok(Some(lines.join(" ")))
}

/// Runs core's loom models in `tree`, and says which failed, if any.
fn failed_model_in(tree: &Path) -> Result<Option<String>, Box<dyn Error>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let ran = Command::new(&cargo)
        .args(["test", "-q", "-p", "entity-sync-core", "--lib", "models"])
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", tree.with_file_name("target-loom"))
        .env("RUSTFLAGS", "--cfg loom")
        .output()?;
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
        return Err(format!("the models don't build:\n{said}").into());
    }
    Ok(Some(failed.join(", ")))
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
    fn every_bug_has_its_place() -> Result<(), Box<dyn Error>> {
        for bug in BUGS {
            bug.plant(&fs::read_to_string(root().join(bug.file))?)?;
        }
        Ok(())
    }
}
