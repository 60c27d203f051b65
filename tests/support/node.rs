//! [`Node`]: a process of the `entity-sync` binary, at an address of its own, that can be killed and come back there.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Lines};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::PATIENCE;
use crate::program::{binary, own_address};

/// A node. Its process is killed when it is dropped.
pub struct Node {
    pub name: String,
    /// Where it listens for clients.
    pub clients: SocketAddr,
    api: SocketAddr,
    bus: SocketAddr,
    flags: Vec<String>,
    log: PathBuf,
    agent: ureq::Agent,
    running: Option<Running>,
}

struct Running {
    child: Child,
    /// `None` once it was read.
    greeting: Option<Lines<BufReader<ChildStdout>>>,
}

impl Node {
    /// Its addresses are known, and nothing runs. It logs to a file in `folder`.
    pub fn prepare(folder: &Path, name: &str) -> Self {
        let address = own_address();
        let at = |port| SocketAddr::new(address, port);
        Self {
            name: name.to_owned(),
            clients: at(8080),
            api: at(8081),
            bus: at(7000),
            flags: Vec::new(),
            log: folder.join(format!("{name}.log")),
            agent: agent(PATIENCE),
            running: None,
        }
    }

    /// Where it publishes, if it does so by itself.
    pub fn bus(&self) -> SocketAddr {
        self.bus
    }

    /// Where its API is.
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// What it is started with, besides where it listens.
    pub fn set_flags<T: Into<String>>(&mut self, flags: impl IntoIterator<Item = T>) {
        self.flags = flags.into_iter().map(Into::into).collect();
    }

    /// Starts it, and waits until it serves.
    pub fn start(&mut self) {
        self.spawn();
        self.wait_until_up();
    }

    /// Starts it.
    pub fn spawn(&mut self) {
        assert!(self.running.is_none(), "{} runs already", self.name);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(binary());
        command
            .args(["--listen", &self.clients.to_string(), "--api", &self.api.to_string()])
            .args(["--reactors", "1"])
            .args(&self.flags);
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let greeting = BufReader::new(child.stdout.take().unwrap()).lines();
        self.running = Some(Running {
            child,
            greeting: Some(greeting),
        });
    }

    /// Waits until it serves.
    pub fn wait_until_up(&mut self) {
        let greeting = self.running.as_mut().and_then(|it| it.greeting.take());
        let is_up = greeting.is_none_or(|mut it| it.any(|line| line.unwrap().starts_with("Try: curl")));
        assert!(is_up, "{} did not start: {}", self.name, self.log());
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            // It may have ended by itself.
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(&mut self) {
        self.signal("-TERM");
        let mut running = self.running.take().unwrap();
        assert!(running.child.wait().unwrap().success(), "{}", self.log());
    }

    /// As `kill` with such an argument.
    pub fn signal(&self, signal: &str) {
        let pid = self.running.as_ref().unwrap().child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Whether its process is there.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// What it answers with, if it does.
    pub fn try_call(&self, method: &str, path: &str, body: &str) -> Result<(u16, String), ureq::Error> {
        call(&self.agent, self.api, method, path, body)
    }

    pub fn call(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        self.try_call(method, path, body).unwrap()
    }

    /// Writes a row.
    pub fn put(&self, id: impl std::fmt::Display, row: &str) {
        let (status, answer) = self.call("PUT", &format!("/entities/items/{id}"), row);
        assert!([201, 204].contains(&status), "{}: {status} {answer}", self.name);
    }

    /// Says that these have changed.
    pub fn notify(&self, ids: impl IntoIterator<Item = u32>) {
        let keys = ids.into_iter().map(|id| format!(r#"{{"entity":"items","id":"{id}"}}"#));
        let keys: Vec<_> = keys.collect();
        for some in keys.chunks(500) {
            let (status, answer) = self.call("POST", "/notify", &format!("[{}]", some.join(",")));
            assert_eq!(status, 202, "{answer}");
        }
    }

    /// A number of its metrics page.
    pub fn metric(&self, name: &str) -> u64 {
        let (_, page) = self.call("GET", "/metrics", "");
        let value = |line: &str| {
            let (of, value) = line.split_once(' ')?;
            // Some have a label.
            let of = of.split('{').next()?;
            (of == format!("entity_sync_{name}")).then(|| value.parse().unwrap())
        };
        let value = page.lines().find_map(value);
        value.unwrap_or_else(|| panic!("no {name} in {page}"))
    }

    /// What it says of its cluster.
    pub fn cluster(&self) -> serde_json::Value {
        let (status, answer) = self.call("GET", "/cluster", "");
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str(&answer).unwrap()
    }

    /// One of the numbers that it has counted as one of a cluster.
    pub fn count(&self, name: &str) -> u64 {
        let cluster = self.cluster();
        let count = cluster["counts"][name].as_u64();
        count.unwrap_or_else(|| panic!("no {name} in {cluster}"))
    }

    /// How many peers are in this state.
    pub fn peers(&self, state: &str) -> usize {
        let cluster = self.cluster();
        let peers = cluster["peers"].as_array().unwrap();
        peers.iter().filter(|it| it["state"] == state).count()
    }

    /// How much memory it has.
    pub fn resident_bytes(&self) -> u64 {
        let pid = self.running.as_ref().unwrap().child.id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
    }

    /// What it has logged in all of its runs.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} logged:\n{}", self.name, self.log());
        }
        self.kill();
    }
}

/// An HTTP client that waits no longer than this.
pub fn agent(timeout: Duration) -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(timeout)).build().into()
}

/// Calls an API.
pub fn call(
    agent: &ureq::Agent,
    api: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> Result<(u16, String), ureq::Error> {
    let request = ureq::http::Request::builder()
        .method(method)
        .uri(format!("http://{api}{path}"))
        .body(body.to_owned())?;
    let mut response = agent.run(request)?;
    let text = response.body_mut().read_to_string()?;
    Ok((response.status().as_u16(), text))
}

/// A process of `entity-sync broker`, which can be killed and come back. It is killed when it is dropped.
pub struct Broker {
    frontend: SocketAddr,
    backend: SocketAddr,
    flags: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Broker {
    /// One that runs.
    pub fn start(folder: &Path, name: &str) -> Self {
        Self::start_with(folder, name, Vec::new())
    }

    /// One that runs with these flags besides.
    pub fn start_with(folder: &Path, name: &str, flags: Vec<String>) -> Self {
        let address = own_address();
        let mut broker = Self {
            frontend: SocketAddr::new(address, 7100),
            backend: SocketAddr::new(address, 7101),
            flags,
            log: folder.join(format!("{name}.log")),
            child: None,
        };
        broker.resume();
        broker
    }

    /// Starts it again, where it was.
    pub fn resume(&mut self) {
        assert!(self.child.is_none());
        let log = File::create(&self.log).unwrap();
        let mut command = Command::new(binary());
        command.arg("broker");
        command.args(["--frontend", &self.frontend.to_string()]);
        command.args(["--backend", &self.backend.to_string()]);
        command.args(&self.flags);
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut greeting = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let is_up = greeting.any(|line| line.contains("--zmq-broker"));
        self.child = Some(child);
        assert!(is_up, "{}", std::fs::read_to_string(&self.log).unwrap_or_default());
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What it has logged since it was started last.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// As nodes write them.
    pub fn endpoints(&self) -> String {
        format!("tcp://{},tcp://{}", self.frontend, self.backend)
    }

    /// As nodes are told of it.
    pub fn flag(&self) -> String {
        format!("{},{}", self.frontend, self.backend)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}
