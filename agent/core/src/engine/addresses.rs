//! Whose an address is, of the pods that claim it.
//!
//! Anybody who may write a Pod's status may claim any address: a kubelet, and so a stolen node. What counts is proof: the
//! address was read by a node's agent inside the captured network namespace ([`Pod::proved`]), and a cluster's controller
//! has granted it to no other pod before. What is merely told never turns an enrolled pod's traffic to clear text.

use super::claims::Claims;
use crate::model::{ObjectKey, Pod, Str, Workload};
use std::{cmp::Reverse, net::IpAddr, sync::Arc};

/// Why a pod is believed to have an address; the stronger first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// Proved.
    Proved,
    /// Told, of a pod that is enrolled: who else has the address cannot show the certificate that is asked for.
    Enrolled,
    /// Told, of a pod whose labels put it into the mesh and that is not captured yet.
    Joining,
    /// Told.
    Told,
}

/// The order of claims: by standing; of proofs the own node's agent's first, which it has made itself; then the newer pod,
/// since the older one of an address is about to be reported gone.
pub(super) type PodRank = (Standing, bool, Reverse<i64>, ObjectKey);

/// The claims of all pods.
pub(super) type Addresses = Claims<IpAddr, PodRank, Arc<Workload>>;

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder<'a> {
    /// This pod's.
    Pod(&'a Arc<Workload>),
    /// Several pods claim it without proof, one of which is about to be enrolled: nobody is spoken to there until it is settled.
    Disputed,
    /// Nobody claims it.
    Free,
}

/// The rank of a pod's claim on one of its addresses. `here`: the node whose clients are served.
pub(super) fn rank(pod: &Pod, workload: &Workload, ip: IpAddr, here: Option<&Str>) -> PodRank {
    let standing = if pod.proved.contains(&ip) {
        Standing::Proved
    } else if workload.enrolled {
        Standing::Enrolled
    } else if workload.labelled {
        Standing::Joining
    } else {
        Standing::Told
    };
    let elsewhere = here.is_none() || pod.node.as_ref() != here;
    (standing, elsewhere, Reverse(pod.meta.created), pod.meta.key.clone())
}

/// Whose an address is.
pub(super) fn holder(addresses: &Addresses, ip: IpAddr) -> Holder<'_> {
    match addresses.of(&ip) {
        [] => Holder::Free,
        [((Standing::Joining, ..), _), _, ..] => Holder::Disputed,
        [(_, first), ..] => Holder::Pod(first),
    }
}

#[cfg(test)]
#[path = "addresses/tests.rs"]
mod tests;
