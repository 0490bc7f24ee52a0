//! Endpoints of a Service from its EndpointSlices.

use crate::{
    config::{BackendKey, Endpoint, EndpointSet, Transport},
    model::{
        Doubt, EndpointSlice, ObjectKey, Service, ServicePort, SliceEndpoint, TransportProtocol, Workload,
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

/// Endpoints of every TCP and UDP port of a Service. `find` looks up an address, given the pod that the slice names.
pub(crate) fn compile_endpoints<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    doubt: &Doubt,
    find: impl Fn(IpAddr, Option<&ObjectKey>) -> EndpointSource,
) -> Vec<(BackendKey, EndpointSet)> {
    let key = &service.meta.key;
    let ports = service.ports.iter().filter_map(|p| Some((p, transport(p.protocol)?)));
    ports
        .map(|(port, transport)| {
            let all = candidates(port, slices.clone());
            let set = endpoint_set(service.publish_not_ready, &all, doubt, &find);
            (BackendKey { service: key.clone(), port: port.port, transport }, set)
        })
        .collect()
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
                for ip in &endpoint.addresses {
                    // An endpoint moves between slices by being in both for a while: the better state counts.
                    let entry = out.entry(SocketAddr::new(*ip, number.port)).or_insert(endpoint);
                    if endpoint.ready && !entry.ready {
                        *entry = endpoint;
                    }
                }
            }
        }
    }
    out
}

/// Whether an endpoint is not ready perhaps only because its node is not, or was not a moment ago.
pub(crate) fn is_doubtful(endpoint: &SliceEndpoint, doubt: &Doubt) -> bool {
    !endpoint.ready && !endpoint.terminating && endpoint.node.as_deref().is_some_and(|n| doubt.is_about(n))
}

fn endpoint_set(
    publish_not_ready: bool,
    all: &BTreeMap<SocketAddr, &SliceEndpoint>,
    doubt: &Doubt,
    find: &impl Fn(IpAddr, Option<&ObjectKey>) -> EndpointSource,
) -> EndpointSet {
    let pick = |wanted: &dyn Fn(&SliceEndpoint) -> bool| -> Vec<Endpoint> {
        let wanted = all.iter().filter(|(_, e)| wanted(e));
        wanted
            .filter_map(|(addr, e)| {
                let workload = match find(addr.ip(), e.pod.as_ref()) {
                    EndpointSource::Workload(workload) => Some(workload),
                    EndpointSource::Plain => None,
                    EndpointSource::Unknown => return None,
                };
                Some(Endpoint { addr: *addr, workload, zone: e.zone.clone() })
            })
            .collect()
    };
    let mut ready = pick(&|e| e.ready || publish_not_ready);
    if ready.is_empty() {
        // KEP-1669: better a pod that is on its way out than none.
        ready = pick(&|e| e.serving && e.terminating);
    }
    if ready.is_empty() {
        // Better a pod that may be well than none: of these it is only known that Kubernetes has not heard of their node.
        ready = pick(&|e| is_doubtful(e, doubt));
    }
    EndpointSet { ready }
}
