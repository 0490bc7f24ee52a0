//! One object of a watch to what is kept of it.

use super::{
    kinds::{DRAIN, SETTINGS, TRUST_ROOTS, UNINSTALL, Watched},
    raw::Raw,
    state::Bundle,
};
use crate::{
    convert::{self, Object, Source, WorkloadSlice},
    problem::{Problem, Severity},
    status::{Live, is_shared},
};
use serde_json::{Map, Value};
use std::{sync::Arc, time::Duration};
use weft_core::{
    budget::{OBJECT_TEXT, amount},
    model::{GatewayConfig, Kind, Node, ObjectKey, Str},
};

/// What is kept of an object.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) key: ObjectKey,
    /// `None`: there is nothing to keep.
    pub(super) body: Option<Body>,
    pub(super) problems: Vec<Problem>,
    /// With its status, where that is wanted.
    pub(super) live: Option<Live>,
}

#[derive(Debug)]
pub(super) enum Body {
    Model(Object),
    Node(Arc<Node>),
    Slice(WorkloadSlice),
    GatewayConfig(Arc<GatewayConfig>),
    /// The trust roots.
    Roots(Str),
    /// The settings' document, and whether Weft is being removed, with the patience that connections have then.
    Settings(Option<Str>, Option<Uninstall>),
    Definition(Option<Bundle>),
}

/// Weft is being removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Uninstall {
    /// See [`crate::World::drain`]; a text that is no duration is none.
    pub(super) drain: Option<Duration>,
}

impl Item {
    /// It could not be read: its last good version, if there is one, stays in effect.
    pub(super) fn refused(&self) -> bool {
        self.body.is_none() && self.problems.iter().any(|p| p.severity == Severity::Error)
    }
}

/// Namespace and name; empty namespace for what is in none.
pub(super) fn key(raw: &Raw) -> Option<ObjectKey> {
    let meta = raw.0.get("metadata")?;
    let field = |name: &str| meta.get(name).and_then(Value::as_str).unwrap_or_default();
    Some(field("name")).filter(|n| !n.is_empty()).map(|name| ObjectKey::new(field("namespace"), name))
}

/// Converts. `None` for an object without a name, which no API server sends. `statuses`: whether those are wanted that
/// other controllers may write too.
pub(super) fn admit(kind: Watched, version: &str, raw: Raw, statuses: bool) -> Option<Item> {
    let key = key(&raw)?;
    let live = match kind {
        Watched::Model(kind) if statuses && is_shared(kind) => Live::of(&raw.0),
        _ => None,
    };
    let mut value = raw.0;
    fill_type(kind, version, &mut value);
    slim(kind, &mut value);
    if let Some(problem) = too_large(kind, &key, &value) {
        return Some(Item { key, body: None, problems: vec![problem], live });
    }
    let source = Source { origin: None, marks: None, admitted: true };
    let (body, problems) = match kind {
        Watched::Model(_) => {
            let converted = convert::convert(value, &source);
            (converted.object.map(Body::Model), converted.problems)
        }
        Watched::Node => {
            let (node, problems) = convert::convert_node(&value, &source);
            (node.map(|n| Body::Node(Arc::new(n))), problems)
        }
        Watched::WorkloadSlice => {
            let (slice, problems) = convert::convert_workload_slice(&value, &source);
            (slice.map(Body::Slice), problems)
        }
        Watched::GatewayConfig => {
            let (config, problems) = convert::convert_gateway_config(&value, &source).unwrap_or_default();
            (config.map(|c| Body::GatewayConfig(Arc::new(c))), problems)
        }
        Watched::Settings => {
            let uninstall = text(&value, UNINSTALL).as_deref() == Some("true");
            let drain = text(&value, DRAIN).and_then(|text| crate::duration::parse(&text));
            let uninstall = uninstall.then_some(Uninstall { drain });
            (Some(Body::Settings(text(&value, SETTINGS.1), uninstall)), Vec::new())
        }
        Watched::TrustRoots => (text(&value, TRUST_ROOTS.1).map(Body::Roots), Vec::new()),
        Watched::Definition => (Some(Body::Definition(bundle(&value))), Vec::new()),
    };
    Some(Item { key, body, problems, live })
}

/// Items of a core list come without their type.
fn fill_type(kind: Watched, version: &str, value: &mut Value) {
    let Some(map) = value.as_object_mut() else { return };
    if !map.contains_key("kind") || !map.contains_key("apiVersion") {
        let group = kind.group();
        let api = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        map.insert("kind".to_owned(), kind.as_str().into());
        map.insert("apiVersion".to_owned(), api.into());
    }
}

/// Drops what the model has no use for, so that it is neither converted nor kept: there are many of these objects, and
/// a change of such a field is no change.
fn slim(kind: Watched, value: &mut Value) {
    let Some(map) = value.as_object_mut() else { return };
    let has_status = matches!(kind, Watched::Model(Kind::Pod | Kind::Service) | Watched::Node);
    if !has_status {
        map.remove("status");
    }
    let mut meta = map.get_mut("metadata").and_then(Value::as_object_mut);
    let mut retain = |field: &str, keep: fn(&str) -> bool| {
        if let Some(entries) = meta.as_mut().and_then(|m| m.get_mut(field)).and_then(Value::as_object_mut) {
            entries.retain(|k, _| keep(k));
        }
    };
    match kind {
        Watched::Model(Kind::Pod) => {
            retain("annotations", |k| speaks_to_us(k) || k == convert::MIRROR);
            retain("labels", |k| speaks_to_us(k) || k == "app" || k.starts_with("app.kubernetes.io/"));
        }
        Watched::Model(Kind::Secret | Kind::ConfigMap) => {
            retain("annotations", speaks_to_us);
            retain("labels", speaks_to_us);
            if let Some(data) = map.get_mut("data").and_then(Value::as_object_mut) {
                data.retain(|name, _| convert::DATA.contains(&name.as_str()));
            }
            map.remove("binaryData");
        }
        Watched::Model(Kind::EndpointSlice | Kind::Namespace) | Watched::Node => {
            retain("annotations", speaks_to_us);
        }
        _ => {}
    }
}

/// Why an object is not even read: of whatever kind, it holds more than a tenant may have held of one. The definitions
/// and settings are those of whoever runs Weft.
fn too_large(kind: Watched, key: &ObjectKey, value: &Value) -> Option<Problem> {
    if matches!(kind, Watched::Definition | Watched::Settings | Watched::TrustRoots) {
        return None;
    }
    let size = text_size(value);
    (size > OBJECT_TEXT.size()).then(|| Problem {
        severity: Severity::Error,
        origin: None,
        object: format!("{kind} {key}").into(),
        path: "".into(),
        reason: format!(
            "has {} KiB of what Weft reads; the budget {} is {} for each object",
            size >> 10,
            OBJECT_TEXT.name,
            amount(&OBJECT_TEXT)
        )
        .into(),
        remedy: "split it into several objects".into(),
    })
}

/// About how many bytes a value has as JSON. It came as JSON, so it is not deep.
fn text_size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|v| text_size(v) + 1).sum::<usize>(),
        Value::Object(entries) => 2 + entries.iter().map(|(k, v)| k.len() + 4 + text_size(v)).sum::<usize>(),
    }
}

fn speaks_to_us(key: &str) -> bool {
    key.starts_with("weft.dev/") || key.starts_with("resource.opentelemetry.io/")
}

fn text(value: &Value, key: &str) -> Option<Str> {
    let data: &Map<String, Value> = value.get("data")?.as_object()?;
    data.get(key)?.as_str().map(Str::from)
}

fn bundle(value: &Value) -> Option<Bundle> {
    let annotations = value.pointer("/metadata/annotations")?;
    let get = |name: &str| annotations.get(name)?.as_str().map(Str::from);
    Some(Bundle {
        version: get("gateway.networking.k8s.io/bundle-version")?,
        channel: get("gateway.networking.k8s.io/channel").unwrap_or_else(|| "".into()),
    })
}

#[cfg(test)]
mod tests;
