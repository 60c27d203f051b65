//! Shows that the simulator finds bugs: plants one at a time in a copy of core, and expects a violation within a stated
//! number of seeds. Core itself has no switch for bugs.
#![allow(clippy::print_stdout, reason = "a program that reports")]

mod bugs;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

use bugs::{BUGS, Bug, By};
use clap::Parser;

use By::{ClusterSeeds, Models, PlainSeeds, Seeds, UnitTests};

/// Plants bugs in a copy of core, and shows that each is found.
#[derive(Parser)]
struct Args {
    /// Only those whose names contain this.
    #[arg(default_value = "")]
    part: String,
    /// Only so many of them, drawn anew each time.
    #[arg(long)]
    random: Option<usize>,
}

fn main() -> ExitCode {
    let Args { part, random } = Args::parse();
    let bugs: Vec<_> = BUGS.iter().filter(|bug| bug.name.contains(&part)).collect();
    let bugs = match random {
        Some(count) => fastrand::choose_multiple(bugs, count),
        None => bugs,
    };
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
        vec![
            ClusterSeeds(most(bugs, ClusterSeeds)),
            PlainSeeds(most(bugs, PlainSeeds)),
        ],
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
                        match garden.shows(bug) {
                            Ok(true) => {}
                            Ok(false) => missed.push(bug.name),
                            // The others are looked for all the same: one run says all that is wrong.
                            Err(error) => {
                                println!("{error}");
                                missed.push(bug.name);
                            }
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
        Seeds(seeds) | ClusterSeeds(seeds) | PlainSeeds(seeds) if kind(seeds) == bug.found_by => Some(seeds),
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
            PlainSeeds(seeds) => self.violation(&["--plain", "--seeds", &seeds.to_string()]),
            Models => self.failed_tests("models", "--cfg loom"),
            UnitTests(module) => self.failed_tests(module, ""),
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

    /// Runs core's tests of a module, built with these flags, and says which failed, if any.
    fn failed_tests(&self, module: &str, flags: &str) -> Result<Option<String>, String> {
        // Builds with other flags replace each other.
        let target = match flags {
            "" => "target",
            _ => "target-loom",
        };
        let ran = cargo(&self.tree, &["test", "-q", "-p", "entity-sync-core", "--lib", module])
            .env("CARGO_TARGET_DIR", self.tree.with_file_name(target))
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("RUSTFLAGS", flags)
            .output()
            .map_err(|error| format!("cargo: {error}"))?;
        if ran.status.success() {
            return Ok(None);
        }
        let said = [ran.stdout, ran.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let failed: Vec<_> = said
            .lines()
            .filter(|line| line.trim_start() != *line && line.trim().starts_with(module))
            .map(str::trim)
            .collect();
        if failed.is_empty() {
            return Err(format!("the tests don't build:\n{said}"));
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
