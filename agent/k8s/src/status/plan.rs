//! What to send, if anything: the status that should be, against the one that the cluster holds.

use super::{
    kinds::list_of_many,
    live::Live,
    render::{self, Entry, conditions, find},
};
use serde_json::{Value, json};
use weft_core::{
    model::{CONTROLLER_NAME, GATEWAY_GROUP, ObjectRef},
    status::ObjectStatus,
};

/// What the cluster is to be told.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Plan {
    /// It holds what it should.
    Nothing,
    /// Server-side apply of this `status`; without one, our fields are given up.
    Apply(Option<Value>),
    /// Merge patch of this `status`: its lists are replaced as they are.
    Merge(Value),
}

/// What a plan depends on beside the two statuses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    /// RFC 3339, for conditions that change now.
    pub(super) now: &'a str,
    /// Fields of `status` that the cluster's CRD does not have.
    pub(super) lacks: &'a [&'a str],
}

/// `wanted` None: the object is none of ours (any more).
pub(super) fn plan(
    object: &ObjectRef,
    wanted: Option<&ObjectStatus>,
    live: &Live,
    context: Context<'_>,
) -> Plan {
    match list_of_many(object.kind) {
        Some((list, reference, max)) => {
            let status = live.status();
            let merged = merge(
                &status[list],
                &render::entries(wanted),
                &Shape { object, reference, max },
                context.now,
            );
            merged.map_or(Plan::Nothing, |entries| Plan::Merge(json!({ list: entries })))
        }
        None => apply(wanted, live, context),
    }
}

/// How the entries of a list look.
struct Shape<'a> {
    object: &'a ObjectRef,
    reference: &'static str,
    /// `maxItems`.
    max: usize,
}

/// The whole list with `ours` in it, or None when it is like that already. Entries of other controllers stay as and
/// where they are; ours stay where they are, new ones go to the end, those for what is not referenced any more go.
fn merge(live: &Value, ours: &[Entry<'_>], shape: &Shape<'_>, now: &str) -> Option<Vec<Value>> {
    let held = live.as_array().map_or(&[][..], Vec::as_slice);
    let mut left: Vec<_> = ours.iter().map(Some).collect();
    let mut out = Vec::with_capacity(held.len() + ours.len());
    for entry in held {
        if entry["controllerName"] != CONTROLLER_NAME {
            out.push(entry.clone());
            continue;
        }
        // A second entry of ours for one parent finds none left and goes.
        let same =
            |wanted: &Entry<'_>| normal(&wanted.reference, shape) == normal(&entry[shape.reference], shape);
        if let Some(wanted) = left.iter_mut().find(|w| w.is_some_and(same)).and_then(Option::take) {
            out.push(updated(entry, wanted, shape, now));
        }
    }
    for wanted in left.into_iter().flatten() {
        // The list is full of others' entries: ours have no place (GEP-713 says so for ancestors).
        if out.len() < shape.max {
            out.push(updated(&Value::Null, wanted, shape, now));
        }
    }
    (out != held).then_some(out)
}

/// The entry as it should be; as it is, byte for byte, when only the order in it differs.
fn updated(held: &Value, wanted: &Entry<'_>, shape: &Shape<'_>, now: &str) -> Value {
    let new = json!({
        "controllerName": CONTROLLER_NAME,
        (shape.reference): wanted.reference,
        "conditions": conditions(wanted.conditions, &held["conditions"], now),
    });
    let same = new[shape.reference] == held[shape.reference]
        && covers(&held["conditions"], &new["conditions"], true);
    if same { held.clone() } else { new }
}

/// A reference with its defaults, so that `namespace: x` in namespace x and no namespace are the same parent.
fn normal(reference: &Value, shape: &Shape<'_>) -> [Value; 6] {
    let or = |field: &str, default: &str| match &reference[field] {
        Value::Null => json!(default),
        there => there.clone(),
    };
    [
        or("group", GATEWAY_GROUP),
        or("kind", "Gateway"),
        or("namespace", &shape.object.key.namespace),
        reference["name"].clone(),
        reference["sectionName"].clone(),
        reference["port"].clone(),
    ]
}

fn apply(wanted: Option<&ObjectStatus>, live: &Live, context: Context<'_>) -> Plan {
    let (status, owned) = (live.status(), live.owned());
    let Some(wanted) = wanted else {
        // Another controller's, or nobody's: only what we hold in it is ours to take back.
        return if holds_only(&owned, &Value::Null) { Plan::Nothing } else { Plan::Apply(None) };
    };
    let new = render::whole(wanted, &status, context.now, context.lacks);
    if !covers(&status, &new, false) || !holds_only(&owned, &new) {
        return Plan::Apply(Some(new));
    }
    // Listeners that another controller or manager has left behind: apply does not remove what it does not own.
    let listeners = status["listeners"].as_array().map_or(&[][..], Vec::as_slice);
    let real =
        |l: &&Value| l["name"].as_str().is_some_and(|name| find(&new["listeners"], "name", name).is_some());
    let kept: Vec<_> = listeners.iter().filter(real).cloned().collect();
    if kept.len() == listeners.len() { Plan::Nothing } else { Plan::Merge(json!({ "listeners": kept })) }
}

/// Whether `live` holds all of `wanted`; `exactly`: and, in lists, nothing else. Lists of objects with a `type` (and
/// no `value`) or a `name` are maps in the CRDs: their order says nothing. Other lists are atomic.
fn covers(live: &Value, wanted: &Value, exactly: bool) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            (!exactly || live.len() == wanted.len())
                && wanted.iter().all(|(field, value)| {
                    let there = live.get(field).unwrap_or(&Value::Null);
                    covers(there, value, exactly)
                })
        }
        (Value::Array(live), Value::Array(wanted)) => match wanted.first().or(live.first()).and_then(map_key)
        {
            Some(key) => {
                (!exactly || live.len() == wanted.len())
                    && wanted.iter().all(|item| {
                        live.iter().find(|l| l[key] == item[key]).is_some_and(|l| covers(l, item, exactly))
                    })
            }
            None => live == wanted,
        },
        // An empty list may come back as none.
        (Value::Null, Value::Array(wanted)) => wanted.is_empty(),
        _ => live == wanted,
    }
}

fn map_key(item: &Value) -> Option<&'static str> {
    let item = item.as_object()?;
    if item.contains_key("lastTransitionTime") {
        return Some("type");
    }
    item.contains_key("name").then_some("name")
}

/// Whether every field that `owned` (FieldsV1) names is in `value`. What we own and would not apply again is to go.
fn holds_only(owned: &Value, value: &Value) -> bool {
    let Some(owned) = owned.as_object() else { return true };
    owned.iter().all(|(key, inner)| {
        if let Some(field) = key.strip_prefix("f:") {
            value.get(field).is_some_and(|v| holds_only(inner, v))
        } else if let Some(keys) = key.strip_prefix("k:") {
            let keys: Value = serde_json::from_str(keys).unwrap_or(Value::Null);
            item(value, &keys).is_some_and(|v| holds_only(inner, v))
        } else {
            true
        }
    })
}

fn item<'a>(list: &'a Value, keys: &Value) -> Option<&'a Value> {
    let keys = keys.as_object()?;
    list.as_array()?.iter().find(|item| keys.iter().all(|(key, value)| item[key] == *value))
}

#[cfg(test)]
mod tests;
