//! All statuses, and which of them changed.

use super::{AllStatuses, ObjectStatus};
use crate::model::ObjectRef;
use std::{collections::BTreeSet, sync::Arc};

/// The status of every object of ours.
#[derive(Debug, Default)]
pub(crate) struct Statuses {
    all: Arc<AllStatuses>,
    changed: BTreeSet<ObjectRef>,
}

impl Statuses {
    /// Sets the status of an object, or takes it away.
    pub(crate) fn set(&mut self, object: ObjectRef, status: Option<ObjectStatus>) {
        if self.all.get(&object).map(|s| &**s) == status.as_ref() {
            return;
        }
        let all = Arc::make_mut(&mut self.all);
        match status {
            Some(status) => all.insert(object.clone(), Arc::new(status)),
            None => all.remove(&object),
        };
        self.changed.insert(object);
    }

    /// Says the status of an object again, if it has one.
    pub(crate) fn again(&mut self, object: ObjectRef) {
        if self.all.contains_key(&object) {
            self.changed.insert(object);
        }
    }

    /// Everything, shared.
    pub(crate) fn all(&self) -> Arc<AllStatuses> {
        self.all.clone()
    }

    /// What was changed since the last call.
    pub(crate) fn take_changed(&mut self) -> Vec<ObjectRef> {
        std::mem::take(&mut self.changed).into_iter().collect()
    }
}
