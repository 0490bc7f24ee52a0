//! What the leading controller does with what was resolved: statuses, Gateways' objects, WorkloadSlices, material.

use super::{enrolment::WorldEnrolment, world::Pipeline};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use weft_control::{
    AgentReport, Agents, AppliedGateway, BudgetReached, Expected, Material, Materials, Serving, watermarks,
};
use weft_core::{
    budget::{self, Budget},
    engine::{Feedback, Update},
    model::{AddressMode, Kind, ObjectKey, ObjectRef, Secret, SecretData, Snapshot, Str},
    status::{AllStatuses, named, withdrawn},
};
use weft_k8s::{
    Desired, Leadership, Recorder, RecorderConfig, StatusWriter, WatchState, Watched, WriterConfig,
    events::EventCounts,
    known_in,
    provision::{self, ADDRESS_MODE, Provisioner, ProvisionerOptions},
    status::{Known, Lives, Progress},
    workloads::{self, SliceOptions, SlicePublisher},
};

/// A node that could not serve a Gateway is not asked again before this has passed.
const UNABLE: Duration = Duration::from_secs(60);
/// A node is believed to be unable after this time.
const TAKEOVER: Duration = Duration::from_secs(3);
/// Events a second.
const EVENTS_QPS: u32 = 20;

/// Everything that the leader writes.
pub(super) struct Duties {
    writer: StatusWriter,
    provisioner: Provisioner,
    slices: SlicePublisher,
    materials: watch::Sender<Arc<Materials>>,
    serving: watch::Sender<Arc<Serving>>,
    /// What each Gateway of ours must be at before it is programmed.
    expected: BTreeMap<ObjectKey, Expected>,
    update: Option<Update>,
    /// The statuses that the watches have brought.
    lives: Arc<Lives>,
    events: Recorder,
    /// How often a budget had been reached when that was told last.
    told: BTreeMap<(Str, ObjectRef, &'static str), u64>,
    /// Since when a node could not serve a Gateway, and when that was so last.
    failed: BTreeMap<(ObjectKey, Str), (Instant, Instant)>,
    /// What objects are told, or are not any more.
    words: Words,
    /// Since when agents have been connected while this replica leads.
    heard: Option<Instant>,
}

/// The controller has no pods of its own.
pub(super) fn nobody() -> Arc<WorldEnrolment> {
    WorldEnrolment::new("")
}

impl Duties {
    pub(super) fn start(
        client: weft_k8s::Client,
        instance: &str,
        leadership: watch::Receiver<Leadership>,
        lives: Arc<Lives>,
        (materials, serving): (watch::Sender<Arc<Materials>>, watch::Sender<Arc<Serving>>),
    ) -> Self {
        let events = Recorder::start(
            client.clone(),
            RecorderConfig { instance: instance.to_owned(), qps: EVENTS_QPS },
            leadership.clone(),
        );
        Self {
            writer: StatusWriter::start(
                client.clone(),
                WriterConfig::default(),
                leadership,
                Some(events.clone()),
            )
            .mending(lives.clone()),
            provisioner: Provisioner::start(client.clone(), ProvisionerOptions::default()),
            slices: SlicePublisher::start(client, SliceOptions::default(), Some(events)),
            materials,
            serving,
            expected: BTreeMap::new(),
            update: None,
            lives,
            events,
            told: BTreeMap::new(),
            failed: BTreeMap::new(),
            words: Words::default(),
            heard: None,
        }
    }

    /// What was written and told, for metrics.
    pub(super) fn counts(&self) -> (Arc<Progress>, Arc<EventCounts>) {
        (self.writer.progress(), self.events.counts())
    }

    /// Takes what was resolved: statuses are written, material is handed out.
    pub(super) fn published(&mut self, update: Update, pipeline: &Pipeline, watched: &WatchState) {
        let snapshot = pipeline.snapshot();
        let kinds = watched.kinds.iter().filter_map(|(kind, state)| {
            let Watched::Model(kind) = *kind else { return None };
            Some((kind, Str::from(state.version?)))
        });
        let (known, lives) = (snapshot.clone(), self.lives.clone());
        let desired = Desired {
            statuses: update.statuses.clone(),
            known: Arc::new(move |object: &ObjectRef| {
                let live = lives.get(object);
                known_in(&known, object).map(|known| Known { live, ..known })
            }),
            served: Arc::new(kinds.collect()),
        };
        // Objects that were made anew under the same name are among them.
        let (statuses, changed) = self.words.of(&update, pipeline.leaving());
        self.writer.publish(Desired { statuses, ..desired }, &changed);
        let serving = serving(snapshot);
        let marks = watermarks(snapshot).into_iter();
        let ours = |key: &ObjectKey| update.config.gateways.contains_key(key);
        self.expected = marks
            .filter(|(key, _)| ours(key))
            .map(|(key, mark)| {
                let every_node = mode(snapshot, &key) == Some(AddressMode::HostPort);
                (key, Expected { mark, every_node })
            })
            .collect();
        let materials = materials(pipeline, &serving);
        replace(&self.materials, materials);
        replace(&self.serving, serving);
        self.update = Some(update);
    }

    /// Takes what agents report: where Gateways can be served, and which pods are captured.
    pub(super) fn agents(&mut self, agents: &Agents, pipeline: &Pipeline, led_since: Option<Instant>) {
        self.provisioner.set_leader(led_since.is_some());
        self.slices.set_leader(led_since.is_some());
        let Some(config) = self.update.as_ref().map(|update| update.config.clone()) else { return };
        let nodes: BTreeSet<Str> = agents.keys().cloned().collect();
        self.heard = match led_since {
            Some(led) if !nodes.is_empty() => Some(self.heard.map_or(Instant::now(), |at| at.max(led))),
            _ => None,
        };
        let unable = self.unable(agents, &nodes);
        let serving = provision::Serving { nodes, unable, heard: self.heard };
        self.provisioner.publish(pipeline.snapshot(), &config, &serving);
        self.slices.publish(pipeline.snapshot(), &Arc::new(captured_pods(agents)));
        if led_since.is_some() {
            self.tell_of_budgets(agents, pipeline.snapshot());
        }
    }

    /// Tells the workloads' owners of budgets that were reached, by an Event on each pod or Gateway.
    fn tell_of_budgets(&mut self, agents: &Agents, snapshot: &Snapshot) {
        let mut now = BTreeMap::new();
        for (node, report) in agents.iter() {
            for reached in report.reached.iter() {
                let Some((object, uid)) = whose(report, reached, snapshot) else { continue };
                let key = (node.clone(), object, reached.budget.name);
                // Fewer than before: the agent was replaced, and counts anew.
                if self.told.get(&key).is_none_or(|told| reached.times > *told || reached.times < *told / 2) {
                    // Pod and Gateway are both v1 of their group.
                    self.events.warn(&key.1, &uid, "v1", ("BudgetReached", note(node, reached)));
                }
                now.insert(key, reached.times);
            }
        }
        self.told = now;
    }

    /// Nodes that could not serve a Gateway lately. A Gateway that no node can serve stays where it is, and says so: moved
    /// about, it would look served whenever nobody has tried yet.
    fn unable(&mut self, agents: &Agents, nodes: &BTreeSet<Str>) -> BTreeMap<ObjectKey, BTreeSet<Str>> {
        let now = Instant::now();
        self.failed.retain(|_, (_, last)| now.duration_since(*last) < UNABLE);
        for (node, report) in agents.iter() {
            let failing = |a: &AppliedGateway| !a.unbound.is_empty() || !a.unusable.is_empty();
            for (gateway, _) in report.applied.iter().filter(|(_, applied)| failing(applied)) {
                let at = (gateway.clone(), node.clone());
                self.failed.entry(at).and_modify(|(_, last)| *last = now).or_insert((now, now));
            }
        }
        let mut unable: BTreeMap<ObjectKey, BTreeSet<Str>> = BTreeMap::new();
        // Not at once: while one agent takes over from another, the ports are the old one's for a moment.
        let lasting = |(since, last): &(Instant, Instant)| last.duration_since(*since) >= TAKEOVER;
        for ((gateway, node), _) in self.failed.iter().filter(|(_, times)| lasting(times)) {
            unable.entry(gateway.clone()).or_default().insert(node.clone());
        }
        unable.retain(|_, failed| !nodes.is_subset(failed));
        unable
    }

    /// What `Programmed` has to wait for. Who does not lead, or only just does, knows no agent and says that of every Gateway:
    /// the writer lets what the cluster says stand until agents had the time to connect (`Holds::settling`), and nothing
    /// is called programmed that no agent has told of.
    pub(super) fn feedback(&self, agents: &Agents) -> Feedback {
        let mut feedback =
            weft_control::feedback(&self.expected, &self.serving.borrow(), agents, jiff::Timestamp::now());
        for (gateway, why) in self.provisioner.problems().borrow().iter() {
            feedback.pending.insert(gateway.clone(), why.clone());
        }
        feedback
    }
}

/// The object that an agent says has reached a budget, if it is one that this agent serves: an agent tells of no other.
fn whose(report: &AgentReport, reached: &BudgetReached, snapshot: &Snapshot) -> Option<(ObjectRef, Str)> {
    let key = &reached.workload;
    let (kind, uid) = if reached.gateway {
        report.applied.get(key)?;
        (Kind::Gateway, snapshot.gateways.get(key)?.meta.uid.clone())
    } else {
        let captured = report.captured.get(key)?;
        let uid = snapshot.pods.get(key)?.meta.uid.clone();
        if captured.uid != uid {
            return None;
        }
        (Kind::Pod, uid)
    };
    Some((ObjectRef { kind, key: key.clone() }, uid))
}

/// The same words whenever it is reached, so that Events are counted in one series.
fn note(node: &str, reached: &BudgetReached) -> String {
    let Budget { name, holds, when_reached, .. } = reached.budget;
    let amount = budget::amount(reached.budget);
    format!("The budget {name} ({amount}) is used up on node {node}: {holds}. Beyond it: {when_reached}.")
}

/// What objects are told: what was resolved, or, once Weft is being uninstalled, what they say without a controller. Pods and
/// addresses are given up from that moment on, so that nothing may be called programmed.
#[derive(Debug, Default)]
struct Words {
    taken_back: bool,
}

impl Words {
    /// The statuses, and which of them differ from those of the last call.
    fn of(&mut self, update: &Update, leaving: bool) -> (Arc<AllStatuses>, Vec<ObjectRef>) {
        let turned = std::mem::replace(&mut self.taken_back, leaving) != leaving;
        let statuses = if leaving { Arc::new(withdrawn(&update.statuses)) } else { update.statuses.clone() };
        let mut changed = update.changed.clone();
        if turned {
            changed.extend(named(&update.statuses));
        }
        (statuses, changed)
    }
}

fn replace<T: PartialEq>(sender: &watch::Sender<Arc<T>>, value: T) {
    sender.send_if_modified(|now| {
        let changed = **now != value;
        if changed {
            *now = Arc::new(value);
        }
        changed
    });
}

/// The pods that agents capture, of nodes whose agent is there and has told. Of a node whose stream has ended only the slices
/// tell: `weft node clean` may have corrected them, and an agent that is back captures them anew.
fn captured_pods(agents: &Agents) -> workloads::Captured {
    let here = agents.iter().filter(|(_, report)| report.reported && report.gone.is_none());
    here.map(|(node, report)| (node.clone(), report.captured.clone())).collect()
}

fn mode(snapshot: &Snapshot, gateway: &ObjectKey) -> Option<AddressMode> {
    let service = snapshot.services.get(&provision::object_key(gateway))?;
    AddressMode::parse(service.meta.annotations.get(ADDRESS_MODE)?)
}

/// The nodes that serve each Gateway: from the EndpointSlices, which nobody else may write, for they get its keys.
fn serving(snapshot: &Snapshot) -> Serving {
    let mut out = Serving::new();
    for key in snapshot.gateways.keys() {
        let name = provision::object_key(key);
        if mode(snapshot, key).is_some() {
            out.insert(key.clone(), provision::endpoint_nodes(snapshot, &name));
        }
    }
    out
}

/// What each node's agent needs: of the Gateways that it serves, and of every BackendTLSPolicy.
fn materials(pipeline: &Pipeline, serving: &Serving) -> Materials {
    let snapshot = pipeline.snapshot();
    let mut wanted: BTreeMap<Str, BTreeSet<ObjectRef>> =
        snapshot.nodes.keys().map(|node| (node.clone(), BTreeSet::new())).collect();
    for (gateway, nodes) in serving {
        let material = pipeline.gateway_material(gateway);
        for node in nodes {
            wanted.entry(node.clone()).or_default().extend(material.iter().cloned());
        }
    }
    let everywhere = pipeline.backend_material();
    let of_node = |refs: &BTreeSet<ObjectRef>| {
        let mut material = Material::default();
        // A CA may be named in a Secret that has a key too: no node gets that for it.
        gather(snapshot, &everywhere, |secret| matches!(secret.data, SecretData::Ca(_)), &mut material);
        gather(snapshot, refs, |_| true, &mut material);
        Arc::new(material)
    };
    wanted.into_iter().map(|(node, refs)| (node, of_node(&refs))).collect()
}

fn gather(
    snapshot: &Snapshot,
    refs: &BTreeSet<ObjectRef>,
    may: impl Fn(&Secret) -> bool,
    material: &mut Material,
) {
    for object in refs {
        match object.kind {
            Kind::Secret => {
                let secret = snapshot.secrets.get(&object.key).filter(|s| may(s));
                material.secrets.extend(secret.map(|s| (object.key.clone(), s.clone())));
            }
            Kind::ConfigMap => {
                let map = snapshot.config_maps.get(&object.key);
                material.config_maps.extend(map.map(|m| (object.key.clone(), m.clone())));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use weft_core::{
        config::Config,
        status::{Condition, ConditionStatus, ObjectStatus},
    };
    use weft_k8s::{Object, Source, convert};

    fn report(reported: bool, gone: Option<jiff::Timestamp>) -> Arc<AgentReport> {
        Arc::new(AgentReport {
            version: "1".into(),
            instance: "agent".into(),
            since: jiff::Timestamp::UNIX_EPOCH,
            changed: jiff::Timestamp::UNIX_EPOCH,
            gone,
            reported,
            applied: Arc::default(),
            reached: Arc::default(),
            captured: Arc::default(),
        })
    }

    #[test]
    fn captured_pods_are_those_of_agents_that_are_there_and_have_told() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        for (reported, gone, counts) in
            [(true, None, true), (false, None, false), (true, Some(now), false), (false, Some(now), false)]
        {
            let agents = Agents::from([("n1".into(), report(reported, gone))]);
            assert_eq!(captured_pods(&agents).contains_key("n1"), counts, "{reported} {gone:?}");
        }
    }

    /// An agent is believed about what it serves itself, and about nothing else.
    #[test]
    fn budgets_are_told_to_workloads_that_the_agent_serves() {
        let key = |name: &str| ObjectKey::new("shop", name);
        let capture = |uid: &str| weft_core::model::Capture { uid: uid.into(), tunnel: Default::default() };
        let mut agent = (*report(true, None)).clone();
        agent.captured = Arc::new([(key("cart"), capture("u-1")), (key("anew"), capture("u-2"))].into());
        agent.applied = Arc::new([(key("edge"), AppliedGateway::default())].into());
        let mut snapshot = Snapshot::default();
        for (name, uid) in [("cart", "u-1"), ("anew", "u-3"), ("foreign", "u-4")] {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "a"}]},
                "metadata": {"namespace": "shop", "name": name, "uid": uid}});
            let Some(Object::Pod(pod)) = convert(pod, &Source::default()).object else { panic!("a Pod") };
            snapshot.pods.insert(key(name), pod);
        }
        for (name, uid) in [("edge", "u-5"), ("other", "u-6")] {
            let gateway = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": {"namespace": "shop", "name": name, "uid": uid},
                "spec": {"gatewayClassName": "weft", "listeners": [{"name": "a", "port": 80, "protocol": "HTTP"}]}});
            let Some(Object::Gateway(gateway)) = convert(gateway, &Source::default()).object else {
                panic!("a Gateway")
            };
            snapshot.gateways.insert(key(name), gateway);
        }
        let check = |gateway, name: &str, expected: Option<&str>| {
            let workload = key(name);
            let reached = BudgetReached { workload, gateway, budget: &budget::CONNECTIONS_IN, times: 1 };
            let whose = whose(&agent, &reached, &snapshot);
            assert_eq!(
                whose.map(|(object, uid)| format!("{}/{}/{uid}", object.kind, object.key.name)).as_deref(),
                expected
            );
        };
        check(false, "cart", Some("Pod/cart/u-1"));
        check(true, "edge", Some("Gateway/edge/u-5"));
        check(false, "anew", None);
        check(false, "foreign", None);
        check(true, "other", None);
        check(true, "cart", None);
    }

    /// E11: after an uninstallation Gateways still said `PROGRAMMED True`.
    #[test]
    fn words_are_taken_back_while_weft_leaves_and_given_again_when_it_stays() {
        let object = |kind| ObjectRef { kind, key: ObjectKey::new("shop", "edge") };
        let programmed = Condition {
            kind: "Programmed",
            status: ConditionStatus::True,
            reason: "Programmed",
            message: String::new(),
            observed_generation: 1,
        };
        let gateway = ObjectStatus::Gateway {
            conditions: vec![programmed],
            addresses: Vec::new(),
            listeners: Vec::new(),
            attached_listener_sets: 0,
        };
        let all: AllStatuses = [
            (object(Kind::Gateway), Arc::new(gateway)),
            (object(Kind::HttpRoute), Arc::new(ObjectStatus::Route { parents: Vec::new() })),
        ]
        .into_iter()
        .collect();
        let update = |changed| Update {
            config: Arc::new(Config::default()),
            statuses: Arc::new(all.clone()),
            changed,
        };
        let mut words = Words::default();
        let (said, changed) = words.of(&update(vec![object(Kind::Gateway)]), false);
        assert_eq!((&*said, changed), (&all, vec![object(Kind::Gateway)]));
        let (said, changed) = words.of(&update(Vec::new()), true);
        assert_eq!(said.keys().collect::<Vec<_>>(), [&object(Kind::Gateway)], "of the route nothing is left");
        assert!(matches!(&*said[&object(Kind::Gateway)], ObjectStatus::Gateway { conditions, .. }
            if conditions.iter().all(|c| c.status == ConditionStatus::Unknown)));
        assert_eq!(changed.len(), 2, "each is to be looked at");
        let (_, changed) = words.of(&update(Vec::new()), true);
        assert_eq!(changed, [], "once");
        let (said, changed) = words.of(&update(Vec::new()), false);
        assert_eq!((&*said, changed.len()), (&all, 2));
    }
}
