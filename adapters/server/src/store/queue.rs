//! [`Queue`]: reads that a server asked the store for, from then until a thread takes them, or the writer answers them.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::{Arc, Weak};

use entity_sync_core::{Audience, EntityKey};
use entity_sync_mio::Reply;
use parking_lot::{Condvar, Mutex};

/// The most reads that are taken at once. As many wait before another thread is woken.
const BATCH_READS: usize = 32;

/// What a read is for.
pub(super) type Name = (EntityKey, Audience);

/// Reads that are taken together.
pub(super) type Asked = Vec<(Name, Reply)>;

pub(super) struct Queue {
    state: Mutex<State>,
    /// For threads that wait for reads: there are some, or it is the end.
    work: Condvar,
    threads: usize,
}

/// Entries are no more than there are topics: one that is asked for again has been given up by core, so the newer reply
/// takes its place.
struct State {
    replies: HashMap<Name, Reply>,
    order: VecDeque<Name>,
    /// Threads that don't wait.
    awake: usize,
    /// How many hold it.
    held: usize,
    is_closed: bool,
}

impl Queue {
    /// For so many threads, each of which calls [`next`](Self::next) until it is given nothing.
    pub(super) fn new(threads: usize) -> Self {
        Self {
            state: Mutex::new(State {
                replies: HashMap::new(),
                order: VecDeque::new(),
                awake: threads,
                held: 0,
                is_closed: false,
            }),
            work: Condvar::new(),
            threads,
        }
    }

    pub(super) fn push(&self, name: Name, reply: Reply) {
        let mut state = self.state.lock();
        if state.is_closed {
            drop(state);
            return drop(reply);
        }
        let given_up = state.replies.insert(name.clone(), reply);
        if given_up.is_none() {
            state.order.push_back(name);
        }
        let wake = state.wake(self.threads);
        drop(state);
        // Replies are never dropped or answered under the lock: core may come back for the next read.
        drop(given_up);
        self.notify(wake);
    }

    /// Waits for reads. `None` is the end.
    pub(super) fn next(&self) -> Option<Asked> {
        let mut state = self.state.lock();
        loop {
            if state.is_closed {
                return None;
            }
            if state.held == 0 && !state.order.is_empty() {
                break;
            }
            state.awake -= 1;
            // Whoever wakes it counts it as awake again; it doesn't wake by itself.
            self.work.wait(&mut state);
        }
        let State { replies, order, .. } = &mut *state;
        let count = order.len().min(BATCH_READS);
        let taken = order.drain(..count);
        Some(taken.filter_map(|name| replies.remove_entry(&name)).collect())
    }

    /// Nobody is given what is pushed before it is [released](Self::release).
    fn hold(&self) {
        self.state.lock().held += 1;
    }

    /// Takes what waits of these keys.
    fn take(&self, is_wanted: impl Fn(&EntityKey) -> bool) -> Asked {
        let mut state = self.state.lock();
        let State { replies, order, .. } = &mut *state;
        let mut taken = Asked::new();
        order.retain(|name| {
            let entry = is_wanted(&name.0).then(|| replies.remove_entry(name)).flatten();
            let is_taken = entry.is_some();
            taken.extend(entry);
            !is_taken
        });
        taken
    }

    fn is_empty(&self) -> bool {
        self.state.lock().order.is_empty()
    }

    fn release(&self) {
        let mut state = self.state.lock();
        state.held -= 1;
        let wake = state.wake(self.threads);
        drop(state);
        self.notify(wake);
    }

    /// Fails what waits, and all that is pushed from now on.
    pub(super) fn close(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.is_closed = true;
            state.order.clear();
            mem::take(&mut state.replies)
        };
        self.work.notify_all();
        drop(waiting);
    }

    fn notify(&self, threads: usize) {
        for _ in 0..threads {
            self.work.notify_one();
        }
    }
}

impl State {
    /// How many threads are to be woken, which are counted as awake from now on. One that is awake looks again before it waits.
    fn wake(&mut self, threads: usize) -> usize {
        if self.held > 0 {
            return 0;
        }
        let wanted = self.order.len().div_ceil(BATCH_READS).min(threads);
        let more = wanted.saturating_sub(self.awake);
        self.awake += more;
        more
    }
}

/// The queues of all servers that read a store.
#[derive(Default)]
pub(super) struct Queues(Mutex<Vec<Weak<Queue>>>);

/// Queues that are held until this is dropped.
pub(super) struct Held(Vec<Arc<Queue>>);

impl Queues {
    pub(super) fn add(&self, queue: &Arc<Queue>) {
        let mut queues = self.0.lock();
        queues.retain(|queue| queue.strong_count() > 0);
        queues.push(Arc::downgrade(queue));
    }

    pub(super) fn hold(&self) -> Held {
        let queues: Vec<_> = self.0.lock().iter().filter_map(Weak::upgrade).collect();
        for queue in &queues {
            queue.hold();
        }
        Held(queues)
    }
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|queue| queue.is_empty())
    }

    #[cfg(test)]
    pub(super) fn first(&self) -> Option<Weak<Queue>> {
        self.0.first().map(Arc::downgrade)
    }

    /// Takes what waits of these keys.
    pub(super) fn take(&self, is_wanted: impl Fn(&EntityKey) -> bool) -> Asked {
        self.0.iter().flat_map(|queue| queue.take(&is_wanted)).collect()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for queue in &self.0 {
            queue.release();
        }
    }
}
