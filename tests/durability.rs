//! The embedded store of the binary on disks that are full, read-only or damaged.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use entity_sync_tests::Client;

use crate::binary::{Process, binary, run_with};

/// A small file system in memory, unmounted at the end. Only the superuser can have one.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn mounted(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder.path());
        let is_mounted = mount.output().is_ok_and(|output| output.status.success());
        if !is_mounted {
            eprintln!("SKIPPED: no file system can be mounted here, which takes the superuser");
            return None;
        }
        Some(Self { folder })
    }

    fn remount(&self, options: &str) {
        let mut mount = Command::new("mount");
        mount
            .args(["-o", &format!("remount,{options}")])
            .arg(self.folder.path());
        assert!(mount.status().unwrap().success());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Nobody has a file there any more; if it fails all the same, the folder stays.
        let _ = Command::new("umount").arg(self.folder.path()).status();
    }
}

#[track_caller]
fn says(answer: &(u16, String), status: u16, parts: &[&str]) {
    assert_eq!(answer.0, status, "{}", answer.1);
    for part in parts {
        assert!(answer.1.contains(part), "{part:?} is not in {}", answer.1);
    }
}

/// A process that has stored some rows and has ended in good order.
fn stored(data: &Path, rows: usize, row: impl Fn(usize) -> String) {
    let mut process = Process::start(data.to_str().unwrap());
    for id in 0..rows {
        process.put(&id.to_string(), &row(id));
    }
    assert_eq!(process.end(), Some(0));
}

#[test]
fn a_full_disk_refuses_writes_and_what_can_be_read_is_pushed() {
    let Some(disk) = Disk::mounted("size=4m") else { return };
    let data = disk.path("data.db");
    let process = Process::start(data.to_str().unwrap());
    process.put("1", "\"small\"");
    let mut client = Client::connect(process.clients);
    client.subscribe("items", "1");
    client.sync();

    // Something else fills the disk.
    let filler = disk.path("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);
    // There may be room in what SQLite has already.
    let large = format!("\"{}\"", "x".repeat(500_000));
    let answer = process.call("PUT", "/entities/items/large", &large);
    let said = [
        r#""code":"disk_full""#,
        r#""message":"the disk that holds the data file is full""#,
        r#""hint":"free some space, then write again; reads go on meanwhile""#,
    ];
    says(&answer, 507, &said);
    says(
        &process.call("GET", "/entities/items/large", ""),
        404,
        &["nothing is stored"],
    );
    says(&process.call("GET", "/entities/items/1", ""), 200, &["\"small\""]);
    says(&process.call("GET", "/healthz", ""), 200, &["ok"]);
    let notify = process.call("POST", "/notify", r#"{"entity":"items","id":"1"}"#);
    says(&notify, 202, &[]);
    assert_eq!(client.row(), "\"small\"");

    fs::remove_file(&filler).unwrap();
    says(&process.call("PUT", "/entities/items/large", &large), 201, &[]);
    process.put("1", "\"again\"");
    assert_eq!(client.row(), "\"again\"");
    process.signal("-KILL");
    drop(process);
    let process = Process::start(data.to_str().unwrap());
    says(&process.call("GET", "/entities/items/large", ""), 200, &[&large]);
    says(&process.call("GET", "/entities/items/1", ""), 200, &["\"again\""]);
    drop(process);
}

#[test]
fn a_disk_that_is_full_from_the_start_is_said() {
    let Some(disk) = Disk::mounted("size=64k") else { return };
    let mut file = fs::File::create(disk.path("filler")).unwrap();
    while file.write_all(&[1; 1024]).is_ok() {}
    let (code, said) = refused(&disk.path("data.db"));
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(
        said,
        "entity-sync: the disk that holds the data file is full: free some space, then write again; reads go on meanwhile\n"
    );
}

#[test]
fn a_read_only_disk_is_said() {
    let Some(disk) = Disk::mounted("size=4m") else { return };
    let data = disk.path("data.db");
    stored(&data, 1, |_| "{}".to_owned());
    disk.remount("ro");
    for (name, reason) in [
        ("data.db", "it is read-only)"),
        ("other.db", "unable to open database file"),
    ] {
        let (code, said) = refused(&disk.path(name));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&format!("{name} can't be opened ({reason}")), "{said}");
        assert!(said.contains("and the disk must not be mounted read-only"), "{said}");
    }
}

fn refused(data: &Path) -> (Option<i32>, String) {
    let listen = ["--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--data"];
    run_with(&binary(), &[&listen[..], &[data.to_str().unwrap()]].concat())
}

#[test]
fn of_a_damaged_file_what_can_be_read_is_pushed() {
    const ROWS: usize = 400;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.db");
    let row = |id: usize| format!("\"{id:04}{}\"", "x".repeat(3000));
    stored(&data, ROWS, row);
    let mut file = fs::OpenOptions::new().write(true).open(&data).unwrap();
    let middle = fs::metadata(&data).unwrap().len() / 2 / 4096 * 4096;
    file.seek(SeekFrom::Start(middle)).unwrap();
    file.write_all(&[0xff; 8 * 4096]).unwrap();
    drop(file);

    let process = Process::start(data.to_str().unwrap());
    let mut good = Vec::new();
    for id in 0..ROWS {
        let answer = process.call("GET", &format!("/entities/items/{id}"), "");
        if answer.0 == 200 {
            assert_eq!(answer.1, row(id));
            good.push(id);
        } else {
            let said = [
                r#""code":"store_failed""#,
                "the data file is damaged (database disk image is malformed)",
                "stop the server, and restore the file from a backup",
            ];
            says(&answer, 500, &said);
        }
    }
    assert!((ROWS / 2..ROWS).contains(&good.len()), "{} can be read", good.len());
    // Those that can't be read hold up no others, of the same client and in the same batch.
    let mut client = Client::connect(process.clients);
    for id in 0..ROWS {
        client.subscribe("items", &id.to_string());
    }
    client.sync();
    let keys: Vec<_> = (0..ROWS)
        .map(|id| format!(r#"{{"entity":"items","id":"{id}"}}"#))
        .collect();
    let notify = process.call("POST", "/notify", &format!("[{}]", keys.join(",")));
    says(&notify, 202, &[]);
    let mut pushed: Vec<_> = good.iter().map(|_| client.row()).collect();
    pushed.sort();
    let expected: Vec<_> = good.iter().map(|&id| row(id)).collect();
    assert_eq!(pushed, expected);
}

#[test]
fn a_file_that_is_cut_off_or_overwritten_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.db");
    stored(&data, 50, |_| format!("\"{}\"", "x".repeat(1000)));
    let whole = fs::read(&data).unwrap();
    let mut overwritten = whole.clone();
    overwritten[..4096].fill(b'x');
    for (bytes, message) in [
        (
            &overwritten[..],
            "data.db is not a SQLite database: it was left as it is",
        ),
        (
            &whole[..4096],
            "the data file is damaged (database disk image is malformed): stop the server, and restore",
        ),
    ] {
        fs::write(&data, bytes).unwrap();
        let (code, said) = refused(&data);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(message), "{said}");
        assert!(fs::read(&data).unwrap() == bytes, "it was changed");
    }
}

/// Whoever was answered before the process was killed finds it stored, however many wrote at the same time.
#[test]
fn what_many_were_answered_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.db");
    let process = Process::start(data.to_str().unwrap());
    let answered: Vec<Vec<String>> = std::thread::scope(|scope| {
        let process = &process;
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                scope.spawn(move || {
                    let ids = (0..).map(|n| format!("{writer}-{n}"));
                    ids.take_while(|id| process.try_put(id, &format!("\"{id}\""))).collect()
                })
            })
            .collect();
        std::thread::sleep(std::time::Duration::from_millis(300));
        process.signal("-KILL");
        writers.into_iter().map(|it| it.join().unwrap()).collect()
    });
    drop(process);
    assert!(answered.iter().all(|ids| !ids.is_empty()));
    let process = Process::start(data.to_str().unwrap());
    for id in answered.iter().flatten() {
        says(
            &process.call("GET", &format!("/entities/items/{id}"), ""),
            200,
            &[&format!("\"{id}\"")],
        );
    }
}
