//! While the node has no agent: lets its kubelet past the capture of permissive pods.
//!
//! An agent that is away for minutes must not get its node's pods restarted: their probes would wait in accept queues until
//! they time out. Which ports and which addresses stands in each pod's own table, see `ruleset::while_away`; of a strict pod
//! it names none. The next agent ends it, pod by pod, by putting a new table in place as soon as it serves the pod.

use super::table::{HeldPod, Table};
use crate::apply::{ApplyError, let_past};

const fn is_due(pod: &HeldPod) -> bool {
    pod.listeners.is_some() && !pod.past_capture
}

/// Whether some pod's rules keep its kubelet waiting.
pub(super) fn any_due(table: &Table) -> bool {
    table.pods().any(is_due)
}

/// Opens one pod. One, so that an agent that comes is heard in between: once it was answered, nobody else is at its pods'
/// rules.
pub(super) fn open_one(table: &mut Table) {
    let Some(pod) = table.pods_mut().find(|pod| is_due(pod)) else { return };
    // Tried once, whatever comes of it: a pod whose rules cannot be changed must not keep the others waiting.
    pod.past_capture = true;
    let id = &pod.record.container_id;
    match let_past(&pod.netns) {
        Ok(()) => tracing::debug!(sandbox = %id, "no agent: the node's kubelet gets past capture"),
        // There is no table, or an agent of an earlier version made it.
        Err(ApplyError::Refused(reason)) => tracing::debug!(sandbox = %id, %reason, "no way past capture"),
        Err(error) => tracing::warn!(sandbox = %id, %error, "the kubelet's probes wait for an agent"),
    }
}
