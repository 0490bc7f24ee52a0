//! What agents and the controller tell each other, as plain values.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use weft_core::{
    budget::Budget,
    config::Transport,
    model::{Capture, ConfigMap, ObjectKey, Objects, Secret, Str},
};

/// What an agent serves, by Gateway.
pub type Applied = BTreeMap<ObjectKey, AppliedGateway>;

/// A state of a Gateway's specification: what was applied, or is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watermark {
    /// The Gateway's UID: one that was made anew counts its generations from 1 again.
    pub uid: Str,
    /// Its generation.
    pub generation: i64,
    /// The generations of its ListenerSets.
    pub sets: BTreeMap<ObjectKey, i64>,
    /// [`crate::placement_hash`] of its Placement.
    pub placement: u64,
}

/// One Gateway as an agent serves it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedGateway {
    /// What is in effect.
    pub mark: Watermark,
    /// Ports that could not be bound, with the reason.
    pub unbound: BTreeMap<(u16, Transport), Str>,
    /// Addresses that cannot be used at all, with the reason.
    pub unusable: BTreeMap<IpAddr, Str>,
}

/// A budget that a workload of a node has reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetReached {
    /// The pod, or the Gateway.
    pub workload: ObjectKey,
    /// Whether it is a Gateway.
    pub gateway: bool,
    /// Which.
    pub budget: &'static Budget,
    /// How often something was refused or displaced because of it, since the agent's start.
    pub times: u64,
}

/// All that were reached lately.
pub type Reached = Vec<BudgetReached>;

/// Pods of a node whose capture stands.
pub type Captured = BTreeMap<ObjectKey, Capture>;

/// Secrets and ConfigMaps that a node's agent needs, without labels and annotations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Material {
    /// Key pairs of Gateways, and CAs kept in Secrets.
    pub secrets: Objects<Secret>,
    /// CAs kept in ConfigMaps.
    pub config_maps: Objects<ConfigMap>,
}

/// What each node's agent needs. A node that is missing here is one of which nothing is known yet: it keeps what it
/// has. An empty [`Material`] takes everything away.
pub type Materials = BTreeMap<Str, Arc<Material>>;
