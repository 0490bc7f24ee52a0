use super::*;
use crate::telemetry::{attributes::private, fixtures::workload};
use opentelemetry::{
    InstrumentationScope, Key,
    trace::{SpanContext, SpanKind, Status},
};
use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};
use parking_lot::Mutex;
use std::time::SystemTime;

fn span(namespace: &str, pod: &str, name: &'static str) -> SpanData {
    let mut attributes = vec![KeyValue::new("url.path", "/")];
    attributes.extend(private(&workload(namespace, pod, pod)));
    SpanData {
        span_context: SpanContext::empty_context(),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Server,
        name: name.into(),
        start_time: SystemTime::UNIX_EPOCH,
        end_time: SystemTime::UNIX_EPOCH,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::default(),
    }
}

/// What a collector would have got: (service.name, span names).
type Exported = Arc<Mutex<Vec<(String, Vec<String>)>>>;

#[derive(Debug)]
struct Collector {
    got: Exported,
    service: String,
    fail: bool,
}

impl SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let names = batch.into_iter().map(|s| s.name.into_owned()).collect();
        self.got.lock().push((self.service.clone(), names));
        if self.fail { Err(OTelSdkError::InternalFailure("no".into())) } else { Ok(()) }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.service = resource.get(&Key::new("service.name")).unwrap().to_string();
    }
}

async fn exported(
    spans: Vec<SpanData>,
    config: TraceConfig,
    fail: bool,
) -> (Vec<(String, Vec<String>)>, Arc<Stats>) {
    let (queue, receiver) = Queue::new(config.queue_max);
    let (stats, sender, got) = (queue.stats(), queue.sender(), Exported::default());
    spans.into_iter().for_each(|span| queue.on_end(span));
    let collector = Collector { got: got.clone(), service: String::new(), fail };
    let task = tokio::spawn(run(collector, receiver, config, stats.clone()));
    let (done, wait) = oneshot::channel();
    sender.send(Message::Flush(done)).await.unwrap();
    wait.await.unwrap();
    drop((queue, sender));
    task.await.unwrap();
    let got = got.lock().clone();
    (got, stats)
}

fn config(queue_max: usize, batch_max: usize) -> TraceConfig {
    TraceConfig { queue_max, batch_max, interval: Duration::from_secs(3600), ..TraceConfig::default() }
}

#[test]
fn a_batch_is_grouped_by_workload_and_stripped() {
    let groups = group(vec![span("a", "x", "1"), span("b", "x", "2"), span("a", "x", "3")]);
    let names: Vec<Vec<_>> = groups.iter().map(|(_, s)| s.iter().map(|s| &*s.name).collect()).collect();
    assert_eq!(names, [vec!["1", "3"], vec!["2"]]);
    for span in groups.iter().flat_map(|(_, spans)| spans) {
        assert_eq!(span.attributes, [KeyValue::new("url.path", "/")]);
    }
}

#[test]
fn the_resource_is_the_workload() {
    let names = ["shop", "web-1", "web", "node-1"].map(Value::from);
    let shared =
        [("k8s.cluster.name".to_owned(), "east".to_owned()), ("service.name".to_owned(), "weft".to_owned())];
    let resource = resource(&names, &shared);
    let expected = [
        ("service.name", "web"),
        ("service.namespace", "shop"),
        ("k8s.namespace.name", "shop"),
        ("k8s.pod.name", "web-1"),
        ("k8s.node.name", "node-1"),
        ("k8s.cluster.name", "east"),
    ];
    for (key, value) in expected {
        assert_eq!(resource.get(&Key::new(key)).map(|v| v.to_string()).as_deref(), Some(value), "{key}");
    }
}

#[tokio::test]
async fn a_flush_exports_what_is_there() {
    let (got, stats) = exported(vec![span("a", "x", "1"), span("b", "y", "2")], config(10, 10), false).await;
    assert_eq!(got, [("x".into(), vec!["1".into()]), ("y".into(), vec!["2".into()])]);
    assert_eq!(stats.exported.load(Relaxed), 2);
}

#[tokio::test]
async fn batches_are_bounded() {
    let spans = ["1", "2", "3", "4", "5"].map(|n| span("a", "x", n)).into();
    let (got, _) = exported(spans, config(10, 2), false).await;
    assert_eq!(got.iter().map(|(_, names)| names.len()).collect::<Vec<_>>(), [2, 2, 1]);
}

#[tokio::test]
async fn a_full_queue_drops_and_counts() {
    let spans = ["1", "2", "3"].map(|n| span("a", "x", n)).into();
    let (got, stats) = exported(spans, config(2, 10), false).await;
    assert_eq!(got, [("x".into(), vec!["1".into(), "2".into()])]);
    assert_eq!(stats.dropped.load(Relaxed), 1);
}

#[tokio::test]
async fn a_failed_export_is_counted_and_not_the_end() {
    let spans = ["1", "2", "3"].map(|n| span("a", "x", n)).into();
    let (got, stats) = exported(spans, config(10, 2), true).await;
    assert_eq!(got.len(), 2);
    assert_eq!((stats.failed.load(Relaxed), stats.exported.load(Relaxed)), (3, 0));
}
