//! What shall be in the cluster for the Gateways of our classes. Pure: the world in, objects out.

use super::{
    hosts::{self, Host},
    names::{
        ADDRESS_MODE, ADDRESS_OWNER, ADDRESSES, GATEWAY, GATEWAY_NAME, GATEWAY_UID, MANAGED_BY,
        NODE_SELECTOR, PROBLEM, REFUSED_NODES, SERVICE_NAME, SLICE_MANAGED_BY, is_managed, object_key,
        parse_addresses, parse_slice_name, slice_name,
    },
    objects::{Body, Common, Wanted, WantedPort, WantedService, label_value, manager, over},
    placement::{problem_text, requested, slices_of},
    pool::{self, Granted, Wish},
    targets::{self, Ports},
};
use crate::pack::{Packed, pack};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};
use tokio::time::Instant;
use weft_core::{
    config::{Config, Transport},
    model::{
        AddressMode, AddressType, CONTROLLER_NAME, Gateway, GatewayParameters, Labels, Node, ObjectKey,
        PlacementReason, SliceEndpoint, Snapshot, Str,
    },
};

/// The API server allows 1,000 endpoints a slice; a change of one rewrites the slice.
const SLICE_CAPACITY: usize = 500;

/// Which agents serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// Nodes whose agent is connected, or was less than 10 s ago.
    pub nodes: BTreeSet<Str>,
    /// Nodes that cannot serve a Gateway (a port that is taken there): only that Gateway leaves them. Not for nodes that
    /// are merely behind: after every edit all of them are for a moment.
    pub unable: BTreeMap<ObjectKey, BTreeSet<Str>>,
    /// Since when there have been such nodes, under this leader; `None` without any. That nobody comes says more about the
    /// leader's own way to the agents than about all of them.
    pub heard: Option<Instant>,
}

/// What one accepted Gateway of ours asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Ports with a listener that serves.
    pub ports: BTreeSet<(u16, Transport)>,
    /// Its settings.
    pub parameters: Arc<GatewayParameters>,
}

/// Demands by Gateway.
pub type Demands = BTreeMap<ObjectKey, Demand>;

/// The demands of everything that was compiled: what is provisioned is what is served.
#[must_use]
pub fn demands(config: &Config) -> Demands {
    let one = |(key, gateway): (&ObjectKey, &Arc<weft_core::config::GatewayConfig>)| {
        let ports = gateway.ports.keys().copied().collect();
        (key.clone(), Demand { ports, parameters: gateway.parameters.clone() })
    };
    config.gateways.iter().map(one).collect()
}

/// What has been given away: kept in the objects, and remembered between plans since a watch lags behind what was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    pub(super) targets: BTreeMap<ObjectKey, Ports>,
    pub(super) addresses: BTreeMap<ObjectKey, Vec<IpAddr>>,
    pub(super) owners: BTreeMap<ObjectKey, Str>,
}

/// Input of [`plan`].
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The watched world.
    pub world: &'a Snapshot,
    /// The Gateways that are served.
    pub demands: &'a Demands,
    /// Which agents serve.
    pub serving: &'a Serving,
    /// Whether `serving` can be believed. A controller that leads only now does not know its agents yet: nodes that stand
    /// in the objects count as serving until it does.
    pub settled: bool,
    /// What the plan before has assigned.
    pub before: &'a Assigned,
}

/// Everything that shall be there.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub(super) objects: Vec<Wanted>,
    /// Services whose Gateway is planned: slices of theirs that are not in `objects` go.
    pub(super) planned: BTreeSet<ObjectKey>,
    /// For the next plan.
    pub assigned: Assigned,
}

/// A Gateway that is provisioned now.
#[derive(Clone, Copy)]
pub(super) struct Active<'a> {
    pub(super) key: &'a ObjectKey,
    pub(super) gateway: &'a Arc<Gateway>,
    pub(super) demand: &'a Demand,
}

impl Active<'_> {
    pub(super) fn mode(&self) -> AddressMode {
        self.demand.parameters.mode
    }

    pub(super) fn ports(&self) -> BTreeSet<(u16, Transport)> {
        self.demand.ports.clone()
    }

    fn selects(&self, node: &Node) -> bool {
        super::placement::selected(&self.demand.parameters.node_selector, node)
    }
}

/// Where one Gateway is served.
#[derive(Default)]
struct Place {
    ports: Ports,
    /// Addresses for the annotation.
    addresses: Vec<IpAddr>,
    owner: Option<Str>,
    refused: Vec<Str>,
    problem: Option<(PlacementReason, String)>,
    /// Node and its address, one of each family.
    endpoints: Vec<(Str, IpAddr)>,
}

impl Assigned {
    /// What the objects say. Slices of Gateways that are gone hold their ports until they are gone too.
    fn read(world: &Snapshot) -> Self {
        let mut out = Self::default();
        for key in world.gateways.keys() {
            let name = object_key(key);
            let ports: Ports = slices_of(&world.endpoint_slices, &name)
                .flat_map(|(_, s)| super::placement::ports(s).collect::<Vec<_>>())
                .collect();
            if !ports.is_empty() {
                out.targets.insert(key.clone(), ports);
            }
            let service = world.services.get(&name).filter(|s| is_managed(&s.meta.labels));
            let Some(annotations) = service.map(|s| &s.meta.annotations) else { continue };
            if annotations.get(ADDRESS_MODE).is_some_and(|m| &**m == AddressMode::AddressPool.as_str()) {
                out.addresses.insert(key.clone(), parse_addresses(annotations));
                out.owners.extend(annotations.get(ADDRESS_OWNER).map(|o| (key.clone(), o.clone())));
            }
        }
        out
    }

    /// With what was remembered over what was read.
    fn under(mut self, before: &Self) -> Self {
        self.targets.extend(before.targets.iter().map(|(k, v)| (k.clone(), v.clone())));
        self.addresses.extend(before.addresses.iter().map(|(k, v)| (k.clone(), v.clone())));
        self.owners.extend(before.owners.iter().map(|(k, v)| (k.clone(), v.clone())));
        self
    }

    fn retain(&mut self, keep: impl Fn(&ObjectKey) -> bool) {
        self.targets.retain(|k, _| keep(k));
        self.addresses.retain(|k, _| keep(k));
        self.owners.retain(|k, _| keep(k));
    }
}

/// Plans everything. A Gateway of ours that demands nothing, or has no port that serves, keeps what it has: a broken
/// object never costs it its address.
#[must_use]
pub fn plan(input: &Input<'_>) -> Plan {
    let mut before = Assigned::read(input.world).under(input.before);
    before.retain(|key| input.world.gateways.contains_key(key) && !is_foreign_class(input.world, key));
    let active = active(input);
    let planned: BTreeSet<&ObjectKey> = active.iter().map(|a| a.key).collect();
    let mut next = before.clone();
    next.retain(|key| !planned.contains(key));
    let mut places = BTreeMap::new();
    place_balancers(input, &active, &before, &mut next, &mut places);
    place_pools(input, &active, &before, &mut next, &mut places);
    place_hosts(input, &active, &next.targets, &mut places);
    let mut plan = Plan { assigned: next, ..Plan::default() };
    for gateway in &active {
        let place = places.remove(gateway.key).unwrap_or_default();
        plan.planned.insert(object_key(gateway.key));
        objects(input, gateway, place, &mut plan.objects);
    }
    plan
}

/// Whether a Gateway is certainly not ours: its class is there and somebody else's. Without the class nobody knows, and
/// nothing is taken away.
pub(super) fn is_foreign_class(world: &Snapshot, gateway: &ObjectKey) -> bool {
    let class = world.gateways.get(gateway).and_then(|g| world.classes.get(&g.class));
    class.is_some_and(|c| &*c.controller != CONTROLLER_NAME)
}

/// Oldest first.
fn active<'a>(input: &Input<'a>) -> Vec<Active<'a>> {
    let world = input.world;
    let one = |(key, demand): (&'a ObjectKey, &'a Demand)| {
        let gateway = world.gateways.get(key)?;
        // A Service of this name that is somebody else's stays theirs; the placement says so.
        let foreign = world.services.get(&object_key(key)).is_some_and(|s| !is_managed(&s.meta.labels));
        (!foreign && !demand.ports.is_empty() && !is_foreign_class(world, key)).then_some(Active {
            key,
            gateway,
            demand,
        })
    };
    let mut out: Vec<_> = input.demands.iter().filter_map(one).collect();
    out.sort_by_key(|a| (a.gateway.meta.created, a.key));
    out
}

fn of_mode<'a, 'b>(active: &'b [Active<'a>], mode: AddressMode) -> impl Iterator<Item = &'b Active<'a>> {
    active.iter().filter(move |a| a.mode() == mode)
}

fn place_balancers(
    input: &Input<'_>,
    active: &[Active<'_>],
    before: &Assigned,
    next: &mut Assigned,
    places: &mut BTreeMap<ObjectKey, Place>,
) {
    // Ports of Gateways that are gone, of those that keep theirs, and of HostPort Gateways on the same addresses.
    let mut taken = orphans(input.world);
    taken.extend(next.targets.values().flat_map(|p| p.values().copied()));
    taken.extend(of_mode(active, AddressMode::HostPort).flat_map(|a| a.ports()).map(|(port, _)| port));
    let wanted: Vec<_> = of_mode(active, AddressMode::LoadBalancer).map(|a| (a.key, a.ports())).collect();
    let assigned = targets::assign(&wanted, &before.targets, taken);
    for gateway in of_mode(active, AddressMode::LoadBalancer) {
        let ports = assigned.get(gateway.key).cloned().unwrap_or_default();
        let missing = gateway.ports().into_iter().find(|at| !ports.contains_key(at));
        let problem = missing.map(|(port, _)| {
            (PlacementReason::NoResources, format!("no target port (20000–29999) is free for port {port}"))
        });
        let serving =
            input.world.nodes.values().filter(|n| gateway.selects(n) && serves(input, gateway.key, n));
        let endpoints = serving.flat_map(|n| node_endpoints(n, |_| true)).collect();
        next.targets.insert(gateway.key.clone(), ports.clone());
        places.insert(gateway.key.clone(), Place { ports, problem, endpoints, ..Place::default() });
    }
}

/// Target ports in slices of Gateways that are gone.
fn orphans(world: &Snapshot) -> BTreeSet<u16> {
    let live: BTreeSet<ObjectKey> = world.gateways.keys().map(object_key).collect();
    let gone = world.endpoint_slices.values().filter(|s| is_managed(&s.meta.labels));
    let gone = gone.filter(|s| !live.contains(&s.service));
    gone.flat_map(|s| super::placement::ports(s).map(|(_, port)| port).collect::<Vec<_>>()).collect()
}

fn place_pools(
    input: &Input<'_>,
    active: &[Active<'_>],
    before: &Assigned,
    next: &mut Assigned,
    places: &mut BTreeMap<ObjectKey, Place>,
) {
    let mut reserved: BTreeSet<IpAddr> =
        input.world.nodes.values().flat_map(|n| n.addresses.iter().copied()).collect();
    // What Gateways keep that are not planned.
    reserved.extend(next.addresses.values().flatten().copied());
    let wishes: Vec<_> = of_mode(active, AddressMode::AddressPool).map(wish).collect();
    let mut granted = pool::assign(&wishes, &before.addresses, &reserved);
    let mut load: BTreeMap<Str, usize> = BTreeMap::new();
    for owner in next.owners.values() {
        *load.entry(owner.clone()).or_default() += 1;
    }
    // First those who stay, so that the rest goes where least is.
    let mut owners: BTreeMap<&ObjectKey, Str> = BTreeMap::new();
    for gateway in of_mode(active, AddressMode::AddressPool) {
        let stays = before.owners.get(gateway.key).filter(|o| can_own(input, gateway, o));
        if let Some(owner) = stays {
            *load.entry(owner.clone()).or_default() += 1;
            owners.insert(gateway.key, owner.clone());
        }
    }
    for gateway in of_mode(active, AddressMode::AddressPool) {
        let owner = owners.get(gateway.key).cloned().or_else(|| {
            let able = input.world.nodes.keys().filter(|n| can_own(input, gateway, n));
            let owner = able.min_by_key(|n| (load.get(*n).copied().unwrap_or(0), *n))?.clone();
            *load.entry(owner.clone()).or_default() += 1;
            Some(owner)
        });
        let granted = granted.remove(gateway.key).unwrap_or_default();
        next.addresses.insert(gateway.key.clone(), granted.addresses.clone());
        next.owners.extend(owner.clone().map(|o| (gateway.key.clone(), o)));
        let endpoints =
            owner.iter().flat_map(|o| granted.addresses.iter().map(|ip| (o.clone(), *ip))).collect();
        places.insert(
            gateway.key.clone(),
            Place {
                ports: same_ports(gateway),
                problem: pool_problem(&granted),
                addresses: granted.addresses,
                owner,
                endpoints,
                ..Place::default()
            },
        );
    }
}

/// What a Gateway asks of its pool.
fn wish<'a>(active: &Active<'a>) -> Wish<'a> {
    let pool = active.demand.parameters.pool.as_slice();
    let empty = |a: &&weft_core::model::GatewayAddress| {
        a.kind == AddressType::IpAddress && a.value.as_deref().is_none_or(str::is_empty)
    };
    let wanted = &active.gateway.addresses;
    let any = if wanted.is_empty() { pool::families(pool) } else { wanted.iter().filter(empty).count() };
    Wish { gateway: active.key, pool, named: requested(active.gateway).collect(), any }
}

fn pool_problem(granted: &Granted) -> Option<(PlacementReason, String)> {
    if !granted.refused.is_empty() {
        let each: Vec<String> = granted.refused.iter().map(|(ip, why)| format!("{ip}: {why}")).collect();
        return Some((PlacementReason::AddressNotUsable, format!("spec.addresses: {}", each.join("; "))));
    }
    let message = || "the address pool has no free address left".to_owned();
    granted.exhausted.then(|| (PlacementReason::AddressNotAssigned, message()))
}

/// An owner is a node that is there and serves the Gateway.
fn can_own(input: &Input<'_>, gateway: &Active<'_>, node: &Str) -> bool {
    let Some(node) = input.world.nodes.get(node) else { return false };
    gateway.selects(node) && serves(input, gateway.key, node)
}

fn place_hosts(
    input: &Input<'_>,
    active: &[Active<'_>],
    targets: &BTreeMap<ObjectKey, Ports>,
    places: &mut BTreeMap<ObjectKey, Place>,
) {
    let wanted: Vec<_> = of_mode(active, AddressMode::HostPort)
        .map(|a| Host { key: a.key, ports: a.ports(), nodes: host_nodes(input, a).collect() })
        .collect();
    let mut refused = hosts::conflicts(&wanted, targets);
    for (gateway, host) in of_mode(active, AddressMode::HostPort).zip(&wanted) {
        let refused = refused.remove(gateway.key).unwrap_or_default();
        let asked: BTreeSet<IpAddr> = requested(gateway.gateway).collect();
        let ours = |ip: &IpAddr| asked.is_empty() || asked.contains(ip);
        let able = host.nodes.iter().filter(|n| !refused.nodes.contains(&n.meta.key.name));
        let able: Vec<_> = able.filter(|n| serves(input, gateway.key, n)).collect();
        let missing: Vec<String> = asked
            .iter()
            .filter(|ip| !host.nodes.iter().any(|n| n.addresses.contains(ip)))
            .map(|ip| format!("{ip} is no address of a node that may serve it"))
            .collect();
        let problem = if missing.is_empty() {
            refused.message.map(|m| (PlacementReason::AddressNotUsable, m))
        } else {
            Some((PlacementReason::AddressNotUsable, format!("spec.addresses: {}", missing.join("; "))))
        };
        let addresses = able.iter().flat_map(|n| n.addresses.iter().copied().filter(ours));
        places.insert(
            gateway.key.clone(),
            Place {
                ports: same_ports(gateway),
                // More are not shown in a Gateway's status either, and 5,000 nodes would not fit into an annotation.
                addresses: addresses.take(16).collect(),
                refused: refused.nodes.into_iter().collect(),
                problem,
                endpoints: able.iter().flat_map(|n| node_endpoints(n, ours)).collect(),
                ..Place::default()
            },
        );
    }
}

/// Nodes that a HostPort Gateway may bind, serving or not: who comes back finds its port as it left it.
fn host_nodes<'a>(input: &Input<'a>, gateway: &Active<'_>) -> impl Iterator<Item = &'a Arc<Node>> {
    let asked: BTreeSet<IpAddr> = requested(gateway.gateway).collect();
    let selector = gateway.demand.parameters.node_selector.clone();
    input.world.nodes.values().filter(move |n| {
        let named = asked.is_empty() || n.addresses.iter().any(|ip| asked.contains(ip));
        named && super::placement::selected(&selector, n)
    })
}

fn same_ports(gateway: &Active<'_>) -> Ports {
    gateway.demand.ports.iter().map(|at| (*at, at.0)).collect()
}

/// Whether a node serves a Gateway, as far as is known.
fn serves(input: &Input<'_>, gateway: &ObjectKey, node: &Node) -> bool {
    let name = &node.meta.key.name;
    if input.serving.unable.get(gateway).is_some_and(|nodes| nodes.contains(name)) {
        return false;
    }
    input.serving.nodes.contains(name) || (!input.settled && stood(input, gateway, name))
}

/// Whether the objects name the node.
fn stood(input: &Input<'_>, gateway: &ObjectKey, node: &Str) -> bool {
    let service = object_key(gateway);
    let owns = |s: &Arc<weft_core::model::Service>| s.meta.annotations.get(ADDRESS_OWNER) == Some(node);
    input.world.services.get(&service).is_some_and(owns)
        || slices_of(&input.world.endpoint_slices, &service)
            .any(|(_, s)| s.endpoints.iter().any(|e| e.node.as_ref() == Some(node)))
}

/// One address of each family: of more, kube-proxy reads only the first.
fn node_endpoints(node: &Node, ours: impl Fn(&IpAddr) -> bool) -> impl Iterator<Item = (Str, IpAddr)> {
    let first = |v6: bool| node.addresses.iter().copied().find(|ip| ip.is_ipv6() == v6 && ours(ip));
    let name = node.meta.key.name.clone();
    [first(false), first(true)].into_iter().flatten().map(move |ip| (name.clone(), ip))
}

/// ServiceAccount, Service and EndpointSlices of one Gateway.
fn objects(input: &Input<'_>, gateway: &Active<'_>, place: Place, out: &mut Vec<Wanted>) {
    let key = object_key(gateway.key);
    let common = common(gateway);
    let ports: Vec<_> = place
        .ports
        .iter()
        .map(|(&(port, transport), &target)| WantedPort { port, transport, target })
        .collect();
    out.push(Wanted::new(&common, key.clone(), Body::Account));
    slices(input, &common, &place, &ports, out);
    // A Service must have a port.
    if ports.is_empty() {
        return;
    }
    let parameters = &gateway.demand.parameters;
    let balancer = (gateway.mode() == AddressMode::LoadBalancer).then(|| (**parameters).clone());
    let nodes = || input.world.nodes.values().flat_map(|n| &n.addresses);
    let service = WantedService {
        address: balancer.as_ref().and_then(|_| requested(gateway.gateway).next()),
        balancer,
        dual_stack: nodes().any(IpAddr::is_ipv4) && nodes().any(IpAddr::is_ipv6),
        ports,
    };
    let mut service = Wanted::new(&common, key, Body::Service(service));
    service.annotations = over(&common.annotations, told(gateway, &place));
    out.push(service);
}

fn common(gateway: &Active<'_>) -> Common {
    let none = Labels::new();
    let infrastructure = gateway.gateway.infrastructure.as_ref();
    let (labels, annotations) = infrastructure.map_or((&none, &none), |i| (&i.labels, &i.annotations));
    // Agents act on what stands under our names: a Gateway's author must not write there.
    let foreign = |l: &Labels| -> Labels {
        l.iter().filter(|(k, _)| !k.starts_with("weft.dev/")).map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    Common {
        gateway: gateway.key.clone(),
        gateway_uid: gateway.gateway.meta.uid.clone(),
        labels: over(
            &foreign(labels),
            [
                (MANAGED_BY, manager()),
                (GATEWAY_NAME, label_value(&gateway.key.name)),
                ("gateway.networking.k8s.io/gateway-class-name", label_value(&gateway.gateway.class)),
            ],
        ),
        annotations: over(
            &foreign(annotations),
            [(GATEWAY, gateway.key.name.clone()), (GATEWAY_UID, gateway.gateway.meta.uid.clone())],
        ),
    }
}

/// What the Service tells the agents.
fn told(gateway: &Active<'_>, place: &Place) -> Vec<(&'static str, Str)> {
    let mut out = vec![(ADDRESS_MODE, Str::from(gateway.mode().as_str()))];
    let mut list = |name, texts: Vec<String>| {
        if let (false, Ok(text)) = (texts.is_empty(), serde_json::to_string(&texts)) {
            out.push((name, text.into()));
        }
    };
    list(ADDRESSES, place.addresses.iter().map(ToString::to_string).collect());
    list(REFUSED_NODES, place.refused.iter().map(ToString::to_string).collect());
    let selector: BTreeMap<&str, &str> =
        gateway.demand.parameters.node_selector.iter().map(|(k, v)| (&**k, &**v)).collect();
    if let (false, Ok(text)) = (selector.is_empty(), serde_json::to_string(&selector)) {
        out.push((NODE_SELECTOR, text.into()));
    }
    out.extend(place.owner.clone().map(|owner| (ADDRESS_OWNER, owner)));
    out.extend(place.problem.as_ref().map(|(why, message)| (PROBLEM, problem_text(*why, message))));
    out
}

fn slices(input: &Input<'_>, common: &Common, place: &Place, ports: &[WantedPort], out: &mut Vec<Wanted>) {
    let service = &object_key(&common.gateway);
    let all = || place.endpoints.iter().map(|(_, ip)| ip);
    let nodes = || input.world.nodes.values().flat_map(|n| &n.addresses);
    for v6 in [false, true] {
        let has = all().any(|ip| ip.is_ipv6() == v6);
        // Without endpoints one slice still tells the agents which ports to bind.
        let only =
            all().next().is_none() && v6 == (nodes().any(IpAddr::is_ipv6) && !nodes().any(IpAddr::is_ipv4));
        if !has && !only {
            continue;
        }
        let of_family: BTreeSet<(Str, IpAddr)> =
            place.endpoints.iter().filter(|(_, ip)| ip.is_ipv6() == v6).cloned().collect();
        let mut packed = pack(&of_family, &existing(input.world, service, v6), SLICE_CAPACITY);
        packed.entry(0).or_default();
        for (number, members) in packed {
            let endpoints = members.iter().map(|(node, ip)| slice_endpoint(input.world, node, *ip)).collect();
            let body = Body::Slice { v6, endpoints, ports: ports.to_vec() };
            let key =
                ObjectKey { namespace: service.namespace.clone(), name: slice_name(service, v6, number) };
            let mut slice = Wanted::new(common, key, body);
            slice.labels =
                over(&slice.labels, [(SERVICE_NAME, service.name.clone()), (SLICE_MANAGED_BY, manager())]);
            out.push(slice);
        }
    }
}

/// Who is in which slice now.
fn existing(world: &Snapshot, service: &ObjectKey, v6: bool) -> Packed<(Str, IpAddr)> {
    let numbered = slices_of(&world.endpoint_slices, service).filter_map(|(key, slice)| {
        let (family, number) = parse_slice_name(service, &key.name)?;
        let members = slice.endpoints.iter().filter_map(|e| Some((e.node.clone()?, *e.addresses.first()?)));
        (family == v6).then(|| (number, members.collect()))
    });
    numbered.collect()
}

fn slice_endpoint(world: &Snapshot, node: &Str, ip: IpAddr) -> SliceEndpoint {
    SliceEndpoint {
        addresses: vec![ip],
        ready: true,
        serving: true,
        terminating: false,
        node: Some(node.clone()),
        zone: world.nodes.get(node).and_then(|n| n.zone().cloned()),
        for_zones: Vec::new(),
        for_nodes: Vec::new(),
        pod: None,
    }
}
