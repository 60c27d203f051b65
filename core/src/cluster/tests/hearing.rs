//! Whether a node hears itself.

use super::*;

/// Six heartbeats.
const PATIENCE: u64 = 3_000;

/// A node that hears of itself what the test brings back.
fn node(change: impl FnOnce(&mut ClusterConfig)) -> Member {
    let mut config = config(1);
    change(&mut config);
    Member::new(config)
}

impl Member {
    fn hearing(&self) -> Hearing {
        self.cluster.view().hearing()
    }

    /// Whether it has told of that since this was last asked.
    fn events(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.cluster.poll_event())
            .map(|it| it.to_string())
            .collect()
    }
}

#[test]
fn a_node_whose_messages_do_not_come_back_is_deaf_until_one_does() {
    let mut it = node(|_| {});
    assert_eq!(it.hearing(), Hearing::Waiting);
    it.pass(0, PATIENCE - 1);
    assert_eq!(it.hearing(), Hearing::Waiting);
    it.pass(PATIENCE, PATIENCE + 600);
    assert_eq!(it.hearing(), Hearing::Deaf);
    let said = it.events();
    assert_eq!(said.len(), 1);
    assert!(
        said[0].contains("check whether it may publish and subscribe to \"entity-sync.all\""),
        "{said:?}"
    );
    // Told once.
    it.pass(PATIENCE + 601, 3 * PATIENCE);
    assert!(it.events().is_empty());
    let digests = it.beat(at(3 * PATIENCE));
    it.hear(at(3 * PATIENCE), &digests);
    assert_eq!(it.hearing(), Hearing::Hears);
    assert_eq!(it.events().len(), 1);
    it.pass(3 * PATIENCE + 1, 4 * PATIENCE + 600);
    assert_eq!(it.hearing(), Hearing::Deaf);
}

#[test]
fn nothing_is_expected_without_a_connection_or_from_a_mesh() {
    let mut it = node(|_| {});
    let digests = it.beat(at(0));
    it.hear(at(0), &digests);
    assert_eq!(it.hearing(), Hearing::Hears);
    it.cluster.handle(at(10), ClusterInput::Disconnected);
    it.pass(10, 2 * PATIENCE);
    assert_eq!(it.hearing(), Hearing::Waiting);
    it.cluster.handle(at(2 * PATIENCE), ClusterInput::Connected);
    // One of the connection before proves nothing.
    it.hear(at(2 * PATIENCE), &digests);
    assert_eq!(it.hearing(), Hearing::Waiting);
    let digests = it.beat(at(2 * PATIENCE));
    it.hear(at(2 * PATIENCE), &digests);
    assert_eq!(it.hearing(), Hearing::Hears);

    let mut it = node(|it| it.hears_itself = false);
    it.pass(0, 2 * PATIENCE);
    assert_eq!(it.hearing(), Hearing::NotExpected);
    let digests = it.beat(at(2 * PATIENCE));
    it.hear(at(2 * PATIENCE), &digests);
    assert_eq!(it.hearing(), Hearing::NotExpected);
    assert!(it.events().is_empty());
}

/// A process that was frozen has not been deaf: what came meanwhile is on its way still.
#[test]
fn a_node_that_was_held_up_is_not_deaf() {
    let mut it = node(|_| {});
    let digests = it.beat(at(0));
    it.hear(at(0), &digests);
    it.cluster.handle_timeout(at(10 * PATIENCE));
    assert_eq!(it.hearing(), Hearing::Hears);
    it.publishes();
    it.pass(10 * PATIENCE, 11 * PATIENCE + 600);
    assert_eq!(it.hearing(), Hearing::Deaf);
}

/// Nor does it believe another node, or an earlier run of itself, that this node's messages come back.
#[test]
fn only_its_own_digests_count() {
    let mut it = node(|_| {});
    let mut others = [config(2), {
        let mut config = config(1);
        config.epoch = epoch(999);
        config
    }]
    .map(Member::new);
    for other in &mut others {
        let digests = other.beat(at(0));
        it.hear(at(0), &digests);
    }
    assert_eq!(it.hearing(), Hearing::Waiting);
}
