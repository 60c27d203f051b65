//! [`broker`]: the whole of `entity-sync broker`.

use std::io::{self, Write};

use entity_sync_zmq::{Broker, BrokerConfig, ZmqError};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{BrokerOptions, LogFormat, LogLevel};
use crate::serve::log;

/// Forwards what nodes publish until the process is told to stop (SIGINT or SIGTERM).
///
/// # Errors
/// [`BrokerError`]: what kept it from starting.
pub fn broker(options: &BrokerOptions) -> Result<(), BrokerError> {
    log(LogLevel::Info, LogFormat::Text);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BrokerError::System)?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(BrokerError::System)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(BrokerError::System)?;
        let config = BrokerConfig::new(options.frontend.clone(), options.backend.clone());
        let broker = Broker::start(&config).map_err(BrokerError::Zmq)?;
        let (frontend, backend) = (broker.frontend(), broker.backend());
        let mut out = io::stdout().lock();
        // If nobody listens, it forwards all the same.
        let _ = writeln!(
            out,
            "Entity Sync's broker is running.\n  frontend {frontend}\n  backend  {backend}\n\
             Nodes connect with: --bus zmq --zmq-broker {frontend},{backend}"
        );
        let _ = out.flush();
        drop(out);
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        broker.stop();
        Ok(())
    })
}

/// Why a broker did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum BrokerError {
    /// ZeroMQ refuses something.
    Zmq(ZmqError),
    /// The system refuses something.
    System(io::Error),
}

impl std::fmt::Display for BrokerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Zmq(error) => error.fmt(f),
            Self::System(error) => write!(f, "the system refused: {error}"),
        }
    }
}

impl std::error::Error for BrokerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Zmq(error) => Some(error),
            Self::System(error) => Some(error),
        }
    }
}
