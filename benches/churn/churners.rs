//! [`Churners`]: a bounded set of connections that come, do whatever comes to their mind, and vanish: on a thread of their
//! own.

use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use crate::passer_by::{Counts, PasserBy};

/// What each does in a second, on average: opening its connection is one, and leaving.
const ACTIONS_PER_SECOND: f64 = 10.0;

/// Nothing is awaited for longer.
const TICK: Duration = Duration::from_millis(2);

/// After a pause, such as the scheduler's, no more than so many actions are made up for at once.
const MOST_AT_ONCE: u64 = 200;

/// Reads from one socket before others have their turn.
const READS_PER_EVENT: usize = 4;

/// The thread.
pub(crate) struct Churners {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Counts>>,
}

impl Churners {
    pub(crate) fn start(address: SocketAddr, count: usize, own: u32, seed: u64) -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut crowd = Crowd {
            address,
            own,
            poll: Poll::new()?,
            slots: (0..count).map(|_| None).collect(),
            rng: fastrand::Rng::with_seed(seed),
            buffer: vec![0; 64 * 1024],
            counts: Counts::default(),
        };
        let stop = is_over.clone();
        let thread = std::thread::Builder::new().name("churners".to_owned()).spawn(move || {
            crowd.run(&stop)?;
            Ok(crowd.counts)
        })?;
        Ok(Self { is_over, thread })
    }

    /// Closes all of them.
    pub(crate) fn stop(self) -> io::Result<Counts> {
        self.is_over.store(true, Ordering::Relaxed);
        let result = self.thread.join();
        result.map_err(|_| io::Error::other("the churners panicked"))?
    }
}

struct Crowd {
    address: SocketAddr,
    /// How many own keys there are.
    own: u32,
    poll: Poll,
    slots: Vec<Option<PasserBy>>,
    rng: fastrand::Rng,
    buffer: Vec<u8>,
    counts: Counts,
}

impl Crowd {
    fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let rate = self.slots.len() as f64 * ACTIONS_PER_SECOND;
        let began = Instant::now();
        let mut actions = 0;
        while !stop.load(Ordering::Relaxed) {
            match self.poll.poll(&mut events, Some(TICK)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => result?,
            }
            for event in &events {
                self.on_event(event.token().0, event.is_writable());
            }
            let due = (began.elapsed().as_secs_f64() * rate) as u64;
            actions = actions.max(due.saturating_sub(MOST_AT_ONCE));
            while actions < due {
                actions += 1;
                let slot = self.rng.usize(..self.slots.len());
                self.act(slot)?;
            }
        }
        Ok(())
    }

    fn act(&mut self, slot: usize) -> io::Result<()> {
        let Self {
            address,
            own,
            poll,
            slots,
            rng,
            counts,
            ..
        } = self;
        let Some(passer_by) = slots[slot].take() else {
            slots[slot] = PasserBy::open(*address, poll.registry(), Token(slot), rng, counts)?;
            return Ok(());
        };
        slots[slot] = passer_by.act(rng, *own, counts);
        // It may read again, and an edge that passed meanwhile doesn't come back.
        self.read(slot);
        Ok(())
    }

    fn on_event(&mut self, slot: usize, is_writable: bool) {
        let Self { slots, rng, counts, .. } = self;
        if is_writable {
            slots[slot] = slots[slot].take().and_then(|it| it.connected(rng, counts));
        }
        self.read(slot);
    }

    fn read(&mut self, slot: usize) {
        for _ in 0..READS_PER_EVENT {
            let Some(passer_by) = self.slots[slot].as_mut().filter(|it| it.reads()) else {
                return;
            };
            match passer_by.stream().read(&mut self.buffer) {
                Ok(bytes) if bytes > 0 => passer_by.received(&self.buffer[..bytes], &mut self.counts),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return,
                // The server has closed it, or was not there yet: the next one may come.
                _ => {
                    self.slots[slot] = None;
                    self.counts.ended_by_server += 1;
                }
            }
        }
    }
}
