//! Everything that an engine has made of a Snapshot, and the stages that keep it up to date.

use super::{
    addresses::{Addresses, PodRank},
    changes::Changes,
    claims::Claims,
    quota::{Ledger, admit},
};
use crate::{
    compile::{CompiledRules, CompiledSlot, compile_rules},
    config::{BackendKey, Config, Frontend},
    model::{Kind, ObjectKey, Pattern, Str},
    resolve::{
        Domain, Reader, ResolvedGateway, ResolvedListener, ResolvedPolicy, ResolvedRoute, RouteId, Settings,
        Slot, Source, Tracker, Unit, World, policy_targets, resolve_gateway, resolve_policy, resolve_route,
    },
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// A ClusterIP before an external address, which anybody may write into a Service of theirs; then older first, then by
/// name.
pub(super) type Rank = (Claimed, i64, ObjectKey);

/// By which right a Service has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claimed {
    /// The cluster gave it as ClusterIP.
    ClusterIp,
    /// The Service says so (`externalIPs`), or its load balancer does.
    External,
}

/// A route with its rules compiled for each domain.
#[derive(Debug)]
pub(super) struct RouteState {
    /// As it is served.
    pub(super) resolved: ResolvedRoute,
    /// As it was before the budgets of its namespace were asked, where that is something else.
    raw: Option<ResolvedRoute>,
    pub(super) gateway: CompiledRules,
    pub(super) mesh: CompiledRules,
}

impl RouteState {
    fn raw(&self) -> &ResolvedRoute {
        self.raw.as_ref().unwrap_or(&self.resolved)
    }
}

/// What has been resolved and compiled so far.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) world: World,
    pub(super) tracker: Tracker,
    pub(super) gateways: BTreeMap<ObjectKey, Arc<ResolvedGateway>>,
    pub(super) policies: BTreeMap<ObjectKey, Arc<ResolvedPolicy>>,
    pub(super) routes: BTreeMap<RouteId, RouteState>,
    pub(super) ledger: Ledger,
    /// Routes attached to a slot.
    pub(super) attached: BTreeMap<Slot, BTreeSet<RouteId>>,
    pub(super) slots: BTreeMap<Slot, CompiledSlot>,
    /// Routes whose rules lead to a Service.
    pub(super) users: HashMap<ObjectKey, BTreeSet<RouteId>>,
    pub(super) frontends: Claims<SocketAddr, Rank, Arc<Frontend>>,
    /// What each Service claims in `frontends`.
    pub(super) frontend_keys: HashMap<ObjectKey, Vec<(SocketAddr, Rank)>>,
    pub(super) workloads: Addresses,
    /// Pods of other nodes that are in their node's network: told of by controllers since they are not guessed by address.
    pub(super) host_pods: BTreeSet<ObjectKey>,
    /// How many addresses of enrolled pods each block of addresses has.
    pub(super) proved_blocks: BTreeMap<IpNet, usize>,
    /// What each pod claims in `workloads`.
    pub(super) workload_keys: HashMap<ObjectKey, Vec<(IpAddr, PodRank)>>,
    /// Services with an endpoint of this address, known pod or not.
    pub(super) services_by_ip: HashMap<IpAddr, Vec<ObjectKey>>,
    /// Services that wait for a pod to become known.
    pub(super) services_by_pod: HashMap<ObjectKey, Vec<ObjectKey>>,
    /// What each Service has in `config.endpoints` and in the two indexes above.
    pub(super) endpoint_keys: HashMap<ObjectKey, EndpointKeys>,
    /// Enrolled pods by namespace: who can use routes on Services.
    pub(super) clients: BTreeMap<Str, usize>,
    pub(super) config: Config,
    pub(super) work: super::Work,
}

/// What one Service has in the maps of [`State`].
#[derive(Debug, Default)]
pub(super) struct EndpointKeys {
    pub(super) backends: Vec<BackendKey>,
    pub(super) ips: BTreeSet<IpAddr>,
    pub(super) pods: BTreeSet<ObjectKey>,
}

/// What the stages have touched: statuses to be made anew.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) classes: BTreeSet<Str>,
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
        let mut touched = Touched { classes: self.classes(&changes), ..Touched::default() };
        if self.config.node != settings.node {
            self.config.node.clone_from(&settings.node);
            touched.config = true;
        }
        self.resolve_policies(settings, &mut changes, &mut touched);
        self.resolve_gateways(settings, &mut changes, &mut touched);
        let slots = self.resolve_routes(settings, &mut changes, &mut touched);
        self.compile_slots(slots, &mut changes, &mut touched);
        self.compile_gateways(settings, &mut touched);
        self.compile_frontends(&changes.services, &mut touched);
        self.note_nodes(&mut changes, &mut touched);
        let pods = changes.pods.clone();
        let was = self.enrolled(&pods);
        self.derive_workloads(settings, &mut changes, &mut touched);
        let is = self.enrolled(&pods);
        self.count_clients(was, is, &mut touched);
        self.note_networks(settings, changes.networks, &mut touched);
        self.compile_endpoints(settings, &changes.endpoints, &mut touched);
        touched
    }

    /// How many of these pods are enrolled, by namespace.
    fn enrolled(&self, pods: &BTreeSet<ObjectKey>) -> BTreeMap<Str, usize> {
        let mut out = BTreeMap::new();
        let claim = |(ip, rank): &(IpAddr, PodRank)| {
            self.workloads.of(ip).iter().any(|(of, workload)| of == rank && workload.enrolled)
        };
        let enrolled = |key: &&ObjectKey| self.workload_keys.get(*key).is_some_and(|c| c.iter().any(claim));
        for key in pods.iter().filter(enrolled) {
            *out.entry(key.namespace.clone()).or_default() += 1;
        }
        out
    }

    /// Routes on Services say when nobody can use them: those are touched whose clients are the first, or were the last.
    fn count_clients(&mut self, was: BTreeMap<Str, usize>, is: BTreeMap<Str, usize>, touched: &mut Touched) {
        if was == is {
            return;
        }
        let before = (!self.clients.is_empty(), self.clients.keys().cloned().collect::<BTreeSet<_>>());
        for (namespace, n) in is {
            *self.clients.entry(namespace).or_default() += n;
        }
        for (namespace, n) in was {
            let left = self.clients.get(&namespace).copied().unwrap_or(0).saturating_sub(n);
            if left == 0 {
                self.clients.remove(&namespace);
            } else {
                self.clients.insert(namespace, left);
            }
        }
        let after = (!self.clients.is_empty(), self.clients.keys().cloned().collect::<BTreeSet<_>>());
        if before == after {
            return;
        }
        let turned = |consumer: &Option<Str>| match consumer {
            None => before.0 != after.0,
            Some(namespace) => before.1.contains(namespace) != after.1.contains(namespace),
        };
        for (slot, routes) in &self.attached {
            if let Slot::Port { consumer, .. } = slot
                && turned(consumer)
            {
                touched.routes.extend(routes.iter().cloned());
            }
        }
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
        name: &Str,
        f: impl FnOnce(&Reader<'_>) -> T,
    ) -> T {
        self.read(settings, &Unit::Class(name.clone()), f)
    }

    fn classes(&self, changes: &Changes) -> BTreeSet<Str> {
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
            if self.gateways.get(&key).map(|g| &**g) == new.as_ref() {
                continue;
            }
            let old = self.gateways.remove(&key);
            if let Some(new) = &mut new {
                share_tls(new, old.as_deref());
            }
            let new = new.map(Arc::new);
            touched.gateways.insert(key.clone());
            for gateway in old.iter().chain(&new) {
                touched.sets.extend(gateway.sets.iter().map(|s| s.set.meta.key.clone()));
            }
            if let (Some(old), Some(new)) = (&old, &new) {
                for (was, is) in same_listeners(old, new) {
                    let slot = Slot::Listener { gateway: key.clone(), id: is.attach.id.clone() };
                    // Routes say whether their listeners serve, though they may be resolved as before.
                    if (&was.accepted, &was.servable) != (&is.accepted, &is.servable) {
                        touched.routes.extend(self.attached.get(&slot).into_iter().flatten().cloned());
                    }
                    if (&was.attach.protocol, was.mode) != (&is.attach.protocol, is.mode) {
                        changes.slots.insert(slot);
                    }
                }
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
        let mut resolved: BTreeMap<RouteId, Option<ResolvedRoute>> = BTreeMap::new();
        for id in dirty {
            let unit = Unit::Route(id.clone());
            let route = self.world.snapshot.routes.get(&id).cloned();
            let new = self.read(settings, &unit, |r| route.map(|route| resolve_route(r, &route)));
            self.work.routes += 1;
            // A Service or grant that changes in a way that says nothing new rebuilds no table.
            if self.routes.get(&id).map(RouteState::raw) == new.as_ref() {
                continue;
            }
            self.ledger.set(&id, new.as_ref());
            resolved.insert(id, new);
        }
        // Routes of the same namespace that have come within its budgets, or out of them.
        for id in self.ledger.settle() {
            let same = self.routes.get(&id).map(|r| r.raw().clone());
            resolved.entry(id).or_insert(same);
        }
        let mut slots = std::mem::take(&mut changes.slots);
        for (id, new) in resolved {
            if let Some(old) = self.routes.remove(&id) {
                self.detach(&id, &old.resolved, &mut slots, touched);
            }
            if let Some(raw) = new {
                let state = self.compile_route(&id, raw);
                self.attach(&id, &state.resolved, &mut slots, touched);
                self.routes.insert(id.clone(), state);
            }
            touched.routes.insert(id);
        }
        slots
    }

    /// Compiles a route as far as the budgets of its namespace let it be served.
    fn compile_route(&self, id: &RouteId, raw: ResolvedRoute) -> RouteState {
        let (resolved, raw) = match admit(id, &raw, &self.ledger) {
            Some(admitted) => (admitted, Some(raw)),
            None => (raw, None),
        };
        let program = |p: &Pattern| self.ledger.program(&id.1.namespace, p.source())?.as_ref().ok().cloned();
        let compiled = |domain| {
            // What is attached nowhere is in no table.
            let attached = resolved.parents.iter().any(|p| p.domain == domain && !p.attachments.is_empty());
            let rules = resolved.rules(domain).filter(|_| attached);
            rules.map(|r| compile_rules(&resolved.route, r, &program)).unwrap_or_default()
        };
        let (gateway, mesh) = (compiled(Domain::Gateway), compiled(Domain::Mesh));
        RouteState { resolved, raw, gateway, mesh }
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
}

/// Services that the rules of a route lead to.
fn services(route: &ResolvedRoute) -> BTreeSet<ObjectKey> {
    let rules = route.gateway_rules.iter().chain(&route.mesh_rules);
    rules.flat_map(|r| r.services.iter().cloned()).collect()
}

/// Listeners that were there before, with what they were.
fn same_listeners<'a>(
    old: &'a ResolvedGateway,
    new: &'a ResolvedGateway,
) -> impl Iterator<Item = (&'a ResolvedListener, &'a ResolvedListener)> {
    let before: BTreeMap<_, _> = old.listeners.iter().map(|l| (&l.attach.id, l)).collect();
    new.listeners.iter().filter_map(move |is| Some((*before.get(&is.attach.id)?, is)))
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

/// Kind of a route's object, for statuses.
pub(super) const fn route_kind(id: &RouteId) -> Kind {
    id.0.kind()
}
