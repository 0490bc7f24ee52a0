//! Nodes, and where Gateways are served.

use super::{Meta, Str};
use crate::config::Transport;
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// A cluster's node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Metadata; the namespace is empty.
    pub meta: Meta,
    /// `status.addresses` of type InternalIP.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`; empty where the network plugin keeps its own account.
    pub pod_cidrs: Vec<IpNet>,
    /// Condition `Ready`.
    pub ready: bool,
    /// Where its kubelet listens (`status.daemonEndpoints.kubeletEndpoint`).
    pub kubelet_port: u16,
}

/// Where a kubelet listens unless it is told otherwise.
pub const KUBELET_PORT: u16 = 10_250;

/// The label of a Node that names its zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

impl Node {
    /// The zone that it is in, where its label says so.
    #[must_use]
    pub fn zone(&self) -> Option<&Str> {
        self.meta.labels.get(ZONE_LABEL)
    }
}

/// Nodes whose pods' readiness says nothing about the pods.
///
/// Kubernetes takes every pod of a node that it calls not ready for not ready too, whatever the pods do; it calls nodes so
/// that it has not heard of, all of them after its API server was away. The pods are called ready again some seconds
/// after their node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// These, by name.
    Nodes(Arc<BTreeSet<Str>>),
    /// All: how nodes are is not known just now.
    Everywhere,
}

impl Default for Doubt {
    fn default() -> Self {
        Self::Nodes(Arc::default())
    }
}

impl Doubt {
    /// Whether a node is one of them.
    #[must_use]
    pub fn is_about(&self, node: &str) -> bool {
        match self {
            Self::Nodes(nodes) => nodes.contains(node),
            Self::Everywhere => true,
        }
    }
}

/// One of a Gateway's addresses, as its clients use it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PlacementAddress {
    /// `IPAddress`.
    Ip(IpAddr),
    /// `Hostname`: some clouds' load balancers have no fixed address.
    Hostname(Str),
}

/// Where a Gateway is served, as the controller assigned it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Placement {
    /// What clients use: `Gateway.status.addresses`.
    pub addresses: Vec<PlacementAddress>,
    /// Where this process listens; empty where it does not serve the Gateway (and on the controller).
    pub bind: Vec<IpAddr>,
    /// From a listener's port to the port that is bound. With [`Self::bind`] filled by a controller, a port that is absent has
    /// no place yet and must not be bound.
    pub ports: BTreeMap<(u16, Transport), u16>,
    /// Why the Gateway cannot be reached as it wishes: `Programmed=False` with this reason and message.
    pub problem: Option<(PlacementReason, Str)>,
}

/// The reason of a [`Placement`]'s problem: one of the API's for `Programmed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlacementReason {
    /// No address yet.
    AddressNotAssigned,
    /// The address that is asked for cannot be had.
    AddressNotUsable,
    /// Nothing to serve it with: no free port, no node.
    NoResources,
}
