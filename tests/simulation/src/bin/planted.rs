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
    /// It is found within so many seeds, from seed 0 on.
    seeds: u32,
}

const BUGS: &[Bug] = &[
    Bug {
        name: "no owed read: a notify during a read is forgotten",
        file: "core/src/flights.rs",
        good: "        if !self.interests.is_empty() {\n            self.owed_to_all = true;",
        bad: "        if !self.interests.is_empty() && self.state == State::Idle {\n            self.owed_to_all = true;",
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
        good: ".position(|item| matches!(item, Item::Group { topic, .. } if *topic == wanted))",
        bad: ".position(|item| matches!(item, Item::Group { topic, .. } if *topic == wanted || self.group_bytes > 200))",
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
        good: "self.interests.is_empty() && !matches!(self.state, State::Running(_))",
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

fn plant_all() -> Result<Vec<&'static str>, Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
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
    if let Some(violation) = violation_in(&tree, most)? {
        return Err(format!("without any bug: {violation}").into());
    }
    let mut missed = Vec::new();
    for bug in BUGS {
        let path = tree.join(bug.file);
        let source = fs::read_to_string(&path)?;
        if source.matches(bug.good).count() != 1 {
            return Err(format!("{:?} has no place in {} any more: mend the list", bug.name, bug.file).into());
        }
        fs::write(&path, source.replace(bug.good, bug.bad))?;
        match violation_in(&tree, bug.seeds)? {
            Some(violation) => println!("{}\n    {violation}", bug.name),
            None => {
                println!("{}\n    NOT FOUND in {} seeds", bug.name, bug.seeds);
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
