//! `appProtocol` of a Service port to what is spoken there.

use crate::{
    config::AppProtocol,
    model::{RouteKind, ServicePort},
};

/// What a port declares (KEP-1422, GEP-1911). Values that nobody knows are tolerated: nothing is declared then.
pub(crate) fn declared(port: &ServicePort) -> AppProtocol {
    let Some(value) = port.app_protocol.as_deref() else { return AppProtocol::Unknown };
    match value.to_ascii_lowercase().as_str() {
        "http" | "http/1.1" => AppProtocol::Http,
        "kubernetes.io/h2c" | "h2c" | "http2" => AppProtocol::H2c,
        "grpc" | "grpc-web" => AppProtocol::Grpc,
        "kubernetes.io/ws" | "ws" => AppProtocol::WebSocket,
        "https" | "tls" | "kubernetes.io/wss" | "wss" => AppProtocol::Tls,
        "tcp" | "amqp" | "cassandra" | "imap" | "kafka" | "ldap" | "memcached" | "mongo" | "mongodb"
        | "mqtt" | "mysql" | "nats" | "pop3" | "postgres" | "postgresql" | "redis" | "smtp" | "ssh" => {
            AppProtocol::Opaque
        }
        _ => AppProtocol::Unknown,
    }
}

/// Whether a port is for WebSocket over TLS: where a policy gives the TLS, HTTP/1.1 is spoken inside.
pub(super) fn secure_websocket(port: &ServicePort) -> bool {
    let is = |name: &str| port.app_protocol.as_deref().is_some_and(|p| p.eq_ignore_ascii_case(name));
    is("kubernetes.io/wss") || is("wss")
}

/// What a route of this kind speaks to a backend that declares `declared`.
pub(super) fn spoken(kind: RouteKind, declared: AppProtocol) -> AppProtocol {
    match (kind, declared) {
        // A GRPCRoute implies HTTP/2 even where the port declares nothing.
        (RouteKind::Grpc, AppProtocol::H2c) => AppProtocol::H2c,
        (RouteKind::Grpc, _) => AppProtocol::Grpc,
        (RouteKind::Http, AppProtocol::H2c | AppProtocol::Grpc | AppProtocol::WebSocket) => declared,
        (RouteKind::Http, _) => AppProtocol::Http,
        _ => declared,
    }
}

/// Whether HTTP rules can be applied to traffic of a port that declares this.
pub(super) const fn carries_http(declared: AppProtocol) -> bool {
    !matches!(declared, AppProtocol::Tls | AppProtocol::Opaque)
}

/// Whether an SNI can be found in traffic of a port that declares this.
pub(super) const fn carries_tls(declared: AppProtocol) -> bool {
    matches!(declared, AppProtocol::Tls | AppProtocol::Unknown)
}
