//! Says of an address that two pods claim, once it has lasted.

use super::proofs::Conflict;
use crate::events::{Recorder, Transition};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;
use weft_core::model::{Kind, ObjectRef};

/// An address that passes from a pod that is gone to the next one is claimed by both for a moment.
const PATIENCE: Duration = Duration::from_secs(10);
/// Conflicts that are remembered; more are no more telling, and a stolen node may claim every address.
const REMEMBERED_MAX: usize = 256;

/// Conflicts, since when they last, and whether that was said.
#[derive(Debug, Default)]
pub(super) struct Disputes(BTreeMap<Conflict, (Instant, bool)>);

impl Disputes {
    /// Takes what is so now; says what has lasted, and gives the time when more will have.
    pub(super) fn hear(
        &mut self,
        now: Instant,
        conflicts: BTreeSet<Conflict>,
        recorder: Option<&Recorder>,
    ) -> Option<Instant> {
        self.0.retain(|conflict, _| conflicts.contains(conflict));
        for conflict in conflicts {
            if self.0.len() < REMEMBERED_MAX || self.0.contains_key(&conflict) {
                self.0.entry(conflict).or_insert((now, false));
            }
        }
        let due = |since: &Instant| *since + PATIENCE;
        for (conflict, (_, said)) in self.0.iter_mut().filter(|(_, (since, said))| !said && due(since) <= now)
        {
            *said = true;
            say(conflict, recorder);
        }
        self.0.values().filter(|(_, said)| !said).map(|(since, _)| due(since)).min()
    }
}

fn say(conflict: &Conflict, recorder: Option<&Recorder>) {
    let Conflict { ip, holder, claimant, node, uid } = conflict;
    let note = format!(
        "status.podIPs has {ip}, which pod {holder} has proved to have: nothing is sent to this pod there. If it stays so, the \
         kubelet of node {node} does not tell the truth"
    );
    tracing::warn!(pod = %claimant, %node, "{note}");
    if let Some(recorder) = recorder {
        let object = ObjectRef { kind: Kind::Pod, key: claimant.clone() };
        let reason = "AddressConflict".to_owned();
        recorder.record(&object, uid, "v1", Transition { warning: true, reason, note });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::model::ObjectKey;

    #[test]
    fn a_conflict_is_said_once_it_has_lasted() {
        let conflict = Conflict {
            ip: [10, 1, 0, 1].into(),
            holder: ObjectKey::new("shop", "a"),
            claimant: ObjectKey::new("other", "forged"),
            node: "n9".into(),
            uid: "u".into(),
        };
        let (mut disputes, start) = (Disputes::default(), Instant::now());
        let there = || BTreeSet::from([conflict.clone()]);
        assert_eq!(disputes.hear(start, there(), None), Some(start + PATIENCE));
        assert_eq!(disputes.hear(start + PATIENCE / 2, there(), None), Some(start + PATIENCE));
        assert_eq!(disputes.hear(start + PATIENCE, there(), None), None, "said");
        assert!(disputes.0.values().all(|(_, said)| *said));
        assert_eq!(disputes.hear(start + PATIENCE, BTreeSet::new(), None), None);
        assert_eq!(
            disputes.hear(start + PATIENCE * 2, there(), None),
            Some(start + PATIENCE * 3),
            "it begins anew"
        );
    }
}
