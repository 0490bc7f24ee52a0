//! Service and EndpointSlice.

use super::{Meta, ObjectKey, PlacementAddress, Str};
use ipnet::IpNet;
use std::{net::IpAddr, time::Duration};

/// `Service`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Metadata.
    pub meta: Meta,
    /// How it is reached.
    pub kind: ServiceType,
    /// `spec.clusterIPs`; empty for headless and ExternalName.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// The first of `spec.ipFamilies`, else that of the first ClusterIP; `None` when neither is written (files).
    pub family: Option<IpFamily>,
    /// `spec.internalTrafficPolicy: Local`: pods use endpoints of their own node only.
    pub internal_local: bool,
    /// `spec.sessionAffinity: ClientIP`: how long a client that is silent keeps its endpoint.
    pub client_ip_affinity: Option<Duration>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress`: every address that the load balancer answers at.
    pub ingress: Vec<PlacementAddress>,
    /// Those of [`Self::ingress`] whose traffic does not have to pass the load balancer (`ipMode: VIP`, the default).
    pub vips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`: who may use [`Self::vips`]; everybody when none is of the address's family.
    pub source_ranges: Vec<IpNet>,
}

impl Service {
    /// Addresses other than ClusterIPs at which pods reach it, each with the clients that it is for (empty: everybody).
    /// Only of families that it has a ClusterIP of, as with kube-proxy.
    pub fn external_addresses(&self) -> impl Iterator<Item = (IpAddr, Vec<IpNet>)> {
        let has = |ip: &IpAddr| self.cluster_ips.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
        let external = self.external_ips.iter().map(|ip| (*ip, Vec::new()));
        let all = external.chain(self.vips.iter().map(|ip| (*ip, self.sources_of(*ip))));
        all.filter(move |(ip, _)| has(ip))
    }

    /// `loadBalancerSourceRanges` of the address's family. A range that holds every address is no restriction.
    fn sources_of(&self, vip: IpAddr) -> Vec<IpNet> {
        let same = |range: &&IpNet| range.addr().is_ipv4() == vip.is_ipv4();
        let ranges: Vec<IpNet> = self.source_ranges.iter().filter(same).copied().collect();
        if ranges.iter().any(|range| range.prefix_len() == 0) { Vec::new() } else { ranges }
    }
}

/// `core/v1 IPFamily`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum IpFamily {
    V4,
    V6,
}

impl IpFamily {
    /// That of an address.
    #[must_use]
    pub const fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

/// `spec.type`, with headless told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ServiceType {
    ClusterIp,
    Headless,
    NodePort,
    LoadBalancer,
    ExternalName,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`; empty if the only one.
    pub name: Str,
    /// `port`.
    pub port: u16,
    /// `protocol`.
    pub protocol: TransportProtocol,
    /// `appProtocol`.
    pub app_protocol: Option<Str>,
}

/// `core/v1 Protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum TransportProtocol {
    Tcp,
    Udp,
    Sctp,
}

/// `EndpointSlice` (addressType IPv4 or IPv6; FQDN slices are left out and reported).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Metadata.
    pub meta: Meta,
    /// The Service, from label `kubernetes.io/service-name`.
    pub service: ObjectKey,
    /// Endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// Ports: name ("" if none), number, protocol.
    pub ports: Vec<SlicePort>,
}

/// One entry of `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Port name, matched with the Service port's name.
    pub name: Str,
    /// Number on the endpoint.
    pub port: u16,
    /// Protocol.
    pub protocol: TransportProtocol,
    /// `appProtocol`.
    pub app_protocol: Option<Str>,
}

/// One entry of `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// `addresses`. Only the first is used: the API gives others no meaning, and kube-proxy does not look at them.
    pub addresses: Vec<IpAddr>,
    /// `conditions.ready`, true when left out. With `publishNotReadyAddresses` the EndpointSlice controller says true of
    /// every pod.
    pub ready: bool,
    /// `conditions.serving`, true when left out.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Str>,
    /// `zone`.
    pub zone: Option<Str>,
    /// `hints.forZones`: zones whose clients should use it. The EndpointSlice controller makes the hints of
    /// `trafficDistribution`.
    pub for_zones: Vec<Str>,
    /// `hints.forNodes`: nodes whose clients should use it.
    pub for_nodes: Vec<Str>,
    /// `targetRef` when it is a Pod.
    pub pod: Option<ObjectKey>,
}
