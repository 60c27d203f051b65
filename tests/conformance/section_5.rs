//! PROTOCOL, section 5: what killed the original's process, stalled its clients or lost one. One function for each row;
//! each gives back what went wrong.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use entity_sync_mio::{EntityKey, Reply, Request, Rows, Server};
use entity_sync_tests::{Client, PATIENCE, talk, wait_for};

use crate::door::{Door, Open};

/// A server whose entity is a number, and what notifies of it as fast as it goes.
struct World {
    server: Server,
    open: Open,
    state: Arc<AtomicU64>,
    payload: usize,
}

impl World {
    fn start(door: Door, payload: usize) -> Self {
        let mut config = door.config();
        config.reactors = NonZeroUsize::new(2).unwrap();
        let state = Arc::new(AtomicU64::new(0));
        let of_resolver = state.clone();
        let server = Server::start(config, move |_: Request, reply: Reply| {
            reply
                .rows(Rows::one(row(of_resolver.load(Ordering::SeqCst), payload)))
                .unwrap();
        })
        .unwrap();
        let open = door.open(&server);
        Self {
            server,
            open,
            state,
            payload,
        }
    }

    fn address(&self) -> SocketAddr {
        self.open.address
    }

    fn change(&self) {
        self.state.fetch_add(1, Ordering::SeqCst);
        self.server
            .handle()
            .notify(&EntityKey::new("items", "100").unwrap())
            .unwrap();
    }

    fn subscriber(&self) -> Client {
        let mut client = Client::connect(self.address());
        client.subscribe("items", "100");
        client.sync();
        client
    }

    fn last_row(&self) -> String {
        row(self.state.load(Ordering::SeqCst), self.payload)
    }
}

fn row(state: u64, payload: usize) -> String {
    format!("{state} {}", "x".repeat(payload))
}

/// Does something again and again on threads of their own, until it is dropped.
struct Again {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Again {
    fn and_again(threads: usize, each: impl Fn() + Clone + Send + 'static) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let spawn = |_| {
            let (is_over, each) = (is_over.clone(), each.clone());
            thread::spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
                    each();
                }
            })
        };
        let threads = (0..threads).map(spawn).collect();
        Self { is_over, threads }
    }

    fn stop(mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

const CHANGES: u64 = 20_000;

#[test]
fn connections_subscribing_and_unsubscribing_in_a_loop_while_the_entity_is_notified() {
    for door in Door::ALL {
        let world = World::start(door, 10);
        let mut witness = world.subscriber();
        let address = world.address();
        let again = Again::and_again(2, move || {
            let mut client = Client::connect(address);
            for _ in 0..200 {
                client.subscribe("items", "100");
                client.unsubscribe("items", "100");
            }
            client.sync();
        });
        for _ in 0..CHANGES {
            world.change();
        }
        again.stop();
        witness.rows_until(&world.last_row());
    }
}

#[test]
fn clients_connecting_subscribing_and_disconnecting_while_notified() {
    for door in Door::ALL {
        let world = World::start(door, 10);
        let mut witness = world.subscriber();
        let address = world.address();
        let again = Again::and_again(4, move || {
            let mut client = Client::connect(address);
            client.subscribe("items", "100");
            // Without a goodbye, with rows on their way.
            drop(client);
        });
        for _ in 0..CHANGES {
            world.change();
        }
        again.stop();
        witness.rows_until(&world.last_row());
        wait_for("the others to be forgotten", || {
            world.server.handle().shard_counts().connections == 1
        });
    }
}

#[test]
fn a_subscribed_client_that_stops_reading() {
    for door in Door::ALL {
        let world = World::start(door, 4096);
        let (mut stuck, mut witness) = (world.subscriber(), world.subscriber());
        // More than all buffers between hold. That each arrives before the next is sent shows that nobody waits.
        for _ in 0..4000 {
            world.change();
            assert_eq!(witness.row(), world.last_row());
        }
        stuck.rows_until(&world.last_row());
    }
}

#[test]
fn the_same_and_the_stalled_client_closes_its_socket_during_the_stall() {
    for door in Door::ALL {
        let world = World::start(door, 4096);
        let (stuck, mut witness) = (world.subscriber(), world.subscriber());
        let mut stuck = Some(stuck);
        for change in 0..4000 {
            world.change();
            assert_eq!(witness.row(), world.last_row());
            if change == 3000 {
                stuck = None;
            }
        }
        assert!(stuck.is_none());
        wait_for("it to be forgotten", || {
            world.server.handle().shard_counts().connections == 1
        });
    }
}

#[test]
fn clients_connecting_one_after_another_all_get_all() {
    for door in Door::ALL {
        let world = World::start(door, 10);
        let subscribe = br#"{"action":"subscribe","body":{"entity":"items","id":"100"}}"#;
        let mut first =
            b"GET /ws/entity-sync/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                .to_vec();
        first.extend([0x81, 0x80 | subscribe.len() as u8, 0, 0, 0, 0]);
        first.extend(subscribe);
        // Back to back: nobody waits for an answer.
        let mut clients: Vec<TcpStream> = (0..1000)
            .map(|_| {
                let mut stream = TcpStream::connect(world.address()).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.write_all(&first).unwrap();
                stream
            })
            .collect();
        wait_for("all to be subscribed", || {
            world.server.handle().shard_counts().subscriptions == 1000
        });
        for _ in 0..50 {
            world.change();
            // So that none is skipped.
            wait_for("all to be sent it", || {
                world.server.handle().shard_counts().deliveries == 1000 * world.state.load(Ordering::SeqCst)
            });
        }
        let rows: Vec<u8> = (1..=50)
            .flat_map(|state| {
                let row = row(state, 10);
                [&[0x81, row.len() as u8], row.as_bytes()].concat()
            })
            .collect();
        for (index, client) in clients.iter_mut().enumerate() {
            let all = talk(client, &rows);
            assert!(
                all.starts_with(b"HTTP/1.1 101 ") && all.ends_with(&rows),
                "client {index}"
            );
            client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            assert!(client.read(&mut [0]).is_err(), "client {index} got more");
        }
    }
}
