//! [`Node`]: a bus, and what it tells.

use std::time::{Duration, Instant};

use entity_sync_bus::{Bytes, Outcome, PlainBus, Probe, Told};
use entity_sync_nsq::{Config, Counts, Nsq, Status};
use entity_sync_tests::nsqd::Nsqd;
use entity_sync_tests::{PATIENCE, wait_for};

pub(crate) const BODY: &str = r#"{"entity":"items","id":"100"}"#;

pub(crate) struct Node {
    pub(crate) bus: Nsq,
    pub(crate) status: Status,
    pub(crate) probe: Probe,
}

impl Node {
    /// One that is connected to this nsqd and hears of `items`.
    pub(crate) fn connected(nsqd: &Nsqd) -> Self {
        let node = Self::start(config(&[nsqd]), &["items"]);
        assert_eq!(node.next(), Told::Connected);
        node
    }

    pub(crate) fn start(config: Config, topics: &[&str]) -> Self {
        let mut bus = Nsq::new(config).unwrap();
        let status = bus.status();
        let probe = Probe::new();
        let topics: Vec<_> = topics.iter().map(|it| (*it).to_owned()).collect();
        bus.start(&topics, probe.plain_inbox());
        Self { bus, status, probe }
    }

    pub(crate) fn publish(&mut self, receipt: u64, topic: &str, body: &[u8]) {
        let receipt = self.probe.receipt(receipt);
        self.bus.publish(topic, body, receipt);
    }

    /// What is told next.
    pub(crate) fn next(&self) -> Told {
        self.next_within(PATIENCE).expect("nothing was told")
    }

    /// The next so many things told, messages last: a confirmation and the message it is for race.
    pub(crate) fn next_sorted(&self, count: usize) -> Vec<Told> {
        let mut told: Vec<_> = (0..count).map(|_| self.next()).collect();
        told.sort_by_key(|it| (matches!(it, Told::Message(_)), format!("{it:?}")));
        told
    }

    /// What is told within a moment, if anything is.
    pub(crate) fn soon(&self) -> Option<Told> {
        self.next_within(Duration::from_millis(100))
    }

    fn next_within(&self, patience: Duration) -> Option<Told> {
        let until = Instant::now() + patience;
        loop {
            let told = self.probe.next();
            if told.is_some() || Instant::now() >= until {
                return told;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.status.counts()
    }

    pub(crate) fn last_failure(&self) -> String {
        self.status.nsqds()[0].last_failure.clone().unwrap_or_default()
    }

    pub(crate) fn wait_for_failure(&self, what: &str) {
        wait_for(what, || self.last_failure().contains(what));
    }
}

/// As by default, but that nobody wants to wait for minutes.
pub(crate) fn config(nsqds: &[&Nsqd]) -> Config {
    at(nsqds.iter().map(|it| it.address().to_string()))
}

pub(crate) fn at(addresses: impl IntoIterator<Item = String>) -> Config {
    let mut config = Config::new(addresses);
    config.heartbeat = Duration::from_secs(1);
    config.timeout = Duration::from_secs(2);
    config.backoff = Duration::from_millis(5)..=Duration::from_millis(100);
    config
}

pub(crate) fn message(body: impl AsRef<[u8]>) -> Told {
    Told::Message(Bytes::copy_from_slice(body.as_ref()))
}

pub(crate) fn confirmed(number: u64) -> Told {
    Told::Receipt(number, Outcome::Confirmed)
}

pub(crate) fn lost(number: u64) -> Told {
    Told::Receipt(number, Outcome::Lost)
}

pub(crate) fn refused(number: u64) -> Told {
    Told::Receipt(number, Outcome::Refused)
}
