//! [`Names`]: a thread that looks names up again and again, because that blocks.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::task::Waker;
use std::time::Duration;

use entity_sync_bus::Health;

use crate::config::Lookup;
use crate::endpoint::DnsName;

/// Answers that may wait.
const MAX_ANSWERS: usize = 64;

/// Of a name that can't be looked up, the next attempt is made after so long at most.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The other side of the thread. It ends when this is dropped, once the lookup that it may be in has ended.
pub(crate) struct Names {
    answers: Receiver<Answer>,
    _running: Sender<()>,
}

/// What a lookup has led to.
pub(crate) struct Answer {
    /// Of which name.
    pub(crate) name: usize,
    pub(crate) addresses: io::Result<Vec<SocketAddr>>,
}

struct Worker {
    names: Vec<DnsName>,
    every: Duration,
    lookup: Lookup,
    waker: Waker,
    answers: SyncSender<Answer>,
    running: Receiver<()>,
}

impl Names {
    pub(crate) fn start(
        names: Vec<DnsName>,
        every: Duration,
        lookup: Option<Lookup>,
        waker: Waker,
        health: &Health,
    ) -> io::Result<Self> {
        let (send_answer, answers) = sync_channel(MAX_ANSWERS);
        let (keep, running) = channel();
        let worker = Worker {
            names,
            every,
            lookup: lookup.unwrap_or_else(|| Arc::new(system_lookup)),
            waker,
            answers: send_answer,
            running,
        };
        // Answers that are lost come again with the next round.
        entity_sync_runtime::spawn_restarting("entity-sync dns", health, move || worker.run())?;
        Ok(Self {
            answers,
            _running: keep,
        })
    }

    pub(crate) fn next(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}

impl Worker {
    fn run(&self) {
        loop {
            let mut wait = self.every;
            for (name, DnsName { host, port }) in self.names.iter().enumerate() {
                // It may be the application's.
                let addresses = catch_unwind(AssertUnwindSafe(|| (self.lookup)(host, *port)))
                    .unwrap_or_else(|_| Err(io::Error::other("the lookup panicked")));
                if addresses.is_err() {
                    wait = wait.min(RETRY_AFTER);
                }
                if self.answers.send(Answer { name, addresses }).is_err() {
                    return;
                }
                self.waker.wake_by_ref();
            }
            if self.running.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }
}

fn system_lookup(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok((host, port).to_socket_addrs()?.collect())
}
