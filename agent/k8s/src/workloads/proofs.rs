//! Who has proved an address, and who only claims it. Pure.
//!
//! `status.podIPs` is what a kubelet writes, so a stolen node may write another pod's address. What a node's agent has read
//! inside a captured network namespace is worth more, but a stolen node's agent may lie too: who has proved an address
//! first keeps it until it is released, which the published slices remember across leaders.

use super::plan::{Captured, Slices, Workload};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};
use weft_core::model::{ObjectKey, Pod, Snapshot, Str};

/// Addresses by who holds them.
pub(super) type Proofs = BTreeMap<IpAddr, ObjectKey>;

/// A pod claims an address that another one has proved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The address.
    pub ip: IpAddr,
    /// Who has proved it.
    pub holder: ObjectKey,
    /// Who claims it, too.
    pub claimant: ObjectKey,
    /// The claimant's node, whose kubelet says so.
    pub node: Str,
    /// The claimant's UID, for an Event on it.
    pub uid: Str,
}

/// Whether a pod can have an address of its own now.
fn is_addressed(pod: &Pod) -> bool {
    pod.node.is_some() && !pod.ips.is_empty() && !pod.finished && !pod.host_network
}

/// What each node's agent says that it has read, granted: an address that was granted before stays its pod's until that is
/// gone, is released by its agent, or no longer has the address; else of several the older pod's.
pub(super) fn proofs(world: &Snapshot, captured: &Captured, existing: &Slices) -> Proofs {
    let mut granted = Proofs::new();
    let mut asked: BTreeMap<IpAddr, BTreeSet<(i64, &ObjectKey)>> = BTreeMap::new();
    let before = published(existing);
    for (key, pod) in world.pods.iter().filter(|(_, pod)| is_addressed(pod)) {
        let known = before.get(&(&key.namespace, &key.name)).filter(|known| known.uid == pod.meta.uid);
        for ip in read(key, pod, captured, known.copied()) {
            if known.is_some_and(|known| known.proved_ips.contains(&ip)) {
                // Two only if somebody else has written the slices.
                granted.entry(ip).or_insert_with(|| key.clone());
            } else {
                asked.entry(ip).or_default().insert((pod.meta.created, key));
            }
        }
    }
    for (ip, who) in asked {
        if let Some((_, first)) = who.first() {
            granted.entry(ip).or_insert_with(|| (*first).clone());
        }
    }
    granted
}

/// Of a pod's addresses, those that its node's agent has read. What an agent does not say (it has just started, or is of
/// the version before) stays as it was, as long as it says that the pod's capture stands.
fn read(key: &ObjectKey, pod: &Arc<Pod>, captured: &Captured, known: Option<&Workload>) -> Vec<IpAddr> {
    let Some(node) = &pod.node else { return Vec::new() };
    let told = |ip: &&IpAddr| pod.ips.contains(ip);
    let stays =
        || known.map(|known| known.proved_ips.iter().filter(told).copied().collect()).unwrap_or_default();
    match captured.get(node).map(|pods| pods.get(key)) {
        Some(Some(capture)) if capture.uid == pod.meta.uid && capture.addresses.is_empty() => stays(),
        Some(Some(capture)) if capture.uid == pod.meta.uid => {
            capture.addresses.iter().filter(told).copied().collect()
        }
        Some(_) => Vec::new(),
        None if known.is_some_and(|known| known.captured) => stays(),
        None => Vec::new(),
    }
}

fn published(slices: &Slices) -> BTreeMap<(&Str, &Str), &Workload> {
    let of = |(namespace, slices)| {
        let slices: &BTreeMap<u32, super::plan::Slice> = slices;
        slices.values().flat_map(move |s| s.workloads.iter().map(move |(name, w)| ((namespace, name), w)))
    };
    slices.iter().flat_map(of).collect()
}

/// Pods that claim what another one has proved, as the slices say who has.
#[must_use]
pub fn conflicts(world: &Snapshot, slices: &Slices) -> BTreeSet<Conflict> {
    let mut holders: BTreeMap<IpAddr, ObjectKey> = BTreeMap::new();
    for ((namespace, name), workload) in published(slices) {
        let key = ObjectKey::new(namespace.clone(), name.clone());
        holders.extend(workload.proved_ips.iter().map(|ip| (*ip, key.clone())));
    }
    let mut out = BTreeSet::new();
    for (key, pod) in world.pods.iter().filter(|(_, pod)| is_addressed(pod)) {
        for ip in &pod.ips {
            let Some(holder) = holders.get(ip).filter(|holder| *holder != key) else { continue };
            out.insert(Conflict {
                ip: *ip,
                holder: holder.clone(),
                claimant: key.clone(),
                node: pod.node.clone().unwrap_or_else(|| "".into()),
                uid: pod.meta.uid.clone(),
            });
        }
    }
    out
}
