//! Services as parents (GEP-1294, GEP-1324).

use super::{
    Attachment, Domain, Problem, Reader, ResolvedParent, Slot,
    app_protocol::{carries_http, carries_tls, declared},
    reason,
};
use crate::model::{
    Hostname, ObjectKey, ParentRef, Route, RouteKind, Service, ServicePort, ServiceType, TransportProtocol,
};

/// Attaches a route to the ports of a Service. Always gives an entry: nobody else speaks for Services.
pub(super) fn resolve_service_parent(
    reader: &Reader<'_>,
    route: &Route,
    index: usize,
    key: &ObjectKey,
) -> ResolvedParent {
    let parent = &route.parents[index];
    let service = reader.service(key);
    let mut out = ResolvedParent {
        index,
        domain: Domain::Mesh,
        object: key.clone(),
        accepted: Ok(()),
        notes: Vec::new(),
        attachments: Vec::new(),
        missing: service.is_none(),
    };
    let ports = match service {
        None => Err(Problem::new(reason::NO_MATCHING_PARENT, format!("Service {key} does not exist"))),
        Some(service) => ports(route, parent, key, service),
    };
    let ports = match ports {
        Ok(ports) => ports,
        Err(problem) => {
            out.accepted = Err(problem);
            return out;
        }
    };
    // A route in another namespace is a consumer route: it is for the clients of its own namespace only.
    let own = &route.meta.key.namespace;
    let consumer = (*own != key.namespace).then(|| own.clone());
    out.notes.extend(unused_hostnames(route));
    out.attachments = ports
        .into_iter()
        .map(|port| Attachment {
            slot: Slot::Port { service: key.clone(), port, consumer: consumer.clone() },
            hostnames: hostnames(route),
        })
        .collect();
    out
}

fn ports(route: &Route, parent: &ParentRef, key: &ObjectKey, service: &Service) -> Result<Vec<u16>, Problem> {
    let unsupported = |why: String| Err(Problem::new(reason::UNSUPPORTED_VALUE, why));
    match service.kind {
        ServiceType::Headless => {
            return unsupported(format!(
                "Service {key} is headless: it has no ClusterIP to attach to; use a ClusterIP Service"
            ));
        }
        ServiceType::ExternalName => {
            return unsupported(format!("Service {key} is of type ExternalName, which cannot be a parent"));
        }
        ServiceType::ClusterIp | ServiceType::NodePort | ServiceType::LoadBalancer => {}
    }
    if route.kind == RouteKind::Udp {
        return unsupported("UDP is not captured in the mesh; attach UDPRoutes to a Gateway".to_owned());
    }
    let selected: Vec<_> = service
        .ports
        .iter()
        .filter(|p| p.protocol == TransportProtocol::Tcp)
        .filter(|p| parent.port.is_none_or(|port| port == p.port))
        .filter(|p| parent.section_name.as_ref().is_none_or(|name| *name == p.name))
        .collect();
    let no_parent = |why: String| Err(Problem::new(reason::NO_MATCHING_PARENT, why));
    if selected.is_empty() {
        let named = |p: &ServicePort| match &*p.name {
            "" => p.port.to_string(),
            name => format!("{} \"{name}\"", p.port),
        };
        let there: Vec<_> = service.ports.iter().map(named).collect();
        return no_parent(format!(
            "Service {key} has no such TCP port; it has {}",
            if there.is_empty() { "none".to_owned() } else { there.join(", ") }
        ));
    }
    let carried: Vec<_> = selected.iter().filter(|p| carries(route.kind, p)).map(|p| p.port).collect();
    if carried.is_empty() {
        let declared: Vec<_> = selected
            .iter()
            .map(|p| match p.app_protocol.as_deref() {
                Some(protocol) => format!("{} appProtocol {protocol}", p.port),
                None => format!("{} without appProtocol", p.port),
            })
            .collect();
        return no_parent(format!(
            "no port of Service {key} carries what {} routes: {}",
            route.kind.kind(),
            declared.join(", ")
        ));
    }
    Ok(carried)
}

/// Whether a port's declared protocol has what this kind of route looks at.
fn carries(kind: RouteKind, port: &ServicePort) -> bool {
    match kind {
        RouteKind::Http | RouteKind::Grpc => carries_http(declared(port)),
        RouteKind::Tls => carries_tls(declared(port)),
        RouteKind::Tcp => true,
        RouteKind::Udp => false,
    }
}

/// Hostnames mean nothing on a Service for HTTP and gRPC (GEP-1294); for TLSRoutes they are SNI names.
fn hostnames(route: &Route) -> Vec<Option<Hostname>> {
    match route.kind {
        RouteKind::Tls if !route.hostnames.is_empty() => route.hostnames.iter().cloned().map(Some).collect(),
        _ => vec![None],
    }
}

fn unused_hostnames(route: &Route) -> Option<String> {
    let http = matches!(route.kind, RouteKind::Http | RouteKind::Grpc);
    (http && !route.hostnames.is_empty()).then(|| {
        "Hostnames are not looked at on a Service (GEP-1294); match the Host header instead.".to_owned()
    })
}
