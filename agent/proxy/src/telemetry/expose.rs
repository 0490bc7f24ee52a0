//! Exposition: Prometheus text 0.0.4 and OpenMetrics 1.0, by what the scraper accepts.

use super::{
    counters::{self, Counters, GAUGES, SHOWN},
    metrics::{BUCKETS, Edge, Exchange, Flow, Link, Outcome, Registry, Total},
    record::Direction,
};
use crate::share::timing::{BOUNDS, Durations, Timing};
use std::{
    collections::BTreeMap,
    fmt::{Display, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use weft_core::model::ObjectKey;

/// The two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// Prometheus text 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl ContentType {
    /// For [`super::Telemetry::render_metrics`].
    #[must_use]
    pub const fn is_openmetrics(self) -> bool {
        matches!(self, Self::OpenMetrics)
    }

    /// The header's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What to answer to an `Accept` header: OpenMetrics when it is named and not refused (`q=0`).
#[must_use]
pub fn negotiate(accept: &str) -> ContentType {
    let wanted = accept.split(',').any(|range| {
        let mut slots = range.split(';').map(str::trim);
        let named = slots.next().is_some_and(|t| t.eq_ignore_ascii_case("application/openmetrics-text"));
        let refused = |p: &str| p.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()) == Some(0.0);
        named && !slots.any(refused)
    });
    if wanted { ContentType::OpenMetrics } else { ContentType::Text }
}

/// Everything that is shown.
pub(super) struct View<'a> {
    pub(super) workers: &'a [Arc<Counters>],
    pub(super) registry: &'a Registry,
    /// Counters of the exporter and the writer: family, help, value.
    pub(super) own: &'a [(&'static str, &'static str, u64)],
}

/// Renders it.
pub(super) fn render(view: &View<'_>, format: ContentType) -> String {
    let mut out = Text { out: String::with_capacity(16 * 1024), open: format.is_openmetrics() };
    out.family("weft_build", "Version of this agent.", "info");
    out.line("weft_build_info", &[("version", &env!("CARGO_PKG_VERSION"))], &1);
    plain(&mut out, view.workers);
    shares(&mut out, view.workers);
    requests(&mut out, view.registry);
    flows(&mut out, view.registry);
    for (family, help, value) in view.own {
        out.counter(family, help);
        out.total(family, &[], *value);
    }
    out.counter("weft_series_overflows", "Label sets that were one too many.");
    let overflows = [
        ("requests", &view.registry.outcomes.overflows),
        ("durations", &view.registry.exchanges.overflows),
        ("connections", &view.registry.flows.overflows),
    ];
    for (family, count) in overflows {
        out.total("weft_series_overflows", &[("family", &family)], count.load(Relaxed));
    }
    if out.open {
        out.out.push_str("# EOF\n");
    }
    out.out
}

fn plain(out: &mut Text, workers: &[Arc<Counters>]) {
    let sum = |counter| workers.iter().map(|w| w.get(counter)).fold(0, u64::wrapping_add);
    let mut family = "";
    for shown in &SHOWN {
        if shown.family != family {
            family = shown.family;
            out.counter(family, counters::help(family));
        }
        let labels: Vec<(&str, &dyn Display)> =
            shown.labels.iter().map(|(k, v)| (*k, v as &dyn Display)).collect();
        out.total(family, &labels, sum(shown.counter));
    }
    let mut last = "";
    for (name, help, start, end, (label, value)) in &GAUGES {
        if *name != last {
            last = name;
            out.family(name, help, "gauge");
        }
        // The end is read first: a worker that counts both in between must not make it negative.
        let ended = sum(*end);
        out.line(name, &[(*label, value)], &sum(*start).saturating_sub(ended));
    }
}

/// What one pod's load costs another one in time: nothing else of the agent delays a connection by more than its own
/// work.
fn shares(out: &mut Text, workers: &[Arc<Counters>]) {
    type DurationsOf = (&'static str, &'static str, fn(&Timing) -> &Durations);
    let families: [DurationsOf; 2] = [
        (
            "weft_share_wait_seconds",
            "Time from the moment when a pod's or Gateway's work was found ready to its turn on the worker.",
            |timing| &timing.waits,
        ),
        (
            "weft_worker_stretch_seconds",
            "Time that a worker worked between two looks at its sockets.",
            |timing| &timing.stretches,
        ),
    ];
    for (family, help, of) in families {
        out.family(family, help, "histogram");
        let (mut buckets, mut nanos) = ([0; BOUNDS.len() + 1], 0_u64);
        for worker in workers {
            let (counts, sum) = of(&worker.timing).read();
            buckets.iter_mut().zip(counts).for_each(|(all, one)| *all += one);
            nanos = nanos.wrapping_add(sum);
        }
        out.histogram(family, &[], (&BOUNDS.map(|(_, text)| text), &buckets, nanos));
    }
}

fn requests(out: &mut Text, registry: &Registry) {
    let outcomes = registry.outcomes.snapshot();
    let exchanges = registry.exchanges.snapshot();
    out.counter("weft_requests", "Requests by edge and outcome.");
    for (labels, slots) in &outcomes {
        let (code, grpc) = (labels.code, labels.grpc_status.map(|s| s.to_string()).unwrap_or_default());
        let reason = labels.reason.unwrap_or("");
        let edge = EdgeText::of(&labels.edge);
        let mut all = edge.labels();
        all.extend([("code", &code as &dyn Display), ("grpc_status", &grpc), ("reason", &reason)]);
        out.total("weft_requests", &all, sum(slots, |p| &p.0));
    }
    out.family("weft_request_duration_seconds", "Time from a request's head to its last byte.", "histogram");
    for (labels, slots) in &exchanges {
        let edge = EdgeText::of(labels);
        out.histogram("weft_request_duration_seconds", &edge.labels(), Histogram::of(slots).shown());
    }
    let bytes: [BytesOf<Exchange>; 2] = [
        ("weft_request_bytes", "Body bytes received from clients.", |p| &p.request_bytes),
        ("weft_response_bytes", "Body bytes sent to clients.", |p| &p.response_bytes),
    ];
    for (family, help, cell) in bytes {
        out.counter(family, help);
        for (labels, slots) in &exchanges {
            out.total(family, &EdgeText::of(labels).labels(), sum(slots, cell));
        }
    }
    aliases(out, &outcomes, &exchanges);
}

type BytesOf<S> = (&'static str, &'static str, fn(&S) -> &AtomicU64);

/// The two names that dashboards for Gateways ask for, by Gateway only.
fn aliases(
    out: &mut Text,
    outcomes: &[(Outcome, Vec<Arc<Total>>)],
    exchanges: &[(Edge, Vec<Arc<Exchange>>)],
) {
    let none = ObjectKey::new("", "");
    let mut codes: BTreeMap<(&ObjectKey, u16), u64> = BTreeMap::new();
    for (labels, slots) in outcomes.iter().filter(|(l, _)| l.edge.direction == Direction::Gateway) {
        let gateway = labels.edge.parent.as_ref().unwrap_or(&none);
        *codes.entry((gateway, labels.code)).or_default() += sum(slots, |p| &p.0);
    }
    out.counter("gateway_http_requests", "Requests of Gateways; the same as weft_requests_total.");
    for ((gateway, code), count) in codes {
        let labels = gateway_labels(gateway);
        let all = [labels[0], labels[1], ("response_code", &code)];
        out.total("gateway_http_requests", &all, count);
    }
    let mut durations: BTreeMap<&ObjectKey, Histogram> = BTreeMap::new();
    for (labels, slots) in exchanges.iter().filter(|(l, _)| l.direction == Direction::Gateway) {
        let gateway = labels.parent.as_ref().unwrap_or(&none);
        durations.entry(gateway).or_default().add(&Histogram::of(slots));
    }
    let name = "gateway_http_request_duration_seconds";
    out.family(
        name,
        "Duration of Gateways' requests; the same as weft_request_duration_seconds.",
        "histogram",
    );
    for (gateway, histogram) in durations {
        out.histogram(name, &gateway_labels(gateway), histogram.shown());
    }
}

fn gateway_labels(gateway: &ObjectKey) -> [(&'static str, &dyn Display); 2] {
    [("gateway_namespace", &gateway.namespace), ("gateway_name", &gateway.name)]
}

fn flows(out: &mut Text, registry: &Registry) {
    let all = registry.flows.snapshot();
    let families: [BytesOf<Flow>; 3] = [
        ("weft_connections_ended", "Opaque connections that are over, by edge.", |p| &p.count),
        ("weft_connection_received_bytes", "Bytes from clients of opaque connections.", |p| &p.received),
        ("weft_connection_sent_bytes", "Bytes to clients of opaque connections.", |p| &p.sent),
    ];
    for (family, help, cell) in families {
        out.counter(family, help);
        for (link, slots) in &all {
            let edge = EdgeText::of(&link.edge);
            let mut labels = edge.labels();
            labels.extend(link_labels(link));
            out.total(family, &labels, sum(slots, cell));
        }
    }
}

fn link_labels(link: &Link) -> [(&'static str, &dyn Display); 4] {
    let (namespace, workload): (&dyn Display, &dyn Display) =
        link.destination.as_ref().map_or((&"", &""), |(ns, app)| (ns, app));
    let reason: &dyn Display = link.reason.as_ref().map_or(&"", |r| r);
    [
        ("protocol", &link.protocol),
        ("destination_namespace", namespace),
        ("destination_workload", workload),
        ("reason", reason),
    ]
}

/// The labels of an edge; an absent one is empty, which Prometheus treats as absent.
struct EdgeText<'a> {
    edge: &'a Edge,
    direction: &'static str,
    port: String,
}

impl<'a> EdgeText<'a> {
    fn of(edge: &'a Edge) -> Self {
        let port = edge.backend.as_ref().map(|b| b.port.to_string()).unwrap_or_default();
        Self { edge, direction: edge.direction.as_str(), port }
    }

    fn labels(&self) -> Vec<(&'static str, &dyn Display)> {
        let key = |key: Option<&'a ObjectKey>| -> (&'a dyn Display, &'a dyn Display) {
            key.map_or((&"", &""), |k| (&k.namespace, &k.name))
        };
        let parent = key(self.edge.parent.as_ref());
        let route = key(self.edge.route.as_ref().map(|r| &r.key));
        let (kind, rule): (&dyn Display, &dyn Display) =
            self.edge.route.as_ref().map_or((&"", &""), |r| (&r.kind, &r.rule));
        let backend = key(self.edge.backend.as_ref().map(|b| &b.service));
        let (namespace, source): (&dyn Display, &dyn Display) =
            self.edge.source.as_ref().map_or((&"", &""), |(ns, app)| (ns, app));
        vec![
            ("direction", &self.direction),
            ("parent_namespace", parent.0),
            ("parent_name", parent.1),
            ("route_kind", kind),
            ("route_namespace", route.0),
            ("route_name", route.1),
            ("rule", rule),
            ("backend_namespace", backend.0),
            ("backend_name", backend.1),
            ("backend_port", &self.port),
            ("source_namespace", namespace),
            ("source_workload", source),
        ]
    }
}

fn sum<S>(slots: &[Arc<S>], cell: impl Fn(&S) -> &AtomicU64) -> u64 {
    slots.iter().map(|slot| cell(slot).load(Relaxed)).fold(0, u64::wrapping_add)
}

const BOUND_TEXTS: [&str; BUCKETS.len()] = {
    let mut texts = [""; BUCKETS.len()];
    let mut i = 0;
    while i < texts.len() {
        texts[i] = BUCKETS[i].1;
        i += 1;
    }
    texts
};

#[derive(Default)]
struct Histogram {
    buckets: [u64; BUCKETS.len() + 1],
    nanos: u64,
}

impl Histogram {
    fn of(slots: &[Arc<Exchange>]) -> Self {
        let buckets = std::array::from_fn(|i| sum(slots, |p| &p.buckets[i]));
        Self { buckets, nanos: sum(slots, |p| &p.nanos) }
    }

    const fn shown(&self) -> (&[&'static str], &[u64], u64) {
        (&BOUND_TEXTS, &self.buckets, self.nanos)
    }

    fn add(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(a, b)| *a += b);
        self.nanos = self.nanos.wrapping_add(other.nanos);
    }
}

/// The two text formats differ little: OpenMetrics names a counter's family without `_total` and ends with `# EOF`.
struct Text {
    out: String,
    open: bool,
}

impl Text {
    fn family(&mut self, name: &str, help: &str, kind: &str) {
        // Text 0.0.4 has no info type.
        let (name, kind) = match kind {
            "info" if !self.open => (format!("{name}_info"), "gauge"),
            _ => (name.to_owned(), kind),
        };
        // Writing to a String does not fail, here and below.
        let _ = write!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn counter(&mut self, family: &str, help: &str) {
        if self.open {
            self.family(family, help, "counter");
        } else {
            self.family(&format!("{family}_total"), help, "counter");
        }
    }

    fn total(&mut self, family: &str, labels: &[(&str, &dyn Display)], value: u64) {
        self.sample(family, "_total", labels, &value);
    }

    fn line(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: &dyn Display) {
        self.sample(name, "", labels, value);
    }

    /// Bounds, how many in each bucket (one more than bounds), their sum in nanoseconds.
    fn histogram(
        &mut self,
        name: &str,
        labels: &[(&'static str, &dyn Display)],
        (bounds, buckets, nanos): (&[&'static str], &[u64], u64),
    ) {
        let mut labels = labels.to_vec();
        let mut count = 0;
        for (bucket, bound) in buckets.iter().zip(bounds.iter().chain([&"+Inf"])) {
            count += bucket;
            labels.push(("le", bound));
            self.sample(name, "_bucket", &labels, &count);
            labels.pop();
        }
        let seconds = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
        self.sample(name, "_sum", &labels, &seconds);
        self.sample(name, "_count", &labels, &count);
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: &[(&str, &dyn Display)], value: &dyn Display) {
        self.out.push_str(name);
        self.out.push_str(suffix);
        for (index, (label, value)) in labels.iter().enumerate() {
            let _ = write!(self.out, "{}{label}=\"", if index == 0 { '{' } else { ',' });
            let _ = write!(Quoted(&mut self.out), "{value}");
            self.out.push('"');
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }
}

/// Escapes a label's value: backslash, quote, line feed.
struct Quoted<'a>(&'a mut String);

impl Write for Quoted<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for c in text.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
