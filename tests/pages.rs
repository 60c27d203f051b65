//! What the examples of the pages and of the documentation of all crates must never do to those who copy them.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All files with one of these extensions, build folders left out.
fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        let is_left_out = ["target", ".git"].iter().any(|it| name == *it);
        if path.is_dir() && !is_left_out {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|it| it == extension) {
            found.push(path);
        }
    }
}

/// A program or a piece of one, and where it is.
struct Example {
    place: String,
    language: String,
    text: String,
}

/// The fenced blocks of a page, or of the comments that document code.
fn examples(path: &Path) -> Vec<Example> {
    let text = fs::read_to_string(path).unwrap();
    let is_code = path.extension().is_some_and(|it| it == "rs");
    let mut examples = Vec::new();
    let mut open: Option<Example> = None;
    for (number, line) in text.lines().enumerate() {
        let line = if is_code {
            let line = line.trim_start();
            match line.strip_prefix("//!").or(line.strip_prefix("///")) {
                Some(line) => line.strip_prefix(' ').unwrap_or(line),
                None => continue,
            }
        } else {
            line
        };
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => examples.extend(open.take()),
            (Some(language), None) => {
                let place = format!("{}:{}", path.display(), number + 1);
                let language = match language {
                    "" if is_code => "rust",
                    language => language,
                };
                open = Some(Example {
                    place,
                    language: language.to_owned(),
                    text: String::new(),
                });
            }
            (None, Some(example)) => example.text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    examples
}

fn all() -> Vec<Example> {
    let mut paths = vec![root().join("README.md")];
    for (folder, extension) in [
        ("docs", "md"),
        ("core/src", "rs"),
        ("adapters", "rs"),
        ("core/examples", "rs"),
    ] {
        files(&root().join(folder), extension, &mut paths);
    }
    let examples: Vec<_> = paths.iter().flat_map(|path| examples(path)).collect();
    assert!(examples.len() > 40, "{}", examples.len());
    examples
}

fn is_rust(example: &Example) -> bool {
    example.language.starts_with("rust") || example.language == "no_run"
}

/// What a client wrote is a key to look up, and nothing else: what an example does with it is done with it everywhere.
#[test]
fn no_example_gives_away_what_a_client_names() {
    const NEVER: [(&str, &str); 5] = [
        ("fs::read", "reads a file"),
        ("File::open", "reads a file"),
        ("Command::new", "runs a program"),
        ("x-user", "believes a header that anybody can send"),
        ("{:?}}", "makes JSON out of Rust's way to show text"),
    ];
    for example in all().iter().filter(|it| is_rust(it)) {
        for (part, what) in NEVER {
            assert!(
                !example.text.contains(part),
                "{} {what}: {}",
                example.place,
                example.text
            );
        }
    }
}

#[test]
fn no_program_ends_as_soon_as_it_was_started() {
    let mut count = 0;
    for example in all().iter().filter(|it| is_rust(it)) {
        let starts = [".start()?", "Server::start("]
            .iter()
            .any(|it| example.text.contains(it));
        if !starts || !example.text.contains("fn main()") {
            continue;
        }
        count += 1;
        let stays = ["read_line(", "in 0.. {", ".await?;", "loop {"];
        let stays = stays.iter().any(|it| example.text.contains(it));
        assert!(stays, "{} ends at once: {}", example.place, example.text);
    }
    assert!(count >= 5, "{count}");
}

/// Files with secrets are for their owner alone.
#[test]
fn no_command_writes_a_secret_for_all_to_read() {
    let mut paths = vec![root().join("README.md")];
    for (folder, extension) in [("docs", "md"), ("adapters", "rs")] {
        files(&root().join(folder), extension, &mut paths);
    }
    let mut count = 0;
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        for (at, _) in text.match_indices("head -c 32") {
            count += 1;
            assert!(text[..at].ends_with("umask 077; "), "{}", path.display());
        }
    }
    assert!(count > 5, "{count}");
}
