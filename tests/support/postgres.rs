//! A PostgreSQL server of the test's own, from Debian's packages.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::wait_for;

/// Stopped and deleted when it is dropped.
pub struct Postgres {
    programs: PathBuf,
    folder: tempfile::TempDir,
    port: u16,
    server: Option<Child>,
}

impl Postgres {
    /// `None`, loudly, if it is not installed. With `REQUIRE_SERVERS` in the environment, as in CI, that is a failure.
    pub fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            let text = "SKIPPED: PostgreSQL is not installed (apt-get install postgresql)";
            assert!(std::env::var_os("REQUIRE_SERVERS").is_none(), "{text}");
            eprintln!("{text}");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        if is_root() {
            chown(folder.path(), Some(id_of("-u")), Some(id_of("-g"))).unwrap();
        }
        let port = free_port();
        let mut postgres = Self {
            programs,
            folder,
            port,
            server: None,
        };
        let data = postgres.data();
        let mut init = postgres.program("initdb");
        init.args([
            "--auth=trust",
            "--username=postgres",
            "--encoding=UTF8",
            "--no-sync",
            "--pgdata",
        ])
        .arg(data);
        good(&init.output().unwrap());
        postgres.resume();
        Some(postgres)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts it, again perhaps, on the same port and data.
    pub fn resume(&mut self) {
        let mut server = self.program("postgres");
        server
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string(), "-c", "fsync=off"]);
        server.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
        self.server = Some(server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        wait_for("PostgreSQL to answer", || {
            self.psql("postgres", "SELECT 1").status.success()
        });
    }

    /// Stops it at once, with all connections.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // To the process itself: it was exec'ed by what changed the user.
            let pid = server.id().to_string();
            good(&Command::new("kill").args(["-QUIT", &pid]).output().unwrap());
            server.wait().unwrap();
        }
    }

    /// Runs SQL, and gives what it gives.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let output = self.psql(database, sql);
        good(&output);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The same as another user, through what listens on `port`.
    pub fn sql_at(&self, port: u16, user: &str, database: &str, sql: &str) -> String {
        let output = self.psql_at(port, user, database, sql);
        good(&output);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Has it encrypt connections of those who want that.
    pub fn encrypt(&self, certificate: &str, key: &str) {
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = self.data().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            if is_root() {
                chown(&path, Some(id_of("-u")), Some(id_of("-g"))).unwrap();
            }
        }
        self.sql("postgres", "ALTER SYSTEM SET ssl = on");
        self.sql("postgres", "SELECT pg_reload_conf()");
        wait_for("encryption", || self.sql("postgres", "SHOW ssl") == "on");
    }

    fn psql(&self, database: &str, sql: &str) -> Output {
        self.psql_at(self.port, "postgres", database, sql)
    }

    fn psql_at(&self, port: u16, user: &str, database: &str, sql: &str) -> Output {
        Command::new(self.programs.join("psql"))
            .args([
                "--no-psqlrc",
                "--quiet",
                "--no-align",
                "--tuples-only",
                "--set=ON_ERROR_STOP=1",
            ])
            .args(["--host=127.0.0.1", "--username", user, "--dbname", database])
            .args(["--port", &port.to_string(), "--command", sql])
            // Only its listener is encrypted.
            .env("PGSSLMODE", "disable")
            .output()
            .unwrap()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn program(&self, name: &str) -> Command {
        as_postgres(&self.programs.join(name))
    }
}

/// A program that refuses to run as root.
pub(crate) fn as_postgres(path: &Path) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"])
            .arg(path);
        command
    } else {
        Command::new(path)
    };
    command.current_dir("/");
    command
}

pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The newest version's.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let folders = versions.filter_map(|it| Some(it.ok()?.path().join("bin")));
    folders
        .filter(|it| it.join("initdb").exists())
        .max_by_key(|it| version(it))
}

fn version(programs: &Path) -> Option<u32> {
    programs.parent()?.file_name()?.to_str()?.parse().ok()
}

pub(crate) fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    output.stdout == b"0\n"
}

pub(crate) fn id_of(which: &str) -> u32 {
    let output = Command::new("id").args([which, "postgres"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

fn good(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
