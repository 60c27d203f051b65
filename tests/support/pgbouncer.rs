//! A PgBouncer of the test's own in front of its [`Postgres`], from Debian's packages.

use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::postgres::{Postgres, as_postgres, free_port, id_of, is_root};
use crate::wait_for;

const PROGRAM: &str = "/usr/sbin/pgbouncer";

/// Stopped when it is dropped.
pub struct PgBouncer {
    port: u16,
    server: Child,
    _folder: tempfile::TempDir,
}

impl PgBouncer {
    /// One that shares `connections` connections of each user in this way (`transaction`, `session`). `None`, loudly, if it
    /// is not installed. With `REQUIRE_SERVERS` in the environment, as in CI, that is a failure.
    pub fn start(postgres: &Postgres, mode: &str, connections: usize) -> Option<Self> {
        if !Path::new(PROGRAM).exists() {
            let text = "SKIPPED: PgBouncer is not installed (apt-get install pgbouncer)";
            assert!(std::env::var_os("REQUIRE_SERVERS").is_none(), "{text}");
            eprintln!("{text}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let (port, users) = (free_port(), folder.path().join("users.txt"));
        std::fs::write(&users, "\"postgres\" \"\"\n\"entity_sync\" \"change-me\"\n").unwrap();
        let config = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = {mode}\ndefault_pool_size = {connections}\n",
            postgres.port(),
            users.display(),
        );
        std::fs::write(&config, text).unwrap();
        if is_root() {
            for path in [folder.path(), &users, &config] {
                chown(path, Some(id_of("-u")), Some(id_of("-g"))).unwrap();
            }
        }
        let mut server: Command = as_postgres(Path::new(PROGRAM));
        let server = server.arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let bouncer = Self {
            port,
            server: server.spawn().unwrap(),
            _folder: folder,
        };
        wait_for("PgBouncer to listen", || {
            TcpStream::connect(("127.0.0.1", bouncer.port)).is_ok()
        });
        Some(bouncer)
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
