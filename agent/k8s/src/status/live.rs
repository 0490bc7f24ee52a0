//! The status that the cluster holds.

use super::FIELD_MANAGER;
use parking_lot::RwLock;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::{collections::HashMap, sync::Arc};
use weft_core::model::{Kind, ObjectKey, ObjectRef, Str};

/// An object as the API server showed it last: what a write is compared with. Kept as text, because ten thousand
/// parsed ones are large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// `metadata.uid`.
    pub uid: Str,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.resourceVersion`.
    pub resource_version: Str,
    /// `status` as JSON; `null` without one.
    status: Box<str>,
    /// Which fields of the status server-side apply holds as ours (`managedFields[].fieldsV1["f:status"]`).
    owned: Box<str>,
}

impl Live {
    /// Reads an object as the API server sends it (JSON). None when it is no object.
    #[must_use]
    pub fn read(object: &[u8]) -> Option<Self> {
        Some(serde_json::from_slice::<Raw>(object).ok()?.live())
    }

    /// The same from an object that is parsed already.
    #[must_use]
    pub fn of(object: &Value) -> Option<Self> {
        Some(Raw::deserialize(object).ok()?.live())
    }

    pub(super) fn status(&self) -> Value {
        serde_json::from_str(&self.status).unwrap_or(Value::Null)
    }

    pub(super) fn owned(&self) -> Value {
        serde_json::from_str(&self.owned).unwrap_or(Value::Null)
    }

    /// Whether this was read after `other`. resourceVersions of one resource can be compared as numbers (KEP-5504;
    /// true of every API server over etcd before it was promised). If not numbers: it was not.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        match (self.resource_version.parse::<u128>(), other.resource_version.parse::<u128>()) {
            (Ok(mine), Ok(theirs)) => mine > theirs,
            _ => false,
        }
    }
}

/// Objects of the kinds whose status several controllers write, as the watch brought them last: newer than the last world
/// or as new. A write needs them, because such a status is replaced as a whole.
#[derive(Debug, Default)]
pub struct Lives(RwLock<HashMap<ObjectRef, Arc<Live>>>);

impl Lives {
    /// None: it is not there, or its kind is one controller's alone.
    #[must_use]
    pub fn get(&self, object: &ObjectRef) -> Option<Arc<Live>> {
        self.0.read().get(object).cloned()
    }

    pub(crate) fn put(&self, object: ObjectRef, live: Live) {
        self.0.write().insert(object, Arc::new(live));
    }

    pub(crate) fn remove(&self, object: &ObjectRef) {
        self.0.write().remove(object);
    }
}

/// One page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) items: Vec<Raw>,
    #[serde(default)]
    metadata: PageMeta,
}

#[derive(Debug, Default, Deserialize)]
struct PageMeta {
    #[serde(default, rename = "continue")]
    token: Option<String>,
}

impl Page {
    /// Where the next page begins.
    pub(super) fn next(&self) -> Option<String> {
        self.metadata.token.clone().filter(|t| !t.is_empty())
    }
}

/// The parts of an object that matter here; its `spec` is skipped, not kept.
#[derive(Debug, Deserialize)]
pub(super) struct Raw {
    metadata: RawMeta,
    #[serde(default)]
    status: Value,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMeta {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    generation: i64,
    #[serde(default)]
    resource_version: String,
    #[serde(default, deserialize_with = "or_default")]
    managed_fields: Vec<Managed>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Managed {
    #[serde(default)]
    manager: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    subresource: String,
    #[serde(default)]
    fields_v1: Value,
}

impl Raw {
    pub(super) fn object(&self, kind: Kind) -> ObjectRef {
        ObjectRef { kind, key: ObjectKey::new(self.metadata.namespace.as_str(), self.metadata.name.as_str()) }
    }

    pub(super) fn live(self) -> Live {
        let ours =
            |m: &&Managed| m.manager == FIELD_MANAGER && m.operation == "Apply" && m.subresource == "status";
        let owned =
            self.metadata.managed_fields.iter().find(ours).map_or(&Value::Null, |m| &m.fields_v1["f:status"]);
        Live {
            owned: owned.to_string().into(),
            status: self.status.to_string().into(),
            uid: self.metadata.uid.into(),
            generation: self.metadata.generation,
            resource_version: self.metadata.resource_version.into(),
        }
    }
}

/// Go writes an empty list as `null`.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
