//! What goes out while rows are on their way to many.

use super::*;

/// Does what the shard says, until it says nothing more. Says whose output it was each time: of a broadcast, nobody's.
fn outputs(net: &mut Net, shard: usize) -> Vec<Option<ClientId>> {
    let mut whose = Vec::new();
    let Net { shards, peers, now, .. } = net;
    let name = |conn| ClientId {
        shard: shard as u32,
        conn,
    };
    while let Some(output) = shards[shard].poll_output(*now) {
        whose.push(match output {
            Output::Broadcast(broadcast) => {
                broadcast.for_each(|conn, chunk| peer(peers, name(conn)).write(&[chunk]));
                None
            }
            Output::Flush(flush) => {
                let id = name(flush.conn());
                flush.write(|conn, chunks| peer(peers, name(conn)).write(chunks));
                Some(id)
            }
            Output::Resume(_) | Output::Shutdown(_) | Output::Close(_) => continue,
        });
    }
    shards[shard].assert_consistent();
    whose
}

/// A hundred members of two topics, and one more client.
fn crowd() -> (Net, ClientId) {
    let mut net = Net::new(1, |config| config.broadcast_budget = 10);
    for _ in 0..100 {
        let id = net.connect(0);
        net.subscribe(id, "items", "1");
        net.subscribe(id, "items", "2");
    }
    let other = net.connect(0);
    (net, other)
}

#[test]
fn a_pong_goes_out_between_two_slices_of_a_broadcast() {
    let (mut net, other) = crowd();
    net.node.notify(net.now, &key("items", "1")).unwrap();
    // The first slice is under way when the ping comes.
    let Some(Output::Broadcast(broadcast)) = net.shards[0].poll_output(net.now) else {
        panic!("no broadcast");
    };
    broadcast.for_each(|_, _| Sent::All);
    let conn = other.conn;
    net.shards[0].handle(
        net.now,
        Input::Received {
            conn,
            bytes: &mut frame(9, b"x")[..],
        },
    );
    let whose = outputs(&mut net, 0);
    assert!(whose[..2].contains(&Some(other)), "{whose:?}");
    assert_eq!(net.frames(other), ["pong x"]);
    assert!(whose.iter().filter(|it| it.is_none()).count() >= 9);
}

#[test]
fn who_has_waited_for_its_socket_does_not_wait_for_a_broadcast_too() {
    let (mut net, other) = crowd();
    net.subscribe(other, "items", "3");
    net.peer(other).room = Some(0);
    net.change("items", "3", 1);
    net.node.notify(net.now, &key("items", "1")).unwrap();
    net.peer(other).room = None;
    net.shards[0].handle(net.now, Input::Writable { conn: other.conn });
    let whose = outputs(&mut net, 0);
    assert!(whose[..2].contains(&Some(other)), "{whose:?}");
}

#[test]
fn several_walks_have_a_budget_and_each_connection_one_write() {
    let (mut net, other) = crowd();
    for id in ["1", "2"] {
        net.node.notify(net.now, &key("items", id)).unwrap();
    }
    // Each output visits ten members, and a ping that comes after the first one is answered before the third.
    let mut visited = Vec::new();
    for _ in 0..2 {
        let Some(Output::Broadcast(broadcast)) = net.shards[0].poll_output(net.now) else {
            panic!("no broadcast");
        };
        broadcast.for_each(|_, _| panic!("all is queued at first"));
        visited.push(net.counts(0).deliveries);
    }
    assert_eq!(visited, [10, 20]);
    let conn = other.conn;
    net.shards[0].handle(
        net.now,
        Input::Received {
            conn,
            bytes: &mut frame(9, b"x")[..],
        },
    );
    let whose = outputs(&mut net, 0);
    assert!(whose[..2].contains(&Some(other)), "{whose:?}");
    let flushes = whose.iter().flatten().count();
    // The last topic is written straight away, to those who have nothing queued: to nobody.
    assert_eq!(flushes, 100 + 1);
}
