//! An object as it comes over the wire: JSON, without what nobody here reads.

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::fmt;

/// A copy of the whole object, Secrets in clear included.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// An object. Not printed: it may be a Secret.
#[derive(Clone)]
pub(super) struct Raw(pub(super) Value);

/// A page of a list. (kube's own flattens its type fields, which makes serde hold the page twice.)
#[derive(Deserialize)]
pub(super) struct Page {
    pub(super) metadata: PageMeta,
    #[serde(default = "Vec::new", deserialize_with = "null_is_empty")]
    pub(super) items: Vec<Raw>,
}

/// `ListMeta`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMeta {
    #[serde(default)]
    pub(super) resource_version: String,
    #[serde(default, rename = "continue")]
    pub(super) more: Option<String>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.remove("managedFields");
            if let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
                annotations.remove(LAST_APPLIED);
            }
        }
        Ok(Self(value))
    }
}

impl Raw {
    /// `metadata.resourceVersion`.
    pub(super) fn version(&self) -> Option<&str> {
        self.0.pointer("/metadata/resourceVersion")?.as_str().filter(|v| !v.is_empty())
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Raw(not printed)")
    }
}

/// Go writes an empty list as null.
fn null_is_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Raw>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
