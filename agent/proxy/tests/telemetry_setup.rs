//! Setting telemetry up with what an operator may get wrong. One test: the `tracing` subscriber is the process's.

use http::HeaderMap;
use nix::sys::signal::{Signal, raise};
use std::time::Duration;
use weft_proxy::telemetry::{
    AccessLogConfig, AccessLogOutput, InitError, LogConfig, TelemetryConfig, TraceConfig, init,
};

fn config() -> TelemetryConfig {
    TelemetryConfig::default()
}

#[tokio::test]
async fn what_is_wrong_is_said_and_a_bad_collector_stops_nothing() {
    let log = LogConfig { filter: "=[".into(), json: true };
    assert!(matches!(init(TelemetryConfig { log, ..config() }), Err(InitError::Filter { .. })));
    let output = AccessLogOutput::File("/nowhere/at/all".into());
    let access_log = AccessLogConfig { output, ..AccessLogConfig::default() };
    assert!(matches!(init(TelemetryConfig { access_log, ..config() }), Err(InitError::AccessLog(_))));

    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("access.log");
    let output = AccessLogOutput::File(path.clone());
    let access_log = AccessLogConfig { output, ..AccessLogConfig::default() };
    let endpoint = Some("not a uri".into());
    let trace = TraceConfig { endpoint, ratio: 1.0, ..TraceConfig::default() };
    let telemetry = init(TelemetryConfig { trace, access_log, ..config() })
        .expect("traffic does not wait for a collector");
    let worker = telemetry.worker();
    let trace = worker.start(&HeaderMap::new(), false);
    let mut upstream = HeaderMap::new();
    trace.inject(&mut upstream);
    assert!(!trace.sampled && upstream.is_empty());
    assert!(matches!(init(config()), Err(InitError::Twice)));

    std::fs::rename(&path, dir.path().join("access.log.1")).expect("rotated");
    raise(Signal::SIGHUP).expect("our own signal");
    while !path.exists() {
        tokio::task::yield_now().await;
    }
    assert!(telemetry.shutdown(Duration::from_secs(30)).await);
}
