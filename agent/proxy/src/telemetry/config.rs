//! What telemetry does: from the agent's own configuration, and over it the `OTEL_*` environment.

use super::trace::Sampler;
use std::{path::PathBuf, time::Duration};

/// Everything that [`super::init`] needs.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// The agent's own log, on standard error.
    pub log: LogConfig,
    /// Spans.
    pub trace: TraceConfig,
    /// The access log.
    pub access_log: AccessLogConfig,
    /// Counters.
    pub metrics: MetricsConfig,
}

/// The agent's own log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Filter directives of `tracing-subscriber`, e.g. `info,weft_proxy=debug`.
    pub filter: String,
    /// JSON lines instead of text.
    pub json: bool,
}

/// Spans and their export.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceConfig {
    /// OTLP gRPC endpoint, e.g. `http://jaeger:4317`. `None`: nothing is recorded, headers pass untouched.
    pub endpoint: Option<String>,
    /// Share of new traces that is recorded, 0–1.
    pub ratio: f64,
    /// Whether an incoming trace's flag decides instead.
    pub parent_based: bool,
    /// Ended spans waiting for export; more are dropped and counted.
    pub queue_max: usize,
    /// Spans in one export.
    pub batch_max: usize,
    /// Longest wait of an ended span before its export.
    pub interval: Duration,
    /// Deadline of one export.
    pub timeout: Duration,
    /// Resource attributes that every workload shares (`k8s.cluster.name`, `OTEL_RESOURCE_ATTRIBUTES`).
    pub resource: Vec<(String, String)>,
}

/// The access log.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLogConfig {
    /// Where to.
    pub output: AccessLogOutput,
    /// Whether paths keep their query, which may hold secrets.
    pub query: bool,
    /// Share of successful requests that is logged, 0–1. Failures are always logged.
    pub success_ratio: f64,
    /// Bytes that may wait for the writer, per worker; more are dropped and counted.
    pub buffer_max: usize,
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogOutput {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// A file, appended to and opened anew on SIGHUP.
    File(PathBuf),
}

/// Counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsConfig {
    /// Most series of one family; further label values are counted under `overflow`.
    pub series_max: usize,
    /// A series that did not move for so long is forgotten.
    pub idle: Duration,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            log: LogConfig { filter: "info".into(), json: false },
            trace: TraceConfig::default(),
            access_log: AccessLogConfig::default(),
            metrics: MetricsConfig::default(),
        }
    }
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            ratio: 0.01,
            parent_based: true,
            queue_max: 4096,
            batch_max: 512,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            resource: Vec::new(),
        }
    }
}

impl Default for AccessLogConfig {
    fn default() -> Self {
        Self { output: AccessLogOutput::Off, query: false, success_ratio: 1.0, buffer_max: 1 << 20 }
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { series_max: 5_000, idle: Duration::from_secs(3600) }
    }
}

impl TraceConfig {
    /// Lays the `OTEL_*` environment over this, as the OpenTelemetry specification says, and returns what of it cannot
    /// be done. `var` reads one variable; empty counts as unset.
    #[must_use]
    pub fn with_env(mut self, var: impl Fn(&str) -> Option<String>) -> (Self, Vec<String>) {
        let var = |name: &str| var(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let either = |what: &str| {
            var(&format!("OTEL_EXPORTER_OTLP_TRACES_{what}"))
                .or_else(|| var(&format!("OTEL_EXPORTER_OTLP_{what}")))
        };
        let mut problems = Vec::new();
        self.endpoint = either("ENDPOINT").or(self.endpoint);
        if let Some(protocol) = either("PROTOCOL").filter(|p| p != "grpc") {
            problems.push(format!(
                "OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: only grpc is spoken (port 4317); no spans are exported"
            ));
            self.endpoint = None;
        }
        self.limits(&var, &either, &mut problems);
        self.sampler_env(&var, &mut problems);
        if let Some(list) = var("OTEL_RESOURCE_ATTRIBUTES") {
            let pairs = list.split(',').filter_map(|pair| pair.split_once('='));
            self.resource.extend(pairs.map(|(k, v)| (k.trim().to_owned(), decode(v.trim()))));
        }
        if var("OTEL_TRACES_EXPORTER").is_some_and(|v| v == "none")
            || var("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"))
        {
            self.endpoint = None;
        }
        (self, problems)
    }

    fn limits(
        &mut self,
        var: &impl Fn(&str) -> Option<String>,
        either: &impl Fn(&str) -> Option<String>,
        problems: &mut Vec<String>,
    ) {
        let mut number = |name: &str, text: Option<String>| {
            let text = text?;
            let value = text.parse::<u64>().ok().filter(|n| *n > 0);
            if value.is_none() {
                problems.push(format!("{name}={text}: not a positive number; ignored"));
            }
            value
        };
        let millis = Duration::from_millis;
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(1 << 20);
        let queue = number("OTEL_BSP_MAX_QUEUE_SIZE", var("OTEL_BSP_MAX_QUEUE_SIZE"));
        let batch = number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", var("OTEL_BSP_MAX_EXPORT_BATCH_SIZE"));
        let delay = number("OTEL_BSP_SCHEDULE_DELAY", var("OTEL_BSP_SCHEDULE_DELAY"));
        let timeout = number("OTEL_EXPORTER_OTLP_TIMEOUT", either("TIMEOUT"));
        self.queue_max = queue.map_or(self.queue_max, size);
        self.batch_max = batch.map_or(self.batch_max, size).min(self.queue_max);
        self.interval = delay.map_or(self.interval, millis);
        self.timeout = timeout.map_or(self.timeout, millis);
    }

    fn sampler_env(&mut self, var: &impl Fn(&str) -> Option<String>, problems: &mut Vec<String>) {
        let Some(name) = var("OTEL_TRACES_SAMPLER") else { return };
        let arg = var("OTEL_TRACES_SAMPLER_ARG");
        let ratio = arg.as_deref().map_or(Ok(1.0), str::parse::<f64>);
        let base = name.strip_prefix("parentbased_").unwrap_or(&name);
        let ratio = match (base, ratio) {
            ("always_on", _) => 1.0,
            ("always_off", _) => 0.0,
            ("traceidratio", Ok(ratio)) if (0.0..=1.0).contains(&ratio) => ratio,
            _ => {
                problems.push(format!(
                    "OTEL_TRACES_SAMPLER={name} with OTEL_TRACES_SAMPLER_ARG={}: not known; ignored",
                    arg.unwrap_or_default()
                ));
                return;
            }
        };
        self.ratio = ratio;
        self.parent_based = name.starts_with("parentbased_");
    }

    /// The sampler, when there is somewhere to export to.
    #[must_use]
    pub(super) fn sampler(&self) -> Option<Sampler> {
        self.endpoint.as_ref().map(|_| Sampler::new(self.ratio, self.parent_based))
    }
}

/// Percent-decodes a value of `OTEL_RESOURCE_ATTRIBUTES` (W3C baggage's form).
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let pair = bytes.get(at + 1..at + 3).and_then(|p| std::str::from_utf8(p).ok());
        match pair.filter(|_| bytes[at] == b'%').and_then(|p| u8::from_str_radix(p, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests;
