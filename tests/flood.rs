//! Clients that send more than they are due, and one beside them that is to get its pushes all the same.

use std::io::{ErrorKind, Read, Write};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use entity_sync_mio::{Config, EntityKey, Reply, Request, Rows, Server};
use entity_sync_tests::Client;

const PUSHES: u64 = 60;
const PAUSE: Duration = Duration::from_millis(50);

/// Connections that send the same message without end, and throw away what they are sent.
struct Flood {
    is_over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Flood {
    fn start(mut clients: Vec<Client>, message: &[u8]) -> Self {
        let burst = message.repeat(16 * 1024 / message.len());
        let is_over = Arc::<AtomicBool>::default();
        let sent = Arc::<AtomicU64>::default();
        let (has_ended, count) = (is_over.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            let mut at = vec![0; clients.len()];
            let mut sink = vec![0; 64 * 1024];
            while !has_ended.load(Ordering::Relaxed) {
                let mut is_idle = true;
                for (client, at) in clients.iter_mut().zip(&mut at) {
                    let stream = client.stream();
                    stream.set_nonblocking(true).unwrap();
                    match stream.write(&burst[*at..]) {
                        Ok(bytes) => {
                            is_idle = false;
                            *at = (*at + bytes) % burst.len();
                            count.fetch_add(bytes as u64, Ordering::Relaxed);
                        }
                        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                    }
                    while stream.read(&mut sink).is_ok_and(|bytes| bytes == sink.len()) {}
                }
                if is_idle {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Self { is_over, sent, thread }
    }

    /// How many bytes were sent.
    fn stop(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.sent.load(Ordering::Relaxed)
    }
}

/// One client gets twenty pushes a second while others flood.
fn push_beside(connections: usize, message: &[u8]) {
    let mut config = Config::new(["127.0.0.1:0".parse().unwrap()]);
    config.reactors = NonZeroUsize::MIN;
    let state = Arc::<AtomicU64>::default();
    let read = state.clone();
    let server = Server::start(config, move |_: Request, reply: Reply| {
        let number = read.load(Ordering::SeqCst).to_string();
        reply.rows(Rows::one(number)).unwrap();
    })
    .unwrap();
    let address = server.addresses()[0];
    let mut client = Client::connect(address);
    client.subscribe("items", "1");
    client.sync();
    let flood = Flood::start((0..connections).map(|_| Client::connect(address)).collect(), message);
    std::thread::sleep(Duration::from_millis(500));
    let handle = server.handle().clone();
    let began = Instant::now();
    let notifier = std::thread::spawn(move || {
        for number in 1..=PUSHES {
            std::thread::sleep((PAUSE * number as u32).saturating_sub(began.elapsed()));
            state.store(number, Ordering::SeqCst);
            handle.notify(&EntityKey::new("items", "1").unwrap()).unwrap();
        }
    });
    let (mut pushes, mut late) = (0, Vec::new());
    while let Ok(number) = client.row().parse::<u32>() {
        pushes += 1;
        late.push(began.elapsed().saturating_sub(PAUSE * number));
        if u64::from(number) == PUSHES {
            break;
        }
    }
    notifier.join().unwrap();
    let sent = flood.stop();
    late.sort_unstable();
    let rate = sent as f64 / began.elapsed().as_secs_f64() / 1e6;
    println!(
        "{connections} connections, {rate:.1} MB/s: {pushes} of {PUSHES} pushes, median {:?}, slowest {:?}",
        late[late.len() / 2],
        late[late.len() - 1]
    );
    assert!(pushes >= PUSHES * 3 / 4, "{pushes} of {PUSHES} pushes");
    assert!(sent > 1_000_000, "no flood: {sent} bytes");
}

#[test]
fn a_flood_of_pings_costs_others_no_pushes() {
    push_beside(20, &[0x89, 0x80, 0, 0, 0, 0]);
}

#[test]
fn a_flood_of_tiny_messages_costs_others_no_pushes() {
    push_beside(200, &[0x81, 0x82, 0, 0, 0, 0, b'{', b'}']);
}
