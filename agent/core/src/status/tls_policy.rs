//! BackendTLSPolicy.

use super::{Condition, ObjectStatus, PolicyAncestorStatus, observed};
use crate::{
    model::{Kind, ObjectKey, TlsSettings},
    resolve::{Problem, ResolvedPolicy, reason},
};

/// Where a policy is in effect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ancestor {
    /// Gateway, or Service in the mesh.
    pub(crate) kind: Kind,
    pub(crate) key: ObjectKey,
}

/// `status.ancestors` holds no more (GEP-713).
const MAX_ANCESTORS: usize = 16;

/// The status of a policy: `None` while nothing of ours uses its targets. `loses_to` names the older policy when
/// every target of this one is taken.
pub(crate) fn policy_status(
    policy: &ResolvedPolicy,
    ancestors: impl Iterator<Item = Ancestor>,
    loses_to: Option<&ObjectKey>,
) -> Option<ObjectStatus> {
    let accepted = match (loses_to, &policy.accepted) {
        (Some(winner), _) => Condition::no(
            "Accepted",
            &Problem::new(
                reason::CONFLICTED,
                format!("The older BackendTLSPolicy {winner} has the same target."),
            ),
        ),
        (None, Err(problem)) => Condition::no("Accepted", problem),
        (None, Ok(())) => {
            let foreign = TlsSettings::foreign(&policy.policy.options).map(|said| format!(" {said}"));
            let message = format!("The policy is in effect.{}", foreign.unwrap_or_default());
            Condition::yes("Accepted", reason::ACCEPTED, message)
        }
    };
    let conditions = observed(policy.policy.meta.generation, vec![accepted, Condition::refs(&policy.refs)]);
    let ancestors: Vec<_> = ancestors
        .take(MAX_ANCESTORS)
        .map(|a| PolicyAncestorStatus {
            kind: a.kind.into(),
            ancestor: a.key,
            conditions: conditions.clone(),
        })
        .collect();
    (!ancestors.is_empty()).then_some(ObjectStatus::BackendTlsPolicy { ancestors })
}
