//! What resolution needs beside the Snapshot.

use crate::model::{MtlsMode, ObjectKey, Str};
use ipnet::IpNet;
use std::{collections::BTreeMap, net::IpAddr};

/// What resolution needs beside the Snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Trust domain of every identity.
    pub trust_domain: Str,
    /// The mesh's default for what enrolled pods accept from outside.
    pub default_mode: MtlsMode,
    /// Addresses that each Gateway binds: from the address map of a file config, or assigned by the controller.
    pub gateway_addresses: BTreeMap<ObjectKey, Vec<IpAddr>>,
    /// Addresses for a Gateway that is not in the map.
    pub default_addresses: Vec<IpAddr>,
    /// A controller assigns addresses ([`crate::model::Placement`]): a Gateway without a placement has none.
    pub placed: bool,
    /// The node whose clients the Config is for, since what they reach depends on where they are; `None` where no clients
    /// are served (the controller).
    pub node: Option<Str>,
    /// Networks that pods have their addresses from, where the administrator says so; empty: they are learned.
    pub pod_cidrs: Vec<IpNet>,
}
