//! What the data plane says about a finished request or connection. Borrowed from what is at hand: nothing is copied
//! unless a log line or a span wants it.

use super::trace::TraceContext;
use crate::error::Reason;
use http::{HeaderMap, HeaderValue, Method, Uri, Version, header, request};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use weft_core::{
    config::{Backend, BackendKey, Endpoint, HttpRule, RuleId},
    model::{ObjectKey, SpiffeId, Workload},
};

/// Where traffic was taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// A Gateway's listener.
    Gateway,
    /// A captured pod's outbound traffic (15001): where all L7 decisions of the mesh are made.
    Mesh,
    /// Towards a pod of this node (15006 and 15008).
    Inbound,
}

impl Direction {
    /// All, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Gateway, Self::Mesh, Self::Inbound];

    /// The label in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Mesh => "mesh",
            Self::Inbound => "inbound",
        }
    }
}

/// What telemetry keeps of a request's head, since the head itself moves upstream. All clones are of shared bytes.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// Method.
    pub method: Method,
    /// As received.
    pub uri: Uri,
    /// Version the client speaks.
    pub version: Version,
    /// `Host`, where the URI has no authority (HTTP/1).
    pub host: Option<HeaderValue>,
    /// `User-Agent`.
    pub user_agent: Option<HeaderValue>,
    /// Whether the client came over TLS that we ended.
    pub https: bool,
    /// Whether `content-type` says gRPC.
    pub grpc: bool,
}

impl RequestHead {
    /// Takes what is needed of a request as received.
    #[must_use]
    pub fn of(parts: &request::Parts, https: bool) -> Self {
        Self {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            version: parts.version,
            host: parts.headers.get(header::HOST).cloned(),
            user_agent: parts.headers.get(header::USER_AGENT).cloned(),
            https,
            grpc: is_grpc(&parts.headers),
        }
    }

    /// `:authority` or `Host`, as sent.
    #[must_use]
    pub fn authority(&self) -> &[u8] {
        match self.uri.authority() {
            Some(authority) => authority.as_str().as_bytes(),
            None => self.host.as_ref().map_or(b"", HeaderValue::as_bytes),
        }
    }
}

/// Whether the request is gRPC by its `content-type` (`application/grpc`, `+proto` and the like; not gRPC-Web).
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// The identity of who is served here. Of who calls a pod in clear only the address is known, and anybody may have it.
fn own(direction: Direction, source: Option<&Arc<Workload>>) -> Option<&SpiffeId> {
    source.filter(|_| direction != Direction::Inbound).map(|workload| &workload.identity)
}

/// A request that is over. Given once to [`super::WorkerTelemetry::finish`].
#[derive(Clone, Copy, Debug)]
pub struct RequestRecord<'a> {
    /// Where it was taken up.
    pub direction: Direction,
    /// The Gateway or Service that routed it.
    pub parent: Option<&'a ObjectKey>,
    /// Its head, as received. `None` is allowed when [`super::WorkerTelemetry::wants_head`] says no.
    pub head: Option<&'a RequestHead>,
    /// From [`super::WorkerTelemetry::start`].
    pub trace: &'a TraceContext,
    /// The other end of the downstream connection.
    pub peer: SocketAddr,
    /// The origin as a trusted proxy named it, if not the peer.
    pub client: Option<SocketAddr>,
    /// The pod that asks, if it is one.
    pub source: Option<&'a Arc<Workload>>,
    /// The client's identity by its certificate. When left out, that of a source which this agent serves.
    pub source_identity: Option<&'a SpiffeId>,
    /// The rule that matched.
    pub rule: Option<&'a Arc<HttpRule>>,
    /// The backend that was picked.
    pub backend: Option<&'a Arc<Backend>>,
    /// The endpoint of the last try.
    pub endpoint: Option<&'a Endpoint>,
    /// Who answered there, verified.
    pub destination_identity: Option<&'a SpiffeId>,
    /// What the client got; 0 when it went away before any answer.
    pub code: u16,
    /// `grpc-status`, from trailers or a trailers-only head.
    pub grpc_status: Option<u16>,
    /// Why the agent itself answered or ended it; `None` for the application's own answer.
    pub reason: Option<Reason>,
    /// Body bytes received from the client.
    pub request_bytes: u64,
    /// Body bytes sent to the client.
    pub response_bytes: u64,
    /// From the head's arrival to the last byte sent.
    pub duration: Duration,
    /// Tries made upstream; 0 when there was none.
    pub tries: u32,
}

impl<'a> RequestRecord<'a> {
    /// A record with only what every request has; set the rest.
    #[must_use]
    pub const fn new(direction: Direction, trace: &'a TraceContext, peer: SocketAddr) -> Self {
        Self {
            direction,
            parent: None,
            head: None,
            trace,
            peer,
            client: None,
            source: None,
            source_identity: None,
            rule: None,
            backend: None,
            endpoint: None,
            destination_identity: None,
            code: 0,
            grpc_status: None,
            reason: None,
            request_bytes: 0,
            response_bytes: 0,
            duration: Duration::ZERO,
            tries: 0,
        }
    }

    /// The client's identity, as far as it is proved: by a certificate, or because it is a pod or Gateway of this agent, whose
    /// certificate it holds.
    pub(super) fn client_identity(&self) -> Option<&'a SpiffeId> {
        self.source_identity.or_else(|| own(self.direction, self.source))
    }

    /// Whether this went wrong on our side or behind us: always logged, whatever the sampling.
    pub(super) fn failed(&self) -> bool {
        let grpc = self.grpc_status.is_some_and(|status| status != 0);
        self.reason.is_some() || self.code >= 500 || self.code == 0 || grpc
    }
}

/// A connection that is over, for opaque bytes (one line and one count each). Given once to
/// [`super::WorkerTelemetry::connection`]. HTTP connections are only counted, not recorded.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionRecord<'a> {
    /// Where it was taken up.
    pub direction: Direction,
    /// The trace that a tunnel's CONNECT named, if any.
    pub trace: Option<&'a TraceContext>,
    /// The Gateway or Service that routed it.
    pub parent: Option<&'a ObjectKey>,
    /// What was spoken: `tcp`, `tls`, `hbone`, `udp`.
    pub protocol: &'static str,
    /// The other end.
    pub peer: SocketAddr,
    /// The pod that connected, if it is one. Of a caller in clear ([`Direction::Inbound`] without an identity): the pod that is
    /// known to have its address.
    pub source: Option<&'a Arc<Workload>>,
    /// Its identity by its certificate. When left out, that of a source which this agent serves: not of a caller in clear.
    pub source_identity: Option<&'a SpiffeId>,
    /// The rule that took it.
    pub rule: Option<&'a RuleId>,
    /// The backend that was picked.
    pub backend: Option<&'a BackendKey>,
    /// Where it went.
    pub endpoint: Option<SocketAddr>,
    /// The pod there.
    pub destination: Option<&'a Arc<Workload>>,
    /// Who was there, verified.
    pub destination_identity: Option<&'a SpiffeId>,
    /// Why the agent ended or refused it.
    pub reason: Option<Reason>,
    /// What was denied or why a probe failed, for the access log only.
    pub detail: Option<&'a str>,
    /// Bytes from the client.
    pub received_bytes: u64,
    /// Bytes to the client.
    pub sent_bytes: u64,
    /// From accept to the end.
    pub duration: Duration,
}

impl<'a> ConnectionRecord<'a> {
    /// A record with only what every connection has; set the rest.
    #[must_use]
    pub const fn new(direction: Direction, protocol: &'static str, peer: SocketAddr) -> Self {
        Self {
            direction,
            trace: None,
            parent: None,
            protocol,
            peer,
            source: None,
            source_identity: None,
            rule: None,
            backend: None,
            endpoint: None,
            destination: None,
            destination_identity: None,
            reason: None,
            detail: None,
            received_bytes: 0,
            sent_bytes: 0,
            duration: Duration::ZERO,
        }
    }

    /// The client's identity, as far as it is proved: by a certificate, or because it is a pod or Gateway of this agent, whose
    /// certificate it holds.
    pub(super) fn client_identity(&self) -> Option<&'a SpiffeId> {
        self.source_identity.or_else(|| own(self.direction, self.source))
    }
}
