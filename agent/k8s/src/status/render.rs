//! Statuses as the JSON of Gateway API v1.6.1's CRDs.

use serde_json::{Map, Value, json};
use weft_core::{
    model::ParentRef,
    status::{
        Condition, ConditionStatus, ListenerStatus, ObjectStatus, PolicyAncestorStatus, RouteParentStatus,
    },
};

/// The CRDs take no more.
const MAX_ADDRESSES: usize = 16;
const MAX_FEATURES: usize = 64;
const MAX_CONDITIONS: usize = 8;
const MAX_LISTENERS: usize = 64;

/// Conditions with their transition times: kept from `live` (a list of conditions) where `status` is the same.
pub(super) fn conditions(wanted: &[Condition], live: &Value, now: &str) -> Value {
    let one = |wanted: &Condition| {
        let before = find(live, "type", wanted.kind);
        let kept = before.filter(|b| b["status"] == text(wanted.status));
        let since = kept.and_then(|b| b["lastTransitionTime"].as_str()).unwrap_or(now);
        json!({
            "type": wanted.kind,
            "status": text(wanted.status),
            "reason": wanted.reason,
            "message": wanted.message,
            "observedGeneration": wanted.observed_generation,
            "lastTransitionTime": since,
        })
    };
    wanted.iter().take(MAX_CONDITIONS).map(one).collect()
}

/// The `status` of a kind that one controller alone writes: GatewayClass, Gateway, ListenerSet. `lacks` are fields
/// that the cluster's CRD does not have.
pub(super) fn whole(status: &ObjectStatus, live: &Value, now: &str, lacks: &[&str]) -> Value {
    let mut out = Map::new();
    match status {
        ObjectStatus::GatewayClass { conditions: wanted, supported_features } => {
            out.insert("conditions".to_owned(), conditions(wanted, &live["conditions"], now));
            let features = supported_features.iter().take(MAX_FEATURES).map(|name| json!({ "name": name }));
            // Objects since v1.2; before, the field was a list of names and experimental.
            out.insert("supportedFeatures".to_owned(), features.collect());
        }
        ObjectStatus::Gateway { conditions: wanted, addresses, listeners: all, attached_listener_sets } => {
            out.insert("conditions".to_owned(), conditions(wanted, &live["conditions"], now));
            let addresses = addresses.iter().take(MAX_ADDRESSES);
            let addresses: Vec<_> =
                addresses.map(|(kind, value)| json!({"type": kind, "value": **value})).collect();
            if !addresses.is_empty() {
                out.insert("addresses".to_owned(), addresses.into());
            }
            out.insert("listeners".to_owned(), listeners(all, &live["listeners"], now));
            out.insert("attachedListenerSets".to_owned(), json!(attached_listener_sets));
        }
        ObjectStatus::ListenerSet { conditions: wanted, listeners: all } => {
            out.insert("conditions".to_owned(), conditions(wanted, &live["conditions"], now));
            out.insert("listeners".to_owned(), listeners(all, &live["listeners"], now));
        }
        ObjectStatus::Route { .. } | ObjectStatus::BackendTlsPolicy { .. } => {}
    }
    out.retain(|field, _| !lacks.contains(&field.as_str()));
    Value::Object(out)
}

fn listeners(wanted: &[ListenerStatus], live: &Value, now: &str) -> Value {
    let one = |wanted: &ListenerStatus| {
        let before = find(live, "name", &wanted.name).map_or(&Value::Null, |l| &l["conditions"]);
        let kinds = wanted.supported_kinds.iter().map(|k| json!({"group": *k.group, "kind": *k.kind}));
        json!({
            "name": *wanted.name,
            // Required before v1.3, so it is there even when empty.
            "supportedKinds": kinds.collect::<Value>(),
            "attachedRoutes": wanted.attached_routes,
            "conditions": conditions(&wanted.conditions, before, now),
        })
    };
    wanted.iter().take(MAX_LISTENERS).map(one).collect()
}

/// One entry of `status.parents` or `status.ancestors`, without its conditions.
pub(super) struct Entry<'a> {
    /// `parentRef` or `ancestorRef`.
    pub(super) reference: Value,
    pub(super) conditions: &'a [Condition],
}

/// Our entries of a route or policy, in their order.
pub(super) fn entries(status: Option<&ObjectStatus>) -> Vec<Entry<'_>> {
    let entries = match status {
        Some(ObjectStatus::Route { parents }) => parents.iter().map(parent).collect(),
        Some(ObjectStatus::BackendTlsPolicy { ancestors }) => ancestors.iter().map(ancestor).collect(),
        _ => Vec::new(),
    };
    // An entry must have a condition (minItems: 1).
    entries.into_iter().filter(|e: &Entry<'_>| !e.conditions.is_empty()).collect()
}

fn parent(status: &RouteParentStatus) -> Entry<'_> {
    let ParentRef { kind, namespace, name, section_name, port } = &status.parent;
    let mut reference = json!({"group": *kind.group, "kind": *kind.kind, "name": **name});
    if let Some(namespace) = namespace {
        reference["namespace"] = json!(**namespace);
    }
    if let Some(section) = section_name {
        reference["sectionName"] = json!(**section);
    }
    if let Some(port) = port {
        reference["port"] = json!(port);
    }
    Entry { reference, conditions: &status.conditions }
}

fn ancestor(status: &PolicyAncestorStatus) -> Entry<'_> {
    let (kind, key) = (&status.kind, &status.ancestor);
    let reference =
        json!({"group": *kind.group, "kind": *kind.kind, "namespace": *key.namespace, "name": *key.name});
    Entry { reference, conditions: &status.conditions }
}

/// The first item of a list whose `key` is `name`.
pub(super) fn find<'a>(list: &'a Value, key: &str, name: &str) -> Option<&'a Value> {
    list.as_array()?.iter().find(|item| item[key] == name)
}

fn text(status: ConditionStatus) -> &'static str {
    match status {
        ConditionStatus::True => "True",
        ConditionStatus::False => "False",
        ConditionStatus::Unknown => "Unknown",
    }
}
