//! Resolvers that answer at once, panic, or say that there is nothing.

use super::*;

/// Keeps the first read, and panics at so many after it.
struct Panics {
    calls: AtomicUsize,
    panics: usize,
    queue: Queue,
}

impl Resolve for Panics {
    fn resolve(&self, request: Request, reply: Reply) {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        assert!(!(1..=self.panics).contains(&call), "this resolver panics");
        self.queue.resolve(request, reply);
    }
}

#[test]
fn a_resolver_that_panics_has_failed() {
    const FLIGHTS: u64 = 40;
    const PANICS: u64 = 30;
    let resolver = Arc::new(Panics {
        calls: AtomicUsize::new(0),
        panics: PANICS as usize,
        queue: Queue::default(),
    });
    let waker = Waker::noop().clone();
    let (node, _shards) = Node::new(gated(1), resolver.clone(), vec![waker]);
    for id in 0..FLIGHTS {
        let key = key(&id.to_string());
        node.join_unhashed(0, topic(0), &key, &Audience::Public);
        node.notify(at(0), &key).unwrap();
    }
    assert_eq!((resolver.queue.len(), counts(&node)), (1, (1, FLIGHTS as usize - 1)));
    // Each panic gives its place to the next flight, whose read panics while the thread is still unwinding.
    resolver.queue.fail(at(0));
    let mut inbox = Inbox::default();
    while node.has_waiting_reads() {
        node.take_inbox(at(0), 0, &mut inbox);
    }
    assert_eq!(node.counters().resolver_panics.get(), PANICS);
    assert_eq!(node.counters().failed_reads.get(), 1 + PANICS);
    assert_eq!(counts(&node), (1, (FLIGHTS - PANICS) as usize - 2));
    node.assert_consistent();
    // All of them are read in the end.
    let (mut now, mut read) = (at(0), 0);
    while read < FLIGHTS {
        while resolver.queue.len() > 0 {
            resolver.queue.answer(now, "x");
            read += 1;
        }
        if read < FLIGHTS {
            now = node.poll_timeout().expect("a read is owed").max(now);
            node.handle_timeout(now);
        }
    }
    assert_eq!(node.counters().failed_reads.get(), 1 + PANICS);
    assert_eq!((counts(&node), resolver.queue.len()), ((0, 0), 0));
    node.assert_consistent();
}

#[test]
fn a_final_answer_is_not_asked_for_again() {
    for error in [ReadError::Denied, ReadError::NotFound] {
        let it = Setup::new();
        let flight = it.join(0, "1", &Audience::Public);
        it.node.notify(at(0), &key("1")).unwrap();
        let (_, reply) = it.queue.pop().unwrap();
        reply.send(at(0), Err(error.clone())).unwrap();
        // It takes the place of rows that are queued.
        assert_eq!(it.marks(0), [flight]);
        assert!(it.take(0, flight).is_some_and(|group| group.is_empty()));
        while let Some(timeout) = it.node.poll_timeout() {
            it.node.handle_timeout(timeout);
        }
        assert_eq!(it.queue.len(), 0);
        let counts = it.node.counters().snapshot();
        let denied = u64::from(error == ReadError::Denied);
        assert_eq!((counts.denied_reads, counts.not_found_reads), (denied, 1 - denied));
        assert_eq!((counts.reads, counts.failed_reads), (1, 0));
        it.node.notify(at(60), &key("1")).unwrap();
        it.queue.answer(at(60), "it is back");
        assert_eq!(it.take(0, flight).as_ref().map(text), Some("it is back"));
    }
}

/// Keeps the first read, and answers all others at once.
#[derive(Default)]
struct AtOnce {
    first: Mutex<Option<Reply>>,
    calls: AtomicUsize,
    depth: AtomicUsize,
    deepest: AtomicUsize,
}

impl Resolve for AtOnce {
    fn resolve(&self, _: Request, reply: Reply) {
        if self.calls.fetch_add(1, Ordering::SeqCst) == 0 {
            *lock(&self.first) = Some(reply);
            return;
        }
        let depth = self.depth.fetch_add(1, Ordering::SeqCst) + 1;
        self.deepest.fetch_max(depth, Ordering::SeqCst);
        reply.send(at(0), Ok(Rows::one("x"))).unwrap();
        self.depth.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
#[expect(clippy::disallowed_types, reason = "only a thread's stack has a size")]
fn any_number_of_answers_at_once_need_little_stack() {
    const FLIGHTS: usize = 100_000;
    let resolver = Arc::new(AtOnce::default());
    let waker = Waker::noop().clone();
    let (node, _shards) = Node::new(gated(1), resolver.clone(), vec![waker]);
    for id in 0..FLIGHTS {
        let key = key(&id.to_string());
        node.join_unhashed(0, topic(0), &key, &Audience::Public);
        node.notify(at(0), &key).unwrap();
    }
    assert_eq!(counts(&node), (1, FLIGHTS - 1));
    let first = lock(&resolver.first).take().expect("a read");
    let run = {
        let node = node.clone();
        move || {
            first.send(at(0), Ok(Rows::one("x"))).unwrap();
            let (mut inbox, mut turns) = (Inbox::default(), 0);
            while node.has_waiting_reads() {
                node.take_inbox(at(0), 0, &mut inbox);
                inbox.marks.clear();
                turns += 1;
            }
            turns
        }
    };
    let thread = std::thread::Builder::new().stack_size(256 * 1024).spawn(run);
    let turns = thread.unwrap().join().unwrap();
    assert_eq!(counts(&node), (0, 0));
    assert_eq!(resolver.calls.load(Ordering::SeqCst), FLIGHTS);
    let deepest = resolver.deepest.load(Ordering::SeqCst);
    assert!(deepest <= MAX_DEPTH as usize + 1, "{deepest} answers on one stack");
    // Each turn begins afresh.
    assert!(
        turns <= FLIGHTS / MAX_DEPTH as usize + 1,
        "{turns} turns of the first shard"
    );
    node.assert_consistent();
}

/// Reads for subscribers of the second shard, of which the first shard is to begin those that don't fit on one stack.
fn leave_reads_waiting(node: &Node, resolver: &AtOnce) {
    for id in 0..100 {
        let key = key(&id.to_string());
        node.join_unhashed(1, topic(0), &key, &Audience::Public);
        node.notify(at(0), &key).unwrap();
    }
    let first = lock(&resolver.first).take().expect("a read");
    first.send(at(0), Ok(Rows::one("x"))).unwrap();
    assert!(node.has_waiting_reads());
}

#[test]
fn reads_that_wait_for_a_shard_that_is_dropped_begin_on_another() {
    let resolver = Arc::new(AtOnce::default());
    let woken = Arc::<Woken>::default();
    let wakers = vec![Waker::noop().clone(), Waker::from(woken.clone())];
    let (node, mut shards) = Node::new(gated(1), resolver.clone(), wakers);
    leave_reads_waiting(&node, &resolver);
    let before = woken.get();
    let mut inbox = Inbox::default();
    // So that it sleeps.
    while node.take_inbox(at(0), 1, &mut inbox) {
        inbox.marks.clear();
    }
    drop(shards.remove(0));
    assert!(woken.get() > before, "the second shard sleeps on");
    while node.has_waiting_reads() {
        node.take_inbox(at(0), 1, &mut inbox);
        inbox.marks.clear();
    }
    assert_eq!((counts(&node), resolver.calls.load(Ordering::SeqCst)), ((0, 0), 100));
    // Nothing is kept for the one that is gone.
    let frame = bytes::Bytes::from_static(b"x");
    for _ in 0..10 {
        let whose = Whose::Topic(topic(0));
        node.command(
            0,
            Command::Close {
                whose,
                frame: frame.clone(),
            },
        )
        .unwrap();
    }
    assert!(!node.take_inbox(at(0), 0, &mut inbox));
}

#[test]
fn a_shard_that_only_began_reads_must_look_again() {
    let resolver = Arc::new(AtOnce::default());
    let wakers = vec![Waker::noop().clone(); 2];
    let (node, _shards) = Node::new(gated(1), resolver.clone(), wakers);
    leave_reads_waiting(&node, &resolver);
    let mut inbox = Inbox::default();
    // It has left something for itself while it began them, and is not woken for that.
    assert!(node.take_inbox(at(0), 0, &mut inbox));
    assert!(
        inbox.marks.is_empty() && inbox.commands.is_empty(),
        "the rows are another's"
    );
}
