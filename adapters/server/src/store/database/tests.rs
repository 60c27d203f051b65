use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn open(path: &Path) -> Result<Connection, StoreError> {
    super::open(&Location::File(path.to_owned()))
}

fn key(id: &str) -> EntityKey {
    EntityKey::new("items", id).expect("short")
}

#[test]
fn a_commit_is_synced_before_it_returns() {
    let directory = directory();
    let connection = open(&directory.path().join("data.db")).expect("opens");
    let ask = |name: &str| -> String {
        let value = connection.pragma_query_value(None, name, |row| row.get(0));
        let value: rusqlite::types::Value = value.expect("known");
        format!("{value:?}")
    };
    assert_eq!(ask("journal_mode"), "Text(\"wal\")");
    const FULL: &str = "Integer(2)";
    assert_eq!(ask("synchronous"), FULL);
}

#[test]
fn opening_says_what_is_wrong_with_the_place() {
    let directory = directory();
    let missing = directory.path().join("missing");
    assert_eq!(
        open(&missing.join("data.db")).expect_err("refused"),
        StoreError::DirectoryMissing { directory: missing }
    );
    for path in [directory.path(), Path::new(""), Path::new("..")] {
        assert_eq!(
            open(path).expect_err("refused"),
            StoreError::NotAFile { path: path.into() }
        );
    }
    let inside_a_file = directory.path().join("file");
    fs::write(&inside_a_file, "").expect("written");
    assert!(matches!(
        open(&inside_a_file.join("data.db")),
        Err(StoreError::CannotOpen { .. })
    ));
}

#[test]
fn names_that_mean_something_to_sqlite_are_plain_names() {
    let directory = directory();
    for name in [":memory:", "file:x?mode=memory"] {
        let path = directory.path().join(name);
        let connection = open(&path).expect("opens");
        put(&connection, &key("1"), "{}").expect("put");
        drop(connection);
        assert!(path.is_file());
        let connection = open(&path).expect("opens");
        let body = get(&connection, &key("1")).expect("reads");
        assert_eq!(body, Some(b"{}".to_vec()));
    }
}

#[test]
fn files_of_others_are_left_alone() {
    let directory = directory();
    let path = directory.path().join("data.db");
    let refused = |expected: StoreError| {
        let before = fs::read(&path).expect("a file");
        assert_eq!(open(&path).expect_err("refused"), expected);
        assert!(fs::read(&path).expect("a file") == before, "it was changed");
        fs::remove_file(&path).expect("removed");
    };
    let sqlite = |sql: &str| {
        let other = Connection::open(&path).expect("opens");
        other.execute_batch(sql).expect("valid");
    };
    for text in ["hello".to_owned(), "x".repeat(8192)] {
        fs::write(&path, text).expect("written");
        refused(StoreError::NotADatabase { path: path.clone() });
    }
    for foreign in [
        "CREATE TABLE theirs (a)",
        "CREATE TABLE entities (entity, id, body)",
        "PRAGMA application_id = 7",
        "PRAGMA user_version = 1",
    ] {
        sqlite(foreign);
        refused(StoreError::NotOurs { path: path.clone() });
    }
    drop(open(&path).expect("opens"));
    sqlite("PRAGMA user_version = 2");
    refused(StoreError::Newer {
        path: path.clone(),
        format: 2,
    });
    fs::write(&path, "").expect("written");
    open(&path).expect("an empty file is nobody's");
}

/// Permissions don't bind the superuser, so the test runs itself again without that privilege.
#[test]
fn a_file_that_was_read_only_can_be_mended() {
    let directory = directory();
    let path = directory.path().canonicalize().expect("a path").join("data.db");
    drop(open(&path).expect("opens"));
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
    set(&path, 0o400);
    if fs::OpenOptions::new().write(true).open(&path).is_ok() {
        let output = std::process::Command::new("setpriv")
            .args(["--bounding-set=-dac_override", "--inh-caps=-dac_override", "--"])
            .arg(std::env::current_exe().expect("a path"))
            .args([
                "--exact",
                "store::database::tests::a_file_that_was_read_only_can_be_mended",
            ])
            .output();
        let text = output.map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
        assert!(text.as_ref().is_ok_and(|it| it.contains("1 passed")), "{text:?}");
        return;
    }
    let refused = |file: &Path| match open(&path).expect_err("refused") {
        StoreError::CannotOpen { path, reason } => assert_eq!((&*path, &*reason), (file, "it is read-only")),
        other => panic!("{other}"),
    };
    refused(&path);
    set(&path, 0o600);
    let connection = open(&path).expect("mended");
    put(&connection, &key("1"), "{}").expect("put");
    // As an earlier release left it.
    let shm = path.with_file_name("data.db-shm");
    set(&shm, 0o400);
    refused(&shm);
}

#[test]
fn files_are_their_owners_alone() {
    let directory = directory();
    let path = directory.path().join("data.db");
    let connection = open(&path).expect("opens");
    put(&connection, &key("1"), "{}").expect("put");
    let files = fs::read_dir(directory.path())
        .expect("a folder")
        .map(|it| it.expect("a file"));
    let modes: Vec<_> = files
        .map(|it| {
            (
                it.file_name(),
                it.metadata().expect("there").permissions().mode() & 0o777,
            )
        })
        .collect();
    assert_eq!(modes.len(), 3, "{modes:?}");
    assert!(modes.iter().all(|(_, mode)| *mode == 0o600), "{modes:?}");
    // What its owner has decided otherwise stays.
    drop(connection);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("set");
    drop(open(&path).expect("opens"));
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
}

#[test]
fn a_damaged_file_is_an_error() {
    let directory = directory();
    let path = directory.path().join("data.db");
    let connection = open(&path).expect("opens");
    for i in 0..100 {
        put(&connection, &key(&i.to_string()), &"x".repeat(1000)).expect("put");
    }
    drop(connection);
    let mut bytes = fs::read(&path).expect("a file");
    bytes[4096..].fill(0xAA);
    fs::write(&path, bytes).expect("written");
    let error = open(&path).expect_err("damaged");
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}
