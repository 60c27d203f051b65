//! [`PlaceReports`]: says which peers and brokers are down, in the log and to [`Health`].

use std::time::Duration;

use entity_sync_bus::{Health, LogLimit, Part, Severity};
use entity_sync_core::Timestamp;

use crate::links::{LinkCounts, Links, Side};

/// Nothing is said of a place that is connected this soon after the start, or again after a loss.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) struct PlaceReports {
    places: Vec<Report>,
    /// A mesh goes on without any broker.
    is_bound: bool,
}

struct Report {
    part: Part,
    logs: LogLimit,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    /// Since then, and it has not been logged.
    Down(Timestamp),
    Logged,
}

impl PlaceReports {
    /// All are down at first.
    pub(crate) fn new(links: &Links, health: &Health, is_bound: bool, now: Timestamp) -> Self {
        let report = |place: &crate::links::Place| Report {
            part: health.part(format!("zmq {} {}", kind(place.is_broker), place.name)),
            logs: LogLimit::default(),
            state: State::Down(now),
        };
        let places = links.places().iter().map(report).collect();
        Self { places, is_bound }
    }

    /// Connections have come or gone.
    pub(crate) fn changed(&mut self, now: Timestamp, links: &Links, counts: LinkCounts) {
        for (index, (report, place)) in self.places.iter_mut().zip(links.places()).enumerate() {
            let Some(side) = missing(links, index) else {
                report.part.recover();
                if report.state == State::Logged && report.logs.of_kind("connected").is_some() {
                    tracing::info!("connected to ZeroMQ {} {}", kind(place.is_broker), place.name);
                }
                report.state = State::Up;
                continue;
            };
            if report.state == State::Up {
                report.state = State::Down(now);
            }
            let is_cut_off = place.is_broker && counts.connected_brokers == 0 && !self.is_bound;
            let (severity, what) = match is_cut_off {
                true => (
                    Severity::NotReady,
                    "no broker is: changes are not exchanged until one is",
                ),
                false if place.is_broker => (Severity::Degraded, "changes go another way"),
                false => (Severity::Degraded, "its changes are not heard from it"),
            };
            report.part.report(
                severity,
                format!(
                    "not connected{side}: {what}; see whether it runs and can be reached, and whether both have the right \
                     keys of CURVE, or none"
                ),
            );
        }
    }

    /// Logs what has been down for a while.
    pub(crate) fn log_overdue(&mut self, now: Timestamp, links: &Links) {
        for (index, report) in self.places.iter_mut().enumerate() {
            let State::Down(since) = report.state else { continue };
            if now.since(since) < PATIENCE {
                continue;
            }
            report.state = State::Logged;
            if let (Some(skipped), Some(side), Some(place)) = (
                report.logs.of_kind("lost"),
                missing(links, index),
                links.places().get(index),
            ) {
                let counts = links.counts();
                tracing::warn!(
                    skipped,
                    "ZeroMQ {} {} is not connected{side}: {} of {} brokers and {} of {} peers are",
                    kind(place.is_broker),
                    place.name,
                    counts.connected_brokers,
                    counts.brokers,
                    counts.connected_peers,
                    counts.peers
                );
            }
        }
    }
}

fn kind(is_broker: bool) -> &'static str {
    match is_broker {
        true => "broker",
        false => "peer",
    }
}

/// Which side of a place is not connected, as a part of a sentence; `None` if it is all there.
fn missing(links: &Links, place: usize) -> Option<&'static str> {
    let is_up = |side| links.is_connected(place, side);
    let is_broker = links.places().get(place).is_some_and(|it| it.is_broker);
    match (is_up(Side::Publisher), is_up(Side::Subscriber)) {
        (true, true) => None,
        (true, false) if is_broker => Some(" to its backend"),
        (false, true) => Some(" to its frontend"),
        _ => Some(""),
    }
}
