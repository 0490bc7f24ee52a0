//! Conditions as the cluster shows them.

use crate::model::{GroupKind, ObjectKey, ParentRef, Str};

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

/// `metav1.ConditionStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

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
