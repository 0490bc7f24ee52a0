//! The watched world with its indexes, and reading it so that every read is known.

use super::{AttachPoint, ResolvedGateway, ResolvedPolicy, ResolvedSet, Settings};
use crate::model::{
    ConfigMap, Gateway, GatewayClass, GatewayConfig, Kind, ListenerSet, Namespace, ObjectKey, ObjectRef,
    Placement, ReferenceGrant, RouteKind, Secret, Service, Snapshot, Str,
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

/// Names a route.
pub(crate) type RouteId = (RouteKind, ObjectKey);

/// Something that resolution reads and that may change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    Class(Str),
    ConfigMap(ObjectKey),
    Gateway(ObjectKey),
    GatewayConfig(ObjectKey),
    /// Every ReferenceGrant of a namespace.
    Grants(Str),
    /// The resolved attach points of a Gateway.
    Listeners(ObjectKey),
    ListenerSet(ObjectKey),
    /// Every ListenerSet that names a Gateway.
    ListenerSets(ObjectKey),
    Namespace(Str),
    Placement(ObjectKey),
    /// Every resolved BackendTLSPolicy that targets a Service.
    Policies(ObjectKey),
    Secret(ObjectKey),
    Service(ObjectKey),
}

/// Something that is resolved as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unit {
    Class(Str),
    Gateway(ObjectKey),
    Policy(ObjectKey),
    Route(RouteId),
}

/// Who read what, both ways.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    readers: BTreeMap<Source, BTreeSet<Unit>>,
    reads: BTreeMap<Unit, BTreeSet<Source>>,
}

impl Tracker {
    /// Replaces what `unit` has read.
    pub(crate) fn record(&mut self, unit: &Unit, reads: BTreeSet<Source>) {
        let old = self.reads.remove(unit).unwrap_or_default();
        for gone in old.difference(&reads) {
            if let Some(units) = self.readers.get_mut(gone) {
                units.remove(unit);
                if units.is_empty() {
                    self.readers.remove(gone);
                }
            }
        }
        for new in reads.difference(&old) {
            self.readers.entry(new.clone()).or_default().insert(unit.clone());
        }
        if !reads.is_empty() {
            self.reads.insert(unit.clone(), reads);
        }
    }

    /// Secrets and ConfigMaps that a unit has asked for, there or not.
    pub(crate) fn material(&self, unit: &Unit) -> impl Iterator<Item = ObjectRef> + '_ {
        self.reads.get(unit).into_iter().flatten().filter_map(|source| match source {
            Source::Secret(key) => Some(ObjectRef { kind: Kind::Secret, key: key.clone() }),
            Source::ConfigMap(key) => Some(ObjectRef { kind: Kind::ConfigMap, key: key.clone() }),
            _ => None,
        })
    }

    /// Units that have read `source`.
    pub(crate) fn readers(&self, source: &Source) -> impl Iterator<Item = &Unit> {
        self.readers.get(source).into_iter().flatten()
    }
}

/// The Snapshot with the lookups that its maps do not offer.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) snapshot: Snapshot,
    /// Gateway to the ListenerSets that name it.
    pub(crate) sets_of: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// Service to the policies that target it.
    pub(crate) policies_of: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// Service to its slices.
    pub(crate) slices_of: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
}

/// Read access for one unit; remembers every question, answered or not.
pub(crate) struct Reader<'a> {
    world: &'a World,
    gateways: &'a BTreeMap<ObjectKey, Arc<ResolvedGateway>>,
    policies: &'a BTreeMap<ObjectKey, Arc<ResolvedPolicy>>,
    pub(crate) settings: &'a Settings,
    reads: RefCell<BTreeSet<Source>>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(
        world: &'a World,
        gateways: &'a BTreeMap<ObjectKey, Arc<ResolvedGateway>>,
        policies: &'a BTreeMap<ObjectKey, Arc<ResolvedPolicy>>,
        settings: &'a Settings,
    ) -> Self {
        Self { world, gateways, policies, settings, reads: RefCell::default() }
    }

    /// What was asked for.
    pub(crate) fn into_reads(self) -> BTreeSet<Source> {
        self.reads.into_inner()
    }

    fn note(&self, source: Source) {
        self.reads.borrow_mut().insert(source);
    }

    pub(crate) fn class(&self, name: &Str) -> Option<&'a Arc<GatewayClass>> {
        self.note(Source::Class(name.clone()));
        self.world.snapshot.classes.get(name)
    }

    pub(crate) fn placement(&self, key: &ObjectKey) -> Option<&'a Arc<Placement>> {
        self.note(Source::Placement(key.clone()));
        self.world.snapshot.placements.get(key)
    }

    pub(crate) fn gateway(&self, key: &ObjectKey) -> Option<&'a Arc<Gateway>> {
        self.note(Source::Gateway(key.clone()));
        self.world.snapshot.gateways.get(key)
    }

    /// ListenerSets that name a Gateway: oldest first, then by name (GEP-1713).
    pub(crate) fn listener_sets(&self, gateway: &ObjectKey) -> Vec<&'a Arc<ListenerSet>> {
        self.note(Source::ListenerSets(gateway.clone()));
        let keys = self.world.sets_of.get(gateway).into_iter().flatten();
        let mut sets: Vec<_> =
            keys.filter_map(|k| self.world.snapshot.listener_sets.get(k)).collect::<Vec<_>>();
        sets.sort_by(|a, b| (a.meta.created, &a.meta.key).cmp(&(b.meta.created, &b.meta.key)));
        sets
    }

    pub(crate) fn listener_set(&self, key: &ObjectKey) -> Option<&'a Arc<ListenerSet>> {
        self.note(Source::ListenerSet(key.clone()));
        self.world.snapshot.listener_sets.get(key)
    }

    /// The attach points of a Gateway, if it is ours, and its ListenerSets.
    pub(crate) fn attach_points(
        &self,
        gateway: &ObjectKey,
    ) -> Option<(impl Iterator<Item = &'a Arc<AttachPoint>> + use<'a>, &'a [ResolvedSet])> {
        self.note(Source::Listeners(gateway.clone()));
        let gateway = self.gateways.get(gateway)?;
        Some((gateway.listeners.iter().map(|l| &l.attach), &gateway.sets))
    }

    /// Why a Gateway as a whole is not accepted.
    pub(crate) fn gateway_rejected(&self, gateway: &ObjectKey) -> Option<&'a str> {
        self.note(Source::Listeners(gateway.clone()));
        self.gateways.get(gateway)?.accepted.as_ref().err().map(|p| p.message.as_str())
    }

    pub(crate) fn namespace(&self, name: &Str) -> Option<&'a Arc<Namespace>> {
        self.note(Source::Namespace(name.clone()));
        self.world.snapshot.namespaces.get(name)
    }

    pub(crate) fn secret(&self, key: &ObjectKey) -> Option<&'a Arc<Secret>> {
        self.note(Source::Secret(key.clone()));
        self.world.snapshot.secrets.get(key)
    }

    pub(crate) fn config_map(&self, key: &ObjectKey) -> Option<&'a Arc<ConfigMap>> {
        self.note(Source::ConfigMap(key.clone()));
        self.world.snapshot.config_maps.get(key)
    }

    pub(crate) fn gateway_config(&self, key: &ObjectKey) -> Option<&'a Arc<GatewayConfig>> {
        self.note(Source::GatewayConfig(key.clone()));
        self.world.snapshot.gateway_configs.get(key)
    }

    pub(crate) fn service(&self, key: &ObjectKey) -> Option<&'a Arc<Service>> {
        self.note(Source::Service(key.clone()));
        self.world.snapshot.services.get(key)
    }

    /// Grants of one namespace.
    pub(crate) fn grants(&self, namespace: &Str) -> impl Iterator<Item = &'a Arc<ReferenceGrant>> + use<'a> {
        self.note(Source::Grants(namespace.clone()));
        let from = ObjectKey { namespace: namespace.clone(), name: "".into() };
        let namespace = namespace.clone();
        self.world
            .snapshot
            .grants
            .range((Bound::Included(from), Bound::Unbounded))
            .take_while(move |(key, _)| key.namespace == namespace)
            .map(|(_, grant)| grant)
    }

    /// Policies that target a Service: oldest first, then by name (GEP-713).
    pub(crate) fn policies(&self, service: &ObjectKey) -> Vec<&'a Arc<ResolvedPolicy>> {
        self.note(Source::Policies(service.clone()));
        policies_of(self.world, self.policies, service)
    }
}

/// As [`Reader::policies`], outside of a unit.
pub(crate) fn policies_of<'a>(
    world: &World,
    resolved: &'a BTreeMap<ObjectKey, Arc<ResolvedPolicy>>,
    service: &ObjectKey,
) -> Vec<&'a Arc<ResolvedPolicy>> {
    let keys = world.policies_of.get(service).into_iter().flatten();
    let mut policies: Vec<_> = keys.filter_map(|k| resolved.get(k)).collect();
    policies.sort_by(|a, b| {
        let rank = |p: &Arc<ResolvedPolicy>| (p.policy.meta.created, p.policy.meta.key.clone());
        rank(a).cmp(&rank(b))
    });
    policies
}

/// Services that a policy targets.
pub(crate) fn policy_targets(policy: &crate::model::BackendTlsPolicy) -> BTreeSet<ObjectKey> {
    let services = policy.targets.iter().filter(|t| t.kind.is(Kind::Service));
    services.map(|t| ObjectKey::new(policy.meta.key.namespace.clone(), t.name.clone())).collect()
}
