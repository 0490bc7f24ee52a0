//! parentRefs: which of them are ours, and where they attach.

use super::{
    AttachPoint, Attachment, Domain, Problem, Reader, ResolvedParent, ResolvedRoute, Slot, allowed,
    conflicts::label, hostnames, mesh, reason, rules::resolve_rules,
};
use crate::model::{Hostname, Kind, ObjectKey, ParentRef, Route, Str};
use std::sync::Arc;

/// Resolves a route: its relation to every parent of ours, and its rules as those parents serve them.
pub(crate) fn resolve_route(reader: &Reader<'_>, route: &Arc<Route>) -> ResolvedRoute {
    let parents: Vec<_> = route
        .parents
        .iter()
        .enumerate()
        .filter_map(|(index, parent)| resolve_parent(reader, route, index, parent))
        .collect();
    let rules = |domain| {
        let used = parents.iter().any(|p| p.domain == domain && !p.missing);
        used.then(|| Arc::new(resolve_rules(reader, route, domain)))
    };
    ResolvedRoute {
        route: route.clone(),
        gateway_rules: rules(Domain::Gateway),
        mesh_rules: rules(Domain::Mesh),
        parents,
    }
}

/// `None` for parents that are not ours: they get no status entry, not even a negative one.
fn resolve_parent(
    reader: &Reader<'_>,
    route: &Route,
    index: usize,
    parent: &ParentRef,
) -> Option<ResolvedParent> {
    let namespace = parent.namespace.as_ref().unwrap_or(&route.meta.key.namespace);
    let key = ObjectKey::new(namespace.clone(), parent.name.clone());
    if parent.kind.is(Kind::Service) {
        return Some(mesh::resolve_service_parent(reader, route, index, &key));
    }
    let (gateway, set) = if parent.kind.is(Kind::Gateway) {
        (key, None)
    } else if parent.kind.is(Kind::ListenerSet) {
        let set = reader.listener_set(&key).filter(|s| s.parent_kind.is(Kind::Gateway))?;
        (set.parent.clone(), Some(key))
    } else {
        return None;
    };
    let (points, sets) = reader.attach_points(&gateway)?;
    // A parentRef to a Gateway never selects listeners of its ListenerSets, and the other way round (GEP-1713).
    let points: Vec<_> = points.filter(|p| p.id.set == set).collect();
    let unusable = match &set {
        _ if reader.gateway_rejected(&gateway).is_some() => {
            reader.gateway_rejected(&gateway).map(|why| format!("Gateway {gateway} is not accepted: {why}"))
        }
        Some(set) => sets
            .iter()
            .find(|s| s.set.meta.key == *set)
            .and_then(|s| s.admitted.as_ref().err())
            .map(|p| format!("ListenerSet {set} is not accepted: {}", p.message)),
        None => None,
    };
    let mut out = ResolvedParent {
        index,
        domain: Domain::Gateway,
        object: gateway.clone(),
        accepted: Ok(()),
        notes: Vec::new(),
        attachments: Vec::new(),
        missing: false,
    };
    let attached = match unusable {
        Some(why) => Err(Problem::new(reason::NO_MATCHING_PARENT, why)),
        None => attach(reader, route, parent, &points),
    };
    match attached {
        Ok(attached) => {
            out.notes.extend(ignored_hostnames(route, &attached));
            out.attachments = attached
                .into_iter()
                .map(|(point, hostnames)| Attachment {
                    slot: Slot::Listener { gateway: gateway.clone(), id: point.id.clone() },
                    hostnames,
                })
                .collect();
        }
        Err(problem) => out.accepted = Err(problem),
    }
    Some(out)
}

/// Listeners of a route with the hostnames that it has there.
type Attached<'a> = Vec<(&'a AttachPoint, Vec<Option<Hostname>>)>;

/// Narrows the listeners step by step; the first step that leaves none says why.
fn attach<'a>(
    reader: &Reader<'_>,
    route: &Route,
    parent: &ParentRef,
    points: &[&'a Arc<AttachPoint>],
) -> Result<Attached<'a>, Problem> {
    let selected: Vec<&AttachPoint> = points
        .iter()
        .map(|p| &***p)
        .filter(|p| parent.section_name.as_ref().is_none_or(|s| *s == p.id.name))
        .filter(|p| parent.port.is_none_or(|port| port == p.port))
        .collect();
    if selected.is_empty() {
        return Err(Problem::new(reason::NO_MATCHING_PARENT, no_section(parent, points)));
    }
    let kind = of_kind(route, &selected)?;
    let mut kept_out = Vec::new();
    let mut admitted = Vec::new();
    for point in kind {
        match allowed::from_namespace(reader, &point.allowed, &point.namespace, &route.meta.key.namespace) {
            Ok(()) => admitted.push(point),
            Err(why) => kept_out.push(format!("listener {}: {why}", label(point))),
        }
    }
    if admitted.is_empty() {
        let why = format!("allowedRoutes.namespaces: {}", kept_out.join("; "));
        return Err(Problem::new(reason::NOT_ALLOWED_BY_LISTENERS, why));
    }
    let attached: Attached<'a> = admitted
        .iter()
        .map(|p| (*p, hostnames::intersect(&route.hostnames, p.hostname.as_ref())))
        .filter(|(_, hostnames)| !hostnames.is_empty())
        .collect();
    if attached.is_empty() {
        return Err(Problem::new(
            reason::NO_MATCHING_LISTENER_HOSTNAME,
            format!("no hostname of {} is covered by {}", list(&route.hostnames), listener_list(&admitted)),
        ));
    }
    // Listeners that are rejected themselves still count the route (attachedRoutes), but cannot carry it alone.
    if let Some(why) = attached.iter().map(|(p, _)| p.rejected.as_ref()).collect::<Option<Vec<_>>>() {
        let why: Vec<_> = attached.iter().zip(why).map(|((p, _), w)| format!("{}: {w}", label(p))).collect();
        return Err(Problem::new(
            reason::NO_MATCHING_PARENT,
            format!("no listener of it is accepted: {}", why.join("; ")),
        ));
    }
    Ok(attached)
}

fn of_kind<'a>(route: &Route, selected: &[&'a AttachPoint]) -> Result<Vec<&'a AttachPoint>, Problem> {
    let of_kind: Vec<_> = selected.iter().filter(|p| p.kinds.contains(&route.kind)).copied().collect();
    if !of_kind.is_empty() {
        return Ok(of_kind);
    }
    let kind = route.kind.kind();
    // A listener that lists the kind though its protocol cannot carry it would allow the route, but is no parent for
    // it (conformance TLSRouteInvalidNoMatchingListener); every other refusal is the listener's.
    let reason = if selected.iter().any(|p| p.listed_kinds.iter().any(|k| k.is(kind))) {
        reason::NO_MATCHING_PARENT
    } else {
        reason::NOT_ALLOWED_BY_LISTENERS
    };
    let listeners: Vec<_> = selected.iter().map(|p| format!("{} ({})", label(p), p.protocol)).collect();
    Err(Problem::new(reason, format!("no listener serves {kind}: {}", listeners.join(", "))))
}

fn no_section(parent: &ParentRef, points: &[&Arc<AttachPoint>]) -> String {
    let wanted = match (&parent.section_name, parent.port) {
        (Some(name), Some(port)) => format!("a listener \"{name}\" on port {port}"),
        (Some(name), None) => format!("a listener \"{name}\""),
        (None, Some(port)) => format!("a listener on port {port}"),
        (None, None) => "a listener".to_owned(),
    };
    let there: Vec<_> = points.iter().map(|p| format!("{} ({})", p.id.name, p.port)).collect();
    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    format!("{} {} does not have {wanted}; it has {there}", parent.kind.kind, parent.name)
}

/// T3 of the pasted YAML: hostnames that no listener covers are dropped by the specification without a word.
fn ignored_hostnames(route: &Route, attached: &Attached<'_>) -> Option<String> {
    let listeners: Vec<_> = attached.iter().map(|(p, _)| p.hostname.as_ref()).collect();
    let ignored = hostnames::ignored(&route.hostnames, &listeners);
    (!ignored.is_empty()).then(|| {
        let ignored: Vec<_> = ignored.iter().map(|h| h.as_str()).collect();
        format!("Ignored hostnames, which no listener covers: {}.", ignored.join(", "))
    })
}

fn list(hostnames: &[Hostname]) -> String {
    hostnames.iter().map(Hostname::as_str).collect::<Vec<_>>().join(", ")
}

fn listener_list(points: &[&AttachPoint]) -> String {
    let one = |p: &&AttachPoint| {
        let any: Str = "*".into();
        format!("listener {} ({})", label(p), p.hostname.as_ref().map_or(&*any, |h| h.as_str()))
    };
    points.iter().map(one).collect::<Vec<_>>().join(", ")
}
