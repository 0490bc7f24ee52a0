//! Where Gateways are served, from the objects that the controller keeps for them. Pure: agents and controller derive
//! the same from the same world.

use super::names::{
    ADDRESS_MODE, NODE_SELECTOR, PROBLEM, REFUSED_NODES, is_managed, json, object_key, parse_addresses,
    parse_port_name, slice_prefix,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Bound,
    sync::Arc,
};
use weft_core::{
    config::Transport,
    model::{
        AddressMode, AddressType, EndpointSlice, Gateway, Labels, Node, ObjectKey, Objects, Placement,
        PlacementAddress, PlacementReason, Service, Snapshot, Str, TransportProtocol,
    },
};

/// `Gateway.status.addresses` holds no more (CRD, `maxItems`).
const MAX_ADDRESSES: usize = 16;

/// The placement of every Gateway that has a Service. `me` is the node of the calling agent; with `None` (the
/// controller) nothing is bound.
#[must_use]
pub fn placements(world: &Snapshot, me: Option<&str>) -> Objects<Placement> {
    let me = me.and_then(|me| world.nodes.get(me));
    let one = |(key, gateway): (&ObjectKey, &Arc<Gateway>)| {
        let name = object_key(key);
        let service = world.services.get(&name)?;
        let placement = if is_managed(&service.meta.labels) {
            placed(gateway, service, slices_of(&world.endpoint_slices, &name), me.map(|n| &**n))
        } else {
            foreign(&name)
        };
        Some((key.clone(), Arc::new(placement)))
    };
    world.gateways.iter().filter_map(one).collect()
}

/// The nodes that stand in the EndpointSlices of a Gateway's Service.
#[must_use]
pub fn endpoint_nodes(world: &Snapshot, service: &ObjectKey) -> BTreeSet<Str> {
    let endpoints = slices_of(&world.endpoint_slices, service).flat_map(|(_, slice)| &slice.endpoints);
    endpoints.filter_map(|endpoint| endpoint.node.clone()).collect()
}

/// The EndpointSlices of a Gateway's Service.
pub(super) fn slices_of<'a>(
    slices: &'a Objects<EndpointSlice>,
    service: &ObjectKey,
) -> impl Iterator<Item = (&'a ObjectKey, &'a Arc<EndpointSlice>)> + use<'a> {
    let prefix = slice_prefix(service);
    let service = service.clone();
    let from = ObjectKey { namespace: service.namespace.clone(), name: prefix.as_str().into() };
    slices
        .range((Bound::Included(from), Bound::Unbounded))
        .take_while(move |(key, _)| key.namespace == service.namespace && key.name.starts_with(&prefix))
        .filter(|(_, slice)| is_managed(&slice.meta.labels))
}

/// Listener ports to target ports, as a slice has them.
pub(super) fn ports(slice: &EndpointSlice) -> impl Iterator<Item = ((u16, Transport), u16)> + '_ {
    slice.ports.iter().filter_map(|p| {
        let at = parse_port_name(&p.name)?;
        let same = matches!(
            (at.1, p.protocol),
            (Transport::Tcp, TransportProtocol::Tcp) | (Transport::Udp, TransportProtocol::Udp)
        );
        same.then_some((at, p.port))
    })
}

/// Whether a node has the labels that are asked for.
pub(super) fn selected(selector: &Labels, node: &Node) -> bool {
    selector.iter().all(|(k, v)| node.meta.labels.get(k) == Some(v))
}

fn placed<'a>(
    gateway: &Gateway,
    service: &Service,
    slices: impl Iterator<Item = (&'a ObjectKey, &'a Arc<EndpointSlice>)>,
    me: Option<&Node>,
) -> Placement {
    let annotations = &service.meta.annotations;
    let mode = annotations.get(ADDRESS_MODE).and_then(|m| AddressMode::parse(m)).unwrap_or_default();
    let assigned = parse_addresses(annotations);
    let slices: Vec<&EndpointSlice> = slices.map(|(_, slice)| &**slice).collect();
    let mut addresses: Vec<_> = match mode {
        AddressMode::LoadBalancer => service.ingress.clone(),
        _ => assigned.iter().copied().map(PlacementAddress::Ip).collect(),
    };
    let mut seen = BTreeSet::new();
    addresses.retain(|a| seen.insert(a.clone()));
    let written = annotations.get(PROBLEM).and_then(|p| parse_problem(p));
    let problem = written.or_else(|| match mode {
        AddressMode::LoadBalancer if addresses.is_empty() => Some(no_balancer(&service.meta.key)),
        AddressMode::LoadBalancer => not_as_asked(gateway, &addresses),
        _ => None,
    });
    addresses.truncate(MAX_ADDRESSES);
    Placement {
        addresses,
        bind: me.map(|me| bind(mode, gateway, annotations, &slices, me)).unwrap_or_default(),
        // Lower names first: a slice that is being replaced says the same.
        ports: slices.iter().flat_map(|s| ports(s)).collect::<BTreeMap<_, _>>(),
        problem,
    }
}

/// Where an agent on `me` listens. Does not ask whether the node is among the endpoints: it becomes one once it serves,
/// and an agent that lost its controller must not let go of its sockets.
fn bind(
    mode: AddressMode,
    gateway: &Gateway,
    annotations: &Labels,
    slices: &[&EndpointSlice],
    me: &Node,
) -> Vec<IpAddr> {
    let selector: BTreeMap<String, String> = json(annotations, NODE_SELECTOR).unwrap_or_default();
    let matches = |(k, v): (&String, &String)| me.meta.labels.get(k.as_str()).is_some_and(|l| **l == **v);
    if !selector.iter().all(matches) {
        return Vec::new();
    }
    let name = &*me.meta.key.name;
    match mode {
        AddressMode::LoadBalancer => me.addresses.clone(),
        AddressMode::HostPort => {
            let refused: Vec<String> = json(annotations, REFUSED_NODES).unwrap_or_default();
            if refused.iter().any(|n| n == name) {
                return Vec::new();
            }
            let asked: Vec<IpAddr> = requested(gateway).collect();
            let ours = |ip: &IpAddr| asked.is_empty() || asked.contains(ip);
            me.addresses.iter().copied().filter(ours).collect()
        }
        // From the slices, where nobody but the controller writes. Who may edit a Service could else have this node take any
        // address of its network and announce it.
        AddressMode::AddressPool => {
            let endpoints = slices.iter().flat_map(|s| &s.endpoints);
            let mine = endpoints.filter(|e| e.node.as_deref() == Some(name));
            let mine: BTreeSet<IpAddr> = mine.flat_map(|e| e.addresses.iter().copied()).collect();
            mine.into_iter().collect()
        }
    }
}

/// E12: who has no load balancer waited for ever, and did not know for what.
fn no_balancer(service: &ObjectKey) -> (PlacementReason, Str) {
    let message = format!(
        "Service {service} waits for the cluster's load balancer, which has given it no address. Where there is none, set \
         addressMode to HostPort or AddressPool in a WeftGatewayConfig that the Gateway names in \
         spec.infrastructure.parametersRef (example: manifests/examples/addresses/addresses.yaml)"
    );
    (PlacementReason::AddressNotAssigned, message.into())
}

/// A load balancer may give another address than the one that was asked for.
fn not_as_asked(gateway: &Gateway, given: &[PlacementAddress]) -> Option<(PlacementReason, Str)> {
    let missing: Vec<String> = requested(gateway)
        .filter(|ip| !given.contains(&PlacementAddress::Ip(*ip)))
        .map(|ip| ip.to_string())
        .collect();
    (!missing.is_empty()).then(|| {
        let message = format!("the load balancer did not give {} (spec.addresses)", missing.join(", "));
        (PlacementReason::AddressNotUsable, message.into())
    })
}

/// The addresses that a Gateway names.
pub(super) fn requested(gateway: &Gateway) -> impl Iterator<Item = IpAddr> + '_ {
    let ips = gateway.addresses.iter().filter(|a| a.kind == AddressType::IpAddress);
    ips.filter_map(|a| a.value.as_deref()?.parse().ok())
}

fn foreign(service: &ObjectKey) -> Placement {
    let message = format!(
        "Service {service} is there already and not Weft's: rename it or the Gateway, whose Service has this name"
    );
    Placement { problem: Some((PlacementReason::NoResources, message.into())), ..Placement::default() }
}

/// A problem as the [`PROBLEM`] annotation has it.
pub(super) fn problem_text(reason: PlacementReason, message: &str) -> Str {
    let reason = match reason {
        PlacementReason::AddressNotAssigned => "AddressNotAssigned",
        PlacementReason::AddressNotUsable => "AddressNotUsable",
        PlacementReason::NoResources => "NoResources",
    };
    format!("{reason}: {message}").into()
}

fn parse_problem(text: &str) -> Option<(PlacementReason, Str)> {
    let (reason, message) = text.split_once(": ")?;
    let reason = match reason {
        "AddressNotAssigned" => PlacementReason::AddressNotAssigned,
        "AddressNotUsable" => PlacementReason::AddressNotUsable,
        "NoResources" => PlacementReason::NoResources,
        _ => return None,
    };
    Some((reason, message.into()))
}
