//! All objects of a kind against what they should be.

use super::{
    Desired, Inbox,
    job::{Shared, now, send},
    kinds::Requests,
    live::{Live, Page},
    plan::{Context, Plan, plan},
};
use crate::call::CallError;
use std::{collections::BTreeMap, sync::Arc};
use weft_core::model::{Kind, ObjectKey, ObjectRef};

/// What a survey of one kind found.
pub(super) struct Found {
    pub(super) kind: Kind,
    /// Everything that the cluster holds of the kind.
    pub(super) live: BTreeMap<ObjectRef, Live>,
    /// What differs from what it should be.
    pub(super) differs: Vec<ObjectRef>,
}

/// Lists a kind and compares. None: we do not lead any more.
pub(super) async fn survey(
    kind: Kind,
    requests: Requests,
    shared: Shared,
    inbox: Arc<Inbox>,
) -> Option<Result<Found, (Kind, CallError)>> {
    let mut live = BTreeMap::new();
    let mut token = None;
    loop {
        let page = match requests.list(token.as_deref()) {
            Ok(request) => send(&shared, request).await?,
            Err(e) => Err(e),
        };
        let page = page.and_then(|body| {
            serde_json::from_slice::<Page>(&body)
                .map_err(|e| CallError::Unavailable(format!("its list of {kind} cannot be read: {e}")))
        });
        match page {
            Ok(page) => {
                token = page.next();
                live.extend(page.items.into_iter().map(|item| (item.object(kind), item.live())));
            }
            Err(e) => return Some(Err((kind, e))),
        }
        if token.is_none() {
            break;
        }
    }
    let desired = inbox.mail.lock().desired.clone()?;
    let lacks: Vec<_> = shared.lacks.lock().iter().filter(|(k, _)| *k == kind).map(|(_, f)| *f).collect();
    let differs = differs(kind, &live, &desired, &lacks);
    Some(Ok(Found { kind, live, differs }))
}

fn differs(
    kind: Kind,
    live: &BTreeMap<ObjectRef, Live>,
    desired: &Desired,
    lacks: &[&str],
) -> Vec<ObjectRef> {
    let now = now();
    let context = Context { now: &now, lacks };
    let held = live.iter().filter(|(object, live)| {
        let wanted = desired.statuses.get(*object);
        if wanted.is_none() {
            // The watch may lag behind the list: only what it has seen can be none of ours.
            let seen = (desired.known)(object);
            if !seen.is_some_and(|k| k.uid == live.uid && k.generation >= live.generation) {
                return false;
            }
        }
        plan(object, wanted.map(|w| &**w), live, context) != Plan::Nothing
    });
    let held: Vec<_> = held.map(|(object, _)| object.clone()).collect();
    // Made after the list was read.
    let first = ObjectRef { kind, key: ObjectKey::new("", "") };
    let of_kind = desired.statuses.range(first..).map(|(object, _)| object).take_while(|o| o.kind == kind);
    let new = of_kind.filter(|o| !live.contains_key(*o)).cloned();
    held.into_iter().chain(new).collect()
}
