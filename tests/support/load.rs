//! [`Load`]: threads that change rows through nodes all the time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::node::{agent, call};

/// Whoever doesn't answer for so long is given up. What was asked of it may still be done, later.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// What became of changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// Written, and notified.
    pub done: u64,
    /// Refused by a node that runs: with 5xx.
    pub refused: u64,
    /// The node was not there, or did not answer. They may have been written.
    pub unanswered: u64,
}

/// Changes random keys through random nodes, until it is stopped.
pub struct Load {
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

/// No two changes of this process write the same row.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

#[derive(Default)]
struct State {
    is_over: AtomicBool,
    done: AtomicU64,
    refused: AtomicU64,
    unanswered: AtomicU64,
}

impl Load {
    /// So many threads change the keys `0..keys`, each one every `pause`, by the APIs at these addresses.
    pub fn start(apis: &[SocketAddr], keys: u32, threads: u64, pause: Duration, seed: u64) -> Self {
        let state = Arc::<State>::default();
        let of_threads = (0..threads).map(|number| {
            let (state, apis) = (state.clone(), apis.to_vec());
            let rng = fastrand::Rng::with_seed(seed.wrapping_add(number));
            std::thread::spawn(move || state.run(&apis, keys, pause, rng))
        });
        Self {
            threads: of_threads.collect(),
            state,
        }
    }

    /// Until now.
    pub fn changes(&self) -> Changes {
        let [done, refused, unanswered] =
            [&self.state.done, &self.state.refused, &self.state.unanswered].map(|it| it.load(Ordering::Relaxed));
        Changes {
            done,
            refused,
            unanswered,
        }
    }

    /// No further change begins, and none is being made.
    pub fn stop(mut self) -> Changes {
        self.end();
        self.changes()
    }

    fn end(&mut self) {
        self.state.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

impl State {
    fn run(&self, apis: &[SocketAddr], keys: u32, pause: Duration, mut rng: fastrand::Rng) {
        let agent = agent(GIVE_UP_AFTER);
        while !self.is_over.load(Ordering::Relaxed) {
            let id = rng.u32(..keys);
            let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
            let api = apis[rng.usize(..apis.len())];
            let answer = call(
                &agent,
                api,
                "PUT",
                &format!("/entities/items/{id}"),
                &format!("{id} {number}"),
            );
            match answer {
                Ok((201 | 204, _)) => &self.done,
                Ok(_) => &self.refused,
                Err(_) => &self.unanswered,
            }
            .fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(pause);
        }
    }
}
