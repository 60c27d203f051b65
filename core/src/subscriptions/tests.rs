use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::hash::Seed;

const TOPICS: usize = 6;
const CONNS: u32 = 8;

#[derive(Clone, Debug)]
enum Op {
    Join { conn: u32, name: usize, ticket: u64 },
    Leave { conn: u32, name: usize },
    LeaveAny { conn: u32 },
    LeaveAll { conn: u32 },
    SetStanding { conn: u32, name: usize, mark: u8 },
    StartWalk { name: usize },
    WalkNext { mark: Option<u8> },
}

fn op() -> impl Strategy<Value = Op> {
    let (conn, name, mark) = (0..CONNS, 0..TOPICS, 0..3u8);
    prop_oneof![
        12 => (conn.clone(), name.clone(), 0..1000u64)
            .prop_map(|(conn, name, ticket)| Op::Join { conn, name, ticket }),
        5 => (conn.clone(), name.clone()).prop_map(|(conn, name)| Op::Leave { conn, name }),
        2 => conn.clone().prop_map(|conn| Op::LeaveAny { conn }),
        1 => conn.clone().prop_map(|conn| Op::LeaveAll { conn }),
        3 => (conn, name.clone(), mark.clone())
            .prop_map(|(conn, name, mark)| Op::SetStanding { conn, name, mark }),
        4 => name.prop_map(|name| Op::StartWalk { name }),
        8 => prop::option::of(mark).prop_map(|mark| Op::WalkNext { mark }),
    ]
}

/// Neighbours share a key and differ in their audience.
fn name_of(name: usize) -> (EntityKey, Audience) {
    let audience = match name % 2 {
        0 => Audience::Public,
        _ => Audience::Secret("s".into()),
    };
    (EntityKey::new("items", &(name / 2).to_string()).unwrap(), audience)
}

fn flight_of(name: usize) -> FlightId {
    FlightId {
        stripe: name as u32,
        ..FlightId::NOWHERE
    }
}

fn marked(standing: Standing, mark: u8) -> Standing {
    match mark {
        0 => standing.wanting(),
        1 => standing.dirty(),
        _ => standing.served(),
    }
}

/// The table beside an obvious one.
struct Pair {
    real: Subscriptions,
    topics: BTreeMap<usize, (TopicId, BTreeMap<u32, Standing>)>,
    removed: Vec<TopicId>,
    walk: Option<WalkOracle>,
}

struct WalkOracle {
    name: usize,
    id: TopicId,
    /// Members since before the walk that are still to be visited.
    owed: BTreeSet<u32>,
    /// Members since some time in the walk, not visited.
    late: BTreeSet<u32>,
    /// Nobody has left, so that nobody late can have got before its time.
    undisturbed: bool,
}

impl Pair {
    fn new() -> Self {
        Self {
            real: Subscriptions::new(),
            topics: BTreeMap::new(),
            removed: Vec::new(),
            walk: None,
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Join { conn, name, ticket } => self.join(conn, name, Standing::since(Ticket(ticket))),
            Op::Leave { conn, name } => {
                let Some((id, members)) = self.topics.get(&name) else {
                    return;
                };
                let (id, is_member) = (*id, members.contains_key(&conn));
                let left = self.real.leave(conn, id);
                assert_eq!(left.is_some(), is_member);
                if let Some(left) = left {
                    assert_eq!(left.topic, id);
                    self.has_left(conn, left);
                }
            }
            Op::LeaveAny { conn } => {
                let was_in = self.real.count_of(conn) > 0;
                let left = self.real.leave_any(conn);
                assert_eq!(left.is_some(), was_in);
                if let Some(left) = left {
                    self.has_left(conn, left);
                }
            }
            Op::LeaveAll { conn } => {
                while let Some(left) = self.real.leave_any(conn) {
                    self.has_left(conn, left);
                }
                assert_eq!(self.real.count_of(conn), 0);
            }
            Op::SetStanding { conn, name, mark } => {
                let Some((id, members)) = self.topics.get_mut(&name) else {
                    return;
                };
                if let Some(standing) = members.get_mut(&conn) {
                    *standing = marked(*standing, mark);
                    self.real.set_standing(conn, *id, *standing);
                } else {
                    self.real.set_standing(conn, *id, Standing::since(Ticket(0)));
                }
            }
            Op::StartWalk { name } => {
                if let (None, Some((id, members))) = (&self.walk, self.topics.get(&name)) {
                    self.real.start_walk(*id);
                    self.walk = Some(WalkOracle {
                        name,
                        id: *id,
                        owed: members.keys().copied().collect(),
                        late: BTreeSet::new(),
                        undisturbed: true,
                    });
                }
            }
            Op::WalkNext { mark } => {
                self.walk_next(mark);
            }
        }
    }

    fn join(&mut self, conn: u32, name: usize, standing: Standing) {
        if !self.topics.contains_key(&name) {
            let (key, audience) = name_of(name);
            let real = &mut self.real;
            let id = real.insert_topic(
                key.clone(),
                audience.clone(),
                NameHash::of(Seed(1, 2), &key, &audience),
                |id, its_key, its_audience| {
                    assert_eq!((its_key, its_audience), (&key, &audience));
                    assert!(!self.removed.contains(&id), "an id is given twice");
                    flight_of(name)
                },
            );
            self.topics.insert(name, (id, BTreeMap::new()));
        }
        let (id, members) = self.topics.get_mut(&name).unwrap();
        assert_eq!(self.real.is_member(conn, *id), members.contains_key(&conn));
        if members.contains_key(&conn) {
            return;
        }
        members.insert(conn, standing);
        self.real.join(conn, *id, standing);
        if let Some(walk) = self.walk.as_mut().filter(|walk| walk.id == *id) {
            walk.late.insert(conn);
        }
    }

    fn has_left(&mut self, conn: u32, left: Left) {
        let mut topics = self.topics.iter_mut();
        let (&name, (id, members)) = topics.find(|(_, (id, _))| *id == left.topic).unwrap();
        assert_eq!(members.remove(&conn), Some(left.standing));
        assert_eq!(members.is_empty(), left.is_last);
        if let Some(walk) = self.walk.as_mut().filter(|walk| walk.id == *id) {
            walk.owed.remove(&conn);
            walk.late.remove(&conn);
            walk.undisturbed = false;
        }
        if left.is_last {
            let topic = self.real.remove_topic(left.topic).unwrap();
            assert_eq!(topic.flight, flight_of(name));
            self.removed.push(left.topic);
            self.topics.remove(&name);
        }
    }

    /// Says whether the walk goes on.
    fn walk_next(&mut self, mark: Option<u8>) -> bool {
        let walk = self.walk.as_mut();
        assert_eq!(self.real.walked_topic(), walk.as_ref().map(|walk| walk.id));
        match (self.real.walk_next(), walk) {
            (Some((conn, standing)), Some(walk)) => {
                let is_late = walk.late.remove(&conn);
                assert!(
                    walk.owed.remove(&conn) || is_late,
                    "{conn} is visited twice, or has left"
                );
                assert!(
                    !(is_late && walk.undisturbed) || walk.owed.is_empty(),
                    "{conn} jumps the queue"
                );
                let (_, members) = self.topics.get_mut(&walk.name).unwrap();
                let member = members.get_mut(&conn).unwrap();
                assert_eq!(*member, standing);
                if let Some(mark) = mark {
                    *member = marked(standing, mark);
                    self.real.set_walked_standing(*member);
                }
                true
            }
            (None, walk) => {
                if let Some(walk) = walk {
                    assert!(walk.owed.is_empty() && walk.late.is_empty(), "somebody is skipped");
                }
                self.walk = None;
                false
            }
            (Some(_), None) => panic!("no walk is under way"),
        }
    }

    fn check(&mut self) {
        self.real.assert_consistent();
        let mut by_conn: BTreeMap<u32, BTreeSet<SlotId>> = BTreeMap::new();
        for name in 0..TOPICS {
            let (key, audience) = name_of(name);
            let found = self
                .real
                .find(&key, &audience, NameHash::of(Seed(1, 2), &key, &audience));
            assert_eq!(found, self.topics.get(&name).map(|(id, _)| *id));
            let Some((id, members)) = self.topics.get(&name) else {
                continue;
            };
            let topic = self.real.topic(*id).unwrap();
            assert_eq!((&topic.key, &topic.audience), (&key, &audience));
            let listed = topic.members.iter().map(|member| (member.conn, member.standing));
            assert_eq!(&listed.collect::<BTreeMap<_, _>>(), members);
            assert_eq!(topic.members.len(), members.len());
            for (&conn, &standing) in members {
                by_conn.entry(conn).or_default().insert(id.0);
                assert_eq!(self.real.standing(conn, *id), Some(standing));
            }
        }
        for conn in 0..CONNS {
            let expected = by_conn.remove(&conn).unwrap_or_default();
            assert_eq!(self.real.count_of(conn), expected.len());
            assert_eq!(self.real.topics_of(conn).count(), expected.len());
            let listed: BTreeSet<SlotId> = self.real.topics_of(conn).map(|id| id.0).collect();
            assert_eq!(listed, expected);
            for (id, members) in self.topics.values() {
                assert_eq!(self.real.is_member(conn, *id), members.contains_key(&conn));
            }
        }
        let count: usize = self.topics.values().map(|(_, members)| members.len()).sum();
        assert_eq!(self.real.len(), count);
        assert_eq!(self.real.topics().count(), self.topics.len());
    }

    /// Whoever still holds the id of a removed topic finds nothing, and harms no other that took its slot.
    fn use_stale_ids(&mut self) {
        for id in self.removed.clone() {
            assert!(self.real.topic(id).is_none());
            assert!(self.real.remove_topic(id).is_none());
            for conn in 0..CONNS {
                assert!(!self.real.is_member(conn, id));
                assert!(self.real.leave(conn, id).is_none());
                self.real.join(conn, id, Standing::since(Ticket(1)));
                self.real.set_standing(conn, id, Standing::since(Ticket(2)));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn members_and_walks_agree_with_the_oracle(ops in prop::collection::vec(op(), 1..120)) {
        let mut pair = Pair::new();
        for op in &ops {
            pair.apply(op);
            pair.check();
        }
        while pair.walk_next(None) {}
        pair.use_stale_ids();
        pair.check();
        for conn in 0..CONNS {
            pair.apply(&Op::LeaveAll { conn });
        }
        pair.check();
        prop_assert_eq!(pair.real.len(), 0);
    }

    #[test]
    fn standings_keep_their_ticket(ticket in 0..1u64 << 62, marks in prop::collection::vec(0..3u8, 0..6)) {
        let mut standing = Standing::since(Ticket(ticket));
        prop_assert!(!standing.wants() && !standing.is_dirty());
        for mark in marks {
            standing = marked(standing, mark);
            prop_assert_eq!(standing.joined(), Ticket(ticket));
            prop_assert_eq!((standing.wants(), standing.is_dirty()), (mark == 0, mark == 1));
        }
    }
}
