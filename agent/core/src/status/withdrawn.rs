//! Our word taken back: what objects say when nobody serves them any more.

use super::{AllStatuses, Condition, ConditionStatus, ObjectStatus};
use crate::{model::ObjectRef, resolve::reason};
use std::sync::Arc;

/// The statuses of a controller that leaves for good. Kinds that one controller alone writes say what the API's defaults say
/// of an object that no controller has looked at (`GatewayStatus`, `+kubebuilder:default`), with no address, no listener and
/// no feature. Of routes and policies nothing is left: who is absent here has no entry of ours.
#[must_use]
pub fn withdrawn(all: &AllStatuses) -> AllStatuses {
    all.iter().filter_map(|(object, status)| Some((object.clone(), Arc::new(waiting(status)?)))).collect()
}

/// Every object that has a status of ours, for who takes it back or gives it again.
#[must_use]
pub fn named(all: &AllStatuses) -> Vec<ObjectRef> {
    all.iter().map(|(object, _)| object.clone()).collect()
}

fn waiting(status: &ObjectStatus) -> Option<ObjectStatus> {
    match status {
        ObjectStatus::GatewayClass { conditions, .. } => Some(ObjectStatus::GatewayClass {
            conditions: unknown(&["Accepted"], conditions),
            supported_features: Vec::new(),
        }),
        ObjectStatus::Gateway { conditions, .. } => Some(ObjectStatus::Gateway {
            conditions: unknown(&["Accepted", "Programmed"], conditions),
            addresses: Vec::new(),
            listeners: Vec::new(),
            attached_listener_sets: 0,
        }),
        ObjectStatus::ListenerSet { conditions, .. } => Some(ObjectStatus::ListenerSet {
            conditions: unknown(&["Accepted", "Programmed"], conditions),
            listeners: Vec::new(),
        }),
        ObjectStatus::Route { .. } | ObjectStatus::BackendTlsPolicy { .. } => None,
    }
}

fn unknown(kinds: &[&'static str], held: &[Condition]) -> Vec<Condition> {
    let observed_generation = held.iter().map(|c| c.observed_generation).max().unwrap_or_default();
    let one = |kind: &&'static str| Condition {
        kind,
        status: ConditionStatus::Unknown,
        reason: reason::PENDING,
        message: "Waiting for controller".to_owned(),
        observed_generation,
    };
    kinds.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Kind, ObjectKey};

    #[test]
    fn nothing_is_programmed_when_nobody_serves() {
        let yes =
            |kind| Condition { observed_generation: 3, ..Condition::yes(kind, reason::ACCEPTED, "Served.") };
        let check = |kind: Kind, status: ObjectStatus, expected: Option<&[&str]>| {
            let object = ObjectRef { kind, key: ObjectKey::new("a", "b") };
            let all: AllStatuses = [(object.clone(), Arc::new(status))].into_iter().collect();
            assert_eq!(named(&all), [object.clone()]);
            let left = withdrawn(&all);
            let Some(left) = left.get(&object) else { return assert_eq!(expected, None, "{kind:?}") };
            let (conditions, parts) = match &**left {
                ObjectStatus::GatewayClass { conditions, supported_features } => {
                    (conditions, supported_features.len())
                }
                ObjectStatus::Gateway { conditions, addresses, listeners, .. } => {
                    (conditions, addresses.len() + listeners.len())
                }
                ObjectStatus::ListenerSet { conditions, listeners } => (conditions, listeners.len()),
                other => panic!("{other:?}"),
            };
            assert_eq!(parts, 0, "{kind:?}");
            let told: Vec<_> = conditions.iter().map(|c| c.kind).collect();
            assert_eq!(Some(&told[..]), expected, "{kind:?}");
            for c in conditions {
                assert_eq!(
                    (c.status, c.reason, c.observed_generation),
                    (ConditionStatus::Unknown, "Pending", 3)
                );
            }
        };
        let conditions = || vec![yes("Accepted"), yes("Programmed"), yes("ResolvedRefs")];
        let class =
            ObjectStatus::GatewayClass { conditions: conditions(), supported_features: vec!["Gateway"] };
        check(Kind::GatewayClass, class, Some(&["Accepted"]));
        let gateway = ObjectStatus::Gateway {
            conditions: conditions(),
            addresses: vec![("IPAddress", "10.0.0.1".into())],
            listeners: Vec::new(),
            attached_listener_sets: 1,
        };
        check(Kind::Gateway, gateway, Some(&["Accepted", "Programmed"]));
        let set = ObjectStatus::ListenerSet { conditions: conditions(), listeners: Vec::new() };
        check(Kind::ListenerSet, set, Some(&["Accepted", "Programmed"]));
        check(Kind::HttpRoute, ObjectStatus::Route { parents: Vec::new() }, None);
        check(Kind::BackendTlsPolicy, ObjectStatus::BackendTlsPolicy { ancestors: Vec::new() }, None);
    }
}
