//! `metadata`, and names as an API server checks them.

use super::{Cx, kinds};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};
use std::collections::BTreeMap;
use weft_core::model::{Kind, Labels, Meta, Origin, Str};

/// The top level of a Gateway API object, its spec left to others.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code)] // named so that other top-level fields are found to be unknown
struct Envelope {
    api_version: IgnoredAny,
    kind: IgnoredAny,
    metadata: Option<ObjectMeta>,
    spec: Option<IgnoredAny>,
    status: Option<IgnoredAny>,
}

/// Metadata of a Gateway API object.
pub(super) fn of_gateway_kind(kind: Kind, cx: &mut Cx<'_>) -> Option<Meta> {
    let envelope: Envelope = cx.object()?;
    // In a cluster the version is negotiated, and not the object's.
    if let Some(old) = kinds::old_version(kind, cx.value).filter(|_| !cx.source.admitted) {
        cx.report.warn("apiVersion", old, "");
    }
    of(kind, envelope.metadata.unwrap_or_default(), cx)
}

/// Metadata of a kind of `weft.dev`, named by the rules of a ConfigMap.
pub(super) fn of_weft_kind(cx: &mut Cx<'_>) -> Option<Meta> {
    let envelope: Envelope = cx.object()?;
    of(Kind::ConfigMap, envelope.metadata.unwrap_or_default(), cx)
}

/// Metadata of an object that is in no namespace and of no kind of the model.
pub(super) fn of_cluster_scoped(meta: ObjectMeta, cx: &mut Cx<'_>) -> Option<Meta> {
    // The rules of a name are the same for all of these.
    of(Kind::GatewayClass, meta, cx)
}

/// Metadata of any object.
pub(super) fn of(kind: Kind, meta: ObjectMeta, cx: &mut Cx<'_>) -> Option<Meta> {
    let Some(key) = kinds::key(kind, cx.value) else {
        let remedy = if meta.generate_name.is_some() { "generateName works in a cluster only" } else { "" };
        cx.report.reject("metadata.name", "is required", remedy);
        return None;
    };
    check_name(kind, &key.name, cx);
    if !key.namespace.is_empty() && !is_label(&key.namespace) {
        let reason = format!("\"{}\" is no namespace name", key.namespace);
        cx.report.reject("metadata.namespace", reason, "use at most 63 lower-case letters, digits and -");
    }
    let labels = meta.labels.unwrap_or_default();
    for (name, value) in &labels {
        if !is_label_value(value) {
            let path = crate::path::key("metadata.labels", name);
            let remedy = "use at most 63 letters, digits, -, _ and .";
            cx.report.reject(&path, format!("\"{value}\" is no label value"), remedy);
        }
    }
    Some(Meta {
        uid: meta.uid.unwrap_or_default().into(),
        generation: meta.generation.unwrap_or(0),
        created: meta.creation_timestamp.map_or(0, |t| t.0.as_second()),
        labels: strings(labels),
        annotations: strings(meta.annotations.unwrap_or_default()),
        origin: cx.source.origin.map(|o| Origin {
            file: o.file.clone(),
            line: cx.source.marks.map_or(o.line, crate::yaml::Marks::line),
        }),
        key,
    })
}

fn check_name(kind: Kind, name: &str, cx: &mut Cx<'_>) {
    let (ok, remedy) = match kind {
        Kind::Service | Kind::Namespace => {
            (is_label(name), "use at most 63 lower-case letters, digits and -")
        }
        _ => (is_subdomain(name), "use at most 253 lower-case letters, digits, - and ."),
    };
    if !ok {
        cx.report.reject("metadata.name", format!("\"{name}\" is not allowed as a name"), remedy);
    }
}

/// RFC 1123 label.
pub(super) fn is_label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// RFC 1123 subdomain. A label in it may be longer than 63 (unlike in DNS): so does Kubernetes.
fn is_subdomain(name: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn is_label_value(value: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    value.is_empty()
        || (value.len() <= 63
            && value.starts_with(edge)
            && value.ends_with(edge)
            && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)))
}

/// A Kubernetes string map as the model has it.
pub(super) fn strings(map: BTreeMap<String, String>) -> Labels {
    map.into_iter().map(|(k, v)| (Str::from(k), Str::from(v))).collect()
}
