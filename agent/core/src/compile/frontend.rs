//! The mesh's frontends of one Service.

use super::slot::{CompiledSlot, SlotTable};
use crate::{
    config::{AppProtocol, Backend, BackendKey, External, Frontend, MeshRoutes, Reach, Transport},
    model::{IpFamily, ObjectKey, RouteKind, Service, ServicePort, ServiceType, Str, TransportProtocol},
    resolve::declared,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// A slot of a Service port, and whose clients it is for (none: everybody's).
#[derive(Debug)]
pub(crate) struct SlotOf<'a> {
    pub(crate) port: u16,
    pub(crate) consumer: Option<Str>,
    pub(crate) slot: &'a CompiledSlot,
}

/// Compiles the frontends of a Service: one for each TCP port, at each of its ClusterIPs and external addresses. Of two
/// for one address the last counts.
///
/// What a pod sends to an external address would not leave the cluster without the mesh either: kube-proxy sends it to the
/// endpoints of all nodes, whatever the Service's traffic policies ("short-circuit"), where the load balancer's `ipMode`
/// does not forbid it. NodePorts stay with kube-proxy, since which endpoints they have is their node's affair.
pub(crate) fn compile_frontends(service: &Service, slots: &[SlotOf<'_>]) -> Vec<(SocketAddr, Arc<Frontend>)> {
    if matches!(service.kind, ServiceType::Headless | ServiceType::ExternalName) {
        return Vec::new();
    }
    let mut out = Vec::new();
    for port in service.ports.iter().filter(|p| p.protocol == TransportProtocol::Tcp) {
        let base = frontend(&service.meta.key, service, port, slots);
        let at = |ip: IpAddr, external: Option<External>| {
            let reach = Reach {
                local: service.internal_local && external.is_none(),
                second_family: service.family.is_some_and(|first| first != IpFamily::of(ip)),
            };
            let key = BackendKey { reach, ..base.default.key.clone() };
            let default = Arc::new(Backend { key, ..(*base.default).clone() });
            (SocketAddr::new(ip, port.port), Arc::new(Frontend { external, default, ..base.clone() }))
        };
        out.extend(service.cluster_ips.iter().map(|ip| at(*ip, None)));
        let external = service.external_addresses();
        out.extend(external.map(|(ip, source_ranges)| at(ip, Some(External { source_ranges }))));
    }
    out
}

/// Of a Service port, wherever it is reached.
fn frontend(key: &ObjectKey, service: &Service, port: &ServicePort, slots: &[SlotOf<'_>]) -> Frontend {
    let (mut producer, mut consumers) = (None, BTreeMap::new());
    let mut implied = BTreeSet::new();
    for slot in slots.iter().filter(|s| s.port == port.port) {
        let Some(table) = &slot.slot.table else { continue };
        let (routes, spoken) = mesh_routes(table);
        implied.insert(spoken);
        match &slot.consumer {
            None => producer = Some(routes),
            Some(namespace) => {
                consumers.insert(namespace.clone(), routes);
            }
        }
    }
    let declared = declared(port);
    let mut implied = implied.into_iter();
    let protocol = match (declared, implied.next(), implied.next()) {
        // Routes of one kind say what an undeclared port speaks; of several kinds, the bytes must.
        (AppProtocol::Unknown, Some(Implied::Http), None) => AppProtocol::Http,
        (AppProtocol::Unknown, Some(Implied::Grpc), None) => AppProtocol::Grpc,
        (AppProtocol::Unknown, Some(Implied::Tls), None) => AppProtocol::Tls,
        (AppProtocol::Unknown, Some(Implied::Tcp), None) => AppProtocol::Opaque,
        _ => declared,
    };
    Frontend {
        service: key.clone(),
        port: port.port,
        external: None,
        protocol,
        producer,
        consumers,
        default: Arc::new(Backend {
            key: BackendKey {
                service: key.clone(),
                port: port.port,
                transport: Transport::Tcp,
                reach: Reach::default(),
            },
            protocol: declared,
            // Without a route, bytes pass untouched: what the client means for the backend is TLS already or is not.
            tls: None,
            client_ip_affinity: service.client_ip_affinity,
        }),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Implied {
    Http,
    Grpc,
    Tls,
    Tcp,
}

fn mesh_routes(table: &SlotTable) -> (MeshRoutes, Implied) {
    match table {
        SlotTable::Http(table) => {
            // Kinds never mix on a port, so any entry tells.
            let grpc = table.iter().next().is_some_and(|e| e.policy.id.kind == RouteKind::Grpc);
            (MeshRoutes::Http(table.clone()), if grpc { Implied::Grpc } else { Implied::Http })
        }
        SlotTable::Tls(routes) => (MeshRoutes::Tls(routes.clone()), Implied::Tls),
        SlotTable::L4(rule) => (MeshRoutes::Tcp(rule.clone()), Implied::Tcp),
    }
}
