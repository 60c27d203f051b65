//! What the application's code breaks stays its own, and a shard that is lost costs the others nothing.

use std::sync::atomic::AtomicBool;

use super::*;

/// A rule that panics while the flag is set, and otherwise is by secret.
fn breakable(config: &mut Config) -> Arc<AtomicBool> {
    let is_broken = Arc::new(AtomicBool::new(false));
    let it = is_broken.clone();
    let rule = options(|options| {
        options.audience = AudienceRule::Custom(Arc::new(move |key, secret| {
            assert!(!it.load(Ordering::Relaxed) || key.id() == "fine", "broken");
            Audience::Secret(secret.into())
        }));
    });
    config.entities = Entities::default().with("items", rule);
    is_broken
}

#[test]
fn where_the_rule_of_audiences_panics_nobody_is_subscribed() {
    let mut is_broken = Arc::default();
    let mut net = Net::new(1, |config| is_broken = breakable(config));
    let (a, b) = (net.connect(0), net.connect(0));
    net.subscribe(b, "items", "1");
    net.subscribe(b, "items", "fine");
    is_broken.store(true, Ordering::Relaxed);
    net.subscribe(a, "items", "1");
    net.subscribe(a, "others", "1");
    let counts = net.counts(0);
    assert_eq!((counts.handler_panics, counts.refused_subscriptions), (1, 1));
    assert_eq!((counts.subscriptions, counts.connections), (3, 2));
    net.change("others", "1", 1);
    net.change("items", "1", 2);
    assert_eq!(net.all_frames([a, b]), [["others/1 v1"], ["items/1 v2"]]);
    // With a new secret it is not known what it may see: what it was subscribed to ends.
    net.secret(b, "s");
    let counts = net.counts(0);
    assert_eq!((counts.handler_panics, counts.refused_subscriptions), (2, 2));
    assert_eq!(net.shards[0].subscriptions(), 2);
    net.change("items", "1", 3);
    net.change("items", "fine", 4);
    assert_eq!(net.frames(b), ["items/fine of s v4"]);
}

#[test]
fn what_is_unsubscribed_from_ends_even_if_the_rule_panics() {
    let mut is_broken = Arc::default();
    let mut net = Net::new(1, |config| is_broken = breakable(config));
    let a = net.connect(0);
    net.subscribe(a, "items", "1");
    net.subscribe(a, "items", "2");
    is_broken.store(true, Ordering::Relaxed);
    net.say(a, r#"{"action":"unsubscribe","body":{"entity":"items","id":"1"}}"#);
    net.change("items", "1", 1);
    net.change("items", "2", 2);
    assert_eq!(net.frames(a), ["items/2 v2"]);
    assert_eq!(net.counts(0).handler_panics, 1);
}

#[test]
fn a_refusal_has_no_date_if_the_clock_panics() {
    let mut net = Net::new(1, |config| {
        config.http_date = Some(Arc::new(|| panic!("no clock")));
    });
    let id = net.open(0, &Opening::default()).unwrap();
    net.receive(id, NOT_FOUND);
    let response = String::from_utf8(std::mem::take(&mut net.peer(id).received)).unwrap();
    assert!(
        response.starts_with("HTTP/1.1 404 ") && !response.contains("Date:"),
        "{response}"
    );
    assert_eq!(net.counts(0).handler_panics, 1);
    // The connection and its shard go on.
    net.receive(id, UPGRADE);
    assert!(net.peer(id).received.starts_with(b"HTTP/1.1 101 "));
}

/// Fails every read.
struct Fails(AtomicUsize);

impl Resolve for Fails {
    fn resolve(&self, _: Request, reply: Reply) {
        self.0.fetch_add(1, Ordering::Relaxed);
        reply
            .send(Timestamp::START, Err(crate::resolve::ReadError::Failed))
            .unwrap();
    }
}

#[test]
fn if_the_first_shard_is_lost_another_one_keeps_the_nodes_time() {
    let resolver = Arc::new(Fails(AtomicUsize::new(0)));
    let wakers = vec![Waker::noop().clone(); 3];
    let (node, mut shards) = Node::new(Config::new(Seed(1, 2)), resolver.clone(), wakers);
    let opening = Opening {
        is_upgraded: true,
        ..Opening::default()
    };
    let conn = shards[2].open_with(Timestamp::START, &opening).unwrap();
    let mut bytes = frame(1, br#"{"action":"subscribe","body":{"entity":"items","id":"1"}}"#);
    shards[2].handle(
        Timestamp::START,
        Input::Received {
            conn,
            bytes: &mut bytes,
        },
    );
    node.notify(Timestamp::START, &key("items", "1")).unwrap();
    let retry = |shard: &mut Shard| {
        let before = resolver.0.load(Ordering::Relaxed);
        while shard.poll_output(Timestamp::START).is_some() {}
        let due = at(60);
        // Long before the next ping.
        let is_asked = shard.poll_timeout().is_some_and(|it| it < at(1));
        shard.handle_timeout(due);
        (is_asked, resolver.0.load(Ordering::Relaxed) - before)
    };
    assert_eq!(retry(&mut shards[1]), (false, 0));
    shards.remove(0);
    shards.remove(0);
    assert_eq!(retry(&mut shards[0]), (true, 1));
}
