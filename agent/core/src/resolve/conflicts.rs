//! Listeners of one Gateway that cannot all be served.

use super::{AttachPoint, Problem, ResolvedListener, reason};
use crate::{config::Transport, model::Protocol};
use std::sync::Arc;

/// Marks conflicting listeners. `listeners` come by precedence, those of one object together: an earlier object wins
/// over a later one (GEP-1713); of those left, within an object, every conflicting listener loses (gateway_types.go,
/// Listeners). What has lost to an earlier object takes nobody with it (ListenerSetProtocolConflict).
pub(super) fn mark_conflicts(listeners: &mut [ResolvedListener]) {
    let mut winners: Vec<Arc<AttachPoint>> = Vec::new();
    let mut start = 0;
    while start < listeners.len() {
        let set = listeners[start].attach.id.set.clone();
        let len = listeners[start..].iter().take_while(|l| l.attach.id.set == set).count();
        let object = &mut listeners[start..start + len];
        reject_conflicting(object, &winners);
        let siblings: Vec<_> = object.iter().filter_map(candidate).collect();
        reject_conflicting(object, &siblings);
        winners.extend(object.iter().filter_map(candidate));
        start += len;
    }
}

/// Rejects those that conflict with any of `others`, itself apart.
fn reject_conflicting(object: &mut [ResolvedListener], others: &[Arc<AttachPoint>]) {
    for listener in object {
        let Some(own) = candidate(listener) else { continue };
        let mut others = others.iter().filter(|other| !Arc::ptr_eq(other, &own));
        if let Some(problem) = others.find_map(|other| conflict(&own, other)) {
            reject(listener, problem);
        }
    }
}

/// Notes HTTPS listeners whose hostnames overlap with another's on the same port (GEP-3567): a client may reuse a
/// connection for the other hostname, and is then answered 421.
pub(super) fn mark_overlaps(listeners: &mut [ResolvedListener]) {
    let https: Vec<_> =
        listeners.iter().filter(|l| l.attach.protocol == Protocol::Https).filter_map(candidate).collect();
    for listener in listeners.iter_mut().filter(|l| l.attach.protocol == Protocol::Https) {
        let own = listener.attach.clone();
        let overlaps = |other: &&Arc<AttachPoint>| {
            other.id != own.id
                && other.port == own.port
                && match (&own.hostname, &other.hostname) {
                    (Some(a), Some(b)) => a.intersect(b).is_some(),
                    _ => true,
                }
        };
        let names: Vec<_> = https.iter().filter(overlaps).map(|o| label(o)).collect();
        if listener.accepted.is_ok() && !names.is_empty() {
            listener.overlaps =
                Some(format!("the hostname overlaps with that of listener {}", names.join(", ")));
        }
    }
}

/// TCP or UDP, of a protocol that is supported.
pub(crate) const fn transport(protocol: &Protocol) -> Option<Transport> {
    match protocol {
        Protocol::Http | Protocol::Https | Protocol::Tls | Protocol::Tcp => Some(Transport::Tcp),
        Protocol::Udp => Some(Transport::Udp),
        Protocol::Other(_) => None,
    }
}

/// How messages name a listener.
pub(crate) fn label(listener: &AttachPoint) -> String {
    match &listener.id.set {
        Some(set) => format!("{set}/{}", listener.id.name),
        None => listener.id.name.to_string(),
    }
}

/// A listener that takes part in conflicts.
fn candidate(listener: &ResolvedListener) -> Option<Arc<AttachPoint>> {
    listener.accepted.is_ok().then(|| listener.attach.clone())
}

fn conflict(own: &AttachPoint, other: &AttachPoint) -> Option<Problem> {
    if own.port != other.port || transport(&own.protocol) != transport(&other.protocol) {
        return None;
    }
    // HTTPS and TLS are told apart by SNI; every other pair of protocols is not.
    let by_sni = |p: &Protocol| matches!(p, Protocol::Https | Protocol::Tls);
    if own.protocol != other.protocol && !(by_sni(&own.protocol) && by_sni(&other.protocol)) {
        return Some(Problem::new(
            reason::PROTOCOL_CONFLICT,
            format!(
                "listener {} speaks {} on port {}, which cannot be told apart from {}",
                label(other),
                other.protocol,
                own.port,
                own.protocol
            ),
        ));
    }
    let named = !matches!(own.protocol, Protocol::Tcp | Protocol::Udp);
    if named && own.hostname != other.hostname {
        return None;
    }
    let hostname = own.hostname.as_ref().filter(|_| named).map_or("every hostname", |h| h.as_str());
    Some(Problem::new(
        reason::HOSTNAME_CONFLICT,
        format!("{hostname} on port {} is taken by listener {}", own.port, label(other)),
    ))
}

fn reject(listener: &mut ResolvedListener, problem: Problem) {
    Arc::make_mut(&mut listener.attach).rejected = Some(problem.message.clone());
    listener.accepted = Err(problem.clone());
    listener.conflict = Some(problem);
}
