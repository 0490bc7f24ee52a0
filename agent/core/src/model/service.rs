//! Service and EndpointSlice.

use super::{Meta, ObjectKey, PlacementAddress, Str};
use std::net::IpAddr;

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
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `spec.sessionAffinity: ClientIP`.
    pub client_ip_affinity: bool,
    /// `spec.trafficDistribution`.
    pub traffic_distribution: Option<Str>,
    /// `status.loadBalancer.ingress`.
    pub ingress: Vec<PlacementAddress>,
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
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// `conditions.ready`, true when left out.
    pub ready: bool,
    /// `conditions.serving`, as `ready` when left out.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Str>,
    /// `zone`.
    pub zone: Option<Str>,
    /// `targetRef` when it is a Pod.
    pub pod: Option<ObjectKey>,
}
