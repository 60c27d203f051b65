//! How a node leaves, and what becomes of it when its bus misbehaves.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use entity_sync_core::{Config, Entities, EntityKey, EntityOptions, Node, Reply, Request, Resolve, Seed, Timestamp};
use entity_sync_runtime::Health;

use crate::driver::EVENTS_PER_TURN;
use crate::{
    Bus, Clock, Inbox, Join, Member, NotSent, PlainBus, PlainConfig, PlainInbox, Receipt, cluster_config, numbered,
    plain,
};

/// Long enough for anything, and less than forever.
const LONG: Duration = Duration::from_secs(60);

/// Nobody is subscribed to anything here.
struct NoReads;

impl Resolve for NoReads {
    fn resolve(&self, request: Request, _: Reply) {
        panic!("nobody asked for {request:?}");
    }
}

fn node() -> (Node, Clock) {
    let mut config = Config::new(Seed(1, 2));
    config.entities = Entities::none().with("items", EntityOptions::default());
    let (node, _) = Node::new(config, Arc::new(NoReads), vec![Waker::noop().clone()]);
    let start = Instant::now();
    (node, Arc::new(move || Timestamp::after_start(start.elapsed())))
}

fn notify(node: &Node, clock: &Clock, id: &str) {
    let key = EntityKey::new("items", id).expect("short");
    node.notify(clock(), &key).expect("registered");
}

/// A plain bus that is connected at once, and leaves it to the test what becomes of messages.
struct Held {
    published: Sender<Receipt>,
    stopped: Sender<Duration>,
}

impl PlainBus for Held {
    fn start(&mut self, _: &[String], inbox: PlainInbox) {
        inbox.connected();
    }

    fn publish(&mut self, _: &str, _: &[u8], receipt: Receipt) {
        let _ = self.published.send(receipt);
    }

    fn stop(&mut self, timeout: Duration) {
        let _ = self.stopped.send(timeout);
    }
}

/// A node on such a bus that has published a change.
fn held() -> (Box<dyn Member>, Receipt, Receiver<Duration>) {
    let (published, receipts) = channel();
    let (stopped, stops) = channel();
    let (node, clock) = node();
    let mut config = PlainConfig::default();
    config.confirm_within = LONG;
    let member = Box::new(plain(Held { published, stopped }, config))
        .join(node.clone(), clock.clone(), Health::default())
        .expect("a good start");
    notify(&node, &clock, "1");
    let receipt = receipts.recv_timeout(LONG).expect("published");
    (member, receipt, stops)
}

#[test]
fn whoever_leaves_waits_for_the_last_receipts() {
    let (mut member, receipt, stops) = held();
    let leaving = thread::spawn(move || member.leave(10 * LONG));
    assert!(
        stops.recv_timeout(Duration::from_millis(100)).is_err(),
        "it has not waited"
    );
    receipt.confirm();
    let time_left = stops.recv_timeout(LONG).expect("stopped");
    assert!(time_left > Duration::ZERO);
    assert_eq!(leaving.join().expect("it has left"), Ok(()));
}

#[test]
fn whoever_leaves_waits_no_longer_than_it_was_told() {
    let (mut member, receipt, stops) = held();
    let timeout = Duration::from_millis(100);
    let start = Instant::now();
    let undelivered = member.leave(timeout).expect_err("there is no receipt");
    assert_eq!(undelivered.keys, [EntityKey::new("items", "1").expect("short")]);
    assert!(undelivered.to_string().contains(r#""items" "1""#), "{undelivered}");
    assert!(start.elapsed() >= timeout);
    assert_eq!(stops.recv_timeout(LONG), Ok(Duration::ZERO));
    drop(receipt);
}

/// A bus whose node never comes to the end of what others send.
struct Flooded {
    inbox: Arc<OnceLock<Inbox>>,
    stopped: Sender<Duration>,
}

impl Bus for Flooded {
    fn start(&mut self, inbox: Inbox) {
        inbox.connected();
        let _ = self.inbox.set(inbox);
    }

    fn subscribe(&mut self, _: &str) {}

    fn publish(&mut self, _: &str, _: &[u8]) -> Result<(), NotSent> {
        Ok(())
    }

    fn stop(&mut self, timeout: Duration) {
        let _ = self.stopped.send(timeout);
    }
}

/// A node on such a bus, with messages like this one.
fn flooded(message: &'static [u8]) -> (Box<dyn Member>, Receiver<Duration>) {
    let (node, clock) = node();
    let inbox = Arc::<OnceLock<Inbox>>::default();
    let flooded = inbox.clone();
    // The thread looks at it in each turn, and then finds as much as it takes in one.
    let flooding_clock = Arc::new(move || {
        if let Some(inbox) = flooded.get() {
            (0..EVENTS_PER_TURN).for_each(|_| inbox.message(message));
        }
        clock()
    });
    let (stopped, stops) = channel();
    let bus = Flooded { inbox, stopped };
    let member = Box::new(numbered(bus, cluster_config()))
        .join(node, flooding_clock, Health::default())
        .expect("a good start");
    (member, stops)
}

#[test]
fn what_others_go_on_sending_keeps_nobody_from_leaving() {
    let (mut member, stops) = flooded(b"no message");
    assert_eq!(member.leave(LONG / 10), Ok(()));
    let time_left = stops.recv_timeout(LONG).expect("stopped");
    assert!(time_left > Duration::ZERO, "it has stayed until its time was over");
}

#[test]
fn what_is_dropped_is_told_though_more_and_more_comes() {
    // More of them fit than are taken in a turn, and more come.
    static LARGE: [u8; 32 * 1024] = [0; 32 * 1024];
    let (mut member, _stops) = flooded(&LARGE);
    let start = Instant::now();
    while member.view().counters().overflowed.get() == 0 {
        assert!(start.elapsed() < LONG, "nobody is told");
        thread::sleep(Duration::from_millis(1));
    }
    let _ = member.leave(LONG / 10);
}

#[test]
fn a_bus_that_panics_keeps_nobody_from_leaving() {
    struct Panics(Sender<()>);

    impl PlainBus for Panics {
        fn start(&mut self, _: &[String], inbox: PlainInbox) {
            inbox.connected();
        }

        fn publish(&mut self, _: &str, _: &[u8], receipt: Receipt) {
            drop(receipt);
            let _ = self.0.send(());
            panic!("as buses do");
        }
    }

    let (publish, publishes) = channel();
    let (node, clock) = node();
    let mut member = Box::new(plain(Panics(publish), PlainConfig::default()))
        .join(node.clone(), clock.clone(), Health::default())
        .expect("a good start");
    notify(&node, &clock, "1");
    publishes.recv_timeout(LONG).expect("published");
    let start = Instant::now();
    let _ = member.leave(2 * LONG);
    assert!(start.elapsed() < LONG);
    // And nobody waits for a thread that is gone.
    assert!(member.flush(LONG).is_err_and(|it| it.is_unknown));
    assert!(start.elapsed() < LONG);
    assert!(!member.view().status().is_connected);
    // Nobody takes it, and it is not kept.
    notify(&node, &clock, "2");
    assert_eq!(publishes.recv_timeout(LONG), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn a_bus_that_parks_does_not_swallow_what_the_thread_is_woken_for() {
    /// Tells the test what it is asked to publish, and parks until the thread was woken for more, and a last time.
    struct Parks {
        published: Sender<()>,
        was_woken: Arc<AtomicBool>,
    }

    impl Bus for Parks {
        fn start(&mut self, inbox: Inbox) {
            inbox.connected();
        }

        fn subscribe(&mut self, _: &str) {}

        fn publish(&mut self, _: &str, message: &[u8]) -> Result<(), NotSent> {
            let is_change = message.windows(5).any(|it| it == b"items");
            if is_change {
                let _ = self.published.send(());
                while !self.was_woken.load(SeqCst) {
                    thread::park_timeout(Duration::from_millis(1));
                }
                thread::park_timeout(Duration::ZERO);
            }
            Ok(())
        }
    }

    let (published, messages) = channel();
    let (node, clock) = node();
    let mut config = cluster_config();
    // Nothing else wakes the thread.
    config.heartbeat = LONG;
    let was_woken = Arc::<AtomicBool>::default();
    let bus = Parks {
        published,
        was_woken: was_woken.clone(),
    };
    let _member = Box::new(numbered(bus, config))
        .join(node.clone(), clock.clone(), Health::default())
        .expect("a good start");
    notify(&node, &clock, "1");
    messages.recv_timeout(LONG).expect("the first change");
    notify(&node, &clock, "2");
    was_woken.store(true, SeqCst);
    messages
        .recv_timeout(LONG / 2)
        .expect("the second change, before the next heartbeat");
}

/// A plain bus whose connection the test makes, and that has everything at once.
struct Late(Sender<PlainInbox>);

impl PlainBus for Late {
    fn start(&mut self, _: &[String], inbox: PlainInbox) {
        let _ = self.0.send(inbox);
    }

    fn publish(&mut self, _: &str, _: &[u8], receipt: Receipt) {
        receipt.confirm();
    }
}

#[test]
fn a_job_that_notifies_and_ends_waits_for_the_first_connection() {
    let (inboxes, inbox) = channel();
    let (node, clock) = node();
    let late = plain(Late(inboxes), PlainConfig::default());
    let mut member = Box::new(late)
        .join(node.clone(), clock.clone(), Health::default())
        .expect("a good start");
    (0..100).for_each(|id| notify(&node, &clock, &id.to_string()));
    let short = Duration::from_millis(50);
    let undelivered = member.flush(short).expect_err("there is no connection");
    assert_eq!((undelivered.keys.len(), undelivered.others), (100, 0));
    let inbox = inbox.recv_timeout(LONG).expect("started");
    thread::spawn(move || {
        thread::sleep(short);
        inbox.connected();
    });
    assert_eq!(member.leave(LONG), Ok(()));
    assert_eq!(member.view().counters().confirmed.get(), 100);
}

#[test]
fn a_flush_waits_for_what_was_notified_before_it() {
    let (member, receipt, _stops) = held();
    let short = Duration::from_millis(50);
    let undelivered = member.flush(short).expect_err("there is no receipt");
    assert_eq!(undelivered.keys.len(), 1);
    let member = Arc::new(member);
    let flushing = {
        let member = member.clone();
        thread::spawn(move || member.flush(LONG))
    };
    thread::sleep(short);
    assert!(!flushing.is_finished());
    receipt.confirm();
    assert_eq!(flushing.join().expect("it ends"), Ok(()));
    assert_eq!(member.flush(Duration::ZERO), Ok(()));
}

/// A bus that carries numbered messages, is connected by the test, and refuses them before.
struct LateNumbered {
    inboxes: Sender<Inbox>,
    is_connected: Arc<AtomicBool>,
    published: Sender<usize>,
}

impl Bus for LateNumbered {
    fn start(&mut self, inbox: Inbox) {
        let _ = self.inboxes.send(inbox);
    }

    fn subscribe(&mut self, _: &str) {}

    fn publish(&mut self, _: &str, message: &[u8]) -> Result<(), NotSent> {
        if !self.is_connected.load(SeqCst) {
            return Err(NotSent);
        }
        let _ = self.published.send(message.len());
        Ok(())
    }
}

#[test]
fn on_a_numbered_bus_too_a_job_waits_for_the_first_connection() {
    let ((inboxes, inbox), (published, messages)) = (channel(), channel());
    let is_connected = Arc::<AtomicBool>::default();
    let bus = LateNumbered {
        inboxes,
        is_connected: is_connected.clone(),
        published,
    };
    let (node, clock) = node();
    let mut member = Box::new(numbered(bus, cluster_config()))
        .join(node.clone(), clock.clone(), Health::default())
        .expect("a good start");
    notify(&node, &clock, "1");
    let short = Duration::from_millis(50);
    let undelivered = member.flush(short).expect_err("there is no connection");
    assert_eq!((undelivered.keys.len(), undelivered.others), (0, 1));
    let inbox = inbox.recv_timeout(LONG).expect("started");
    thread::spawn(move || {
        thread::sleep(short);
        is_connected.store(true, SeqCst);
        inbox.connected();
    });
    assert_eq!(member.leave(LONG), Ok(()));
    // The goodbye, at least: from it the others learn that they have missed something.
    assert!(messages.try_iter().count() >= 1);
}

#[test]
fn a_numbered_bus_that_is_never_connected_says_so_in_time() {
    let ((inboxes, _inbox), (published, _messages)) = (channel(), channel());
    let bus = LateNumbered {
        inboxes,
        is_connected: Arc::default(),
        published,
    };
    let (node, clock) = node();
    let mut member = Box::new(numbered(bus, cluster_config()))
        .join(node.clone(), clock.clone(), Health::default())
        .expect("a good start");
    // With nothing to tell there is nothing to wait for.
    notify(&node, &clock, "1");
    let start = Instant::now();
    let undelivered = member
        .leave(Duration::from_millis(100))
        .expect_err("there is no connection");
    assert_eq!(undelivered.others, 1);
    assert!(start.elapsed() < LONG);
}
