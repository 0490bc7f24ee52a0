//! What an agent tells the controller, and which addresses it holds for Gateways.

use std::{collections::BTreeSet, net::IpAddr};
use weft_core::{config::Config, engine::Feedback, model::Snapshot};
use weft_inpod::Announcer;

/// The agent's side of the cluster.
pub(super) struct Cluster {
    /// This node's name.
    pub(super) node: weft_core::model::Str,
    /// Addresses of Gateways that this node holds.
    pub(super) announcer: Announcer,
}

impl Cluster {
    /// Tells the controller what is served now.
    pub(super) fn applied(&self, snapshot: &Snapshot, feedback: &Feedback) {
        let _ = (snapshot, feedback);
    }

    /// Holds and announces the addresses that Gateways have on this node, beside the node's own.
    pub(super) async fn hold_addresses(&self, config: &Config, snapshot: &Snapshot) {
        let Some(node) = snapshot.nodes.get(&self.node) else { return };
        let bound = config.gateways.values().flat_map(|g| g.addresses.iter().copied());
        let wanted: BTreeSet<IpAddr> = bound.filter(|ip| !node.addresses.contains(ip)).collect();
        if let Err(error) = self.announcer.hold(&node.addresses, wanted).await {
            tracing::warn!("addresses of Gateways: {error}");
        }
    }
}
