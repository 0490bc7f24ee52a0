//! Pods to slices. Pure.

use super::proofs::proofs;
use crate::{
    pack::{Packed, pack},
    provision::{MANAGED_BY, MANAGER},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};
use weft_core::model::{
    Capture, MTLS_LABEL, ObjectKey, Pod, Snapshot, Str, TunnelPort, Workload as CoreWorkload, app_name,
};

/// Entries of one slice: at 250 bytes each it stays far below the API server's limit of an object.
pub const SLICE_CAPACITY: usize = 500;

/// One entry of a `WorkloadSlice`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// The pod's name.
    pub name: Str,
    /// Its uid.
    #[serde(default)]
    pub uid: Str,
    /// Its addresses.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Its service account.
    #[serde(default)]
    pub service_account: Str,
    /// Its node.
    #[serde(default)]
    pub node: Str,
    /// Whether labels put it into the mesh.
    #[serde(default)]
    pub enrolled: bool,
    /// Whether its node's agent says that its traffic is captured.
    #[serde(default)]
    pub captured: bool,
    /// Where tunnels to it may come besides 15008, as its node's agent says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application_ports: Option<ApplicationPorts>,
    /// Those of `ips` that its node's agent read inside its network namespace, and that no other pod had proved before.
    #[serde(default, rename = "provedIPs", skip_serializing_if = "Vec::is_empty")]
    pub proved_ips: Vec<IpAddr>,
    /// `strict` or `permissive`, when a label says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Str>,
    /// What telemetry calls it.
    #[serde(default)]
    pub app: Str,
    /// Whether it is in its node's network: published since what a node says of its addresses does not tell.
    #[serde(default, skip_serializing_if = "is_false")]
    pub host_network: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
const fn is_false(value: &bool) -> bool {
    !*value
}

/// The ports of a pod that tunnels may come to: all but some.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationPorts {
    /// Not captured, in ascending order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<u16>,
}

/// One `WorkloadSlice` as it is in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// `metadata.uid`; empty while it is not known.
    pub uid: Str,
    /// `metadata.resourceVersion`; empty while it is not known.
    pub version: Str,
    /// Its entries by pod name.
    pub workloads: BTreeMap<Str, Workload>,
}

/// The slices of every namespace, by number (`weft-3` is 3).
pub type Slices = BTreeMap<Str, BTreeMap<u32, Slice>>;

/// Pods whose capture stands, by node: the agents' reports. A node that is not in the map has not reported
/// (yet): what the slices say of its pods stays.
pub type Captured = BTreeMap<Str, Arc<BTreeMap<ObjectKey, Capture>>>;

/// One slice to write, or to delete (without workloads).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceChange {
    /// Its namespace.
    pub namespace: Str,
    /// Its number.
    pub number: u32,
    /// What it shall hold.
    pub workloads: BTreeMap<Str, Workload>,
}

impl SliceChange {
    /// The object's name.
    #[must_use]
    pub fn name(&self) -> String {
        format!("weft-{}", self.number)
    }
}

/// What differs between the pods and the slices.
#[must_use]
pub fn plan_slices(world: &Snapshot, captured: &Captured, existing: &Slices) -> Vec<SliceChange> {
    let mut wanted: BTreeMap<Str, BTreeMap<Str, Workload>> = BTreeMap::new();
    let proofs = proofs(world, captured, existing);
    for (key, pod) in &world.pods {
        let known = entry_of(existing, key);
        if let Some(mut workload) = workload(world, pod, captured, known) {
            workload.proved_ips.extend(pod.ips.iter().filter(|ip| proofs.get(ip) == Some(key)));
            wanted.entry(key.namespace.clone()).or_default().insert(key.name.clone(), workload);
        }
    }
    let mut out = Vec::new();
    let namespaces: BTreeSet<&Str> = wanted.keys().chain(existing.keys()).collect();
    let (none, empty) = (BTreeMap::new(), BTreeMap::new());
    for namespace in namespaces {
        // What goes with its namespace needs no deletion, which would only be refused.
        if !world.namespaces.contains_key(namespace) && !wanted.contains_key(namespace) {
            continue;
        }
        let wanted = wanted.get(namespace).unwrap_or(&none);
        plan_namespace(namespace, wanted, existing.get(namespace).unwrap_or(&empty), &mut out);
    }
    out
}

fn plan_namespace(
    namespace: &Str,
    wanted: &BTreeMap<Str, Workload>,
    existing: &BTreeMap<u32, Slice>,
    out: &mut Vec<SliceChange>,
) {
    let names: BTreeSet<Str> = wanted.keys().cloned().collect();
    let before: Packed<Str> =
        existing.iter().map(|(number, slice)| (*number, slice.workloads.keys().cloned().collect())).collect();
    let packed = pack(&names, &before, SLICE_CAPACITY);
    let numbers: BTreeSet<u32> = packed.keys().chain(existing.keys()).copied().collect();
    for number in numbers {
        let members = packed.get(&number).into_iter().flatten();
        let workloads: BTreeMap<Str, Workload> =
            members.filter_map(|name| Some((name.clone(), wanted.get(name)?.clone()))).collect();
        if existing.get(&number).is_none_or(|slice| slice.workloads != workloads) {
            out.push(SliceChange { namespace: namespace.clone(), number, workloads });
        }
    }
}

fn entry_of<'a>(slices: &'a Slices, pod: &ObjectKey) -> Option<&'a Workload> {
    slices.get(&pod.namespace)?.values().find_map(|s| s.workloads.get(&pod.name))
}

/// The entry of a pod; none for one that is not on the network: not yet, or no longer (its address may be another pod's by
/// now).
fn workload(world: &Snapshot, pod: &Pod, captured: &Captured, known: Option<&Workload>) -> Option<Workload> {
    let node = pod.node.as_ref()?;
    if pod.ips.is_empty() || pod.finished {
        return None;
    }
    let (key, uid) = (&pod.meta.key, &pod.meta.uid);
    let namespace = world.namespaces.get(&key.namespace).map(|n| &**n);
    // A pod of the same name may be another one: a StatefulSet's.
    let (captured, application_ports) = match captured.get(node).map(|pods| pods.get(key)) {
        Some(Some(capture)) if capture.uid == *uid => (true, application_ports(&capture.tunnel)),
        Some(_) => (false, None),
        None => match known.filter(|k| k.captured && k.uid == *uid) {
            Some(known) => (true, known.application_ports.clone()),
            None => (false, None),
        },
    };
    let label = |name: &str| {
        let own = pod.meta.labels.get(name);
        own.or_else(|| namespace.and_then(|n| n.meta.labels.get(name))).cloned()
    };
    Some(Workload {
        name: key.name.clone(),
        uid: uid.clone(),
        ips: pod.ips.clone(),
        service_account: pod.service_account.clone(),
        node: node.clone(),
        enrolled: CoreWorkload::wants_mesh(pod, namespace),
        captured,
        application_ports,
        proved_ips: Vec::new(),
        mtls: label(MTLS_LABEL).filter(|m| matches!(&**m, "strict" | "permissive")),
        app: app_name(&pod.meta.annotations, &pod.meta.labels, &key.name),
        host_network: pod.host_network,
    })
}

fn application_ports(tunnel: &TunnelPort) -> Option<ApplicationPorts> {
    match tunnel {
        TunnelPort::Hbone => None,
        TunnelPort::Application { except } => Some(ApplicationPorts { except: except.to_vec() }),
    }
}

/// A slice as the API server sends it: namespace, number, content. `None` for what is not one of ours.
#[must_use]
pub fn read_slice(value: &Value) -> Option<(Str, u32, Slice)> {
    let metadata = &value["metadata"];
    if metadata["labels"][MANAGED_BY] != MANAGER {
        return None;
    }
    let number = metadata["name"].as_str()?.strip_prefix("weft-")?.parse().ok()?;
    let part = |name: &str| -> Str { metadata[name].as_str().unwrap_or("").into() };
    let (uid, version) = (part("uid"), part("resourceVersion"));
    let entries = value["workloads"].as_array().map_or(&[][..], Vec::as_slice);
    let read = entries.iter().filter_map(|e| Workload::deserialize(e).ok());
    let workloads = read.map(|w| (w.name.clone(), w)).collect();
    Some((metadata["namespace"].as_str()?.into(), number, Slice { uid, version, workloads }))
}

/// The object for a server-side apply, which is refused when it is no longer the `version` that is known.
#[must_use]
pub fn slice_body(change: &SliceChange, version: &str) -> Value {
    let mut body = json!({
        "apiVersion": "weft.dev/v1alpha1",
        "kind": "WorkloadSlice",
        "metadata": {
            "name": change.name(),
            "namespace": &*change.namespace,
            "labels": {MANAGED_BY: MANAGER},
        },
        "workloads": change.workloads.values().collect::<Vec<_>>(),
    });
    if !version.is_empty() {
        body["metadata"]["resourceVersion"] = version.into();
    }
    body
}
