//! Serde types of Gateway API v1.6.1, experimental channel: every field of every `spec`.
//!
//! Why not the `gateway-api` crate: it follows v1.5.1, lacks TCPRoute and UDPRoute v1, and has one type per *position*
//! (44 structs for HTTPRoute alone), so that shared code would be written four times. Here a type is shared where the API
//! shares it. Values are read after [`crate::schema`] has filled defaults in, so fields with a default are not optional;
//! enumerations stay text, because an API server of another version may allow more values.

mod gateway;
mod policy;
mod route;

pub(crate) use gateway::*;
pub(crate) use policy::*;
pub(crate) use route::*;

use serde::Deserialize;

/// The part of an object that is read by kind.
#[derive(Debug, Deserialize)]
pub(crate) struct Spec<T> {
    pub(crate) spec: T,
}

/// `LocalObjectReference`, `ObjectReference`, `SecretObjectReference`, `ParametersReference` in one.
#[derive(Debug, Deserialize)]
pub(crate) struct Reference {
    #[serde(default)]
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
}

/// `BackendObjectReference`.
#[derive(Debug, Deserialize)]
pub(crate) struct BackendObject {
    #[serde(default)]
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    pub(crate) port: Option<u16>,
}

/// `metav1.LabelSelector`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct LabelSelector {
    pub(crate) match_labels: std::collections::BTreeMap<String, String>,
    pub(crate) match_expressions: Vec<LabelRequirement>,
}

/// `metav1.LabelSelectorRequirement`.
#[derive(Debug, Deserialize)]
pub(crate) struct LabelRequirement {
    pub(crate) key: String,
    pub(crate) operator: String,
    #[serde(default)]
    pub(crate) values: Vec<String>,
}
