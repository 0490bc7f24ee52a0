//! What differs between two Snapshots.

use crate::{
    compile::is_doubtful,
    model::{EndpointSlice, Kind, Meta, Node, ObjectKey, ObjectRef, Snapshot},
    resolve::{Slot, Source, Unit, World, policy_targets},
    sorted::Sorted,
};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    ops::Bound,
    sync::Arc,
};

/// What an apply starts from.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Read by units.
    pub(super) sources: BTreeSet<Source>,
    /// To be resolved because they themselves changed.
    pub(super) units: BTreeSet<Unit>,
    /// Slots whose kind of table changed.
    pub(super) slots: BTreeSet<Slot>,
    pub(super) pods: BTreeSet<ObjectKey>,
    /// Addresses that nodes have lost or won, in this order.
    pub(super) node_ips: Vec<(IpAddr, bool)>,
    /// What pods' networks are made from differs.
    pub(super) networks: bool,
    /// Services whose frontends depend on what changed.
    pub(super) services: BTreeSet<ObjectKey>,
    /// Services whose endpoints depend on what changed.
    pub(super) endpoints: BTreeSet<ObjectKey>,
    /// Deleted and made anew between two Snapshots: the new one has no status, however equal it is to the old one.
    pub(super) replaced: Vec<ObjectRef>,
}

impl Changes {
    fn note(&mut self, kind: Kind, was: Option<&Meta>, is: Option<&Meta>) {
        if let (Some(was), Some(is)) = (was, is)
            && was.uid != is.uid
        {
            self.replaced.push(ObjectRef { kind, key: is.key.clone() });
        }
    }
}

/// Replaces the Snapshot of a World, keeps its indexes, and says what changed. `here` is the node whose clients are
/// served.
pub(super) fn replace(world: &mut World, mut new: Snapshot, here: Option<&str>) -> Changes {
    keep_last_good(&world.snapshot, &mut new);
    let old = std::mem::replace(&mut world.snapshot, new);
    let new = &world.snapshot;
    let mut c = Changes::default();
    diff(&old.classes, &new.classes, |name, was, is| {
        c.note(Kind::GatewayClass, was.map(|o| &o.meta), is.map(|o| &o.meta));
        c.sources.insert(Source::Class(name.clone()));
        c.units.insert(Unit::Class(name.clone()));
    });
    diff(&old.gateways, &new.gateways, |key, was, is| {
        c.note(Kind::Gateway, was.map(|o| &o.meta), is.map(|o| &o.meta));
        c.sources.insert(Source::Gateway(key.clone()));
        c.units.insert(Unit::Gateway(key.clone()));
    });
    diff(&old.listener_sets, &new.listener_sets, |key, was, is| {
        c.note(Kind::ListenerSet, was.map(|o| &o.meta), is.map(|o| &o.meta));
        c.sources.insert(Source::ListenerSet(key.clone()));
        for set in [was, is].into_iter().flatten().filter(|s| s.parent_kind.is(Kind::Gateway)) {
            c.sources.insert(Source::ListenerSets(set.parent.clone()));
        }
        let parent =
            |s: &&Arc<crate::model::ListenerSet>| s.parent_kind.is(Kind::Gateway).then(|| s.parent.clone());
        reindex(&mut world.sets_of, key, was.as_ref().and_then(parent), is.as_ref().and_then(parent));
    });
    diff(&old.routes, &new.routes, |id, was, is| {
        c.note(id.0.kind(), was.map(|o| &o.meta), is.map(|o| &o.meta));
        c.units.insert(Unit::Route(id.clone()));
    });
    diff(&old.tls_policies, &new.tls_policies, |key, was, is| {
        c.note(Kind::BackendTlsPolicy, was.map(|o| &o.meta), is.map(|o| &o.meta));
        c.units.insert(Unit::Policy(key.clone()));
        let targets = |p: Option<&Arc<crate::model::BackendTlsPolicy>>| {
            p.map(|p| policy_targets(p)).unwrap_or_default()
        };
        let (was, is) = (targets(was), targets(is));
        c.sources.extend(was.union(&is).cloned().map(Source::Policies));
        reindex(&mut world.policies_of, key, was, is);
    });
    diff(&old.services, &new.services, |key, _, _| {
        c.sources.insert(Source::Service(key.clone()));
        c.services.insert(key.clone());
        c.endpoints.insert(key.clone());
    });
    diff(&old.endpoint_slices, &new.endpoint_slices, |key, was, is| {
        let service = |s: Option<&Arc<EndpointSlice>>| s.map(|s| s.service.clone());
        c.endpoints.extend(service(was).into_iter().chain(service(is)));
        reindex(&mut world.slices_of, key, service(was), service(is));
    });
    diff(&old.namespaces, &new.namespaces, |name, _, _| {
        c.sources.insert(Source::Namespace(name.clone()));
        let from = ObjectKey { namespace: name.clone(), name: "".into() };
        let pods = new.pods.range((Bound::Included(from), Bound::Unbounded));
        c.pods.extend(pods.map(|(k, _)| k.clone()).take_while(|k| k.namespace == *name));
    });
    diff(&old.pods, &new.pods, |key, _, _| {
        c.pods.insert(key.clone());
    });
    read_whole(&old, new, &mut c);
    nodes(&old, new, &mut c);
    zone(&old, new, here, &mut c);
    doubts(&old, new, &mut c);
    c
}

/// A certificate or CA bundle that is renewed with something that cannot be used: what was there before stays in use.
/// (A deleted object is no renewal. ClusterTrustBundles, of which GEP-5075 forbids this, are not read at all.)
fn keep_last_good(old: &Snapshot, new: &mut Snapshot) {
    let mut secrets = Vec::new();
    diff(&old.secrets, &new.secrets, |key, was, is| {
        let kept = was.zip(is).and_then(|(was, is)| is.keeping(was));
        secrets.extend(kept.map(|kept| (key.clone(), Arc::new(kept))));
    });
    new.secrets.extend(secrets);
    let mut maps = Vec::new();
    diff(&old.config_maps, &new.config_maps, |key, was, is| {
        let kept = was.zip(is).and_then(|(was, is)| is.keeping(was));
        maps.extend(kept.map(|kept| (key.clone(), Arc::new(kept))));
    });
    new.config_maps.extend(maps);
}

/// Kinds of which a unit reads whole objects by name.
fn read_whole(old: &Snapshot, new: &Snapshot, c: &mut Changes) {
    diff(&old.grants, &new.grants, |key, _, _| {
        c.sources.insert(Source::Grants(key.namespace.clone()));
    });
    diff(&old.secrets, &new.secrets, |key, _, _| {
        c.sources.insert(Source::Secret(key.clone()));
    });
    diff(&old.config_maps, &new.config_maps, |key, _, _| {
        c.sources.insert(Source::ConfigMap(key.clone()));
    });
    diff(&old.placements, &new.placements, |key, _, _| {
        c.sources.insert(Source::Placement(key.clone()));
    });
    diff(&old.gateway_configs, &new.gateway_configs, |key, _, _| {
        c.sources.insert(Source::GatewayConfig(key.clone()));
    });
}

fn nodes(old: &Snapshot, new: &Snapshot, c: &mut Changes) {
    diff(&old.nodes, &new.nodes, |_, was, is| {
        let told = |n: Option<&Arc<Node>>| n.map(|n| (n.pod_cidrs.clone(), n.addresses.clone()));
        c.networks |= told(was) != told(is);
        let addresses = |n: Option<&Arc<Node>>| n.map(|n| n.addresses.clone()).unwrap_or_default();
        let (was, is) = (addresses(was), addresses(is));
        c.node_ips.extend(was.iter().filter(|ip| !is.contains(ip)).map(|ip| (*ip, false)));
        c.node_ips.extend(is.iter().filter(|ip| !was.contains(ip)).map(|ip| (*ip, true)));
    });
    // An address that moves from one node to another is lost before it is won.
    c.node_ips.sort_by_key(|(_, won)| *won);
}

/// Looks at every slice, but only when the own node comes into another zone.
fn zone(old: &Snapshot, new: &Snapshot, here: Option<&str>, c: &mut Changes) {
    let zone = |of: &Snapshot| of.nodes.get(here?).and_then(|node| node.zone().cloned());
    if zone(old) != zone(new) {
        let hinted = |slice: &&Arc<EndpointSlice>| slice.endpoints.iter().any(|e| !e.for_zones.is_empty());
        c.endpoints.extend(new.endpoint_slices.values().filter(hinted).map(|s| s.service.clone()));
    }
}

/// Looks at every slice, but only when nodes come under doubt or out of it.
fn doubts(old: &Snapshot, new: &Snapshot, c: &mut Changes) {
    if old.doubt == new.doubt {
        return;
    }
    let concerned = |slice: &&Arc<EndpointSlice>| {
        slice.endpoints.iter().any(|e| is_doubtful(e, &old.doubt) != is_doubtful(e, &new.doubt))
    };
    c.endpoints.extend(new.endpoint_slices.values().filter(concerned).map(|s| s.service.clone()));
}

/// The same `Arc`, or equal content, is no change.
fn diff<K: Ord, V: PartialEq>(
    old: &Sorted<K, Arc<V>>,
    new: &Sorted<K, Arc<V>>,
    changed: impl FnMut(&K, Option<&Arc<V>>, Option<&Arc<V>>),
) {
    old.differences(new, |was, is| Arc::ptr_eq(was, is) || was == is, changed);
}

/// Moves `key` from the sets of `was` to those of `is`.
fn reindex(
    index: &mut HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    key: &ObjectKey,
    was: impl IntoIterator<Item = ObjectKey>,
    is: impl IntoIterator<Item = ObjectKey>,
) {
    for gone in was {
        if let Some(keys) = index.get_mut(&gone) {
            keys.remove(key);
            if keys.is_empty() {
                index.remove(&gone);
            }
        }
    }
    for new in is {
        index.entry(new).or_default().insert(key.clone());
    }
}
