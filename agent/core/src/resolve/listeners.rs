//! One listener by itself: protocol, kinds, TLS.

use super::{
    AttachPoint, ListenerId, Problem, Reader, ResolvedListener, certificates::termination, grants::Referrer,
    reason,
};
use crate::model::{Gateway, GroupKind, Listener, ObjectKey, Protocol, RouteKind, TlsMode, TlsSettings};
use std::sync::Arc;

/// Resolves a listener of `gateway`, or of the ListenerSet `set` attached to it. Conflicts are found later.
pub(super) fn resolve_listener(
    reader: &Reader<'_>,
    gateway: &Gateway,
    set: Option<&ObjectKey>,
    listener: &Listener,
) -> ResolvedListener {
    let owner = match set {
        Some(set) => Referrer { kind: crate::model::Kind::ListenerSet, namespace: set.namespace.clone() },
        None => Referrer { kind: crate::model::Kind::Gateway, namespace: gateway.meta.key.namespace.clone() },
    };
    let tls = termination(reader, &owner, gateway, listener);
    let (kinds, bad_kinds) = kinds(listener);
    let mut refs = tls.refs;
    refs.extend(bad_kinds);
    let accepted = match (&listener.protocol, tls.rejected) {
        (Protocol::Other(other), _) => Err(Problem::new(
            reason::UNSUPPORTED_PROTOCOL,
            format!("protocol {other} is not supported; use HTTP, HTTPS, TLS, TCP or UDP"),
        )),
        (_, Some(problem)) => Err(problem),
        _ => Ok(()),
    };
    ResolvedListener {
        attach: Arc::new(AttachPoint {
            id: ListenerId { set: set.cloned(), name: listener.name.clone() },
            namespace: owner.namespace,
            port: listener.port,
            protocol: listener.protocol.clone(),
            hostname: listener.hostname.clone(),
            allowed: listener.allowed_namespaces.clone(),
            kinds,
            listed_kinds: listener.allowed_kinds.clone(),
            rejected: accepted.as_ref().err().map(|p| p.message.clone()),
        }),
        mode: listener.tls.as_ref().map_or(TlsMode::Terminate, |t| t.mode),
        conflict: None,
        accepted,
        refs: Problem::join(refs),
        servable: tls.unservable.map_or(Ok(()), Err),
        overlaps: None,
        tls: tls.tls,
        foreign_options: listener.tls.as_ref().and_then(|tls| TlsSettings::foreign(&tls.options)),
    }
}

/// Kinds that a protocol can carry.
pub(super) const fn protocol_kinds(protocol: &Protocol) -> &'static [RouteKind] {
    match protocol {
        Protocol::Http | Protocol::Https => &[RouteKind::Http, RouteKind::Grpc],
        Protocol::Tls => &[RouteKind::Tls],
        Protocol::Tcp => &[RouteKind::Tcp],
        Protocol::Udp => &[RouteKind::Udp],
        Protocol::Other(_) => &[],
    }
}

/// Kinds served, and what is wrong with `allowedRoutes.kinds`.
fn kinds(listener: &Listener) -> (Vec<RouteKind>, Option<Problem>) {
    let supported = protocol_kinds(&listener.protocol);
    if listener.allowed_kinds.is_empty() || supported.is_empty() {
        return (supported.to_vec(), None);
    }
    let carried = |k: &GroupKind| supported.iter().find(|s| k.is(s.kind())).copied();
    let mut kinds: Vec<_> = listener.allowed_kinds.iter().filter_map(carried).collect();
    kinds.sort();
    kinds.dedup();
    let bad: Vec<_> =
        listener.allowed_kinds.iter().filter(|k| carried(k).is_none()).map(ToString::to_string).collect();
    let problem = (!bad.is_empty()).then(|| {
        let names: Vec<_> = supported.iter().map(|k| k.kind().as_str()).collect();
        Problem::new(
            reason::INVALID_ROUTE_KINDS,
            format!(
                "allowedRoutes.kinds {} cannot be served by protocol {}, only {}",
                bad.join(", "),
                listener.protocol,
                names.join(", ")
            ),
        )
    });
    (kinds, problem)
}
