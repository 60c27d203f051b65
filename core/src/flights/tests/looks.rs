//! Looks at a store that settles.

use super::*;

const SETTLING: Kind = Kind {
    every: false,
    settles: true,
};

#[test]
fn a_look_at_the_store_that_failed_is_repeated() {
    use Op::{Fail, Join, Notify, Read, Resume, Start, Take, Wait};
    let ops = [Join(0), Notify, Read(0), Take(0), Wait(SETTLE), Start, Fail, Resume];
    let mut story = Story::play(SETTLING, ops);
    assert!(story.flight.is_due());
    story.apply(Start);
    assert!(story.flight.runs_silently());
    story.settle();
}

#[test]
fn rows_that_were_not_taken_are_not_lost_by_a_look_at_the_store() {
    use Op::{Join, Notify, Read, Take, Wait, Want};
    // Those that join after the read have nothing until the store is looked at.
    let given = [Join(0), Join(1), Notify, Read(0), Take(0), Take(1), Join(0)];
    let look = [Wait(SETTLE), Read(0)];
    let mut story = Story::play(SETTLING, given.into_iter().chain(look));
    let since = story.sides[&0].told.clone();
    assert!(matches!(since[..], [Scope::Since(_)]));
    // Another shard has a read for itself, after which the store is looked at once more.
    for op in [Want(1, 0, true), Read(0), Join(0)].into_iter().chain(look) {
        story.apply(op);
        story.check();
    }
    assert!(
        matches!(story.sides[&0].told[..], [a, Scope::Wanting, Scope::Since(b)] if a == since[0] && a != Scope::Since(b))
    );
    story.apply(Take(0));
    assert!(story.sides[&0].members.iter().all(|member| member.has == Some(0)));
    story.settle();

    // Rows for one member, in the place of those which others wait for as well.
    let mut story = Story::play(SETTLING, given.into_iter().chain(look));
    for op in [Want(0, 0, true), Read(0), Take(0)] {
        story.apply(op);
        story.check();
    }
    assert!(story.sides[&0].members.iter().all(|member| member.has == Some(0)));
    story.settle();
}

#[test]
fn other_rows_for_one_member_make_the_next_look_tell_everyone() {
    use Op::{Join, Notify, Read, Take, Wait, Want};
    let ops = [Join(0), Join(1), Notify, Read(0), Take(0), Take(1)];
    let ops = ops
        .into_iter()
        .chain([Want(1, 0, true), Read(1), Take(1), Wait(SETTLE), Read(0)]);
    let mut story = Story::play(SETTLING, ops);
    assert_eq!(story.sides[&1].told, [Scope::All]);
    story.apply(Take(1));
    assert_eq!(story.sides[&1].members[0].has, Some(0));
    story.settle();
}
