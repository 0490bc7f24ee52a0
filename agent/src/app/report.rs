//! Conditions for people and machines: what `kubectl get` would show, from the files.

use serde_json::{Value, json};
use std::fmt::Write as _;
use weft_core::{
    model::{ObjectRef, ParentRef},
    status::{AllStatuses, Condition, ConditionStatus, ListenerStatus, ObjectStatus},
};

/// A table of every object with its conditions; reasons and messages of those that are not as one wishes.
pub(super) fn table(statuses: &AllStatuses) -> String {
    let mut text = String::new();
    for (object, status) in statuses {
        let _ = writeln!(text, "{object}");
        match &**status {
            ObjectStatus::GatewayClass { conditions, .. } => lines(&mut text, "", conditions),
            ObjectStatus::Gateway { conditions, addresses, listeners, .. } => {
                for (kind, value) in addresses {
                    let _ = writeln!(text, "  address {value} ({kind})");
                }
                lines(&mut text, "", conditions);
                listener_lines(&mut text, listeners);
            }
            ObjectStatus::ListenerSet { conditions, listeners } => {
                lines(&mut text, "", conditions);
                listener_lines(&mut text, listeners);
            }
            ObjectStatus::Route { parents } => {
                for parent in parents {
                    lines(&mut text, &format!("{}: ", parent_name(&parent.parent)), &parent.conditions);
                }
            }
            ObjectStatus::BackendTlsPolicy { ancestors } => {
                for ancestor in ancestors {
                    let name = format!("{} {}: ", ancestor.kind.kind, ancestor.ancestor);
                    lines(&mut text, &name, &ancestor.conditions);
                }
            }
        }
    }
    text
}

/// Whether a condition says that the object, or a part of it, does not serve.
pub(super) fn is_failing(status: &ObjectStatus) -> bool {
    let failing = |conditions: &[Condition]| {
        let wanted = ["Accepted", "ResolvedRefs", "Programmed"];
        conditions.iter().any(|c| wanted.contains(&c.kind) && c.status != ConditionStatus::True)
    };
    match status {
        ObjectStatus::GatewayClass { conditions, .. } => failing(conditions),
        ObjectStatus::Gateway { conditions, listeners, .. }
        | ObjectStatus::ListenerSet { conditions, listeners } => {
            failing(conditions) || listeners.iter().any(|l| failing(&l.conditions))
        }
        ObjectStatus::Route { parents } => parents.iter().any(|p| failing(&p.conditions)),
        ObjectStatus::BackendTlsPolicy { ancestors } => ancestors.iter().any(|a| failing(&a.conditions)),
    }
}

/// One line for the log: conditions that are as one wishes by name, the others with reason and message.
pub(super) fn summary(status: &ObjectStatus) -> String {
    let mut groups: Vec<(String, &[Condition])> = Vec::new();
    match status {
        ObjectStatus::GatewayClass { conditions, .. } => groups.push((String::new(), conditions)),
        ObjectStatus::Gateway { conditions, listeners, .. }
        | ObjectStatus::ListenerSet { conditions, listeners } => {
            groups.push((String::new(), conditions));
            groups.extend(
                listeners.iter().map(|l| (format!("listener {}: ", l.name), l.conditions.as_slice())),
            );
        }
        ObjectStatus::Route { parents } => {
            groups.extend(
                parents.iter().map(|p| (format!("{}: ", parent_name(&p.parent)), p.conditions.as_slice())),
            );
        }
        ObjectStatus::BackendTlsPolicy { ancestors } => {
            groups.extend(ancestors.iter().map(|a| (format!("{}: ", a.ancestor), a.conditions.as_slice())));
        }
    }
    let one = |c: &Condition| match c.status {
        ConditionStatus::True if c.message.is_empty() => c.kind.to_owned(),
        status => {
            format!("{}={} ({}) {}", c.kind, status_text(status), c.reason, c.message).trim_end().to_owned()
        }
    };
    let group = |(prefix, conditions): &(String, &[Condition])| {
        format!("{prefix}{}", conditions.iter().map(one).collect::<Vec<_>>().join(", "))
    };
    groups.iter().map(group).collect::<Vec<_>>().join("; ")
}

/// The same as JSON, shaped like `status` of the API.
pub(super) fn json(object: &ObjectRef, status: &ObjectStatus) -> Value {
    let status = match status {
        ObjectStatus::GatewayClass { conditions, supported_features } => {
            json!({"conditions": conditions_json(conditions), "supportedFeatures": supported_features})
        }
        ObjectStatus::Gateway { conditions, addresses, listeners, attached_listener_sets } => json!({
            "conditions": conditions_json(conditions),
            "addresses": addresses.iter().map(|(t, v)| json!({"type": t, "value": v})).collect::<Vec<_>>(),
            "listeners": listeners.iter().map(listener_json).collect::<Vec<_>>(),
            "attachedListenerSets": attached_listener_sets,
        }),
        ObjectStatus::ListenerSet { conditions, listeners } => json!({
            "conditions": conditions_json(conditions),
            "listeners": listeners.iter().map(listener_json).collect::<Vec<_>>(),
        }),
        ObjectStatus::Route { parents } => json!({"parents": parents.iter().map(|p| json!({
            "controllerName": weft_core::model::CONTROLLER_NAME,
            "parentRef": parent_json(&p.parent),
            "conditions": conditions_json(&p.conditions),
        })).collect::<Vec<_>>()}),
        ObjectStatus::BackendTlsPolicy { ancestors } => json!({"ancestors": ancestors.iter().map(|a| json!({
            "controllerName": weft_core::model::CONTROLLER_NAME,
            "ancestorRef": {"group": a.kind.group, "kind": a.kind.kind, "namespace": a.ancestor.namespace, "name": a.ancestor.name},
            "conditions": conditions_json(&a.conditions),
        })).collect::<Vec<_>>()}),
    };
    json!({
        "kind": object.kind.as_str(),
        "namespace": object.key.namespace,
        "name": object.key.name,
        "status": status,
    })
}

fn listener_lines(text: &mut String, listeners: &[ListenerStatus]) {
    for listener in listeners {
        let _ = writeln!(text, "  listener {}: attached routes: {}", listener.name, listener.attached_routes);
        lines(text, &format!("listener {}: ", listener.name), &listener.conditions);
    }
}

fn lines(text: &mut String, prefix: &str, conditions: &[Condition]) {
    for c in conditions {
        let status = status_text(c.status);
        let _ = write!(text, "  {prefix}{}={status} ({})", c.kind, c.reason);
        let _ = if c.message.is_empty() { writeln!(text) } else { writeln!(text, " {}", c.message) };
    }
}

const fn status_text(status: ConditionStatus) -> &'static str {
    match status {
        ConditionStatus::True => "True",
        ConditionStatus::False => "False",
        ConditionStatus::Unknown => "Unknown",
    }
}

fn parent_name(parent: &ParentRef) -> String {
    let mut text = format!("{} ", parent.kind.kind);
    if let Some(namespace) = &parent.namespace {
        let _ = write!(text, "{namespace}/");
    }
    text.push_str(&parent.name);
    if let Some(section) = &parent.section_name {
        let _ = write!(text, "#{section}");
    }
    if let Some(port) = parent.port {
        let _ = write!(text, ":{port}");
    }
    text
}

fn parent_json(parent: &ParentRef) -> Value {
    let mut value = json!({"group": parent.kind.group, "kind": parent.kind.kind, "name": parent.name});
    for (field, text) in [("namespace", &parent.namespace), ("sectionName", &parent.section_name)] {
        if let Some(text) = text {
            value[field] = json!(text);
        }
    }
    if let Some(port) = parent.port {
        value["port"] = json!(port);
    }
    value
}

fn listener_json(listener: &ListenerStatus) -> Value {
    json!({
        "name": listener.name,
        "attachedRoutes": listener.attached_routes,
        "supportedKinds":
            listener.supported_kinds.iter().map(|k| json!({"group": k.group, "kind": k.kind})).collect::<Vec<_>>(),
        "conditions": conditions_json(&listener.conditions),
    })
}

fn conditions_json(conditions: &[Condition]) -> Vec<Value> {
    let one = |c: &Condition| {
        json!({
            "type": c.kind,
            "status": status_text(c.status),
            "reason": c.reason,
            "message": c.message,
            "observedGeneration": c.observed_generation,
        })
    };
    conditions.iter().map(one).collect()
}
