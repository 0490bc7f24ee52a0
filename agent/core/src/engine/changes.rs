//! What differs between two Snapshots.

use crate::{
    model::{Kind, Node, ObjectKey, Snapshot},
    resolve::{Slot, Source, Unit, World, policy_targets},
};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
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
    /// The nodes' pod networks differ.
    pub(super) pod_cidrs: bool,
    /// Services whose frontends depend on what changed.
    pub(super) services: BTreeSet<ObjectKey>,
    /// Services whose endpoints depend on what changed.
    pub(super) endpoints: BTreeSet<ObjectKey>,
}

/// Replaces the Snapshot of a World, keeps its indexes, and says what changed.
pub(super) fn replace(world: &mut World, new: Snapshot) -> Changes {
    let old = std::mem::replace(&mut world.snapshot, new);
    let new = &world.snapshot;
    let mut c = Changes::default();
    diff(&old.classes, &new.classes, |name, _, _| {
        c.sources.insert(Source::Class(name.clone()));
        c.units.insert(Unit::Class(name.clone()));
    });
    diff(&old.gateways, &new.gateways, |key, _, _| {
        c.sources.insert(Source::Gateway(key.clone()));
        c.units.insert(Unit::Gateway(key.clone()));
    });
    diff(&old.listener_sets, &new.listener_sets, |key, was, is| {
        c.sources.insert(Source::ListenerSet(key.clone()));
        for set in [was, is].into_iter().flatten().filter(|s| s.parent_kind.is(Kind::Gateway)) {
            c.sources.insert(Source::ListenerSets(set.parent.clone()));
        }
        let parent =
            |s: &&Arc<crate::model::ListenerSet>| s.parent_kind.is(Kind::Gateway).then(|| s.parent.clone());
        reindex(&mut world.sets_of, key, was.as_ref().and_then(parent), is.as_ref().and_then(parent));
    });
    diff(&old.routes, &new.routes, |id, _, _| {
        c.units.insert(Unit::Route(id.clone()));
    });
    diff(&old.tls_policies, &new.tls_policies, |key, was, is| {
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
        let service = |s: Option<&Arc<crate::model::EndpointSlice>>| s.map(|s| s.service.clone());
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
    c
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
        c.pod_cidrs |= was.map(|n| &n.pod_cidrs) != is.map(|n| &n.pod_cidrs);
        let addresses = |n: Option<&Arc<Node>>| n.map(|n| n.addresses.clone()).unwrap_or_default();
        let (was, is) = (addresses(was), addresses(is));
        c.node_ips.extend(was.iter().filter(|ip| !is.contains(ip)).map(|ip| (*ip, false)));
        c.node_ips.extend(is.iter().filter(|ip| !was.contains(ip)).map(|ip| (*ip, true)));
    });
    // An address that moves from one node to another is lost before it is won.
    c.node_ips.sort_by_key(|(_, won)| *won);
}

/// Walks two sorted maps at once. The same `Arc`, or equal content, is no change.
fn diff<K: Ord, V: PartialEq>(
    old: &BTreeMap<K, Arc<V>>,
    new: &BTreeMap<K, Arc<V>>,
    mut changed: impl FnMut(&K, Option<&Arc<V>>, Option<&Arc<V>>),
) {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        match order {
            Ordering::Less => {
                if let Some((key, was)) = old.next() {
                    changed(key, Some(was), None);
                }
            }
            Ordering::Greater => {
                if let Some((key, is)) = new.next() {
                    changed(key, None, Some(is));
                }
            }
            Ordering::Equal => {
                if let (Some((key, was)), Some((_, is))) = (old.next(), new.next())
                    && !Arc::ptr_eq(was, is)
                    && was != is
                {
                    changed(key, Some(was), Some(is));
                }
            }
        }
    }
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
