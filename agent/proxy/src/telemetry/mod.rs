//! What can be seen of the data plane: traces, metrics and the access log.
//!
//! [`Telemetry`] is the process's, one `Arc`; [`WorkerTelemetry`] is a worker's, one `Rc`, and is all that the request
//! path touches: no lock, no shared cache line, no allocation for a request that is neither recorded nor logged.
//!
//! ```text
//! let trace = worker.start(&parts.headers);
//! let active = worker.request_started(Direction::Mesh);                  // gauge, until dropped
//! let head = worker.wants_head(&trace).then(|| RequestHead::of(&parts, https));
//! let server = worker.server_span(&trace, &source.workload);             // RequestSpan::None if not recorded
//! let attempt = worker.try_span(&server);                                // one for each try
//! attempt.inject(&trace, &mut upstream_headers);                         // traceparent, and B3 if B3 came in
//! let record = RequestRecord { head: head.as_ref(), code: 200, ..RequestRecord::new(Direction::Mesh, &trace, peer) };
//! attempt.finish_try(&record, &TryRecord { .. });
//! worker.finish(&record, server);                                        // metrics, span, access log
//! ```
//!
//! Applications must hand on `traceparent` from what they receive to what they send; no proxy can do that for them.

mod access_log;
mod attributes;
mod config;
mod counters;
mod export;
mod expose;
mod metrics;
mod record;
mod setup;
mod span;
pub mod trace;
mod worker;
mod writer;

pub use config::{AccessLogConfig, AccessLogOutput, LogConfig, MetricsConfig, TelemetryConfig, TraceConfig};
pub use counters::Counter;
pub use expose::{ContentType, negotiate};
pub use record::{ConnectionRecord, Direction, RequestHead, RequestRecord, is_grpc};
pub use setup::{InitError, Telemetry, init};
pub use span::{RequestSpan, TARGET, TryRecord};
pub use trace::{Sampler, SpanId, TraceContext, TraceId};
pub use worker::{ActiveConnection, ActiveRequest, ActiveTunnel, TunnelSide, WorkerTelemetry};

#[cfg(test)]
mod fixtures;
