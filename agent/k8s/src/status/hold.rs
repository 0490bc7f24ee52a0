//! How long a status waits before it is written, so that one write says what two would.

use std::time::Duration;
use weft_core::status::{Condition, ConditionStatus, ObjectStatus};

/// How long statuses are held back.
#[derive(Clone, Copy, Debug)]
pub struct Holds {
    /// A Gateway that is not served *yet*: `Programmed` is False with `Pending` or `AddressNotAssigned`.
    pub pending: Duration,
    /// The same for a Gateway that the cluster shows as `Programmed` in this generation, counted from the beginning of
    /// our term: a new leader has to hear from the agents first. As long as Gateways stay where they are for that reason
    /// (`ProvisionerOptions::settle`), and what the first agent needs to come.
    pub settling: Duration,
    /// Another status that says no: the object that is missing may be in the next document of the same file.
    pub negative: Duration,
    /// Between two writes of one object: `attachedRoutes` while a thousand routes are created.
    pub between: Duration,
}

impl Default for Holds {
    fn default() -> Self {
        Self {
            pending: Duration::from_secs(2),
            settling: Duration::from_secs(40),
            negative: Duration::from_millis(500),
            between: Duration::from_secs(1),
        }
    }
}

impl Holds {
    /// For a status that is to be written.
    pub(super) fn of(&self, status: Option<&ObjectStatus>) -> Duration {
        match status {
            Some(status) if pending(status).is_some() => self.pending,
            Some(status) if says_no(status) => self.negative,
            _ => Duration::ZERO,
        }
    }
}

/// Reasons of `Programmed: False` that pass by themselves.
const PASSING: [&str; 2] = ["Pending", "AddressNotAssigned"];

/// Whether `reason` of `Programmed: False` passes by itself.
pub(crate) fn passes(reason: &str) -> bool {
    PASSING.contains(&reason)
}

/// The condition that says that a Gateway or ListenerSet waits to be served.
pub(super) fn pending(status: &ObjectStatus) -> Option<&Condition> {
    let (ObjectStatus::Gateway { conditions, .. } | ObjectStatus::ListenerSet { conditions, .. }) = status
    else {
        return None;
    };
    conditions
        .iter()
        .find(|c| c.kind == "Programmed" && c.status == ConditionStatus::False && passes(c.reason))
}

fn says_no(status: &ObjectStatus) -> bool {
    let no = |conditions: &[Condition]| {
        let good = ["Accepted", "ResolvedRefs", "Programmed"];
        conditions.iter().any(|c| good.contains(&c.kind) && c.status == ConditionStatus::False)
    };
    match status {
        ObjectStatus::GatewayClass { conditions, .. } => no(conditions),
        ObjectStatus::Gateway { conditions, listeners, .. }
        | ObjectStatus::ListenerSet { conditions, listeners } => {
            no(conditions) || listeners.iter().any(|l| no(&l.conditions))
        }
        ObjectStatus::Route { parents } => parents.iter().any(|p| no(&p.conditions)),
        ObjectStatus::BackendTlsPolicy { ancestors } => ancestors.iter().any(|a| no(&a.conditions)),
    }
}
