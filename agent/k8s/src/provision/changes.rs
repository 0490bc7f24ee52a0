//! From what is there to what is planned. Pure.

use super::{
    names::{GATEWAY, is_managed, object_key},
    objects::{Body, ObjectKind, Wanted},
    placement::slices_of,
    plan::{Plan, is_foreign_class},
};
use std::collections::{BTreeMap, BTreeSet};
use weft_core::model::{Labels, Meta, ObjectKey, Snapshot, Str};

/// Names one object.
pub(super) type ObjectId = (ObjectKind, ObjectKey);

/// ServiceAccounts that carry our label: not watched, but listed now and then.
pub(super) type Accounts = BTreeMap<ObjectKey, Account>;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: Str,
    pub(super) annotations: Labels,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there are a handful at a time, and nearly all are of the large kind"
)]
pub(super) enum Change {
    Apply {
        wanted: Wanted,
        /// The object that is there; none was seen of this name.
        uid: Option<Str>,
    },
    Delete {
        id: ObjectId,
        gateway: ObjectKey,
        uid: Str,
    },
}

impl Change {
    pub(super) fn id(&self) -> ObjectId {
        match self {
            Self::Apply { wanted, .. } => (wanted.kind(), wanted.key.clone()),
            Self::Delete { id, .. } => id.clone(),
        }
    }

    /// For whom it is done.
    pub(super) fn gateway(&self) -> ObjectKey {
        match self {
            Self::Apply { wanted, .. } => {
                ObjectKey { namespace: wanted.key.namespace.clone(), name: wanted.owner.0.clone() }
            }
            Self::Delete { gateway, .. } => gateway.clone(),
        }
    }
}

/// What is left to do.
pub(super) fn changes(plan: &Plan, world: &Snapshot, accounts: &Accounts) -> Vec<Change> {
    let mut out = Vec::new();
    for wanted in &plan.objects {
        let (uid, same) = match &wanted.body {
            Body::Account => {
                let is = accounts.get(&wanted.key);
                (is.map(|a| a.uid.clone()), is.is_some_and(|a| wanted.applied(&a.annotations)))
            }
            Body::Service(_) => {
                let is = world.services.get(&wanted.key);
                (is.map(|s| s.meta.uid.clone()), is.is_some_and(|s| wanted.matches_service(s)))
            }
            Body::Slice { .. } => {
                let is = world.endpoint_slices.get(&wanted.key);
                (is.map(|s| s.meta.uid.clone()), is.is_some_and(|s| wanted.matches_slice(s)))
            }
        };
        if !same {
            out.push(Change::Apply { wanted: wanted.clone(), uid });
        }
    }
    out.extend(strays(plan, world, accounts));
    out
}

/// Objects of ours that are wanted no longer. Those of a Gateway that is gone are left to the garbage collector.
fn strays(plan: &Plan, world: &Snapshot, accounts: &Accounts) -> Vec<Change> {
    let wanted: BTreeSet<&ObjectKey> =
        plan.objects.iter().filter(|w| w.kind() == ObjectKind::EndpointSlice).map(|w| &w.key).collect();
    let mut out = Vec::new();
    for gateway in world.gateways.keys() {
        let service = object_key(gateway);
        let foreign = is_foreign_class(world, gateway);
        if !foreign && !plan.planned.contains(&service) {
            continue;
        }
        let mut delete = |kind, key: &ObjectKey, uid: &Str| {
            out.push(Change::Delete { id: (kind, key.clone()), gateway: gateway.clone(), uid: uid.clone() });
        };
        for (key, slice) in slices_of(&world.endpoint_slices, &service) {
            if made_for(&slice.meta, gateway) && (foreign || !wanted.contains(key)) {
                delete(ObjectKind::EndpointSlice, key, &slice.meta.uid);
            }
        }
        if !foreign {
            continue;
        }
        if let Some(s) = world.services.get(&service).filter(|s| made_for(&s.meta, gateway)) {
            delete(ObjectKind::Service, &service, &s.meta.uid);
        }
        if let Some(a) = accounts.get(&service).filter(|a| a.annotations.get(GATEWAY) == Some(&gateway.name))
        {
            delete(ObjectKind::ServiceAccount, &service, &a.uid);
        }
    }
    out
}

/// Whether we made the object, and for this Gateway.
fn made_for(meta: &Meta, gateway: &ObjectKey) -> bool {
    is_managed(&meta.labels) && meta.annotations.get(GATEWAY) == Some(&gateway.name)
}
