//! [`Gate`]: how many reads of one entity run at the same time, and which wait for their turn.

use std::collections::BTreeMap;

use crate::flights::FlightId;
use crate::sync::{Mutex, lock};

/// Reads of one entity. Its lock is taken under a stripe's, never the other way round.
#[derive(Default)]
pub(super) struct Gate(Mutex<State>);

#[derive(Default)]
struct State {
    running: usize,
    /// In order of arrival, by turn.
    waiting: BTreeMap<u64, FlightId>,
    /// The turn given out last.
    last_turn: u64,
}

/// What [`Gate::enter`] says.
pub(super) enum Entry {
    /// The read may begin. [`Gate::leave`] follows when it is over.
    Begin,
    /// It is this flight's to wait; another one's [`Gate::leave`] will name it.
    Wait { turn: u64 },
}

impl Gate {
    pub(super) fn enter(&self, flight: FlightId, limit: usize) -> Entry {
        let mut state = lock(&self.0);
        if state.running < limit.max(1) {
            state.running += 1;
            return Entry::Begin;
        }
        state.last_turn += 1;
        let turn = state.last_turn;
        state.waiting.insert(turn, flight);
        Entry::Wait { turn }
    }

    /// A read is over. The flight whose turn it is now has its place, and must begin or leave.
    pub(super) fn leave(&self) -> Option<FlightId> {
        let mut state = lock(&self.0);
        let next = state.waiting.pop_first();
        if next.is_none() {
            state.running -= 1;
        }
        next.map(|(_, flight)| flight)
    }

    /// A flight that waits is gone.
    pub(super) fn forget(&self, turn: u64) {
        lock(&self.0).waiting.remove(&turn);
    }

    /// Reads that run, and flights that wait.
    pub(super) fn counts(&self) -> (usize, usize) {
        let state = lock(&self.0);
        (state.running, state.waiting.len())
    }
}
