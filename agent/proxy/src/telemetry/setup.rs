//! Telemetry of the process: the global `tracing` subscriber, the exporter's task, the writer's thread, the registry.

use super::{
    config::{AccessLogOutput, LogConfig, TelemetryConfig, TraceConfig},
    counters::Counters,
    export::{DecidedIds, Message, Queue, Stats, run},
    expose::{self, ContentType, View},
    metrics::{Handles, Registry},
    span::TARGET,
    worker::{Parts, WorkerTelemetry},
    writer::Writer,
};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::trace::{Sampler as SdkSampler, SdkTracerProvider};
use parking_lot::Mutex;
use std::{
    io::{self, IsTerminal},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tracing::{Dispatch, Level};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, LevelFilter, filter_fn},
    fmt::layer as fmt_layer,
    layer::SubscriberExt,
};

/// Why telemetry cannot start. All are the operator's to mend; none is worth a retry.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The log filter does not parse.
    #[error("log filter \"{filter}\": {source}")]
    Filter {
        /// As configured.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The access log cannot be opened.
    #[error("access log: {0}")]
    AccessLog(#[source] io::Error),
    /// Another subscriber is in place.
    #[error("telemetry was started twice")]
    Twice,
}

/// The process's telemetry.
#[derive(Debug)]
pub struct Telemetry {
    config: TelemetryConfig,
    registry: Arc<Registry>,
    workers: Mutex<Vec<Arc<Counters>>>,
    spans: Option<Spans>,
    writer: Option<Arc<Writer>>,
    /// Opens the access log anew on SIGHUP; aborted on shutdown.
    hangup: Mutex<Option<JoinHandle<()>>>,
}

/// The way to the exporter's task.
#[derive(Debug)]
struct Spans {
    queue: mpsc::Sender<Message>,
    stats: Arc<Stats>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Starts telemetry and becomes the global `tracing` subscriber. Call it once, on the control runtime, which then
/// runs the exporter. The environment is not read here: see [`TraceConfig::with_env`]. An endpoint that cannot be used
/// is logged and leaves tracing off: traffic does not wait for it.
///
/// # Errors
/// See [`InitError`].
pub fn init(mut config: TelemetryConfig) -> Result<Arc<Telemetry>, InitError> {
    let export = export(&mut config.trace);
    let dispatch = subscriber(&config.log, export.provider)?;
    let telemetry = assemble(config, export.spans)?;
    tracing::dispatcher::set_global_default(dispatch).map_err(|_| InitError::Twice)?;
    if let Some((endpoint, error)) = export.problem {
        // Without a scheme the exporter takes https, which is not built in.
        let remedy = "write http://HOST:4317 (no TLS) and restart";
        tracing::error!(endpoint, %error, remedy, "no spans are exported: the trace endpoint cannot be used");
    }
    Ok(telemetry)
}

/// How spans get out, if they do.
#[derive(Default)]
struct Export {
    provider: Option<SdkTracerProvider>,
    spans: Option<Spans>,
    /// An endpoint that cannot be used, and why.
    problem: Option<(String, ExporterBuildError)>,
}

/// Starts the export. An endpoint that cannot be used is taken out of the configuration.
fn export(config: &mut TraceConfig) -> Export {
    let Some(endpoint) = config.endpoint.clone() else { return Export::default() };
    match start_export(&endpoint, config) {
        Ok((provider, spans)) => Export { provider: Some(provider), spans: Some(spans), problem: None },
        Err(error) => {
            config.endpoint = None;
            Export { problem: Some((endpoint, error)), ..Export::default() }
        }
    }
}

fn assemble(config: TelemetryConfig, spans: Option<Spans>) -> Result<Arc<Telemetry>, InitError> {
    let writer = Writer::start(&config.access_log.output).map_err(InitError::AccessLog)?.map(Arc::new);
    let telemetry = Telemetry {
        registry: Arc::new(Registry::new(config.metrics.series_max, config.metrics.idle)),
        workers: Mutex::default(),
        spans,
        hangup: Mutex::new(watch_hangup(&config, writer.clone())),
        writer,
        config,
    };
    Ok(Arc::new(telemetry))
}

fn start_export(
    endpoint: &str,
    config: &TraceConfig,
) -> Result<(SdkTracerProvider, Spans), ExporterBuildError> {
    let exporter =
        SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(config.timeout).build()?;
    let (queue, receiver) = Queue::new(config.queue_max);
    let (stats, sender) = (queue.stats(), queue.sender());
    let task = tokio::spawn(run(exporter, receiver, config.clone(), stats.clone()));
    let provider = SdkTracerProvider::builder()
        .with_span_processor(queue)
        // Decided long before; only recorded requests get a span at all.
        .with_sampler(SdkSampler::AlwaysOn)
        .with_id_generator(DecidedIds::default())
        .build();
    Ok((provider, Spans { queue: sender, stats, task: Mutex::new(Some(task)) }))
}

/// Ordinary spans and events go to the log by its filter; request spans go to OpenTelemetry only.
fn subscriber(log: &LogConfig, provider: Option<SdkTracerProvider>) -> Result<Dispatch, InitError> {
    let filter = EnvFilter::try_new(&log.filter)
        .map_err(|source| InitError::Filter { filter: log.filter.clone(), source })?;
    // The hint matters: without one the two together have none, and every `trace_span!` of h2 is asked about.
    let ordinary = filter_fn(|meta| meta.target() != TARGET).with_max_level_hint(LevelFilter::TRACE);
    let filter = filter.and(ordinary);
    let fmt = fmt_layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let fmt = if log.json { fmt.json().boxed() } else { fmt.boxed() };
    let log = tracing_subscriber::registry().with(fmt.with_filter(filter));
    // No `Option` of a layer here: a `None` counts as a layer that wants everything, and then the registry makes every
    // span of h2, a dozen a frame: a tenth of the agent's CPU.
    let Some(provider) = provider else { return Ok(Dispatch::new(log)) };
    let otel = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("weft"))
        .with_location(false)
        .with_threads(false)
        .with_level(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_context_activation(false)
        // By metadata alone and with a hint, so that every other callsite keeps its cached "no".
        .with_filter(
            filter_fn(|meta| meta.target() == TARGET && *meta.level() == Level::INFO)
                .with_max_level_hint(LevelFilter::INFO),
        );
    Ok(Dispatch::new(log.with(otel)))
}

fn watch_hangup(config: &TelemetryConfig, writer: Option<Arc<Writer>>) -> Option<JoinHandle<()>> {
    let writer = writer.filter(|_| matches!(config.access_log.output, AccessLogOutput::File(_)))?;
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => {
            tracing::warn!(%error, "SIGHUP will not reopen the access log");
            return None;
        }
    };
    Some(tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            writer.reopen();
        }
    }))
}

impl Telemetry {
    /// Telemetry that leaves the `tracing` subscriber of the process alone: for tests, and for a second data plane in
    /// one process. Call it inside a runtime if it exports or writes to a file.
    ///
    /// # Errors
    /// See [`InitError`].
    pub fn detached(mut config: TelemetryConfig) -> Result<Arc<Self>, InitError> {
        let export = export(&mut config.trace);
        assemble(config, export.spans)
    }

    /// The telemetry of one more worker. Call it on the worker's thread, once.
    #[must_use]
    pub fn worker(&self) -> Rc<WorkerTelemetry> {
        let counters = Arc::<Counters>::default();
        let mut workers = self.workers.lock();
        let index = workers.len();
        workers.push(counters.clone());
        drop(workers);
        WorkerTelemetry::new(Parts {
            counters,
            handles: Handles::new(index, self.registry.clone()),
            sampler: self.config.trace.sampler(),
            log: self.writer.as_ref().map(|writer| (writer.sink(), self.config.access_log.clone())),
        })
    }

    /// All metrics as text. Forgets idle series on the way.
    #[must_use]
    pub fn render_metrics(&self, openmetrics: bool) -> String {
        self.registry.sweep(Instant::now());
        let workers = self.workers.lock().clone();
        let format = if openmetrics { ContentType::OpenMetrics } else { ContentType::Text };
        let view = View { workers: &workers, registry: &self.registry, own: &self.own_counters() };
        expose::render(&view, format)
    }

    /// Connections of pods that are open now: from pods and to pods, without those of Gateways.
    #[must_use]
    pub fn open_connections(&self) -> u64 {
        use super::counters::Counter as C;
        let open = |counters: &Arc<Counters>| {
            // The end first: one that ends in between is counted as open, never as fewer than none.
            let closed = counters.get(C::ConnectionsClosedMesh) + counters.get(C::ConnectionsClosedInbound);
            let opened = counters.get(C::ConnectionsOpenedMesh) + counters.get(C::ConnectionsOpenedInbound);
            opened.saturating_sub(closed)
        };
        self.workers.lock().iter().map(open).sum()
    }

    fn own_counters(&self) -> [(&'static str, &'static str, u64); 5] {
        let stat = |pick: fn(&Stats) -> u64| self.spans.as_ref().map_or(0, |s| pick(&s.stats));
        let (lines, writes) = self.writer.as_ref().map_or((0, 0), |w| w.losses());
        [
            ("weft_spans_exported", "Spans handed to the collector.", stat(|s| s.exported.load(Relaxed))),
            ("weft_spans_dropped", "Spans dropped: the queue was full.", stat(|s| s.dropped.load(Relaxed))),
            ("weft_spans_failed", "Spans lost by a failed export.", stat(|s| s.failed.load(Relaxed))),
            ("weft_access_log_dropped", "Lines dropped: the writer was too slow.", lines),
            ("weft_access_log_failed_writes", "Writes of the access log that failed.", writes),
        ]
    }

    /// Opens the access log's file anew, as SIGHUP does.
    pub fn reopen_access_log(&self) {
        if let Some(writer) = &self.writer {
            writer.reopen();
        }
    }

    /// Exports and writes what is still here, at most until the deadline. Call it after the workers have ended.
    /// Whether everything got out.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        if let Some(task) = self.hangup.lock().take() {
            task.abort();
        }
        let spans = async {
            if let Some(spans) = &self.spans {
                spans.flush().await;
            }
        };
        let lines = async {
            if let Some(writer) = &self.writer {
                writer.stop().await;
            }
        };
        let in_time = timeout(deadline, async { tokio::join!(spans, lines) }).await.is_ok();
        if let Some(task) = self.spans.as_ref().and_then(|s| s.task.lock().take()) {
            task.abort();
        }
        in_time
    }
}

impl Spans {
    async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        // An error in either means that the task is gone: nothing left to flush.
        if self.queue.send(Message::Flush(done)).await.is_ok() {
            let _ = wait.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer that is absent once made every span of h2 real.
    #[test]
    fn spans_of_other_crates_cost_nothing() {
        let log = LogConfig { filter: "info".into(), json: false };
        let exporting = SdkTracerProvider::builder().build();
        for provider in [None, Some(exporting)] {
            let exports = provider.is_some();
            let dispatch = subscriber(&log, provider).unwrap();
            tracing::dispatcher::with_default(&dispatch, || {
                assert!(tracing::trace_span!("frame").is_disabled(), "exports: {exports}");
                assert!(tracing::debug_span!(parent: None, "Connection").is_disabled(), "exports: {exports}");
                let request = tracing::info_span!(target: TARGET, "request");
                assert_eq!(request.is_disabled(), !exports, "request spans are for the exporter only");
            });
        }
    }
}
