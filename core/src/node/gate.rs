//! [`Gate`]: how many reads of one entity run at the same time, and which of those that wait comes next.
//!
//! Reads wait in lanes by their [`Why`], and lanes in which any wait take turns: a change that was notified does not wait
//! until a crowd of new subscribers has been read for, nor the other way round. In the lane of single clients, the clients
//! take turns. In the others it is first come, first served.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::ClientId;
use crate::flights::{FlightId, Lane, Turn};
use crate::sync::{Mutex, lock};

/// Clients that may be remembered although none of their reads waits, besides as many as there are reads that wait.
const SPARE_CLIENTS: usize = 64;

/// Reads of one entity. Its lock is taken under a stripe's, never the other way round.
#[derive(Default)]
pub(super) struct Gate(Mutex<State>);

#[derive(Default)]
struct State {
    running: usize,
    /// By [`Lane`], in order of their turns.
    waiting: [BTreeSet<(u64, FlightId)>; Lane::COUNT],
    /// Which lane is asked first for the next read.
    next_lane: usize,
    /// Of the lanes without clients: the turn given out last.
    last_turn: u64,
    /// In the lane of single clients, a client's reads are of one round each.
    round: u64,
    /// The round of each client's last read.
    clients: BTreeMap<ClientId, u64>,
}

/// Why a read is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// There was a notify.
    Notified,
    /// This client needs it: it is new, or could not be sent what others were.
    Asked(ClientId),
    /// Nobody waits for it in particular: it failed before, or everything is to be read again.
    Again,
}

/// What [`Gate::enter`] says.
pub(super) enum Entry {
    /// The read may begin. [`Gate::leave`] follows when it is over.
    Begin,
    /// It is this flight's to wait; another one's [`Gate::leave`] will name it.
    Wait(Turn),
}

impl Why {
    pub(super) fn lane(self) -> Lane {
        match self {
            Self::Notified => Lane::Notified,
            Self::Asked(_) => Lane::Asked,
            Self::Again => Lane::Again,
        }
    }
}

impl Gate {
    pub(super) fn enter(&self, flight: FlightId, limit: usize, why: Why) -> Entry {
        let mut state = lock(&self.0);
        if state.running < limit.max(1) {
            state.running += 1;
            return Entry::Begin;
        }
        let turn = state.turn(why);
        state.wait(flight, turn, why);
        Entry::Wait(turn)
    }

    /// A flight that waits is due for another reason, too. Gives its new turn if that is an earlier one.
    pub(super) fn hasten(&self, flight: FlightId, from: Turn, why: Why) -> Option<Turn> {
        if why.lane() > from.lane || from.lane == Lane::Notified {
            return None;
        }
        let mut state = lock(&self.0);
        let to = state.turn(why);
        let is_earlier = to.lane < from.lane || to.number < from.number;
        // Its turn may have come just now.
        if !is_earlier || !state.waiting[from.lane as usize].remove(&(from.number, flight)) {
            return None;
        }
        state.wait(flight, to, why);
        Some(to)
    }

    /// A read is over. The flight whose turn it is now has its place, and must begin or leave.
    pub(super) fn leave(&self) -> Option<FlightId> {
        let mut state = lock(&self.0);
        for step in 0..Lane::COUNT {
            let lane = (state.next_lane + step) % Lane::COUNT;
            if let Some((number, flight)) = state.waiting[lane].pop_first() {
                state.next_lane = (lane + 1) % Lane::COUNT;
                if lane == Lane::Asked as usize {
                    state.round = number;
                }
                return Some(flight);
            }
        }
        state.running -= 1;
        None
    }

    /// A flight that waits is gone.
    pub(super) fn forget(&self, flight: FlightId, turn: Turn) {
        lock(&self.0).waiting[turn.lane as usize].remove(&(turn.number, flight));
    }

    #[cfg(test)]
    pub(super) fn clients(&self) -> usize {
        lock(&self.0).clients.len()
    }

    /// Reads that run, and flights that wait.
    pub(super) fn counts(&self) -> (usize, usize) {
        let state = lock(&self.0);
        (state.running, state.waiting.iter().map(BTreeSet::len).sum())
    }
}

impl State {
    /// The turn of a read that would wait from now on.
    fn turn(&self, why: Why) -> Turn {
        let number = match why {
            Why::Asked(client) => {
                let last = self.clients.get(&client).copied().unwrap_or_default();
                last.max(self.round) + 1
            }
            Why::Notified | Why::Again => self.last_turn + 1,
        };
        Turn {
            lane: why.lane(),
            number,
        }
    }

    fn wait(&mut self, flight: FlightId, turn: Turn, why: Why) {
        match why {
            Why::Asked(client) => {
                self.clients.insert(client, turn.number);
                let most = 2 * self.waiting[Lane::Asked as usize].len() + SPARE_CLIENTS;
                if self.clients.len() > most {
                    // Those whose reads have all had their turns are as good as new.
                    let round = self.round;
                    self.clients.retain(|_, last| *last > round);
                }
            }
            Why::Notified | Why::Again => self.last_turn = turn.number,
        }
        self.waiting[turn.lane as usize].insert((turn.number, flight));
    }
}
