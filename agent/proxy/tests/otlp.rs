//! Spans from two workers, through the real OTLP exporter, to a gRPC collector in this process. One test, since the
//! `tracing` subscriber is the process's.
#![allow(clippy::unwrap_used, reason = "clippy does not see that helpers of a test are tests")]

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::any_value::Value,
    trace::v1::{ResourceSpans, Span, span::SpanKind, status::StatusCode},
};
use parking_lot::Mutex;
use prost::Message;
use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr, sync::Arc, thread, time::Duration};
use tokio::net::TcpListener;
use weft_core::model::{MtlsMode, ObjectKey, SpiffeId, Workload};
use weft_proxy::{
    error::Reason,
    telemetry::{
        AccessLogConfig, AccessLogOutput, Direction, RequestHead, RequestRecord, Telemetry, TelemetryConfig,
        TraceConfig, TryRecord, WorkerTelemetry, init,
    },
};

type Received = Arc<Mutex<Vec<ResourceSpans>>>;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// A collector: OTLP's one method over HTTP/2, without a gRPC library.
async fn collector() -> (SocketAddr, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, received) = (listener.local_addr().unwrap(), Received::default());
    let all = received.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let all = all.clone();
            let service = service_fn(move |request| collect(request, all.clone()));
            let server = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    (addr, received)
}

async fn collect(
    request: Request<Incoming>,
    all: Received,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    assert_eq!(request.uri().path(), "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    // A flag, a length, a message.
    all.lock().extend(ExportTraceServiceRequest::decode(&body[5..]).unwrap().resource_spans);
    let answer = ExportTraceServiceResponse::default().encode_to_vec();
    let mut frame = vec![0];
    frame.extend_from_slice(&(answer.len() as u32).to_be_bytes());
    frame.extend_from_slice(&answer);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from(frame)).with_trailers(async move { Some(Ok(trailers)) });
    Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
}

fn workload(name: &str) -> Arc<Workload> {
    Arc::new(Workload {
        pod: ObjectKey::new("shop", format!("{name}-1")),
        ips: Vec::new(),
        identity: SpiffeId::new("cluster.local", "shop", name),
        node: Some("node-1".into()),
        enrolled: true,
        labelled: true,
        tunnel: weft_core::model::TunnelPort::default(),
        mode: MtlsMode::Strict,
        app: name.into(),
        probes: Arc::default(),
    })
}

fn peer() -> SocketAddr {
    ([10, 0, 0, 7], 4711).into()
}

/// One request with a retry, on behalf of `source`. Returns the `traceparent` that each try sent.
fn exchange(worker: &WorkerTelemetry, source: &Arc<Workload>, traceparent: Option<&str>) -> [String; 2] {
    let mut request = Request::builder().uri("/cart").header("host", "shop.example");
    if let Some(parent) = traceparent {
        request = request.header("traceparent", parent).header("tracestate", "other=1");
    }
    let (mut parts, ()) = request.body(()).unwrap().into_parts();
    let trace = worker.start(&parts.headers, false);
    let head = RequestHead::of(&parts, false);
    let server = worker.server_span(&trace, source);
    let mut record = RequestRecord {
        head: Some(&head),
        source: Some(source),
        ..RequestRecord::new(Direction::Mesh, &trace, peer())
    };
    let outcomes = [(None, Some(Reason::ConnectFailed)), (Some(200), None)];
    let mut sent = [const { String::new() }; 2];
    for (index, (code, reason)) in outcomes.into_iter().enumerate() {
        let attempt = worker.try_span(&server);
        attempt.inject(&trace, &mut parts.headers);
        sent[index] = parts.headers["traceparent"].to_str().unwrap().to_owned();
        let endpoint = ([10, 0, 0, 9], 80).into();
        let resend = index as u32;
        let outcome = TryRecord { endpoint, identity: None, code, grpc_status: None, reason, resend };
        attempt.finish_try(&record, &outcome);
    }
    (record.code, record.tries) = (200, 2);
    worker.finish(&record, server);
    sent
}

/// A request that is not recorded, one that is cancelled, and a span of the agent's own.
fn others(worker: &WorkerTelemetry, source: &Arc<Workload>) {
    let denied = format!("00-{TRACE}-{CALLER}-00");
    let sent = exchange(worker, source, Some(&denied));
    assert_eq!(sent, [denied.clone(), denied]);
    let cancelled = worker.start(&HeaderMap::new(), false);
    drop(worker.server_span(&cancelled, source));
    drop(tracing::info_span!("ordinary").entered());
}

fn run(telemetry: &Arc<Telemetry>) -> [String; 2] {
    let work = |name: &'static str, parent: Option<String>| {
        let telemetry = telemetry.clone();
        thread::spawn(move || {
            let worker = telemetry.worker();
            let source = workload(name);
            let sent = exchange(&worker, &source, parent.as_deref());
            if name == "cart" {
                others(&worker, &source);
            }
            sent
        })
    };
    let web = work("web", Some(format!("00-{TRACE}-{CALLER}-01")));
    work("cart", None).join().unwrap();
    web.join().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Spans by `service.name`, after checking the rest of each resource.
fn by_service(all: &[ResourceSpans]) -> BTreeMap<String, Vec<Span>> {
    let mut out: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    for one in all {
        let attributes: BTreeMap<&str, &str> =
            one.resource.as_ref().unwrap().attributes.iter().fold(BTreeMap::new(), |mut map, kv| {
                if let Some(Value::StringValue(text)) = kv.value.as_ref().and_then(|v| v.value.as_ref()) {
                    map.insert(&*kv.key, &**text);
                }
                map
            });
        let service = attributes["service.name"];
        assert_eq!(attributes["k8s.pod.name"], format!("{service}-1"));
        assert_eq!(attributes["k8s.namespace.name"], "shop");
        assert_eq!(attributes["service.namespace"], "shop");
        assert_eq!(attributes["k8s.node.name"], "node-1");
        assert_eq!(attributes["k8s.cluster.name"], "east");
        let spans = one.scope_spans.iter().flat_map(|s| s.spans.clone());
        out.entry(service.to_owned()).or_default().extend(spans);
    }
    out
}

fn of_kind(spans: &[Span], kind: SpanKind) -> Vec<&Span> {
    spans.iter().filter(|s| s.kind == kind as i32).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn spans_arrive_under_their_workload_with_their_parents() {
    let (addr, received) = collector().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let config = TelemetryConfig {
        trace: TraceConfig {
            endpoint: Some(format!("http://{addr}")),
            ratio: 1.0,
            resource: vec![("k8s.cluster.name".into(), "east".into())],
            ..TraceConfig::default()
        },
        access_log: AccessLogConfig {
            output: AccessLogOutput::File(path.clone()),
            ..AccessLogConfig::default()
        },
        ..TelemetryConfig::default()
    };
    let telemetry = init(config).unwrap();
    let shared = telemetry.clone();
    let sent = tokio::task::spawn_blocking(move || run(&shared)).await.unwrap();
    assert!(telemetry.shutdown(Duration::from_secs(30)).await, "everything got out in time");

    let services = by_service(&received.lock());
    assert_eq!(services.keys().collect::<Vec<_>>(), ["cart", "web"]);
    continued_trace(&services["web"], &sent);
    // A new trace with both tries, and the cancelled request; neither the unrecorded one nor the ordinary span.
    let cart = &services["cart"];
    assert_eq!((of_kind(cart, SpanKind::Server).len(), of_kind(cart, SpanKind::Client).len()), (2, 2));
    assert!(of_kind(cart, SpanKind::Server).iter().all(|s| s.parent_span_id.is_empty()));

    let metrics = telemetry.render_metrics(false);
    assert!(metrics.contains("\nweft_spans_exported_total 7\n"), "{metrics}");
    assert!(metrics.contains("\nweft_spans_dropped_total 0\n"));
    let log = std::fs::read_to_string(path).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    let web = lines.iter().find(|l| l["source_workload"] == "web").unwrap();
    let server = of_kind(&services["web"], SpanKind::Server)[0];
    assert_eq!(web["trace_id"], hex(&server.trace_id));
    assert_eq!(web["span_id"], hex(&server.span_id));
}

fn continued_trace(spans: &[Span], sent: &[String; 2]) {
    let ([server], [first, second]) =
        (&of_kind(spans, SpanKind::Server)[..], &of_kind(spans, SpanKind::Client)[..])
    else {
        panic!("one request, two tries: {spans:?}")
    };
    assert_eq!((hex(&server.trace_id), hex(&server.parent_span_id)), (TRACE.into(), CALLER.into()));
    assert_eq!(server.trace_state, "other=1");
    assert_eq!(server.name, "GET");
    for (span, sent) in [first, second].into_iter().zip(sent) {
        assert_eq!(span.parent_span_id, server.span_id);
        assert_eq!(*sent, format!("00-{TRACE}-{}-01", hex(&span.span_id)));
        assert!(span.start_time_unix_nano >= server.start_time_unix_nano);
    }
    let code = |span: &Span| span.status.as_ref().map(|s| s.code()).unwrap_or_default();
    assert_eq!(
        [code(server), code(first), code(second)],
        [StatusCode::Unset, StatusCode::Error, StatusCode::Unset]
    );
    let key = |span: &Span, name: &str| span.attributes.iter().any(|kv| kv.key == name);
    assert!(key(second, "http.request.resend_count") && !key(first, "http.request.resend_count"));
    assert!(!spans.iter().any(|s| s.attributes.iter().any(|kv| kv.key.starts_with("weft.private"))));
}
