//! From ended spans to the collector: a bounded queue, one task, and one `ResourceSpans` for each workload.
//!
//! The SDK's provider has one resource; a node's spans belong to many pods. So spans carry private attributes that
//! name their workload, and a batch is grouped by them, stripped and exported group by group under that workload's
//! resource.

use super::{attributes::PRIVATE, config::TraceConfig, span::next_ids};
use opentelemetry::{
    Context, KeyValue, Value,
    trace::{SpanId, TraceId},
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{IdGenerator, RandomIdGenerator, Span, SpanData, SpanExporter, SpanProcessor},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};

/// Spans exported, dropped because the queue was full, and lost by a failed export.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) exported: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) failed: AtomicU64,
}

/// What waits for the task.
#[derive(Debug)]
pub(super) enum Message {
    Span(Box<SpanData>),
    /// Export all that came before, then answer.
    Flush(oneshot::Sender<()>),
}

/// The SDK's end of the queue. Never blocks.
#[derive(Debug)]
pub(super) struct Queue {
    sender: mpsc::Sender<Message>,
    stats: Arc<Stats>,
}

impl Queue {
    pub(super) fn new(max: usize) -> (Self, mpsc::Receiver<Message>) {
        let (sender, receiver) = mpsc::channel(max.max(1));
        (Self { sender, stats: Arc::default() }, receiver)
    }

    pub(super) fn stats(&self) -> Arc<Stats> {
        self.stats.clone()
    }

    pub(super) fn sender(&self) -> mpsc::Sender<Message> {
        self.sender.clone()
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.sender.try_send(Message::Span(Box::new(span))).is_err() {
            self.stats.dropped.fetch_add(1, Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        // Flushing waits, and this may be called anywhere: see `Telemetry::shutdown`.
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Hands out the ids that were decided before the span.
#[derive(Debug, Default)]
pub(super) struct DecidedIds(RandomIdGenerator);

impl IdGenerator for DecidedIds {
    fn new_trace_id(&self) -> TraceId {
        next_ids().map_or_else(|| self.0.new_trace_id(), |(trace, _)| trace.into())
    }

    fn new_span_id(&self) -> SpanId {
        next_ids().map_or_else(|| self.0.new_span_id(), |(_, span)| span.into())
    }
}

/// The task: batches and exports until every sender is gone.
pub(super) async fn run(
    mut exporter: impl SpanExporter,
    mut queue: mpsc::Receiver<Message>,
    config: TraceConfig,
    stats: Arc<Stats>,
) {
    let mut flushes: Vec<oneshot::Sender<()>> = Vec::new();
    let mut failing = false;
    loop {
        let (batch, closed) = gather(&mut queue, &config, &mut flushes).await;
        for (workload, spans) in group(batch) {
            let count = spans.len() as u64;
            exporter.set_resource(&resource(&workload, &config.resource));
            let result = timeout(config.timeout, exporter.export(spans)).await;
            let result = result.unwrap_or(Err(OTelSdkError::Timeout(config.timeout)));
            let counter = if result.is_ok() { &stats.exported } else { &stats.failed };
            counter.fetch_add(count, Relaxed);
            tell(&mut failing, result);
        }
        for done in flushes.drain(..) {
            // Whoever waits may have given up.
            let _: Result<(), ()> = done.send(());
        }
        if closed {
            return;
        }
    }
}

/// Logs when the collector goes away and when it is back, not each lost batch: those are counted.
fn tell(failing: &mut bool, result: OTelSdkResult) {
    match (result, *failing) {
        (Err(error), false) => tracing::warn!(%error, "cannot export spans; they are counted as failed"),
        (Ok(()), true) => tracing::info!("spans are exported again"),
        (Err(_), true) | (Ok(()), false) => return,
    }
    *failing = !*failing;
}

/// Waits for a first span, then for a full batch, the interval or a flush. Whether the queue is closed.
async fn gather(
    queue: &mut mpsc::Receiver<Message>,
    config: &TraceConfig,
    flushes: &mut Vec<oneshot::Sender<()>>,
) -> (Vec<SpanData>, bool) {
    let mut batch = Vec::new();
    let mut until = None;
    while batch.len() < config.batch_max {
        let message = match until {
            None => queue.recv().await,
            Some(end) => match timeout_at(end, queue.recv()).await {
                Ok(message) => message,
                Err(_) => return (batch, false),
            },
        };
        match message {
            Some(Message::Span(span)) => batch.push(*span),
            Some(Message::Flush(done)) => {
                flushes.push(done);
                return (batch, false);
            }
            None => return (batch, true),
        }
        until.get_or_insert_with(|| Instant::now() + config.interval);
    }
    (batch, false)
}

/// Namespace, pod, app, node: in the order of [`PRIVATE`].
type Names = [Value; 4];

/// Spans by workload, without the private attributes. Order within a workload is kept.
fn group(batch: Vec<SpanData>) -> Vec<(Names, Vec<SpanData>)> {
    let mut groups: BTreeMap<[String; 4], (Names, Vec<SpanData>)> = BTreeMap::new();
    for mut span in batch {
        let mut names: Names = std::array::from_fn(|_| Value::from(""));
        span.attributes.retain(|attribute| {
            let private = PRIVATE.iter().position(|key| attribute.key.as_str() == *key);
            if let Some(index) = private {
                names[index] = attribute.value.clone();
            }
            private.is_none()
        });
        let key = std::array::from_fn(|i| names[i].to_string());
        groups.entry(key).or_insert_with(|| (names, Vec::new())).1.push(span);
    }
    groups.into_values().collect()
}

/// The workload as OpenTelemetry's Kubernetes conventions name it, over what all share.
fn resource(names: &Names, shared: &[(String, String)]) -> Resource {
    let [namespace, pod, app, node] = names;
    let own = [
        ("service.name", app),
        ("service.namespace", namespace),
        ("k8s.namespace.name", namespace),
        ("k8s.pod.name", pod),
        ("k8s.node.name", node),
    ];
    let shared = shared.iter().map(|(k, v)| KeyValue::new(k.clone(), v.clone()));
    let own =
        own.into_iter().filter(|(_, v)| !v.as_str().is_empty()).map(|(k, v)| KeyValue::new(k, v.clone()));
    let sdk = [
        KeyValue::new("telemetry.sdk.name", "opentelemetry"),
        KeyValue::new("telemetry.sdk.language", "rust"),
        KeyValue::new("telemetry.distro.name", "weft"),
    ];
    Resource::builder_empty().with_attributes(shared.chain(sdk).chain(own)).build()
}

#[cfg(test)]
mod tests;
