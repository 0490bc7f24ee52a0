//! PURE: what a pod excludes from capture, from its annotations; and what gets past it while no agent is there.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// More entries than this in one annotation are refused: it bounds the transaction.
const MAX_ENTRIES: usize = 256;

/// What of a pod's traffic is left alone: always, from the pod's annotations `weft.dev/exclude-…`; or while no agent is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureConfig {
    /// `exclude-inbound-ports`: ports of the pod that are reached directly.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub inbound_ports: BTreeSet<u16>,
    /// `exclude-outbound-ports`: destination ports that the pod reaches directly.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub outbound_ports: BTreeSet<u16>,
    /// `exclude-inbound-cidrs`: sources that reach the pod directly.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub inbound_cidrs: BTreeSet<IpNet>,
    /// `exclude-outbound-cidrs`: destinations that the pod reaches directly.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub outbound_cidrs: BTreeSet<IpNet>,
    /// What its kubelet reaches directly while no agent is there.
    #[serde(default, skip_serializing_if = "WhileAway::is_nothing")]
    pub while_away: WhileAway,
    /// The pod is strict: connections to it that are older than its capture, and so were never protected, are reset.
    #[serde(default, skip_serializing_if = "is_false")]
    pub strict: bool,
    /// Datagrams that nobody in the pod has asked for are dropped: they are never encrypted.
    #[serde(default, skip_serializing_if = "is_false")]
    pub drop_udp: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
const fn is_false(value: &bool) -> bool {
    !*value
}

/// Ports that the node's own addresses reach directly while the node has no agent: those of a permissive pod's declared
/// probes, or the kubelet would restart every pod of a node whose agent is away for minutes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhileAway {
    /// Ports of the pod.
    pub ports: BTreeSet<u16>,
    /// Addresses of the node.
    pub node: BTreeSet<IpAddr>,
}

impl WhileAway {
    /// These ports, for these addresses.
    #[must_use]
    pub const fn new(ports: BTreeSet<u16>, node: BTreeSet<IpAddr>) -> Self {
        Self { ports, node }
    }

    /// Whether it lets nobody past capture.
    pub(crate) fn is_nothing(&self) -> bool {
        self.ports.is_empty()
    }
}

/// An annotation that says nothing usable. The rest of the configuration holds; the entry captures.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {annotation}: \"{entry}\" {reason}")]
pub struct InvalidAnnotation {
    /// The annotation's name.
    pub annotation: String,
    /// The part that is wrong.
    pub entry: String,
    /// Why.
    pub reason: &'static str,
}

impl CaptureConfig {
    /// Reads `weft.dev/exclude-{inbound,outbound}-{ports,cidrs}`: comma-separated ports or CIDRs (an address
    /// stands for itself). Invalid entries are reported and left out, so that a typo captures too much rather
    /// than too little.
    pub fn from_annotations<'a>(
        annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> (Self, Vec<InvalidAnnotation>) {
        let known: BTreeMap<&str, &str> = annotations.into_iter().collect();
        let mut invalid = Vec::new();
        let config = Self {
            inbound_ports: entries(&known, "weft.dev/exclude-inbound-ports", port, &mut invalid),
            outbound_ports: entries(&known, "weft.dev/exclude-outbound-ports", port, &mut invalid),
            inbound_cidrs: entries(&known, "weft.dev/exclude-inbound-cidrs", cidr, &mut invalid),
            outbound_cidrs: entries(&known, "weft.dev/exclude-outbound-cidrs", cidr, &mut invalid),
            ..Self::default()
        };
        (config, invalid)
    }
}

fn entries<T: Ord>(
    annotations: &BTreeMap<&str, &str>,
    name: &'static str,
    parse: fn(&str) -> Result<T, &'static str>,
    invalid: &mut Vec<InvalidAnnotation>,
) -> BTreeSet<T> {
    let value = annotations.get(name).copied().unwrap_or_default();
    let mut found = BTreeSet::new();
    for entry in value.split(',').map(str::trim).filter(|e| !e.is_empty()) {
        let parsed =
            if found.len() < MAX_ENTRIES { parse(entry) } else { Err("is one entry too many (256)") };
        match parsed {
            Ok(value) => {
                found.insert(value);
            }
            Err(reason) => {
                let entry = entry.chars().take(64).collect();
                invalid.push(InvalidAnnotation { annotation: name.into(), entry, reason });
                if found.len() >= MAX_ENTRIES {
                    break;
                }
            }
        }
    }
    found
}

fn port(entry: &str) -> Result<u16, &'static str> {
    entry.parse().ok().filter(|p| *p > 0).ok_or("is not a port from 1 to 65535")
}

fn cidr(entry: &str) -> Result<IpNet, &'static str> {
    let net = entry
        .parse::<IpNet>()
        .or_else(|_| entry.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| "is not a CIDR or address")?;
    Ok(net.trunc())
}

#[cfg(test)]
#[path = "capture_config/tests.rs"]
mod tests;
