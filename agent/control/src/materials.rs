//! Which Secrets and ConfigMaps each node needs, and no others: key pairs only where a Gateway that refers to them,
//! and may, is served. CA certificates of BackendTLSPolicies go to every node, since every node's pods are clients, and
//! so do the parameters of our GatewayClasses; those of a Gateway go where it is served.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_core::model::{
    BackendTlsPolicy, CONTROLLER_NAME, Gateway, GroupKind, Kind, ListenerSet, ObjectKey, ObjectReference,
    ParametersRef, SecretData, Snapshot, Str,
};

use crate::{
    auth::Serving,
    report::{Material, Materials},
};

/// What each of `nodes` needs. Nodes that need the same share one value, and what is as in `previous` stays the same
/// value, so that comparing costs nothing.
#[must_use]
pub fn materials<'a>(
    snapshot: &Snapshot,
    serving: &Serving,
    nodes: impl IntoIterator<Item = &'a Str>,
    previous: &Materials,
) -> Materials {
    let mut gateways_of: BTreeMap<&Str, BTreeSet<&ObjectKey>> = BTreeMap::new();
    for (gateway, served_on) in serving {
        for node in served_on {
            gateways_of.entry(node).or_default().insert(gateway);
        }
    }
    let mut sets: BTreeMap<&ObjectKey, Vec<&ListenerSet>> = BTreeMap::new();
    for set in snapshot.listener_sets.values() {
        sets.entry(&set.parent).or_default().push(set);
    }
    let mut everywhere = Collector { snapshot, material: Material::default() };
    snapshot.tls_policies.values().for_each(|policy| everywhere.policy(policy));
    let ours = snapshot.classes.values().filter(|class| &*class.controller == CONTROLLER_NAME);
    ours.filter_map(|class| class.parameters_ref.as_ref()).for_each(|p| everywhere.parameters(p, None));
    let everywhere = everywhere.material;
    let mut made: BTreeMap<BTreeSet<&ObjectKey>, Arc<Material>> = BTreeMap::new();
    let mut material_of = |node: &Str| {
        let gateways = gateways_of.get(node).cloned().unwrap_or_default();
        let material = made.entry(gateways).or_insert_with_key(|gateways| {
            let mut collector = Collector { snapshot, material: everywhere.clone() };
            for key in gateways {
                if let Some(gateway) = snapshot.gateways.get(*key) {
                    collector.gateway(gateway, sets.get(*key).map_or(&[], Vec::as_slice));
                }
            }
            let material = Arc::new(collector.material);
            previous.get(node).filter(|before| **before == material).cloned().unwrap_or(material)
        });
        // Another node may have had an equal value of its own.
        let same = |before: &&Arc<Material>| Arc::ptr_eq(before, material) || **before == *material;
        previous.get(node).filter(same).unwrap_or(material).clone()
    };
    nodes.into_iter().map(|node| (node.clone(), material_of(node))).collect()
}

struct Collector<'a> {
    snapshot: &'a Snapshot,
    material: Material,
}

impl Collector<'_> {
    fn gateway(&mut self, gateway: &Gateway, sets: &[&ListenerSet]) {
        let namespace = &gateway.meta.key.namespace;
        let own = gateway.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        for reference in own.flat_map(|tls| &tls.certificate_refs).chain(&gateway.backend_client_certificate)
        {
            self.key_pair((Kind::Gateway, namespace), reference);
        }
        let infrastructure = gateway.infrastructure.as_ref();
        if let Some(reference) = infrastructure.and_then(|i| i.parameters_ref.as_ref()) {
            self.parameters(reference, Some(namespace));
        }
        for set in sets {
            let listeners = set.listeners.iter().filter_map(|listener| listener.tls.as_ref());
            for reference in listeners.flat_map(|tls| &tls.certificate_refs) {
                self.key_pair((Kind::ListenerSet, &set.meta.key.namespace), reference);
            }
        }
        let frontend = gateway.frontend_tls.iter();
        let validations = frontend
            .flat_map(|tls| tls.default.iter().chain(tls.per_port.iter().filter_map(|(_, v)| v.as_ref())));
        for reference in validations.flat_map(|validation| &validation.ca_refs) {
            self.ca((Kind::Gateway, namespace), reference);
        }
    }

    /// As the core reads `parametersRef`.
    fn parameters(&mut self, reference: &ParametersRef, default_namespace: Option<&Str>) {
        if reference.kind.is(Kind::ConfigMap)
            && let Some(namespace) = reference.namespace.as_ref().or(default_namespace)
            && let key = ObjectKey::new(namespace.clone(), reference.name.clone())
            && let Some(map) = self.snapshot.config_maps.get(&key)
        {
            self.material.config_maps.insert(key, map.clone());
        }
    }

    fn policy(&mut self, policy: &BackendTlsPolicy) {
        for reference in &policy.ca_refs {
            // Same namespace by type: whatever is written there is not looked at.
            let local = ObjectReference { namespace: None, ..reference.clone() };
            self.ca((Kind::BackendTlsPolicy, &policy.meta.key.namespace), &local);
        }
    }

    fn key_pair(&mut self, from: (Kind, &Str), reference: &ObjectReference) {
        if let Some(key) = self.permitted(from, reference, Kind::Secret)
            && let Some(secret) = self.snapshot.secrets.get(&key)
        {
            self.material.secrets.insert(key, secret.clone());
        }
    }

    /// Public certificates only: a Secret with a key pair is no CA, and its key has no business here.
    fn ca(&mut self, from: (Kind, &Str), reference: &ObjectReference) {
        if let Some(key) = self.permitted(from, reference, Kind::ConfigMap) {
            if let Some(map) = self.snapshot.config_maps.get(&key) {
                self.material.config_maps.insert(key, map.clone());
            }
        } else if let Some(key) = self.permitted(from, reference, Kind::Secret)
            && let Some(secret) = self.snapshot.secrets.get(&key)
            && !matches!(secret.data, SecretData::Tls(_))
        {
            self.material.secrets.insert(key, secret.clone());
        }
    }

    /// The object referred to, if it is of `kind` and the reference is permitted (ReferenceGrant).
    fn permitted(
        &self,
        (from, namespace): (Kind, &Str),
        reference: &ObjectReference,
        kind: Kind,
    ) -> Option<ObjectKey> {
        let target = reference.namespace.as_ref().unwrap_or(namespace);
        let (from, to) = (GroupKind::from(from), GroupKind::from(kind));
        let granted = || {
            let mut grants = self.snapshot.grants.values().filter(|g| g.meta.key.namespace == *target);
            grants.any(|grant| grant.allows(&from, namespace, &to, &reference.name))
        };
        (reference.kind.is(kind) && (target == namespace || granted()))
            .then(|| ObjectKey::new(target.clone(), reference.name.clone()))
    }
}
