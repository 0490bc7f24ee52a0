//! Conditions as the cluster shows them.

mod class;
mod diff;
mod gateway;
mod route;
mod tls_policy;
mod withdrawn;

pub use self::withdrawn::{named, withdrawn};

pub(crate) use self::{
    class::class_status,
    diff::Statuses,
    gateway::{gateway_status, listener_set_status},
    route::{Slots, route_status},
    tls_policy::{Ancestor, policy_status},
};

use crate::model::{GroupKind, ObjectKey, ObjectRef, ParentRef, Str};
use crate::resolve::{Problem, reason};
use crate::sorted::Sorted;
use std::sync::Arc;

/// One `metav1.Condition` without its transition time (the writer keeps that).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `type`, e.g. `Accepted`.
    pub kind: &'static str,
    /// `status`.
    pub status: ConditionStatus,
    /// `reason`, from the API's enums.
    pub reason: &'static str,
    /// `message`: what, why, and what to do.
    pub message: String,
    /// `observedGeneration`.
    pub observed_generation: i64,
}

impl Condition {
    pub(crate) fn yes(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        let status = ConditionStatus::True;
        Self { kind, status, reason, message: message.into(), observed_generation: 0 }
    }

    pub(crate) fn no(kind: &'static str, problem: &Problem) -> Self {
        Self {
            kind,
            status: ConditionStatus::False,
            reason: problem.reason,
            message: problem.message.clone(),
            observed_generation: 0,
        }
    }

    /// `ResolvedRefs`.
    pub(crate) fn refs(refs: &Result<(), Problem>) -> Self {
        match refs {
            Ok(()) => Self::yes("ResolvedRefs", reason::RESOLVED_REFS, "All references are resolved."),
            Err(problem) => Self::no("ResolvedRefs", problem),
        }
    }
}

/// The API server refuses longer messages (`metav1.Condition.message`, maxLength).
const MAX_MESSAGE: usize = 32_768;

/// Every condition carries the generation that it was made from, and a message that the API server takes.
fn observed(generation: i64, mut conditions: Vec<Condition>) -> Vec<Condition> {
    for condition in &mut conditions {
        condition.observed_generation = generation;
        if condition.message.len() > MAX_MESSAGE {
            let end = condition.message.floor_char_boundary(MAX_MESSAGE - "…".len());
            condition.message.truncate(end);
            condition.message.push('…');
        }
    }
    conditions
}

/// `metav1.ConditionStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

/// Statuses by object.
pub type AllStatuses = Sorted<ObjectRef, Arc<ObjectStatus>>;

/// The status of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectStatus {
    /// `GatewayClass.status`.
    GatewayClass {
        /// Conditions.
        conditions: Vec<Condition>,
        /// `supportedFeatures`, sorted.
        supported_features: Vec<&'static str>,
    },
    /// `Gateway.status`.
    Gateway {
        /// Conditions.
        conditions: Vec<Condition>,
        /// `addresses`: type and value.
        addresses: Vec<(&'static str, Str)>,
        /// `listeners`.
        listeners: Vec<ListenerStatus>,
        /// `attachedListenerSets`.
        attached_listener_sets: i32,
    },
    /// `ListenerSet.status`.
    ListenerSet {
        /// Conditions.
        conditions: Vec<Condition>,
        /// `listeners`.
        listeners: Vec<ListenerStatus>,
    },
    /// `status.parents` of a route: only our own entries.
    Route {
        /// Entries, in the order of `spec.parentRefs`.
        parents: Vec<RouteParentStatus>,
    },
    /// `BackendTLSPolicy.status.ancestors`: only our own entries.
    BackendTlsPolicy {
        /// Entries.
        ancestors: Vec<PolicyAncestorStatus>,
    },
}

/// `ListenerStatus` and `ListenerEntryStatus`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerStatus {
    /// Name.
    pub name: Str,
    /// `supportedKinds`.
    pub supported_kinds: Vec<GroupKind>,
    /// `attachedRoutes`.
    pub attached_routes: i32,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

/// `RouteParentStatus`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteParentStatus {
    /// The parentRef exactly as in the spec.
    pub parent: ParentRef,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

/// `PolicyAncestorStatus`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyAncestorStatus {
    /// Group and kind of the ancestor (Gateway, or Service in the mesh).
    pub kind: GroupKind,
    /// Its key.
    pub ancestor: ObjectKey,
    /// Conditions.
    pub conditions: Vec<Condition>,
}
