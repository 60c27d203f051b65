//! [`Signals`]: how a service is told to stop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// From here on SIGINT and SIGTERM ask for an orderly end, a second one of them ends the process at once, whatever it is
/// waiting for, and SIGHUP does nothing.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Listens from now on. Needs a tokio runtime.
    pub(crate) fn listen() -> io::Result<Self> {
        let is_stopping = Arc::new(AtomicBool::new(false));
        for number in [SIGINT, SIGTERM] {
            // In this order: the first signal must not see its own mark. As a shell tells it, 143 is the end by SIGTERM.
            flag::register_conditional_shutdown(number, 128 + number, is_stopping.clone())?;
            flag::register(number, is_stopping.clone())?;
        }
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Until the first one of them. Cancel safe.
    pub(crate) async fn stop(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A terminal that closes, or a script that means "read your configuration again", must not end a service.
pub(crate) fn ignore_hangup() -> io::Result<()> {
    flag::register(SIGHUP, Arc::default()).map(|_| ())
}
