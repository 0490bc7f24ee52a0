//! The status that the cluster holds.

use super::FIELD_MANAGER;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};
use tokio::sync::Notify;
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
pub struct Lives {
    held: RwLock<HashMap<ObjectRef, Arc<Live>>>,
    /// Bounded by the number of objects: each is in it once.
    edited: Mutex<BTreeSet<ObjectRef>>,
    moved: Notify,
}

impl Lives {
    /// None: it is not there, or its kind is one controller's alone.
    #[must_use]
    pub fn get(&self, object: &ObjectRef) -> Option<Arc<Live>> {
        self.held.read().get(object).cloned()
    }

    /// Waits for objects whose status alone has changed, by us or by others. A world does not show it, and who writes the
    /// whole list may have written our entries away.
    pub async fn edited(&self) -> BTreeSet<ObjectRef> {
        loop {
            let edited = std::mem::take(&mut *self.edited.lock());
            if !edited.is_empty() {
                return edited;
            }
            self.moved.notified().await;
        }
    }

    pub(crate) fn put(&self, object: ObjectRef, live: Live) {
        let before = self.held.write().insert(object.clone(), Arc::new(live.clone()));
        let edited = |before: &Arc<Live>| {
            (&before.uid, before.generation) == (&live.uid, live.generation) && before.status != live.status
        };
        if before.as_ref().is_some_and(edited) {
            self.edited.lock().insert(object);
            self.moved.notify_one();
        }
    }

    pub(crate) fn remove(&self, object: &ObjectRef) {
        self.held.write().remove(object);
        self.edited.lock().remove(object);
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn a_status_that_changes_alone_is_told_and_nothing_else() {
        let lives = Lives::default();
        let object = |name: &str| ObjectRef { kind: Kind::HttpRoute, key: ObjectKey::new("a", name) };
        let put = |name: &str, uid: &str, generation: i64, status: Value| {
            let metadata = json!({"namespace": "a", "name": name, "uid": uid, "generation": generation});
            let live = Live::of(&json!({"metadata": metadata, "status": status}));
            lives.put(object(name), live.unwrap());
        };
        for name in ["same", "edited", "respecified", "anew", "gone"] {
            put(name, "1", 1, json!({"parents": []}));
        }
        put("same", "1", 1, json!({"parents": []}));
        put("edited", "1", 1, json!({"parents": [1]}));
        put("respecified", "1", 2, json!({"parents": [1]}));
        put("anew", "2", 1, json!({"parents": [1]}));
        put("gone", "1", 1, json!({"parents": [1]}));
        lives.remove(&object("gone"));
        assert_eq!(lives.edited().await, BTreeSet::from([object("edited")]));
        assert!(lives.edited.lock().is_empty());
    }
}
