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

/// Two clients of a shard.
fn client(number: u32) -> Option<ClientId> {
    let conn = crate::shard::ConnId(SlotId {
        index: number,
        generation: 0,
    });
    Some(ClientId { shard: 0, conn })
}

impl Setup {
    /// Reads for this client alone.
    fn want(&self, id: &str, whose: Option<ClientId>) {
        let flight = self.join_or_find(id);
        self.node.want(at(0), 0, flight, self.node.current_ticket(), whose);
    }

    fn join_or_find(&self, id: &str) -> FlightId {
        let (number, mut stripe) = self.node.stripe_of(&key(id));
        let found = stripe
            .flights
            .iter_mut()
            .find(|(_, it)| it.key == key(id))
            .map(|(slot, _)| slot);
        drop(stripe);
        match found {
            Some(slot) => FlightId { stripe: number, slot },
            None => self.join(0, id, &Audience::Public),
        }
    }
}

#[test]
fn a_notify_waits_for_no_crowd_of_new_subscribers_nor_they_for_notifies() {
    let it = Setup::gated(1);
    it.join_all(&FIVE);
    it.want("busy", client(0));
    for id in ["a", "b", "c", "d"] {
        it.want(id, client(0));
    }
    it.notify_all(&FIVE);
    // Each lane has its own order.
    assert_eq!(it.answer_all(), ["busy", "1", "a", "2", "b", "3", "c", "4", "d", "5"]);
}

#[test]
fn clients_take_turns() {
    let it = Setup::gated(1);
    it.want("busy", client(0));
    for id in ["a", "b", "c", "d", "e"] {
        it.want(id, client(1));
    }
    it.want("x", client(2));
    it.want("y", client(2));
    // What two need comes when the first of them has a turn.
    it.want("e", client(3));
    let order = it.answer_all();
    let at = |id: &str| order.iter().position(|it| it == id);
    assert!(
        at("x") <= Some(3) && at("y") <= Some(6) && at("e") <= Some(3),
        "{order:?}"
    );
    assert!(at("a") < at("b") && at("b") < at("c") && at("c") < at("d"), "{order:?}");
    assert_eq!((order.len(), it.counts()), (8, (0, 0)));
}

#[test]
fn one_that_waits_is_hastened_by_a_notify() {
    let it = Setup::gated(1);
    it.want("busy", client(0));
    for id in ["a", "b", "c", "d"] {
        it.want(id, client(0));
    }
    it.notify_all(&["d"]);
    it.node.assert_consistent();
    assert_eq!(it.answer_all(), ["busy", "d", "a", "b", "c"]);
}

#[test]
fn to_read_everything_again_holds_up_no_notify() {
    let it = Setup::gated(1);
    it.join_all(&FIVE);
    it.join_all(&["x"]);
    it.notify_all(&["x"]);
    it.node.reread_all(at(0));
    it.notify_all(&["5"]);
    let mut follow_notify = Vec::new();
    while let Some((request, reply)) = it.queue.pop() {
        if reply.answers_notify() {
            follow_notify.push(request.key.id().to_owned());
        }
        reply.send(at(0), Ok(Rows::one("x"))).expect("good rows");
    }
    assert_eq!(follow_notify[..2], ["x", "5"]);
    assert!(follow_notify.len() <= 3, "{follow_notify:?}");
}

#[test]
fn what_is_rejected_is_tried_again_after_the_longest_backoff() {
    let it = Setup::gated(1);
    it.join_all(&["1"]);
    it.notify_all(&["1"]);
    let (_, reply) = it.queue.pop().expect("a read");
    reply.send(at(0), Err(ReadError::Rejected)).expect("no rows");
    let longest = it.node.config().retry_max;
    // Half of it is by chance.
    it.node.handle_timeout(at(0) + (longest / 2 - Duration::from_millis(1)));
    assert_eq!(it.queue.len(), 0);
    it.node.handle_timeout(at(0) + longest);
    assert_eq!(it.answer_all(), ["1"]);
    assert_eq!(it.node.counters().failed_reads.get(), 1);
}

#[test]
fn a_gate_forgets_clients_whose_reads_have_had_their_turns() {
    let it = Setup::gated(1);
    for number in 0..1000 {
        it.want("busy", client(0));
        it.want(&format!("{number}"), client(number));
        it.answer_all();
    }
    let entity = it.node.0.entities.find("items").expect("an entity");
    assert!(it.node.0.entities.of(entity).clients() <= 80);
}
