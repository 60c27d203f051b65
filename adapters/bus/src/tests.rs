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
    leaving.join().expect("it has left");
}

#[test]
fn whoever_leaves_waits_no_longer_than_it_was_told() {
    let (mut member, receipt, stops) = held();
    let timeout = Duration::from_millis(100);
    let start = Instant::now();
    member.leave(timeout);
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
    member.leave(LONG / 10);
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
    member.leave(LONG / 10);
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
    member.leave(2 * LONG);
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
