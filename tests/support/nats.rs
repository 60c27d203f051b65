//! A NATS server of the test's own, from Debian's package.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::wait_for;

/// Killed when it is dropped.
pub struct Nats {
    program: PathBuf,
    folder: tempfile::TempDir,
    port: u16,
    server: Option<Child>,
}

impl Nats {
    /// `None`, loudly, if it is not installed. With `REQUIRE_SERVERS` in the environment, as in CI, that is a failure.
    pub fn start() -> Option<Self> {
        let mut nats = Self::prepare()?;
        nats.resume();
        Some(nats)
    }

    /// As `start`, with these lines in its configuration.
    pub fn start_with(config: &str) -> Option<Self> {
        let mut nats = Self::prepare()?;
        nats.configure(config);
        nats.resume();
        Some(nats)
    }

    /// It has a port and a configuration, and does not run.
    pub fn prepare() -> Option<Self> {
        let Some(program) = program() else {
            let text = "SKIPPED: the NATS server is not installed (apt-get install nats-server)";
            assert!(std::env::var_os("REQUIRE_SERVERS").is_none(), "{text}");
            eprintln!("{text}");
            return None;
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let nats = Self {
            program,
            folder: tempfile::tempdir().unwrap(),
            port: listener.local_addr().unwrap().port(),
            server: None,
        };
        nats.configure("");
        Some(nats)
    }

    /// For when it is started next.
    pub fn configure(&self, config: &str) {
        let text = format!("listen: 127.0.0.1:{}\n{config}\n", self.port);
        std::fs::write(self.folder.path().join("nats.conf"), text).unwrap();
    }

    /// Starts it, again perhaps, on the same port.
    pub fn resume(&mut self) {
        assert!(self.server.is_none());
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.folder.path().join("nats.conf"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = command.current_dir(self.folder.path()).spawn().unwrap();
        wait_for("the NATS server to answer", || {
            assert!(
                server.try_wait().unwrap().is_none(),
                "it does not run: look at its configuration"
            );
            answers(self.port)
        });
        self.server = Some(server);
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    /// As `kill -STOP`, for example.
    pub fn signal(&self, name: &str) {
        let pid = self.server.as_ref().unwrap().id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status();
        assert!(status.unwrap().success());
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// For those who need not say who they are.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Where its files may be.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    folders.map(|it| it.join("nats-server")).find(|it| it.is_file())
}

/// Whether it greets whoever connects.
fn answers(port: u16) -> bool {
    let mut greeting = [0; 5];
    let stream = TcpStream::connect(("127.0.0.1", port));
    stream.is_ok_and(|mut it| it.read_exact(&mut greeting).is_ok() && &greeting == b"INFO ")
}
