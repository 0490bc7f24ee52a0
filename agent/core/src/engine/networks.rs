//! From which networks pods have their addresses: an address there that no pod is known to have may be one that has just
//! started and must not be spoken to in clear.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// What is known of pods' networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PodNetworks {
    /// The networks, none within another.
    pub(super) nets: Arc<[IpNet]>,
    /// Nodes' own addresses within them.
    pub(super) nodes: Arc<BTreeSet<IpAddr>>,
}

/// From what networks are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told<'a> {
    /// As the administrator says (`AgentConfig.podCidrs`); if any, nothing else counts.
    pub(super) configured: &'a [IpNet],
    /// `spec.podCIDRs` of every node.
    pub(super) cidrs: &'a BTreeSet<IpNet>,
    /// Blocks ([`block`]) that hold a proved address.
    pub(super) proved: &'a BTreeMap<IpNet, usize>,
    /// Each node's addresses.
    pub(super) nodes: &'a [&'a [IpAddr]],
}

/// Wider networks than these are nobody's who has one node: a stolen node must not have every unknown address refused by a
/// `podCIDR` of `0.0.0.0/0`.
const WIDEST_V4: u8 = 12;
const WIDEST_V6: u8 = 40;

impl PodNetworks {
    /// Puts together what is known.
    pub(super) fn new(told: Told<'_>) -> Self {
        let mut nets = if told.configured.is_empty() {
            let cidrs = told.cidrs.iter().filter(|net| match net {
                IpNet::V4(net) => net.prefix_len() >= WIDEST_V4,
                IpNet::V6(net) => net.prefix_len() >= WIDEST_V6,
            });
            let mut nets: Vec<IpNet> = cidrs.copied().collect();
            learn(&mut nets, told);
            nets
        } else {
            told.configured.to_vec()
        };
        nets = IpNet::aggregate(&nets);
        let first = |node: &&[IpAddr], net: &IpNet| node.iter().copied().find(|ip| net.contains(ip));
        // A learned block is narrow because the network around it is shared.
        let is_shared = |net: &&IpNet| is_shared(net, told.nodes) || is_shared(&widened(**net), told.nodes);
        let shared = nets.iter().filter(is_shared);
        // One of each node a network: a node may say of any address that it is its own.
        let nodes = shared.flat_map(|net| told.nodes.iter().filter_map(|node| first(node, net))).collect();
        Self { nets: nets.into(), nodes: Arc::new(nodes) }
    }

    /// Whether an address is one that a pod must have.
    #[cfg(test)]
    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        self.nets.iter().any(|net| net.contains(&ip)) && !self.nodes.contains(&ip)
    }
}

/// Adds the networks of proved addresses that lie in none of those that are known: wide ones, since a node's block (a /24 or
/// less) is the first pod's to prove; only the block itself where nodes have addresses in the wide one, since machines and
/// databases that are nobody's pods do too.
fn learn(nets: &mut Vec<IpNet>, told: Told<'_>) {
    let known = nets.clone();
    for block in told.proved.keys().filter(|block| !known.iter().any(|net| net.contains(*block))) {
        let wide = widened(*block);
        nets.push(if is_shared(&wide, told.nodes) { *block } else { wide });
    }
}

/// Whether nodes have their addresses in a network: most of them, since one says what it likes.
fn is_shared(net: &IpNet, nodes: &[&[IpAddr]]) -> bool {
    let within = nodes.iter().filter(|node| node.iter().any(|ip| net.contains(ip))).count();
    within * 2 > nodes.len()
}

/// The block of an address from which network plugins give a node's pods their addresses, roughly: /24, or /64 of IPv6.
/// None for an IPv4 address outside the private ranges: a stolen node must not have a part of the Internet refused.
pub(super) fn block(ip: IpAddr) -> Option<IpNet> {
    match ip {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64; // RFC 6598
            let net = Ipv4Net::new(v4, 24).ok()?;
            (v4.is_private() || shared).then_some(IpNet::V4(net.trunc()))
        }
        IpAddr::V6(v6) => Some(IpNet::V6(Ipv6Net::new(v6, 64).ok()?.trunc())),
    }
}

/// A cluster's network, as it is usually given: /16, or /56 of IPv6.
fn widened(block: IpNet) -> IpNet {
    let wide = match block {
        IpNet::V4(net) => {
            Ipv4Net::new(net.addr(), net.prefix_len().min(16)).map(|net| IpNet::V4(net.trunc()))
        }
        IpNet::V6(net) => {
            Ipv6Net::new(net.addr(), net.prefix_len().min(56)).map(|net| IpNet::V6(net.trunc()))
        }
    };
    wide.unwrap_or(block)
}

#[cfg(test)]
#[path = "networks/tests.rs"]
mod tests;
