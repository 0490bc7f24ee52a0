//! Which pods of this node are in the mesh, as the Snapshot says.

use parking_lot::RwLock;
use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;
use weft_cni::protocol::Enrolled;
use weft_core::model::{MESH_LABEL, MtlsMode, Namespace, ObjectKey, Pod, Snapshot, Str, Workload};
use weft_inpod::{CaptureConfig, Decision, Enrolment, WhileAway};
use weft_k8s::MIRROR;

/// A pod of this node that is in the mesh and runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Running {
    pub(super) key: ObjectKey,
    /// As the runtime knows it.
    pub(super) uid: String,
    pub(super) ips: Vec<IpAddr>,
}

/// The world's answer to "is this pod enrolled?". Before the first Snapshot it knows nothing.
#[derive(Debug)]
pub(super) struct WorldEnrolment {
    node: Str,
    world: RwLock<Option<Snapshot>>,
    /// Weft is being uninstalled: nobody is enrolled.
    leaving: AtomicBool,
    /// How long connections may go on then.
    patience: RwLock<Option<Duration>>,
    /// What pods accept that no label speaks of.
    default_mode: RwLock<MtlsMode>,
    /// Whether strict pods take no datagrams from outside.
    drop_udp: AtomicBool,
    /// The node's own addresses.
    addresses: RwLock<BTreeSet<IpAddr>>,
    changed: watch::Sender<u64>,
}

impl WorldEnrolment {
    /// For the pods of a node.
    pub(super) fn new(node: &str) -> Arc<Self> {
        Arc::new(Self {
            node: node.into(),
            world: RwLock::new(None),
            leaving: AtomicBool::new(false),
            patience: RwLock::new(None),
            default_mode: RwLock::default(),
            drop_udp: AtomicBool::new(false),
            addresses: RwLock::default(),
            changed: watch::Sender::new(0),
        })
    }

    /// Takes a new world, and says so if an answer may differ.
    pub(super) fn update(&self, snapshot: &Snapshot) {
        let mut world = self.world.write();
        let same =
            world.as_ref().is_some_and(|w| w.pods == snapshot.pods && w.namespaces == snapshot.namespaces);
        if !same {
            // Only pods and namespaces are asked for: the rest need not be kept alive.
            let (pods, namespaces) = (snapshot.pods.clone(), snapshot.namespaces.clone());
            *world = Some(Snapshot { pods, namespaces, ..Snapshot::default() });
            self.changed.send_modify(|version| *version += 1);
        }
    }

    /// Whether Weft is being uninstalled, and how long connections may go on then. To be told before the world that says so.
    pub(super) fn set_leaving(&self, leaving: bool, patience: Option<Duration>) {
        *self.patience.write() = patience.filter(|_| leaving);
        if self.leaving.swap(leaving, Ordering::AcqRel) != leaving {
            self.changed.send_modify(|version| *version += 1);
        }
    }

    /// What pods accept that no label speaks of. To be told before the world in which it is so.
    pub(super) fn set_default_mode(&self, mode: MtlsMode) {
        let differs = std::mem::replace(&mut *self.default_mode.write(), mode) != mode;
        if differs {
            self.changed.send_modify(|version| *version += 1);
        }
    }

    /// Whether strict pods take no datagrams from outside. To be told before the world in which it is so.
    pub(super) fn set_drop_udp(&self, drop: bool) {
        if self.drop_udp.swap(drop, Ordering::AcqRel) != drop {
            self.changed.send_modify(|version| *version += 1);
        }
    }

    /// The node's own addresses: from one of them its kubelet asks its pods.
    pub(super) fn set_addresses(&self, addresses: BTreeSet<IpAddr>) {
        let mut known = self.addresses.write();
        if *known != addresses {
            *known = addresses;
            drop(known);
            self.changed.send_modify(|version| *version += 1);
        }
    }

    /// How long connections of a pod that leaves may go on, where that was said.
    pub(super) fn patience(&self) -> Option<Duration> {
        *self.patience.read()
    }

    /// The workload of the pod with this UID, if it is known.
    pub(super) fn workload(
        &self,
        key: &ObjectKey,
        uid: &str,
        trust_domain: &str,
        mode: MtlsMode,
    ) -> Option<Workload> {
        let world = self.world.read();
        let world = world.as_ref()?;
        let pod = world.pods.get(key).filter(|pod| is_the_one(pod, uid))?;
        let namespace = world.namespaces.get(&key.namespace).map(|n| &**n);
        Some(Workload::derive(pod, namespace, trust_domain, mode))
    }
}

impl WorldEnrolment {
    /// The node's pods that are in the mesh, have addresses and have not ended. Those without a UID (of files) are left out:
    /// nothing leads from them to a process. `None` before the first world.
    pub(super) fn running(&self) -> Option<Vec<Running>> {
        let world = self.world.read();
        let world = world.as_ref()?;
        let is_here = |pod: &Pod| {
            pod.node.as_ref() == Some(&self.node)
                && !(pod.finished || pod.ips.is_empty() || pod.meta.uid.is_empty())
        };
        let running = world.pods.iter().filter(|(key, pod)| {
            is_here(pod) && self.is_enrolled(pod, world.namespaces.get(&key.namespace).map(|n| &**n))
        });
        let one = |(key, pod): (&ObjectKey, &Arc<Pod>)| {
            let uid = pod.meta.uid.to_string();
            Running { key: key.clone(), uid, ips: pod.ips.clone() }
        };
        Some(running.map(one).collect())
    }

    /// Whether the world has this pod. With a UID, it must be the very pod.
    pub(super) fn has(&self, key: &ObjectKey, uid: &str) -> bool {
        let world = self.world.read();
        let pod = world.as_ref().and_then(|w| w.pods.get(key));
        pod.is_some_and(|pod| uid.is_empty() || pod.meta.uid.is_empty() || &*pod.meta.uid == uid)
    }
}

impl WorldEnrolment {
    fn is_enrolled(&self, pod: &Pod, namespace: Option<&Namespace>) -> bool {
        !self.leaving.load(Ordering::Acquire) && Workload::wants_mesh(pod, namespace)
    }

    /// The way of the node's kubelet to a pod while no agent is there. None to a strict one: nobody could say that it is the
    /// kubelet who comes.
    fn while_away(&self, pod: &Pod, namespace: Option<&Namespace>) -> WhileAway {
        match Workload::mode(pod, namespace, *self.default_mode.read()) {
            MtlsMode::Strict => WhileAway::default(),
            MtlsMode::Permissive => {
                let ports = pod.probes.iter().map(|probe| probe.port).collect();
                WhileAway::new(ports, self.addresses.read().clone())
            }
        }
    }
}

/// Whether it is the pod that the runtime calls by this UID, and not another of the same name. Pods of files have none. The
/// runtime knows a static pod by what its mirror has in an annotation.
fn is_the_one(pod: &Pod, uid: &str) -> bool {
    let known = &*pod.meta.uid;
    uid.is_empty()
        || known.is_empty()
        || known == uid
        || pod.meta.annotations.get(MIRROR).is_some_and(|of| &**of == uid)
}

impl Enrolment for WorldEnrolment {
    fn decide(&self, namespace: &str, name: &str, uid: &str) -> Decision {
        let world = self.world.read();
        let Some(world) = world.as_ref() else { return Decision::Unknown };
        if self.leaving.load(Ordering::Acquire) {
            return Decision::NotEnrolled;
        }
        // A pod may have a label of its own either way: without the pod, its namespace does not decide alone. Nor does the
        // pod of a StatefulSet that had this name before: it may have been none of the mesh, or permissive.
        let pod = world.pods.get(&ObjectKey::new(namespace, name)).filter(|pod| is_the_one(pod, uid));
        let Some(pod) = pod else { return Decision::Unknown };
        if !self.is_enrolled(pod, world.namespaces.get(namespace).map(|n| &**n)) {
            return Decision::NotEnrolled;
        }
        let annotations = pod.meta.annotations.iter().map(|(k, v)| (&**k, &**v));
        let (mut capture, invalid) = CaptureConfig::from_annotations(annotations);
        for problem in invalid {
            tracing::warn!("Pod {namespace}/{name}: {problem}; that entry is captured");
        }
        let namespace = world.namespaces.get(namespace).map(|n| &**n);
        capture.while_away = self.while_away(pod, namespace);
        capture.strict = Workload::mode(pod, namespace, *self.default_mode.read()) == MtlsMode::Strict;
        capture.drop_udp = capture.strict && self.drop_udp.load(Ordering::Acquire);
        Decision::Enrolled(capture)
    }

    fn table(&self) -> Option<Enrolled> {
        let world = self.world.read();
        let world = world.as_ref()?;
        if self.leaving.load(Ordering::Acquire) {
            return Some(Enrolled::default());
        }
        let labelled =
            |labels: &weft_core::model::Labels, value| labels.get(MESH_LABEL).is_some_and(|v| &**v == value);
        let mut table = Enrolled::default();
        for (name, namespace) in &world.namespaces {
            if labelled(&namespace.meta.labels, "enabled") {
                table.namespaces.insert(name.to_string());
            }
        }
        // The plugin is asked for pods of this node only. In files a pod may be of no node.
        for (key, pod) in
            world.pods.iter().filter(|(_, pod)| pod.node.as_ref().is_none_or(|n| *n == self.node))
        {
            let enrolled = self.is_enrolled(pod, world.namespaces.get(&key.namespace).map(|n| &**n));
            let by_namespace = table.namespaces.contains(&*key.namespace);
            if enrolled && !by_namespace {
                table.pods.insert(key.to_string());
            } else if !enrolled && by_namespace {
                table.kept_out.insert(key.to_string());
            }
        }
        Some(table)
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
