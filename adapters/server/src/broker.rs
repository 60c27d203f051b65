//! [`broker`]: the whole of `entity-sync broker`.

use std::io::{self, Write};

use entity_sync_mio::{Health, Refused, Trouble};
use entity_sync_zmq::{Broker, BrokerConfig, CurveServer, Endpoint, ZmqError};

use crate::args::{BrokerOptions, LogFormat, LogLevel};
use crate::death::Death;
use crate::log;
use crate::signals::{self, Signals};

/// Forwards what nodes publish until the process is told to stop (SIGINT or SIGTERM).
///
/// # Errors
/// [`BrokerError`]: what kept it from starting.
pub fn broker(options: &BrokerOptions) -> Result<(), BrokerError> {
    let health = Health::default();
    log::start(LogLevel::Info, LogFormat::Text, &health);
    signals::ignore_hangup().map_err(BrokerError::System)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BrokerError::System)?;
    runtime.block_on(async {
        let mut signals = Signals::listen().map_err(BrokerError::System)?;
        let mut config = BrokerConfig::new(options.frontend.clone(), options.backend.clone());
        config.health = health.clone();
        config.curve.clone_from(&options.curve);
        config.allow_unauthenticated = options.zmq_allow_unauthenticated;
        let death = Death::watch(&health);
        let broker = Broker::start(&config).map_err(BrokerError::Zmq)?;
        let mut out = io::stdout().lock();
        // If nobody listens, it forwards all the same.
        let _ = out
            .write_all(greeting(broker.frontend(), broker.backend(), options.curve.as_ref()).as_bytes())
            .and_then(|()| out.flush());
        drop(out);
        tokio::select! {
            () = signals.stop() => {}
            () = death.happens() => {}
        }
        broker.stop();
        death.check().map_err(BrokerError::Died)
    })
}

/// Says where it is, and what nodes are to be told of it.
fn greeting(frontend: &str, backend: &str, curve: Option<&CurveServer>) -> String {
    let wildcard_port = |it: &str| it.parse().ok().and_then(|it: Endpoint| it.wildcard_port());
    let [to_frontend, to_backend] = [frontend, backend].map(|it| match wildcard_port(it) {
        Some(port) => format!("tcp://HOST:{port}"),
        None => it.to_owned(),
    });
    let mut text = format!(
        "Entity Sync's broker is running.\n  frontend {frontend}\n  backend  {backend}\n\
         Nodes connect with: --bus zmq --zmq-broker {to_frontend},{to_backend}"
    );
    if curve.is_some() {
        text += " --zmq-curve-secret-file FILE";
    }
    if [frontend, backend].iter().any(|it| wildcard_port(it).is_some()) {
        text += " (HOST is an address or a name of this machine)";
    }
    if let Some(server) = curve {
        let public = server.keys.public;
        text += match server.allowed == [public] {
            true => "\nConnections are encrypted: FILE is a copy of this broker's.",
            false => "\nConnections are encrypted: nodes have keys of their own, and --zmq-curve-server-key-file.",
        };
        text += &format!(" Its public key is {public}");
    }
    text + "\n"
}

/// Why a broker did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum BrokerError {
    /// ZeroMQ refuses something.
    Zmq(ZmqError),
    /// A thread has died without which it forwards nothing.
    Died(Trouble),
    /// The system refuses something.
    System(io::Error),
}

impl std::fmt::Display for BrokerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Zmq(error) => error.fmt(f),
            Self::Died(trouble) => trouble.fmt(f),
            Self::System(error) => write!(f, "the system refused: {}", Refused(error)),
        }
    }
}

impl std::error::Error for BrokerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Zmq(error) => Some(error),
            Self::Died(_) => None,
            Self::System(error) => Some(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use entity_sync_zmq::CurveKeyPair;

    use super::*;

    #[test]
    fn nodes_are_told_what_they_can_connect_to() {
        assert_eq!(
            greeting("tcp://127.0.0.1:7100", "tcp://127.0.0.1:7101", None),
            "Entity Sync's broker is running.\n  frontend tcp://127.0.0.1:7100\n  backend  tcp://127.0.0.1:7101\n\
             Nodes connect with: --bus zmq --zmq-broker tcp://127.0.0.1:7100,tcp://127.0.0.1:7101\n"
        );
        for wildcard in ["*", "0.0.0.0", "[::]"] {
            let text = greeting(&format!("tcp://{wildcard}:7100"), "ipc:///run/backend", None);
            let told =
                "--zmq-broker tcp://HOST:7100,ipc:///run/backend (HOST is an address or a name of this machine)\n";
            assert!(text.ends_with(told), "{text}");
        }
        let mut server = CurveServer::shared(CurveKeyPair {
            public: [0; 32].into(),
            secret: [1; 32].into(),
        });
        let said = || greeting("ipc:///a", "ipc:///b", Some(&server));
        let told = "--zmq-broker ipc:///a,ipc:///b --zmq-curve-secret-file FILE\nConnections are encrypted: FILE is a copy of this \
                    broker's. Its public key is 0000000000000000000000000000000000000000\n";
        assert!(said().ends_with(told), "{}", said());
        server.allowed = vec![[2; 32].into()];
        let said = greeting("ipc:///a", "ipc:///b", Some(&server));
        assert!(
            said.contains("nodes have keys of their own, and --zmq-curve-server-key-file. Its"),
            "{said}"
        );
    }
}
