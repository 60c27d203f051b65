//! Protocol v1 over real sockets, row by row: each row of PROTOCOL's sections 1 to 3 that is kept, or changed on purpose,
//! is at least one case of a table, and each situation of section 5 is a test. All cases of a section run, and all that fail are listed at the end.
//!
//! A row that gives several examples is several cases. "Nothing is sent" is never a matter of waiting: a ping goes out,
//! and its pong comes back first (see [`runner`]).
//!
//! Sections 2, 3 and 5 go through every [`Door`](crate::door::Door); behind axum's, hyper speaks HTTP, so that section 1 is
//! for the reactors' own, and `axum` has what is left of it.
//!
//! Documented differences that hold for many rows:
//! - what PROTOCOL says of log lines has no counterpart here: misdeeds are counted, and told at a limited rate, which
//!   `section_2` checks once.
//!
//! Left out, as PROTOCOL lists them as not needed: redirects of unclean paths, paths matched after percent-decoding,
//! upgrades over HTTP/1.0, keys that are not 16 bytes of Base64. The wording of close reasons is not needed either, but
//! it is the original's and so it is checked, except where the original had none.
//!
//! Left out, as there is nothing to test yet: negotiated `permessage-deflate`, a subprotocol of our own.

pub(crate) mod case;
mod runner;
mod section_1;
mod section_2;
mod section_3;
mod section_5;

use runner::{failures, judge, report};

use crate::door::Door;

#[test]
fn section_1_handshake() {
    let cases = section_1::cases();
    report(cases.len(), &failures(Door::Reactor, &cases));
}

#[test]
fn section_2_messages() {
    let cases = section_2::cases();
    let failed: Vec<_> = Door::ALL.iter().flat_map(|&door| failures(door, &cases)).collect();
    report(cases.len(), &failed);
}

#[test]
fn section_3_frames() {
    let cases = section_3::cases();
    let failed: Vec<_> = Door::ALL.iter().flat_map(|&door| failures(door, &cases)).collect();
    report(cases.len(), &failed);
}

/// Side by side, since each of them takes a while.
#[test]
fn section_3_silence() {
    let cases = section_3::silence();
    let failed = std::thread::scope(|scope| {
        let each = Door::ALL
            .iter()
            .flat_map(|&door| cases.chunks(1).map(move |case| (door, case)));
        let runs: Vec<_> = each
            .map(|(door, case)| scope.spawn(move || failures(door, case)))
            .collect();
        runs.into_iter().flat_map(|run| run.join().unwrap()).collect::<Vec<_>>()
    });
    report(cases.len(), &failed);
}

#[test]
fn a_known_difference_must_still_be_there() {
    let wrong = || Err("expected 1, got 2".to_owned());
    assert_eq!(judge(None, Ok(())), None);
    assert!(judge(None, wrong()).is_some());
    assert_eq!(judge(Some("got 2"), wrong()), None);
    assert!(
        judge(Some("got 3"), wrong()).is_some(),
        "another difference than the known one"
    );
    assert!(
        judge(Some("got 2"), Ok(())).is_some(),
        "it is fixed, so the case must say so"
    );
}
