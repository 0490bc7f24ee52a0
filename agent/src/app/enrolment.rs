//! Which pods of this node are in the mesh, as the Snapshot says.

use parking_lot::RwLock;
use std::sync::Arc;
use tokio::sync::watch;
use weft_cni::protocol::Enrolled;
use weft_core::model::{MESH_LABEL, MtlsMode, Namespace, ObjectKey, Pod, Snapshot, Workload};
use weft_inpod::{CaptureConfig, Decision, Enrolment};

/// The world's answer to "is this pod enrolled?". Before the first Snapshot it knows nothing.
#[derive(Debug)]
pub(super) struct WorldEnrolment {
    world: RwLock<Option<Snapshot>>,
    changed: watch::Sender<u64>,
}

impl WorldEnrolment {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { world: RwLock::new(None), changed: watch::Sender::new(0) })
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

    /// The pod's own workload, if it is known.
    pub(super) fn workload(&self, key: &ObjectKey, trust_domain: &str, mode: MtlsMode) -> Option<Workload> {
        let world = self.world.read();
        let world = world.as_ref()?;
        let pod = world.pods.get(key)?;
        let namespace = world.namespaces.get(&key.namespace).map(|n| &**n);
        Some(Workload::derive(pod, namespace, trust_domain, mode))
    }
}

fn is_enrolled(pod: &Pod, namespace: Option<&Namespace>) -> bool {
    Workload::wants_mesh(pod, namespace)
}

impl Enrolment for WorldEnrolment {
    fn decide(&self, namespace: &str, name: &str) -> Decision {
        let world = self.world.read();
        let Some(world) = world.as_ref() else { return Decision::Unknown };
        // A pod may have a label of its own either way: without the pod, its namespace does not decide alone.
        let Some(pod) = world.pods.get(&ObjectKey::new(namespace, name)) else { return Decision::Unknown };
        if !is_enrolled(pod, world.namespaces.get(namespace).map(|n| &**n)) {
            return Decision::NotEnrolled;
        }
        let annotations = pod.meta.annotations.iter().map(|(k, v)| (&**k, &**v));
        let (capture, invalid) = CaptureConfig::from_annotations(annotations);
        for problem in invalid {
            tracing::warn!("Pod {namespace}/{name}: {problem}; that entry is captured");
        }
        Decision::Enrolled(capture)
    }

    fn table(&self) -> Option<Enrolled> {
        let world = self.world.read();
        let world = world.as_ref()?;
        let labelled =
            |labels: &weft_core::model::Labels, value| labels.get(MESH_LABEL).is_some_and(|v| &**v == value);
        let mut table = Enrolled::default();
        for (name, namespace) in &world.namespaces {
            if labelled(&namespace.meta.labels, "enabled") {
                table.namespaces.insert(name.to_string());
            }
        }
        for (key, pod) in &world.pods {
            let enrolled = is_enrolled(pod, world.namespaces.get(&key.namespace).map(|n| &**n));
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
