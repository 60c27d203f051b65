//! [`SourceHealth`]: whether a source of rows works, for logs, `/readyz` and metrics.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use entity_sync_runtime::{Health, LogLimit, Part, Severity};
use parking_lot::Mutex;

/// A source may fail for this long before the server counts as not ready. A restart of it is nothing to worry about.
const GRACE: Duration = Duration::from_secs(2);
/// Trouble that nothing has confirmed for this long is over. A read that fails is tried again before, as long as anyone needs it.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// Reports a source to the server's health and to the log, where each kind of trouble has its own limit.
pub(super) struct SourceHealth {
    part: Part,
    state: Mutex<State>,
    /// Whether there is anything in `state`. Most reads work, and need not look.
    is_troubled: AtomicBool,
    log: LogLimit,
}

#[derive(Default)]
struct State {
    /// Nothing has worked since.
    failing: Option<Failing>,
    /// What did not work last, and when.
    degraded: Option<(Instant, String)>,
}

struct Failing {
    since: Instant,
    last: Instant,
}

/// A kind of trouble with a share of its own in the log.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// The source fails for the moment.
    Failed,
    /// An operator has to change something.
    Rejected,
    /// What it says makes no sense.
    Nonsense,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Nonsense => "nonsense",
        }
    }
}

impl SourceHealth {
    pub(super) fn new(health: &Health, name: impl Into<String>) -> Self {
        Self {
            part: health.part(name),
            state: Mutex::default(),
            is_troubled: AtomicBool::new(false),
            log: LogLimit::new(),
        }
    }

    /// A read came about. A connection alone says little: it may lead to a pooler, or to a server that stays silent.
    pub(super) fn works(&self) {
        if self.is_troubled.load(Ordering::Relaxed) {
            let mut state = self.state.lock();
            state.failing = None;
            self.forget_old(&mut state, Instant::now());
        }
    }

    /// Nothing may work: after a while of that, the server is not ready.
    pub(super) fn fails(&self, why: &str) {
        self.fails_at(Instant::now(), why);
    }

    fn fails_at(&self, now: Instant, why: &str) {
        let mut state = self.state.lock();
        self.is_troubled.store(true, Ordering::Relaxed);
        let failing = state.failing.get_or_insert(Failing { since: now, last: now });
        failing.last = now;
        if now.duration_since(failing.since) >= GRACE {
            self.part.report(Severity::NotReady, why);
        }
    }

    /// Some reads don't work, others may. A client can bring that about by asking for the right thing, so the server stays
    /// ready.
    pub(super) fn degrades(&self, why: &str) {
        let now = Instant::now();
        let mut state = self.state.lock();
        self.is_troubled.store(true, Ordering::Relaxed);
        state.degraded = Some((now, why.to_owned()));
        let is_worse = |failing: &Failing| now.duration_since(failing.since) >= GRACE;
        if !state.failing.as_ref().is_some_and(is_worse) {
            self.part.report(Severity::Degraded, why);
        }
    }

    /// To be called now and then: forgets trouble that is over without anyone having seen it end.
    pub(super) fn look(&self) {
        self.look_at(Instant::now());
    }

    fn look_at(&self, now: Instant) {
        if self.is_troubled.load(Ordering::Relaxed) {
            let mut state = self.state.lock();
            if state
                .failing
                .as_ref()
                .is_some_and(|it| now.duration_since(it.last) >= FORGET_AFTER)
            {
                state.failing = None;
            }
            self.forget_old(&mut state, now);
        }
    }

    fn forget_old(&self, state: &mut State, now: Instant) {
        if state
            .degraded
            .as_ref()
            .is_some_and(|(at, _)| now.duration_since(*at) >= FORGET_AFTER)
        {
            state.degraded = None;
        }
        match (&state.failing, &state.degraded) {
            (Some(_), _) => {}
            (None, Some((_, why))) => self.part.report(Severity::Degraded, why.as_str()),
            (None, None) => {
                self.is_troubled.store(false, Ordering::Relaxed);
                self.part.recover();
            }
        }
    }

    /// Says it in the log, unless there was a line of this kind a short while ago.
    pub(super) fn log(&self, kind: Kind, what: &str) {
        if let Some(untold) = self.log.of_kind(kind.name()) {
            tracing::warn!(untold, "{what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(health: &Health) -> Vec<String> {
        let troubles = health.troubles();
        troubles.iter().map(|it| format!("{} {it}", it.severity)).collect()
    }

    #[test]
    fn a_source_that_keeps_failing_is_not_ready_until_it_works() {
        let health = Health::default();
        let source = SourceHealth::new(&health, "source");
        let start = Instant::now();
        source.fails_at(start, "down");
        source.fails_at(start + Duration::from_secs(1), "down");
        assert!(health.troubles().is_empty(), "it may be a restart");
        source.fails_at(start + GRACE, "down");
        assert_eq!(shown(&health), ["not_ready source: down"]);
        assert!(!health.is_ready());
        source.works();
        assert!(health.troubles().is_empty());
        source.fails_at(start + GRACE, "down");
        assert!(health.troubles().is_empty(), "it has worked since");
    }

    #[test]
    fn what_does_not_work_is_shown_for_a_while_although_others_do() {
        let health = Health::default();
        let source = SourceHealth::new(&health, "source");
        source.degrades("401");
        source.works();
        assert_eq!(shown(&health), ["degraded source: 401"]);
        assert!(health.is_ready());
        let start = Instant::now();
        source.fails_at(start, "down");
        source.fails_at(start + GRACE, "down");
        source.works();
        assert_eq!(shown(&health), ["degraded source: 401"]);
        source.look_at(start + FORGET_AFTER * 2);
        assert!(health.troubles().is_empty());
    }

    #[test]
    fn trouble_that_nobody_asks_about_any_more_is_forgotten() {
        let health = Health::default();
        let source = SourceHealth::new(&health, "source");
        let start = Instant::now();
        source.fails_at(start, "down");
        source.fails_at(start + GRACE, "down");
        source.look_at(start + FORGET_AFTER);
        assert!(!health.is_ready());
        source.look_at(start + GRACE + FORGET_AFTER);
        assert!(health.is_ready());
    }
}
