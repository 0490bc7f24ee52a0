//! ReferenceGrants.

use super::{Problem, Reader, reason};
use crate::model::{
    Filter, GroupKind, Kind, ObjectKey, ObjectReference, ReferenceGrant, Route, Snapshot, Str,
};
use std::collections::BTreeSet;

/// Who refers: kind and namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Referrer {
    pub(crate) kind: Kind,
    pub(crate) namespace: Str,
}

impl Referrer {
    /// Checks that this object may refer to `to`.
    ///
    /// # Errors
    /// `RefNotPermitted` with the grant to apply.
    pub(crate) fn check(&self, reader: &Reader<'_>, kind: Kind, to: &ObjectKey) -> Result<(), Problem> {
        let (from_kind, to_kind) = (GroupKind::from(self.kind), GroupKind::from(kind));
        let permitted = self.namespace == to.namespace
            || reader
                .grants(&to.namespace)
                .any(|g| g.allows(&from_kind, &self.namespace, &to_kind, &to.name));
        if permitted {
            return Ok(());
        }
        Err(Problem::new(
            reason::REF_NOT_PERMITTED,
            format!(
                "{kind} {to} is in another namespace and no ReferenceGrant there permits it; apply: {}",
                self.grant_for(kind, to)
            ),
        ))
    }

    /// The missing grant, as one line of YAML.
    fn grant_for(&self, kind: Kind, to: &ObjectKey) -> String {
        format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {{name: from-{from}, \
             namespace: {to_ns}}}, spec: {{from: [{{group: {group}, kind: {from_kind}, namespace: {from}}}], \
             to: [{{group: \"{to_group}\", kind: {kind}, name: {name}}}]}}}}",
            from = self.namespace,
            to_ns = to.namespace,
            group = self.kind.group(),
            from_kind = self.kind,
            to_group = kind.group(),
            name = to.name,
        )
    }
}

/// A reference that crosses namespaces: from kind and namespace, to kind, namespace and name.
type Crossing = (Kind, Str, Kind, ObjectKey);

/// Grants that permit no reference of the world: useless, and a hole left open.
pub(crate) fn unused_grants(snapshot: &Snapshot) -> Vec<&ReferenceGrant> {
    if snapshot.grants.is_empty() {
        return Vec::new();
    }
    let crossings = crossings(snapshot);
    let used = |grant: &ReferenceGrant| {
        crossings.iter().any(|(from, from_ns, to, key)| {
            key.namespace == grant.meta.key.namespace
                && grant.allows(&(*from).into(), from_ns, &(*to).into(), &key.name)
        })
    };
    snapshot.grants.values().map(|g| &**g).filter(|g| !used(g)).collect()
}

fn crossings(snapshot: &Snapshot) -> BTreeSet<Crossing> {
    let mut out = BTreeSet::new();
    for route in snapshot.routes.values() {
        let from = &route.meta.key.namespace;
        for (kind, namespace, name) in route_refs(route) {
            if let Some(namespace) = namespace.filter(|n| *n != from) {
                let key = ObjectKey::new(namespace.clone(), name.clone());
                if kind.is(Kind::Service) {
                    out.insert((route.kind.kind(), from.clone(), Kind::Service, key));
                }
            }
        }
    }
    let mut object = |from: Kind, from_ns: &Str, r: &ObjectReference| {
        let Some(namespace) = r.namespace.as_ref().filter(|n| *n != from_ns) else { return };
        for to in [Kind::Secret, Kind::ConfigMap].into_iter().filter(|k| r.kind.is(*k)) {
            out.insert((from, from_ns.clone(), to, ObjectKey::new(namespace.clone(), r.name.clone())));
        }
    };
    for gateway in snapshot.gateways.values() {
        let ns = &gateway.meta.key.namespace;
        let listeners = gateway.listeners.iter().filter_map(|l| l.tls.as_ref());
        let frontend = gateway
            .frontend_tls
            .iter()
            .flat_map(|f| f.default.iter().chain(f.per_port.iter().filter_map(|(_, v)| v.as_ref())));
        listeners
            .flat_map(|t| &t.certificate_refs)
            .chain(&gateway.backend_client_certificate)
            .chain(frontend.flat_map(|v| &v.ca_refs))
            .for_each(|r| object(Kind::Gateway, ns, r));
    }
    for set in snapshot.listener_sets.values() {
        let tls = set.listeners.iter().filter_map(|l| l.tls.as_ref());
        tls.flat_map(|t| &t.certificate_refs)
            .for_each(|r| object(Kind::ListenerSet, &set.meta.key.namespace, r));
    }
    out
}

fn route_refs(route: &Route) -> impl Iterator<Item = (&GroupKind, Option<&Str>, &Str)> {
    route.rules.iter().flat_map(|rule| {
        let backends = rule.backends.iter().map(|b| &b.object);
        let all = rule.filters.iter().chain(rule.backends.iter().flat_map(|b| &b.filters));
        let mirrors = all.filter_map(|f| match f {
            Filter::RequestMirror(m) => Some(&m.backend),
            _ => None,
        });
        backends.chain(mirrors).map(|o| (&o.kind, o.namespace.as_ref(), &o.name))
    })
}
