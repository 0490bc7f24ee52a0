//! Statuses of what an apply has touched.

use super::{
    Engine,
    state::{State, Touched, route_kind},
};
use crate::{
    compile::Verdict,
    model::{Kind, ObjectKey, ObjectRef, Str},
    resolve::{
        Domain, ListenerId, ResolvedPolicy, RouteId, Slot, listener_label, policies_of, policy_targets,
        resolve_class,
    },
    status::{
        Ancestor, ObjectStatus, Slots, class_status, gateway_status, listener_set_status, policy_status,
        route_status,
    },
};
use std::collections::BTreeSet;

/// The slots of one route.
struct RouteSlots<'a> {
    state: &'a State,
    id: &'a RouteId,
}

impl Slots for RouteSlots<'_> {
    fn verdict(&self, slot: &Slot) -> Option<&Verdict> {
        self.state.slots.get(slot)?.verdicts.get(self.id)
    }

    fn idle(&self, slot: &Slot) -> Option<String> {
        let (gateway, id) = match slot {
            Slot::Listener { gateway, id } => (gateway, id),
            Slot::Port { service, consumer, .. } => return self.nobody_calls(service, consumer.as_ref()),
        };
        let listener = self.state.gateways.get(gateway)?.listeners.iter().find(|l| l.attach.id == *id)?;
        let problem = listener.accepted.as_ref().and(listener.servable.as_ref()).err()?;
        Some(format!("listener {} cannot serve, {}", listener_label(&listener.attach), problem.message))
    }
}

impl RouteSlots<'_> {
    /// E9: a route on a Service had no effect and said nothing when nobody who calls is in the mesh.
    fn nobody_calls(&self, service: &ObjectKey, consumer: Option<&Str>) -> Option<String> {
        let clients = &self.state.clients;
        let of = match consumer {
            Some(namespace) if clients.contains_key(namespace) => return None,
            None if !clients.is_empty() => return None,
            Some(namespace) => format!("of namespace {namespace}, whose calls alone it is for,"),
            None => "that could call".to_owned(),
        };
        let join = consumer.unwrap_or(&service.namespace);
        Some(format!("no pod {of} is in the mesh yet (weft join {join})"))
    }
}

impl Engine {
    /// Makes the statuses of what was touched; after a start from nothing, also takes away what is left over.
    pub(super) fn report(&mut self, touched: &Touched, started_anew: bool) {
        let mut sets = touched.sets.clone();
        for name in &touched.classes {
            let status = self.state.read_class(&self.settings, name, |reader| {
                resolve_class(reader, name)
                    .map(|(class, settings)| class_status(class, &settings.map(|_| ())))
            });
            let key = ObjectKey::new("", name.clone());
            self.statuses.set(ObjectRef { kind: Kind::GatewayClass, key }, status);
        }
        for key in &touched.gateways {
            let gateway = self.state.gateways.get(key);
            let status = gateway.map(|g| gateway_status(g, &self.feedback, |id| self.attached(key, id)));
            sets.extend(gateway.iter().flat_map(|g| g.sets.iter().map(|s| s.set.meta.key.clone())));
            self.statuses.set(ObjectRef { kind: Kind::Gateway, key: key.clone() }, status);
        }
        for key in sets {
            let status = self.set_status(&key);
            self.statuses.set(ObjectRef { kind: Kind::ListenerSet, key }, status);
        }
        for id in &touched.routes {
            let slots = RouteSlots { state: &self.state, id };
            let status = self.state.routes.get(id).and_then(|r| route_status(&r.resolved, &slots));
            self.statuses.set(ObjectRef { kind: route_kind(id), key: id.1.clone() }, status);
        }
        for key in touched.policies.clone() {
            let status = self.state.policies.get(&key).and_then(|p| self.policy_status(p));
            self.statuses.set(ObjectRef { kind: Kind::BackendTlsPolicy, key }, status);
        }
        if started_anew {
            self.drop_leftovers(touched);
        }
    }

    fn attached(&self, gateway: &ObjectKey, id: &ListenerId) -> i32 {
        let slot = Slot::Listener { gateway: gateway.clone(), id: id.clone() };
        self.state.slots.get(&slot).map_or(0, |s| s.attached)
    }

    fn set_status(&self, key: &ObjectKey) -> Option<ObjectStatus> {
        let set = self.state.world.snapshot.listener_sets.get(key)?;
        if !set.parent_kind.is(Kind::Gateway) {
            return None;
        }
        let gateway = self.state.gateways.get(&set.parent)?;
        let resolved = gateway.sets.iter().find(|s| s.set.meta.key == *key)?;
        let attached = |id: &ListenerId| self.attached(&set.parent, id);
        Some(listener_set_status(gateway, resolved, &self.feedback, attached))
    }

    fn policy_status(&self, policy: &ResolvedPolicy) -> Option<ObjectStatus> {
        let targets = policy_targets(&policy.policy);
        let ancestors: BTreeSet<_> = targets
            .iter()
            .flat_map(|service| self.state.users.get(service).into_iter().flatten())
            .flat_map(|id| self.ancestors(id, &targets))
            .collect();
        policy_status(policy, ancestors.into_iter(), self.loses_to(policy).as_ref())
    }

    /// Parents of a route through which it reaches one of `targets`.
    fn ancestors(&self, id: &RouteId, targets: &BTreeSet<ObjectKey>) -> Vec<Ancestor> {
        let Some(route) = self.state.routes.get(id).map(|r| &r.resolved) else { return Vec::new() };
        let reaches =
            |domain| route.rules(domain).is_some_and(|r| r.services.iter().any(|s| targets.contains(s)));
        let parents = route.parents.iter().filter(|p| p.accepted.is_ok() && reaches(p.domain));
        parents
            .map(|p| Ancestor {
                kind: match p.domain {
                    Domain::Gateway => Kind::Gateway,
                    Domain::Mesh => Kind::Service,
                },
                key: p.object.clone(),
            })
            .collect()
    }

    /// The older policy, when each target of this one is taken.
    fn loses_to(&self, policy: &ResolvedPolicy) -> Option<ObjectKey> {
        let mut winner = None;
        let targets = policy.policy.targets.iter().filter(|t| t.kind.is(Kind::Service));
        for target in targets {
            let service = ObjectKey::new(policy.policy.meta.key.namespace.clone(), target.name.clone());
            let rivals = policies_of(&self.state.world, &self.state.policies, &service);
            // The same section, so that a policy for one port does not conflict with one for the whole Service.
            let first = rivals.into_iter().find(|p| {
                let mut targets = p.policy.targets.iter();
                targets.any(|t| {
                    t.kind.is(Kind::Service) && t.name == target.name && t.section_name == target.section_name
                })
            });
            match first {
                Some(first) if first.policy.meta.key != policy.policy.meta.key => {
                    winner.get_or_insert(first.policy.meta.key.clone());
                }
                _ => return None,
            }
        }
        winner
    }

    fn drop_leftovers(&mut self, touched: &Touched) {
        let known = |object: &ObjectRef| match object.kind {
            Kind::GatewayClass => touched.classes.contains(&object.key.name),
            Kind::Gateway => touched.gateways.contains(&object.key),
            Kind::ListenerSet => self.state.world.snapshot.listener_sets.contains_key(&object.key),
            Kind::BackendTlsPolicy => self.state.policies.contains_key(&object.key),
            _ => touched.routes.iter().any(|id| route_kind(id) == object.kind && id.1 == object.key),
        };
        let all = self.statuses.all();
        let gone: Vec<_> = all.keys().filter(|o| !known(o)).cloned().collect();
        drop(all);
        for object in gone {
            self.statuses.set(object, None);
        }
    }
}
