//! Everything that an engine has made of a Snapshot, and the stages that keep it up to date.

use super::{changes::Changes, claims::Claims};
use crate::{
    compile::{
        CompiledRules, CompiledSlot, EndpointSource, SlotKind, SlotOf, SlotRoute, compile_endpoints,
        compile_frontends, compile_gateway, compile_rules, compile_slot,
    },
    config::{BackendKey, Config, Frontend, GatewayConfig},
    model::{Kind, ObjectKey, Protocol, Workload},
    resolve::{
        Domain, Reader, ResolvedGateway, ResolvedPolicy, ResolvedRoute, RouteId, Settings, Slot, Source,
        Tracker, Unit, World, policy_targets, resolve_gateway, resolve_policy, resolve_route,
    },
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// Older first, then by name.
type Rank = (i64, ObjectKey);

/// A route with its rules compiled for each domain.
#[derive(Debug)]
pub(super) struct RouteState {
    pub(super) resolved: ResolvedRoute,
    gateway: CompiledRules,
    mesh: CompiledRules,
}

/// What has been resolved and compiled so far.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) world: World,
    tracker: Tracker,
    pub(super) gateways: BTreeMap<ObjectKey, Arc<ResolvedGateway>>,
    pub(super) policies: BTreeMap<ObjectKey, Arc<ResolvedPolicy>>,
    pub(super) routes: BTreeMap<RouteId, RouteState>,
    /// Routes attached to a slot.
    attached: BTreeMap<Slot, BTreeSet<RouteId>>,
    pub(super) slots: BTreeMap<Slot, CompiledSlot>,
    /// Routes whose rules lead to a Service.
    pub(super) users: HashMap<ObjectKey, BTreeSet<RouteId>>,
    frontends: Claims<SocketAddr, Rank, Arc<Frontend>>,
    /// What each Service claims in `frontends`.
    frontend_keys: HashMap<ObjectKey, (Rank, Vec<SocketAddr>)>,
    /// The newest pod of an address counts: the older one is about to be reported gone.
    workloads: Claims<IpAddr, (Reverse<i64>, ObjectKey), Arc<Workload>>,
    workload_keys: HashMap<ObjectKey, ((Reverse<i64>, ObjectKey), Arc<Workload>)>,
    /// Services with an endpoint of this address, known pod or not.
    services_by_ip: HashMap<IpAddr, Vec<ObjectKey>>,
    /// Services that wait for a pod to become known.
    services_by_pod: HashMap<ObjectKey, Vec<ObjectKey>>,
    /// What each Service has in `config.endpoints` and in the two indexes above.
    endpoint_keys: HashMap<ObjectKey, EndpointKeys>,
    pub(super) config: Config,
    pub(super) work: super::Work,
}

#[derive(Debug, Default)]
struct EndpointKeys {
    backends: Vec<BackendKey>,
    ips: BTreeSet<IpAddr>,
    pods: BTreeSet<ObjectKey>,
}

/// What the stages have touched: statuses to be made anew.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) classes: BTreeSet<crate::model::Str>,
    pub(super) gateways: BTreeSet<ObjectKey>,
    pub(super) sets: BTreeSet<ObjectKey>,
    pub(super) routes: BTreeSet<RouteId>,
    pub(super) policies: BTreeSet<ObjectKey>,
    /// The Config differs from the one before.
    pub(super) config: bool,
}

impl State {
    /// Runs every stage over the changes, each on what the one before has touched.
    pub(super) fn update(&mut self, settings: &Settings, mut changes: Changes) -> Touched {
        let mut touched = Touched::default();
        touched.classes = self.classes(&changes);
        self.resolve_policies(settings, &mut changes, &mut touched);
        self.resolve_gateways(settings, &mut changes, &mut touched);
        let slots = self.resolve_routes(settings, &mut changes, &mut touched);
        self.compile_slots(slots, &mut changes, &mut touched);
        self.compile_gateways(settings, &mut touched);
        self.compile_frontends(&changes.services, &mut touched);
        self.derive_workloads(settings, &mut changes, &mut touched);
        self.compile_endpoints(&changes.endpoints, &mut touched);
        touched
    }

    /// Dirty units of one kind: changed themselves, or readers of what changed.
    fn dirty<T: Ord>(&self, changes: &Changes, pick: impl Fn(&Unit) -> Option<T>) -> BTreeSet<T> {
        let readers = changes.sources.iter().flat_map(|s| self.tracker.readers(s));
        changes.units.iter().chain(readers).filter_map(pick).collect()
    }

    /// Resolves one unit and records what it read.
    fn read<T>(&mut self, settings: &Settings, unit: &Unit, f: impl FnOnce(&Reader<'_>) -> T) -> T {
        let reader = Reader::new(&self.world, &self.gateways, &self.policies, settings);
        let out = f(&reader);
        self.tracker.record(unit, reader.into_reads());
        out
    }

    /// As [`Self::read`], for statuses: a class is resolved where it is used.
    pub(super) fn read_class<T>(
        &mut self,
        settings: &Settings,
        name: &crate::model::Str,
        f: impl FnOnce(&Reader<'_>) -> T,
    ) -> T {
        self.read(settings, &Unit::Class(name.clone()), f)
    }

    fn classes(&self, changes: &Changes) -> BTreeSet<crate::model::Str> {
        self.dirty(changes, |u| match u {
            Unit::Class(name) => Some(name.clone()),
            _ => None,
        })
    }

    fn resolve_policies(&mut self, settings: &Settings, changes: &mut Changes, touched: &mut Touched) {
        let dirty = self.dirty(changes, |u| match u {
            Unit::Policy(key) => Some(key.clone()),
            _ => None,
        });
        for key in dirty {
            let unit = Unit::Policy(key.clone());
            let policy = self.world.snapshot.tls_policies.get(&key).cloned();
            let new = self.read(settings, &unit, |r| policy.map(|p| Arc::new(resolve_policy(r, &p))));
            self.work.policies += 1;
            let old = self.policies.remove(&key);
            if old != new {
                let targets = old.iter().chain(&new).flat_map(|p| policy_targets(&p.policy));
                changes.sources.extend(targets.map(Source::Policies));
            }
            touched.policies.insert(key.clone());
            if let Some(new) = new {
                self.policies.insert(key, new);
            }
        }
        // A policy that comes, goes or changes decides about the others of the same target.
        for source in &changes.sources {
            if let Source::Policies(service) = source {
                touched.policies.extend(self.world.policies_of.get(service).into_iter().flatten().cloned());
            }
        }
    }

    fn resolve_gateways(&mut self, settings: &Settings, changes: &mut Changes, touched: &mut Touched) {
        let dirty = self.dirty(changes, |u| match u {
            Unit::Gateway(key) => Some(key.clone()),
            _ => None,
        });
        for key in dirty {
            let unit = Unit::Gateway(key.clone());
            let mut new = self.read(settings, &unit, |r| resolve_gateway(r, &key));
            self.work.gateways += 1;
            let old = self.gateways.remove(&key);
            if let Some(new) = &mut new {
                share_tls(new, old.as_deref());
            }
            let new = new.map(Arc::new);
            touched.gateways.insert(key.clone());
            for gateway in old.iter().chain(&new) {
                touched.sets.extend(gateway.sets.iter().map(|s| s.set.meta.key.clone()));
            }
            let same = match (&old, &new) {
                (Some(old), Some(new)) => attaches_alike(old, new),
                (None, None) => true,
                _ => false,
            };
            if !same {
                changes.sources.insert(Source::Listeners(key.clone()));
            }
            if let Some(new) = new {
                self.gateways.insert(key, new);
            }
        }
    }

    /// Gives the slots to be compiled.
    fn resolve_routes(
        &mut self,
        settings: &Settings,
        changes: &mut Changes,
        touched: &mut Touched,
    ) -> BTreeSet<Slot> {
        let dirty = self.dirty(changes, |u| match u {
            Unit::Route(id) => Some(id.clone()),
            _ => None,
        });
        let mut slots = BTreeSet::new();
        for id in dirty {
            let unit = Unit::Route(id.clone());
            let route = self.world.snapshot.routes.get(&id).cloned();
            let new = self.read(settings, &unit, |r| route.map(|route| resolve_route(r, &route)));
            self.work.routes += 1;
            if let Some(old) = self.routes.remove(&id) {
                self.detach(&id, &old.resolved, &mut slots, touched);
            }
            if let Some(resolved) = new {
                self.attach(&id, &resolved, &mut slots, touched);
                let compiled = |domain| {
                    let rules = resolved.rules(domain);
                    rules.map(|r| compile_rules(&resolved.route, r)).unwrap_or_default()
                };
                let (gateway, mesh) = (compiled(Domain::Gateway), compiled(Domain::Mesh));
                self.routes.insert(id.clone(), RouteState { resolved, gateway, mesh });
            }
            touched.routes.insert(id);
        }
        slots
    }

    fn detach(
        &mut self,
        id: &RouteId,
        old: &ResolvedRoute,
        slots: &mut BTreeSet<Slot>,
        touched: &mut Touched,
    ) {
        for slot in old.slots() {
            if let Some(routes) = self.attached.get_mut(slot) {
                routes.remove(id);
                if routes.is_empty() {
                    self.attached.remove(slot);
                }
            }
            slots.insert(slot.clone());
        }
        for service in services(old) {
            if let Some(users) = self.users.get_mut(&service) {
                users.remove(id);
                if users.is_empty() {
                    self.users.remove(&service);
                }
            }
            touched.policies.extend(self.world.policies_of.get(&service).into_iter().flatten().cloned());
        }
    }

    fn attach(
        &mut self,
        id: &RouteId,
        new: &ResolvedRoute,
        slots: &mut BTreeSet<Slot>,
        touched: &mut Touched,
    ) {
        for slot in new.slots() {
            self.attached.entry(slot.clone()).or_default().insert(id.clone());
            slots.insert(slot.clone());
        }
        for service in services(new) {
            touched.policies.extend(self.world.policies_of.get(&service).into_iter().flatten().cloned());
            self.users.entry(service).or_default().insert(id.clone());
        }
    }

    fn compile_slots(&mut self, slots: BTreeSet<Slot>, changes: &mut Changes, touched: &mut Touched) {
        for slot in slots {
            let new = self.slot_kind(&slot).and_then(|kind| {
                let routes = self.attached.get(&slot)?;
                let routes = routes.iter().filter_map(|id| self.slot_route(id, &slot)).collect();
                Some(compile_slot(kind, routes))
            });
            self.work.tables += 1;
            let old = self.slots.remove(&slot).unwrap_or_default();
            let verdicts = new.as_ref().map(|n| &n.verdicts);
            for (id, verdict) in &old.verdicts {
                if verdicts.and_then(|v| v.get(id)) != Some(verdict) {
                    touched.routes.insert(id.clone());
                }
            }
            for id in verdicts.into_iter().flat_map(|v| v.keys()) {
                if !old.verdicts.contains_key(id) {
                    touched.routes.insert(id.clone());
                }
            }
            match &slot {
                Slot::Listener { gateway, id } => {
                    touched.gateways.insert(gateway.clone());
                    touched.sets.extend(id.set.clone());
                }
                Slot::Port { service, .. } => {
                    changes.services.insert(service.clone());
                }
            }
            if let Some(new) = new {
                self.slots.insert(slot, new);
            }
        }
    }

    fn slot_kind(&self, slot: &Slot) -> Option<SlotKind> {
        let Slot::Listener { gateway, id } = slot else { return Some(SlotKind::Port) };
        let gateway = self.gateways.get(gateway)?;
        let listener = gateway.listeners.iter().find(|l| l.attach.id == *id)?;
        match listener.attach.protocol {
            Protocol::Http | Protocol::Https => Some(SlotKind::Http),
            Protocol::Tls => {
                Some(SlotKind::Tls { passthrough: listener.mode == crate::model::TlsMode::Passthrough })
            }
            Protocol::Tcp | Protocol::Udp => Some(SlotKind::L4),
            Protocol::Other(_) => None,
        }
    }

    fn slot_route(&self, id: &RouteId, slot: &Slot) -> Option<SlotRoute<'_>> {
        let state = self.routes.get(id)?;
        let domain = match slot {
            Slot::Listener { .. } => Domain::Gateway,
            Slot::Port { .. } => Domain::Mesh,
        };
        // Two parentRefs may lead to the same listener: its hostnames are there once.
        let attachments = state.resolved.parents.iter().flat_map(|p| &p.attachments);
        let hostnames: BTreeSet<_> =
            attachments.filter(|a| a.slot == *slot).flat_map(|a| a.hostnames.iter().cloned()).collect();
        Some(SlotRoute {
            id: id.clone(),
            created: state.resolved.route.meta.created,
            hostnames: hostnames.into_iter().collect(),
            rules: match domain {
                Domain::Gateway => &state.gateway,
                Domain::Mesh => &state.mesh,
            },
            broken: state.resolved.rules(domain).is_none_or(|r| r.all_dropped()),
        })
    }

    fn compile_gateways(&mut self, settings: &Settings, touched: &mut Touched) {
        for key in &touched.gateways {
            let slot = |id: &crate::resolve::ListenerId| {
                self.slots.get(&Slot::Listener { gateway: key.clone(), id: id.clone() })
            };
            let gateway = self.gateways.get(key);
            let compiled: Option<GatewayConfig> =
                gateway.and_then(|g| compile_gateway(g, &settings.trust_domain, slot));
            let all = Arc::make_mut(&mut self.config.gateways);
            touched.config |= match compiled {
                Some(new) => {
                    all.insert(key.clone(), Arc::new(new));
                    true
                }
                None => all.remove(key).is_some(),
            };
        }
    }

    fn compile_frontends(&mut self, services: &BTreeSet<ObjectKey>, touched: &mut Touched) {
        for key in services {
            self.work.frontends += 1;
            let mut dirty = BTreeSet::new();
            if let Some((rank, keys)) = self.frontend_keys.remove(key) {
                for addr in keys {
                    self.frontends.withdraw(&addr, &rank);
                    dirty.insert(addr);
                }
            }
            if let Some(service) = self.world.snapshot.services.get(key) {
                let frontends = compile_frontends(service, &self.service_slots(key));
                let rank = (service.meta.created, key.clone());
                let keys: Vec<_> = frontends.iter().map(|(addr, _)| *addr).collect();
                for (addr, frontend) in frontends {
                    self.frontends.put(addr, rank.clone(), frontend);
                    dirty.insert(addr);
                }
                self.frontend_keys.insert(key.clone(), (rank, keys));
            }
            for addr in dirty {
                touched.config = true;
                match self.frontends.first(&addr) {
                    Some(frontend) => self.config.frontends.insert(addr, frontend.clone()),
                    None => self.config.frontends.remove(&addr),
                };
            }
        }
    }

    fn service_slots(&self, service: &ObjectKey) -> Vec<SlotOf<'_>> {
        let from = Slot::Port { service: service.clone(), port: 0, consumer: None };
        let slots = self.slots.range(from..);
        slots
            .map_while(|(slot, compiled)| match slot {
                Slot::Port { service: s, port, consumer } if s == service => {
                    Some(SlotOf { port: *port, consumer: consumer.clone(), slot: compiled })
                }
                _ => None,
            })
            .collect()
    }

    fn derive_workloads(&mut self, settings: &Settings, changes: &mut Changes, touched: &mut Touched) {
        for key in &changes.pods {
            let mut dirty: BTreeSet<IpAddr> = BTreeSet::new();
            if let Some((rank, old)) = self.workload_keys.remove(key) {
                for ip in &old.ips {
                    self.workloads.withdraw(ip, &rank);
                    dirty.insert(*ip);
                }
            }
            let snapshot = &self.world.snapshot;
            // Of finished pods the address may be another's; pods in their node's network share its address.
            let pod = snapshot.pods.get(key).filter(|p| !p.finished && !p.host_network);
            if let Some(pod) = pod {
                let namespace = snapshot.namespaces.get(&key.namespace).map(|n| &**n);
                let workload =
                    Workload::derive(pod, namespace, &settings.trust_domain, settings.default_mode);
                let (rank, workload) = ((Reverse(pod.meta.created), key.clone()), Arc::new(workload));
                for ip in &workload.ips {
                    self.workloads.put(*ip, rank.clone(), workload.clone());
                    dirty.insert(*ip);
                }
                self.workload_keys.insert(key.clone(), (rank, workload));
            }
            changes.endpoints.extend(self.services_by_pod.get(key).into_iter().flatten().cloned());
            for ip in dirty {
                let (new, old) = (self.workloads.first(&ip), self.config.workloads.get(&ip));
                if new == old {
                    continue;
                }
                touched.config = true;
                match new.cloned() {
                    Some(workload) => self.config.workloads.insert(ip, workload),
                    None => self.config.workloads.remove(&ip),
                };
                changes.endpoints.extend(self.services_by_ip.get(&ip).into_iter().flatten().cloned());
            }
        }
    }

    fn compile_endpoints(&mut self, services: &BTreeSet<ObjectKey>, touched: &mut Touched) {
        for key in services {
            self.work.endpoints += 1;
            let old = self.endpoint_keys.remove(key).unwrap_or_default();
            let mut new = EndpointKeys::default();
            let mut sets = Vec::new();
            if let Some(service) = self.world.snapshot.services.get(key) {
                let keys = self.world.slices_of.get(key).into_iter().flatten();
                let slices: Vec<_> =
                    keys.filter_map(|k| self.world.snapshot.endpoint_slices.get(k)).collect();
                for endpoint in slices.iter().flat_map(|s| &s.endpoints) {
                    new.ips.extend(&endpoint.addresses);
                    new.pods.extend(endpoint.pod.clone());
                }
                sets = compile_endpoints(service, slices.iter().map(|s| &***s), |ip, pod| self.find(ip, pod));
            }
            reindex(&mut self.services_by_ip, key, &old.ips, &new.ips);
            reindex(&mut self.services_by_pod, key, &old.pods, &new.pods);
            new.backends = sets.iter().map(|(k, _)| k.clone()).collect();
            for gone in old.backends.iter().filter(|k| !new.backends.contains(k)) {
                touched.config |= self.config.endpoints.remove(gone).is_some();
            }
            for (backend, set) in sets {
                if self.config.endpoints.get(&backend).is_none_or(|old| **old != set) {
                    self.config.endpoints.insert(backend, Arc::new(set));
                    touched.config = true;
                }
            }
            if !new.backends.is_empty() || !new.ips.is_empty() {
                self.endpoint_keys.insert(key.clone(), new);
            }
        }
    }

    fn find(&self, ip: IpAddr, pod: Option<&ObjectKey>) -> EndpointSource {
        let known = self.workloads.first(&ip);
        let Some(pod) = pod else {
            return known.cloned().map_or(EndpointSource::Plain, EndpointSource::Workload);
        };
        match known {
            Some(workload) if workload.pod == *pod => EndpointSource::Workload(workload.clone()),
            Some(_) => EndpointSource::Unknown,
            None => match self.world.snapshot.pods.get(pod) {
                Some(pod) if pod.host_network => EndpointSource::Plain,
                _ => EndpointSource::Unknown,
            },
        }
    }
}

/// Services that the rules of a route lead to.
fn services(route: &ResolvedRoute) -> BTreeSet<ObjectKey> {
    let rules = route.gateway_rules.iter().chain(&route.mesh_rules);
    rules.flat_map(|r| r.services.iter().cloned()).collect()
}

/// Makes equal TLS values the same `Arc`, that of before if there was one.
fn share_tls(new: &mut ResolvedGateway, old: Option<&ResolvedGateway>) {
    let mut known: Vec<_> =
        old.into_iter().flat_map(|g| g.listeners.iter().filter_map(|l| l.tls.clone())).collect();
    for tls in new.listeners.iter_mut().filter_map(|l| l.tls.as_mut()) {
        match known.iter().find(|k| *k == tls) {
            Some(same) => *tls = same.clone(),
            None => known.push(tls.clone()),
        }
    }
}

/// Whether routes see no difference between two resolutions of a Gateway.
fn attaches_alike(old: &ResolvedGateway, new: &ResolvedGateway) -> bool {
    let points = |g: &ResolvedGateway| {
        // The mode decides what kind of table a listener has.
        g.listeners.iter().map(|l| (l.attach.clone(), l.mode)).collect::<Vec<_>>()
    };
    let sets = |g: &ResolvedGateway| {
        g.sets.iter().map(|s| (s.set.meta.key.clone(), s.admitted.clone())).collect::<Vec<_>>()
    };
    old.accepted == new.accepted && points(old) == points(new) && sets(old) == sets(new)
}

fn reindex<K: std::hash::Hash + Eq + Ord + Clone>(
    index: &mut HashMap<K, Vec<ObjectKey>>,
    key: &ObjectKey,
    old: &BTreeSet<K>,
    new: &BTreeSet<K>,
) {
    for gone in old.difference(new) {
        if let Some(keys) = index.get_mut(gone) {
            keys.retain(|k| k != key);
            if keys.is_empty() {
                index.remove(gone);
            }
        }
    }
    for added in new.difference(old) {
        index.entry(added.clone()).or_default().push(key.clone());
    }
}

/// Kind of a route's object, for statuses.
pub(super) const fn route_kind(id: &RouteId) -> Kind {
    id.0.kind()
}
