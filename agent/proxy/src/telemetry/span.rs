//! Spans of recorded requests: one SERVER span for what came in, one CLIENT span for each try.
//!
//! A span is a `tracing` span of target [`TARGET`], which only the OpenTelemetry layer sees. Its ids were decided
//! before it ([`TraceContext`]), so the exporter's id generator reads them from [`next_ids`] when the span ends.

use super::{
    attributes,
    record::RequestRecord,
    trace::{SpanId, TraceContext},
};
use http::HeaderMap;
use opentelemetry::{
    Context, KeyValue,
    trace::{SpanContext, Status, TraceContextExt, TraceFlags, TraceState},
};
use std::{cell::Cell, net::SocketAddr, str::FromStr, sync::Arc};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use weft_core::model::{SpiffeId, Workload};

/// The `tracing` target of request spans.
pub const TARGET: &str = "weft_proxy::request";

thread_local! {
    static NEXT: Cell<Option<(u128, u64)>> = const { Cell::new(None) };
}

/// The ids of the span that is ending on this thread.
pub(super) fn next_ids() -> Option<(u128, u64)> {
    NEXT.get()
}

/// The span of a request or of one try; nothing at all when it is not recorded. Ends when dropped, so that a request
/// whose task is cancelled is still seen.
#[derive(Debug, Default)]
pub enum RequestSpan {
    /// Not recorded.
    #[default]
    None,
    /// Recorded.
    Recorded(Box<Recorded>),
}

/// See [`RequestSpan`].
#[derive(Debug)]
pub struct Recorded {
    span: Span,
    context: TraceContext,
    workload: Arc<Workload>,
}

/// What a try is about.
#[derive(Clone, Copy, Debug)]
pub struct TryRecord<'a> {
    /// Where it went.
    pub endpoint: SocketAddr,
    /// Who answered, verified.
    pub identity: Option<&'a SpiffeId>,
    /// The upstream's code, if one came.
    pub code: Option<u16>,
    /// The upstream's `grpc-status`, if one came.
    pub grpc_status: Option<u16>,
    /// Why there is no answer.
    pub reason: Option<crate::error::Reason>,
    /// 0 for the first try.
    pub resend: u32,
}

impl RequestSpan {
    /// The SERVER span of a request on behalf of `workload` (for a Gateway: the one made up for it).
    pub(super) fn server(context: &TraceContext, workload: &Arc<Workload>) -> Self {
        if !context.sampled {
            return Self::None;
        }
        let span = tracing::info_span!(
            target: TARGET, parent: None, "server",
            otel.name = tracing::field::Empty, otel.kind = "server"
        );
        Self::recorded(span, context.clone(), workload, true)
    }

    /// The CLIENT span of one try, child of this one.
    pub(super) fn client(&self, id: SpanId) -> Self {
        let Self::Recorded(parent) = self else { return Self::None };
        let span = tracing::info_span!(
            target: TARGET, parent: None, "client",
            otel.name = tracing::field::Empty, otel.kind = "client"
        );
        Self::recorded(span, parent.context.child(id), &parent.workload, false)
    }

    fn recorded(span: Span, context: TraceContext, workload: &Arc<Workload>, remote: bool) -> Self {
        if span.is_none() {
            return Self::None;
        }
        if let Some(parent) = parent_context(&context, remote) {
            // Fails only without an OpenTelemetry layer; then nothing is exported anyway.
            let _ = span.set_parent(parent);
        }
        Self::Recorded(Box::new(Recorded { span, context, workload: workload.clone() }))
    }

    /// Writes the headers that upstream must see: this span as the parent, or what `context` says when there is none.
    pub fn inject(&self, context: &TraceContext, headers: &mut HeaderMap) {
        match self {
            Self::None => context.inject(headers),
            Self::Recorded(recorded) => recorded.context.inject(headers),
        }
    }

    /// Ends a SERVER span with what is known about the request.
    pub(super) fn finish(self, record: &RequestRecord<'_>) {
        if let Self::Recorded(recorded) = self {
            recorded.end(
                &attributes::name(record),
                attributes::server(record),
                attributes::server_status(record),
            );
        }
    }

    /// Ends a CLIENT span. `record` gives the request's head, rule and backend; its outcome is not read.
    pub fn finish_try(self, record: &RequestRecord<'_>, outcome: &TryRecord<'_>) {
        if let Self::Recorded(recorded) = self {
            recorded.end(
                &attributes::name(record),
                attributes::client(record, outcome),
                attributes::client_status(outcome),
            );
        }
    }
}

impl Recorded {
    fn end(self, name: &str, attributes: Vec<KeyValue>, status: Status) {
        self.span.record("otel.name", name);
        for KeyValue { key, value, .. } in attributes {
            self.span.set_attribute(key, value);
        }
        self.span.set_status(status);
        // Ended by `drop`.
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        for KeyValue { key, value, .. } in attributes::private(&self.workload) {
            self.span.set_attribute(key, value);
        }
        NEXT.set(Some((self.context.trace_id.get(), self.context.span_id.get())));
        // Closing the span builds and exports it here, on this thread.
        drop(std::mem::replace(&mut self.span, Span::none()));
        NEXT.set(None);
    }
}

/// The parent as OpenTelemetry wants it.
fn parent_context(context: &TraceContext, remote: bool) -> Option<Context> {
    let parent = context.parent?;
    let state = context.state.as_ref().and_then(|s| s.to_str().ok()).map(TraceState::from_str);
    let parent = SpanContext::new(
        context.trace_id.get().into(),
        parent.get().into(),
        TraceFlags::SAMPLED,
        remote,
        // A list that breaks the rules is not worth losing the span for.
        state.and_then(Result::ok).unwrap_or_default(),
    );
    Some(Context::new().with_remote_span_context(parent))
}
