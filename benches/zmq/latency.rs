//! From a notify to the look-up on the other node, beside a message between bare sockets.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use entity_sync_benches::machine::now_ns;
use entity_sync_bus::{Health, Join};
use entity_sync_core::Node;
use entity_sync_zmq::zmq as bus_over_zmq;

use crate::bare::{Pair, TOPIC};
use crate::nodes::{Clock, Driven, PATIENCE, config, keys, node, rules};

/// When each was sent.
pub(crate) type Sent = Arc<[AtomicU64]>;

/// A node with a bus on its own thread is notified on this one. The latencies in order of size, in nanoseconds.
pub(crate) fn ours(count: usize, pace: Duration) -> Result<Vec<u64>, Box<dyn Error>> {
    let (node, clock) = (node(), Clock::start());
    let bus = bus_over_zmq(config(None, 100_000)?, rules());
    let view = bus.view().clone();
    let mut member = Box::new(bus).join(node.clone(), Arc::new(move || clock.now()), Health::default())?;
    let address = view.addresses().first().cloned().ok_or("no address")?;
    let mut receiver = Driven::start(&config(Some(&address), 1_000)?)?;
    let start = Instant::now();
    while !receiver.hears_someone() {
        receiver.turn()?;
        if start.elapsed() > PATIENCE {
            return Err("the nodes did not find each other".into());
        }
    }
    let (sent, sender) = notify(node, clock, count, pace)?;
    let mut latencies = Vec::with_capacity(count);
    while latencies.len() < count {
        let turn = receiver.process();
        let now = now_ns();
        for index in latencies.len()..receiver.heard() as usize {
            latencies.push(since_sent(&sent, index, now));
        }
        receiver.sleep(turn)?;
        if start.elapsed() > PATIENCE {
            return Err(format!("only {} of {count} keys have come", latencies.len()).into());
        }
    }
    if !sender.join().map_err(|_| "the sender panicked")? {
        return Err("a key was unknown".into());
    }
    let _ = member.leave(Duration::from_secs(1));
    latencies.sort_unstable();
    Ok(latencies)
}

/// The same by bare sockets, from the thread that sends.
pub(crate) fn bare(count: usize, pace: Duration) -> Result<Vec<u64>, Box<dyn Error>> {
    let Pair { publisher, subscriber } = Pair::connect(100_000)?;
    let (sent, sender) = publish(publisher, count, pace);
    subscriber.set_rcvtimeo(PATIENCE.as_millis() as i32)?;
    let mut message = zmq::Message::new();
    let mut latencies = Vec::with_capacity(count);
    for index in 0..count {
        subscriber.recv(&mut message, 0)?;
        latencies.push(since_sent(&sent, index, now_ns()));
    }
    if !sender.join().map_err(|_| "the sender panicked")?.1 {
        return Err("a message was not sent".into());
    }
    latencies.sort_unstable();
    Ok(latencies)
}

/// Notifies each of so many keys on a thread, which says whether all were known.
pub(crate) fn notify(
    node: Node,
    clock: Clock,
    count: usize,
    pace: Duration,
) -> Result<(Sent, JoinHandle<bool>), Box<dyn Error>> {
    let sent = none_sent(count);
    let (of_sender, keys) = (sent.clone(), keys(count)?);
    let sender = std::thread::spawn(move || {
        let mut is_known = true;
        paced(pace, &of_sender, |index| {
            is_known &= node.notify(clock.now(), &keys[index]).is_ok()
        });
        is_known
    });
    Ok((sent, sender))
}

/// Publishes so many messages on a thread, which says whether all were sent. The socket is given back, so that it is not
/// closed before all was received.
pub(crate) fn publish(publisher: zmq::Socket, count: usize, pace: Duration) -> (Sent, JoinHandle<(zmq::Socket, bool)>) {
    let sent = none_sent(count);
    let of_sender = sent.clone();
    // As long as a message of one key.
    let frame = [TOPIC, &[1; 55]].concat();
    let sender = std::thread::spawn(move || {
        let mut is_sent = true;
        paced(pace, &of_sender, |_| {
            is_sent &= publisher.send(&frame[..], zmq::DONTWAIT).is_ok()
        });
        (publisher, is_sent)
    });
    (sent, sender)
}

fn none_sent(count: usize) -> Sent {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

pub(crate) fn since_sent(sent: &Sent, index: usize, now: u64) -> u64 {
    now - sent[index].load(Ordering::SeqCst)
}

/// Does something at an even pace, as well as the system's sleep can, and notes when.
fn paced(pace: Duration, sent: &[AtomicU64], mut send: impl FnMut(usize)) {
    let start = Instant::now();
    for (index, sent) in sent.iter().enumerate() {
        let due = pace * index as u32;
        if let Some(wait) = due.checked_sub(start.elapsed()) {
            std::thread::sleep(wait);
        }
        sent.store(now_ns(), Ordering::SeqCst);
        send(index);
    }
}
