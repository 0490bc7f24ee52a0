//! Telemetry of one worker: everything that the request path calls.

use super::{
    access_log,
    config::AccessLogConfig,
    counters::{self, Counter, Counters},
    metrics::Handles,
    record::{ConnectionRecord, Direction, RequestRecord},
    span::RequestSpan,
    trace::{Draw, Sampler, SpanId, TraceContext},
    writer::Sink,
};
use crate::share::timing::Timing;
use http::HeaderMap;
use std::{
    cell::{Cell, RefCell},
    hash::{BuildHasher, Hasher, RandomState},
    rc::Rc,
    sync::Arc,
    time::SystemTime,
};
use weft_core::model::Workload;

/// What a worker needs of [`super::Telemetry`].
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) counters: Arc<Counters>,
    pub(super) handles: Handles,
    pub(super) sampler: Option<Sampler>,
    /// `None`: no access log.
    pub(super) log: Option<(Sink, AccessLogConfig)>,
}

/// A worker's telemetry; not `Send`. Made once on each worker by [`super::Telemetry::worker`].
#[derive(Debug)]
pub struct WorkerTelemetry {
    counters: Arc<Counters>,
    handles: Handles,
    sampler: Option<Sampler>,
    log: Option<Log>,
    random: Random,
}

#[derive(Debug)]
struct Log {
    sink: Sink,
    config: AccessLogConfig,
    /// A success is logged when a draw is below this.
    threshold: u64,
    line: RefCell<Vec<u8>>,
}

impl WorkerTelemetry {
    pub(super) fn new(parts: Parts) -> Rc<Self> {
        let log = parts.log.map(|(sink, config)| {
            // Casts saturate: 1.0 becomes "always".
            let threshold = (config.success_ratio.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
            Log { sink, config, threshold, line: RefCell::default() }
        });
        Rc::new(Self {
            counters: parts.counters,
            handles: parts.handles,
            sampler: parts.sampler,
            log,
            random: Random::seeded(),
        })
    }

    /// The trace that a request belongs to, and whether it is recorded. `headers` as received.
    #[must_use]
    pub fn start(&self, headers: &HeaderMap, at_edge: bool) -> TraceContext {
        let (high, low) = (self.random.next(), self.random.next());
        let draw = Draw { trace: u128::from(high) << 64 | u128::from(low), span: self.random.next() };
        let sampler = if at_edge { self.sampler.map(Sampler::at_edge) } else { self.sampler };
        TraceContext::start(headers, draw, sampler)
    }

    /// Whether the record of this request needs its head: it is recorded or logged.
    #[must_use]
    pub fn wants_head(&self, trace: &TraceContext) -> bool {
        trace.sampled || self.log.is_some()
    }

    /// Whether connections are logged.
    #[must_use]
    pub fn logs(&self) -> bool {
        self.log.is_some()
    }

    /// The SERVER span of a request, in the name of `workload` (for a Gateway: the one made up for it).
    #[must_use]
    pub fn server_span(&self, trace: &TraceContext, workload: &Arc<Workload>) -> RequestSpan {
        RequestSpan::server(trace, workload)
    }

    /// The CLIENT span of one try, child of the request's.
    #[must_use]
    pub fn try_span(&self, server: &RequestSpan) -> RequestSpan {
        match server {
            RequestSpan::None => RequestSpan::None,
            RequestSpan::Recorded(_) => server.client(SpanId::new(self.random.next())),
        }
    }

    /// A request is over: counts it, ends its span, logs it. Once for each request.
    pub fn finish(&self, record: &RequestRecord<'_>, span: RequestSpan) {
        self.handles.request(record);
        span.finish(record);
        if let Some(log) = &self.log
            && (record.failed() || record.trace.sampled || self.random.next() <= log.threshold)
        {
            log.write(|line| access_log::request(line, record, SystemTime::now(), log.config.query));
        }
    }

    /// A connection is over: counts its bytes and logs it. For opaque bytes and tunnels; HTTP has requests instead.
    pub fn connection(&self, record: &ConnectionRecord<'_>) {
        self.handles.connection(record);
        if let Some(log) = &self.log {
            log.write(|line| access_log::connection(line, record, SystemTime::now()));
        }
    }

    /// Where the worker's scheduler counts how long shares wait.
    #[must_use]
    pub fn timing(&self) -> Arc<Timing> {
        self.counters.timing.clone()
    }

    /// Counts one.
    pub fn count(&self, counter: Counter) {
        self.counters.add(counter, 1);
    }

    /// A request is under way until the guard is dropped.
    #[must_use]
    pub fn request_started(self: &Rc<Self>, direction: Direction) -> ActiveRequest {
        let (started, ended) = counters::requests(direction);
        ActiveRequest(Active::new(self, started, ended))
    }

    /// A downstream connection is open until the guard is dropped.
    #[must_use]
    pub fn connection_opened(self: &Rc<Self>, direction: Direction) -> ActiveConnection {
        let (opened, closed) = counters::connections(direction);
        ActiveConnection(Active::new(self, opened, closed))
    }

    /// A tunnel is open until the guard is dropped.
    #[must_use]
    pub fn tunnel_opened(self: &Rc<Self>, side: TunnelSide) -> ActiveTunnel {
        let (opened, closed) = match side {
            TunnelSide::Client => (Counter::TunnelsOpenedClient, Counter::TunnelsClosedClient),
            TunnelSide::Server => (Counter::TunnelsOpenedServer, Counter::TunnelsClosedServer),
        };
        ActiveTunnel(Active::new(self, opened, closed))
    }
}

impl Log {
    fn write(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut line = self.line.borrow_mut();
        line.clear();
        encode(&mut line);
        self.sink.push(&line, self.config.buffer_max);
    }
}

/// Which end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelSide {
    /// We opened it.
    Client,
    /// We accepted it.
    Server,
}

/// See [`WorkerTelemetry::request_started`].
#[derive(Debug)]
pub struct ActiveRequest(#[expect(dead_code, reason = "held for its drop")] Active);

/// See [`WorkerTelemetry::connection_opened`].
#[derive(Debug)]
pub struct ActiveConnection(#[expect(dead_code, reason = "held for its drop")] Active);

/// See [`WorkerTelemetry::tunnel_opened`].
#[derive(Debug)]
pub struct ActiveTunnel(#[expect(dead_code, reason = "held for its drop")] Active);

#[derive(Debug)]
struct Active {
    worker: Rc<WorkerTelemetry>,
    end: Counter,
}

impl Active {
    fn new(worker: &Rc<WorkerTelemetry>, start: Counter, end: Counter) -> Self {
        worker.count(start);
        Self { worker: worker.clone(), end }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.worker.count(self.end);
    }
}

/// SplitMix64. Ids need to be unique, not secret.
#[derive(Debug)]
struct Random(Cell<u64>);

impl Random {
    fn seeded() -> Self {
        // `RandomState` is seeded by the operating system and differs between calls.
        Self(Cell::new(RandomState::new().build_hasher().finish()))
    }

    fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let a = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let b = (a ^ (a >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        b ^ (b >> 31)
    }
}

#[cfg(test)]
mod tests;
