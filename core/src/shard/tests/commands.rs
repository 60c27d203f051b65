//! What the application asks of those with a key, a secret, or an id.

use super::*;

/// On two shards: one with the secret `s` and two keys, one without, and another with the secret.
fn three_clients() -> (Net, [ClientId; 3]) {
    let mut net = Net::new(2, |_| {});
    let ids = [0, 0, 1].map(|shard| net.connect(shard));
    let [a, b, c] = ids;
    net.secret(a, "s");
    net.secret(c, "s");
    for id in ids {
        net.subscribe(id, "items", "1");
    }
    net.subscribe(a, "items", "2");
    net.subscribe(b, "items", "3");
    assert!(net.all_frames(ids).iter().all(Vec::is_empty));
    (net, ids)
}

/// Of how many of these keys each client gets rows when all change.
fn subscriptions(net: &mut Net, ids: [ClientId; 3]) -> [usize; 3] {
    for id in ["1", "2", "3"] {
        net.change("items", id, 9);
    }
    net.all_frames(ids).map(|frames| frames.len())
}

#[test]
fn reads_are_repeated_for_those_who_are_named() {
    let (mut net, ids) = three_clients();
    let [a, b, c] = ids;
    let no_rows: Vec<String> = Vec::new();
    net.node.reread(net.now, &Selector::Key(key("items", "1")));
    net.run();
    let of_s = ["items/1 of s v0"];
    assert_eq!(net.frames(a), of_s);
    assert_eq!(net.frames(b), ["items/1 v0"]);
    assert_eq!(net.frames(c), of_s);
    net.node.reread(net.now, &Selector::Secret("s".into()));
    net.run();
    let mut rows = net.frames(a);
    rows.sort_unstable();
    assert_eq!(rows, ["items/1 of s v0", "items/2 of s v0"]);
    assert_eq!(net.all_frames([b, c]), [&[][..], &of_s]);
    net.node.reread(net.now, &Selector::Secret("".into()));
    net.run();
    let mut rows = net.frames(b);
    rows.sort_unstable();
    assert_eq!(rows, ["items/1 v0", "items/3 v0"]);
    assert_eq!(net.all_frames([a, c]), [no_rows.clone(), no_rows.clone()]);
    net.node.reread(net.now, &Selector::Client(c));
    net.run();
    assert_eq!(net.all_frames([a, b]), [no_rows.clone(), no_rows.clone()]);
    assert_eq!(net.frames(c), of_s);
    net.node.reread_all(net.now);
    net.run();
    assert_eq!(net.all_frames(ids).map(|frames| frames.len()), [2, 2, 1]);
    net.node.reread(net.now, &Selector::Key(key("items", "none")));
    net.node.reread(net.now, &Selector::Secret("none".into()));
    net.run();
    assert_eq!(net.all_frames(ids), [(); 3].map(|()| no_rows.clone()));
}

#[test]
fn subscriptions_end_for_those_who_are_named() {
    type Case = (fn([ClientId; 3]) -> Selector, [usize; 3]);
    let cases: [Case; 4] = [
        (|_| Selector::Key(key("items", "1")), [1, 1, 0]),
        (|_| Selector::Secret("s".into()), [0, 2, 0]),
        (|_| Selector::Secret("".into()), [2, 0, 1]),
        (|[a, ..]| Selector::Client(a), [0, 2, 1]),
    ];
    for (selector, left) in cases {
        let (mut net, ids) = three_clients();
        assert_eq!(subscriptions(&mut net, ids), [2, 2, 1]);
        let selector = selector(ids);
        net.node.unsubscribe(&selector);
        net.run();
        assert_eq!(net.all_frames(ids).concat(), NOTHING, "they are not told");
        assert_eq!(subscriptions(&mut net, ids), left, "{selector:?}");
        let sum: usize = net.shards.iter().map(Shard::subscriptions).sum();
        assert_eq!(sum, left.iter().sum::<usize>());
        // They may subscribe again.
        for id in ids {
            net.subscribe(id, "items", "1");
        }
        net.change("items", "1", 10);
        assert!(net.all_frames(ids).iter().all(|frames| frames.len() == 1));
    }
}

#[test]
fn who_changes_its_secret_meanwhile_is_meant_as_it_was() {
    for (selector, left) in [(Selector::Key(key("items", "1")), 1), (Selector::Secret("s".into()), 0)] {
        let (mut net, ids) = three_clients();
        net.node.unsubscribe(&selector);
        // Before its shard has looked at that.
        net.secret(ids[0], "other");
        assert_eq!(subscriptions(&mut net, ids)[0], left, "{selector:?}");
    }
}

#[test]
fn connections_end_for_those_who_are_named() {
    type Case = (fn([ClientId; 3]) -> Selector, [bool; 3]);
    let cases: [Case; 5] = [
        (|_| Selector::Key(key("items", "1")), [true, true, true]),
        (|_| Selector::Key(key("items", "2")), [true, false, false]),
        (|_| Selector::Secret("s".into()), [true, false, true]),
        (|_| Selector::Secret("".into()), [false, true, false]),
        (|[.., c]| Selector::Client(c), [false, false, true]),
    ];
    for (selector, ended) in cases {
        let (mut net, ids) = three_clients();
        let selector = selector(ids);
        net.node.disconnect(&selector, 3000, "enough").unwrap();
        net.run();
        for (id, ended) in ids.into_iter().zip(ended) {
            let frames = net.frames(id);
            assert_eq!(frames, ["close 3000 enough"][..usize::from(ended)], "{selector:?}");
            assert!(!ended || net.has_ended(id));
        }
        let left = ended.iter().filter(|ended| !**ended).count();
        let sum: usize = net.shards.iter().map(Shard::connections).sum();
        assert_eq!(sum, left);
    }
}

#[test]
fn a_close_code_that_may_not_be_sent_is_an_error() {
    let mut net = Net::new(1, |_| {});
    let a = net.connect(0);
    for code in [0, 999, 1004, 1005, 1006, 1014, 1015, 2999, 5000, u16::MAX] {
        let error = Err(InvalidCloseCode(code));
        assert_eq!(net.node.client(a).close(code, "x"), error);
        assert_eq!(net.node.disconnect(&Selector::Secret("".into()), code, "x"), error);
    }
    net.run();
    assert_eq!((net.frames(a).len(), net.shards[0].connections()), (0, 1));
}

#[test]
fn a_client_that_has_gone_is_not_another_one() {
    let mut net = Net::new(1, |_| {});
    let old = net.connect(0);
    net.handle(old, Input::Closed { conn: old.conn });
    assert_eq!(net.peer(old).closed, 1);
    let new = net.connect(0);
    assert_eq!(new.conn.index(), old.conn.index());
    assert_ne!(new, old);
    net.subscribe(new, "items", "1");
    let nowhere = ClientId { shard: 7, ..new };
    for id in [old, nowhere] {
        let selector = Selector::Client(id);
        net.node.client(id).send_text("hello").unwrap();
        net.node.client(id).send_binary(b"hello").unwrap();
        net.node.reread(net.now, &selector);
        net.node.unsubscribe(&selector);
        net.node.client(id).close(1000, "").unwrap();
        net.node.disconnect(&selector, 1000, "").unwrap();
        net.run();
    }
    net.receive(old, frame(9, b""));
    assert_eq!(net.frames(new), NOTHING);
    assert_eq!((net.shards[0].connections(), net.shards[0].subscriptions()), (1, 1));
    assert_eq!((net.peer(old).closed, net.counts(0).stale_inputs), (1, 1));
    net.change("items", "1", 1);
    assert_eq!(net.frames(new), ["items/1 v1"]);
}
