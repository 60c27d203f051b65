use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::task::Waker;

use entity_sync_core::{Config, Input, Node, Output, Seed, Sent, Shard, Timestamp};

use super::*;
use crate::clock::Clock;
use crate::resolver::Clocked;

fn run(pool: &Pool, entity: &str, job: Job) {
    pool.0.0.run(entity, job, false);
}

/// Nothing here takes nearly so long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// For tests in which nothing is to count as hung. Not for ever, as dropping a pool may take so long when one fails.
const NEVER: Duration = Duration::from_secs(60);
const AT_ONCE: Duration = Duration::from_millis(10);

fn pool(threads: usize, hung_after: Duration, max_hung: usize) -> Pool {
    let name = "reads".to_owned();
    Pool::new(PoolConfig {
        threads,
        hung_after,
        max_hung,
        name,
        ..PoolConfig::default()
    })
    .expect("threads")
}

#[track_caller]
fn wait_until(mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "it hangs");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Shuts down on another thread, so that the test fails instead of hanging if that doesn't return.
#[track_caller]
fn shut_down(pool: &Arc<Pool>, timeout: Duration) {
    let pool = pool.clone();
    let thread = thread::spawn(move || pool.shutdown(timeout));
    wait_until(|| thread.is_finished());
}

/// Starts a job that runs until the sender is used or dropped. Returns once it runs.
#[track_caller]
fn hold(pool: &Pool) -> Sender<()> {
    let (release, held) = channel();
    let (begin, begun) = channel();
    run(
        pool,
        "items",
        Box::new(move || {
            let _ = begin.send(());
            let _ = held.recv();
        }),
    );
    begun.recv_timeout(PATIENCE).expect("begun");
    release
}

/// A job that tells when it has run, or was dropped.
fn probe(pool: &Pool) -> Receiver<()> {
    let (done, ran) = channel();
    run(pool, "items", Box::new(move || done.send(()).expect("heard")));
    ran
}

#[track_caller]
fn runs_jobs(pool: &Pool) {
    probe(pool).recv_timeout(PATIENCE).expect("a free thread");
}

fn live(pool: &Pool) -> usize {
    pool.0.0.state.lock().live
}

fn upgrade_and_subscribe(id: &str) -> Vec<u8> {
    let text = format!(r#"{{"action":"subscribe","body":{{"entity":"items","id":"{id}"}}}}"#);
    let mut bytes =
        b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            .to_vec();
    // A mask of zeros changes nothing.
    bytes.extend([0x81, 0x80 | text.len() as u8, 0, 0, 0, 0]);
    bytes.extend(text.as_bytes());
    bytes
}

/// A node with one subscriber to an id of "items". It never gives up a read, nor tries it again.
fn node(id: &str, resolver: impl Resolver + 'static) -> (Node, Shard) {
    let clock = Clock::start();
    let resolver = Arc::new(Clocked { resolver, clock });
    let (node, mut shards) = Node::new(Config::new(Seed(1, 2)), resolver, vec![Waker::noop().clone()]);
    let mut shard = shards.remove(0);
    let conn = shard.open(Timestamp::START).expect("room");
    let bytes = &mut upgrade_and_subscribe(id);
    shard.handle(Timestamp::START, Input::Received { conn, bytes });
    (node, shard)
}

fn notify(node: &Node, id: &str) {
    let key = EntityKey::new("items", id).expect("short");
    node.notify(Timestamp::START, &key).expect("every name is an entity");
}

/// A read that a node of its own awaits.
struct Asked {
    node: Node,
    shard: Shard,
    question: Option<(Request, Reply)>,
}

impl Asked {
    fn of(id: &str) -> Self {
        let (ask, asked) = channel();
        let (node, shard) = node(id, move |request: Request, reply: Reply| {
            let _ = ask.send((request, reply));
        });
        notify(&node, id);
        let question = asked.try_recv().ok();
        let mut asked = Self { node, shard, question };
        // Its upgrade.
        assert_eq!(asked.pushed(), None);
        asked
    }

    fn give_to(mut self, resolver: &impl Resolver) -> Self {
        let (request, reply) = self.question.take().expect("once");
        resolver.resolve(request, reply);
        self
    }

    /// The row that has been pushed since the last call.
    fn pushed(&mut self) -> Option<String> {
        let mut row = None;
        while let Some(output) = self.shard.poll_output(Timestamp::START) {
            match output {
                Output::Broadcast(broadcast) => broadcast.for_each(|_, chunk| {
                    row = Some(String::from_utf8_lossy(&chunk.as_slice()[2..]).into_owned());
                    Sent::All
                }),
                Output::Flush(flush) => flush.write(|_, _| Sent::All),
                Output::Resume(_) | Output::Shutdown(_) | Output::Close(_) => unreachable!("nobody leaves"),
            }
        }
        row
    }

    fn has_failed(&self) -> bool {
        self.node.counters().failed_reads.get() > 0
    }

    #[track_caller]
    fn fails(&self) {
        wait_until(|| self.has_failed());
    }

    #[track_caller]
    fn is_answered(&mut self) -> String {
        let mut row = None;
        wait_until(|| {
            row = self.pushed();
            row.is_some()
        });
        assert!(!self.has_failed());
        row.expect("waited for")
    }
}

/// Reads the id. Reads of "stuck" tell that they have begun, and last until they are told to end.
struct Stuck {
    begun: Receiver<()>,
    release: Sender<()>,
}

fn stuck_resolver(pool: &Pool) -> (impl Resolver + use<>, Stuck) {
    let (begin, begun) = channel();
    let (release, held) = channel();
    let held = Mutex::new(held);
    let resolver = pool.resolver(move |request: &Request| {
        if request.key.id() == "stuck" {
            let _ = begin.send(());
            let _ = held.lock().recv();
        }
        Ok(Rows::one(request.key.id().to_owned()))
    });
    (resolver, Stuck { begun, release })
}

impl Stuck {
    #[track_caller]
    fn begins(&self) {
        self.begun.recv_timeout(PATIENCE).expect("begun");
    }

    fn ends(&self) {
        self.release.send(()).expect("a resolver");
    }
}

#[test]
fn runs_jobs_at_the_same_time_on_named_threads() {
    let pool = pool(2, NEVER, 0);
    let (first, second) = (hold(&pool), hold(&pool));
    drop((first, second));
    let (done, name) = channel();
    run(
        &pool,
        "items",
        Box::new(move || {
            let _ = done.send(thread::current().name().map(str::to_owned));
        }),
    );
    assert_eq!(name.recv_timeout(PATIENCE), Ok(Some("reads".to_owned())));
}

#[test]
fn runs_jobs_in_order() {
    let pool = pool(1, NEVER, 0);
    let release = hold(&pool);
    let (done, order) = channel();
    for n in 0..100 {
        let done = done.clone();
        run(&pool, "items", Box::new(move || done.send(n).expect("heard")));
    }
    drop((release, done));
    assert!(order.iter().eq(0..100));
}

#[test]
fn entities_take_turns() {
    let pool = pool(1, NEVER, 0);
    let release = hold(&pool);
    let (done, order) = channel();
    for (entity, n) in [
        ("slow", 1),
        ("slow", 2),
        ("slow", 3),
        ("other", 1),
        ("third", 1),
        ("other", 2),
    ] {
        let done = done.clone();
        let job = move || done.send((entity, n)).expect("heard");
        run(&pool, entity, Box::new(job));
    }
    drop((release, done));
    let order: Vec<_> = order.iter().collect();
    let expected = [
        ("slow", 1),
        ("other", 1),
        ("third", 1),
        ("slow", 2),
        ("other", 2),
        ("slow", 3),
    ];
    assert_eq!(order, expected);
    assert!(pool.0.0.state.lock().waiting.is_empty());
}

#[test]
fn a_name_that_the_system_refuses_is_an_error() {
    let name = "a\0b".to_owned();
    let config = PoolConfig {
        name,
        ..PoolConfig::default()
    };
    assert_eq!(
        Pool::new(config).map(drop).map_err(|error| error.kind()),
        Err(io::ErrorKind::InvalidInput)
    );
}

#[test]
fn a_panic_drops_what_the_job_held_and_spares_the_thread() {
    let pool = pool(1, NEVER, 0);
    let (held, dropped) = channel::<()>();
    run(
        &pool,
        "items",
        Box::new(move || {
            let _held = held;
            panic!("a job that fails on purpose");
        }),
    );
    assert_eq!(dropped.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
    runs_jobs(&pool);
    assert_eq!((pool.counters().jobs, pool.counters().panics), (2, 1));
    assert_eq!(live(&pool), 1);
}

#[test]
fn a_hung_job_is_replaced_and_the_replacement_goes_when_it_ends() {
    let pool = pool(2, AT_ONCE, 8);
    let held = [hold(&pool), hold(&pool), hold(&pool), hold(&pool)];
    wait_until(|| pool.counters().hung == 4);
    runs_jobs(&pool);
    wait_until(|| live(&pool) == 6);
    drop(held);
    wait_until(|| live(&pool) == 2);
    runs_jobs(&pool);
    wait_until(|| pool.counters().hung == 0);
    assert!(pool.counters().hung_ever >= 4);
}

#[test]
fn no_more_than_max_hung_are_replaced() {
    let pool = pool(1, AT_ONCE, 1);
    let (first, second) = (hold(&pool), hold(&pool));
    wait_until(|| pool.counters().hung == 2);
    let third = probe(&pool);
    {
        // What the monitor decides, it decides under this lock.
        let state = pool.0.0.state.lock();
        assert_eq!((state.live, state.hung, state.waiting.len()), (2, 2, 1));
    }
    assert_eq!(third.try_recv(), Err(TryRecvError::Empty));
    // As many hang as have been replaced, so this one's thread is needed.
    drop(first);
    third.recv_timeout(PATIENCE).expect("a thread again");
    wait_until(|| live(&pool) == 2);
    drop(second);
    wait_until(|| live(&pool) == 1);
    runs_jobs(&pool);
}

#[test]
fn the_monitor_sleeps_while_nothing_runs() {
    let pool = pool(1, AT_ONCE, 1);
    for _ in 0..3 {
        wait_until(|| pool.0.0.state.lock().unwatched);
        let release = hold(&pool);
        wait_until(|| pool.counters().hung == 1);
        drop(release);
        wait_until(|| pool.counters().hung == 0);
    }
}

#[test]
fn a_resolver_answers_with_what_its_closure_returns() {
    let pool = pool(2, NEVER, 0);
    let resolver = pool.resolver(|request: &Request| match request.key.id() {
        "bad" => Err(ReadError::Failed),
        id => Ok(Rows::one(id.to_owned())),
    });
    assert_eq!(Asked::of("good").give_to(&resolver).is_answered(), "good");
    Asked::of("bad").give_to(&resolver).fails();
}

#[test]
fn a_read_that_panics_fails_and_is_read_again() {
    let pool = pool(1, NEVER, 0);
    let has_panicked = AtomicBool::new(false);
    let resolver = pool.resolver(move |_: &Request| {
        assert!(
            has_panicked.swap(true, Ordering::SeqCst),
            "a read that fails on purpose"
        );
        Ok(Rows::one("row"))
    });
    Asked::of("100").give_to(&resolver).fails();
    assert_eq!(Asked::of("100").give_to(&resolver).is_answered(), "row");
    assert_eq!(pool.counters().panics, 1);
}

#[test]
fn a_read_whose_earlier_one_still_hangs_is_refused_until_that_ends() {
    let pool = pool(1, AT_ONCE, 8);
    let (resolver, stuck) = stuck_resolver(&pool);
    let mut first = Asked::of("stuck").give_to(&resolver);
    stuck.begins();
    wait_until(|| pool.counters().hung == 1);
    for refused in 1..=10 {
        // At once, on this thread.
        assert!(Asked::of("stuck").give_to(&resolver).has_failed());
        assert_eq!(pool.counters().refused, refused);
    }
    assert_eq!(Asked::of("other").give_to(&resolver).is_answered(), "other");
    wait_until(|| live(&pool) == 2);
    assert_eq!(pool.counters().jobs, 2);

    stuck.ends();
    assert_eq!(first.is_answered(), "stuck");
    let mut again = Asked::of("stuck").give_to(&resolver);
    stuck.begins();
    stuck.ends();
    assert_eq!(again.is_answered(), "stuck");
    wait_until(|| live(&pool) == 1);
    assert_eq!(pool.counters().refused, 10);
}

#[test]
fn a_resolver_keeps_its_pool() {
    let resolver = {
        let pool = Pool::new(PoolConfig::default()).expect("threads");
        pool.resolver(|_: &Request| Ok(Rows::one("row")))
    };
    assert_eq!(Asked::of("100").give_to(&resolver).is_answered(), "row");
}

#[test]
fn resolvers_do_not_share_names() {
    let pool = pool(1, AT_ONCE, 8);
    let ((one, stuck), (other, stuck_too)) = (stuck_resolver(&pool), stuck_resolver(&pool));
    let mut first = Asked::of("stuck").give_to(&one);
    stuck.begins();
    let second = Asked::of("stuck").give_to(&other);
    stuck_too.begins();
    assert!(!second.has_failed());
    stuck.ends();
    first.is_answered();
    stuck_too.ends();
}

#[test]
fn a_read_that_waits_answers_the_newest_request() {
    let pool = pool(1, NEVER, 0);
    let (resolver, stuck) = stuck_resolver(&pool);
    let mut first = Asked::of("stuck").give_to(&resolver);
    stuck.begins();
    let older = Asked::of("100").give_to(&resolver);
    let mut newer = Asked::of("100").give_to(&resolver);
    assert!(older.has_failed());
    assert_eq!(pool.0.0.state.lock().waiting.len(), 1);
    stuck.ends();
    assert_eq!(newer.is_answered(), "100");
    first.is_answered();
    assert_eq!((pool.counters().jobs, pool.counters().refused), (2, 0));
}

#[test]
fn a_read_may_be_asked_for_while_the_last_one_is_answered() {
    let pool = pool(1, NEVER, 0);
    let (resolver, stuck) = stuck_resolver(&pool);
    let (node, _shard) = node("stuck", resolver);
    notify(&node, "stuck");
    stuck.begins();
    // Owed, and so begun within the answer to the first.
    notify(&node, "stuck");
    stuck.ends();
    stuck.begins();
    stuck.ends();
    assert_eq!(pool.counters().refused, 0);
}

#[test]
fn shutdown_finishes_what_runs_and_drops_what_waits() {
    let pool = pool(1, NEVER, 0);
    let (resolver, stuck) = stuck_resolver(&pool);
    let mut running = Asked::of("stuck").give_to(&resolver);
    stuck.begins();
    let waiting = Asked::of("100").give_to(&resolver);
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| pool.shutdown(PATIENCE));
        waiting.fails();
        assert!(!shutdown.is_finished());
        stuck.ends();
        shutdown.join().expect("no panic");
    });
    assert_eq!(live(&pool), 0);
    assert_eq!(running.is_answered(), "stuck");
    assert_eq!((pool.counters().jobs, pool.counters().panics), (1, 0));
    assert!(Asked::of("later").give_to(&resolver).has_failed());
}

#[test]
fn shutdown_does_not_wait_for_a_hung_thread() {
    let pool = Arc::new(pool(2, AT_ONCE, 1));
    let shared = pool.0.0.clone();
    let release = hold(&pool);
    wait_until(|| pool.counters().hung == 1);
    shut_down(&pool, Duration::MAX);
    assert_eq!(live(&pool), 1);
    drop((pool, release));
    wait_until(|| shared.state.lock().live == 0);
    // The monitor has gone as well.
    wait_until(|| Arc::strong_count(&shared) == 1);
}

#[test]
fn shutdown_does_not_wait_for_a_job_that_comes_to_hang() {
    let pool = Arc::new(pool(1, AT_ONCE, 0));
    let _release = hold(&pool);
    shut_down(&pool, Duration::MAX);
    assert_eq!((live(&pool), pool.counters().hung), (1, 1));
}

#[test]
fn shutdown_waits_no_longer_than_it_is_told() {
    let pool = Arc::new(pool(1, Duration::MAX, 0));
    let release = hold(&pool);
    shut_down(&pool, AT_ONCE);
    assert_eq!(live(&pool), 1);
    drop(release);
    wait_until(|| live(&pool) == 0);
}

#[test]
fn dropping_the_pool_is_a_shutdown() {
    let pool = pool(2, AT_ONCE, 1);
    let shared = pool.0.0.clone();
    let release = hold(&pool);
    wait_until(|| pool.counters().hung == 1);
    let dropping = thread::spawn(move || drop(pool));
    wait_until(|| dropping.is_finished());
    wait_until(|| shared.state.lock().live == 1);
    drop(release);
}

#[test]
fn a_job_after_shutdown_is_dropped() {
    let pool = pool(1, NEVER, 0);
    pool.shutdown(PATIENCE);
    assert_eq!(probe(&pool).try_recv(), Err(TryRecvError::Disconnected));
}

#[test]
fn a_job_may_hold_the_last_handle() {
    let pool = Arc::new(pool(1, NEVER, 0));
    let weak: Weak<Shared> = Arc::downgrade(&pool.0.0);
    let (go, wait) = channel::<()>();
    let own = Arc::clone(&pool);
    run(
        &pool,
        "items",
        Box::new(move || {
            let _ = wait.recv();
            drop(own);
        }),
    );
    drop(pool);
    go.send(()).expect("waiting");
    wait_until(|| weak.strong_count() == 0);
}
