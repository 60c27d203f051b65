//! [`Messages`]: the application's handler of messages on threads of its own, in order for each client.
//!
//! Each client has a queue, and those with something in it take turns, a message each. A client whose queue is full is not
//! read from until half of it is done, which holds up nobody else.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use entity_sync_mio::{ClientId, Health, Incoming, KeptMessage};
use entity_sync_runtime::LogLimit;
use parking_lot::{Condvar, Mutex, MutexGuard};

/// A client with so many messages or bytes in its queue is not read from.
const MAX_MESSAGES_EACH: usize = 64;
const MAX_BYTES_EACH: usize = 256 * 1024;

/// And with so many bytes in all queues, nor is any client that has a message in one.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// What a message costs besides its bytes, about.
const MESSAGE_OVERHEAD: usize = 128;

pub(super) type Handler = Box<dyn Fn(Incoming<'_>) + Send + Sync>;

/// The threads that call the handler. Dropped, they end after the message that each is at.
pub(super) struct Messages(Arc<Shared>);

struct Shared {
    handler: Handler,
    max_threads: usize,
    health: Health,
    state: Mutex<State>,
    /// There is a message to handle, or nothing will be.
    work: Condvar,
    /// The last one was handled.
    done: Condvar,
    panics: LogLimit,
    no_thread: LogLimit,
}

#[derive(Default)]
struct State {
    queues: HashMap<ClientId, Queue>,
    /// Clients whose next message may be handled, the one that waits longest first.
    turns: VecDeque<ClientId>,
    bytes: usize,
    threads: usize,
    idle_threads: usize,
    is_over: bool,
}

/// What one client has said. The first message may be with a thread, and then is counted still.
#[derive(Default)]
struct Queue {
    messages: VecDeque<KeptMessage>,
    count: usize,
    bytes: usize,
    is_paused: bool,
}

fn cost(message: &KeptMessage) -> usize {
    message.size() + MESSAGE_OVERHEAD
}

impl Messages {
    /// One thread at first, and others when all are busy.
    pub(super) fn start(handler: Handler, max_threads: NonZeroUsize, health: Health) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            handler,
            max_threads: max_threads.get(),
            health,
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            panics: LogLimit::default(),
            no_thread: LogLimit::default(),
        });
        shared.state.lock().threads = 1;
        spawn(&shared, 1)?;
        Ok(Self(shared))
    }

    /// What the reactors are to do with a message.
    pub(super) fn intake(&self) -> impl Fn(Incoming<'_>) + Send + Sync + 'static {
        let shared = self.0.clone();
        move |incoming| take(&shared, &incoming)
    }

    /// Waits until all that came is handled, for `timeout` at most, and has the threads end. Nothing may come any more.
    pub(super) fn shutdown(&self, timeout: Duration) {
        let now = Instant::now();
        let until = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(1 << 30));
        let mut state = self.0.state.lock();
        while !state.queues.is_empty() {
            if self.0.done.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        let left: usize = state.queues.values().map(|it| it.count).sum();
        if left > 0 {
            tracing::warn!(
                messages = left,
                "messages of clients were not handled in time before the shutdown"
            );
        }
        drop(state);
        self.end();
    }

    fn end(&self) {
        self.0.state.lock().is_over = true;
        self.0.work.notify_all();
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.end();
    }
}

/// A client says something. It is called on the client's reactor.
fn take(shared: &Arc<Shared>, incoming: &Incoming<'_>) {
    let message = incoming.keep();
    let mut state = shared.state.lock();
    if state.is_over {
        return;
    }
    let cost = cost(&message);
    state.bytes += cost;
    let is_full = state.bytes >= MAX_BYTES;
    let queue = state.queues.entry(incoming.id()).or_default();
    queue.messages.push_back(message);
    queue.count += 1;
    queue.bytes += cost;
    if is_full || queue.count >= MAX_MESSAGES_EACH || queue.bytes >= MAX_BYTES_EACH {
        queue.is_paused = true;
        incoming.stop_reading();
    }
    if queue.count > 1 {
        // Its turn comes already.
        return;
    }
    state.turns.push_back(incoming.id());
    // One that has been woken counts as idle until it has taken its turn.
    if state.turns.len() <= state.idle_threads {
        shared.work.notify_one();
    } else if state.threads < shared.max_threads {
        state.threads += 1;
        let number = state.threads;
        drop(state);
        if let Err(error) = spawn(shared, number) {
            shared.state.lock().threads -= 1;
            if let Some(skipped) = shared.no_thread.happened() {
                tracing::warn!(%error, skipped, "no further thread for messages of clients: fewer are handled at once");
            }
        }
    }
}

fn spawn(shared: &Arc<Shared>, number: usize) -> io::Result<()> {
    let of_thread = shared.clone();
    let name = format!("messages-{number}");
    entity_sync_runtime::spawn(name, &shared.health, move || of_thread.run()).map(drop)
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if state.is_over {
                return;
            }
            let Some(client) = state.turns.pop_front() else {
                state.idle_threads += 1;
                self.work.wait(&mut state);
                state.idle_threads -= 1;
                continue;
            };
            let Some(message) = state.queues.get_mut(&client).and_then(|it| it.messages.pop_front()) else {
                continue;
            };
            drop(state);
            if !message.handle(&self.handler)
                && let Some(skipped) = self.panics.happened()
            {
                tracing::error!(client = %client, skipped, "the handler of messages panicked");
            }
            state = self.state.lock();
            let reads_on = state.handled(client, cost(&message));
            if state.queues.is_empty() {
                self.done.notify_all();
            }
            if reads_on {
                MutexGuard::unlocked(&mut state, || message.client().read_on());
            }
        }
    }
}

impl State {
    /// A message of this client was handled. Says whether the client may be read from again.
    fn handled(&mut self, client: ClientId, cost: usize) -> bool {
        self.bytes -= cost;
        let Entry::Occupied(mut entry) = self.queues.entry(client) else {
            return false;
        };
        let queue = entry.get_mut();
        queue.count -= 1;
        queue.bytes -= cost;
        let has_room = queue.count <= MAX_MESSAGES_EACH / 2 && queue.bytes <= MAX_BYTES_EACH / 2;
        // With all queues full, a client waits until its own is done.
        let may_read_on = queue.count == 0 || (has_room && self.bytes < MAX_BYTES);
        let reads_on = queue.is_paused && may_read_on;
        queue.is_paused &= !reads_on;
        match queue.count {
            0 => _ = entry.remove(),
            _ => self.turns.push_back(client),
        }
        reads_on
    }
}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state.lock();
        f.debug_struct("Messages")
            .field("clients", &state.queues.len())
            .field("bytes", &state.bytes)
            .finish_non_exhaustive()
    }
}
