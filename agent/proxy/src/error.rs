//! One error type for everything between accept and the upstream's answer: whose fault, whether to retry, and one
//! low-cardinality reason for logs and metrics. Only `http::respond` makes an HTTP answer of it.

use weft_core::config::{BackendKey, Config};

/// Whose fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The client: bad request, timeout while it sends, gone.
    Downstream,
    /// The endpoint or the way to it.
    Upstream,
    /// Configuration: no route, no endpoint, an invalid reference.
    Config,
    /// Ourselves: limits, a missing certificate.
    Agent,
}

/// Whether another try may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retryable {
    /// Nothing of the request reached an application: always safe.
    Yes,
    /// The request may have been acted on: only as the rule's retry policy says.
    ByPolicy,
    /// Never.
    No,
}

/// Why a request or connection was answered or ended by the agent itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No rule matches (404), or no listener owns the host.
    NoRoute,
    /// A rule or backend that cannot be served (500).
    Invalid(weft_core::config::FailReason),
    /// The backend has no ready endpoint (503).
    NoEndpoint,
    /// The backend has `internalTrafficPolicy: Local` and no ready endpoint on the client's node (503).
    NoLocalEndpoint,
    /// TCP connect refused or unreachable (503).
    ConnectFailed,
    /// TCP connect, tunnel or handshake took too long (503).
    ConnectTimeout,
    /// The peer's certificate is not the expected one, or its TLS failed (503).
    PeerIdentity,
    /// The peer's agent or the application refused the tunnel (503).
    TunnelRefused,
    /// The upstream closed or reset before or during its answer (502).
    UpstreamReset,
    /// The upstream's answer is not HTTP (502).
    UpstreamProtocol,
    /// The endpoint's node went silent before an answer (504).
    PeerSilent,
    /// A timeout of the rule passed (504).
    Timeout,
    /// The client sent something that is not HTTP, or too large (400, 431).
    BadRequest,
    /// The request's transfer coding is not ours to decode (501).
    UnknownCoding,
    /// The client went away.
    ClientGone,
    /// Host does not belong to the listener of this TLS connection (421).
    Misdirected,
    /// Plaintext to a strict pod, or a policy (refused).
    Denied,
    /// A limit of this share is reached (503).
    Limit,
    /// Our certificate is not there yet (503).
    NoCertificate,
    /// Draining.
    Draining,
}

impl Reason {
    /// The label in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::Invalid(why) => why.as_str(),
            Self::NoEndpoint => "no_endpoint",
            Self::NoLocalEndpoint => "no_local_endpoint",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::PeerIdentity => "peer_identity",
            Self::TunnelRefused => "tunnel_refused",
            Self::UpstreamReset => "upstream_reset",
            Self::UpstreamProtocol => "upstream_protocol",
            Self::PeerSilent => "peer_silent",
            Self::Timeout => "timeout",
            Self::BadRequest => "bad_request",
            Self::UnknownCoding => "unknown_coding",
            Self::ClientGone => "client_gone",
            Self::Misdirected => "misdirected",
            Self::Denied => "denied",
            Self::Limit => "limit",
            Self::NoCertificate => "no_certificate",
            Self::Draining => "draining",
        }
    }
}

/// What went wrong, for whom.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {detail}", reason.as_str())]
pub struct ProxyError {
    /// One label.
    pub reason: Reason,
    /// Whose fault.
    pub blame: Blame,
    /// Whether another try may help.
    pub retry: Retryable,
    /// For the log line: addresses, the cause.
    pub detail: String,
}

impl ProxyError {
    /// Nobody can be sent to this backend from here.
    #[must_use]
    pub fn no_endpoint(config: &Config, backend: &BackendKey) -> Self {
        Self {
            reason: if backend.reach.local { Reason::NoLocalEndpoint } else { Reason::NoEndpoint },
            blame: Blame::Config,
            retry: Retryable::No,
            detail: config.no_endpoint(backend),
        }
    }
}
