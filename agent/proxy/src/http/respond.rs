//! The only place where the agent's own errors become HTTP answers.
//!
//! Each carries `x-weft-reason`, the same word as in logs and metrics, so that an answer of ours is never mistaken for
//! the application's; its short body names the reason and the trace id. Addresses and causes stay in the log.

use super::{exchange::Exchange, reply::ResponseBody};
use crate::{
    dial::Dial,
    error::{Blame, ProxyError, Reason, Retryable},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

/// Names the [`Reason`] of an answer that the agent made itself.
pub const REASON_HEADER: HeaderName = HeaderName::from_static("x-weft-reason");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An error of ours.
pub(crate) fn error(reason: Reason, detail: impl Into<String>) -> ProxyError {
    let blame = match reason {
        Reason::NoRoute | Reason::Invalid(_) | Reason::NoEndpoint | Reason::NoLocalEndpoint => Blame::Config,
        Reason::BadRequest
        | Reason::UnknownCoding
        | Reason::ClientGone
        | Reason::Misdirected
        | Reason::Denied => Blame::Downstream,
        Reason::Limit | Reason::NoCertificate | Reason::Draining => Blame::Agent,
        _ => Blame::Upstream,
    };
    ProxyError { reason, blame, retry: Retryable::No, detail: detail.into() }
}

/// The answer to an exchange that failed before the upstream's answer.
pub(crate) fn failure<D: Dial>(
    mut exchange: Box<Exchange<D>>,
    error: &ProxyError,
) -> Response<ResponseBody<D>> {
    tracing::debug!(trace = %exchange.trace.trace_id, %error, "answered by the agent");
    exchange.reason = Some(error.reason);
    if exchange.upload_failed().is_some() {
        // Nobody knows where the next request would begin: hyper closes, but does not say so by itself.
        exchange.conn.closing.set(true);
    }
    if exchange.grpc {
        return grpc_failure(exchange, error);
    }
    let status = status(error.reason);
    exchange.code = status.as_u16();
    let text = format!("{}: {}\ntrace: {}\n", error.reason.as_str(), said(error), exchange.trace.trace_id);
    let mut response = Response::new(ResponseBody::own(text.into(), exchange));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(REASON_HEADER, HeaderValue::from_static(error.reason.as_str()));
    response
}

/// gRPC clients read `grpc-status` of a head without body (trailers-only), with HTTP status 200.
fn grpc_failure<D: Dial>(mut exchange: Box<Exchange<D>>, error: &ProxyError) -> Response<ResponseBody<D>> {
    let reason = error.reason;
    let code = grpc_code(reason);
    exchange.code = 200;
    exchange.grpc_status = Some(code);
    let mut response = Response::new(ResponseBody::own(Bytes::new(), exchange));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, code.into());
    let message = HeaderValue::try_from(said(error)).unwrap_or(HeaderValue::from_static(say(reason)));
    headers.insert(GRPC_MESSAGE, message);
    headers.insert(REASON_HEADER, HeaderValue::from_static(reason.as_str()));
    response
}

/// An answer that a filter gives: redirect, preflight.
pub(crate) fn filtered<D: Dial>(
    mut exchange: Box<Exchange<D>>,
    head: Response<()>,
) -> Response<ResponseBody<D>> {
    exchange.code = head.status().as_u16();
    let (parts, ()) = head.into_parts();
    Response::from_parts(parts, ResponseBody::own(Bytes::new(), exchange))
}

/// `grpc-status` of a head or of trailers.
pub(crate) fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

const fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::NoRoute => StatusCode::NOT_FOUND,
        Reason::Invalid(_) => StatusCode::INTERNAL_SERVER_ERROR,
        Reason::UpstreamReset | Reason::UpstreamProtocol => StatusCode::BAD_GATEWAY,
        Reason::Timeout | Reason::PeerSilent => StatusCode::GATEWAY_TIMEOUT,
        Reason::BadRequest | Reason::ClientGone => StatusCode::BAD_REQUEST,
        Reason::UnknownCoding => StatusCode::NOT_IMPLEMENTED,
        Reason::Misdirected => StatusCode::MISDIRECTED_REQUEST,
        Reason::Denied => StatusCode::FORBIDDEN,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The codes of gRPC's own mapping from HTTP, but for what it would call UNKNOWN (grpc/doc/http-grpc-status-mapping.md).
const fn grpc_code(reason: Reason) -> u16 {
    match reason {
        Reason::NoRoute | Reason::UnknownCoding => 12,
        Reason::Timeout => 4,
        Reason::BadRequest => 13,
        Reason::ClientGone => 1,
        Reason::Denied => 7,
        _ => 14,
    }
}

/// What the client is told. Only in the mesh can there be no endpoint on its own node: that names the Service and the node,
/// because a policy that somebody wrote is why.
fn said(error: &ProxyError) -> &str {
    match error.reason {
        Reason::NoLocalEndpoint => &error.detail,
        reason => say(reason),
    }
}

const fn say(reason: Reason) -> &'static str {
    match reason {
        Reason::NoRoute => "no route matches this request",
        Reason::Invalid(_) => "the route that matches cannot be served; see its conditions",
        Reason::NoEndpoint => "the backend has no ready endpoint",
        Reason::NoLocalEndpoint => "the backend has no ready endpoint on this node",
        Reason::ConnectFailed => "the endpoint refused the connection or cannot be reached",
        Reason::ConnectTimeout => "the endpoint did not take the connection in time",
        Reason::PeerIdentity => "the endpoint's certificate is not the expected one",
        Reason::TunnelRefused => "the endpoint's agent refused the connection",
        Reason::UpstreamReset => "the endpoint closed the connection before it answered",
        Reason::UpstreamProtocol => "the endpoint's answer is not valid HTTP",
        Reason::PeerSilent => "the endpoint's node went silent before it answered",
        Reason::Timeout => "the route's timeout passed",
        Reason::BadRequest => "the request is not valid HTTP",
        Reason::UnknownCoding => "the request has a transfer coding other than chunked",
        Reason::ClientGone => "the client went away",
        Reason::Misdirected => "this connection was made for another host",
        Reason::Denied => "denied",
        Reason::Limit => "a limit is reached",
        Reason::NoCertificate => "the agent has no certificate for this workload yet",
        Reason::Draining => "the agent is shutting down",
    }
}
