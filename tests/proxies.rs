//! The proxies of `docs/troubleshooting.md`, with the very lines of that page, in front of the binary.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use entity_sync_tests::{PATIENCE, wait_for};
use tokio_rustls::rustls;

use crate::binary::{Process, binary};

const PAGE: &str = include_str!("../docs/troubleshooting.md");
const HOST: &str = "sync.example.com";

/// How long the proxies' time-outs are here.
const IDLE: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nginx,
    HaProxy,
    Caddy,
}

/// A proxy that runs in the foreground, killed at the end.
struct Proxy {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::HaProxy => "haproxy",
            Self::Caddy => "caddy",
        }
    }

    /// The page's lines.
    fn lines(self) -> &'static str {
        let language = match self {
            Self::Nginx => "```nginx\n",
            Self::HaProxy => "```haproxy\n",
            Self::Caddy => "```caddyfile\n",
        };
        let (_, rest) = PAGE.split_once(language).unwrap();
        rest.split_once("```").unwrap().0
    }

    /// Where it is. `None`, loudly, if it is not installed. With `REQUIRE_SERVERS`, as in CI, that is a failure.
    fn program(self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/bin".into()]);
        let found = folders.map(|it| it.join(self.name())).find(|it| it.is_file());
        if found.is_none() {
            let text = format!("SKIPPED: {0} is not installed (apt-get install {0})", self.name());
            assert!(std::env::var_os("REQUIRE_SERVERS").is_none(), "{text}");
            eprintln!("{text}");
        }
        found
    }

    /// What differs between a page and a test: ports, files and how long it takes.
    fn configuration(self, process: &Process, folder: &Path, port: u16) -> String {
        let file = |name: &str| folder.join(name).display().to_string();
        let clients = process.clients.to_string();
        let api_port = process.api.port().to_string();
        let replacements = match self {
            Self::Nginx => vec![
                ("listen 443 ssl;", format!("listen 127.0.0.1:{port} ssl;")),
                ("/etc/ssl/sync.example.com.pem", file("both.pem")),
                ("/etc/ssl/sync.example.com.key", file("key.pem")),
                ("127.0.0.1:8080", clients),
                (
                    "proxy_read_timeout 60s;",
                    format!("proxy_read_timeout {}s;", IDLE.as_secs()),
                ),
            ],
            Self::HaProxy => vec![
                ("bind :443", format!("bind 127.0.0.1:{port}")),
                ("/etc/haproxy/sync.example.com.pem", file("both.pem")),
                ("127.0.0.1:8080", clients),
                ("port 8081", format!("port {api_port}")),
                ("timeout tunnel 1m", format!("timeout tunnel {}s", IDLE.as_secs())),
            ],
            Self::Caddy => vec![
                (
                    "sync.example.com {",
                    format!(
                        "https://{HOST}:{port}, https://localhost:{port} {{\n    bind 127.0.0.1\n    tls {} {}",
                        file("both.pem"),
                        file("key.pem")
                    ),
                ),
                ("127.0.0.1:8080", clients),
            ],
        };
        let mut lines = self.lines().to_owned();
        for (old, new) in replacements {
            assert_eq!(lines.matches(old).count(), 1, "{old:?} in {lines}");
            lines = lines.replace(old, &new);
        }
        match self {
            Self::Nginx => {
                let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|it| format!("{it}_temp_path {};", file(it)));
                format!(
                    "daemon off;\nworker_processes 1;\npid {};\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{}\n{lines}}}\n",
                    file("pid"),
                    temp.join("\n")
                )
            }
            Self::HaProxy => format!("{lines}\n"),
            Self::Caddy => format!("{{\n    admin off\n    auto_https disable_redirects\n}}\n{lines}"),
        }
    }

    fn start(self, process: &Process) -> Option<Proxy> {
        let program = self.program()?;
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let certified = rcgen::generate_simple_self_signed([HOST.to_owned(), "localhost".to_owned()]).unwrap();
        let (certificate, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
        let config = folder.path().join("config");
        for (name, text) in [
            ("certificate.pem", &certificate),
            ("key.pem", &key),
            ("both.pem", &format!("{certificate}{key}")),
            ("config", &self.configuration(process, folder.path(), port)),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let mut command = Command::new(program);
        match self {
            Self::Nginx => command
                .args(["-e", "stderr", "-p"])
                .arg(folder.path())
                .arg("-c")
                .arg(&config),
            Self::HaProxy => command.args(["-db", "-f"]).arg(&config),
            Self::Caddy => command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&config),
        };
        // Caddy keeps what it fetches in its user's folder.
        command.env("HOME", folder.path()).env("XDG_DATA_HOME", folder.path());
        command.env("XDG_CONFIG_HOME", folder.path());
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut proxy = Proxy {
            child: command.spawn().unwrap(),
            folder,
            port,
        };
        wait_for("the proxy to lead to the server", || {
            let ended = proxy.child.try_wait().unwrap();
            assert_eq!(ended, None, "{}", proxy.log());
            proxy.try_upgrade("").is_some_and(|status| status == "101")
        });
        Some(proxy)
    }
}

impl Proxy {
    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn url(&self) -> String {
        format!("wss://localhost:{}/ws/entity-sync/", self.port)
    }

    fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    /// The status of an upgrade by the host's name, as browsers ask, with this header.
    fn try_upgrade(&self, header: &str) -> Option<String> {
        use rustls::pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        let certificate = rustls::pki_types::CertificateDer::from_pem_file(self.certificate()).unwrap();
        roots.add(certificate).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tls = rustls::ClientConnection::new(Arc::new(config), HOST.try_into().unwrap()).unwrap();
        let stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut stream = rustls::StreamOwned::new(tls, stream);
        let request = format!(
            "GET /ws/entity-sync/ HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{header}\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[9..]).into_owned())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // In good order, as nginx and HAProxy have processes of their own that would stay.
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        for _ in 0..50 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `entity-sync watch` through a proxy, and what it says.
struct Watching {
    child: Child,
    rows: Receiver<String>,
    status: Receiver<String>,
}

impl Watching {
    fn start(proxy: &Proxy) -> Self {
        let mut child = Command::new(binary())
            .args(["watch", &proxy.url(), "items/1", "--ca"])
            .arg(proxy.certificate())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let rows = lines(child.stdout.take().unwrap());
        let status = lines(child.stderr.take().unwrap());
        let watching = Self { child, rows, status };
        let said = watching.status.recv_timeout(PATIENCE).unwrap();
        assert!(said.starts_with("watching items/1"), "{said}");
        watching
    }

    fn row(&self) -> String {
        self.rows.recv_timeout(PATIENCE).unwrap()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (line, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let all = BufReader::new(from).lines().map_while(Result::ok);
        all.for_each(|it| drop(line.send(it)));
    });
    lines
}

/// A push comes through, and the server's pings keep a connection that nothing is pushed to.
fn serves(kind: Kind) {
    let origin = format!("--origin=https://{HOST}");
    let process = Process::start_with(":memory:", &[&origin, "--ping-interval=1", "--dead-after=30"]);
    let Some(proxy) = kind.start(&process) else { return };
    process.put("1", r#"{"name":"bicycle"}"#);
    let watching = Watching::start(&proxy);
    assert_eq!(watching.row(), r#"{"name":"bicycle"}"#, "the present state");
    process.put("1", r#"{"name":"lamp"}"#);
    assert_eq!(watching.row(), r#"{"name":"lamp"}"#);
    let header = |origin: &str| format!("Origin: https://{origin}\r\n");
    assert_eq!(proxy.try_upgrade(&header(HOST)).as_deref(), Some("101"));
    assert_eq!(proxy.try_upgrade(&header("example.org")).as_deref(), Some("403"));
    std::thread::sleep(IDLE * 2);
    process.put("1", r#"{"name":"chair"}"#);
    assert_eq!(watching.row(), r#"{"name":"chair"}"#);
    assert_eq!(watching.status.try_recv().ok(), None, "it was cut off");

    // Without pings it is cut off: they are what keeps it.
    if kind == Kind::Caddy {
        return;
    }
    let process = Process::start_with(":memory:", &[&origin, "--ping-interval=60", "--dead-after=120"]);
    let Some(proxy) = kind.start(&process) else { return };
    let watching = Watching::start(&proxy);
    let said = watching.status.recv_timeout(IDLE * 5).unwrap();
    assert!(said.starts_with("disconnected"), "{said}");
}

#[test]
fn nginx() {
    serves(Kind::Nginx);
}

#[test]
fn haproxy() {
    serves(Kind::HaProxy);
}

#[test]
fn caddy() {
    serves(Kind::Caddy);
}
