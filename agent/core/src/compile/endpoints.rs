//! Endpoints of a Service from its EndpointSlices, as kube-proxy chooses them for the clients of one node
//! (`pkg/proxy/topology.go` of Kubernetes v1.36): a pod that joins the mesh reaches whom it reached before.

use crate::{
    config::{BackendKey, Endpoint, EndpointSet, Reach, Transport},
    model::{
        Doubt, EndpointSlice, IpFamily, ObjectKey, Service, ServicePort, SliceEndpoint, Str,
        TransportProtocol, Workload,
    },
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// What is known of the address of an endpoint.
#[derive(Clone, Debug)]
pub(crate) enum EndpointSource {
    /// A pod of the cluster, with its own network.
    Workload(Arc<Workload>),
    /// No pod, or one in its node's network: reached as it is.
    Plain,
    /// The slice names a pod that is not known (any more, or yet), or whose address is another pod's by now. Left
    /// out until it is known who answers there: an enrolled pod must not be talked to in clear, nor the wrong one.
    Unknown,
}

/// From where a Service is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    /// The clients' node; `None`: nowhere, so that nothing is local and no hint is for them.
    pub(crate) node: Option<&'a str>,
    /// The node's zone, if it is known.
    pub(crate) zone: Option<&'a str>,
    /// Nodes whose pods' conditions say nothing.
    pub(crate) doubt: &'a Doubt,
}

/// Endpoints of every TCP and UDP port of a Service, for each way to reach them. `find` looks up an address, given the
/// pod that the slice names.
pub(crate) fn compile_endpoints<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    view: View<'_>,
    find: impl Fn(IpAddr, Option<&ObjectKey>) -> EndpointSource,
) -> Vec<(BackendKey, EndpointSet)> {
    let mut out = Vec::new();
    let ports = service.ports.iter().filter_map(|p| Some((p, transport(p.protocol)?)));
    for (port, transport) in ports {
        let all = candidates(port, slices.clone());
        let first = first_family(service, &all);
        for second_family in [false, true].into_iter().filter(|second| !second || is_dual(service, first)) {
            let family = if second_family { first.other() } else { first };
            let usable = usable(&all, family, &find);
            for local in [false, true].into_iter().filter(|local| !local || service.internal_local) {
                let reach = Reach { local, second_family };
                let key = BackendKey { service: service.meta.key.clone(), port: port.port, transport, reach };
                out.push((key, chosen(&usable, local, view)));
            }
        }
    }
    out
}

const fn transport(protocol: TransportProtocol) -> Option<Transport> {
    match protocol {
        TransportProtocol::Tcp => Some(Transport::Tcp),
        TransportProtocol::Udp => Some(Transport::Udp),
        TransportProtocol::Sctp => None,
    }
}

/// Every endpoint of a Service port, whatever its conditions. Slice and Service ports are paired by name.
fn candidates<'a>(
    port: &ServicePort,
    slices: impl Iterator<Item = &'a EndpointSlice>,
) -> BTreeMap<SocketAddr, &'a SliceEndpoint> {
    let mut out: BTreeMap<SocketAddr, &SliceEndpoint> = BTreeMap::new();
    for slice in slices {
        let numbers = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
        for number in numbers {
            for endpoint in &slice.endpoints {
                let Some(ip) = endpoint.addresses.first() else { continue };
                let entry = out.entry(SocketAddr::new(*ip, number.port)).or_insert(endpoint);
                if standing(endpoint) > standing(entry) {
                    *entry = endpoint;
                }
            }
        }
    }
    out
}

/// Which of two endpoints of one address counts. One moves between slices by being in both for a while, and a pod's
/// address may be another's before the first is quite gone: the one that runs, then the better state.
const fn standing(endpoint: &SliceEndpoint) -> (bool, bool) {
    (!endpoint.terminating, endpoint.ready)
}

/// Whether the Service has ClusterIPs of both families.
fn is_dual(service: &Service, first: IpFamily) -> bool {
    service.cluster_ips.iter().any(|ip| IpFamily::of(*ip) != first)
}

/// The family that the Service's first ClusterIP has. Where nothing is written (files), or all endpoints of a single-stack
/// Service are of the other one (slices made by hand), that of the endpoints.
fn first_family(service: &Service, all: &BTreeMap<SocketAddr, &SliceEndpoint>) -> IpFamily {
    let first = service.family.unwrap_or(IpFamily::V4);
    let has = |family| all.keys().any(|addr| IpFamily::of(addr.ip()) == family);
    let other = !is_dual(service, first) && !has(first) && has(first.other());
    if other { first.other() } else { first }
}

/// An endpoint that may be spoken to.
#[derive(Debug)]
struct Usable<'a> {
    addr: SocketAddr,
    workload: Option<Arc<Workload>>,
    said: &'a SliceEndpoint,
}

/// Those of a family, without those of whom it is not known who they are.
fn usable<'a>(
    all: &BTreeMap<SocketAddr, &'a SliceEndpoint>,
    family: IpFamily,
    find: &impl Fn(IpAddr, Option<&ObjectKey>) -> EndpointSource,
) -> Vec<Usable<'a>> {
    let of_family = all.iter().filter(|(addr, _)| IpFamily::of(addr.ip()) == family);
    of_family
        .filter_map(|(addr, said)| {
            let workload = match find(addr.ip(), said.pod.as_ref()) {
                EndpointSource::Workload(workload) => Some(workload),
                EndpointSource::Plain => None,
                EndpointSource::Unknown => return None,
            };
            Some(Usable { addr: *addr, workload, said })
        })
        .collect()
}

/// What clients of this node use of these endpoints.
fn chosen(usable: &[Usable<'_>], local: bool, view: View<'_>) -> EndpointSet {
    let here = |e: &SliceEndpoint| view.node.is_some() && e.node.as_deref() == view.node;
    let may: Vec<&Usable<'_>> = usable.iter().filter(|u| !local || here(u.said)).collect();
    let ready: Vec<&Usable<'_>> = may.iter().copied().filter(|u| u.said.ready).collect();
    let hints = if local { Hints::None } else { Hints::of(&ready, view) };
    let pick = |wanted: &dyn Fn(&SliceEndpoint) -> bool| -> Vec<Endpoint> {
        may.iter().filter(|u| wanted(u.said)).map(|u| u.endpoint()).collect()
    };
    let mut set = pick(&|e| e.ready && hints.admit(e, view));
    if set.is_empty() {
        // KEP-1669: better a pod that is on its way out than none.
        set = pick(&|e| e.serving && e.terminating);
    }
    if set.is_empty() {
        // Better a pod that may be well than none: of these it is only known that Kubernetes has not heard of their node.
        set = pick(&|e| is_doubtful(e, view.doubt));
    }
    EndpointSet { ready: set }
}

impl Usable<'_> {
    fn endpoint(&self) -> Endpoint {
        Endpoint { addr: self.addr, workload: self.workload.clone(), zone: self.said.zone.clone() }
    }
}

/// Which hints hold. They hold together or not at all: when each ready endpoint has one, and one of them is for this
/// place, which therefore is not left without any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hints {
    None,
    Node,
    Zone,
}

impl Hints {
    fn of(ready: &[&Usable<'_>], view: View<'_>) -> Self {
        let all = |hints: fn(&SliceEndpoint) -> &Vec<Str>| ready.iter().all(|u| !hints(u.said).is_empty());
        let any = |mode: Self| ready.iter().any(|u| mode.admit(u.said, view));
        if all(|e| &e.for_nodes) && any(Self::Node) {
            return Self::Node;
        }
        if all(|e| &e.for_zones) && any(Self::Zone) {
            return Self::Zone;
        }
        Self::None
    }

    fn admit(self, endpoint: &SliceEndpoint, view: View<'_>) -> bool {
        let names = |hints: &[Str], here: Option<&str>| hints.iter().any(|h| Some(&**h) == here);
        match self {
            Self::None => true,
            Self::Node => names(&endpoint.for_nodes, view.node),
            Self::Zone => names(&endpoint.for_zones, view.zone),
        }
    }
}

/// Whether an endpoint is not ready perhaps only because its node is not, or was not a moment ago.
pub(crate) fn is_doubtful(endpoint: &SliceEndpoint, doubt: &Doubt) -> bool {
    !endpoint.ready && !endpoint.terminating && endpoint.node.as_deref().is_some_and(|n| doubt.is_about(n))
}
