//! Remarks about objects that have no condition of their own for them: above all references that lead nowhere.

use super::Engine;
use crate::{
    model::{
        CONTROLLER_NAME, Gateway, GatewayClass, Kind, ListenerSet, ObjectKey, ObjectRef, Route, Snapshot, Str,
    },
    resolve::{policy_targets, unused_grants},
    spelling::closest,
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// Other places are listed up to here: more are no help.
const MAX_LISTED: usize = 3;

impl Engine {
    /// Remarks about objects that have no condition of their own for them. Costs a walk over the whole world: for
    /// people who ask, not for each apply.
    #[must_use]
    pub fn lint(&self) -> Vec<(ObjectRef, String)> {
        let snapshot = &self.state.world.snapshot;
        let grants = unused_grants(snapshot).into_iter().map(|grant| {
            let object = ObjectRef { kind: Kind::ReferenceGrant, key: grant.meta.key.clone() };
            let message = "nothing refers across namespaces through this grant; it only opens a hole. The grant \
                           belongs into the namespace of what is referred to, and names the referrer in `from`.";
            (object, message.to_owned())
        });
        let policies = self.state.policies.values().flat_map(|p| {
            let missing =
                policy_targets(&p.policy).into_iter().filter(|s| !snapshot.services.contains_key(s));
            missing.map(|service| {
                let key = p.policy.meta.key.clone();
                let object = ObjectRef { kind: Kind::BackendTlsPolicy, key };
                (object, format!("target Service {service} does not exist"))
            })
        });
        let dead = DeadReferences::new(snapshot).find().into_iter();
        dead.chain(grants).chain(policies).chain(self.taken_addresses()).collect()
    }

    /// Services that say that an address is theirs which is another's.
    fn taken_addresses(&self) -> Vec<(ObjectRef, String)> {
        let mut out = Vec::new();
        for (service, keys) in &self.state.frontend_keys {
            for (addr, _) in keys {
                let owner = self.state.frontends.first(addr).map(|frontend| &frontend.service);
                if let Some(owner) = owner.filter(|owner| *owner != service) {
                    let object = ObjectRef { kind: Kind::Service, key: service.clone() };
                    let message = format!(
                        "{addr} is Service {owner}'s: a ClusterIP counts before an external address, then the older Service"
                    );
                    out.push((object, message));
                }
            }
        }
        out.sort();
        out
    }
}

/// Finds references whose target is not there, or not ours to serve: by the API such objects get no status entry.
struct DeadReferences<'a> {
    snapshot: &'a Snapshot,
    /// Classes of ours.
    classes: Vec<&'a str>,
    gateways: Names<'a>,
    listener_sets: Names<'a>,
}

impl<'a> DeadReferences<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        let classes = snapshot.classes.values().filter(|c| is_ours(c)).map(|c| &*c.meta.key.name);
        Self {
            snapshot,
            classes: classes.collect(),
            gateways: Names::new(snapshot.gateways.keys()),
            listener_sets: Names::new(snapshot.listener_sets.keys()),
        }
    }

    fn find(&self) -> Vec<(ObjectRef, String)> {
        let mut out = Vec::new();
        for gateway in self.snapshot.gateways.values() {
            let object = ObjectRef { kind: Kind::Gateway, key: gateway.meta.key.clone() };
            let remark =
                self.class(gateway).map(|(why, remedy)| format!("spec.gatewayClassName: {why}; {remedy}"));
            out.extend(remark.map(|r| (object, r)));
        }
        for set in self.snapshot.listener_sets.values() {
            let object = ObjectRef { kind: Kind::ListenerSet, key: set.meta.key.clone() };
            out.extend(self.listener_set(set).map(|r| (object, r)));
        }
        for route in self.snapshot.routes.values() {
            let object = ObjectRef { kind: route.kind.kind(), key: route.meta.key.clone() };
            let remarks = (0..route.parents.len()).filter_map(|index| self.parent(route, index));
            out.extend(remarks.map(|r| (object.clone(), r)));
        }
        out
    }

    /// Why the class of a Gateway is none of ours, and what to do.
    fn class(&self, gateway: &Gateway) -> Option<(String, String)> {
        let name = &gateway.class;
        let ours = || match self.classes.as_slice() {
            [] => format!("define a GatewayClass with spec.controllerName: {CONTROLLER_NAME}"),
            some => format!("classes that Weft serves: {}", quoted(some)),
        };
        match self.snapshot.classes.get(name) {
            Some(class) if is_ours(class) => None,
            Some(class) => Some((
                format!("GatewayClass \"{name}\" is served by {}, not by Weft", class.controller),
                ours(),
            )),
            None => {
                let remedy = closest(name, self.classes.iter().copied())
                    .map_or_else(ours, |c| format!("did you mean \"{c}\"?"));
                Some((format!("GatewayClass \"{name}\" does not exist"), remedy))
            }
        }
    }

    fn listener_set(&self, set: &ListenerSet) -> Option<String> {
        if !set.parent_kind.is(Kind::Gateway) {
            let kind = &set.parent_kind;
            return Some(format!("spec.parentRef: {kind} is no Gateway; a ListenerSet belongs to a Gateway"));
        }
        self.gateway(&set.parent, "spec.parentRef")
    }

    /// What is wrong with the `index`th parentRef of a route. Missing Services have a condition.
    fn parent(&self, route: &Route, index: usize) -> Option<String> {
        let parent = &route.parents[index];
        let namespace = parent.namespace.as_ref().unwrap_or(&route.meta.key.namespace);
        let key = ObjectKey::new(namespace.clone(), parent.name.clone());
        if parent.kind.is(Kind::Service) || parent.kind.is(Kind::Gateway) && self.serves(&key) {
            return None;
        }
        let at = format!("spec.parentRefs[{index}]");
        if parent.kind.is(Kind::Gateway) {
            return self.gateway(&key, &at);
        }
        if &*parent.kind.kind == "Service" {
            // What is left out means the group of Gateways.
            return Some(format!("{at}: kind Service needs its own group beside it: add `group: \"\"`"));
        }
        if !parent.kind.is(Kind::ListenerSet) {
            let kind = &parent.kind;
            return Some(format!("{at}: Weft serves no {kind}; name a Gateway, a ListenerSet or a Service"));
        }
        let Some(set) = self.snapshot.listener_sets.get(&key) else {
            let remedy = self.listener_sets.remedy(Kind::ListenerSet, &key, &at);
            let remedy = remedy.or_else(|| self.gateways.of_kind(Kind::Gateway, &key, &at));
            return Some(missing(Kind::ListenerSet, &key, &at, remedy));
        };
        let why = self.listener_set(set)?;
        Some(format!("{at}: ListenerSet {key} belongs to no Gateway of Weft: {why}"))
    }

    /// Whether a Gateway is there, and ours.
    fn serves(&self, key: &ObjectKey) -> bool {
        let class = |gateway: &Arc<Gateway>| self.snapshot.classes.get(&gateway.class);
        self.snapshot.gateways.get(key).and_then(class).is_some_and(|class| is_ours(class))
    }

    /// What is wrong with a reference at `at` to a Gateway.
    fn gateway(&self, key: &ObjectKey, at: &str) -> Option<String> {
        let Some(gateway) = self.snapshot.gateways.get(key) else {
            let remedy = self.gateways.remedy(Kind::Gateway, key, at);
            // A ListenerSet's parent is a Gateway only.
            let sets = || self.listener_sets.of_kind(Kind::ListenerSet, key, at);
            let remedy = remedy.or_else(|| at.ends_with(']').then(sets).flatten());
            return Some(missing(Kind::Gateway, key, at, remedy));
        };
        let (why, remedy) = self.class(gateway)?;
        Some(format!("{at}: Gateway {key} is not served by Weft: its {why}; {remedy}"))
    }
}

fn is_ours(class: &GatewayClass) -> bool {
    &*class.controller == CONTROLLER_NAME
}

fn missing(kind: Kind, key: &ObjectKey, at: &str, remedy: Option<String>) -> String {
    let remedy = remedy.unwrap_or_else(|| "define it, or correct the reference".to_owned());
    format!("{at}: {kind} {key} does not exist; {remedy}")
}

/// What there is of one kind, to find what was meant.
struct Names<'a> {
    by_name: HashMap<&'a str, Vec<&'a ObjectKey>>,
    by_namespace: HashMap<&'a str, BTreeSet<&'a str>>,
}

impl<'a> Names<'a> {
    fn new(keys: impl Iterator<Item = &'a ObjectKey>) -> Self {
        let mut names = Self { by_name: HashMap::new(), by_namespace: HashMap::new() };
        for key in keys {
            names.by_name.entry(&key.name).or_default().push(key);
            names.by_namespace.entry(&key.namespace).or_default().insert(&key.name);
        }
        names
    }

    /// What was likely meant by a key that is not there: the same name elsewhere, else a name like it here, else one
    /// elsewhere.
    fn remedy(&self, kind: Kind, key: &ObjectKey, at: &str) -> Option<String> {
        let field = at.strip_prefix("spec.").unwrap_or(at);
        match self.by_name.get(&*key.name).map(Vec::as_slice) {
            None | Some([]) => {}
            Some([one]) => {
                return Some(format!("{kind} {one} exists: set {field}.namespace: {}", one.namespace));
            }
            Some(several) => {
                let namespaces: Vec<&Str> = several.iter().map(|k| &k.namespace).collect();
                let listed = listed(&namespaces);
                return Some(format!("{kind}s of this name exist: set {field}.namespace to one of {listed}"));
            }
        }
        let here = self.by_namespace.get(&*key.namespace).into_iter().flatten().copied();
        if let Some(name) = closest(&key.name, here) {
            return Some(format!("did you mean \"{name}\"?"));
        }
        let name = closest(&key.name, self.by_name.keys().copied())?;
        let meant = self.by_name.get(name)?.first()?;
        Some(format!(
            "did you mean {kind} {meant} ({field}.name: {name}, {field}.namespace: {})?",
            meant.namespace
        ))
    }

    /// For a reference that names another kind: `key` is one of these.
    fn of_kind(&self, kind: Kind, key: &ObjectKey, at: &str) -> Option<String> {
        let field = at.strip_prefix("spec.").unwrap_or(at);
        let found = self.by_name.get(&*key.name)?.contains(&key);
        found.then(|| format!("{kind} {key} exists: set {field}.kind: {kind}"))
    }
}

fn quoted(names: &[&str]) -> String {
    listed(&names.iter().map(|n| format!("\"{n}\"")).collect::<Vec<_>>())
}

fn listed(names: &[impl ToString]) -> String {
    let mut out: Vec<_> = names.iter().take(MAX_LISTED).map(ToString::to_string).collect();
    if names.len() > MAX_LISTED {
        out.push(format!("{} more", names.len() - MAX_LISTED));
    }
    out.join(", ")
}
