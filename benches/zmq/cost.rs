//! CPU time by message, of the threads that send and receive.

use std::error::Error;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use entity_sync_benches::machine::{cpu_us, thread_cpu_ns};
use entity_sync_core::EntityKey;

use crate::bare::{Framing, Pair, TOPIC};
use crate::nodes::{Driven, PATIENCE, config, keys};

/// What a run took.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    /// The part of the sender's that is the application's: its calls of notify.
    pub(crate) notify_ns: u64,
    pub(crate) sender_ns: u64,
    pub(crate) receiver_ns: u64,
    pub(crate) process_ns: u64,
    pub(crate) seconds: f64,
}

/// What the other thread may say when it failed.
type Failed = Box<dyn Error + Send + Sync>;

/// Two nodes that hear each other: one is notified, the other looks up what it hears. So many messages, of so many keys
/// each.
pub(crate) fn ours(messages: usize, keys_each: usize) -> Result<Cost, Box<dyn Error>> {
    let mut sender = Driven::start(&config(None, messages + 1_000)?)?;
    let address = sender.bus.addresses().first().cloned().ok_or("no address")?;
    let keys = keys(messages * keys_each)?;
    let expected = keys.len() as u64;
    let (tell_ready, ready) = channel();
    let receiver = std::thread::Builder::new()
        .name("ours".to_owned())
        .spawn(move || -> Result<u64, Failed> {
            let failed = |error: Box<dyn Error>| Failed::from(error.to_string());
            let mut receiver = config(Some(&address), 1_000)
                .and_then(|it| Driven::start(&it))
                .map_err(failed)?;
            while !receiver.hears_someone() {
                receiver.turn().map_err(failed)?;
            }
            tell_ready.send(())?;
            let (before, start) = (thread_cpu_ns(), Instant::now());
            while receiver.heard() < expected {
                receiver.turn().map_err(failed)?;
                if start.elapsed() > PATIENCE {
                    return Err(format!("only {} of {expected} keys have come", receiver.heard()).into());
                }
            }
            Ok(thread_cpu_ns() - before)
        })?;
    // Its digests tell the other one that it is heard.
    while ready.try_recv().is_err() {
        if receiver.is_finished() {
            break;
        }
        sender.bus.process(sender.clock.now());
        std::thread::sleep(Duration::from_millis(1));
    }
    let (process, start) = (cpu_us(), Instant::now());
    let before = thread_cpu_ns();
    for some in keys.chunks(keys_each) {
        notify(&mut sender, some)?;
    }
    let sender_ns = thread_cpu_ns() - before;
    let received = receiver.join().map_err(|_| "the receiver panicked")?;
    let receiver_ns = received.map_err(|error| error.to_string())?;
    let (process_ns, seconds) = ((cpu_us() - process) * 1000, start.elapsed().as_secs_f64());
    let published = sender.bus.view().counters().published.get();
    if published < messages as u64 {
        return Err(format!("{published} messages instead of {messages}").into());
    }
    let notify_ns = notifies(&mut sender, &keys)?;
    Ok(Cost {
        notify_ns: notify_ns.min(sender_ns),
        sender_ns,
        receiver_ns,
        process_ns,
        seconds,
    })
}

/// What notifies alone take, which happen on threads of the application's.
fn notifies(sender: &mut Driven, keys: &[EntityKey]) -> Result<u64, Box<dyn Error>> {
    let mut sum = 0;
    // Not all at once: the tables are to stay as small as they are when the bus takes everything at once.
    for some in keys.chunks(256) {
        let before = thread_cpu_ns();
        for key in some {
            sender.node.notify(sender.clock.now(), key)?;
        }
        sum += thread_cpu_ns() - before;
        sender.bus.publish();
    }
    Ok(sum)
}

/// Notifies keys that leave in one message.
fn notify(sender: &mut Driven, keys: &[EntityKey]) -> Result<(), Box<dyn Error>> {
    let now = sender.clock.now();
    for key in keys {
        sender.node.notify(now, key)?;
    }
    sender.bus.publish();
    Ok(())
}

/// The frames that nodes send for that.
pub(crate) fn record(messages: usize, keys_each: usize) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let mut sender = Driven::start(&config(None, messages + 1_000)?)?;
    let address = sender.bus.addresses().first().cloned().ok_or("no address")?;
    let subscriber = zmq::Context::new().socket(zmq::SUB)?;
    subscriber.set_linger(0)?;
    subscriber.set_ipv6(true)?;
    subscriber.set_rcvhwm(0)?;
    subscriber.set_rcvtimeo(100)?;
    subscriber.set_subscribe(TOPIC)?;
    subscriber.connect(&address)?;
    let start = Instant::now();
    while subscriber.recv_msg(0).is_err() {
        if start.elapsed() > PATIENCE {
            return Err("the recorder hears nothing".into());
        }
        sender.bus.process(sender.clock.now());
    }
    for some in keys(messages * keys_each)?.chunks(keys_each) {
        notify(&mut sender, some)?;
    }
    let mut frames = Vec::new();
    while frames.len() < messages {
        let frame = subscriber.recv_msg(0)?;
        // Digests have another kind.
        if frame.get(TOPIC.len() + 1) == Some(&1) {
            frames.push(frame.to_vec());
        }
    }
    Ok(frames)
}

/// The same frames by bare sockets.
pub(crate) fn bare(frames: &[Vec<u8>], framing: Framing) -> Result<Cost, Box<dyn Error>> {
    let Pair { publisher, subscriber } = Pair::connect(2 * frames.len() + 1_000)?;
    let expected = frames.len() * if framing == Framing::One { 1 } else { 2 };
    let receiver = std::thread::Builder::new()
        .name("bare".to_owned())
        .spawn(move || -> Result<u64, zmq::Error> {
            subscriber.set_rcvtimeo(PATIENCE.as_millis() as i32)?;
            let mut message = zmq::Message::new();
            let before = thread_cpu_ns();
            for _ in 0..expected {
                subscriber.recv(&mut message, 0)?;
            }
            Ok(thread_cpu_ns() - before)
        })?;
    let (process, start) = (cpu_us(), Instant::now());
    let before = thread_cpu_ns();
    for frame in frames {
        match framing {
            Framing::One => publisher.send(&frame[..], zmq::DONTWAIT)?,
            Framing::Two => {
                let (topic, message) = frame.split_at(TOPIC.len());
                publisher.send(topic, zmq::DONTWAIT | zmq::SNDMORE)?;
                publisher.send(message, zmq::DONTWAIT)?;
            }
        }
    }
    let sender_ns = thread_cpu_ns() - before;
    let receiver_ns = receiver.join().map_err(|_| "the receiver panicked")??;
    Ok(Cost {
        notify_ns: 0,
        sender_ns,
        receiver_ns,
        process_ns: (cpu_us() - process) * 1000,
        seconds: start.elapsed().as_secs_f64(),
    })
}
