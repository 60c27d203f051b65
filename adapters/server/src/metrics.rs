//! What is counted, as Prometheus reads it.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use entity_sync_mio::{Handle, Health, LATENCY_BOUNDS, Severity};
use hyper::HeaderMap;
use hyper::header::ACCEPT;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// The media type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The media type of the older format, which Prometheus has had from its beginning.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `text`, which is in OpenMetrics' format, in the format that a request prefers, and its media type.
pub(crate) fn in_format(headers: &HeaderMap, text: String) -> (&'static str, String) {
    let (mut open, mut plain) = (0.0, 0.0);
    let accepted = headers.get_all(ACCEPT).into_iter().filter_map(|it| it.to_str().ok());
    for range in accepted.flat_map(|it| it.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|it| it.strip_prefix("q=").or_else(|| it.strip_prefix("Q=")));
        let weight: f32 = weight.map_or(1.0, |it| it.trim().parse().unwrap_or(0.0));
        match &*media_type {
            "application/openmetrics-text" => open = weight,
            "text/plain" | "text/*" => plain = weight,
            _ => {}
        }
    }
    if plain > open {
        (PROMETHEUS, to_prometheus(&text))
    } else {
        (CONTENT_TYPE, text)
    }
}

/// In OpenMetrics a counter's family has the name without `_total`; in the older format its name is that of its samples. Units
/// and the end are told in the newer one only.
fn to_prometheus(text: &str) -> String {
    let type_of = |line: &str| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        (kind == "counter").then(|| name.to_owned())
    };
    let counters: HashSet<String> = text.lines().filter_map(type_of).collect();
    let mut older = String::with_capacity(text.len() + 8 * counters.len());
    for line in text.lines() {
        if line.starts_with("# UNIT ") || line == "# EOF" {
            continue;
        }
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what @ ("HELP" | "TYPE")), Some(name), Some(rest)) if counters.contains(name) => {
                older.extend(["# ", what, " ", name, "_total ", rest, "\n"]);
            }
            _ => older.extend([line, "\n"]),
        }
    }
    older
}

/// The numbers of one server.
pub struct Metrics {
    handle: Handle,
    more: More,
    by_source: BySource,
}

/// A name, what it says, and how many there are.
pub type Number = (Cow<'static, str>, &'static str, u64);

/// Numbers from elsewhere.
type More = Arc<dyn Fn() -> Vec<Number> + Send + Sync>;

/// Numbers of several sources, with what each is called.
type BySource = Arc<dyn Fn() -> Vec<(String, Vec<Number>)> + Send + Sync>;

/// How the counters of core are named here, where that differs. The others have their own names.
const NAMES: &[(&str, &str)] = &[("deliveries", "pushes"), ("delivered_bytes", "pushed_bytes")];

/// Counters of what went wrong, and the kind that each is in `entity_sync_errors_total`.
const ERRORS: &[(&str, &str)] = &[
    ("unknown_entities", "unknown_entity"),
    ("failed_reads", "failed_read"),
    ("timed_out_reads", "timed_out_read"),
    ("resolver_panics", "resolver_panic"),
    ("handler_panics", "handler_panic"),
    ("refused_connections", "refused_connection"),
    ("refused_upgrades", "refused_upgrade"),
    ("rejected_messages", "rejected_message"),
    ("refused_subscriptions", "refused_subscription"),
    ("violations", "violation"),
    ("dead_peers", "dead_peer"),
    ("fallen_behind", "fell_behind"),
    ("out_of_files", "out_of_files"),
];

/// Counters of what was made and not sent, and the kind that each is in `entity_sync_dropped_total`.
const DROPPED: &[(&str, &str)] = &[
    ("late_reads", "late_read"),
    ("dirty_marks", "full_outbox"),
    ("silent_unchanged", "unchanged"),
];

/// What the names of counters of refused upgrade requests begin with; the reason follows.
const REFUSED_UPGRADES: &str = "refused_upgrades_";

/// Numbers that fall, too.
const GAUGES: &[&str] = &[
    "connections",
    "subscriptions",
    "subscription_bytes",
    "secret_bytes",
    "input_bytes",
    "flights",
    "api_connections",
    "postgres_listening",
    "cluster_connected",
    "cluster_deaf",
    "cluster_peers",
    "cluster_missing_messages",
    "cluster_waiting_repairs",
];

impl Metrics {
    /// The numbers of the server behind `handle`.
    pub fn new(handle: Handle) -> Self {
        Self {
            handle,
            more: Arc::new(Vec::new),
            by_source: Arc::new(Vec::new),
        }
    }

    /// And these, which are the same for each source: its name is a label.
    pub fn by_source(self, sources: impl Fn() -> Vec<(String, Vec<Number>)> + Send + Sync + 'static) -> Self {
        let by_source = Arc::new(sources);
        Self { by_source, ..self }
    }

    /// And these.
    pub fn with(self, more: impl Fn() -> Vec<Number> + Send + Sync + 'static) -> Self {
        let more = Arc::new(more);
        Self { more, ..self }
    }

    /// All of them as they are now, in OpenMetrics' text format.
    pub fn text(&self) -> String {
        let mut registry = Registry::with_prefix("entity_sync");
        registry.register_collector(Box::new(Numbers {
            handle: self.handle.clone(),
            more: self.more.clone(),
            by_source: self.by_source.clone(),
        }));
        let mut text = String::new();
        // A string takes all that is written to it.
        let _ = encode(&mut text, &registry);
        text
    }
}

struct Numbers {
    handle: Handle,
    more: More,
    by_source: BySource,
}

impl std::fmt::Debug for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Numbers")
    }
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (node, shards) = (self.handle.counters().snapshot(), self.handle.shard_counts());
        let reactors = self.handle.reactor_counts();
        let others = [
            (
                "flights",
                "Audiences of entities that are subscribed to or read.",
                self.handle.flights() as u64,
            ),
            (
                "dead_threads",
                "Threads and tasks that have died of a panic, started again or not.",
                self.handle.health().dead_threads(),
            ),
            ("accepted", "Connections accepted from listeners.", reactors.accepted),
            (
                "adopted",
                "Connections accepted elsewhere and handed over.",
                reactors.adopted,
            ),
            (
                "accept_pauses",
                "Times that accepting had to wait because of a limit.",
                reactors.accept_pauses,
            ),
            (
                "out_of_files",
                "Times that accepting had to wait for files.",
                reactors.out_of_files,
            ),
        ];
        let all: Vec<_> = node
            .iter()
            .chain(shards.iter())
            .chain(others)
            .map(|(name, help, value)| (name.into(), help, value))
            .chain((self.more)())
            .collect();
        for (name, help, value) in &all {
            let name = &**name;
            let is_of = |kinds: &[(&str, &str)]| kinds.iter().any(|(counter, _)| *counter == name);
            if is_of(ERRORS) || is_of(DROPPED) || name.starts_with(REFUSED_UPGRADES) {
                continue;
            }
            let renamed = NAMES.iter().find(|(counter, _)| *counter == name);
            let name = renamed.map_or(name, |(_, name)| name);
            let help = help.trim_end_matches('.');
            if GAUGES.contains(&name) {
                let gauge = ConstGauge::new(i64::try_from(*value).unwrap_or(i64::MAX));
                gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
            } else {
                ConstCounter::new(*value).encode(encoder.encode_descriptor(
                    name,
                    help,
                    None,
                    MetricType::Counter,
                )?)?;
            }
        }
        for (family, help, kinds) in [
            ("errors", "What went wrong, by kind", ERRORS),
            ("dropped", "Rows that were read and not sent, by kind", DROPPED),
        ] {
            let mut family = encoder.encode_descriptor(family, help, None, MetricType::Counter)?;
            for (counter, kind) in kinds {
                let value = all.iter().find(|(name, ..)| name == counter).map_or(0, |it| it.2);
                ConstCounter::new(value).encode(family.encode_family(&[("kind", *kind)])?)?;
            }
        }
        encode_troubles(self.handle.health(), &mut encoder)?;
        let help = "Upgrade requests refused, by reason";
        let mut family = encoder.encode_descriptor("refused_upgrades", help, None, MetricType::Counter)?;
        for (name, _, value) in &all {
            if let Some(reason) = name.strip_prefix(REFUSED_UPGRADES) {
                ConstCounter::new(*value).encode(family.encode_family(&[("reason", reason)])?)?;
            }
        }
        encode_sources(&mut encoder, (self.by_source)())?;
        let latency = self.handle.latency();
        let bounds = LATENCY_BOUNDS.iter().map(Duration::as_secs_f64).chain([f64::MAX]);
        let buckets: Vec<_> = bounds.zip(latency.buckets).collect();
        let help = "From the first notify that a push answers until it is written";
        encoder
            .encode_descriptor("push_latency", help, Some(&Unit::Seconds), MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(latency.sum.as_secs_f64(), latency.count(), &buckets, None)
    }
}

/// How many parts are in trouble, by how much that matters.
fn encode_troubles(health: &Health, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let troubles = health.troubles();
    let help = "Parts of the process that are in trouble now, by severity";
    let mut family = encoder.encode_descriptor("troubles", help, None, MetricType::Gauge)?;
    for severity in [Severity::Degraded, Severity::NotReady, Severity::Dead] {
        let count = troubles.iter().filter(|it| it.severity == severity).count();
        let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
        gauge.encode(family.encode_family(&[("severity", severity.to_string())])?)?;
    }
    Ok(())
}

/// What a family counts, and a number for each source.
type Family = (&'static str, Vec<(String, u64)>);

/// Each family once, with a sample for each source.
fn encode_sources(encoder: &mut DescriptorEncoder<'_>, sources: Vec<(String, Vec<Number>)>) -> std::fmt::Result {
    let mut names: Vec<String> = Vec::new();
    let mut families: BTreeMap<Cow<'static, str>, Family> = BTreeMap::new();
    for (source, numbers) in sources {
        // The encoder writes labels as they are.
        let source = source.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let same = |name: &String| *name == source || name.strip_prefix(&source).is_some_and(|it| it.starts_with(" #"));
        let source = match names.iter().filter(|name| same(name)).count() {
            0 => source,
            others => format!("{source} #{}", others + 1),
        };
        names.push(source.clone());
        for (name, help, value) in numbers {
            let (_, samples) = families.entry(name).or_insert_with(|| (help, Vec::new()));
            samples.push((source.clone(), value));
        }
    }
    for (name, (help, samples)) in &families {
        let is_gauge = GAUGES.contains(&&**name);
        let kind = if is_gauge {
            MetricType::Gauge
        } else {
            MetricType::Counter
        };
        let mut family = encoder.encode_descriptor(name, help.trim_end_matches('.'), None, kind)?;
        for (source, value) in samples {
            let labels = [("source", source.as_str())];
            let sample = family.encode_family(&labels)?;
            if is_gauge {
                ConstGauge::new(i64::try_from(*value).unwrap_or(i64::MAX)).encode(sample)?;
            } else {
                ConstCounter::new(*value).encode(sample)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use entity_sync_mio::{Config, EntityKey, Reply, Request, Server};

    use super::*;

    fn page() -> String {
        let server = Server::start(Config::new([]), |_: Request, _: Reply| {}).expect("starts");
        let numbers = |value| {
            vec![
                ("postgres_reads".into(), "Reads.", value),
                ("postgres_listening".into(), "Ears.", value),
            ]
        };
        let sources = move || {
            ["a@h/x", "b\"@h/x", "a@h/x"]
                .map(|it| (it.to_owned(), numbers(it.len() as u64)))
                .into()
        };
        Metrics::new(server.handle().clone()).by_source(sources).text()
    }

    #[test]
    fn each_family_is_told_once_whatever_the_sources() {
        let text = page();
        for line in [
            "entity_sync_postgres_reads_total{source=\"a@h/x\"} 5",
            "entity_sync_postgres_reads_total{source=\"b\\\"@h/x\"} 6",
            "entity_sync_postgres_reads_total{source=\"a@h/x #2\"} 5",
            "entity_sync_postgres_listening{source=\"a@h/x\"} 5",
            "entity_sync_refused_upgrades_total{reason=\"host\"} 0",
        ] {
            assert!(text.lines().any(|it| it == line), "{line:?} is not in {text}");
        }
        for text in [&text, &to_prometheus(&text)] {
            let mut families: Vec<_> = text.lines().filter(|it| it.starts_with("# TYPE ")).collect();
            let all = families.len();
            families.sort_unstable();
            families.dedup();
            assert_eq!(families.len(), all);
        }
    }

    #[test]
    fn a_scraper_gets_the_format_that_it_asks_for() {
        let text = page();
        let in_format = |accept: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(ACCEPT, value.parse().expect("a value"));
            }
            super::in_format(&headers, text.clone())
        };
        for accept in [
            &["text/plain"][..],
            &["text/plain;version=0.0.4;q=0.5", "*/*;q=0.1"],
            &["application/openmetrics-text; q=0.2, text/plain; q=0.3"],
            &["application/openmetrics-text;q=0, text/plain"],
        ] {
            let (kind, older) = in_format(accept);
            assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8", "{accept:?}");
            for line in [
                "# TYPE entity_sync_notifies_total counter",
                "# HELP entity_sync_pushed_bytes_total Bytes of the groups given to connections",
                "entity_sync_notifies_total 0",
                "# TYPE entity_sync_connections gauge",
                "# TYPE entity_sync_push_latency_seconds histogram",
                "# TYPE entity_sync_errors_total counter",
            ] {
                assert!(older.lines().any(|it| it == line), "{line:?} is not in {older}");
            }
            assert!(!older.contains("# EOF") && !older.contains("# UNIT"), "{older}");
            // Each sample has a family of its name, or of a histogram's.
            for sample in older.lines().filter(|it| !it.starts_with('#')) {
                let name = sample.split(['{', ' ']).next().expect("a name");
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| name.strip_suffix(end));
                let family = family.filter(|it| it.ends_with("_seconds")).unwrap_or(name);
                let line = format!("# TYPE {family} ");
                assert!(older.lines().any(|it| it.starts_with(&line)), "{sample}");
            }
        }
        for accept in [
            &[][..],
            &["*/*"],
            &["application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"],
        ] {
            assert_eq!(in_format(accept), (CONTENT_TYPE, text.clone()), "{accept:?}");
        }
    }

    #[test]
    fn every_number_is_shown_once_under_a_good_name() {
        let server = Server::start(Config::new([]), |_: Request, _: Reply| {}).expect("starts");
        let metrics = Metrics::new(server.handle().clone());
        let key = EntityKey::new("items", "1").expect("short");
        server.handle().notify(&key).expect("every name is an entity");
        let broker = server.handle().health().part("broker");
        broker.report(Severity::Degraded, "one of two is down");
        let text = metrics.text();
        for line in [
            "# TYPE entity_sync_notifies counter",
            "# HELP entity_sync_pushed_bytes Bytes of the groups given to connections",
            "entity_sync_notifies_total 1",
            "entity_sync_connections 0",
            "entity_sync_subscriptions 0",
            "entity_sync_pushes_total 0",
            "entity_sync_pushed_bytes_total 0",
            "entity_sync_reads_total 0",
            "entity_sync_conflated_total 0",
            "entity_sync_dropped_total{kind=\"late_read\"} 0",
            "entity_sync_errors_total{kind=\"violation\"} 0",
            "entity_sync_dead_threads_total 0",
            "entity_sync_troubles{severity=\"degraded\"} 1",
            "entity_sync_troubles{severity=\"not_ready\"} 0",
            "entity_sync_troubles{severity=\"dead\"} 0",
            "# TYPE entity_sync_push_latency_seconds histogram",
            "entity_sync_push_latency_seconds_bucket{le=\"0.00025\"} 0",
            "entity_sync_push_latency_seconds_bucket{le=\"10.0\"} 0",
            "entity_sync_push_latency_seconds_bucket{le=\"+Inf\"} 0",
            "entity_sync_push_latency_seconds_count 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|it| it == line), "{line:?} is not in {text}");
        }
        let mut names: Vec<_> = text.lines().filter(|it| !it.starts_with('#')).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        // Each that is listed by kind exists.
        let (node, shards) = (server.handle().counters().snapshot(), server.handle().shard_counts());
        for (counter, _) in ERRORS.iter().chain(DROPPED).chain(NAMES) {
            let exists = node.iter().chain(shards.iter()).any(|(name, ..)| name == *counter);
            assert!(exists || *counter == "out_of_files", "{counter}");
        }
    }
}
