use super::*;
use crate::{
    error::Reason,
    telemetry::{
        config::AccessLogOutput,
        fixtures::{Exchange, peer},
        metrics::Registry,
        writer::Writer,
    },
};
use std::{fs, time::Duration};

fn worker(sampler: Option<Sampler>, log: Option<(Sink, AccessLogConfig)>) -> Rc<WorkerTelemetry> {
    let registry = Arc::new(Registry::new(10, Duration::from_secs(60)));
    WorkerTelemetry::new(Parts { counters: Arc::default(), handles: Handles::new(0, registry), sampler, log })
}

/// How many lines 400 requests leave.
async fn lines(success_ratio: f64, code: u16, reason: Option<Reason>) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let writer = Writer::start(&AccessLogOutput::File(path.clone())).unwrap().unwrap();
    let config = AccessLogConfig { success_ratio, ..AccessLogConfig::default() };
    let worker = worker(None, Some((writer.sink(), config)));
    let exchange = Exchange::new();
    let trace = worker.start(&HeaderMap::new(), false);
    for _ in 0..400 {
        let record = RequestRecord { trace: &trace, code, reason, ..exchange.record() };
        worker.finish(&record, RequestSpan::None);
    }
    writer.stop().await;
    fs::read_to_string(path).unwrap().lines().count()
}

#[tokio::test]
async fn successes_are_thinned_out_failures_never() {
    assert_eq!(lines(1.0, 200, None).await, 400);
    assert_eq!(lines(0.0, 200, None).await, 0);
    assert_eq!(lines(0.0, 503, None).await, 400);
    assert_eq!(lines(0.0, 404, Some(Reason::NoRoute)).await, 400);
    let half = lines(0.5, 200, None).await;
    // 400 draws of one half: beyond ±100 is ten standard deviations away.
    assert!((100..300).contains(&half), "{half}");
}

#[test]
fn what_nobody_wants_is_not_kept() {
    let off = worker(None, None);
    let trace = off.start(&HeaderMap::new(), false);
    assert!(!off.wants_head(&trace) && !off.logs());
    let recording = worker(Some(Sampler::new(1.0, true)), None);
    assert!(recording.wants_head(&recording.start(&HeaderMap::new(), false)));
    off.connection(&ConnectionRecord::new(Direction::Inbound, "tcp", peer()));
}

#[test]
fn guards_count_both_ends() {
    let worker = worker(None, None);
    let ends = || {
        [
            Counter::RequestsStartedMesh,
            Counter::RequestsEndedMesh,
            Counter::ConnectionsOpenedGateway,
            Counter::ConnectionsClosedGateway,
            Counter::TunnelsOpenedServer,
            Counter::TunnelsClosedServer,
        ]
        .map(|counter| worker.counters.get(counter))
    };
    let open = (
        worker.request_started(Direction::Mesh),
        worker.connection_opened(Direction::Gateway),
        worker.tunnel_opened(TunnelSide::Server),
    );
    assert_eq!(ends(), [1, 0, 1, 0, 1, 0]);
    drop(open);
    assert_eq!(ends(), [1; 6]);
}

#[test]
fn ids_differ_between_requests_and_workers() {
    let workers = [worker(None, None), worker(None, None)];
    let mut ids: Vec<u128> = workers
        .iter()
        .flat_map(|w| (0..1000).map(|_| w.start(&HeaderMap::new(), false).trace_id.get()))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 2000);
}
