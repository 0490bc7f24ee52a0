//! What the watches have brought, as one Snapshot that is edited in place.

use super::{
    Material, Role,
    admit::{Body, Item, Uninstall},
    kinds::{SETTINGS, Watched},
    model,
    state::Bundle,
};
use crate::{
    config::{self, AgentConfig},
    convert::{self, Object, Source, WorkloadSlice},
    problem::{Problem, Report, Severity},
    provision,
    status::Lives,
    world::World,
    yaml,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Bound,
    sync::Arc,
};
use weft_core::model::{
    Capture, Doubt, Kind, ObjectKey, ObjectRef, Objects, Origin, Pod, Snapshot, Str, TunnelPort,
};

/// Pods whose capture stands.
pub type Captured = BTreeMap<ObjectKey, Capture>;

/// Everything that has come in.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// This node, for an agent.
    me: Option<Str>,
    snapshot: Snapshot,
    problems: BTreeMap<(Watched, ObjectKey), Vec<Problem>>,
    agent: AgentConfig,
    uninstall: Option<Uninstall>,
    roots: Option<Str>,
    /// Pods from the Pod watch.
    pods: Objects<Pod>,
    slices: BTreeMap<ObjectKey, WorkloadSlice>,
    captured: Arc<Captured>,
    definitions: BTreeMap<Str, Option<Bundle>>,
    settings: BTreeMap<Watched, ObjectKey>,
    counts: HashMap<Watched, usize>,
    /// What a running list has brought so far.
    listing: HashMap<Watched, HashSet<ObjectKey>>,
    /// Placements are out of date.
    unplaced: bool,
    /// Ahead of the worlds.
    lives: Arc<Lives>,
}

impl Store {
    pub(super) fn new(role: &Role) -> Self {
        let me = match role {
            Role::Agent { node } => Some(node.clone()),
            Role::Controller => None,
        };
        Self { me, ..Self::default() }
    }

    /// The statuses that came with the objects.
    pub(super) fn lives(&self) -> Arc<Lives> {
        self.lives.clone()
    }

    /// The world as it is now.
    pub(super) fn world(&mut self) -> World {
        if std::mem::take(&mut self.unplaced) {
            let placements = provision::placements(&self.snapshot, self.me.as_deref());
            self.snapshot.placements = keep_same(&self.snapshot.placements, &placements);
        }
        World {
            snapshot: self.snapshot.clone(),
            problems: self.problems.values().flatten().cloned().collect(),
            agent: self.agent.clone(),
            uninstall: self.uninstall.is_some(),
            drain: self.uninstall.and_then(|u| u.drain),
        }
    }

    pub(super) fn count(&self, kind: Watched) -> usize {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    pub(super) fn roots(&self) -> Option<&Str> {
        self.roots.as_ref()
    }

    /// Whether the cluster has the definition of a kind.
    pub(super) fn defined(&self, kind: Watched) -> bool {
        self.definitions.contains_key(format!("{}.{}", kind.plural(), kind.group()).as_str())
    }

    pub(super) fn bundles(&self) -> BTreeSet<Bundle> {
        self.definitions.values().flatten().cloned().collect()
    }

    /// A list begins.
    pub(super) fn listing(&mut self, kind: Watched) {
        self.listing.insert(kind, HashSet::new());
    }

    /// A list is complete: what was not in it is gone. True when that changes the world.
    pub(super) fn listed(&mut self, kind: Watched) -> bool {
        let Some(seen) = self.listing.remove(&kind) else { return false };
        let mut gone = self.keys(kind);
        let from = Bound::Included((kind, ObjectKey::new("", "")));
        let faulty = self.problems.range((from, Bound::Unbounded)).map(|(id, _)| id);
        gone.extend(faulty.take_while(|(k, _)| *k == kind).map(|(_, key)| key.clone()));
        gone.retain(|key| !seen.contains(key));
        gone.iter().fold(false, |changed, key| self.remove(kind, key) | changed)
    }

    /// Everything of a kind is gone.
    pub(super) fn clear(&mut self, kind: Watched) -> bool {
        self.listing(kind);
        self.listed(kind)
    }

    /// An object is there or has changed. True when that changes the world.
    pub(super) fn put(&mut self, kind: Watched, mut item: Item) -> bool {
        if let Some(seen) = self.listing.get_mut(&kind) {
            seen.insert(item.key.clone());
        }
        if let (Watched::Model(of), Some(live)) = (kind, item.live.take()) {
            self.lives.put(ObjectRef { kind: of, key: item.key.clone() }, live);
        }
        let refused = item.refused();
        let mut problems = item.problems;
        let mut changed = match item.body {
            Some(body) => {
                let (changed, new, more) = self.insert(kind, &item.key, body);
                *self.counts.entry(kind).or_default() += usize::from(new);
                problems.extend(more);
                changed
            }
            None if refused => {
                if self.has(kind, &item.key) {
                    problems.push(last_good(kind, &item.key));
                }
                false
            }
            None => self.take(kind, &item.key),
        };
        changed |= self.say(kind, item.key, problems);
        changed
    }

    /// An object is gone. True when that changes the world.
    pub(super) fn remove(&mut self, kind: Watched, key: &ObjectKey) -> bool {
        if let Watched::Model(of) = kind {
            self.lives.remove(&ObjectRef { kind: of, key: key.clone() });
        }
        self.problems.remove(&(kind, key.clone())).is_some() | self.take(kind, key)
    }

    /// The controller's material. True when that changes the world.
    pub(super) fn material(&mut self, material: &Material) -> bool {
        let (secrets, maps) = (&mut self.snapshot.secrets, &mut self.snapshot.config_maps);
        let changed = *secrets != material.secrets || *maps != material.config_maps;
        secrets.clone_from(&material.secrets);
        maps.clone_from(&material.config_maps);
        changed
    }

    /// What is in doubt of what endpoints' conditions say. True when that changes the world.
    pub(super) fn doubt(&mut self, doubt: Doubt) -> bool {
        let changed = self.snapshot.doubt != doubt;
        self.snapshot.doubt = doubt;
        changed
    }

    /// The condition of a node that is there.
    pub(super) fn node_ready(&self, name: &str) -> Option<bool> {
        self.snapshot.nodes.get(name).map(|node| node.ready)
    }

    /// Which own pods are captured now. True when that changes the world.
    pub(super) fn captured(&mut self, captured: Arc<Captured>) -> bool {
        let before = std::mem::replace(&mut self.captured, captured);
        let all: BTreeSet<&ObjectKey> = before.keys().chain(self.captured.keys()).collect();
        let differs = |key: &&&ObjectKey| before.get(**key) != self.captured.get(**key);
        let moved: Vec<ObjectKey> = all.iter().filter(differs).map(|k| (*k).clone()).collect();
        moved.iter().fold(false, |changed, key| self.settle_pod(key) | changed)
    }

    fn say(&mut self, kind: Watched, key: ObjectKey, problems: Vec<Problem>) -> bool {
        let id = (kind, key);
        if problems.is_empty() {
            return self.problems.remove(&id).is_some();
        }
        let same = self.problems.get(&id) == Some(&problems);
        self.problems.insert(id, problems);
        !same
    }

    /// Whether it changes the world, whether it is new, and what to say about it beside its own problems.
    fn insert(&mut self, kind: Watched, key: &ObjectKey, body: Body) -> (bool, bool, Vec<Problem>) {
        let new = !self.has(kind, key);
        let changed = match body {
            Body::Model(Object::Pod(pod)) => {
                self.pods.insert(key.clone(), pod);
                self.settle_pod(key)
            }
            Body::Model(object) => {
                let changed = model::insert(&mut self.snapshot, object);
                self.unplaced |= changed && places(kind);
                changed
            }
            Body::Node(node) => {
                let changed = model::replace(&mut self.snapshot.nodes, key.name.clone(), node);
                self.unplaced |= changed;
                changed
            }
            Body::GatewayConfig(meta) => {
                model::replace(&mut self.snapshot.gateway_configs, key.clone(), meta)
            }
            Body::Slice(slice) => self.put_slice(key, slice),
            Body::Definition(bundle) => {
                self.definitions.insert(key.name.clone(), bundle);
                false
            }
            Body::Roots(text) => {
                self.settings.insert(kind, key.clone());
                self.roots = Some(text);
                false
            }
            Body::Settings(text, uninstall) => {
                self.settings.insert(kind, key.clone());
                let (agent, problems) = match text {
                    Some(text) => settings(key, &text, &self.agent),
                    None => (AgentConfig::default(), Vec::new()),
                };
                let changed = agent != self.agent || uninstall != self.uninstall;
                (self.agent, self.uninstall) = (agent, uninstall);
                return (changed, new, problems);
            }
        };
        (changed, new, Vec::new())
    }

    fn take(&mut self, kind: Watched, key: &ObjectKey) -> bool {
        if !self.has(kind, key) {
            return false;
        }
        if let Some(count) = self.counts.get_mut(&kind) {
            *count = count.saturating_sub(1);
        }
        match kind {
            Watched::Model(Kind::Pod) => {
                self.pods.remove(key);
                return self.settle_pod(key);
            }
            Watched::Model(of) => model::remove(&mut self.snapshot, of, key),
            Watched::Node => drop(self.snapshot.nodes.remove(&key.name)),
            Watched::GatewayConfig => drop(self.snapshot.gateway_configs.remove(key)),
            Watched::WorkloadSlice => return self.take_slice(key),
            Watched::Definition => {
                self.definitions.remove(&key.name);
                return false;
            }
            Watched::Settings => {
                self.settings.remove(&kind);
                self.agent = AgentConfig::default();
                self.uninstall = None;
            }
            // Roots stay: without any, nothing could be verified, and a deleted ConfigMap is made again.
            Watched::TrustRoots => {
                self.settings.remove(&kind);
                return false;
            }
        }
        self.unplaced |= places(kind);
        true
    }

    fn has(&self, kind: Watched, key: &ObjectKey) -> bool {
        match kind {
            Watched::Model(Kind::Pod) => self.pods.contains_key(key),
            Watched::Model(of) => model::has(&self.snapshot, of, key),
            Watched::Node => self.snapshot.nodes.contains_key(&key.name),
            Watched::GatewayConfig => self.snapshot.gateway_configs.contains_key(key),
            Watched::WorkloadSlice => self.slices.contains_key(key),
            Watched::Definition => self.definitions.contains_key(&key.name),
            Watched::Settings | Watched::TrustRoots => self.settings.contains_key(&kind),
        }
    }

    fn keys(&self, kind: Watched) -> Vec<ObjectKey> {
        match kind {
            Watched::Model(Kind::Pod) => self.pods.keys().cloned().collect(),
            Watched::Model(of) => model::keys(&self.snapshot, of),
            Watched::Node => self.snapshot.nodes.keys().map(|n| ObjectKey::new("", n.clone())).collect(),
            Watched::GatewayConfig => self.snapshot.gateway_configs.keys().cloned().collect(),
            Watched::WorkloadSlice => self.slices.keys().cloned().collect(),
            Watched::Definition => self.definitions.keys().map(|n| ObjectKey::new("", n.clone())).collect(),
            Watched::Settings | Watched::TrustRoots => {
                self.settings.get(&kind).cloned().into_iter().collect()
            }
        }
    }

    fn put_slice(&mut self, key: &ObjectKey, slice: WorkloadSlice) -> bool {
        let names: Vec<Str> = slice.pods.keys().cloned().collect();
        let before = self.slices.insert(key.clone(), slice);
        let gone = before.into_iter().flat_map(|b| b.pods.into_keys());
        let all: BTreeSet<Str> = gone.chain(names).collect();
        self.settle_pods(&key.namespace, all)
    }

    fn take_slice(&mut self, key: &ObjectKey) -> bool {
        let gone = self.slices.remove(key).into_iter().flat_map(|s| s.pods.into_keys()).collect();
        self.settle_pods(&key.namespace, gone)
    }

    fn settle_pods(&mut self, namespace: &Str, names: BTreeSet<Str>) -> bool {
        let keys = names.into_iter().map(|name| ObjectKey { namespace: namespace.clone(), name });
        keys.fold(false, |changed, key| self.settle_pod(&key) | changed)
    }

    /// Puts into the Snapshot what is to be known of a pod: from the Pod watch, else from a slice.
    fn settle_pod(&mut self, key: &ObjectKey) -> bool {
        let own = self.pods.get(key).map(|pod| match self.me {
            Some(_) => with_capture(pod, &self.captured),
            None => pod.clone(),
        });
        match own.or_else(|| self.published(key)) {
            Some(pod) => model::replace(&mut self.snapshot.pods, key.clone(), pod),
            None => self.snapshot.pods.remove(key).is_some(),
        }
    }

    /// What the slices of its namespace say of a pod. Not of a pod of this node: there the Pod watch knows better, also
    /// that it is gone.
    fn published(&self, key: &ObjectKey) -> Option<Arc<Pod>> {
        let first = ObjectKey { namespace: key.namespace.clone(), name: "".into() };
        let here = self.slices.range((Bound::Included(first), Bound::Unbounded));
        here.take_while(|(slice, _)| slice.namespace == key.namespace)
            .filter_map(|(_, slice)| slice.pods.get(&key.name))
            .find(|pod| pod.node.is_none() || pod.node != self.me)
            .cloned()
    }
}

/// Whether placements are made from it.
const fn places(kind: Watched) -> bool {
    matches!(kind, Watched::Model(Kind::Gateway | Kind::Service | Kind::EndpointSlice) | Watched::Node)
}

/// Equal values keep their `Arc`.
fn keep_same<T: PartialEq>(before: &Objects<T>, now: &Objects<T>) -> Objects<T> {
    let mut kept = before.clone();
    before.differences(
        now,
        |was, is| was == is,
        |key, _, is| {
            match is {
                Some(is) => kept.insert(key.clone(), is.clone()),
                None => kept.remove(key),
            };
        },
    );
    kept
}

fn with_capture(pod: &Arc<Pod>, captured: &Captured) -> Arc<Pod> {
    let capture = captured.get(&pod.meta.key).filter(|capture| capture.uid == pod.meta.uid);
    let tunnel = capture.map_or(TunnelPort::Hbone, |capture| capture.tunnel.clone());
    Arc::new(Pod { captured: Some(capture.is_some()), tunnel, ..(**pod).clone() })
}

/// The settings of a document, over the last good ones.
fn settings(key: &ObjectKey, text: &str, last: &AgentConfig) -> (AgentConfig, Vec<Problem>) {
    let file: Str = format!("ConfigMap {key} {}", SETTINGS.1).into();
    let origin = |line| Origin { file: file.clone(), line };
    let problem = |line, reason: &str, remedy: &str| Problem {
        severity: Severity::Error,
        origin: Some(origin(line)),
        object: "AgentConfig".into(),
        path: "".into(),
        reason: reason.into(),
        remedy: remedy.into(),
    };
    let (documents, errors) = yaml::read_within(text, &yaml::CLUSTER);
    let mut problems: Vec<Problem> =
        errors.iter().map(|e| problem(e.line, &e.reason, "the last good settings stay in effect")).collect();
    let Some(document) = documents.into_iter().find(|d| config::is_agent_config(&d.value)) else {
        if problems.is_empty() && !text.trim().is_empty() {
            let remedy = "write \"apiVersion: weft.dev/v1alpha1\" and \"kind: AgentConfig\"";
            problems.push(problem(1, "no AgentConfig in it", remedy));
        }
        return (last.clone(), problems);
    };
    let origin = origin(document.marks.line());
    let source = Source { origin: Some(&origin), marks: Some(&document.marks), admitted: false };
    let mut report = Report::default();
    let reading = config::read(&document.value, &document.marks, &mut report);
    problems.extend(convert::problems(report, "AgentConfig", &source));
    (reading.map_or_else(|| last.clone(), |r| r.over(last)), problems)
}

fn last_good(kind: Watched, key: &ObjectKey) -> Problem {
    Problem {
        severity: Severity::Warning,
        origin: None,
        object: format!("{kind} {key}").into(),
        path: "".into(),
        reason: "the last good version stays in effect".into(),
        remedy: "".into(),
    }
}
