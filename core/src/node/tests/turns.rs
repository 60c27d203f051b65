//! Reads beyond an entity's limit wait for their turns.

use super::*;

#[test]
fn reads_beyond_the_limit_begin_in_the_order_in_which_they_became_due() {
    let it = Setup::gated(2);
    it.join_all(&FIVE);
    it.notify_all(&["3", "1", "5", "2", "4"]);
    assert_eq!(it.ids(), ["3", "1"]);
    assert_eq!(it.counts(), (2, 3));
    // The one is owed another read, for which it comes last. The other keeps its turn, and one read serves it.
    it.notify_all(&["3", "5", "5"]);
    assert_eq!(it.ids(), ["3", "1"]);
    assert_eq!(it.node.counters().queued_reads.get(), 3);
    let mut order = Vec::new();
    while let Some((request, reply)) = it.queue.pop() {
        order.push(request.key.id().to_owned());
        reply.send(at(0), Ok(Rows::one("x"))).unwrap();
        assert!(it.queue.len() <= 2);
        assert_eq!(it.counts().0, it.queue.len());
        it.node.assert_consistent();
    }
    assert_eq!(order, ["3", "1", "5", "2", "4", "3"]);
    assert_eq!(it.node.counters().queued_reads.get(), 4);
    assert_eq!(it.counts(), (0, 0));
}

#[test]
fn a_limit_of_no_reads_is_one() {
    let it = Setup::gated(0);
    it.join_all(&FIVE);
    it.notify_all(&FIVE);
    assert_eq!((it.queue.len(), it.counts()), (1, (1, 4)));
    assert_eq!(it.answer_all(), FIVE);
}

#[test]
fn a_slow_entity_does_not_hold_up_another() {
    let it = Setup::gated(2);
    it.join_all(&FIVE);
    it.notify_all(&FIVE);
    let slow: Vec<_> = std::iter::from_fn(|| it.queue.pop()).collect();
    assert_eq!(slow.len(), 2);
    for id in FIVE {
        let other = EntityKey::new("others", id).unwrap();
        it.node.join_unhashed(1, topic(1), &other, &Audience::Public);
        it.node.notify(at(0), &other).unwrap();
        assert_eq!(it.answer_all(), [id]);
    }
    assert_eq!(it.counts(), (2, 3));
}

#[test]
fn a_flight_that_nobody_is_subscribed_to_any_more_gives_up_its_turn() {
    let it = Setup::gated(2);
    let flights = FIVE.map(|id| it.join(0, id, &Audience::Public));
    it.notify_all(&FIVE);
    it.node.leave(at(0), 0, flights[3]);
    it.node.leave(at(0), 0, flights[2]);
    assert_eq!((it.counts(), it.node.flights()), ((2, 1), 3));
    // Who comes again waits again.
    let again = it.join(0, "3", &Audience::Public);
    it.notify_all(&["3"]);
    assert_eq!(it.answer_all(), ["1", "2", "5", "3"]);
    // A running read keeps its place till its end, also for nobody.
    it.notify_all(&["1", "2", "3", "5"]);
    for flight in [flights[0], flights[1], flights[4], again] {
        it.node.leave(at(0), 0, flight);
    }
    assert_eq!((it.counts(), it.node.flights()), ((2, 0), 2));
    assert_eq!(it.answer_all(), ["1", "2"]);
    assert_eq!((it.counts(), it.node.flights()), ((0, 0), 0));
}

#[test]
fn failed_and_late_reads_give_their_place_to_the_next() {
    let it = Setup::gated(2);
    it.join_all(&FIVE);
    it.notify_all(&FIVE);
    it.queue.fail(at(0));
    assert_eq!(it.ids(), ["2", "3"]);
    drop(it.queue.pop());
    assert_eq!(it.ids(), ["3", "4"]);
    assert_eq!(it.counts(), (2, 1));
    // Both are given up. One of their places is the waiting one's, and two more are due again by now.
    let late: Vec<_> = std::iter::from_fn(|| it.queue.pop()).collect();
    it.node.handle_timeout(at(0) + Duration::from_millis(100));
    it.node.handle_timeout(at(5));
    assert_eq!(it.node.counters().timed_out_reads.get(), 2);
    assert_eq!((it.queue.len(), it.counts()), (2, (2, 1)));
    it.node.assert_consistent();
    for (_, reply) in late {
        reply.send(at(5), Ok(Rows::one("late"))).unwrap();
    }
    assert_eq!(it.node.counters().late_reads.get(), 2);
    assert_eq!((it.queue.len(), it.counts()), (2, (2, 1)), "they have no place to give");
    let mut read = it.answer_all();
    it.node.handle_timeout(at(10));
    read.extend(it.answer_all());
    read.sort_unstable();
    assert_eq!(read, FIVE);
    assert_eq!(it.counts(), (0, 0));
}
